"""What several test files use."""

from __future__ import annotations

import os

import numpy as np

from fedsim.study.experiment import Result


def same(a: Result, b: Result) -> bool:
    """Whether two results have the same bits: weights and history but for the clock."""
    weights = all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights)
    history = a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))
    return weights and history and a.clients.equals(b.clients)


def cases(usual: int) -> int:
    """How many cases a search tries: the usual number, or ``$FEDSIM_FUZZ``."""
    return int(os.environ.get("FEDSIM_FUZZ", usual))
