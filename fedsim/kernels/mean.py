"""A weighted mean whose bits do not depend on how its terms are gathered."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.numpy import add_weighted
from fedsim.models import Array


class RunningMean:
    """A weighted mean of equally shaped arrays, added in order in float64 and returned in their own dtype.

    Each array is added to the sum of all before it, so how they are gathered into blocks changes no bit.

    Parameters
    ----------
    add_weighted : callable, optional
        `kernels.numpy.add_weighted` or another kernel's, which gives the same bits.
    """

    def __init__(self, add_weighted: Callable[..., None] = add_weighted) -> None:
        self._add_weighted = add_weighted
        self._sums: list[NDArray[np.float64]] = []
        self.totals: NDArray[np.float64] = np.zeros(1)
        self._shape: tuple[int, ...] = ()
        self._dtype, self._grouped = np.dtype(float), False

    def add(self, values: Array, weights: Array) -> None:
        """Add a block of arrays, shape (clients, ...), with their weights: (clients,), or (clients, groups)."""
        rows = values.reshape(len(values), math.prod(values.shape[1:]))  # -1 would not do for an empty block
        by_group = np.ascontiguousarray(np.atleast_2d(np.asarray(weights, dtype=np.float64).T))
        if not self._sums:
            self._shape, self._dtype, self._grouped = values.shape[1:], values.dtype, weights.ndim > 1
            self._sums = [np.zeros(rows.shape[1]) for _ in by_group]
            self.totals = np.zeros(len(by_group))
        for k, group in enumerate(by_group):
            self._add_weighted(self._sums[k], rows, group)
            self.totals[k] = np.add.accumulate(np.append(self.totals[k], group))[-1]  # one after another, too

    def value(self) -> Array:
        """Return the mean, or one per group, shape (groups, ...), a group without weight being NaN."""
        dtype = self._dtype if self._dtype.kind == "f" else np.dtype(float)
        mean: Array = np.empty((len(self._sums), *self._shape), dtype)
        rows = mean.reshape(len(self._sums), math.prod(self._shape))
        with np.errstate(invalid="ignore"):
            for row, total, weight in zip(rows, self._sums, self.totals, strict=True):
                np.divide(total, weight, out=row, casting="same_kind")
        return mean if self._grouped else mean[0]
