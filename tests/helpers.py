"""What several test files use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result


class OnRound(Callback):
    """Calls a function with each row of the history, those of a resumed run first."""

    def __init__(self, function: Callable[[Mapping[str, float]], Any]) -> None:
        self._function = function

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        for row in history:
            self._function(row)

    def round_finished(self, finished: FinishedRound) -> None:
        self._function(finished.metrics)


def mean_margin(y: NDArray[Any], scores: NDArray[Any]) -> float:
    """A metric of one's own: the mean score of the label, minus the mean of all scores."""
    return float(scores[np.arange(len(y)), y].mean() - scores.mean())


def same(a: Result, b: Result) -> bool:
    """Whether two results have the same bits: weights and history but for the clock."""
    weights = all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights)
    timings = ["seconds", "secure_seconds"]
    history = a.history.drop(columns=timings).equals(b.history.drop(columns=timings))
    frames = all(getattr(a, name).equals(getattr(b, name)) for name in ("clients", "groups", "metrics"))
    return weights and history and frames


def cases(usual: int) -> int:
    """How many cases a search tries: the usual number, or ``$FEDSIM_FUZZ``."""
    return int(os.environ.get("FEDSIM_FUZZ", usual))
