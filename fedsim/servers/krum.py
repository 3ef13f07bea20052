"""Krum, Multi-Krum and Bulyan: updates chosen for lying close to the others.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent",
NeurIPS 2017 (arXiv:1703.02757), section 4; El Mhamdi, Guerraoui and Rouault, "The hidden vulnerability of distributed
learning in Byzantium", ICML 2018 (arXiv:1802.07927), section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError, whole
from fedsim.kernels.mean import RunningMean
from fedsim.servers.fedavg import Array, FedAvg, Rule
from fedsim.servers.rows import Rows, columns


def krum_scores(rows: Array, num_malicious: int) -> NDArray[np.float64]:
    """Return the sum of each row's squared distances to its ``clients - num_malicious - 2`` nearest.

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)
    num_malicious : int

    Returns
    -------
    ndarray of float64, shape (clients,)
    """
    centred = rows - rows.mean(axis=0)  # distances stay, cancellation goes
    gram = (centred @ centred.T).astype(np.float64)
    norms = np.diag(gram)
    distances = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    np.fill_diagonal(distances, -1)  # each row's own comes first
    nearest = max(1, len(rows) - num_malicious - 2)
    distances.sort(axis=1)
    scores: NDArray[np.float64] = distances[:, 1 : nearest + 1].sum(axis=1)
    return scores


class MultiKrum(FedAvg):
    """The mean, weighted by examples, of the updates with the least Krum scores; agrees with Flower's MultiKrum.

    Parameters
    ----------
    num_malicious_nodes : int
        How many updates of a round may be bad, at least 0.
    num_nodes_to_select : int
        At least 1.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1, **options: Any) -> None:
        super().__init__(**options)
        whole(f"{type(self).__name__}'s num_malicious_nodes", num_malicious_nodes)
        whole(f"{type(self).__name__}'s num_nodes_to_select", num_nodes_to_select, 1)
        self.num_malicious_nodes, self.num_nodes_to_select = num_malicious_nodes, num_nodes_to_select

    def rule(self) -> Rule:
        """Choose and average."""

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            chosen = np.argsort(krum_scores(rows, self.num_malicious_nodes), kind="stable")
            chosen = np.sort(chosen[: self.num_nodes_to_select])
            mean = RunningMean()
            mean.add(rows[chosen], weights[chosen])
            return mean.value()

        return Rows(combine)


class Krum(MultiKrum):
    """The one update with the least Krum score; agrees with Flower's Krum.

    Parameters
    ----------
    num_malicious_nodes : int
        How many updates of a round may be bad, at least 0.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, **options)


class Bulyan(FedAvg):
    """Of updates chosen by Krum score, each coordinate's mean of the values closest to the median; as Flower's.

    Parameters
    ----------
    num_malicious_nodes : int
        How many updates of a round may be bad, at least 0; a round needs ``4 * num_malicious_nodes + 3`` clients.
    **options
        As for FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(**options)
        whole("Bulyan's num_malicious_nodes", num_malicious_nodes)
        self.num_malicious_nodes = num_malicious_nodes

    def rule(self) -> Rule:
        """Choose by Krum, then coordinate by coordinate."""
        bad = self.num_malicious_nodes

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            if len(rows) < 4 * bad + 3:
                raise ConfigError(
                    f"Bulyan's num_malicious_nodes is {bad}, for which a round needs {4 * bad + 3} clients; "
                    f"it has {len(rows)}"
                )
            theta = len(rows) - 2 * bad
            beta = theta - 2 * bad
            chosen = rows[np.argsort(krum_scores(rows, bad), kind="stable")[:theta]]
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

        return Rows(combine)
