"""The time of a round on one thread, by part: local training, aggregation, and Python."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from benchmarks.jobs import ARTICLE, TWO_NN, Job, fedsim_rounds
from benchmarks.measure import median
from fedsim.kernels import compiled
from fedsim.kernels.compiled import kernel

JOBS = {"article MLP, 100 clients": ARTICLE, "2NN, 10 clients": TWO_NN}
#: Part of a round -> module and name of the compiled kernel's function.
PARTS = {"local training": (kernel, "train"), "aggregation": (compiled, "add_weighted")}


def measure(samples: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of a round by job and part; ``the rest`` is Python: messages, sampling, blocks."""
    return {name: _measure(job, samples) for name, job in JOBS.items()}


def _measure(job: Job, samples: int) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent[part] += time.perf_counter() - started
            return result

        return call

    rounds: dict[str, list[float]] = defaultdict(list)
    with fedsim_rounds(job, workers=1) as step, ExitStack() as stack:
        for part, (module, name) in PARTS.items():
            stack.enter_context(patch.object(module, name, timed(part, getattr(module, name))))
        for _ in range(10 * samples):
            spent.clear()
            started = time.perf_counter()
            step()
            whole = time.perf_counter() - started
            for part in PARTS:
                rounds[part].append(spent[part])
            rounds["the rest"].append(whole - sum(spent.values()))
    return {part: median(taken) for part, taken in rounds.items()}
