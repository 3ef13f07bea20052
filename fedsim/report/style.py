"""The style of plots, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.checks import check_choice, check_path
from fedsim.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8c6d00", "#000000")
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
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


@contextmanager
def saved_figure(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of this size in inches, and write it to `path` when the block ends."""
    check_path("path", path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        save(figure, path)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of its file name's suffix.

    Raises
    ------
    ConfigError
        Matplotlib does not support the format.
    """
    file = Path(path)
    kind = file.suffix.lstrip(".").lower()
    check_choice(f"the suffix of the picture {str(file)!r}", kind, figure.canvas.get_supported_filetypes())
    write_whole(file, lambda stream: figure.savefig(stream, format=kind, dpi=150))
