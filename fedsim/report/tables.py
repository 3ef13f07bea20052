"""Tables for reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


def split_table(counts: NDArray[Any]) -> pd.DataFrame:
    """Return label counts, shape (clients, classes), as a frame: a row per client, a column per label, a total."""
    import pandas as pd

    frame = pd.DataFrame(counts)
    frame.index.name = "client"
    frame.columns.name = "label"
    frame["examples"] = counts.sum(axis=1)
    return frame
