"""A spectral filter: updates that lie far out in the direction of the largest variance are removed.

Shejwalkar and Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for federated
learning", NDSS 2021, algorithm 2 (divide-and-conquer, DnC).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer, check_real
from fedsim.errors import ConfigError
from fedsim.servers.krum import MaliciousCount
from fedsim.streams import Purpose, generator
from fedsim.updates.aggregators import Array


class SpectralFilter(MaliciousCount):
    """The mean of the updates that are no outliers in the direction of the largest variance; the paper's DnC.

    In each iteration random coordinates of the updates are centered, and the ``filtering * num_malicious_nodes``
    updates with the largest squared projections on their first right singular vector are removed. The updates that no
    iteration removed are averaged, with equal weights; if there are none the model is unchanged.

    One very large update determines the direction of the largest variance, so it is removed, but it hides smaller ones
    of another direction.

    Parameters
    ----------
    num_malicious_nodes : int
        Number of updates of a round that may be malicious (the paper's m), at least 0, with which nothing is removed.
        A round needs ``2 m + 1`` clients: a run with smaller cohorts is refused, and a round with fewer updates does
        not change the model.
    filtering : float
        How many updates are removed for each malicious one, rounded in total, greater than 0; the paper's c.
    iterations : int
        At least 1; the paper's niters. More than one differ only if there are more parameters than `dimensions`.
    dimensions : int
        Number of random coordinates, at least 1; the paper's b.
    **options
        As for FedAvg.
    """

    other_clients = 1

    def __init__(
        self,
        *,
        num_malicious_nodes: int = 0,
        filtering: float = 1.0,
        iterations: int = 1,
        dimensions: int = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)
        check_real("SpectralFilter's filtering", filtering, 0, open_low=True)
        check_integer("SpectralFilter's iterations", iterations, 1)
        check_integer("SpectralFilter's dimensions", dimensions, 1)
        self.filtering, self.iterations, self.dimensions = filtering, iterations, dimensions
        self._removed = round(filtering * num_malicious_nodes)
        self.min_clients = max(self.min_clients, self._removed + 1)

    def check_cohort(self, clients: int) -> None:
        """Raise ConfigError if the cohort is too small, or if all of it would be removed."""
        if self._removed >= clients:
            raise ConfigError(
                f"SpectralFilter's filtering is {self.filtering:g}, which removes {self._removed:,} updates of a round "
                f"that has {clients}; allowed: a filtering that removes fewer"
            )
        super().check_cohort(clients)

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Remove outliers and average the others."""
        kept = np.ones(len(rows), bool)
        parameters = rows.shape[1]
        for number in range(self.iterations if self.dimensions < parameters else 1):
            rng = generator(self.seed, Purpose.DEFENCE, self._round, number)
            chosen = np.sort(rng.choice(parameters, min(self.dimensions, parameters), replace=False))
            order = np.argsort(outlier_scores(rows[:, chosen]), kind="stable")
            kept[order[len(rows) - self._removed :]] = False
        if not kept.any():
            return self.global_weights.copy()
        mean = np.zeros(parameters)
        self._add_weighted(mean, rows[kept], np.full(kept.sum(), 1 / kept.sum()))
        return mean.astype(rows.dtype)


def outlier_scores(rows: Array) -> NDArray[np.float64]:
    """Return the squared projection of each centered row on the first right singular vector of all.

    It is relative to the square of the largest centered value, so that nothing overflows. The product of singular value
    and left singular vector is the projection; both are computed from the matrix of the rows' inner products, which is
    much faster than a singular value decomposition if there are fewer rows than columns.

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)

    Returns
    -------
    ndarray of float64, shape (clients,)
    """
    centered = rows - rows.mean(axis=0, dtype=np.float64)
    centered /= np.abs(centered).max(initial=0) or 1.0
    squared, vectors = np.linalg.eigh(centered @ centered.T)
    return np.asarray(squared[-1] * vectors[:, -1] ** 2)
