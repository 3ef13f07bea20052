"""A run that is interrupted, by any means, goes on to the bits of one that is not."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pandas as pd
import pytest
from helpers import OnRound, same
from numpy.typing import NDArray

from fedsim import Experiment, clients, data, files, servers
from fedsim.errors import ConfigError
from fedsim.models import Group, Model
from fedsim.rounds.validity import ValidityChecks
from fedsim.secure import SecureAggregation
from fedsim.signals import handle_signals
from fedsim.splits import IID, Dirichlet, TimeOrdered
from fedsim.study import checkpoint, result_files
from fedsim.study import directory as rundir
from fedsim.study import saving as run
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.config import to_toml
from fedsim.study.identity import fingerprint
from fedsim.study.strategy_state import load_strategy_state, strategy_state_dict

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
        replace(BASE, client=clients.FedPer(), fraction_train=0.3, metrics=("macro_f1",)),
        replace(BASE, client=clients.IFCA()),
        replace(BASE, client=clients.FedALA(first_epochs=2)),
        replace(BASE, server=partial(servers.FedYogi, eta=0.05)),
        replace(BASE, server=servers.CenteredClipping),
        replace(BASE, client=clients.SGD(), server=servers.FLTrust(root=20)),
        replace(BASE, server=servers.FoolsGold, fraction_train=0.5),
        replace(BASE, weight_divergence=True, split=TimeOrdered(Dirichlet(12, alpha=0.5), 3)),
        replace(BASE, client=clients.SGD(), server=stock.FedAvgM),
        replace(BASE, client=clients.SGD(), server=partial(stock.FedAdam, eta=0.05)),
        replace(BASE, client=clients.SGD(), server=partial(stock.QFedAvg, client_learning_rate=0.1)),
        replace(BASE, secure_aggregation=SecureAggregation(dropout=0.2)),
    ],
    ids=lambda e: f"{type(e.client).__name__}-{getattr(e.server, 'func', e.server)}",
)
def test_resume_equals_run(experiment: Experiment, tmp_path: Path) -> None:
    """Whatever is kept: client state, the server hooks' state, the server strategy's, Flower's sampling."""
    whole = experiment.run()
    for at in (0, 1, 4, 6):
        with pytest.raises(PowerError):
            experiment.run(directory=tmp_path, callbacks=[OnRound(cut(at))])
        seen: list[float] = []
        resumed = experiment.run(directory=tmp_path, callbacks=[OnRound(lambda row: seen.append(row["round"]))])  # noqa: B023
        assert same(whole, resumed)
        assert seen == list(range(7))
        assert not (tmp_path / "checkpoint.npz").exists()


class Explodes(clients.SGD):
    """SGD whose client 3 leaves the range of sensible losses in round 4, with finite weights."""

    def train(self, ctx: clients.Context) -> NDArray[Any]:
        weights = ctx.fit()
        if ctx.round == 4:
            ctx.loss_sum = ctx.loss_sum * np.where(ctx.partition_ids == 3, 1e4, 1)
        return weights


class PrivatelyExplodes(Explodes):
    """The same without a global model, whose test loss is not in the history."""

    def private_groups(self, model: Model) -> Sequence[Group]:
        return model.groups[-1:]


@pytest.mark.parametrize("client", [Explodes(), PrivatelyExplodes()])
def test_a_resumed_run_knows_which_losses_are_divergence(client: clients.SGD, tmp_path: Path) -> None:
    """The limit follows from the untrained model's loss, which a resumed run does not measure again."""
    experiment = replace(BASE, client=client, fraction_train=1.0, on_failure="exclude")
    whole = experiment.run()
    assert whole.failures[["round", "partition_id"]].to_numpy().tolist() == [[4, 3]]
    with pytest.raises(PowerError):
        experiment.run(directory=tmp_path, callbacks=[OnRound(cut(2))])
    resumed = experiment.run(directory=tmp_path)
    assert same(whole, resumed)
    assert resumed.failures.equals(whole.failures)


