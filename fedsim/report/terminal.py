"""Tables as text: complete in a file or a pipe, and within the width of a terminal."""

from __future__ import annotations

import itertools
import shutil
import sys
from typing import TYPE_CHECKING

from fedsim.text import escape

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a history that a narrow terminal does not show, the first one in this list first.
OPTIONAL_COLUMNS = (
    "gradient_diversity", "update_cosine", "secure_seconds", "secure_bytes", "client_drift", "bytes_down", "bytes_up",
    "local_loss", "clients", "weight_divergence", "seconds", "failures", "train_loss", "epsilon", "attack_success",
)  # fmt: skip
#: Largest number of rounds that a terminal shows.
MAX_ROUNDS = 31


def terminal_width() -> int | None:
    """Return the number of characters in a line of the terminal, or None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def to_text(frame: pd.DataFrame) -> str:
    """Return a table with all of its rows and columns; columns for which a terminal is too narrow follow below.

    An index that only numbers the rows is not shown.
    """
    import pandas as pd

    numbers_rows = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    with pd.option_context("display.unicode.east_asian_width", True):  # a Chinese character is as wide as two others
        headers = list(frame)[1:] if any(" " in str(name) for name in frame) else []  # which need two between them
        space = {name: len(str(name)) + 1 for name in headers}
        return escape(frame.to_string(index=not numbers_rows, line_width=terminal_width(), col_space=space))


def history_text(history: pd.DataFrame, width: int | None = None) -> tuple[str, str]:
    """Return a run's history as text, without its empty columns, and what is not shown of it.

    Parameters
    ----------
    history : DataFrame
        `Result.history`.
    width : int, optional
        Number of characters in a line; default: no limit, and all rounds. With a limit there are at most about
        `MAX_ROUNDS` rounds, at equal distances and with the last one.

    Returns
    -------
    text, omission : str
        `omission` is empty if `text` is complete.
    """
    known = history.dropna(axis="columns", how="all")
    if width is None:
        return _to_string(known), ""
    step = next(s * 10**k for k in itertools.count() for s in (1, 2, 5) if len(known) <= s * 10**k * MAX_ROUNDS)
    shown = known[(known["round"] % step == 0) | (known["round"] == known["round"].iloc[-1])]
    for name in OPTIONAL_COLUMNS:
        if len(_to_string(shown).splitlines()[0]) > width:
            shown = shown.drop(columns=name, errors="ignore")
    omitted = [
        f"{after} of {before} {what}"
        for after, before, what in zip(shown.shape, known.shape, ("rows", "columns"), strict=True)
        if after < before
    ]
    return _to_string(shown), " and ".join(omitted)


def _to_string(history: pd.DataFrame) -> str:
    return history.to_string(index=False, float_format=lambda x: f"{x:.4g}")
