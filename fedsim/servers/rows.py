"""What robust server strategies share: a rule that needs all of a round's weights at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.base import Update
from fedsim.servers.fedavg import Array

#: Bytes of a round's weights worked on at a time, column by column: about a core's cache.
COLUMN_BYTES = 512 * 1024


class Rows:
    """A rule that collects the cohort's weights and then combines them.

    Parameters
    ----------
    combine : callable
        Function of the weights, shape (clients, parameters), and each client's number of examples.
    """

    def __init__(self, combine: Callable[[Array, NDArray[np.float64]], Array]) -> None:
        self._combine = combine
        self._rows: list[Array] = []
        self._weights: list[NDArray[np.float64]] = []

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Collect a block."""
        self._rows.append(update.weights)
        self._weights.append(weights)

    def value(self) -> Array:
        """Combine."""
        return self._combine(np.concatenate(self._rows), np.concatenate(self._weights))


def columns(rows: Array) -> Iterator[tuple[slice, Array]]:
    """Cut (clients, parameters) into copies of a few parameters each, shape (some, clients), with their places."""
    width = max(1, COLUMN_BYTES // (rows.itemsize * len(rows)))
    for first in range(0, rows.shape[1], width):
        place = slice(first, first + width)
        yield place, np.ascontiguousarray(rows[:, place].T)


def distances_to(point: Array, rows: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a point, computed in float64, where float32 would overflow.

    Parameters
    ----------
    point : ndarray, shape (parameters,)
    rows : ndarray, shape (clients, parameters)

    Returns
    -------
    ndarray of float64, shape (clients,)
    """
    squares = np.empty(len(rows))
    for k, row in enumerate(rows):
        away = np.subtract(row, point, dtype=np.float64)
        squares[k] = np.einsum("i,i->", away, away)
    return np.sqrt(squares)
