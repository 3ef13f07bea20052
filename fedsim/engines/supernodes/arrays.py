"""Arrays and texts that SuperNodes have sent, read without trusting them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import flwr.app
import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedsim.flower import internals
from fedsim.text import printable

Array = NDArray[Any]
#: Name -> the shape of a client's row, and the dtype.
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

#: Name of a reply's record of arrays, with a row per client.
RESULT = "fedsim.result"
#: Length to which the reason in an error message is shortened.
MAX_REASON_LENGTH = 300


class ReplyError(Exception):
    """The reason for which a reply is not valid."""


def read_columns(content: RecordDict, layout: Layout, clients: NDArray[np.intp]) -> dict[str, Array]:
    """Return the arrays of a reply, with a row for each of the clients, in the reply's order.

    Raises
    ------
    ReplyError
        The layout or the clients differ.
    """
    record = content.get(RESULT)
    arrays = dict(record.items()) if isinstance(record, ArrayRecord) else {}
    if unknown := sorted(arrays.keys() - layout.keys()):
        raise ReplyError(f"its SuperNode sent {unknown[0][:40]!r}, which was not asked for")
    columns = {}
    for name, (row, dtype) in layout.items():
        if name not in arrays:
            raise ReplyError(f"its SuperNode sent no {name}")
        try:
            columns[name] = read_array(arrays[name], (len(clients), *row), dtype)
        except ReplyError as refused:
            raise ReplyError(f"its SuperNode sent {name} {refused}") from None
    if sorted(columns["partition_ids"].tolist()) != sorted(clients.tolist()):
        raise ReplyError("its SuperNode answered for other clients")
    return columns


def read_array(array: flwr.app.Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the values of a received array; nothing is allocated before its size has been checked.

    Raises
    ------
    ReplyError
        It is no array of that shape and dtype.
    """
    if isinstance(array, internals.Array):  # from this process
        values, start, data = array.__dict__["values"], 0, b""
        found, order, kind = values.shape, False, values.dtype
        shown = f"shape {found} and dtype {kind}"
    else:
        data, values = array.data, None
        try:
            stream = BytesIO(data)
            version = np.lib.format.read_magic(stream)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, order, kind = header(stream)
            start = stream.tell()
            shown = f"shape {str(found)[:60]} and dtype {str(kind)[:20]}"  # str() fails for integers of 5,000 digits
        except Exception:  # the parser may raise anything on arbitrary bytes
            raise ReplyError("of bytes that are no array") from None
    if found != shape or (kind.kind, kind.itemsize) != (dtype.kind, dtype.itemsize):
        raise ReplyError(f"of {shown}; expected {shape} and {dtype}")
    if values is None:
        if len(data) - start != math.prod(shape) * dtype.itemsize:
            raise ReplyError(f"of {len(data) - start} bytes; expected {math.prod(shape) * dtype.itemsize}")
        flat = np.frombuffer(data, kind, offset=start)
        values = flat.reshape(shape[::-1]).T if order else flat.reshape(shape)
    result: Array = values.astype(dtype, copy=False)
    return result


def invalid_rows(sent: Mapping[str, Array], dtype: str) -> dict[int, str]:
    """Return the rows with numbers that the server cannot compute with, and the reasons.

    Parameters
    ----------
    sent : mapping of str to ndarray, shape (clients, ...)
    dtype : str
        Of the model: a row that is longer than its largest number overflows when it is used.
    """
    invalid: dict[int, str] = {}
    for name, rows in sent.items():
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        finite = np.asarray(np.isfinite(flat).all(axis=1))
        with np.errstate(all="ignore"):
            longest = np.sqrt(np.square(flat).sum(axis=1))
        for row in np.flatnonzero(~finite | (longest > np.finfo(dtype).max)):
            what = f"too large for {dtype}" if finite[row] else "that are not finite"
            invalid.setdefault(int(row), f"its SuperNode sent {name} {what}")
    return invalid


def first_line(text: str | None) -> str:
    """Return the first line of a received error message."""
    line = ((text or "").strip() or "no reason given").splitlines()[0][:MAX_REASON_LENGTH]
    return printable(line)[:MAX_REASON_LENGTH]  # escapes are longer than what they stand for
