"""Callbacks see each round of a run and may end it; early stopping is one of them."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp import strategy as stock
from helpers import same
from numpy.typing import NDArray

from fedsim import Experiment, Result, compare, data, files
from fedsim.clients import SCAFFOLD, SGD, Context, FedNova, FedPer
from fedsim.errors import ConfigError, DataError, DivergenceError
from fedsim.modules import EVERY
from fedsim.objects import short_repr
from fedsim.secure import SecureAggregation
from fedsim.servers import FedAdam, FedMedian
from fedsim.splits import IID, Dirichlet
from fedsim.study import config, result_files, saving
from fedsim.study import directory as rundir
from fedsim.study.callbacks import Callback, ClientUpdates, EarlyStopping, FinishedRound
from fedsim.study.plan import make_plan
from fedsim.study.progress import ProgressBar
from fedsim.updates import TopK

NAN = math.nan
BASE = Experiment(split=IID(4), hidden=(4,), rounds=6, kernel="numpy", client=SGD(lr=0.3))


def stops(stopper: EarlyStopping, *values: float) -> tuple[int, str]:
    """Return the round after which rounds with these values end, and why; -1 if they do not."""
    stopper.run_started(BASE, [])
    for number, value in enumerate(values):
        finished = FinishedRound(number, {"test_loss": 7.0, stopper.metric: value}, {}, None, dict)
        stopper.round_finished(finished)
        if finished.stop_reason:
            return number, finished.stop_reason
    return -1, ""


@pytest.mark.parametrize(
    ("metric", "values", "number"),
    [
        ("test_accuracy", (0.1, 0.89, NAN, 0.9, 0.95), 3),
        ("local_accuracy", (0.95,), 0),
        ("local_loss", (2.0, 0.91, 0.9), 2),
        ("train_loss", (NAN, 0.8), 1),
        ("local_r2", (-3.0, 0.9), 1),
        ("test_loss", (2.0, 1.0, 0.95), -1),
    ],
)
def test_a_target_is_reached_by_a_loss_from_above_and_by_a_score_from_below(
    metric: str, values: tuple[float, ...], number: int
) -> None:
    found, reason = stops(EarlyStopping(metric, target=0.9), *values)
    assert found == number
    if number >= 0:
        assert reason == f"{metric} reached 0.9 in round {number}: {values[number]:.4g}"


@pytest.mark.parametrize(
    ("metric", "patience", "values", "number", "best"),
    [
        ("test_accuracy", 3, (0.1, 0.5, 0.5, 0.4, 0.5), 4, "0.5"),  # to equal the best is no improvement
        ("test_accuracy", 2, (0.1, 0.0, 0.2, 0.1, 0.3, 0.2), -1, ""),
        ("test_accuracy", 1, (0.3, 0.3), 1, "0.3"),
        ("test_loss", 2, (2.0, 1.25, 1.5, 1.3, 1.0), 3, "1.25"),
        ("test_loss", 2, (2.0, 1.9, 1.8, 1.7), -1, ""),
        ("test_r2", 2, (-3.0, -4.0, -5.0), 2, "-3"),
        ("local_loss", 2, (NAN, NAN, NAN, NAN), -1, ""),  # nobody evaluated
        ("train_loss", 2, (NAN, 0.5, 0.6, 0.7), 3, "0.5"),
        ("train_loss", 2, (NAN, 0.5, NAN, NAN), 3, "0.5"),
        ("train_loss", 2, (NAN, 0.5, NAN, 0.4, 0.45), -1, ""),
    ],
)
def test_patience_is_counted_in_rounds_without_a_new_best_value(
    metric: str, patience: int, values: tuple[float, ...], number: int, best: str
) -> None:
    found, reason = stops(EarlyStopping(metric, patience=patience), *values)
    assert found == number
    if number >= 0:
        assert reason == f"{metric} has not improved for {patience} rounds; the best was {best}"


def test_target_and_patience_together_stop_at_whichever_comes_first() -> None:
    stopper = EarlyStopping("test_accuracy", target=0.5, patience=2)
    assert stops(stopper, 0.1, 0.6)[1].startswith("test_accuracy reached 0.5")
    assert stops(stopper, 0.1, 0.1, 0.1) == (2, "test_accuracy has not improved for 2 rounds; the best was 0.1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "EarlyStopping has neither target nor patience; allowed: one of them, or both"),
        ({"metric": "accuracy", "patience": 1}, "EarlyStopping's metric is 'accuracy'; allowed: test_loss, test_acc"),
        ({"metric": "seconds", "patience": 1}, "EarlyStopping's metric is 'seconds'"),
        ({"target": NAN}, "EarlyStopping's target is nan; allowed: a finite number"),
        ({"patience": 0}, "EarlyStopping's patience is 0; allowed: a whole number, 1 or more"),
        ({"patience": 1.5, "target": 1}, "EarlyStopping's patience is 1.5"),
    ],
)
def test_early_stopping_that_cannot_be_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        EarlyStopping(**arguments)


def test_early_stopping_is_a_value_whatever_it_has_seen() -> None:
    numpys: Any = np.int64(3)
    used, fresh = EarlyStopping(patience=3), EarlyStopping("test_accuracy", None, numpys)
    stops(used, 0.1, 0.2)
    assert (used, hash(used)) == (fresh, hash(fresh))
    assert repr(used) == repr(fresh) == "EarlyStopping(metric='test_accuracy', target=None, patience=3)"
    assert short_repr(used) == "EarlyStopping(patience=3)"
    assert used != EarlyStopping(patience=2)
    assert replace(BASE, early_stopping=used) == replace(BASE, early_stopping=fresh)
    assert type(fresh.patience) is int


def small_regression() -> data.Dataset:
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = x @ np.array([1.0, -2.0, 0.5])
    return data.Dataset("line", x[:40], y[:40], x[40:], y[40:], 1, regression=True)


def test_a_metric_that_the_experiment_has_not_is_refused_with_those_that_it_has() -> None:
    line = replace(BASE, dataset=small_regression(), loss="mse", client=SGD(lr=0.01))
    with pytest.raises(
        ConfigError,
        match=r"metric is 'test_accuracy'; this experiment has test_loss, test_r2, train_loss, local_loss, local_r2$",
    ):
        replace(line, early_stopping=EarlyStopping(patience=1)).run()
    with pytest.raises(ConfigError, match=r"metric is 'local_r2'; this experiment has test_loss, test_accuracy, train"):
        replace(BASE, early_stopping=EarlyStopping("local_r2", patience=1)).run()
    whole = line.run()
    target = float(whole.test_scores[3])
    assert target > whole.test_scores[:3].max()
    stopped = replace(line, early_stopping=EarlyStopping("test_r2", target=target)).run()
    assert stopped.rounds == 3
    assert stopped.stop_reason == f"test_r2 reached {target:g} in round 3: {target:.4g}"


def test_a_run_that_stops_early_is_the_beginning_of_the_whole_run() -> None:
    """Its result is that of a run with so many rounds: history, model, clients."""
    base = replace(BASE, fraction_train=0.5, fraction_evaluate=0.5)
    target = float(base.run().history["test_loss"][4])
    stopper = EarlyStopping("test_loss", target=target)
    stopped = replace(base, early_stopping=stopper).run()
    assert same(stopped, replace(base, rounds=4).run())
    assert stopped.rounds == 4
    assert stopped.stop_reason.startswith("test_loss reached")
    assert set(stopped.clients["round"]) == {1, 2, 3, 4}
    assert base.run().stop_reason == ""
    assert replace(base, rounds=5, early_stopping=stopper).run().stop_reason == stopped.stop_reason
    assert replace(base, rounds=4, early_stopping=stopper).run().stop_reason == ""  # not before its last round


def test_each_run_of_a_study_stops_by_its_own_rounds() -> None:
    """The axis and the seeds share one object."""
    stopper = EarlyStopping("test_accuracy", target=0.6)
    base = replace(BASE, rounds=12)
    study = compare(base, seeds=3, early_stopping=[stopper, EarlyStopping("test_loss", patience=9)])
    whole = [replace(base, seed=seed).run() for seed in range(3)]
    expected = [next((n for n, a in enumerate(w.test_scores) if a >= 0.6), 12) for w in whole]
    assert [r.rounds for r in study.variants[0].results] == expected
    assert len(set(expected)) > 1
    assert [r.rounds for r in study.variants[1].results] == [12, 12, 12]
    assert study.variants[0].label == "EarlyStopping(metric='test_accuracy', target=0.6, patience=None)"


def test_configuration_files_and_the_command_line_set_early_stopping(tmp_path: Path) -> None:
    settings = tomllib.loads("early_stopping = \"EarlyStopping(metric='test_loss', patience=3)\"\nrounds = 9")
    made = config.experiment(settings)
    assert made.early_stopping == EarlyStopping("test_loss", patience=3)
    stops(made.early_stopping, 0.3, 0.2)
    text = config.to_toml(made)
    assert tomllib.loads(text)["early_stopping"] == "EarlyStopping(metric='test_loss', patience=3)"
    assert config.experiment(tomllib.loads(text)) == made
    assert "early_stopping" not in config.to_toml(Experiment())
    changed = config.apply(made, ["early_stopping.target=0.5", "early_stopping.patience=4"])
    assert changed.early_stopping == EarlyStopping("test_loss", 0.5, 4)
    assert config.apply(Experiment(), ["early_stopping=EarlyStopping('train_loss', 0.1)"]).early_stopping == (
        EarlyStopping("train_loss", target=0.1)
    )
    with pytest.raises(ConfigError, match=r"allowed: early_stopping.metric, early_stopping.target, early_stopping.pat"):
        config.apply(made, ["early_stopping._best=[1]"])
    plan = make_plan({"compare": {"early_stopping": ["EarlyStopping(patience=1)", "EarlyStopping(patience=2)"]}})
    assert plan.axes["early_stopping"] == [EarlyStopping(patience=1), EarlyStopping(patience=2)]
    own = config.value_of("early_stopping", f"{__name__}:Lenient(patience=2)", EVERY)
    assert type(own) is Lenient
    assert config.to_toml(Experiment(early_stopping=own)).count(f"{__name__}:Lenient(metric='test_acc") == 1
    for text, sentence in [
        ("EarlyStoping(patience=1)", "allowed: EarlyStopping or module:Class; did you mean 'EarlyStopping'"),
        ("EarlyStopping()", "EarlyStopping has neither target nor patience"),
        (f"{__name__}:Diary", "early_stopping is"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            config.build("early_stopping", text)
    with pytest.raises(ConfigError, match="early_stopping is 3; allowed: an EarlyStopping object"):
        config.experiment({"early_stopping": 3})
    with pytest.raises(ConfigError, match=r"early_stopping is .*Lenient'>; allowed"):
        Experiment(early_stopping=Lenient)  # type: ignore[arg-type]


class Lenient(EarlyStopping):
    """A user's own: it ignores the untrained model."""

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number:
            super().round_finished(finished)