RUN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from helpers import OnRound
from fedsim import Experiment, clients
from fedsim.study import saving as run
from fedsim.splits import Dirichlet
run.CHECKPOINT_SECONDS = 0.0
run.CHECKPOINT_SHARE = 1e9
e = Experiment(split=Dirichlet(12, alpha=0.5), hidden=(8,), rounds=400, client=clients.SCAFFOLD())
try:
    e.run(directory=sys.argv[1], callbacks=[OnRound(lambda row: print(int(row["round"]), flush=True))])
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


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_process_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path, 20)
    process.send_signal(how)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (-how if how is signal.SIGKILL else 130)
    assert ("stopping after this round" in told) == (how is signal.SIGINT)
    files = [tmp_path / "checkpoint.npz", tmp_path / "checkpoint.previous.npz"]  # the second only, for a moment
    saved = checkpoint.load(next(file for file in files if file.exists()))
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
        BASE.run(directory=tmp_path, callbacks=[OnRound(cut(3))])
    with pytest.raises(ConfigError, match="interrupted run of another experiment"):
        replace(BASE, seed=1).run(directory=tmp_path)
    BASE.run(directory=tmp_path)
    replace(BASE, seed=1).run(directory=tmp_path)
    assert (tmp_path.with_name(f"{tmp_path.name}.1") / "history.csv").exists()


def test_arrays_of_ones_own_resume_by_their_content(tmp_path: Path) -> None:
    digits = data.load("digits")
    own = replace(BASE, dataset=data.Dataset("own", digits.x_train, digits.y_train, digits.x_test, digits.y_test, 10))
    with pytest.raises(PowerError):
        own.run(directory=tmp_path, callbacks=[OnRound(cut(3))])
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
    with pytest.raises(ConfigError, match="server Hoarder's seen is a set; allowed in a checkpoint"):
        experiment.run(directory=tmp_path)
    experiment.run()


class Drifting(servers.FedExP):
    """A user's own: halves its steps, remembers the last one, and counts by client, in attributes of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scale = 1.0
        self.last: Any = None
        self._seen: dict[int, int] = {}
        self.rate = lambda number: 1 / number  # code is no state

    def step(self, server_round: int, weights: Any, combined: Any) -> Any:
        self.scale *= 0.9
        self._seen[server_round % 2] = self._seen.get(server_round % 2, 0) + 1
        moved = self.scale * (combined - weights) + (0 if self.last is None else 0.1 * self.last)
        self.last = moved / self._seen[server_round % 2]
        return weights + moved


def test_attributes_of_ones_own_server_are_resumed(tmp_path: Path) -> None:
    experiment = replace(BASE, server=Drifting)
    with pytest.raises(PowerError):
        experiment.run(directory=tmp_path, callbacks=[OnRound(cut(4))])
    assert same(experiment.run(directory=tmp_path), experiment.run())


class Secretive(servers.FedAvg):
    """Keeps a callable object that changes."""

    class Schedule:
        def __call__(self) -> float:
            return 1.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.schedule = self.Schedule()


def test_what_no_checkpoint_can_hold_of_ones_own_server_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="server Secretive's schedule is a Schedule; allowed in a checkpoint"):
        replace(BASE, server=Secretive).run(
            directory=tmp_path, callbacks=[OnRound(lambda row: pytest.fail("it has begun"))]
        )


def test_a_table_file_that_changed_is_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=80), "who": rng.choice(list("xyz"), 80), "y": rng.choice(["n", "p"], 80)}
    )
    file, out = tmp_path / "t.csv", tmp_path / "out"
    text = f"table({str(file)!r}, label='y', client_column='who')"

    def interrupted_after(change: Callable[[pd.DataFrame], None] | None) -> None:
        frame.to_csv(file, index=False)
        experiment = Experiment(dataset=text, split=Dirichlet(3, alpha=5.0), rounds=3, hidden=(4,))
        with pytest.raises(PowerError):
            experiment.run(directory=out, callbacks=[OnRound(cut(2))])
        changed = frame.copy()
        if change:
            change(changed)
        changed.to_csv(file, index=False)
        experiment.run(directory=out)

    def other_value(frame: pd.DataFrame) -> None:
        frame.loc[3, "a"] += 1e-3

    def other_client(frame: pd.DataFrame) -> None:
        frame["who"] = frame["who"].map({"x": "y", "y": "x", "z": "z"})

    interrupted_after(None)
    for change in (other_value, other_client):
        shutil.rmtree(out)
        with pytest.raises(ConfigError, match="interrupted run of another experiment"):
            interrupted_after(change)


def test_a_run_killed_while_it_writes_its_results_is_not_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before its first checkpoint, and at each of its files."""
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 1e9)
    out = tmp_path / "out"
    write = files.write_whole
    for last in ("history.csv", "clients.csv", "failures.csv", "weights.npz", "result.toml", "SHA256SUMS"):

        def killed(path: Path, *content: Any, last: str = last) -> None:
            write(path, *content)
            if path.name == last:
                raise PowerError

        monkeypatch.setattr(files, "write_whole", killed)
        monkeypatch.setattr(result_files, "write_whole", killed)
        with pytest.raises(PowerError):
            BASE.run(directory=out)
        assert (out / last).exists()
        assert (out / rundir.CHECKPOINT).exists()  # which makes it unfinished
    monkeypatch.setattr(files, "write_whole", write)
    monkeypatch.setattr(result_files, "write_whole", write)
    assert same(BASE.run(directory=out), BASE.run())
    assert not (out / rundir.CHECKPOINT).exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing half done was kept as earlier results


