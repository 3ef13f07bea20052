"""A real deployment on loopback: TLS, authentication, the same bits, and processes that are killed."""

from __future__ import annotations

import contextlib
import datetime
import gc
import ipaddress
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.common.config import parse_config_args
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from fedsim import Experiment, clients
from fedsim.apps import certificates, processes
from fedsim.apps import deployment as deployments
from fedsim.apps import private_folder as leftovers
from fedsim.apps.deployment import LOOPBACK, Deployment, run_local_deployment
from fedsim.apps.export import export
from fedsim.apps.private_folder import private_folder
from fedsim.apps.submission import failure_reason, submit
from fedsim.apps.superlink import TokenPlugin, write_credentials
from fedsim.cli import main as cli
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
    assert failure_reason(lines) == whole
    assert failure_reason(["ValueError: no", *lines]) == "ValueError: no"
    assert failure_reason(["", "stopped", ""]) == "stopped"
    assert failure_reason([]) == "no output"
    assert failure_reason([*lines, "flwr.AppError: one", "LostException: two", "last"]) == "LostException: two"
    assert failure_reason(["│ stray │", *lines, "╭─ Error ─╮", "│ more │", "╰─────────╯"]) == "more"
    assert failure_reason(["no Error: here", "last", "──"]) == "last"
    assert failure_reason([*lines, "│ stray │"]) == whole


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
        pytest.param(replace(BASE, transforms=(TopK(0.2), Int8())), marks=slow),
        pytest.param(replace(BASE, client=clients.FedPer(), rounds=1), marks=slow),
        pytest.param(replace(BASE, client=clients.FedNova(momentum=0.5), rounds=1), marks=slow),
        pytest.param(replace(BASE, client=clients.Ditto(), rounds=1), marks=slow),
        pytest.param(replace(BASE, client=clients.FedLC(), rounds=1, fraction_evaluate=0.0), marks=slow),
    ],
    ids=lambda e: type(e.client).__name__,
)
def test_the_same_bits_over_tls(
    experiment: Experiment, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One experiment of each family: client state, private layers, a server half, personalisation, a changed loss.

    Results are written where the caller is, whatever the SuperLink's current directory.
    """
    said: list[str] = []
    monkeypatch.chdir(tmp_path.parent)
    deployment.run(experiment, tmp_path.name, said.append)
    here = experiment.run()
    with np.load(tmp_path / "weights.npz") as there:
        assert all(np.array_equal(here.weights[name], there[name]) for name in here.weights)
    history = pd.read_csv(tmp_path / "history.csv")
    assert np.allclose(history["local_accuracy"], here.history["local_accuracy"], equal_nan=True)
    ours = [line for line in said if line.startswith("fedsim: ")]
    assert ours[0].startswith(f"fedsim: round 0 {'test_loss' if here.has_global_model else 'clients'}=")
    assert ours[-1].startswith(f"fedsim: done after {experiment.rounds} rounds")
    app = max(deployment.folder.glob("app-*"), key=os.path.getmtime)
    settings = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert (settings["supervised"], settings["nodes"], settings["out"]) == (True, 2, str(tmp_path))


def test_the_superlink_speaks_tls_only(deployment: Deployment) -> None:
    import socket

    trusted = ssl.create_default_context(cafile=str(deployment.folder / "ca.crt"))
    with (
        socket.create_connection((LOOPBACK, deployment.port), timeout=10) as plain,
        trusted.wrap_socket(plain, server_hostname=LOOPBACK) as secured,
    ):
        assert (secured.version() or "").startswith("TLSv1.")
    with socket.create_connection((LOOPBACK, deployment.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(10)
        assert b"HTTP/1.1 200" not in plain.recv(100)
    with (
        socket.create_connection((LOOPBACK, deployment.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=LOOPBACK)


def test_a_supernode_with_a_wrong_key_is_refused(deployment: Deployment) -> None:
    stranger = deployment.folder / "stranger"
    certificates.make_key(stranger)
    process = deployment.start_supernode(7, stranger)
    executor = deployment._processes[-1]
    assert process.wait(60) != 0
    assert executor.wait(60) is not None, "what executes a SuperNode's tasks ends with it"
    words = (deployment.folder / "supernode-7.log").read_text()
    assert "Failed to activate SuperNode" in words, words
    registered = deployment.flwr("supernode", "list", "here", "--format", "json")
    assert registered.count('"online"') == 2


def test_everything_temporary_is_in_one_private_folder(deployment: Deployment) -> None:
    assert deployment.folder.name.startswith("fedsim-deploy-")
    assert os.stat(deployment.folder).st_mode & 0o777 == 0o700
    for name in ("server.key", "supernode-0", "supernode-1", "token", "secret", "home/credentials.yaml"):
        assert os.stat(deployment.folder / name).st_mode & 0o077 == 0, name
    environment = deployment.environment
    assert {environment["TMPDIR"], environment["FLWR_HOME"]} == {str(deployment.folder / n) for n in ("tmp", "home")}
    token, secret = (bytes.fromhex((deployment.folder / name).read_text()) for name in ("token", "secret"))
    assert len(token) == len(secret) == 32
    assert token != secret
    with pytest.raises(FileExistsError):
        certificates.make_key(deployment.folder / "supernode-0")


def _listening() -> list[tuple[str, int]]:
    """Return the addresses and ports on which processes below this one listen."""
    sockets = set()
    for pid in processes.descendants(os.getpid()):
        with contextlib.suppress(OSError):  # a process or a descriptor that is gone meanwhile
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                sockets.add(os.readlink(descriptor))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if f"socket:[{line.split()[9]}]" in sockets
    ]
    found = (row[1].split(":") for row in rows if row[3] == "0A")
    return [(address, int(port, 16)) for address, port in found]


def test_only_this_machine_reaches_a_deployment_and_no_app_installs_packages(deployment: Deployment) -> None:
    until = time.monotonic() + 60
    while len(_listening()) < 3 and time.monotonic() < until:  # SuperNodes start in their own time
        time.sleep(0.2)
    listening = _listening()
    assert len(listening) >= 3
    assert {address for address, _ in listening} == {"0100007F"}
    assert deployment.port in {port for _, port in listening}
    superlink = deployment._processes[0]
    assert "--disable-runtime-dependency-installation" in superlink.args  # type: ignore[operator]
    assert os.getpgid(superlink.pid) == superlink.pid


def test_a_command_that_fails_says_why(deployment: Deployment) -> None:
    with pytest.raises(FedsimError, match=r"^flwr supernode register failed: .*\w.* '?/nowhere.pub"):
        deployment.flwr("supernode", "register", "/nowhere.pub", "here")


def test_certificates_are_for_loopback_and_for_a_week(tmp_path: Path) -> None:
    """As a strict verifier of the web's rules finds."""
    certificates.make_certificates(tmp_path)
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca.crt", "server.crt")
    )
    now = datetime.datetime.now(datetime.UTC)

    def verify(name: x509.verification.Subject, when: datetime.datetime = now) -> None:
        builder = PolicyBuilder().store(Store([authority])).time(when)
        builder.build_server_verifier(name).verify(server, [])

    for name in (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))):
        for hours in (0, 24 * 7 - 1, -0.05):
            verify(name, now + datetime.timedelta(hours=hours))
        for hours in (24 * 7 + 1, -1):
            with pytest.raises(VerificationError):
                verify(name, now + datetime.timedelta(hours=hours))
    with pytest.raises(VerificationError):
        verify(x509.DNSName("example.org"))
    assert server.subject.rfc4514_string() == "CN=localhost"
    known = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == known
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    other = tmp_path / "other"
    other.mkdir()
    certificates.make_certificates(other)
    assert (other / "server.key").read_bytes() != (tmp_path / "server.key").read_bytes()


