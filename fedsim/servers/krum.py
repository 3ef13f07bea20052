"""Krum, Multi-Krum and Bulyan: selection of updates that are close to the others.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent",
NeurIPS 2017 (arXiv:1703.02757), section 4; El Mhamdi, Guerraoui and Rouault, "The hidden vulnerability of distributed
learning in Byzantium", ICML 2018 (arXiv:1802.07927), section 4.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.errors import ConfigError
from fedsim.kernels.mean import RunningMean
from fedsim.servers.fedavg import GatheringFedAvg
from fedsim.updates.aggregators import COLUMN_BYTES, Array, columns


def squared_distances(rows: Array) -> NDArray[np.float64]:
    """Return the squared Euclidean distance between every two rows.

    Coordinates are subtracted in float64, a block of columns at a time. Inner products would be faster, but a row far
    from the others would then cause cancellation in the distances between the others.

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)

    Returns
    -------
    ndarray of float64, shape (clients, clients)
    """
    from scipy.spatial.distance import pdist, squareform

    pairs = np.zeros(len(rows) * (len(rows) - 1) // 2)
    width = max(1, COLUMN_BYTES // (8 * len(rows)))
    for first in range(0, rows.shape[1], width):
        pairs += pdist(rows[:, first : first + width].astype(np.float64), "sqeuclidean")
    return squareform(pairs)


def krum_scores(distances: NDArray[np.float64], num_malicious: int) -> NDArray[np.float64]:
    """Return the sum of each client's distances to its ``max(clients - num_malicious - 2, 1)`` nearest neighbours.

    Parameters
    ----------
    distances : ndarray of float64, shape (clients, clients)
        Squared, with zeros on the diagonal.
    num_malicious : int

    Returns
    -------
    ndarray of float64, shape (clients,)
    """
    nearest = min(max(1, len(distances) - num_malicious - 2), len(distances) - 1)
    # The nearest + 1 smallest distances include the client's distance of 0 to itself.
    return np.partition(distances, nearest, axis=1)[:, : nearest + 1].sum(axis=1)


class MaliciousCount(GatheringFedAvg):
    """The base class of strategies with `num_malicious_nodes`, which requires a cohort size."""

    #: A round needs this number of clients for each malicious one, and `other_clients` more.
    clients_per_malicious: ClassVar[int] = 2
    other_clients: ClassVar[int] = 3

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(**options)
        check_integer(f"{type(self).__name__}'s num_malicious_nodes", num_malicious_nodes)
        self.num_malicious_nodes = num_malicious_nodes
        self._min_cohort = self.clients_per_malicious * num_malicious_nodes + self.other_clients
        self.min_clients = max(self.min_clients, self._min_cohort)

    def check_cohort(self, clients: int) -> None:
        """Raise ConfigError if the cohort is too small for `num_malicious_nodes`."""
        if clients < self._min_cohort:
            field = f"{type(self).__name__}'s num_malicious_nodes is {self.num_malicious_nodes}"
            raise ConfigError(f"{field}, for which a round needs {self._min_cohort} clients; it has {clients}")
        super().check_cohort(clients)


class MultiKrum(MaliciousCount):
    """The mean, weighted by examples, of the updates with the smallest Krum scores; agrees with Flower's MultiKrum.

    Flower computes distances with inner products in the weights' dtype; where a very large update makes these
    inaccurate, its selection differs.

    Parameters
    ----------
    num_malicious_nodes : int
        Number of updates of a round that may be malicious (the paper's f), at least 0. A round needs ``2 f + 3``
        clients: a run with smaller cohorts is refused, and a round with fewer updates does not change the model.
    num_nodes_to_select : int
        Number of updates that are averaged (the paper's m), at least 1 and at most the cohort size minus
        `num_malicious_nodes`. The default of 1 is Flower's and gives Krum; larger values converge faster.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1, **options: Any) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)
        check_integer(f"{type(self).__name__}'s num_nodes_to_select", num_nodes_to_select, 1)
        self.num_nodes_to_select = num_nodes_to_select

    def check_cohort(self, clients: int) -> None:
        """Raise ConfigError if the cohort is too small, or if malicious updates would have to be selected."""
        super().check_cohort(clients)
        cohort = f"{clients} clients and {self.num_malicious_nodes} malicious"
        field = f"{type(self).__name__}'s num_nodes_to_select with {cohort}"
        check_integer(field, self.num_nodes_to_select, 1, clients - self.num_malicious_nodes)

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Select updates and average them."""
        order = np.argsort(krum_scores(squared_distances(rows), self.num_malicious_nodes), kind="stable")
        chosen = np.sort(order[: min(self.num_nodes_to_select, len(rows) - self.num_malicious_nodes)])
        mean = RunningMean()
        mean.add(rows[chosen], weights[chosen])
        return mean.value()


class Krum(MultiKrum):
    """The one update with the smallest Krum score; agrees with Flower's Krum.

    Parameters
    ----------
    num_malicious_nodes : int
        Number of updates of a round that may be malicious (the paper's f), at least 0. A round needs ``2 f + 3``
        clients: a run with smaller cohorts is refused, and a round with fewer updates does not change the model.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)


def select_by_krum(distances: NDArray[np.float64], num_malicious: int, count: int) -> NDArray[np.intp]:
    """Select clients one by one, each with the smallest Krum score among the remaining clients.

    Parameters
    ----------
    distances : ndarray of float64, shape (clients, clients)
        Squared, with zeros on the diagonal.
    num_malicious, count : int

    Returns
    -------
    ndarray of int, shape (count,)
    """
    remaining, chosen = np.arange(len(distances)), np.empty(count, np.intp)
    for k in range(count):
        best = krum_scores(distances[np.ix_(remaining, remaining)], num_malicious).argmin()
        chosen[k] = remaining[best]
        remaining = np.delete(remaining, best)
    return chosen


class Bulyan(MaliciousCount):
    """Select updates one by one with Krum, then average in each coordinate the values closest to the median.

    Krum scores are recomputed after each selection, as in the paper. Flower's Bulyan computes them once, so its
    selection and its result usually differ.

    Parameters
    ----------
    num_malicious_nodes : int
        Number of updates of a round that may be malicious (the paper's f), at least 0. A round needs ``4 f + 3``
        clients: a run with smaller cohorts is refused, and a round with fewer updates does not change the model.
    **options
        As for FedAvg.
    """

    clients_per_malicious = 4

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Select with Krum, then average coordinate by coordinate."""
        f = self.num_malicious_nodes
        theta, beta = len(rows) - 2 * f, len(rows) - 4 * f
        chosen = rows[select_by_krum(squared_distances(rows), f, theta)]
        mean = np.empty(rows.shape[1], rows.dtype)
        for place, values in columns(chosen):
            values.sort(axis=1)
            middle = (values[:, (theta - 1) // 2, None] + values[:, theta // 2, None]) / 2
            left, right = middle - values[:, : theta - beta + 1], values[:, beta - 1 :] - middle
            # The closest beta values are adjacent: the window with the smallest maximum distance, and among ties
            # (equal values at that end) the one that extends farthest on the other side.
            reach = np.maximum(left, right)
            best = reach == reach.min(axis=1, keepdims=True)
            window = np.where(best, np.minimum(left, right), -np.inf).argmax(axis=1)[:, None] + np.arange(beta)
            mean[place] = np.take_along_axis(values, window, axis=1).mean(axis=1)
        return mean
