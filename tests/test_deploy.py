"""A real deployment on loopback: TLS, authentication, the same bits, and processes that are killed."""

from __future__ import annotations

import gc
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from flwr.common.constant import ACCESS_TOKEN_KEY
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from fedsim import Experiment, cli, clients
from fedsim.apps import deploy
from fedsim.apps.deploy import Deployment, private_folder
from fedsim.apps.export import export
from fedsim.apps.superlink import TokenPlugin, write_credentials
from fedsim.errors import ConfigError, FedsimError
from fedsim.splits import Dirichlet
from fedsim.updates.compression import Int8, TopK


def test_the_reason_of_a_failed_flwr_run_is_its_whole_box() -> None:
    lines = [
        "Flower App configuration warnings in 'pyproject.toml':",
        "╭─ Error ──────────────────────────────────────────╮",
        "│ An unexpected error occurred while reading the   │",
        "│ file (config.toml). Connection 'mine' not found. │",
        "╰──────────────────────────────────────────────────╯",
        "",
    ]
    whole = "An unexpected error occurred while reading the file (config.toml). Connection 'mine' not found."
    assert deploy._reason(lines) == whole
    assert deploy._reason(["ValueError: no", *lines]) == "ValueError: no"
    assert deploy._reason(["", "stopped", ""]) == "stopped"
    assert deploy._reason([]) == "it said nothing"


BASE = Experiment(split=Dirichlet(4, alpha=0.4), client=clients.SCAFFOLD(), rounds=2, fraction_evaluate=1.0)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with Deployment(2) as made:
        yield made


slow = pytest.mark.slow
pytestmark = pytest.mark.xdist_group("deployment")  # one process, one shared deployment


@pytest.mark.parametrize(
    "experiment",
    [
        replace(BASE, transforms=(TopK(0.2), Int8())),
        pytest.param(replace(BASE, client=clients.FedPer(), rounds=1), marks=slow),
        pytest.param(replace(BASE, client=clients.FedNova(momentum=0.5), rounds=1), marks=slow),
        pytest.param(replace(BASE, client=clients.Ditto(), rounds=1), marks=slow),
        pytest.param(replace(BASE, client=clients.FedLC(), rounds=1, fraction_evaluate=0.0), marks=slow),
    ],
    ids=lambda e: type(e.client).__name__,
)
def test_the_same_bits_over_tls(experiment: Experiment, deployment: Deployment, tmp_path: Path) -> None:
    """One experiment of each family: client state, private parameters, server hooks, personalisation, a new loss."""
    said: list[str] = []
    deployment.run(experiment, tmp_path, said.append)
    here = experiment.run()
    with np.load(tmp_path / "weights.npz") as there:
        assert all(np.array_equal(here.weights[name], there[name]) for name in here.weights)
    history = pd.read_csv(tmp_path / "history.csv")
    assert np.allclose(history["local_accuracy"], here.history["local_accuracy"], equal_nan=True)
    ours = [line for line in said if line.startswith("fedsim: ")]
    assert ours[0].startswith("fedsim: round 0 test_loss=")
    assert ours[-1].startswith(f"fedsim: done after {experiment.rounds} rounds")


