"""Plots of the importance of features."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.report.style import COLOURS, saved_figure
from fedsim.text import cut

Floats = NDArray[np.float64]


def plot_importances(
    names: Sequence[str],
    bars: Sequence[tuple[str, Floats, Floats]],
    path: str | os.PathLike[str],
    title: str,
    axis: str,
    count: int = 15,
) -> None:
    """Plot the most important columns: a group of horizontal bars for each, the first measure's largest on top.

    Parameters
    ----------
    names : sequence of str
        Names of the columns.
    bars : sequence of (str, ndarray, ndarray)
        Label of a measure, its value for each column, and half of the interval of each, or NaN.
    path : path
    title, axis : str
        Title, and label of the axis of values.
    count : int
        Largest number of columns shown.
    """
    order = np.argsort(-bars[0][1], kind="stable")[:count]
    height = 0.8 / len(bars)
    labels = [cut(names[k], 40) for k in order]
    with saved_figure(path, 7.6, 1.5 + (0.18 + 0.13 * len(bars)) * len(order)) as figure:
        axes = figure.subplots()
        for number, ((label, values, half), colour) in enumerate(zip(bars, COLOURS, strict=False)):
            places = np.arange(len(order)) + height * (number - (len(bars) - 1) / 2)
            errors = np.nan_to_num(half[order])
            grey = {"ecolor": "#444444", "elinewidth": 1}
            shown = errors if errors.any() else None
            axes.barh(places, values[order], height * 0.92, xerr=shown, color=colour, label=label, error_kw=grey)
        axes.set_yticks(range(len(order)), labels, parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color="#444444", lw=0.8)
        axes.set_xlabel(axis)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