# Progress bars.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("show", "terminal", "shown"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_a_progress_bar_is_shown_on_terminals_or_as_asked(
    show: bool | None, terminal: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(2, show) as bar:
        bar.round_finished(FinishedRound(1, {"test_accuracy": 0.5}, {}, None, dict))
    assert bool(stream.getvalue()) is shown


def test_a_progress_bar_counts_rounds_of_an_interrupted_run_and_shows_the_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(7) as bar:
        bar.describe("IID, seed 4")
        bar.run_started(BASE, [])
        bar.run_started(BASE, [{}])  # round 0 is the untrained model
        assert bar._bar.n == 0
        bar.run_started(BASE, [{}, {}, {}])
        assert bar._bar.n == 2
        bar.round_finished(FinishedRound(3, {"test_r2": -0.12345}, {}, None, dict))
        line = str(bar._bar)
        assert (bar._bar.n, bar._bar.total) == (3, 7)
        assert line.startswith("IID, seed 4: ")
        assert "r2=-0.123]" in line
        assert "round" in line
    assert bar._bar.disable  # closed
    assert terminal.getvalue().endswith("\n")


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def finished_round(number: int, accuracy: float = 0.5) -> FinishedRound:
    return FinishedRound(number, {"test_accuracy": accuracy}, {}, None, dict)


