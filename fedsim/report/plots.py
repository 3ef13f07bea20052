"""Plots of studies: accuracy by round, client drift by round, and local accuracy against label skew."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.report.intervals import MIN_SEEDS, half_width
from fedsim.report.style import COLOURS, saved_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    #: Label of each variant, and the history of each of its seeds.
    Histories = Sequence[tuple[str, Sequence[pd.DataFrame]]]

#: Axis label of `plot_accuracy`, by evaluation.
SCORES = {
    "test": "test {score} of the global model",
    "local": "{score} of clients' models on their own examples",
}
NAMES = {"accuracy": "accuracy", "r2": "R²"}
#: Why a variant has no line in `plot_accuracy`, by evaluation.
REASONS = {"test": "no global model", "local": "no evaluation by clients"}
#: The panels of `plot_drift`: column of the history -> axis label, smallest and largest possible value.
DRIFTS = {
    "client_drift": ("client drift\n$\\|w_k - w\\|$", 0.0, np.inf),
    "update_cosine": ("cosine between\nclient updates", -1.0, 1.0),
    "gradient_diversity": ("gradient\ndiversity", 1e-9, np.inf),
    "weight_divergence": ("weight\ndivergence", 0.0, np.inf),
}


def plot_accuracy(
    histories: Histories, path: str | os.PathLike[str], data: str, score: str = "accuracy", evaluation: str = "test"
) -> None:
    """Plot accuracy (or R squared) by round: a line per variant (mean over seeds) with its 95 % confidence interval.

    Fewer than three seeds have no interval. Where the seeds of a variant end in different rounds (early stopping), each
    counts with its last value from then on. If there are more variants than colours, the colours are used again with
    dashed lines. Variants without a score have no line and are listed below the axis.

    Parameters
    ----------
    histories : sequence of (str, sequence of DataFrame)
        Label of each variant, and `fedsim.Result.history` of each of its seeds.
    path : path
    data : str
        Description of the data, for the title.
    score : {"accuracy", "r2"}
    evaluation : {"test", "local"}
        Of the global model on the test set, or of the clients' models on their own examples.
    """
    from matplotlib.ticker import MaxNLocator

    with saved_figure(path, 8, 4.6) as figure:
        axes = figure.subplots()
        column = f"{evaluation}_{score}"
        ends = _draw_curves(histories, column, axes, (0, 1))
        heights = _separate([value for value, _, _ in ends], 0.055)
        bold: dict[str, Any] = {"va": "center", "fontweight": "bold", "annotation_clip": False}
        for height, (value, label, colour) in zip(heights, ends, strict=True):
            text, coordinates = f"{label}  {value:.3f}", ("axes fraction", "data")
            axes.annotate(text, (1, height), (8, 0), coordinates, "offset points", color=colour, **bold)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        missing = ", ".join(label for label, seeds in histories if all(h[column].isna().all() for h in seeds))
        note = "\n" + textwrap.fill(f"{REASONS[evaluation]}: {missing}", 100) if missing else ""
        axes.set(xlabel=f"round{note}", ylabel=SCORES[evaluation].format(score=NAMES[score]), ylim=(0, 1))
        axes.set_title(f"Federated learning on {data} ({_describe_seeds(histories)})", fontsize=11, pad=14)


def plot_drift(histories: Histories, path: str | os.PathLike[str], data: str) -> None:
    """Plot client drift by round: a panel per measure, a line per variant with its 95 % confidence interval.

    Parameters
    ----------
    histories : sequence of (str, sequence of DataFrame)
        As of `plot_accuracy`.
    path : path
    data : str
        Description of the data, for the title.
    """
    import pandas as pd
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    measured = pd.concat([history[list(DRIFTS)] for _, seeds in histories for history in seeds])
    known = [column for column in DRIFTS if measured[column].notna().any()]
    rows = max(len(known), 1)
    with saved_figure(path, 8, 1.7 * rows + 1) as figure:
        panels = figure.subplots(rows, 1, sharex=True, squeeze=False).ravel()
        for panel, column in zip(panels, known, strict=False):
            name, *bounds = DRIFTS[column]
            _draw_curves(histories, column, panel, bounds)
            panel.set_ylabel(name, fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column == "gradient_diversity":
                panel.set(yscale="log", ylim=(measured[column].min() / 2, measured[column].max() * 2))
        panels[-1].set_xlabel("round")
        lines = [Line2D([], [], **_line_style(k), label=label) for k, (label, _) in enumerate(histories)]
        figure.legend(handles=lines, loc="outside lower left", frameon=False, ncols=3)
        title = f"Client drift on {data} ({_describe_seeds(histories)})"
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")


def plot_score_by_skew(
    points: Sequence[tuple[str, NDArray[Any]]], path: str | os.PathLike[str], dataset: str, score: str = "accuracy"
) -> None:
    """Plot clients' scores against their label skew: a point per client and seed.

    Parameters
    ----------
    points : sequence of (str, ndarray)
        Label of each variant, and its clients' skew and score, shape (clients, 2). A variant without clients is left
        out.
    path : path
    dataset : str
        Its name.
    score : {"accuracy", "r2"}
    """
    from scipy.stats import spearmanr

    with saved_figure(path, 8, 4.6) as figure:
        axes = figure.subplots()
        for number, (label, pairs) in enumerate(points):
            if not len(pairs):
                continue
            x, y = pairs.T
            varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
            correlation = f", rank correlation {spearmanr(x, y).statistic:+.2f}" if varied else ""
            colour, area = COLOURS[number % len(COLOURS)], np.clip(4000 / len(x), 4, 40)
            axes.scatter(x, y, s=area, color=colour, alpha=0.6, lw=0, label=f"{label}{correlation}")
        axes.set(xlabel="label skew: earth mover's distance between client and population", ylim=(None, 1.02))
        axes.set(ylabel=f"{NAMES[score]} on the client's own examples")
        figure.legend(loc="outside lower left", frameon=False, ncols=2)
        axes.set_title(f"Local {NAMES[score]} against label skew: {dataset}", fontsize=11, pad=14)


def _line_style(number: int) -> dict[str, Any]:
    """Return the line properties of a variant."""
    dashes = "-" if number < len(COLOURS) else "--"
    return {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.8, "linestyle": dashes}


def _draw_curves(
    histories: Histories, column: str, axes: Axes, bounds: Sequence[float]
) -> list[tuple[float, str, str]]:
    """Draw a column of the history by round; return the last value, label and colour of each variant that has it."""
    ends: list[tuple[float, str, str]] = []
    for number, (label, seeds) in enumerate(histories):
        style = _line_style(number)
        longest = max(map(len, seeds))
        curves = np.array([np.pad(history[column], (0, longest - len(history)), mode="edge") for history in seeds])
        if np.isnan(curves).all():
            continue
        rounds, mean = np.arange(curves.shape[1]), curves.mean(axis=0)
        axes.plot(rounds, mean, **style)
        if len(curves) >= MIN_SEEDS:
            half = np.array([half_width(values) for values in curves.T])
            low, high = (np.clip(edge, bounds[0], bounds[1]) for edge in (mean - half, mean + half))
            axes.fill_between(rounds, low, high, color=style["color"], alpha=0.18, lw=0)
        ends.append((float(mean[-1]), label, style["color"]))
    axes.set_xlim(0, max(len(history) for _, seeds in histories for history in seeds) - 1)
    return ends


def _describe_seeds(histories: Histories) -> str:
    counts = [len(seeds) for _, seeds in histories]
    least, most = min(counts), max(counts)
    if most == 1:
        return "one seed"
    mean = f"mean of {most} seeds" if least == most else f"mean of {least} to {most} seeds"
    return f"{mean}, 95 % interval shaded" if most >= MIN_SEEDS else f"{mean}: no interval"


def _separate(values: list[float], gap: float) -> NDArray[np.float64]:
    """Shift values, keeping their order, until neighbours are at least `gap` apart; the largest is at most 1."""
    order = np.argsort(values, kind="stable")
    placed = np.array(values, dtype=float)
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    top = 1.0
    for k in order[::-1]:
        placed[k] = min(placed[k], top)
        top = placed[k] - gap
    return placed
