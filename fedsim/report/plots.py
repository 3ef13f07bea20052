"""Pictures: accuracy by round with its interval, and who holds which labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError
from fedsim.report.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.study import Study

#: Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8c6d00", "#000000")
#: A bar per client is legible up to this many; beyond it, an even sample of clients is drawn.
MOST_BARS = 100
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "svg.hashsalt": "fedsim",
}


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure whole, in the format its name ends in.

    Raises
    ------
    ConfigError
        A format matplotlib does not know.
    """
    file = Path(path)
    kind = file.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"the picture {str(file)!r} ends in {kind!r}; allowed: {', '.join(sorted(known))}")
    write_whole(file, lambda stream: figure.savefig(stream, format=kind, dpi=150))


#: What `plot_accuracy` draws: a column of the history -> what it is.
ACCURACIES = {
    "test_accuracy": "test accuracy of the global model",
    "local_accuracy": "accuracy of what clients use, on their own examples",
}


def plot_accuracy(study: Study, path: str | os.PathLike[str], column: str = "test_accuracy") -> None:
    """Draw an accuracy by round: a line per variant (mean over seeds) with its 95 % band.

    Variants beyond the palette's length have its colours again, in dashed lines.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from fedsim.study import half_width

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        ends: list[tuple[float, str, str]] = []
        final_round = 0
        for number, variant in enumerate(study.variants):
            colour = COLOURS[number % len(COLOURS)]
            curves = np.array([r.history[column] for r in variant.results], dtype=float)
            rounds = np.arange(curves.shape[1])
            mean = curves.mean(axis=0)
            axes.plot(rounds, mean, color=colour, linewidth=1.8, linestyle="--" if number >= len(COLOURS) else "-")
            if len(curves) > 1:
                half = np.array([half_width(column) for column in curves.T])
                axes.fill_between(
                    rounds, np.maximum(mean - half, 0), np.minimum(mean + half, 1), color=colour, alpha=0.18, lw=0
                )
            ends.append((float(mean[-1]), variant.label or "accuracy", colour))
            final_round = max(final_round, len(mean) - 1)
        for place, (value, label, colour) in zip(_spread([e[0] for e in ends], 0.055), ends, strict=True):
            axes.annotate(
                f"{label}  {value:.3f}",
                (final_round, place),
                xytext=(8, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                fontweight="bold",
                annotation_clip=False,
            )
        axes.set_xlim(0, final_round)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1)
        axes.set_xlabel("round")
        axes.set_ylabel(ACCURACIES[column])
        experiment = study.variants[0].results[0].experiment
        name = experiment.dataset if isinstance(experiment.dataset, str) else experiment.dataset.name
        seeds = len(study.variants[0].results)
        band = f"mean of {seeds} seeds, 95 % interval shaded" if seeds > 1 else "one seed"
        axes.set_title(
            f"Federated learning on {name}, {experiment.split.num_clients} clients ({band})", fontsize=11, pad=14
        )
        save(figure, path)


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


def plot_splits(counts: Mapping[str, NDArray[Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw who holds which labels: a panel per split, a bar per client, a colour per label.

    Parameters
    ----------
    counts : mapping of str to ndarray, shape (clients, classes)
        Split's label -> examples of each label that each client holds.
    path : path
    title : str
    """
    import matplotlib
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = (len(counts) + 1) // 2
    columns = 1 if len(counts) == 1 else 2
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(4.8 * columns if columns > 1 else 8, 2.5 * rows + 0.8), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[len(counts) :]:
            panel.set_axis_off()
        classes = max(table.shape[1] for table in counts.values())
        colours = matplotlib.colormaps["tab10" if classes <= 10 else "turbo"]
        for panel, (label, table) in zip(panels, counts.items(), strict=False):
            chosen = np.unique(np.linspace(0, len(table) - 1, min(len(table), MOST_BARS)).astype(int))
            # Clients are drawn in order of the label they hold most, so that skew shows as blocks of colour.
            shown = table[chosen]
            shown = shown[np.lexsort((-shown.max(axis=1), shown.argmax(axis=1)))]
            # Stacked steps, one polygon a label: a hundred times fewer shapes than a bar per client and label.
            tops = np.cumsum(np.column_stack([np.zeros(len(shown), dtype=int), shown]), axis=1)
            tops = np.vstack([tops, tops[-1:]])
            edges = np.arange(len(tops)) - 0.5
            for k in range(table.shape[1]):
                colour = colours(k) if classes <= 10 else colours(k / (classes - 1))
                panel.fill_between(edges, tops[:, k], tops[:, k + 1], step="post", color=colour, lw=0, label=str(k))
            held = (table > 0).sum(axis=1)
            panel.set_title(f"{label}: {held.mean():.1f} labels per client", fontsize=10)
            panel.set_xlim(-0.5, len(shown) - 0.5)
            some = "" if len(shown) == len(table) else f" (100 of {len(table)})"
            panel.set_xlabel(f"clients{some}")
            panel.set_ylabel("examples")
            panel.set_xticks([])
        if classes <= 20:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, title="label", loc="outside right center", frameon=False)
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        save(figure, path)
