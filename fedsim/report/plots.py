"""Pictures of studies: accuracy by round, how far clients went apart, and who is served how well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data
from fedsim.report.intervals import half_width
from fedsim.report.style import COLOURS, STYLE, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedsim.study.compare import Study

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


def plot_accuracy(study: Study, path: str | os.PathLike[str], whose: str = "test") -> None:
    """Draw accuracy (or R squared) by round: a line per variant (mean over seeds) with its 95 % band.

    Variants beyond the palette's length have its colours again, in dashed lines.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        ends = _curves(study, f"{whose}_{study.score}", axes, (0, 1))
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
        axes.set_ylabel(SCORES[whose].format(score=NAMES[study.score]))
        axes.set_title(f"Federated learning on {_about(study)}", fontsize=11, pad=14)
        save(figure, path)


def plot_drift(study: Study, path: str | os.PathLike[str]) -> None:
    """Draw how far clients went apart by round: a panel per measure, a line per variant with its 95 % band."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    rounds = study.rounds()
    known = [column for column in DRIFTS if rounds[column].notna().any()]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.7 * max(len(known), 1) + 1), layout="constrained")
        panels = figure.subplots(max(len(known), 1), 1, sharex=True, squeeze=False).ravel()
        for panel, column in zip(panels, known, strict=False):
            name, *bounds = DRIFTS[column]
            _curves(study, column, panel, bounds)
            panel.set_ylabel(name, fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column == "gradient_diversity":
                panel.set_yscale("log")
                panel.set_ylim(rounds[column].min() / 2, rounds[column].max() * 2)
        panels[-1].set_xlabel("round")
        lines = [Line2D([], [], **_line(k), label=v.label or "all") for k, v in enumerate(study.variants)]
        figure.legend(handles=lines, loc="outside lower left", frameon=False, ncols=3)
        figure.suptitle(
            f"How far clients go apart on {_about(study)}", fontsize=11, fontweight="bold", x=0.01, ha="left"
        )
        save(figure, path)


def plot_score_by_skew(study: Study, path: str | os.PathLike[str]) -> None:
    """Draw each client's score in the last evaluated round against its label skew: a point per client and seed.

    Raises
    ------
    ConfigError
        No client evaluated.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from scipy.stats import spearmanr

    from fedsim.splits.measure import skew

    study.need_evaluation()
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, variant in enumerate(study.variants):
            found = []
            for result in variant.results:
                held = result.experiment.federate(result.experiment.load_data())
                emd = skew(held).set_index("client")["emd"]
                last = result.clients[result.clients["round"] == result.clients["round"].max()]
                found.append(np.column_stack([emd.reindex(last["partition_id"]), last[study.score]]))
            x, y = np.concatenate(found).T
            varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
            correlation = f", rank correlation {spearmanr(x, y).statistic:+.2f}" if varied else ""
            axes.scatter(
                x,
                y,
                s=np.clip(4000 / len(x), 4, 40),
                color=COLOURS[number % len(COLOURS)],
                alpha=0.6,
                lw=0,
                label=f"{variant.label or 'all'}{correlation}",
            )
        axes.set_xlabel("label skew of the client: earth mover's distance to the population")
        axes.set_ylabel(f"{NAMES[study.score]} on the client's own examples")
        axes.set_ylim(top=1.02)
        figure.legend(loc="outside lower left", frameon=False, ncols=2)
        axes.set_title(f"Who is served how well on {_name(study)}", fontsize=11, pad=14)
        save(figure, path)


def _line(number: int) -> dict[str, Any]:
    """Return how the line of a variant looks."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linewidth": 1.8,
        "linestyle": "-" if number < len(COLOURS) else "--",
    }


def _curves(study: Study, column: str, axes: Axes, bounds: Sequence[float]) -> list[tuple[float, str, str]]:
    """Draw a column of the history by round; return each variant's last value, label and colour."""
    ends: list[tuple[float, str, str]] = []
    for number, variant in enumerate(study.variants):
        style = _line(number)
        curves = np.array([r.history[column] for r in variant.results], dtype=float)
        rounds, mean = np.arange(curves.shape[1]), curves.mean(axis=0)
        axes.plot(rounds, mean, **style)
        if len(curves) > 1:
            half = np.array([half_width(values) for values in curves.T])
            low, high = (np.clip(edge, bounds[0], bounds[1]) for edge in (mean - half, mean + half))
            axes.fill_between(rounds, low, high, color=style["color"], alpha=0.18, lw=0)
        ends.append((float(mean[-1]), variant.label or "all", style["color"]))
    axes.set_xlim(0, max(len(v.results[0].history) for v in study.variants) - 1)
    return ends


def _name(study: Study) -> str:
    """Name the data of a study."""
    dataset = study.variants[0].results[0].experiment.dataset
    return data.title(dataset) if isinstance(dataset, str) else dataset.name


def _about(study: Study) -> str:
    """Name the data, the clients and the seeds of a study."""
    counts = {getattr(v.results[0].experiment.split, "num_clients", None) for v in study.variants}
    clients = next(iter(counts)) if len(counts) == 1 else None
    among = f", {clients} clients" if clients else ""
    seeds = len(study.variants[0].results)
    return f"{_name(study)}{among} ({f'mean of {seeds} seeds, 95 % interval shaded' if seeds > 1 else 'one seed'})"


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