def test_flowers_commands_are_this_interpreters_and_see_the_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flwr", "mine"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.setenv("MARK", "x")
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    made = Deployment(1)
    assert shutil.which("flwr", path=made.environment["PATH"]) == str(Path(sys.executable).with_name("flwr"))
    assert shutil.which("mine", path=made.environment["PATH"]) == str(tmp_path / "mine")
    assert made.environment["PYTHONPATH"].split(os.pathsep) == [os.getcwd(), "/theirs"]
    assert (made.environment["MARK"], made.environment["FLWR_TELEMETRY_ENABLED"]) == ("x", "0")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.delenv("PYTHONPATH")
    assert (made.environment["PYTHONPATH"], made.environment["FLWR_TELEMETRY_ENABLED"]) == (os.getcwd(), "1")


@pytest.mark.parametrize("name", ["data", "two words", 'a"b', "a\\b", "it's", "é😀", "x.toml"])
def test_a_supernode_is_told_its_partition_and_where_its_data_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {"partition-id": 2, "num-partitions": 3}
    assert parse_config_args([Deployment(3)._node_config(2)]) == told
    assert parse_config_args([Deployment(3, name)._node_config(2)]) == told | {"data-dir": str(tmp_path / name)}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("code", "seconds", "reason"),
    [
        ("print('no such', flush=True)\nraise SystemExit('luck\\n')", 60.0, "luck"),
        ("import time\ntime.sleep(600)", 0.3, "no output"),
    ],
)
def test_a_superlink_that_does_not_start_is_one_sentence_and_leaves_nothing(
    code: str, seconds: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another module of fedsim's name stands in its way: one that ends at once, and one that never listens."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "fedsim.py").write_text(code)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(deployments, "START_TIMEOUT", seconds)
    before = processes.descendants(os.getpid())
    with pytest.raises(FedsimError, match=f"^Flower's SuperLink did not start: {reason}$"), Deployment(1):
        pass
    assert processes.descendants(os.getpid()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_nobody_else_can_run_an_app(token: str | None, deployment: Deployment, tmp_path: Path) -> None:
    """Another user of this machine reaches the port, and knows the certificate, which is no secret."""
    (tmp_path / "config.toml").write_text((deployment.folder / "home" / "config.toml").read_text())
    if token:
        write_credentials(tmp_path, f"{LOOPBACK}:{deployment.port}", token)
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
            server_address=f"{LOOPBACK}:{port}",
            insecure=trusted is None,
            root_certificates=trusted,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-superexec")],
        )
        with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
            client.AcquireTask(AcquireTaskRequest())
        client.close()


def test_one_token_is_accepted() -> None:
    plugin = TokenPlugin("right")
    account = AccountInfo(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME)
    for right in ("right", b"right"):
        assert plugin.validate_tokens_in_metadata([("other", "x"), (ACCESS_TOKEN_KEY, right)]) == (True, account)
    for given in ([], [(ACCESS_TOKEN_KEY, "wrong")], [(ACCESS_TOKEN_KEY, "")], [("other", "right")]):
        assert plugin.validate_tokens_in_metadata(given) == (False, None)
    assert not TokenPlugin("").validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, "")])[0]
    assert plugin.get_login_details() is None
    assert plugin.get_auth_tokens("right") is None
    assert plugin.refresh_tokens([(ACCESS_TOKEN_KEY, "right")]) == (None, None)