def test_where_output_is_no_terminal_a_line_is_printed_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """Time left is that of the rounds left at the speed so far."""
    clock = Clock()
    with ProgressBar(1000, clock=clock) as bar:
        bar.describe("IID, seed 4")
        bar.run_started(BASE, [{}] * 201)  # 200 rounds were finished before an interruption
        for number in range(201, 601):
            clock.seconds += 0.5
            bar.round_finished(finished_round(number, number / 1000))
    assert capsys.readouterr().err.splitlines() == [
        "fedsim: IID, seed 4; 320 of 1,000 rounds; accuracy 0.320; about 05:40 left",
        "fedsim: IID, seed 4; 440 of 1,000 rounds; accuracy 0.440; about 04:40 left",
        "fedsim: IID, seed 4; 560 of 1,000 rounds; accuracy 0.560; about 03:40 left",
    ]


@pytest.mark.parametrize(("show", "seconds", "lines"), [(None, 59.0, 0), (None, 61.0, 1), (False, 1e6, 0)])
def test_short_work_prints_nothing_where_output_is_no_terminal(
    show: bool | None, seconds: float, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    with ProgressBar(2, show, clock=clock) as bar:
        clock.seconds = seconds
        bar.round_finished(finished_round(1))
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_on_a_terminal_the_bar_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    clock = Clock()
    with ProgressBar(2, clock=clock) as bar:
        clock.seconds = 1e6
        bar.round_finished(finished_round(1))
    assert "fedsim: " not in terminal.getvalue()


NOTEBOOK = """
import sys
from types import SimpleNamespace as Module
shell = Module(config={"IPKernelApp": {}}, kernel=None)
sys.modules["IPython"] = Module(get_ipython=lambda: shell)
sys.modules["ipykernel.zmqshell"] = Module()
sys.modules["IPython.display"] = Module(display=print)
sys.modules["ipywidgets"] = WIDGETS
from fedsim.study.progress import _bar_class
print([cls.__name__ for cls in _bar_class().__mro__])
"""


@pytest.mark.parametrize("widgets", ["None", "Module(HTML=object, HBox=object, FloatProgress=object)"])
def test_a_notebook_has_a_bar_of_its_own_where_widgets_are_installed(widgets: str) -> None:
    """Without a warning where they are not."""
    code = NOTEBOOK.replace("WIDGETS", widgets)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert ("'tqdm_notebook'" in done.stdout, done.stderr) == (widgets != "None", "")


# Interruptions.


class PowerError(Exception):
    """The lights go out."""


class CutAt(Callback):
    """Breaks a run off in a round, whose checkpoint is then not written."""

    def __init__(self, number: int, error: BaseException | None = None) -> None:
        self._number, self._error = number, error or PowerError()

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == self._number:
            raise self._error


class Diary(Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.rounds: list[FinishedRound] = []

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        self.notes.append(("started", experiment, [row["round"] for row in history]))

    def round_finished(self, finished: FinishedRound) -> None:
        self.notes.append(finished.number)
        self.rounds.append(finished)

    def run_finished(self, result: Result) -> None:
        self.notes.append(("finished", result))


@pytest.fixture
def _every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(saving, "CHECKPOINT_SHARE", 1e9)


@pytest.mark.usefixtures("_every_round")
@pytest.mark.parametrize("at", [1, 3, 4])
def test_patience_goes_on_across_an_interruption(at: int, tmp_path: Path) -> None:
    """The best value is in a round that the resumed run does not see again."""
    stopper = EarlyStopping("test_loss", patience=3)
    experiment = replace(BASE, rounds=20, client=Worse(lr=0.3), early_stopping=stopper)
    whole = experiment.run()
    assert whole.rounds == 5
    assert (
        whole.stop_reason == f"test_loss has not improved for 3 rounds; the best was {whole.history.test_loss[2]:.4g}"
    )
    with pytest.raises(PowerError):
        experiment.run(directory=tmp_path, callbacks=[CutAt(at)])
    diary = Diary()
    resumed = experiment.run(directory=tmp_path, callbacks=[diary])
    assert same(whole, resumed)
    assert resumed.stop_reason == whole.stop_reason
    assert diary.notes[0] == ("started", experiment, list(range(at)))
    assert diary.notes[1:-1] == list(range(at, 6))


class Worse(SGD):
    """Learns in two rounds, and unlearns from then on."""

    def direction(self, grad: NDArray[Any], weights: NDArray[Any], ctx: Context) -> NDArray[Any]:
        return grad if ctx.round <= 2 else -0.01 * grad


@pytest.mark.usefixtures("_every_round")
def test_a_run_that_stopped_early_and_was_killed_before_its_results_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise PowerError

    class StopsAt2(Diary):
        def round_finished(self, finished: FinishedRound) -> None:
            super().round_finished(finished)
            if finished.number == 2:
                finished.stop("enough")

    monkeypatch.setattr(result_files, "write_csv", killed)
    with pytest.raises(PowerError):
        BASE.run(directory=tmp_path, callbacks=[StopsAt2()])
    monkeypatch.setattr(result_files, "write_csv", files.write_csv)
    diary = Diary()
    resumed = BASE.run(directory=tmp_path, callbacks=[diary])
    assert [note[0] for note in diary.notes] == ["started", "finished"]
    assert diary.notes[0][2] == [0, 1, 2]
    assert resumed.stop_reason == "enough"
    assert same(resumed, replace(BASE, rounds=2).run())
    assert not (tmp_path / rundir.CHECKPOINT).exists()


# Callbacks of the user.


def test_a_callback_sees_every_round_and_the_result() -> None:
    class FailsOnce(SGD):
        def train(self, ctx: Context) -> NDArray[Any]:
            weights = ctx.fit()
            if ctx.round == 2:
                weights[ctx.partition_ids == 3] = np.nan
            return weights

    first, second = Diary(), Diary()
    experiment = replace(BASE, rounds=3, client=FailsOnce(lr=0.3), on_failure="exclude", min_clients=4)
    result = experiment.run(callbacks=(first, second))
    assert first.notes == second.notes
    assert first.notes == [("started", experiment, []), 0, 1, 2, 3, ("finished", result)]
    assert [seen.number for seen in first.rounds] == [0, 1, 2, 3]
    for seen, (_, row) in zip(first.rounds, result.history.iterrows(), strict=True):
        assert list(seen.metrics) == list(result.history.columns)
        np.testing.assert_array_equal(list(seen.metrics.values()), row.to_numpy())
        assert seen.stop_reason == ""
    assert [list(seen.failures) for seen in first.rounds] == [[], [], [3], []]
    assert first.rounds[2].failures[3] == result.failures["reason"].item()
    assert [seen.rejected for seen in first.rounds] == [None, None, (3, 4), None]


def test_a_callback_reads_a_copy_of_the_weights_of_its_round() -> None:
    class Spoils(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, NDArray[Any]]] = []

        def round_finished(self, finished: FinishedRound) -> None:
            self.seen.append(finished.weights)
            for values in finished.weights.values():
                values[:] = np.nan

    spoils = Spoils()
    result = BASE.run(callbacks=[spoils])
    assert same(result, BASE.run())
    assert len(spoils.seen) == 7
    for number in (1, 3, 6):
        expected = replace(BASE, rounds=number).run().weights
        assert list(spoils.seen[number]) == list(expected) == ["W1", "b1", "W2", "b2"]
        assert all(np.array_equal(spoils.seen[number][name], expected[name]) for name in expected)
    assert not np.array_equal(spoils.seen[0]["W1"], spoils.seen[1]["W1"])


def test_a_callback_that_stops_ends_the_run_after_all_have_seen_the_round_and_the_first_reason_counts() -> None:
    class Stops(Callback):
        def __init__(self, reason: str, number: int = 2) -> None:
            self._reason, self._number = reason, number

        def round_finished(self, finished: FinishedRound) -> None:
            if finished.number == self._number:
                finished.stop(self._reason)

    diary = Diary()
    result = BASE.run(callbacks=[Stops("seen enough"), Stops("me too"), diary])
    assert result.stop_reason == "seen enough"
    assert same(result, replace(BASE, rounds=2).run())
    assert diary.notes[-2:] == [2, ("finished", result)]
    assert diary.rounds[-1].stop_reason == "seen enough"
    early = replace(BASE, early_stopping=EarlyStopping("test_loss", target=100.0))
    first = early.run(callbacks=[Stops("me too", 0)])
    assert first.rounds == 0
    assert first.stop_reason.startswith("test_loss reached 100 in round 0")


@pytest.mark.usefixtures("_every_round")
@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), ConfigError("mine")])
def test_an_error_of_a_callback_ends_the_run_as_it_is(error: Exception, tmp_path: Path) -> None:
    """In a resumed run too, in whose first round other errors would be the checkpoint's."""
    with pytest.raises(type(error), match="mine"):
        BASE.run(callbacks=[CutAt(2, error)])
    with pytest.raises(type(error), match="mine"):
        BASE.run(directory=tmp_path, callbacks=[CutAt(3, error)])
    with pytest.raises(type(error), match="mine") as caught:
        BASE.run(directory=tmp_path, callbacks=[CutAt(3, error)])
    assert "checkpoint" not in str(caught.value)
    diary = Diary()
    assert same(BASE.run(directory=tmp_path, callbacks=[diary]), BASE.run())
    assert diary.notes[1:-1] == [3, 4, 5, 6]


