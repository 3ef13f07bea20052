"""Plots of images, and of attacks on privacy: ROC curves, label distributions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import shorten
from fedsim.errors import ConfigError
from fedsim.report.style import COLOURS, saved_figure

Array = NDArray[Any]

#: PSNR in decibels from which a picture of 8-bit pixels is exact: half a step of 1/255 is 54 dB.
EXACT = 54.0


def plot_images(
    rows: Sequence[tuple[str, Array, Array | Sequence[str] | None]],
    path: str | os.PathLike[str],
    title: str,
    image_shape: tuple[int, int] | None = None,
) -> None:
    """Plot images: a row per attack or model, whose label may have several lines.

    Parameters
    ----------
    rows : sequence of (str, ndarray, ndarray or sequence of str or None)
        Label, images of shape (images, pixels), and their captions: for reconstructions their PSNR, shape (images,).
        Images with values 0 (white) to 1 (black) are grey. If a row has negative values, its images are red where they
        are positive and blue where they are negative, each scaled to its largest absolute value.
    path : path
    title : str
    image_shape : tuple of int, optional
        Height and width; default a square.

    Raises
    ------
    ConfigError
        The number of pixels is not a square number, or there are no rows.
    """
    if not rows:
        raise ConfigError("rows is empty; allowed: at least one row of images")
    pixels = rows[0][1].shape[1]
    side = round(pixels**0.5)
    if image_shape is None and side * side != pixels:
        raise ConfigError(f"image_shape is {shorten(image_shape)}; allowed: a height and a width with {pixels} pixels")
    shape = image_shape or (side, side)
    columns = max(len(images) for _, images, _ in rows)
    grey: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
    longest = max(len(line) for label, _, _ in rows for line in label.splitlines() or [""])
    margin = min(3.3, 0.05 + 0.13 * longest)  # for the labels, in widths of an image
    with saved_figure(path, 0.72 * (margin + columns) - 0.08, 0.5 + 0.86 * len(rows)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
        widths = [margin, *[1.0] * columns]
        panels = figure.subplots(len(rows), columns + 1, squeeze=False, gridspec_kw={"width_ratios": widths})
        for line, (label, images, captions) in zip(panels, rows, strict=True):
            for panel in line:
                panel.set_axis_off()
            line[0].text(0.0, 0.5, label, va="center", fontsize=9, transform=line[0].transAxes)
            for k, (panel, image) in enumerate(zip(line[1:], images, strict=False)):
                largest = float(np.abs(image).max()) or 1.0
                scale = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest} if images.min() < 0 else grey
                panel.imshow(image.reshape(shape), interpolation="none", **scale)
                if captions is not None:
                    small = {"fontsize": 7, "fontweight": "normal", "color": "#444444"}
                    panel.set_title(_caption(captions[k]), small, loc="center", pad=2)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")


def _caption(value: float | str) -> str:
    """Return a caption as it is, or a PSNR as text."""
    if isinstance(value, str):
        return value
    return "exact" if value >= EXACT else f"{value:.0f} dB"


def plot_roc(
    curves: Sequence[tuple[str, Array, Array]], path: str | os.PathLike[str], title: str, lowest: float = 1e-3
) -> None:
    """Plot ROC curves on logarithmic axes, on which the true positives at few false positives can be seen.

    Parameters
    ----------
    curves : sequence of (str, ndarray, ndarray)
        Label, false positive rates and true positive rates.
    path : path
    title : str
    lowest : float
        Where the axes begin.
    """
    with saved_figure(path, 7.6, 4.8) as figure:
        axes = figure.subplots()
        diagonal = np.geomspace(lowest, 1, 50)
        axes.plot(diagonal, diagonal, color="#999999", lw=1, ls=":", label="guessing")
        for number, (label, false, true) in enumerate(curves):
            dashes = "-" if number < len(COLOURS) else "--"
            kept = false > 0
            start = true[~kept].max(initial=0.0)  # found without a false positive
            x, y = np.append(lowest, false[kept]), np.append(start, true[kept])
            axes.plot(
                x, np.maximum(y, lowest / 2), color=COLOURS[number % len(COLOURS)], lw=1.8, ls=dashes, label=label
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(lowest, 1)
        axes.set_ylim(lowest, 1.05)
        axes.set_xlabel("false positive rate: share of non-members taken for members")
        axes.set_ylabel("true positive rate: share of members found")
        axes.set_title(title, fontsize=11, pad=12)
        figure.legend(loc="outside right center", frameon=False, fontsize=9)


def plot_labels(panels: Sequence[tuple[str, Array, Array]], path: str | os.PathLike[str], clients: int = 8) -> None:
    """Plot true and inferred label distributions of some clients: a panel of bars per setting.

    Parameters
    ----------
    panels : sequence of (str, ndarray, ndarray)
        Title, true and inferred distributions, shape (clients, classes).
    path : path
    clients : int
        Largest number of clients in a panel, the first ones.
    """
    import matplotlib

    classes = panels[0][1].shape[1]
    colours = matplotlib.colormaps["tab10" if classes <= 10 else "turbo"]
    rows = -(-len(panels) // 2)
    columns = min(2, len(panels))
    with saved_figure(path, 4.6 * columns + 0.8, 2.3 * rows + 0.6) as figure:
        found = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in found[len(panels) :]:
            panel.set_axis_off()
        for panel, (title, true, inferred) in zip(found, panels, strict=False):
            shown = min(clients, len(true))
            for offset, values, alpha in ((-0.2, true, 1.0), (0.2, inferred, 0.55)):
                base = np.zeros(shown)
                for label in range(classes):
                    colour = colours(label if classes <= 10 else label / (classes - 1))
                    height = values[:shown, label]
                    name = str(label) if offset < 0 else None
                    panel.bar(np.arange(shown) + offset, height, 0.36, base, color=colour, alpha=alpha, label=name)
                    base += height
            panel.set_title(title, fontsize=9)
            panel.grid(False)
            panel.set_xticks(range(shown))
            panel.set_ylabel("share of labels")
            panel.set_ylim(0, 1)
        for panel in found[max(len(panels) - columns, 0) : len(panels)]:
            panel.set_xlabel("client (left bar: true, right bar: inferred)")
        if classes <= 20:
            figure.legend(
                handles=found[0].containers[:classes], title="label", loc="outside right center", frameon=False
            )
