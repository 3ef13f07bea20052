"""Pictures of studies: accuracy by round, how far clients went apart, and who is served how well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.report.intervals import half_width
from fedsim.report.style import COLOURS, STYLE, save

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    #: Label of each variant, and the history of each of its seeds.
    Histories = Sequence[tuple[str, Sequence[pd.DataFrame]]]

#: What `plot_accuracy` draws: whose score -> what it is.
SCORES = {
    "test": "test {score} of the global model",
    "local": "{score} of what clients use, on their own examples",
}
#: What a score is called.
NAMES = {"accuracy": "accuracy", "r2": "R²"}
#: What `plot_drift` draws: a column of the history -> what it is, and the least and the most that it can be.
DRIFTS = {
    "client_drift": ("client drift\n$\\|w_k - w\\|$", 0.0, np.inf),
    "update_cosine": ("cosine between\nclient updates", -1.0, 1.0),
    "gradient_diversity": ("gradient\ndiversity", 1e-9, np.inf),
    "weight_divergence": ("weight\ndivergence", 0.0, np.inf),
}


def plot_accuracy(
    histories: Histories, path: str | os.PathLike[str], about: str, score: str = "accuracy", whose: str = "test"
) -> None:
    """Draw accuracy (or R squared) by round: a line per variant (mean over seeds) with its 95 % band.

    Variants beyond the palette's length have its colours again, in dashed lines.

    Parameters
    ----------
    histories : sequence of (str, sequence of DataFrame)
        Label of each variant, and `fedsim.Result.history` of each of its seeds.
    path : path
    about : str
        The data, for the title.
    score : {"accuracy", "r2"}
    whose : {"test", "local"}
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        ends = _curves(histories, f"{whose}_{score}", axes, (0, 1))
        for place, (value, label, colour) in zip(_spread([e[0] for e in ends], 0.055), ends, strict=True):
            axes.annotate(
                f"{label}  {value:.3f}",
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                fontweight="bold",
                annotation_clip=False,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1)
        axes.set_xlabel("round")
        axes.set_ylabel(SCORES[whose].format(score=NAMES[score]))
        axes.set_title(f"Federated learning on {about} ({_seeds(histories)})", fontsize=11, pad=14)
        save(figure, path)


def plot_drift(histories: Histories, path: str | os.PathLike[str], about: str) -> None:
    """Draw client drift by round: a panel per measure, a line per variant with its 95 % band.

    Parameters
    ----------
    histories : sequence of (str, sequence of DataFrame)
        As of `plot_accuracy`.
    path : path
    about : str
        The data, for the title.
    """
    import pandas as pd
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    rounds = pd.concat([history[list(DRIFTS)] for _, seeds in histories for history in seeds])
    known = [column for column in DRIFTS if rounds[column].notna().any()]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.7 * max(len(known), 1) + 1), layout="constrained")
        panels = figure.subplots(max(len(known), 1), 1, sharex=True, squeeze=False).ravel()
        for panel, column in zip(panels, known, strict=False):
            name, *bounds = DRIFTS[column]
            _curves(histories, column, panel, bounds)
            panel.set_ylabel(name, fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column == "gradient_diversity":
                panel.set_yscale("log")
                panel.set_ylim(rounds[column].min() / 2, rounds[column].max() * 2)
        panels[-1].set_xlabel("round")
        lines = [Line2D([], [], **_line(k), label=label) for k, (label, _) in enumerate(histories)]
        figure.legend(handles=lines, loc="outside lower left", frameon=False, ncols=3)
        title = f"How far clients go apart on {about} ({_seeds(histories)})"
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        save(figure, path)


def plot_score_by_skew(
    points: Sequence[tuple[str, NDArray[Any]]], path: str | os.PathLike[str], dataset: str, score: str = "accuracy"
) -> None:
    """Draw clients' scores against their label skew: a point per client and seed.

    Parameters
    ----------
    points : sequence of (str, ndarray)
        Label of each variant, and its clients' skew and score, shape (clients, 2).
    path : path
    dataset : str
        Its name.
    score : {"accuracy", "r2"}
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from scipy.stats import spearmanr

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, (label, found) in enumerate(points):
            x, y = found.T
            varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
            correlation = f", rank correlation {spearmanr(x, y).statistic:+.2f}" if varied else ""
            axes.scatter(
                x,
                y,
                s=np.clip(4000 / len(x), 4, 40),
                color=COLOURS[number % len(COLOURS)],
                alpha=0.6,
                lw=0,
                label=f"{label}{correlation}",
            )
        axes.set_xlabel("label skew of the client: earth mover's distance to the population")
        axes.set_ylabel(f"{NAMES[score]} on the client's own examples")
        axes.set_ylim(top=1.02)
        figure.legend(loc="outside lower left", frameon=False, ncols=2)
        axes.set_title(f"Who is served how well on {dataset}", fontsize=11, pad=14)
        save(figure, path)


def _line(number: int) -> dict[str, Any]:
    """Return how the line of a variant looks."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linewidth": 1.8,
        "linestyle": "-" if number < len(COLOURS) else "--",
    }


def _curves(histories: Histories, column: str, axes: Axes, bounds: Sequence[float]) -> list[tuple[float, str, str]]:
    """Draw a column of the history by round; return each variant's last value, label and colour."""
    ends: list[tuple[float, str, str]] = []
    for number, (label, seeds) in enumerate(histories):
        style = _line(number)
        curves = np.array([history[column] for history in seeds], dtype=float)
        rounds, mean = np.arange(curves.shape[1]), curves.mean(axis=0)
        axes.plot(rounds, mean, **style)
        if len(curves) > 1:
            half = np.array([half_width(values) for values in curves.T])
            low, high = (np.clip(edge, bounds[0], bounds[1]) for edge in (mean - half, mean + half))
            axes.fill_between(rounds, low, high, color=style["color"], alpha=0.18, lw=0)
        ends.append((float(mean[-1]), label, style["color"]))
    axes.set_xlim(0, max(len(seeds[0]) for _, seeds in histories) - 1)
    return ends


def _seeds(histories: Histories) -> str:
    """Say how many seeds there are, and what is drawn of them."""
    seeds = len(histories[0][1])
    return f"mean of {seeds} seeds, 95 % interval shaded" if seeds > 1 else "one seed"


def _spread(values: list[float], gap: float) -> NDArray[np.float64]:
    """Move values apart, keeping their order, until neighbours are at least `gap` apart within [0, 1]."""
    order = np.argsort(values, kind="stable")
    placed = np.array(values, dtype=float)
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    top = 1.0
    for k in order[::-1]:
        placed[k] = min(placed[k], top)
        top = placed[k] - gap
    return placed
