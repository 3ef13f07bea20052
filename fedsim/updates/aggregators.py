"""The protocol of aggregators, and its two kinds: a running mean, and rules that need all updates at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.task import Update
from fedsim.kernels.mean import RunningMean
from fedsim.kernels.numpy import add_weighted

Array = NDArray[Any]

#: Bytes of a round's weights that are combined at a time in blocks of columns: about a core's cache.
COLUMN_BYTES = 512 * 1024


class Aggregator(Protocol):
    """Combines the updates of a round.

    Attributes
    ----------
    needs : {"sums", "rows"}
        Whether it accumulates updates as they arrive, or keeps all of them.
    """

    needs: ClassVar[Literal["sums", "rows"]]

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Add a block of updates.

        Parameters
        ----------
        update : Update
            Blocks come in cohort order.
        weights : ndarray of float64, shape (clients,)
            Each client's weight in a mean: its number of examples, unless the client strategy overrides it.
        """

    def result(self) -> Array:
        """Return the combined weights, shape (parameters,); called once, after at least one update."""


class Mean:
    """The weighted mean, FedAvg's aggregator.

    Parameters
    ----------
    add_weighted : callable
        Adds a weighted sum of arrays to another; see `fedsim.kernels`.
    """

    needs: ClassVar[Literal["sums", "rows"]] = "sums"

    def __init__(self, add_weighted: Callable[..., None] = add_weighted) -> None:
        self._mean = RunningMean(add_weighted)

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Add a block of updates."""
        self._mean.add(update.weights, weights)

    def result(self) -> Array:
        """Return the mean, or one per group if the client strategy averages in groups."""
        return self._mean.value()


class GatheringAggregator:
    """Keeps the weights of all clients, and combines them with a function at the end.

    Parameters
    ----------
    combine : callable
        Function of the weights, shape (clients, parameters), and each client's weight in a mean, shape (clients,), that
        returns an array of shape (parameters,).
    """

    needs: ClassVar[Literal["sums", "rows"]] = "rows"

    def __init__(self, combine: Callable[[Array, NDArray[np.float64]], Array]) -> None:
        self._combine = combine
        self._rows: list[Array] = []
        self._weights: list[NDArray[np.float64]] = []

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Store a block of updates."""
        self._rows.append(update.weights)
        self._weights.append(weights)

    def result(self) -> Array:
        """Return the combined weights."""
        return self._combine(np.concatenate(self._rows), np.concatenate(self._weights))


def columns(rows: Array) -> Iterator[tuple[slice, Array]]:
    """Yield blocks of columns of (clients, parameters): their slice, and a transposed copy of shape (some, clients)."""
    width = max(1, COLUMN_BYTES // (rows.itemsize * len(rows)))
    for first in range(0, rows.shape[1], width):
        block = slice(first, first + width)
        yield block, np.ascontiguousarray(rows[:, block].T)


def distances_to(point: Array, rows: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a point, computed in float64 because float32 could overflow.

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
        difference = np.subtract(row, point, dtype=np.float64)
        squares[k] = np.einsum("i,i->", difference, difference)
    return np.sqrt(squares)
