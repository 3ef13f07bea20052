"""Progress bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

from fedsim.study.callbacks import Callback, FinishedRound

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment


class ProgressBar(Callback):
    """Shows the rounds of one or several runs and the latest score; a context manager.

    Parameters
    ----------
    rounds : int
        Number of rounds of all runs together.
    show : bool, optional
        Default: only on a terminal.
    leave : bool
        Leave the bar on the terminal at the end.
    """

    def __init__(self, rounds: int, show: bool | None = None, leave: bool = True) -> None:
        self._bar = tqdm(total=rounds, unit="round", disable=None if show is None else not show, leave=leave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def describe(self, run: str) -> None:
        """Show the name of a run."""
        self._bar.set_description(run)

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Count the rounds that a resumed run has already finished."""
        if len(history) > 1:
            self.add(len(history) - 1, history[-1])

    def round_finished(self, finished: FinishedRound) -> None:
        """Count the round, and show its score."""
        if finished.number:
            self.add(1, finished.metrics)

    def add(self, rounds: int, metrics: Mapping[str, float]) -> None:
        """Count rounds; show the last test score, or the clients' score if there is no global model."""
        self._bar.update(rounds)
        score = "accuracy" if "test_accuracy" in metrics else "r2"
        value = metrics[f"test_{score}"]
        if math.isnan(value):
            value, score = metrics.get(f"local_{score}", math.nan), f"local {score}"
        if not math.isnan(value):
            self._bar.set_postfix({score: f"{value:.3f}"})