def test_what_is_no_callback_is_refused_before_the_run() -> None:
    with pytest.raises(
        ConfigError, match=r"an item of callbacks is <function .*; allowed: an object of a class that extends Callb"
    ):
        BASE.run(callbacks=[lambda row: None])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"an item of callbacks is <class .*Diary'>"):
        BASE.run(callbacks=[Diary(), Diary])  # type: ignore[list-item]


def test_rounds_with_too_few_updates_are_reported_once_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    class Fails(SGD):
        def train(self, ctx: Context) -> NDArray[Any]:
            weights = ctx.fit()
            if ctx.round != 2:
                weights[ctx.partition_ids < 2] = np.nan
            return weights

    experiment = replace(BASE, rounds=3, client=Fails(), on_failure="exclude", min_clients=3, seed=5)
    experiment.run()
    name = f"{experiment.client} (seed 5)"
    first, last = capsys.readouterr().err.splitlines()
    assert first == (
        f"fedsim: round 1 of {name} had 2 updates, fewer than min_clients = 3: "
        "the model is unchanged; training diverged in round 1 at client 0 (weights or loss not finite) with "
        f"{experiment.client}; a smaller lr usually helps; Result.failures has all reasons"
    )
    assert last == f"fedsim: 2 of 3 rounds of {name} were rejected and changed nothing"
    replace(experiment, rounds=2).run()
    assert len(capsys.readouterr().err.splitlines()) == 1


