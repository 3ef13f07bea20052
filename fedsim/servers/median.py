"""Coordinate-wise median and trimmed mean.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-robust distributed learning: towards optimal statistical rates", ICML
2018 (arXiv:1803.01498), definitions 1 and 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.servers.fedavg import GatheringFedAvg
from fedsim.updates.aggregators import Array, columns


def trimmed_mean(rows: Array, cut: int) -> Array:
    """Return the mean of each coordinate without its `cut` smallest and `cut` largest values.

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)
    cut : int
        Less than half the clients.

    Returns
    -------
    ndarray, shape (parameters,)
    """
    mean = np.empty(rows.shape[1], rows.dtype)
    last = len(rows) - cut
    for place, values in columns(rows):
        values.sort(axis=1)  # ten times as fast in NumPy as partitioning at two indices
        mean[place] = values[:, cut:last].mean(axis=1)
    return mean


class FedMedian(GatheringFedAvg):
    """The median of each coordinate, with equal weights; agrees with Flower's FedMedian.

    As long as fewer than half of the clients are malicious, each coordinate is within the range of the honest values.
    If clients have different data, it can be far from their mean.

    Parameters
    ----------
    **options
        As for FedAvg.
    """

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Return the coordinate-wise median."""
        return trimmed_mean(rows, (len(rows) - 1) // 2)


class FedTrimmedAvg(GatheringFedAvg):
    """The mean of each coordinate without its extremes, with equal weights; agrees with Flower's FedTrimmedAvg.

    Parameters
    ----------
    beta : float
        Share of the values removed at either end, at least 0 and less than 0.5; an upper bound of the share of
        malicious clients. ``int(beta * clients)`` values are removed, which is none with fewer than ``1 / beta``
        clients.
    **options
        As for FedAvg.
    """

    def __init__(self, *, beta: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        check_real("FedTrimmedAvg's beta", beta, 0, 0.5, open_high=True)
        self.beta = beta

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Return the coordinate-wise trimmed mean."""
        return trimmed_mean(rows, int(self.beta * len(rows)))