HOLD = """
import sys, time
from fedsim.apps.private_folder import private_folder
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
    (tmp_path / f"{leftovers.PREFIX}a-file").write_text("")
    (tmp_path / f"{leftovers.PREFIX}a-link").symlink_to(tmp_path / "fedsim-elsewhere")
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
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: -1)  # somebody else
            leftovers.remove_leftovers()
        assert set(tmp_path.iterdir()) == {*folders, *others}
        descriptors = len(os.listdir("/proc/self/fd"))
        with private_folder() as mine:
            assert set(tmp_path.iterdir()) == {mine, folders[1], *others}
        assert set(tmp_path.iterdir()) == {folders[1], *others}
        assert len(os.listdir("/proc/self/fd")) == descriptors


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(600)
"""


def test_signals_do_not_disturb_a_teardown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once more, and again, while processes take their time to end."""
    monkeypatch.setattr(processes, "STOP_TIMEOUT", 1.0)
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
        with processes.interrupt_on_signal():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # all is being taken down by now
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_deployment_and_afterwards_what_it_ended_before(number: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), processes.interrupt_on_signal():
            signal.raise_signal(number)
        assert came == []
        signal.raise_signal(number)
        assert came == [number]
    finally:
        signal.signal(number, before)


def test_a_thread_leaves_signals_alone() -> None:
    """Python lets only the main thread handle them."""

    def work() -> bool:
        with processes.interrupt_on_signal(), processes.defer_signals():
            return True

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a Python script the command ``flwr``."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(code: str) -> Path:
        file = tmp_path / "bin" / "flwr"
        file.parent.mkdir()
        file.write_text(f"#!{sys.executable}\n{code}\n")
        file.chmod(0o700)
        monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
        return file

    return make


TELLING = """
import os, sys, tomllib
verb, app, *rest = sys.argv[1:]
with open(f"{app}/pyproject.toml", "rb") as file:
    config = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