# Updates.


class Reader(Callback):
    """Keeps the updates and the model of each round."""

    reads_updates = True

    def __init__(self) -> None:
        self.rounds: list[FinishedRound] = []
        self.updates: list[ClientUpdates] = []
        self.weights: list[dict[str, NDArray[Any]]] = []

    def round_finished(self, finished: FinishedRound) -> None:
        self.rounds.append(finished)
        self.updates.append(finished.updates)
        self.weights.append(finished.weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"fraction_train": 0.5},
        {"kernel": "compiled", "hidden": (64,)},
        {"server": FedAdam(eta=0.05)},
        {"server": FedMedian()},
        {"server": stock.FedAvg},
        {"client": SCAFFOLD(lr=0.1)},
        {"client": FedNova(lr=0.1, epochs=2)},
        {"client": FedPer(lr=0.1)},
        {"transforms": (TopK(0.2),)},
        {"weight_divergence": True, "fraction_evaluate": 1.0, "test_fraction": 0.2},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_reading_updates_changes_no_bit(changes: dict[str, Any]) -> None:
    experiment = replace(replace(BASE, rounds=3, split=Dirichlet(6, alpha=0.5)), **changes)
    reader = Reader()
    observed = experiment.run(callbacks=[reader])
    assert same(observed, experiment.run())
    assert reader.updates[0].partition_ids.tolist() == []
    clients = [len(updates.partition_ids) for updates in reader.updates]
    assert clients == observed.history["clients"].tolist()


