"""A real deployment on loopback: TLS, authentication, the same bits, and processes that are killed."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, cli, clients, deploy
from fedsim.compression import Int8, TopK
from fedsim.deploy import Deployment
from fedsim.errors import ConfigError, FedsimError
from fedsim.splits import Dirichlet

BASE = Experiment(split=Dirichlet(4, alpha=0.4), client=clients.SCAFFOLD(), rounds=2, fraction_evaluate=1.0)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with Deployment(2) as made:
        yield made


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, client=clients.FedPer(), rounds=1),
        replace(BASE, client=clients.FedNova(momentum=0.5), rounds=1, compress=(TopK(0.2), Int8())),
        replace(BASE, client=clients.Ditto(), rounds=1),
        replace(BASE, client=clients.FedLC(), rounds=1, fraction_evaluate=0.0),
    ],
    ids=lambda e: type(e.client).__name__,
)
def test_the_same_bits_over_tls(experiment: Experiment, deployment: Deployment, tmp_path: Path) -> None:
    """One experiment of each family: client state, private layers, a server half, personalisation, a changed loss."""
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


def test_keys_are_the_users_own_and_nothing_is_left_behind() -> None:
    with Deployment(1) as made:
        folder = made.folder
        for name in ("server.key", "supernode-0"):
            assert os.stat(folder / name).st_mode & 0o077 == 0
        pids = [process.pid for process in made._processes]
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


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


def test_a_superlink_that_dies_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    experiment = replace(BASE, client=clients.SGD(), rounds=4, fraction_evaluate=0.0)
    with Deployment(1) as made:
        superlink = made._processes[0]

        def say(line: str) -> None:
            if line.startswith("fedsim: round 3"):
                os.killpg(superlink.pid, signal.SIGKILL)

        with pytest.raises(FedsimError, match="the run on the SuperLink 'here' failed"):
            made.run(experiment, tmp_path, say)
    assert (tmp_path / "checkpoint.npz").exists()
    with Deployment(2) as made:  # another federation of the same clients
        made.run(experiment, tmp_path)
    here = experiment.run()
    with np.load(tmp_path / "weights.npz") as there:
        assert all(np.array_equal(here.weights[name], there[name]) for name in here.weights)


def test_all_is_taken_down_when_the_command_is_killed(tmp_path: Path) -> None:
    """kill -9 of fedsim leaves no process of its own behind."""
    file = tmp_path / "e.toml"
    file.write_text('split = "IID(4)"\nrounds = 50\n')
    command = [sys.executable, "-m", "fedsim.cli", "deploy", "local", str(file), "--nodes", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr
    assert process.stderr.readline().startswith("fedsim: round 0")
    children = deploy._descendants(process.pid)
    assert len(children) >= 3
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while time.monotonic() < until and any(_alive(pid) for pid in children):
        time.sleep(0.2)
    assert not [pid for pid in children if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_takes_all_down(tmp_path: Path) -> None:
    started = threading.Event()

    def say(line: str) -> None:
        if line.startswith("fedsim: ") and not started.is_set():
            started.set()
            os.kill(os.getpid(), signal.SIGTERM)  # which is treated as Ctrl-C is

    before = set(deploy._descendants(os.getpid()))
    with pytest.raises(KeyboardInterrupt):
        deploy.local(replace(BASE, rounds=50), 1, tmp_path, say)
    assert started.is_set()
    assert not [pid for pid in set(deploy._descendants(os.getpid())) - before if _alive(pid)]
    assert not _serving(tmp_path)


def _serving(out: Path) -> list[int]:
    """The processes that still write into a folder."""
    held = []
    for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
        try:
            open_files = [str(f.readlink()) for f in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if pid != os.getpid() and any(name.startswith(str(out)) for name in open_files):
            held.append(pid)
    return held


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nodes is 0; allowed"):
        Deployment(0)
    file = tmp_path / "e.toml"
    file.write_text("rounds = 1\n")
    for arguments in (["--nodes", "0"], ["--timeout", "-1"], ["--retries", "-1"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["deploy", "local", str(file), *arguments])
        assert left.value.code == 2
