"""A Flower deployment on this machine: a SuperLink and SuperNodes, each in its own process, over TLS.

A deployment makes its own certificate authority, a certificate of the SuperLink for loopback, a key pair for every
SuperNode, and a home folder for Flower; it neither reads nor changes the user's Flower configuration. Other users of
this machine can connect to the ports but not use them: a SuperNode needs a registered key, a command that runs apps
needs a token, and a process that executes tasks needs a secret. Temporary files are in one private folder. On Linux all
processes end with this process, even if it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from fedsim.apps.certificates import make_certificates, make_key, write_private
from fedsim.apps.export import export
from fedsim.apps.private_folder import private_folder
from fedsim.apps.processes import defer_signals, end_processes, interrupt_on_signal, start_process
from fedsim.apps.submission import failure_reason, submit_app
from fedsim.apps.superlink import TOKEN_FILE_VARIABLE, write_credentials
from fedsim.checks import check_integer
from fedsim.errors import FedsimError
from fedsim.study.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd

LOOPBACK = "127.0.0.1"
#: Name of the connection to the SuperLink in the deployment's own Flower configuration.
CONNECTION = "here"
#: Seconds to wait for the SuperLink to listen.
START_TIMEOUT = 60.0


class Deployment:
    """A SuperLink and SuperNodes on loopback. Use it as a context manager.

    Parameters
    ----------
    nodes : int
        Number of SuperNodes, at least 1.
    data_dir : path, optional
        Folder from which they read data.
    insecure : bool
        Without TLS and without authentication of SuperNodes.
    """

    def __init__(self, nodes: int, data_dir: str | os.PathLike[str] | None = None, insecure: bool = False) -> None:
        check_integer("nodes", nodes, 1)
        self.nodes, self.insecure = nodes, insecure
        self._data_dir = os.path.abspath(data_dir) if data_dir else None
        self.folder, self.port = Path(), 0
        self.supernodes: list[subprocess.Popen[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Deployment:
        try:
            self._start(self._stack.enter_context(private_folder()))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove the folder; signals are deferred until the end."""
        with defer_signals():
            end_processes(*self._processes)
            self._processes.clear()
            self._stack.close()

    def run(
        self,
        experiment: Experiment,
        out: str | os.PathLike[str],
        on_line: Callable[[str], None] = lambda line: None,
        **settings: Any,
    ) -> None:
        """Run an experiment on the SuperNodes, and write its results to `out`; see `fedsim.apps.submission.submit`."""
        experiment = replace(experiment, data_dir=self._data_dir)  # absolute: the server has another current directory
        settings |= {"out": os.path.abspath(out), "nodes": self.nodes, "supervised": True}
        app = export(experiment, tempfile.mkdtemp(prefix="app-", dir=self.folder), **settings)
        submit_app(app, CONNECTION, self.environment, on_line)

    def flwr(self, *arguments: str) -> str:
        """Call ``flwr`` and return its output; FedsimError with the reason if it fails."""
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment, capture_output=True, text=True, cwd=self.folder, timeout=120
        )
        if done.returncode:
            reason = failure_reason((done.stdout + done.stderr).splitlines())
            raise FedsimError(f"flwr {' '.join(arguments[:2])} failed: {reason}")
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """Environment of Flower's commands: the user's, with this interpreter's scripts and its own home folder."""
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            TOKEN_FILE_VARIABLE: str(self.folder / "token"),
            "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def _start(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        address, authority = f"{LOOPBACK}:{self.port}", str(folder / "ca.crt")
        #: Arguments that make a command trust the SuperLink.
        self._server_trust = ["--insecure"] if self.insecure else [f"--root-certificates={authority}"]
        self._secret = f"--superexec-auth-secret-file={folder / 'secret'}"
        #: Arguments that make a SuperLink or SuperNode leave its tasks to an executor that has the secret.
        self._isolation = ["--isolation=process", self._secret]
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        for name in ("token", "secret"):
            write_private(folder / name, secrets.token_hex(32).encode())
        trust = {"insecure": True} if self.insecure else {"root-certificates": authority}
        connections = {"default": CONNECTION, CONNECTION: {"address": address, **trust}}
        (folder / "home" / "config.toml").write_text(tomli_w.dumps({"superlink": connections}))
        write_credentials(folder / "home", address, (folder / "token").read_text())
        if not self.insecure:
            make_certificates(folder)
        self._start_superlink()
        for partition in range(self.nodes):
            key = folder / f"supernode-{partition}"
            if not self.insecure:
                make_key(key)
                self.flwr("supernode", "register", str(key.with_suffix(".pub")), CONNECTION)
            self.supernodes.append(self.start_supernode(partition, key))

    def _start_superlink(self) -> None:
        """Start the SuperLink and wait until it listens."""
        command = [sys.executable, "-m", "fedsim.apps.superlink", f"--host={LOOPBACK}", f"--port={self.port}"]
        command += ["--disable-runtime-dependency-installation", *self._isolation]
        if self.insecure:
            command += ["--insecure"]
        else:
            files = {"ssl-ca-certfile": "ca.crt", "ssl-certfile": "server.crt", "ssl-keyfile": "server.key"}
            command += [f"--{option}={self.folder / name}" for option, name in files.items()]
            command += ["--enable-supernode-auth"]
        process = self._launch("superlink", command)
        until = time.monotonic() + START_TIMEOUT
        while not _listens(self.port):
            if process.poll() is not None or time.monotonic() > until:
                log = (self.folder / "superlink.log").read_text(errors="replace")
                raise FedsimError(f"Flower's SuperLink did not start: {failure_reason(log.splitlines())}")
            time.sleep(0.1)
        self._start_executor("superlink", process, self.port, self._server_trust)

    def start_supernode(self, partition: int, key: Path) -> subprocess.Popen[bytes]:
        """Start the SuperNode of a partition, which authenticates with a private key."""
        port, name = _free_port(), f"supernode-{partition}"
        command = ["flower-supernode", f"--superlink={LOOPBACK}:{self.port}", f"--port={port}", *self._server_trust]
        command += [f"--node-config={self._node_config(partition)}", *self._isolation]
        if not self.insecure:
            command += [f"--auth-supernode-private-key={key}"]
        process = self._launch(name, command)
        self._start_executor(name, process, port, ["--insecure"])
        return process

    def _start_executor(self, name: str, process: subprocess.Popen[bytes], port: int, trust: Sequence[str]) -> None:
        """Start the executor of the tasks of a SuperLink or SuperNode; it ends with that process."""
        arguments = [f"--runtime-api-address={LOOPBACK}:{port}", f"--parent-pid={process.pid}", self._secret]
        self._launch(f"{name}-executor", ["flower-superexec", *trust, *arguments])

    def _node_config(self, partition: int) -> str:
        config = f"partition-id={partition} num-partitions={self.nodes}"
        if self._data_dir:
            # A TOML string. Flower ends it at the first quotation mark, even at an escaped one.
            path = json.dumps(self._data_dir, ensure_ascii=False)[1:-1].replace(r"\"", r"\u0022")
            config += f' data-dir="{path}"'
        return config

    def _launch(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = start_process(command, self.environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process


def run_local_deployment(
    experiment: Experiment,
    nodes: int,
    out: str | os.PathLike[str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    insecure: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Run an experiment on a deployment that is started for it and ended afterwards.

    Parameters
    ----------
    experiment, on_line, **settings
        As for `fedsim.apps.submission.submit`.
    nodes, insecure
        As for `Deployment`.
    out : path, optional
        Directory for all results; default none.

    Returns
    -------
    DataFrame
        The history.
    """
    import pandas as pd

    deployment = Deployment(nodes, experiment.data_dir, insecure)
    with interrupt_on_signal():
        try:
            with deployment:
                directory = Path(out) if out is not None else deployment.folder / "out"
                deployment.run(experiment, directory, on_line, **settings)
                return pd.read_csv(directory / "history.csv")
        finally:
            deployment.close()  # a signal may arrive just before the inner block is entered or left


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0