def test_the_mean_of_the_updates_is_fedavgs_new_model() -> None:
    reader = Reader()
    experiment = replace(BASE, split=IID(5, sizes=(10, 40, 20, 80, 5)), dtype="float64", fraction_train=0.7)
    experiment.run(callbacks=[reader])
    for model, (ids, examples, weights) in zip(reader.weights[1:], reader.updates[1:], strict=True):
        assert ids.tolist() == sorted(ids)
        assert examples.tolist() == [(10, 40, 20, 80, 5)[client] for client in ids]
        new = np.concatenate([model[name].ravel() for name in ("W1", "b1", "W2", "b2")])
        np.testing.assert_allclose(np.average(weights, axis=0, weights=examples), new, rtol=1e-12, atol=1e-14)


def test_private_parameters_are_in_no_update() -> None:
    """The head is private, and the model that the server has of it never changes."""
    reader = Reader()
    result = replace(BASE, client=FedPer(lr=0.3)).run(callbacks=[reader])
    head = slice(-(result.weights["W2"].size + result.weights["b2"].size), None)
    for updates in reader.updates[1:]:
        assert (updates.weights[:, head] == result.flat_weights[head]).all()


def test_a_rejected_round_has_no_updates() -> None:
    reader = Reader()
    replace(BASE, client=SGD(lr=1e30), on_failure="exclude", rounds=1).run(callbacks=[reader])
    assert reader.rounds[1].rejected == (0, 1)
    assert [len(part) for part in reader.updates[1]] == [0, 0, 0]


