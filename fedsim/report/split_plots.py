"""Plots of splits: the label distribution and the number of examples of each client."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice
from fedsim.report.style import COLOURS, saved_figure
from fedsim.splits.measure import gini

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The kinds of plot that `plot_splits` makes.
KINDS = ("bars", "bubbles", "sizes")


def plot_splits(
    counts: Mapping[str, NDArray[Any]],
    path: str | os.PathLike[str],
    dataset: str,
    kind: str = "bars",
    label_names: Sequence[str] = (),
) -> None:
    """Plot the label distribution or the number of examples per client: a panel per split.

    Parameters
    ----------
    counts : mapping of str to ndarray, shape (clients, classes)
        Split's label -> number of examples by client and label.
    path : path
    dataset : str
        Its name.
    kind : {"bars", "bubbles", "sizes"}
        A stacked bar per client with a colour per label; a bubble per client and label; a histogram of the clients'
        numbers of examples.
    label_names : sequence of str
        At least as many as the largest number of classes; default "0", "1", ...
    """
    check_choice("kind", kind, KINDS)
    classes = max(table.shape[1] for table in counts.values())
    names = list(label_names) or [str(k) for k in range(classes)]
    draw = {"bars": _bars, "bubbles": _bubbles, "sizes": _sizes}[kind]
    rows = (len(counts) + 1) // 2
    columns = 1 if len(counts) == 1 else 2
    with saved_figure(path, 4.8 * columns if columns > 1 else 8, 2.6 * rows + 0.8) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[len(counts) :]:
            panel.set_axis_off()
        for panel, (label, table) in zip(panels, counts.items(), strict=False):
            labels = f"{(table > 0).sum(axis=1).mean():.1f} labels per client"
            measure = f"Gini {gini(table.sum(axis=1)):.2f}" if kind == "sizes" else labels
            panel.set_title(f"{label}: {measure}", fontsize=10)
            panel.grid(False)
            draw(panel, table, names)
        if kind == "bars" and classes <= 20:
            widest = max(panels, key=lambda panel: len(panel.collections))
            figure.legend(handles=widest.collections, title="label", loc="outside right center", frameon=False)
        title = "Examples per client" if kind == "sizes" else "Label distribution per client"
        figure.suptitle(f"{title}: {dataset}", fontsize=11, fontweight="bold", x=0.01, ha="left")


def _sample(table: NDArray[Any], most: int) -> NDArray[Any]:
    """Return an even sample of at most so many clients, sorted by their most frequent label."""
    shown = table[np.linspace(0, len(table) - 1, min(len(table), most)).astype(int)]
    return shown[np.lexsort((-shown.max(axis=1), shown.argmax(axis=1)))]


def _clients_axis(panel: Axes, shown: int, clients: int) -> None:
    label = "clients" if shown == clients else f"clients ({shown} of {clients:,})"
    panel.set(xlim=(-0.5, shown - 0.5), xlabel=label, xticks=[])


def _bars(panel: Axes, table: NDArray[Any], names: Sequence[str]) -> None:
    import matplotlib

    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"]
    shown = _sample(table, 100)
    # Stacked steps, one polygon per label: a hundred times fewer shapes than a bar per client and label.
    tops = np.cumsum(np.column_stack([np.zeros(len(shown), dtype=int), shown]), axis=1)
    tops = np.vstack([tops, tops[-1:]])
    edges = np.arange(len(tops)) - 0.5
    for k in range(table.shape[1]):
        colour = colours(k if len(names) <= 10 else k / (len(names) - 1))
        panel.fill_between(edges, tops[:, k], tops[:, k + 1], step="post", color=colour, lw=0, label=names[k])
    _clients_axis(panel, len(shown), len(table))
    panel.set_ylabel("examples")


def _bubbles(panel: Axes, table: NDArray[Any], names: Sequence[str]) -> None:
    shown = _sample(table, 60)
    client, label = np.nonzero(shown)
    examples = shown[client, label]
    # The largest bubble fills a cell of the panel, which is about 4 inches wide and 2 high.
    width = min(72 * 4 / len(shown), 72 * 1.7 / table.shape[1])
    area = np.maximum(width**2 * examples / examples.max(), 0.5)
    panel.scatter(client, label, s=area, color=COLOURS[0], alpha=0.8, lw=0)
    _clients_axis(panel, len(shown), len(table))
    step = -(-table.shape[1] // 12)
    panel.set_yticks(range(0, table.shape[1], step), [str(n)[:14] for n in names[: table.shape[1] : step]], fontsize=8)
    panel.set(ylim=(-0.7, table.shape[1] - 0.3), ylabel="label")


def _sizes(panel: Axes, table: NDArray[Any], names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    sizes = table.sum(axis=1)
    low, high = int(sizes.min()), int(sizes.max())
    step = max(1, (high - low) // 25)
    bins = np.arange(low, high + step + 1, step) - 0.5
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if 0 < 20 * low < high:
        bins = np.geomspace(low, high + 1, 25)
        panel.set_xscale("log")
        ticks = [float(f"{size:.1g}") for size in np.geomspace(low, high, 5)]
        panel.set_xticks(ticks, [f"{size:,.0f}" for size in ticks])
        panel.minorticks_off()
    panel.hist(sizes, bins=list(bins), color=COLOURS[0])
    panel.margins(y=0.18)  # space for the annotation
    median = float(np.median(sizes))
    panel.axvline(median, color=COLOURS[3], lw=1.2)
    text, coordinates = f"median {median:,.0f}", ("data", "axes fraction")
    panel.annotate(text, (median, 1), (4, -8), coordinates, "offset points", color=COLOURS[3], fontsize=9)
    panel.set(xlabel="examples per client", ylabel="clients")