def test_the_superlink_speaks_tls_only(deployment: Deployment) -> None:
    import socket

    trusted = ssl.create_default_context(cafile=str(deployment.folder / "ca.crt"))
    with (
        socket.create_connection((deploy.LOOPBACK, deployment.port), timeout=10) as plain,
        trusted.wrap_socket(plain, server_hostname=deploy.LOOPBACK) as secured,
    ):
        assert (secured.version() or "").startswith("TLSv1.")
    with socket.create_connection((deploy.LOOPBACK, deployment.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(10)
        assert b"HTTP/1.1 200" not in plain.recv(100)
    with (
        socket.create_connection((deploy.LOOPBACK, deployment.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=deploy.LOOPBACK)


def test_a_supernode_with_a_wrong_key_is_refused(deployment: Deployment) -> None:
    stranger = deployment.folder / "stranger"
    deploy.make_key(stranger)
    process = deployment.start_supernode(7, stranger)
    assert process.wait(60) != 0
    words = (deployment.folder / "supernode-7.log").read_text()
    assert "Failed to activate SuperNode" in words, words
    registered = deployment.flwr("supernode", "list", "here", "--format", "json")
    assert registered.count('"online"') == 2


def test_everything_temporary_is_in_one_private_folder(deployment: Deployment) -> None:
    assert os.stat(deployment.folder).st_mode & 0o777 == 0o700
    for name in ("server.key", "supernode-0", "supernode-1", "token", "secret", "home/credentials.yaml"):
        assert os.stat(deployment.folder / name).st_mode & 0o077 == 0, name
    environment = deployment.environment
    assert {environment["TMPDIR"], environment["FLWR_HOME"]} == {str(deployment.folder / n) for n in ("tmp", "home")}


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_nobody_else_can_run_an_app(token: str | None, deployment: Deployment, tmp_path: Path) -> None:
    """Another user of this machine reaches the port, and knows the certificate, which is no secret."""
    (tmp_path / "config.toml").write_text((deployment.folder / "home" / "config.toml").read_text())
    if token:
        write_credentials(tmp_path, f"{deploy.LOOPBACK}:{deployment.port}", token)
    app = export(BASE, tmp_path / "app")
    done = subprocess.run(
        ["flwr", "run", str(app), "here"],
        env=deployment.environment | {"FLWR_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Authentication" in done.stdout + done.stderr, done.stdout + done.stderr


def test_nobody_else_can_take_a_task(deployment: Deployment) -> None:
    """Neither the ServerApp's nor a ClientApp's, which hold the model."""
    commands = [[str(word) for word in node.args] for node in deployment.supernodes]  # type: ignore[union-attr]
    ports = [int(word.partition("=")[2]) for words in commands for word in words if word.startswith("--port=")]
    certificate = (deployment.folder / "ca.crt").read_bytes()
    places = [(deployment.port, certificate), *((port, None) for port in ports)]
    assert len(places) == 3
    for port, trusted in places:
        client = RuntimeHttpClient.from_server_address(
            server_address=f"{deploy.LOOPBACK}:{port}",
            insecure=trusted is None,
            root_certificates=trusted,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-superexec")],
        )
        with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
            client.AcquireTask(AcquireTaskRequest())
        client.close()


def test_one_token_is_accepted() -> None:
    plugin = TokenPlugin("right")
    assert plugin.validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, "right")])[0]
    for given in ([], [(ACCESS_TOKEN_KEY, "wrong")], [(ACCESS_TOKEN_KEY, "")], [("other", "right")]):
        assert plugin.validate_tokens_in_metadata(given) == (False, None)
    assert not TokenPlugin("").validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, "")])[0]
    assert plugin.get_login_details() is None
    assert plugin.refresh_tokens([(ACCESS_TOKEN_KEY, "wrong")]) == (None, None)


HOLD = """
import sys, time
from fedsim.apps.deploy import private_folder
with private_folder() as folder:
    (folder / "key").write_text("")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_leftovers_of_killed_deployments_are_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "fedsim-elsewhere").mkdir()
    (tmp_path / f"{deploy.PREFIX}a-file").write_text("")
    (tmp_path / f"{deploy.PREFIX}a-link").symlink_to(tmp_path / "fedsim-elsewhere")
    others = set(tmp_path.iterdir())
    with ExitStack() as stack:
        folders, processes = [], []
        for _ in range(2):
            made = subprocess.Popen(
                [sys.executable, "-c", HOLD],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"TMPDIR": str(tmp_path)},
            )
            processes.append(stack.enter_context(made))
            stack.callback(made.kill)
            assert made.stdout
            folders.append(Path(made.stdout.readline().strip()))
        assert all(folder.parent == tmp_path and (folder / "key").exists() for folder in folders)
        processes[0].kill()
        processes[0].wait()
        with private_folder() as mine:
            assert set(tmp_path.iterdir()) == {mine, folders[1], *others}
        assert set(tmp_path.iterdir()) == {folders[1], *others}


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(600)
"""


