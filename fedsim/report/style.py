"""The style of plots, and how they are written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.checks import check_choice, check_path
from fedsim.files import write_whole
from fedsim.text import print_notice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8c6d00", "#000000")
#: Fonts with Chinese, Japanese and Korean characters.
CJK_FONTS = ("Noto Sans CJK SC", "WenQuanYi Zen Hei", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "SimHei")
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

    with rc_context({**STYLE, "font.family": _fonts()}):
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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_whole(file, lambda stream: figure.savefig(stream, format=kind, dpi=150))
    others = [each for each in caught if "missing from font" not in str(each.message)]
    if len(others) < len(caught):
        print_notice(f"{file} has boxes for characters of which no font is installed; {CJK_FONTS[0]} has Chinese ones")
    for each in others:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _fonts() -> list[str]:
    """Return the fonts in which characters are looked up, of those that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
