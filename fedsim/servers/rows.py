"""What robust server strategies share: a rule that needs all of a round's weights at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.base import Update
from fedsim.errors import ConfigError
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
        if weights.ndim > 1:
            raise ConfigError("a client strategy that averages in groups needs a server that averages, as FedAvg does")
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
