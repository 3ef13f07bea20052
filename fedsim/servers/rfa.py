"""RFA: the geometric median of the updates.

Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022 (arXiv:1912.13445),
algorithm 2, the smoothed Weiszfeld iteration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer, check_real
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array, GatheringAggregator, distances_to


class RFA(FedAvg):
    """The point with the least weighted sum of distances to all updates, found in a few weighted means.

    The iteration starts from the old global weights; from the mean, one client far off would need many more.

    Parameters
    ----------
    iterations : int
        At least 1; the paper finds 3 to 4 enough.
    smoothing : float
        Distances below it count as it, greater than 0; the paper's nu.
    **options
        As for FedAvg.
    """

    def __init__(self, *, iterations: int = 4, smoothing: float = 1e-6, **options: Any) -> None:
        super().__init__(**options)
        check_integer("RFA's iterations", iterations, 1)
        check_real("RFA's smoothing", smoothing, 0, open_low=True)
        self.iterations, self.smoothing = iterations, smoothing

    def aggregator(self) -> Aggregator:
        """Start from the old global weights and reweigh."""

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            point: Array = self.global_weights
            for _ in range(self.iterations):
                pulls = weights / np.maximum(distances_to(point, rows), self.smoothing)
                mean = np.zeros(rows.shape[1])
                self._add_weighted(mean, rows, pulls / pulls.sum())
                point = mean
            return point

        return GatheringAggregator(combine)