print(verb, *rest, config["timeout"], config["out"], sep="|", flush=True)
sys.stdout.buffer.write(b"\\xff  \\n")
print("fedsim: done after 1 rounds", file=sys.stderr)
sys.exit(int(os.environ["LEAVES"]))
"""


def test_a_run_is_submitted_to_the_connection_that_is_named(
    command: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output is passed on, whatever bytes it is; an exit status counts, whatever was printed."""
    command(TELLING)
    monkeypatch.setenv("LEAVES", "3")
    said: list[str] = []
    submit(BASE, "there", os.environ | {"LEAVES": "0"}, said.append, timeout=2.5, out="/far")
    assert said == ["run|there|--stream|2.5|/far", "\ufffd", "fedsim: done after 1 rounds"]
    with pytest.raises(FedsimError, match=r"^the run on the SuperLink 'there' failed: fedsim: done after 1 rounds$"):
        submit(BASE, "there")


WAITING = """
import os, pathlib, signal, subprocess, sys, time

def tidy(number, frame):
    time.sleep(0.4)
    pathlib.Path(__file__).with_name("tidied").write_text("")
    sys.exit(0)

signal.signal(signal.SIGTERM, tidy)
code = (
    "import subprocess\\np = subprocess.Popen(['sleep', '600'], start_new_session=True)\\n"
    "print(p.pid, flush=True)\\np.wait()"
)
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
print(os.getpgrp(), child.pid, child.stdout.readline().strip(), flush=True)
time.sleep(600)
"""


def test_an_interrupted_run_leaves_no_process_of_any_generation(command: Callable[[str], Path]) -> None:
    """The first has time to tidy up."""
    file = command(WAITING)
    pids: list[int] = []

    def say(line: str) -> None:
        pids.extend(map(int, line.split()))
        assert all(map(_alive, pids))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(BASE, "there", on_line=say)
    assert len(pids) == 3
    assert file.with_name("tidied").exists()
    assert not _alive(pids[0])
    assert _gone(pids)


PARENT = """
import os
from fedsim.apps.processes import start_process
print(start_process(["sleep", "600"], os.environ).pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_process_ends_with_the_one_that_started_it_whatever_ended_that() -> None:
    ended = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert _gone([int(ended.stdout)])


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("line", "fails"), [("fedsim: done after 1 rounds", False), ("ValueError: no", True)])
def test_a_submitted_run_leaves_no_pipe_and_no_folder(
    line: str, fails: bool, tmp_path: Path, command: Callable[[str], Path]
) -> None:
    command(f"print({line!r})")
    said: list[str] = []
    with pytest.raises(FedsimError, match="failed: ValueError: no") if fails else nullcontext():
        submit(BASE, "there", on_line=said.append)
    gc.collect()
    assert said == [line]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@slow
def test_a_deployment_in_plain_text_on_a_table_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of it reads the table from the folder that the caller means."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my.csv").write_text("a,b,y\n" + "".join(f"{a:.3f},{b:.3f},{a > b}\n" for a, b in values))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(
        dataset="table('my.csv', label='y')", data_dir="data", split=Dirichlet(4, alpha=1.0), rounds=2, hidden=(4,)
    )
    secured: list[Path] = []
    history = run_local_deployment(
        experiment, 1, on_line=lambda line: secured.extend((tmp_path / "temporary").rglob("*.crt")), insecure=True
    )
    here = experiment.run().history
    assert history["round"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(history["test_loss"], here["test_loss"], rtol=1e-12)
    assert secured == []
    assert list((tmp_path / "temporary").iterdir()) == []


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
        children = processes.descendants(process.pid)
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
