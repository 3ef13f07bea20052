"""Text and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.text import printable

if TYPE_CHECKING:
    import pandas as pd


def markdown_text(value: object) -> str:
    """Return a text on one line in which Markdown and HTML have no meaning."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", printable(str(value)))


def settings_table(lines: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and their values, which are Markdown."""
    return "\n".join(["| | |", "| --- | --- |", *[f"| {name} | {value} |" for name, value in lines]])


def frame_table(frame: pd.DataFrame) -> str:
    """Return a data frame as a table; fractions have three decimals."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.3f}"
        return markdown_text(value)

    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [[markdown_text(name) for name in frame], ["---"] * len(frame.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