def test_signals_do_not_disturb_a_teardown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once more, and again, while processes take their time to end."""
    monkeypatch.setattr(deploy, "STOP", 1.0)
    made = Deployment(1)
    made.folder = made._stack.enter_context(private_folder())
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    made._processes.append(process)
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"here\n"
        timers = [threading.Timer(0.2 * k, os.kill, (os.getpid(), signal.SIGINT)) for k in range(1, 4)]
        for timer in timers:
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            made.close()
        for timer in timers:
            timer.join()
        assert process.poll() == -signal.SIGKILL
    assert not made.folder.exists()


def test_one_signal_ends_a_run_and_an_ignored_one_stays_ignored() -> None:
    """As under nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deploy._terminable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # all is being taken down by now
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("line", "fails"), [("fedsim: done after 1 rounds", False), ("ValueError: no", True)])
def test_a_submitted_run_leaves_no_pipe_and_no_folder(
    line: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "flwr"
    command.write_text(f"#!{sys.executable}\nprint({line!r})\n")
    command.chmod(0o700)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    said: list[str] = []
    with pytest.raises(FedsimError, match="failed: ValueError: no") if fails else nullcontext():
        deploy.submit(BASE, "there", say=said.append)
    gc.collect()
    assert said == [line]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@slow
def test_a_killed_supernode_costs_the_round_its_clients(tmp_path: Path) -> None:
    experiment = replace(BASE, client=clients.SGD(), rounds=3, on_failure="exclude", fraction_evaluate=0.0)
    with Deployment(2) as made:

        def say(line: str) -> None:
            if line.startswith("fedsim: round 1"):
                os.killpg(made.supernodes[1].pid, signal.SIGKILL)

        made.run(experiment, tmp_path, say, timeout=30.0)
    failures = pd.read_csv(tmp_path / "failures.csv")
    assert set(failures["partition_id"]) == {1, 3}  # of the SuperNode that is partition 1 of 2
    assert failures["reason"].str.contains("did not answer|failed|is gone").all()
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["clients"].iloc[1] == 4
    assert history["clients"].iloc[-1] == 2
    assert len(history) == 4


@slow
def test_a_superlink_that_dies_ends_the_run_and_the_next_goes_on(deployment: Deployment, tmp_path: Path) -> None:
    experiment = replace(BASE, client=clients.SGD(), rounds=4, fraction_evaluate=0.0)
    with Deployment(1) as made:
        superlink = made._processes[0]

        def say(line: str) -> None:
            if line.startswith("fedsim: round 3"):
                os.killpg(superlink.pid, signal.SIGKILL)

        with pytest.raises(FedsimError, match="the run on the SuperLink 'here' failed"):
            made.run(experiment, tmp_path, say)
    assert (tmp_path / "checkpoint.npz").exists()
    deployment.run(experiment, tmp_path)  # another federation of the same clients
    here = experiment.run()
    with np.load(tmp_path / "weights.npz") as there:
        assert all(np.array_equal(here.weights[name], there[name]) for name in here.weights)


@slow
def test_whatever_ends_the_command_nothing_of_it_stays(tmp_path: Path) -> None:
    """kill -9 leaves one folder and no process, the next deployment removes it, and Ctrl-C thrice leaves nothing."""
    file, temporary = tmp_path / "e.toml", tmp_path / "tmp"
    file.write_text('split = "IID(4)"\nrounds = 50\n')
    temporary.mkdir()
    command = [sys.executable, "-m", "fedsim.cli", "deploy", "local", str(file), "--nodes", "1"]

    def started() -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        assert process.stderr
        assert process.stderr.readline().startswith("fedsim: round 0")
        children = deploy._descendants(process.pid)
        assert len(children) >= 3
        return process, children

    process, children = started()
    with process:
        process.kill()
        process.wait()
        assert _gone(children)
    [left] = temporary.iterdir()
    process, children = started()
    with process:
        assert left not in list(temporary.iterdir())
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert process.wait(60) == 130
        assert _gone(children)
    assert list(temporary.iterdir()) == []


def _gone(pids: list[int]) -> bool:
    """Whether processes end within a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until and any(_alive(pid) for pid in pids):
        time.sleep(0.2)
    return not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nodes is 0; allowed"):
        Deployment(0)
    file = tmp_path / "e.toml"
    file.write_text("rounds = 1\n")
    for arguments in (["--nodes", "0"], ["--timeout", "-1"], ["--retries", "-1"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["deploy", "local", str(file), *arguments])
        assert left.value.code == 2
