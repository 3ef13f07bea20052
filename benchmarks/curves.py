"""Scaling curves: how speed changes with one quantity at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.jobs import ARTICLE, TWO_NN, Job, fedsim_rounds
from benchmarks.measure import median, take_turns
from fedsim.engines.in_process import available_cores

#: Curve -> (quantity, unit of speed, [(value, job, workers)]).
CURVES: dict[str, tuple[str, str, Sequence[tuple[int, Job, int | None]]]] = {
    "curve-cohort": (
        "clients per round (article MLP)",
        "clients per second",
        [(n, replace(ARTICLE, registered=1_000, cohort=n), None) for n in (1, 10, 100, 1_000)],
    ),
    "curve-registered": (
        "registered clients (1,000 sampled)",
        "clients per second",
        [
            (n, Job((20, 50, 10), n, 1_000, examples=5, distinct=5_000), None)
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


def measure(name: str, samples: int) -> dict[str, Any]:
    """Measure one curve: its points one after another, each `samples` times.

    Returns
    -------
    dict
        ``quantity``, ``unit``, and ``points``: value, median speed, lowest and highest.
    """
    quantity, unit, jobs = CURVES[name]
    points = []
    for value, job, workers in jobs:
        with fedsim_rounds(job, workers) as step:
            seconds = take_turns({"fedsim": step}, samples)["fedsim"]
        work = job.flops / 1e9 if unit == "GFLOP/s" else job.cohort
        points.append([value, work / median(seconds), work / max(seconds), work / min(seconds)])
    return {"quantity": quantity, "unit": unit, "points": points}


def plot(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the curves, a panel each."""
    import matplotlib.pyplot as plt

    from fedsim.report.plots import COLOURS, STYLE, save

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(curves), figsize=(3.1 * len(curves), 2.9), layout="constrained")
        for panel, curve, colour in zip(
            [panels] if len(curves) == 1 else panels, curves.values(), COLOURS, strict=False
        ):
            value, middle, low, high = zip(*curve["points"], strict=True)
            panel.fill_between(value, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.plot(value, middle, "o-", color=colour, markersize=4)
            panel.set_title(curve["quantity"].partition(" (")[0], fontsize=10)
            panel.set_xlabel(curve["quantity"].partition(" (")[2].rstrip(")") or " ", fontsize=8)
            panel.set_ylabel(curve["unit"], fontsize=8)
            panel.set_ylim(0)
            if max(value) > 10:
                panel.set_xscale("log")
            else:
                panel.set_xticks(value)
        save(figure, path)
        plt.close(figure)
