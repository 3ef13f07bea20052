"""Krum, Multi-Krum and Bulyan: updates chosen for lying close to the others.

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
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import COLUMN_BYTES, Aggregator, Array, GatheringAggregator, columns


def squared_distances(rows: Array) -> NDArray[np.float64]:
    """Return the squared Euclidean distance between every two rows.

    Coordinates are subtracted in float64, a block of columns at a time. Inner products would be faster, but then one
    row far from the others cancels the digits of the distances among the others.

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
    distances: NDArray[np.float64] = squareform(pairs)
    return distances


def krum_scores(distances: NDArray[np.float64], num_malicious: int) -> NDArray[np.float64]:
    """Return the sum of each client's distances to its ``clients - num_malicious - 2`` nearest others, at least one.

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
    # A client's distance of 0 to itself is among its nearest + 1 smallest, and adds nothing.
    scores: NDArray[np.float64] = np.partition(distances, nearest, axis=1)[:, : nearest + 1].sum(axis=1)
    return scores


class _Selecting(FedAvg):
    """What Krum, Multi-Krum and Bulyan share: `num_malicious_nodes`, and how many clients a round needs for it."""

    #: Clients that a round needs for each malicious one, besides three more.
    clients_per_malicious: ClassVar[int] = 2

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(**options)
        check_integer(f"{type(self).__name__}'s num_malicious_nodes", num_malicious_nodes)
        self.num_malicious_nodes = num_malicious_nodes
        self.min_clients = max(self.min_clients, self.needed)

    @property
    def needed(self) -> int:
        """Fewest clients for which the rule is defined."""
        return self.clients_per_malicious * self.num_malicious_nodes + 3

    def check_cohort(self, clients: int) -> None:
        """Raise ConfigError unless the rule is defined for cohorts of so many clients."""
        if clients < self.needed:
            raise ConfigError(
                f"{type(self).__name__}'s num_malicious_nodes is {self.num_malicious_nodes}, for which a round needs "
                f"{self.needed} clients; it has {clients}"
            )
        super().check_cohort(clients)


class MultiKrum(_Selecting):
    """The mean, weighted by examples, of the updates with the smallest Krum scores; agrees with Flower's MultiKrum.

    Flower computes distances with inner products in the weights' dtype; where an update is so far off that these lose
    their digits, its selection is another.

    Parameters
    ----------
    num_malicious_nodes : int
        How many updates of a round may be malicious (the paper's f), at least 0. A round needs ``2 f + 3`` clients: a
        run whose cohorts are smaller is refused, and a round in which fewer are left does not change the model.
    num_nodes_to_select : int
        How many updates are averaged (the paper's m), at least 1 and at most the cohort without
        `num_malicious_nodes`. The default of 1 is Flower's and makes the rule Krum; larger values converge faster.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1, **options: Any) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)
        check_integer(f"{type(self).__name__}'s num_nodes_to_select", num_nodes_to_select, 1)
        self.num_nodes_to_select = num_nodes_to_select

    def check_cohort(self, clients: int) -> None:
        """Raise ConfigError, too, where selecting so many must select malicious updates."""
        super().check_cohort(clients)
        most = clients - self.num_malicious_nodes
        if self.num_nodes_to_select > most:
            raise ConfigError(
                f"{type(self).__name__}'s num_nodes_to_select is {self.num_nodes_to_select}; allowed: 1 to {most}, the "
                f"{clients} clients of a round without the {self.num_malicious_nodes} that may be malicious"
            )

    def aggregator(self) -> Aggregator:
        """Choose and average."""

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            order = np.argsort(krum_scores(squared_distances(rows), self.num_malicious_nodes), kind="stable")
            chosen = np.sort(order[: min(self.num_nodes_to_select, len(rows) - self.num_malicious_nodes)])
            mean = RunningMean()
            mean.add(rows[chosen], weights[chosen])
            return mean.value()

        return GatheringAggregator(combine)


class Krum(MultiKrum):
    """The one update with the smallest Krum score; agrees with Flower's Krum.

    Parameters
    ----------
    num_malicious_nodes : int
        How many updates of a round may be malicious (the paper's f), at least 0. A round needs ``2 f + 3`` clients: a
        run whose cohorts are smaller is refused, and a round in which fewer are left does not change the model.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)


def select_by_krum(distances: NDArray[np.float64], num_malicious: int, count: int) -> NDArray[np.intp]:
    """Select clients one after another, each by the smallest Krum score among those that are left.

    Parameters
    ----------
    distances : ndarray of float64, shape (clients, clients)
        Squared, with zeros on the diagonal.
    num_malicious, count : int

    Returns
    -------
    ndarray of int, shape (count,)
    """
    left, chosen = np.arange(len(distances)), np.empty(count, np.intp)
    for k in range(count):
        best = krum_scores(distances[np.ix_(left, left)], num_malicious).argmin()
        chosen[k] = left[best]
        left = np.delete(left, best)
    return chosen


class Bulyan(_Selecting):
    """Each coordinate's mean of the values closest to the median, over updates selected one by one with Krum.

    Krum scores are computed anew after each selection, as in the paper. Flower's Bulyan computes them once and takes
    the best; its selection, and so its result, usually differs.

    Parameters
    ----------
    num_malicious_nodes : int
        How many updates of a round may be malicious (the paper's f), at least 0. A round needs ``4 f + 3`` clients: a
        run whose cohorts are smaller is refused, and a round in which fewer are left does not change the model.
    **options
        As for FedAvg.
    """

    clients_per_malicious = 4

    def aggregator(self) -> Aggregator:
        """Select with Krum, then average coordinate by coordinate."""
        bad = self.num_malicious_nodes

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            theta = len(rows) - 2 * bad
            beta = theta - 2 * bad
            chosen = rows[select_by_krum(squared_distances(rows), bad, theta)]
            mean = np.empty(rows.shape[1], rows.dtype)
            for place, values in columns(chosen):
                values.sort(axis=1)
                middle = (values[:, (theta - 1) // 2, None] + values[:, theta // 2, None]) / 2
                left, right = middle - values[:, : theta - beta + 1], values[:, beta - 1 :] - middle
                # The closest values are neighbours: the window that reaches least far and, where equal values stand at
                # that end, farthest on the other side.
                reach = np.maximum(left, right)
                best = reach == reach.min(axis=1, keepdims=True)
                window = np.where(best, np.minimum(left, right), -np.inf).argmax(axis=1)[:, None] + np.arange(beta)
                mean[place] = np.take_along_axis(values, window, axis=1).mean(axis=1)
            return mean

        return GatheringAggregator(combine)
