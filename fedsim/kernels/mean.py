"""A weighted mean whose bits do not depend on the division of its terms into blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.numpy import add_weighted
from fedsim.models import Array


class RunningMean:
    """A weighted mean of arrays of the same shape, which are added in order in float64; the mean has their dtype.

    Parameters
    ----------
    add_weighted : callable, optional
        `kernels.numpy.add_weighted`, or that of another kernel, which gives the same bits.
    """

    def __init__(self, add_weighted: Callable[..., None] = add_weighted) -> None:
        self._add_weighted = add_weighted
        self._sums: list[NDArray[np.float64]] = []
        self.totals: NDArray[np.float64] = np.zeros(1)
        self._shape: tuple[int, ...] = ()
        self._dtype, self._grouped = np.dtype(float), False

    def add(self, values: Array, weights: Array) -> None:
        """Add a block of arrays, shape (clients, ...), with their weights: (clients,), or (clients, groups)."""
        rows = values.reshape(len(values), math.prod(values.shape[1:]))  # -1 is ambiguous for an empty block
        by_group = np.ascontiguousarray(np.atleast_2d(np.asarray(weights, dtype=np.float64).T))
        if not self._sums:
            self._shape, self._dtype, self._grouped = values.shape[1:], values.dtype, weights.ndim > 1
            self._sums = [np.zeros(rows.shape[1]) for _ in by_group]
            self.totals = np.zeros(len(by_group))
        for k, group in enumerate(by_group):
            self._add_weighted(self._sums[k], rows, group)
            self.totals[k] = np.add.accumulate(np.append(self.totals[k], group))[-1]  # also added in order

    def value(self) -> Array:
        """Return the mean, or the mean of each group, shape (groups, ...), which is NaN for a group without weight."""
        dtype = self._dtype if self._dtype.kind == "f" else np.dtype(float)
        mean: Array = np.empty((len(self._sums), *self._shape), dtype)
        rows = mean.reshape(len(self._sums), math.prod(self._shape))
        with np.errstate(invalid="ignore"):
            for row, total, weight in zip(rows, self._sums, self.totals, strict=True):
                np.divide(total, weight, out=row, casting="same_kind")
        return mean if self._grouped else mean[0]