def test_a_restart_before_the_first_checkpoint_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 1e9)
    out = tmp_path / "out"
    for experiment in (BASE, replace(BASE, seed=1), BASE):  # nothing was done, so another experiment may begin there
        with pytest.raises(PowerError):
            experiment.run(directory=out, callbacks=[OnRound(cut(2))])
    for name in (".checkpoint.npz.ab_d12x9", ".history.csv.abcdefgh", ".mine.abcdefgh", ".history.csv.backup"):
        (out / name).touch()
    assert same(BASE.run(directory=out), BASE.run())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert {p.name for p in out.iterdir()} == {
        *result_files.RESULTS,
        result_files.FAIRNESS,
        ".lock",
        ".mine.abcdefgh",
        ".history.csv.backup",
    }


@pytest.mark.parametrize("at", [0, 3, 6])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_is_deleted_ends_the_run(at: int, replaced: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def on_round(row: Mapping[str, float]) -> None:
        if row["round"] == at:
            shutil.rmtree(out)
            if replaced:
                replace(BASE, rounds=1).run(directory=out)

    with pytest.raises(ConfigError, match="was deleted or replaced during the run"):
        BASE.run(directory=out, callbacks=[OnRound(on_round)])
    assert out.exists() == replaced
    if replaced:
        assert len(pd.read_csv(out / "history.csv")) == 2


@pytest.mark.parametrize("value", [[1], {"history": []}, {"experiment": 3, "history": []}])
def test_a_checkpoint_of_something_else_is_not_of_a_run(value: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint.npz", value)
    with pytest.raises(ConfigError, match=r"the checkpoint '.*checkpoint.npz' is not that of a run; "):
        BASE.run(directory=tmp_path)


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
        "zero-dimensional": np.array(2.5),
        "double": np.float64(0.1),
        "by number": {3: "three", None: 0, 2.5: [np.arange(2)]},
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
    assert type(back["zero-dimensional"]) is np.ndarray
    assert type(back["double"]) is np.float64
    assert list(back["by number"]) == [3, None, 2.5]
    lossy: tuple[Any, ...] = (
        OrderedDict(a=1),
        defaultdict(int),
        signal.SIGINT,
        np.ma.masked_array([1.0, 2.0], [True, False]),
    )
    for bad in ({(1, 2): 2}, {"f": object()}, np.array(["text"]), {"x": [{1, 2}]}, *lossy):
        with pytest.raises(ConfigError, match="allowed in a checkpoint: numbers"):
            checkpoint.save(tmp_path / "bad.npz", bad)
    assert not (tmp_path / "bad.npz").exists()


@pytest.mark.parametrize(
    "array", [np.array([True, False]), np.array([1 + 2j]), np.arange(3, dtype=np.uint8), np.arange(400_000.0)]
)
def test_arrays_of_any_numbers_and_size_come_back(array: NDArray[Any], tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.npz", array)
    back = checkpoint.load(tmp_path / "c.npz")
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [1, {"b": {2}}]}, "['a'][1]['b'] is a set"),
        ({1: (0, object())}, "[1][1] is a object"),
        ([np.array(["text"])], "[0] is an array of <U4"),
        ({(1, 2): 3}, " is a dict with keys"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named_by_its_place(value: Any, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checkpoint.pack(value, {}, "it")
    assert str(refused.value).startswith(f"it{named}")


@pytest.mark.parametrize(
    "tree",
    [
        [1],
        {"list": "ab"},
        {"tuple": {"a": 1}},
        {"set": [1]},
        {"list": [], "tuple": []},
        {"array": "text"},
        {"scalar": "row"},
        {"record": {"dict": {"a": 1}}},
        {"record": {"list": []}},
        {"array": "none"},
    ],
)
def test_what_pack_does_not_make_is_not_unpacked(tree: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        checkpoint.unpack(tree, {"row": np.arange(2), "text": np.array("text")})


def test_a_checkpoint_of_another_version_or_that_cannot_be_opened_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.npz"
    file.mkdir()
    with pytest.raises(ConfigError, match=f"the checkpoint {str(file)!r} cannot be read: Is a directory; "):
        checkpoint.load(file)
    file.rmdir()
    checkpoint.save(file, 1)
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    with pytest.raises(ConfigError, match=r"version 7, .* 99; "):
        checkpoint.load(file)

    def empty(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoint, "_read", empty)
    with pytest.raises(ConfigError, match="cannot be read: MemoryError; "):
        checkpoint.load(file)


class Compiled:
    """What a compiler makes of a function: an object that stands in its place."""

    __wrapped__ = len


class Wrapping(stock.FedAvg):
    """Keeps values, code of every kind, and another strategy."""

    def __init__(self, inner: stock.Strategy) -> None:
        super().__init__()
        self.inner = inner
        self.number, self.nothing, self.text, self.rate = 3, None, "x", np.float32(0.5)
        self.compiled = Compiled()
        self.method, self.cls, self.ufunc, self.bound = self.aggregate_train, int, np.add, partial(len, [])


def test_the_state_of_a_strategy_is_its_values_and_not_its_code() -> None:
    strategy = Wrapping(Drifting())
    state = strategy_state_dict(strategy)
    usual = set(vars(stock.FedAvg())) & set(state)
    assert state.keys() - usual == {"inner", "number", "nothing", "text", "rate"}
    assert {"fraction_train", "min_available_nodes", "weighted_by_key"} <= usual
    assert not [name for name in usual if name.endswith("_fn")]
    assert {"scale", "last", "_seen", "state", "fraction_train"} <= state["inner"].keys()  # of a class of one's own
    assert not {"rate", "_sent", "_sent_flat", "_add_weighted", "_given_options"} & state["inner"].keys()
    assert strategy_state_dict(servers.FedAdam()) == {"state": {}}  # of fedsim's
    changed = {"inner": {"scale": 2, "last": np.ones(2)}, "number": np.float32(0.5), "nothing": [1], "text": None}
    load_strategy_state(strategy, changed)
    assert [vars(strategy)[name] for name in ("number", "nothing", "text")] == [0.5, [1], None]
    inner: Any = strategy.inner
    assert inner.scale == 2
    assert inner.last.tolist() == [1, 1]
    load_strategy_state(strategy, {"later": "made in a round"})
    assert vars(strategy)["later"] == "made in a round"


@pytest.mark.parametrize("state", [{"number": "3"}, {"text": 3}, {"inner": {"scale": []}}, {"aggregate_train": 3}])
def test_a_state_of_another_kind_than_the_strategy_has_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^its server has"):
        load_strategy_state(Wrapping(Drifting()), state)


def test_experiments_share_a_fingerprint_if_their_data_and_settings_are_the_same() -> None:
    x, y, group = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])
    own = data.Dataset("own", x, y, x[:2], y[:2], 2, groups={"a": group, "b": 1 - group})
    plain = fingerprint(Experiment(dataset=own))
    same_data: list[dict[str, Any]] = [
        {"groups": {"b": 1 - group, "a": group}},
        {"x_train": np.asfortranarray(x)},
        {"name": "renamed"},
    ]
    for changes in same_data:
        assert fingerprint(Experiment(dataset=replace(own, **changes))) == plain
    other_data: list[dict[str, Any]] = [
        {"x_train": x + 1},
        {"x_train": x.astype(np.float32)},
        {"y_train": 1 - y},
        {"x_test": x[2:]},
        {"y_test": 1 - y[:2]},
        {"x_test": x[:1], "y_test": y[:1]},
        {"num_classes": 3},
        {"groups": {"a": group, "c": 1 - group}},
        {"groups": {"a": group, "b": group}},
        {"regression": True, "num_classes": 1, "y_train": y.astype(float), "y_test": y[:2].astype(float)},
    ]
    found = {fingerprint(Experiment(dataset=replace(own, **changes))) for changes in other_data}
    assert len(found | {plain}) == len(other_data) + 1
    named = fingerprint(Experiment(dataset="digits"))
    assert named == fingerprint(Experiment(dataset="digits", data_dir="elsewhere"))
    assert len({named, fingerprint(Experiment(dataset="article")), fingerprint(Experiment(seed=1))}) == 3


class Folder:
    """Takes the states that a run saves, each in some seconds of `clock`."""

    def __init__(self, seconds: float, clock: SimpleNamespace) -> None:
        self.saved: list[Any] = []
        self.checked = 0
        self._seconds, self._clock = seconds, clock

    def check(self) -> None:
        self.checked += 1

    def save(self, state: dict[str, Any]) -> None:
        self.saved.append(state)
        self._clock.now += self._seconds


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(0.25, [3, 6, 9, 12, 15]), (1.0, [3, 9, 15])],  # 5 seconds apart; or ten times what a checkpoint takes
)
def test_a_checkpoint_is_written_every_five_seconds_in_a_tenth_of_the_time(
    seconds: float, rounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    folder: Any = Folder(seconds, clock)
    state: Any = SimpleNamespace(state_dict=lambda: {"at": clock.now})
    checkpoints = run.Checkpoints(folder, state)
    for number in range(1, 16):
        clock.now = 100.0 + 2.0 * number
        checkpoints.round_finished(FinishedRound(number, {}, {}, None, dict))
    assert [saved["at"] for saved in folder.saved] == [100.0 + 2 * number for number in rounds]
    assert all(saved["stop_reason"] == "" for saved in folder.saved)
    assert folder.checked == 15  # a deleted directory is noticed in each round


def test_the_first_ctrl_c_ends_a_run_after_the_round_and_the_second_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # no checkpoint is due
    before = signal.getsignal(signal.SIGINT)
    folder: Any = Folder(0.0, SimpleNamespace(now=0.0))
    state: Any = SimpleNamespace(state_dict=dict)
    finished = FinishedRound(3, {}, {}, None, dict)
    finished.stop("enough")
    checkpoints = run.Checkpoints(folder, state)
    with handle_signals([signal.SIGINT], checkpoints.interrupt):
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            checkpoints.round_finished(finished)
        assert folder.saved == [{"stop_reason": "enough"}]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(partial(replace(BASE, rounds=1).run, directory=tmp_path)).result()
    assert result.rounds == 1


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
    assert "resume the run with: fedsim resume out" in told
    done = fedsim("resume", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/history.csv").read_text().count("\n") == 1202
    again = fedsim("resume", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert "is complete; there is nothing to resume" in again.stderr
    nothing = fedsim("resume", ".", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "has neither experiment.toml nor study.toml" in nothing.stderr


class Moody(clients.SCAFFOLD):
    """Has hooks that fail when told to."""

    hook: str = "client_state"

    def client_state(self, ctx: Any) -> Any:
        self._may_fail("client_state")
        return super().client_state(ctx)

    def server_state(self, weights: Any, server_hooks: Any) -> Any:
        self._may_fail("server_state")
        return super().server_state(weights, server_hooks)

    def _may_fail(self, hook: str) -> None:
        if MOOD and hook == self.hook:
            raise MOOD[0]


class Hidden(list[Any]):
    """A list whose items are no part of the identity of a run whose code uses them."""

    def __reduce_ex__(self, protocol: Any) -> str:
        return "hidden"


MOOD: Hidden = Hidden()


@pytest.mark.parametrize("hook", ["client_state", "server_state"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyError("no"), TypeError("no"), RuntimeError("no")])
def test_an_error_of_a_strategy_is_not_blamed_on_the_checkpoint(
    hook: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(run, "CHECKPOINT_SHARE", 1e9)
    experiment = replace(BASE, client=Moody(hook=hook))
    with pytest.raises(PowerError):
        experiment.run(directory=tmp_path, callbacks=[OnRound(cut(2))])
    try:
        MOOD.append(error)
        with pytest.raises(Exception, match="no") as whole:
            experiment.run()
        with pytest.raises(Exception, match="no") as resumed:
            experiment.run(directory=tmp_path)
    finally:
        MOOD.clear()
    assert type(resumed.value) is type(whole.value)
    assert "checkpoint" not in str(resumed.value)
    assert experiment.run(directory=tmp_path).rounds == experiment.rounds


class Brittle(servers.FedAvg):
    """Keeps something; its step fails in some rounds when told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = 0

    def step(self, server_round: int, weights: Any, combined: Any) -> Any:
        self.steps += 1
        if MOOD and server_round in FAILING:
            raise MOOD[0]
        return combined


FAILING: Hidden = Hidden()
X = np.random.default_rng(0).normal(size=(60, 3))
OWN = data.Dataset("own", X[:40], (X[:40, 0] > 0).astype(int), X[40:], (X[40:, 0] > 0).astype(int), 2)
TINY = Experiment(dataset=OWN, split=IID(4), hidden=(2,), rounds=5, kernel="numpy")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("no"), AttributeError("no"), KeyError("no"), TypeError("no"), ValueError("no")]
)
def test_what_fails_in_the_first_round_after_an_interruption_is_blamed_on_the_checkpoint(
    error: Exception, tmp_path: Path
) -> None:
    """Not what fails in a later round, in a new run, or in a run without a directory."""
    experiment = replace(TINY, server=Brittle)
    try:
        MOOD.append(error)
        FAILING.append(1)
        for where in (None, tmp_path):
            with pytest.raises(type(error)):
                experiment.run(directory=where)
        FAILING.clear()
        with pytest.raises(PowerError):
            experiment.run(directory=tmp_path, callbacks=[OnRound(cut(3))])
        FAILING.append(4)
        with pytest.raises(type(error)):
            experiment.run(directory=tmp_path)
        with pytest.raises(ConfigError, match=r"the checkpoint '.*checkpoint.npz' does not fit this experiment: .*no"):
            experiment.run(directory=tmp_path)
    finally:
        MOOD.clear()
        FAILING.clear()
    assert same(experiment.run(directory=tmp_path), experiment.run())


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PowerError):
        TINY.run(directory=tmp_path, callbacks=[OnRound(cut(3))])
    assert capsys.readouterr().err == ""
    TINY.run(directory=tmp_path)
    told = capsys.readouterr()
    assert "after round 2" in told.err
    assert str(tmp_path / "checkpoint.npz") in told.err
    assert told.out == ""
    TINY.run(directory=tmp_path)
    kept = tmp_path.with_name(f"{tmp_path.name}.1")
    assert f"fedsim: kept the earlier results in {kept}\n" == capsys.readouterr().err
    assert {file.name for file in kept.iterdir()} == {*result_files.RESULTS} - {"experiment.toml"}


def test_a_results_directory_says_what_was_run_and_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment on arrays has no text."""
    once = replace(BASE, rounds=1)
    once.run(directory=tmp_path / "a")
    assert (tmp_path / "a/experiment.toml").read_text() == to_toml(once)
    written = json.loads((tmp_path / "a/environment.json").read_text())
    assert written == {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in ("fedsim", "numpy", "numba", "flwr", "pandas", "scikit-learn")},
        "git": result_files.git_revision(),
    }
    flushed: list[bool] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        flushed.append((tmp_path / "b/checkpoint.npz").exists())

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)  # a run without a checkpoint is not flushed
    result = replace(once, dataset=once.load_data(), client=Failing(), on_failure="exclude").run(
        directory=tmp_path / "b"
    )
    assert flushed[-2:] == [True, False]  # the last that reaches the disk is that the run is complete
    assert not (tmp_path / "b/experiment.toml").exists()
    for name in ("history", "clients", "failures"):
        written = pd.read_csv(tmp_path / f"b/{name}.csv")
        pd.testing.assert_frame_equal(written, getattr(result, name), check_dtype=False)
    with np.load(tmp_path / "b/weights.npz") as weights:
        assert all(np.array_equal(weights[name], result.weights[name]) for name in result.weights)


class Failing(clients.SGD):
    """The first client fails in rounds 1 and 3."""

    def train(self, ctx: Any) -> Any:
        if ctx.round in (1, 3) and 0 in ctx.partition_ids:
            raise RuntimeError("no")
        return ctx.fit()


def test_failures_before_an_interruption_are_resumed(tmp_path: Path) -> None:
    experiment = replace(BASE, client=Failing(), on_failure="exclude", fraction_train=1.0, rounds=4)
    with pytest.raises(PowerError):
        experiment.run(directory=tmp_path, callbacks=[OnRound(cut(3))])
    resumed = experiment.run(directory=tmp_path)
    assert resumed.failures["round"].tolist() == [1, 3]
    assert resumed.failures["partition_id"].tolist() == [0, 0]
    assert resumed.failures.equals(experiment.run().failures)


def test_divergence_is_judged_by_the_untrained_model_after_an_interruption_too(tmp_path: Path) -> None:
    """Ten times the loss of round 0: what the model has learnt since does not tighten it."""
    experiment = replace(BASE, rounds=4)
    limits: list[float] = []

    class Looks(Callback):
        def round_finished(self, finished: FinishedRound) -> None:
            limits.append(finished.metrics["test_loss"])

    with pytest.raises(PowerError):
        experiment.run(directory=tmp_path, callbacks=[Looks(), OnRound(cut(3))])
    assert limits[0] > limits[1]
    found: list[float] = []
    limit_loss = ValidityChecks.limit_loss

    def watched(self: ValidityChecks, loss: float) -> None:
        found.append(loss)
        limit_loss(self, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ValidityChecks, "limit_loss", watched)
        experiment.run(directory=tmp_path)
    assert found == limits[:1]
