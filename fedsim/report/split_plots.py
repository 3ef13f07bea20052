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
from fedsim.text import cut, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The kinds of plot that `plot_splits` makes.
KINDS = ("bars", "bubbles", "sizes")
#: Largest number of clients whose names are shown.
MAX_NAMES = 30


def plot_splits(
    counts: Mapping[str, NDArray[Any]],
    path: str | os.PathLike[str],
    dataset: str,
    kind: str = "bars",
    label_names: Sequence[str] = (),
    client_names: Mapping[str, Sequence[str]] | None = None,
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
    client_names : mapping of str to sequence of str, optional
        Split's label -> name of each client, which is shown if there are at most `MAX_NAMES`; default none.
    """
    check_choice("kind", kind, KINDS)
    classes = max(table.shape[1] for table in counts.values())
    names = [cut(printable(name), 30) for name in label_names] or [str(k) for k in range(classes)]
    draw = {"bars": _bars, "bubbles": _bubbles, "sizes": _sizes}[kind]
    rows = (len(counts) + 1) // 2
    columns = 1 if len(counts) == 1 else 2
    height = 2.6 if kind == "sizes" or not any((client_names or {}).values()) else 3.2
    with saved_figure(path, 4.8 * columns if columns > 1 else 8, height * rows + 0.8) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[len(counts) :]:
            panel.set_axis_off()
        for panel, (label, table) in zip(panels, counts.items(), strict=False):
            labels = f"{(table > 0).sum(axis=1).mean():.1f} labels per client"
            measure = f"Gini {gini(table.sum(axis=1)):.2f}" if kind == "sizes" else labels
            panel.set_title(f"{printable(label)}: {measure}", fontsize=10, parse_math=False)
            panel.grid(False)
            draw(panel, table, names, (client_names or {}).get(label, ()))
        if kind == "bars" and classes <= 20:
            widest = max(panels, key=lambda panel: len(panel.collections))
            handles = widest.collections
            legend = figure.legend(handles=handles, title="label", loc="outside right center", frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)
        title = "Examples per client" if kind == "sizes" else "Label distribution per client"
        title = f"{title}: {printable(dataset)}"
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left", parse_math=False)


def _sample(table: NDArray[Any], most: int) -> NDArray[Any]:
    """Return an even sample of at most so many clients, sorted by their most frequent label."""
    shown = np.linspace(0, len(table) - 1, min(len(table), most)).astype(int)
    return shown[np.lexsort((-table[shown].max(axis=1), table[shown].argmax(axis=1)))]


def _clients_axis(panel: Axes, shown: NDArray[Any], names: Sequence[str], clients: int) -> None:
    label = "clients" if len(shown) == clients else f"clients ({len(shown)} of {clients:,})"
    panel.set(xlim=(-0.5, len(shown) - 0.5), xlabel=label, xticks=[])
    if names and len(shown) <= MAX_NAMES:
        texts = [cut(names[k], 16) for k in shown]
        if len(set(texts)) < len(texts):
            texts = [f"{text} [{k}]" for text, k in zip(texts, shown, strict=True)]
        turn, align = (45, "right") if len(shown) <= 12 else (90, "center")
        panel.set_xticks(range(len(shown)), texts, parse_math=False, rotation=turn, ha=align, fontsize=8)
        panel.tick_params(axis="x", length=0, pad=2)


def _bars(panel: Axes, table: NDArray[Any], names: Sequence[str], client_names: Sequence[str]) -> None:
    import matplotlib

    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"]
    shown = _sample(table, 100)
    # Stacked steps, one polygon per label: a hundred times fewer shapes than a bar per client and label.
    tops = np.cumsum(np.column_stack([np.zeros(len(shown), dtype=int), table[shown]]), axis=1)
    tops = np.vstack([tops, tops[-1:]])
    edges = np.arange(len(tops)) - 0.5
    for k in range(table.shape[1]):
        colour = colours(k if len(names) <= 10 else k / (len(names) - 1))
        panel.fill_between(edges, tops[:, k], tops[:, k + 1], step="post", color=colour, lw=0, label=names[k])
    _clients_axis(panel, shown, client_names, len(table))
    panel.set_ylabel("examples")


def _bubbles(panel: Axes, table: NDArray[Any], names: Sequence[str], client_names: Sequence[str]) -> None:
    shown = _sample(table, 60)
    client, label = np.nonzero(table[shown])
    examples = table[shown][client, label]
    # The largest bubble fills a cell of the panel, which is about 4 inches wide and 2 high.
    width = min(72 * 4 / len(shown), 72 * 1.7 / table.shape[1])
    area = np.maximum(width**2 * examples / examples.max(), 0.5)
    panel.scatter(client, label, s=area, color=COLOURS[0], alpha=0.8, lw=0)
    _clients_axis(panel, shown, client_names, len(table))
    step = -(-table.shape[1] // 12)
    texts = [cut(name, 14) for name in names[: table.shape[1] : step]]
    panel.set_yticks(range(0, table.shape[1], step), texts, fontsize=8, parse_math=False)
    panel.set(ylim=(-0.7, table.shape[1] - 0.3), ylabel="label")


def _sizes(panel: Axes, table: NDArray[Any], names: Sequence[str], client_names: Sequence[str]) -> None:
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
