"""RFA: the geometric median of the updates.

Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022 (arXiv:1912.13445),
algorithm 2, the smoothed Weiszfeld iteration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer, check_real
from fedsim.servers.fedavg import GatheringFedAvg
from fedsim.updates.aggregators import Array, distances_to


class RFA(GatheringFedAvg):
    """The point with the smallest weighted sum of distances to all updates, approximated in a few iterations.

    The iteration starts from the old global weights; from the mean it would need many more steps if one update is far
    from the others. It withstands malicious clients with less than half of the weight, which is the number of examples
    that clients claim.

    Parameters
    ----------
    iterations : int
        At least 1; 3 to 4 are enough according to the paper.
    smoothing : float
        Lower bound of the distances, greater than 0; the paper's nu.
    **options
        As for FedAvg.
    """

    def __init__(self, *, iterations: int = 4, smoothing: float = 1e-6, **options: Any) -> None:
        super().__init__(**options)
        check_integer("RFA's iterations", iterations, 1)
        check_real("RFA's smoothing", smoothing, 0, open_low=True)
        self.iterations, self.smoothing = iterations, smoothing

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Return the geometric median."""
        point: Array = self.global_weights
        for _ in range(self.iterations):
            shares = weights / np.maximum(distances_to(point, rows), self.smoothing)
            mean = np.zeros(rows.shape[1])
            self._add_weighted(mean, rows, shares / shares.sum())
            point = mean
        return point
