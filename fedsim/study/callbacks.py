"""Callbacks, which observe a run and may end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit, check_methods
from fedsim.checks import Interval, check_choice, check_fields, check_instance
from fedsim.errors import ConfigError
from fedsim.models.metrics import METRICS

if TYPE_CHECKING:
    from fedsim.clients.task import Update
    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result


class ClientUpdates(NamedTuple):
    """The updates of a round that were aggregated, by rising partition id.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    weights : ndarray, shape (clients, parameters)
        Each client's weights after local training, as the server received them.
    """

    partition_ids: NDArray[np.intp]
    num_examples: NDArray[np.intp]
    weights: NDArray[Any]


@dataclass(eq=False)
class FinishedRound:
    """An evaluated round, which callbacks are given.

    Attributes
    ----------
    number : int
        0 for the untrained model.
    metrics : dict of str to float
        The round's row of `Result.history`.
    failures : dict of int to str
        Partition id -> reason, for clients that were excluded.
    rejected : tuple of two int, optional
        Of a round that was not accepted: the number of its updates, and the number required. Under secure aggregation
        there may be enough updates, and too few clients left to recover their sum.
    stop_reason : str
        Why the run ends after this round; empty if it continues.
    """

    number: int
    metrics: Mapping[str, float]
    failures: Mapping[int, str]
    rejected: tuple[int, int] | None
    _weights: Callable[[], dict[str, NDArray[Any]]]
    stop_reason: str = ""
    _updates: Sequence[Update] | None = None

    @property
    def updates(self) -> ClientUpdates:
        """Copies of the updates of the round; there are none after a rejected round, and in round 0.

        Raises
        ------
        ConfigError
            No callback of the run has `Callback.reads_updates` set.
        """
        if self._updates is None:
            raise ConfigError("the updates of this round were not kept; a callback that reads them sets reads_updates")
        columns = [[getattr(part, name) for part in self._updates] for name in ClientUpdates._fields]
        if not self._updates:
            return ClientUpdates(np.empty(0, np.intp), np.empty(0, np.intp), np.empty((0, 0)))
        ids, examples, weights = map(np.concatenate, columns)
        order = np.argsort(ids)
        return ClientUpdates(ids[order], examples[order], weights[order])

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """A copy of the weights of the global model, as in `Result.weights`."""
        return self._weights()

    def stop(self, reason: str) -> None:
        """End the run after this round; its result has the rounds so far and the reason."""
        self.stop_reason = self.stop_reason or reason


class Callback:
    """Observes a run. Subclasses override the methods that they need; exceptions end the run.

    Attributes
    ----------
    reads_updates : bool
        Whether the callback reads `FinishedRound.updates`, for which the server keeps the weights of the whole cohort
        during a round. Results have the same bits.
    passive : bool
        Whether the callback only observes: it never ends a run and keeps nothing between runs. Runs whose callbacks are
        all passive may go to worker processes.
    """

    reads_updates: bool = False
    passive: bool = False

    def label_run(self, labels: Mapping[str, str]) -> None:
        """Observe the labels of a study's run, which starts next: the names of its axes and of their values."""

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Observe the start of a run.

        Parameters
        ----------
        experiment : Experiment
        history : sequence of mapping
            Rows of the rounds that a resumed run has already finished; empty for a new run.
        """

    def round_finished(self, finished: FinishedRound) -> None:
        """Observe a round after its model has been evaluated; round 0 is the untrained model."""

    def run_finished(self, result: Result) -> None:
        """Observe the result of a run that was not interrupted."""

    def run_failed(self, error: BaseException) -> None:
        """Observe the error that ends a run, such as DivergenceError, KeyboardInterrupt or that of another callback.

        The run may have failed before `run_started`, and after `run_finished` of this callback.
        """


def check_callbacks(callbacks: Any) -> None:
    """Raise ConfigError unless `callbacks` is a list of objects of classes that extend `Callback`."""
    check_instance("callbacks", callbacks, list | tuple, "a list of callbacks")
    for callback in callbacks:
        check_instance("an item of callbacks", callback, Callback, "an object of a class that extends Callback")
        check_methods(callback)


#: Metrics of `EarlyStopping`, besides those of `Experiment.metrics`. Losses should fall, scores should rise.
COLUMNS = ("test_loss", "test_accuracy", "test_r2", "train_loss", "local_loss", "local_accuracy", "local_r2")
#: All metrics of `EarlyStopping` -> whether they should rise.
RISING = {name: not name.endswith("loss") for name in COLUMNS} | {
    f"test_{name}": metric.rises for name, metric in METRICS.items() if not metric.axes
}


@dataclass(frozen=True)
class EarlyStopping(CheckedInit, Callback):
    """Ends a run when a metric has reached a target, or has not improved for some rounds.

    Parameters
    ----------
    metric : str
        A column of `Result.history`: a loss, which should fall, an accuracy or R squared, which should rise, or one of
        fedsim's metrics in `Experiment.metrics`, such as ``"test_macro_f1"``.
    target : float, optional
        Stop once the metric is as good as this.
    patience : int, optional
        Stop after this number of rounds without a new best value, at least 1. NaN is never a new best value.

    Raises
    ------
    ConfigError
        Neither target nor patience is given, or a value is not allowed.
    """

    limits: ClassVar[Mapping[str, Interval]] = {"target": Interval(), "patience": Interval(1)}
    metric: str = "test_accuracy"
    target: float | None = None
    patience: int | None = None
    _best: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("EarlyStopping's metric", self.metric, RISING)
        if self.target is None and self.patience is None:
            raise ConfigError("EarlyStopping has neither target nor patience; allowed: one of them, or both")

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Start with the rounds that have been finished."""
        self._best.clear()
        for row in history:
            self._add(row)

    @property
    def _sign(self) -> int:
        """The factor that makes larger values better."""
        return 1 if RISING[self.metric] else -1

    def _add(self, row: Mapping[str, float]) -> float:
        """Add the best value so far to the list of best values; return the round's value. Larger is better in both."""
        if self.metric not in row:
            columns = ", ".join(name for name in RISING if name in row)
            raise ConfigError(f"EarlyStopping's metric is {self.metric!r}; this experiment has {columns}")
        value = self._sign * row[self.metric]
        before = self._best[-1] if self._best else -math.inf
        self._best.append(max(before, value))  # NaN is not larger than anything
        return value

    def round_finished(self, finished: FinishedRound) -> None:
        """Stop if the target is reached, or after `patience` rounds without a new best value."""
        value = self._add(finished.metrics)
        if self.target is not None and value >= self._sign * self.target:
            reached = f"{finished.metrics[self.metric]:.4g}"
            finished.stop(f"{self.metric} reached {self.target:g} in round {finished.number}: {reached}")
        rounds, best = self.patience, self._best
        if rounds is not None and len(best) > rounds and best[-1] == best[-1 - rounds] > -math.inf:
            finished.stop(
                f"{self.metric} has not improved for {rounds} rounds; the best was {self._sign * best[-1]:.4g}"
            )
