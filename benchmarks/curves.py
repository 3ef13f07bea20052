"""Scaling curves: speed, or memory, as a function of one quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.jobs import ARTICLE, TWO_NN, Job, fedsim_rounds
from benchmarks.measure import median, peak_memory, take_turns
from fedsim.engines.workers import available_cores

#: Curve -> (quantity, unit of speed, [(value, job, workers)]).
CURVES: dict[str, tuple[str, str, Sequence[tuple[int, Job, int | None]]]] = {
    "curve-cohort": (
        "clients per round (article MLP)",
        "clients per second",
        [(n, replace(ARTICLE, registered=1_000, cohort=n), None) for n in (1, 10, 100, 1_000)],
    ),
    "curve-registered": (
        "registered clients (article MLP, 1,000 sampled)",
        "clients per second",
        [
            (n, Job(ARTICLE.sizes, n, 1_000, examples=10, distinct=5_000), None)
            for n in (1_000, 10_000, 100_000, 1_000_000)
        ],
    ),
    "curve-width": (
        "hidden width (784-n-n-10, batch 10)",
        "GFLOP/s",
        [(n, replace(TWO_NN, sizes=(784, n, n, 10), examples=100), None) for n in (16, 64, 200, 400, 800)],
    ),
    "curve-batch": (
        "batch size (2NN)",
        "GFLOP/s",
        [(n, replace(TWO_NN, batch=n), None) for n in (1, 2, 5, 10, 50, 100, 600)],
    ),
    "curve-threads": (
        "threads (2NN, batch 10)",
        "GFLOP/s",
        [(n, TWO_NN, n) for n in range(1, available_cores() + 1)],
    ),
}
#: Name of the curve of memory.
MEMORY = "curve-memory"


def measure(name: str, samples: int) -> dict[str, Any]:
    """Measure the points of one curve, each `samples` times.

    Returns
    -------
    dict
        ``quantity``, ``unit``, and ``points``: value, median speed, lowest and highest.
    """
    if name == MEMORY:
        return _memory(samples)
    quantity, unit, jobs = CURVES[name]
    points = []
    for value, job, workers in jobs:
        with fedsim_rounds(job, workers) as step:
            seconds = take_turns({"fedsim": step}, samples)["fedsim"]
        work = job.flops / 1e9 if unit == "GFLOP/s" else job.cohort
        points.append([value, work / median(seconds), work / max(seconds), work / min(seconds)])
    return {"quantity": quantity, "unit": unit, "points": points}


def _memory(samples: int) -> dict[str, Any]:
    """Measure the peak memory of fresh processes by cohort."""
    points = []
    for cohort in (1, 10, 100, 1_000, 10_000):
        taken = [peak_memory(cohort) / 1e6 for _ in range(min(samples, 3))]
        points.append([cohort, median(taken), min(taken), max(taken)])
    return {"quantity": "clients per round (2NN, 10,000 registered)", "unit": "MB at peak", "points": points}


def plot(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot the curves, one panel each."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    from fedsim.report.style import COLOURS, saved_figure

    def short(value: float, _: object) -> str:
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"

    with saved_figure(path, 10, 5.6) as figure:
        panels = figure.subplots(2, -(-len(curves) // 2))
        for panel, curve, colour in zip(panels.flat, curves.values(), COLOURS, strict=False):
            value, middle, low, high = zip(*curve["points"], strict=True)
            title, _, setting = curve["quantity"].partition(" (")
            panel.fill_between(value, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.plot(value, middle, "o-", color=colour, markersize=4)
            panel.set_title(f"by {title}", fontsize=10)
            panel.set_xlabel(setting.rstrip(")"), fontsize=9)
            panel.set_ylabel(curve["unit"], fontsize=9)
            panel.set_ylim(0)
            panel.yaxis.set_major_formatter(FuncFormatter(short))
            if max(value) > 10:
                panel.set_xscale("log")
                panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticks(value, [short(v, None) for v in value])
