"""The names of clients: values of a column of the data, such as hospitals, as text that can be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.text import cut, printable

if TYPE_CHECKING:
    import pandas as pd

#: The column of names in tables, after the column of partition ids.
CLIENT_NAME = "client_name"
#: The name of the global model's test set, in tables in which its partition id is -1.
TEST_SET_NAME = "(test set)"
#: Largest number of characters of a name in a message.
MAX_LENGTH = 40


def make_names(values: NDArray[Any]) -> tuple[str, ...]:
    """Return the names of clients, each a printable line that is not empty and differs from all others.

    Parameters
    ----------
    values : ndarray, shape (clients,)
        By partition id. A value that is shown as another one, or as nothing, is followed by ``[partition id]``.

    Examples
    --------
    >>> make_names(np.array(["Charité", "St. Mary", "St.  Mary", ""]))
    ('Charité', 'St. Mary [1]', 'St. Mary [2]', '[3]')
    """
    values = np.asarray(values)
    kind = values.dtype.kind
    if kind == "f" and (values == np.rint(values)).all():  # integers, in a column with missing values
        return tuple(f"{value:.0f}" for value in values.tolist())
    if kind in "iu":
        return tuple(map(str, values.tolist()))
    names = [printable(str(value)) for value in (values.astype(str) if kind in "mM" else values).tolist()]
    while repeated := {name for name, count in Counter(names).items() if count > 1 or not name}:
        names = [f"{name} [{k}]".strip() if name in repeated else name for k, name in enumerate(names)]
    return tuple(names)


def describe_client(client: int, names: Sequence[str]) -> str:
    """Return ``"client 3"`` or, if clients have names, ``"client 3 (Charité)"``."""
    return f"client {client} ({cut(names[client], MAX_LENGTH)})" if names else f"client {client}"


def insert_names(frame: pd.DataFrame, names: Sequence[str], ids: str = "partition_id") -> pd.DataFrame:
    """Return a table with the clients' names after the column of their ids; the same table if there are none.

    Parameters
    ----------
    frame : DataFrame
    names : sequence of str
        By partition id.
    ids : str
        The column of partition ids; -1 is the test set.
    """
    if not names:
        return frame
    frame, shown = frame.copy(), np.array([*names, TEST_SET_NAME], dtype=object)  # the last one has index -1
    frame.insert(list(frame).index(ids) + 1, CLIENT_NAME, shown[frame[ids].to_numpy(dtype=np.intp)])
    return frame