def test_updates_are_for_callbacks_that_ask_for_them_and_if_the_server_has_them() -> None:
    diary = Diary()
    replace(BASE, rounds=1).run(callbacks=[diary])
    with pytest.raises(ConfigError, match="a callback that reads them sets reads_updates"):
        _ = diary.rounds[1].updates
    secure = replace(BASE, secure_aggregation=SecureAggregation())
    with pytest.raises(ConfigError, match="callbacks has a Reader, which reads the update of each client, and with"):
        secure.run(callbacks=[Reader()])


class Failures(Callback):
    """Notes the errors of runs."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def run_failed(self, error: BaseException) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("error", [PowerError(), KeyboardInterrupt(), ConfigError("mine")])
def test_callbacks_see_the_error_that_ends_a_run_whichever_it_is(error: BaseException) -> None:
    """That of another callback too, which they may have been called before."""
    first, last = Failures(), Failures()
    with pytest.raises(type(error)):
        BASE.run(callbacks=[first, CutAt(2, error), last])
    assert first.errors == last.errors == [error]


def test_callbacks_see_errors_before_and_after_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsAtTheEnd(Callback):
        def run_finished(self, result: Result) -> None:
            raise PowerError

    failures = Failures()
    with pytest.raises(DataError, match="absent"):
        replace(BASE, dataset="table('absent.csv', label='y')").run(callbacks=[failures])
    with pytest.raises(PowerError):
        BASE.run(callbacks=[failures, FailsAtTheEnd()])
    with pytest.raises(DivergenceError):
        replace(BASE, client=SGD(lr=1e9)).run(callbacks=[failures])
    monkeypatch.setattr(result_files, "write_csv", lambda *_: FailsAtTheEnd().run_finished(_[0]))
    with pytest.raises(PowerError):
        BASE.run(callbacks=[failures], directory=tmp_path)
    assert [type(error) for error in failures.errors] == [DataError, PowerError, DivergenceError, PowerError]
    BASE.run(callbacks=[failures])
    assert len(failures.errors) == 4


def test_callbacks_are_given_the_labels_of_each_run_of_a_study() -> None:
    class Labels(Diary):
        def label_run(self, labels: Mapping[str, str]) -> None:
            self.notes.append(dict(labels))

    labels = Labels()
    axes: Any = {"client": [SGD(lr=0.2), SGD(lr=0.3)], "fraction_train": [0.5]}
    compare(replace(BASE, rounds=1), **axes, seeds=2, callbacks=[labels])
    given = [note for note in labels.notes if isinstance(note, dict)]
    assert given == [{"client": f"SGD(lr={lr})"} for lr in ("0.2", "0.2", "0.3", "0.3")]
    assert [type(note) for note in labels.notes[:2]] == [dict, tuple]  # before run_started
    with pytest.raises(ConfigError, match=r"an item of callbacks is <class .*Diary'>"):
        compare(BASE, callbacks=[Diary])  # type: ignore[list-item]
