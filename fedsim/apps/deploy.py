"""A real Flower deployment on this machine: a SuperLink and SuperNodes in processes of their own, over TLS.

Everything that it needs is made for it and goes with it: a certificate authority, the SuperLink's certificate for
loopback, a key pair for every SuperNode, Flower's home. Nothing of the user's Flower configuration is read or changed.
SuperNodes prove who they are; one with a key that has not been registered is refused. So do the commands that run apps,
by a token, and the processes that execute them, by a secret: other users of this machine can reach the ports, and
nothing behind them. All processes end when this one does, however it ends.

Whatever is temporary lies in one folder that only its owner can read, and that its owner holds locked. What a killed
deployment has left is not locked, and is removed by the next one.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.apps.export import export
from fedsim.checks import check_integer
from fedsim.errors import FedsimError
from fedsim.study.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd

LOOPBACK = "127.0.0.1"
#: How the names of temporary folders begin.
PREFIX = "fedsim-deploy-"
#: Signals that end a deployment.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds to wait for the SuperLink to listen, and for processes to end before they are killed.
START, STOP = 60.0, 10.0


class Deployment:
    """A SuperLink and SuperNodes on loopback. Use it as a context manager.

    Parameters
    ----------
    nodes : int
        SuperNodes, at least 1.
    data_dir : path, optional
        Where they read data.
    insecure : bool
        Plain text and no authentication, if it must be.
    """

    def __init__(self, nodes: int, data_dir: str | os.PathLike[str] | None = None, insecure: bool = False) -> None:
        check_integer("nodes", nodes, 1)
        self.nodes, self.insecure = nodes, insecure
        self._data_dir = os.path.abspath(data_dir) if data_dir else None
        self.folder = Path()
        self._stack = contextlib.ExitStack()
        self.supernodes: list[subprocess.Popen[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = 0

    def __enter__(self) -> Deployment:
        try:
            self.folder = self._stack.enter_context(private_folder())
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take all down; a signal that comes meanwhile takes effect afterwards."""
        with _uninterrupted():
            _end(*self._processes)
            self._processes.clear()
            self._stack.close()

    def _start(self) -> None:
        self.port = _free_port()
        if not self.insecure:
            make_certificates(self.folder)
        connection = "insecure = true\n" if self.insecure else f'root-certificates = "{self.folder / "ca.crt"}"\n'
        home = self.folder / "home"
        home.mkdir()
        (self.folder / "tmp").mkdir()
        for name in ("token", "secret"):
            _write_private(self.folder / name, secrets.token_hex(32).encode())
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{LOOPBACK}:{self.port}"\n{connection}'
        )
        self._write_credentials(home)
        self.start_superlink()
        for number in range(self.nodes):
            key = self.folder / f"supernode-{number}"
            if not self.insecure:
                make_key(key)
                self.flwr("supernode", "register", str(key.with_suffix(".pub")), "here")
            self.supernodes.append(self.start_supernode(number, key))

    def _write_credentials(self, home: Path) -> None:
        from fedsim.apps.superlink import write_credentials

        write_credentials(home, f"{LOOPBACK}:{self.port}", (self.folder / "token").read_text())

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it listens."""
        trust = (
            ["--insecure"]
            if self.insecure
            else [
                f"--ssl-ca-certfile={self.folder / 'ca.crt'}",
                f"--ssl-certfile={self.folder / 'server.crt'}",
                f"--ssl-keyfile={self.folder / 'server.key'}",
                "--enable-supernode-auth",
            ]
        )
        arguments = [f"--host={LOOPBACK}", f"--port={self.port}", "--disable-runtime-dependency-installation"]
        command = [sys.executable, "-m", "fedsim.apps.superlink"]
        process = self._launch("superlink", [*command, *trust, *arguments, *self._isolation])
        until = time.monotonic() + START
        while not _listens(self.port):
            if process.poll() is not None or time.monotonic() > until:
                raise FedsimError(f"Flower's SuperLink did not start: {self.last_words('superlink')}")
            time.sleep(0.1)
        trusted = ["--insecure"] if self.insecure else [f"--root-certificates={self.folder / 'ca.crt'}"]
        self._start_executor("superlink", process, self.port, trusted)

    @property
    def _isolation(self) -> list[str]:
        """What makes a SuperLink or SuperNode hand tasks to the executor that knows the secret, and to no other."""
        return ["--isolation=process", f"--superexec-auth-secret-file={self.folder / 'secret'}"]

    def _start_executor(self, name: str, process: subprocess.Popen[bytes], port: int, trusted: Sequence[str]) -> None:
        """Start what executes the tasks of a SuperLink or SuperNode, and ends with it."""
        arguments = [f"--runtime-api-address={LOOPBACK}:{port}", f"--parent-pid={process.pid}", self._isolation[1]]
        self._launch(f"{name}-executor", ["flower-superexec", *trusted, *arguments])

    def start_supernode(self, number: int, key: Path) -> subprocess.Popen[bytes]:
        """Start a SuperNode, which holds partition `number`, with a key."""
        trust = (
            ["--insecure"]
            if self.insecure
            else [f"--root-certificates={self.folder / 'ca.crt'}", f"--auth-supernode-private-key={key}"]
        )
        port, config = _free_port(), self._node_config(number)
        arguments = [f"--superlink={LOOPBACK}:{self.port}", f"--port={port}", f"--node-config={config}"]
        name = f"supernode-{number}"
        process = self._launch(name, ["flower-supernode", *trust, *arguments, *self._isolation])
        self._start_executor(name, process, port, ["--insecure"])
        return process

    def _node_config(self, number: int) -> str:
        config = f"partition-id={number} num-partitions={self.nodes}"
        if self._data_dir:
            # A TOML string; Flower takes the first quotation mark for its end, escaped by a backslash or not.
            path = json.dumps(self._data_dir, ensure_ascii=False)[1:-1].replace(r"\"", r"\u0022")
            config += f' data-dir="{path}"'
        return config

    def _launch(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = _popen(command, self.environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    @property
    def environment(self) -> dict[str, str]:
        """What Flower's commands see: this interpreter's scripts, and a home of their own."""
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "FEDSIM_CONTROL_TOKEN_FILE": str(self.folder / "token"),
            "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def flwr(self, *arguments: str) -> str:
        """Call ``flwr`` and return what it prints; FedsimError with the reason if it fails."""
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment, capture_output=True, text=True, cwd=self.folder, timeout=120
        )
        if done.returncode:
            reason = _reason((done.stdout + done.stderr).splitlines())
            raise FedsimError(f"flwr {' '.join(arguments[:2])} failed: {reason}")
        return done.stdout

    def last_words(self, name: str) -> str:
        """Return the last line that a process has written."""
        file = self.folder / f"{name}.log"
        return _last_line(file.read_text(errors="replace") if file.exists() else "")

    def run(
        self,
        experiment: Experiment,
        out: str | os.PathLike[str],
        say: Callable[[str], None] = lambda line: None,
        **settings: Any,
    ) -> None:
        """Run an experiment on the SuperNodes, and write its results into `out`; see `submit`."""
        experiment = replace(experiment, data_dir=self._data_dir)  # wherever the server works
        place: dict[str, Any] = {"out": os.path.abspath(out), "nodes": self.nodes, "supervised": True}
        app = export(experiment, tempfile.mkdtemp(prefix="app-", dir=self.folder), **place, **settings)
        _run_app(app, "here", self.environment, say)


def submit(
    experiment: Experiment,
    connection: str,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> None:
    """Run an experiment on the SuperLink of a connection in Flower's configuration, and wait for its end.

    Parameters
    ----------
    experiment : Experiment
        On a dataset that has a name: every machine reads it itself.
    connection : str
        Its name; ``flwr config list`` shows them.
    environment : mapping, optional
        Of the command ``flwr``; default this process's.
    say : callable
        Called with each line that comes from the server; fedsim's begin with ``fedsim: ``.
    **settings
        More run configuration, as for `fedsim.apps.export.export`; ``out`` is a path on the SuperLink's machine.

    Raises
    ------
    FedsimError
        It failed; with the reason that the server gave.
    """
    with private_folder() as folder:
        app = export(experiment, folder / "app", **settings)
        _run_app(app, connection, environment or dict(os.environ), say)


def _run_app(app: Path, connection: str, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Run an app on the SuperLink of a connection and wait for its end; see `submit`."""
    process = _popen(
        ["flwr", "run", str(app), connection, "--stream"],
        environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout
    try:
        lines = []
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            say(line)
        finished = any(line.startswith("fedsim: done") for line in lines)
        if process.wait() or not finished:
            raise FedsimError(f"the run on the SuperLink {connection!r} failed: {_reason(lines)}")
    finally:
        with _uninterrupted():
            _end(process)
            process.stdout.close()


def local(
    experiment: Experiment,
    nodes: int,
    out: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    insecure: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Run an experiment on a deployment of its own on this machine; see `Deployment` and `submit`.

    Returns
    -------
    DataFrame
        The history; all results are in `out`, unless that is None.
    """
    import pandas as pd

    deployment = Deployment(nodes, experiment.data_dir, insecure)
    with _terminable():
        try:
            with deployment:
                place = Path(out) if out is not None else deployment.folder / "out"
                deployment.run(experiment, place, say, **settings)
                return pd.read_csv(place / "history.csv")
        finally:
            deployment.close()  # where a signal came between two lines of the above


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a temporary folder that only this user can read, and remove it at the end, or the next time."""
    remove_leftovers()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # nobody took it for a leftover before it was locked
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers() -> None:
    """Remove what killed deployments of this user have left in the temporary directory."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its deployment is alive
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle the signals that end a deployment, where this thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # not under nohup
    before = [(number, signal.signal(number, handler)) for number in heeded]
    try:
        yield
    finally:
        for number, earlier in before:
            signal.signal(number, earlier)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let the first signal end this process as Ctrl-C does, so that all is taken down; no other one disturbs that."""
    stopping = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            raise KeyboardInterrupt

    with _handling(stop):
        yield


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let signals wait for the end of a teardown."""
    came = threading.Event()
    with _handling(lambda number, frame: came.set()):
        yield
    if came.is_set():
        raise KeyboardInterrupt


def make_certificates(folder: Path) -> None:
    """Write ``ca.crt`` and, signed by it for loopback, ``server.crt`` and ``server.key``, valid for a week."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]

    def certificate(subject: str, key: Any, issuer: str, signer: Any, extensions: Sequence[Any]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=7))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256())

    root, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    authority = "fedsim local authority"
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    root_id = x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    ca = certificate(
        authority, root, authority, root, [(x509.BasicConstraints(True, None), True), (usage, True), (root_id, False)]
    )
    signed = certificate(
        "localhost",
        server,
        authority,
        root,
        [
            (x509.SubjectAlternativeName(names), False),
            (x509.BasicConstraints(False, None), True),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), False),
            (x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), False),
        ],
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "server.crt").write_bytes(signed.public_bytes(pem))
    _write_private(
        folder / "server.key",
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def make_key(path: Path) -> None:
    """Write a SuperNode's private key, and its public key beside it as ``.pub``."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )


def _write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _reason(lines: Sequence[str]) -> str:
    """Return what a failed ``flwr`` says is wrong: an exception, or what stands in its box."""
    said = [line.strip("│╭╮╰╯─ ") for line in lines]
    raised = [line for line in said if re.search(r"\w(Error|Exception): ", line)]
    start = max((i for i, line in enumerate(said) if line == "Error"), default=len(lines))
    box = [line.strip("│ ") for line in takewhile(lambda line: line.startswith("│"), lines[start + 1 :])]
    boxed = [" ".join(box)] if box else []
    return next((found[-1] for found in (raised, boxed, [line for line in said if line]) if found), "it said nothing")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _popen(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does, with a group of its own for what it starts."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
        **options,
    )


def _end_with_parent() -> Callable[[], None]:
    """Return what a child of this process does first: ask the kernel to end it if this process dies."""
    import ctypes

    prctl, pdeathsig = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(pdeathsig, signal.SIGTERM)


def _end(*processes: subprocess.Popen[Any]) -> None:
    """End processes and all that they have started, in whatever groups."""
    family = [pid for process in processes for pid in (process.pid, *_descendants(process.pid))]
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + STOP
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.1) if number == signal.SIGTERM else None)


def _descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, their children and so on, where the system shows them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found
