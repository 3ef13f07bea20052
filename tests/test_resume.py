"""A run that is interrupted, by any means, goes on to the bits of one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from helpers import same

from fedsim import Experiment, checkpoint, clients, data, run, servers
from fedsim.errors import ConfigError
from fedsim.splits import Dirichlet, TimeOrdered

BASE = Experiment(
    split=Dirichlet(12, alpha=0.5),
    hidden=(8,),
    rounds=6,
    fraction_train=0.5,
    fraction_evaluate=0.5,
    client=clients.SCAFFOLD(),
)


class PowerError(Exception):
    """The lights go out."""


def cut(at: int) -> Callable[[Mapping[str, float]], None]:
    """Break a run off in round `at`, whose checkpoint is then not written."""

    def on_round(row: Mapping[str, float]) -> None:
        if row["round"] == at:
            raise PowerError

    return on_round


@pytest.fixture(autouse=True)
def _every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(run, "CHECKPOINT_SHARE", 1e9)


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, client=clients.FedPer(), fraction_train=0.3),
        replace(BASE, client=clients.IFCA()),
        replace(BASE, client=clients.FedALA(first_epochs=2)),
        replace(BASE, server=partial(servers.FedYogi, eta=0.05)),
        replace(BASE, server=servers.CenteredClipping),
        replace(BASE, weight_divergence=True, split=TimeOrdered(Dirichlet(12, alpha=0.5), 3)),
        replace(BASE, client=clients.SGD(), server=stock.FedAvgM),
        replace(BASE, client=clients.SGD(), server=partial(stock.FedAdam, eta=0.05)),
        replace(BASE, client=clients.SGD(), server=partial(stock.QFedAvg, client_learning_rate=0.1)),
    ],
    ids=lambda e: f"{type(e.client).__name__}-{getattr(e.server, 'func', e.server)}",
)
def test_resume_equals_run(experiment: Experiment, tmp_path: Path) -> None:
    """Whatever is kept: client state, the server half's, the server strategy's, Flower's sampling."""
    whole = experiment.run()
    for at in (0, 1, 4, 6):
        with pytest.raises(PowerError):
            experiment.run(directory=tmp_path, on_round=cut(at))
        seen: list[float] = []
        resumed = experiment.run(directory=tmp_path, on_round=lambda row: seen.append(row["round"]))  # noqa: B023
        assert same(whole, resumed)
        assert seen == list(range(7))
        assert not (tmp_path / "checkpoint.npz").exists()


RUN = """
import sys
from fedsim import Experiment, clients, run
from fedsim.splits import Dirichlet
run.CHECKPOINT_SECONDS = 0.0
run.CHECKPOINT_SHARE = 1e9
e = Experiment(split=Dirichlet(12, alpha=0.5), hidden=(8,), rounds=400, client=clients.SCAFFOLD())
try:
    e.run(directory=sys.argv[1], on_round=lambda row: print(int(row["round"]), flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


def started(directory: Path, until: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if int(line) >= until:
            break
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path, 20)
    process.send_signal(how)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (-how if how is signal.SIGKILL else 130)
    assert ("stopping after this round" in told) == (how is signal.SIGINT)
    saved = checkpoint.load(tmp_path / "checkpoint.npz")
    assert 20 <= len(saved["history"]) < 400
    experiment = Experiment(split=Dirichlet(12, alpha=0.5), hidden=(8,), rounds=400, client=clients.SCAFFOLD())
    assert same(experiment.run(directory=tmp_path), experiment.run())


def test_two_runs_do_not_write_into_one_directory(tmp_path: Path) -> None:
    process = started(tmp_path, 1)
    with pytest.raises(ConfigError, match="another run is writing"):
        BASE.run(directory=tmp_path)
    process.kill()
    process.communicate(timeout=120)


def test_another_experiments_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(PowerError):
        BASE.run(directory=tmp_path, on_round=cut(3))
    with pytest.raises(ConfigError, match="interrupted run of another experiment"):
        replace(BASE, seed=1).run(directory=tmp_path)
    BASE.run(directory=tmp_path)
    replace(BASE, seed=1).run(directory=tmp_path)
    assert (tmp_path.with_name(f"{tmp_path.name}.1") / "history.csv").exists()


def test_arrays_of_ones_own_resume_by_their_content(tmp_path: Path) -> None:
    digits = data.load("digits")
    own = replace(BASE, dataset=data.Dataset("own", digits.x_train, digits.y_train, digits.x_test, digits.y_test, 10))
    with pytest.raises(PowerError):
        own.run(directory=tmp_path, on_round=cut(3))
    other = replace(own, dataset=replace(own.dataset, x_train=digits.x_train * 0.5))  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="another experiment"):
        other.run(directory=tmp_path)
    assert same(own.run(directory=tmp_path), own.run())


class Hoarder(stock.FedAvg):
    """Keeps what no checkpoint can hold."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: set[int] = set()


def test_a_server_that_no_checkpoint_can_hold_is_named_at_once(tmp_path: Path) -> None:
    experiment = replace(BASE, client=clients.SGD(), server=Hoarder)
    with pytest.raises(ConfigError, match="server Hoarder's seen is a set, which a checkpoint cannot hold"):
        experiment.run(directory=tmp_path)
    experiment.run()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_an_error_and_stays(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"the checkpoint .* cannot be read"):
        BASE.run(directory=tmp_path)
    assert (tmp_path / "checkpoint.npz").read_bytes() == content


def test_values_come_back_as_they_went(tmp_path: Path) -> None:
    value: dict[str, Any] = {
        "none": None,
        "tuple": (1, 2.5, "x", [True]),
        "nan": float("nan"),
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.float32(0.1),
        "empty": {},
    }
    checkpoint.save(tmp_path / "c.npz", value)
    back = checkpoint.load(tmp_path / "c.npz")
    assert back["tuple"] == value["tuple"]
    assert back["none"] is None
    assert np.isnan(back["nan"])
    assert back["array"].dtype == np.float32
    assert np.array_equal(back["array"], np.arange(6).reshape(2, 3))
    assert type(back["scalar"]) is np.float32
    assert back["empty"] == {}
    for bad in ({1: 2}, {"f": object()}, np.array(["text"])):
        with pytest.raises(ConfigError, match="a checkpoint cannot hold"):
            checkpoint.save(tmp_path / "bad.npz", bad)
    assert not (tmp_path / "bad.npz").exists()


def fedsim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_the_command_line_resumes(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text('split = "IID(5)"\nhidden = [4]\nrounds = 1200\nclient = "FedDyn()"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsim.cli", "run", "e.toml", "--out", "out"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "out/environment.json").exists():
        time.sleep(0.01)
        assert process.poll() is None
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "fedsim resume out goes on" in told
    done = fedsim("resume", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/history.csv").read_text().count("\n") == 1202
    again = fedsim("resume", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert "is complete; there is nothing to resume" in again.stderr
    nothing = fedsim("resume", ".", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "has no experiment.toml" in nothing.stderr
