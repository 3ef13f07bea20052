"""FairFed: clients whose gap between groups is far from the global gap lose weight in the mean.

Ezzeldin, Yan, He, Ferrara and Avestimehr, "FairFed: enabling group fairness in federated learning", AAAI 2023
(arXiv:2110.00857), algorithm 1. With the gap F_k of the global model on client k's examples and F on those of the whole
cohort, ``Delta_k = |F - F_k|``, or the difference of the accuracies where F_k does not exist, and

    omega_k <- omega_k - beta (Delta_k - mean of Delta),   starting from n_k / n

is client k's weight, divided by the sum of all. The rule is the server's and is combined with any local training;
`Reweighing` is the paper's own choice.

The gap is that of equal opportunity. Clients send counts of the predictions in each group, from which the server
computes both gaps: it learns how many examples of each group and of the positive label every client has. In the paper
clients compute F_k, and the server learns sums by secure aggregation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.clients.sensitive import COUNTS
from fedsim.clients.task import Update
from fedsim.engines.runtime import GROUP_COUNTS
from fedsim.errors import ConfigError
from fedsim.kernels.mean import RunningMean
from fedsim.servers import FedAvg
from fedsim.updates.aggregators import Aggregator, Array

#: Names of the server's state: the weight omega_k of each client that has taken part, and its partition id.
OMEGA, KNOWN = "fairfed omega", "fairfed clients"


class FairFed(FedAvg):
    """FedAvg with weights that follow the clients' gaps; the experiment's ``sensitive`` names the column of groups.

    With two groups the gap is signed, as in the paper: the true positive rate of the first group, in the order of their
    names, minus that of the second. With more, it is the largest difference between two groups that have the rate. A
    weight below 0 counts as 0.

    Parameters
    ----------
    beta : float
        At least 0: how fast weights change. With 0 it is FedAvg.
    **options
        As for FedAvg.
    """

    needs_group_counts: ClassVar[bool] = True

    def __init__(self, *, beta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_real("FairFed's beta", beta, 0)
        self.beta = beta

    def aggregator(self) -> Aggregator:
        """Keep the cohort's weights and counts until all are there."""
        hooks = self.server_hooks
        total = hooks.total_examples(self._round) if hooks else None
        return _GapWeightedMean(self.beta, self.state, total)


class _GapWeightedMean:
    """The mean with the weights of FairFed, whose state it changes."""

    needs: ClassVar[Any] = "rows"

    def __init__(self, beta: float, state: dict[str, Array], total_examples: int | None) -> None:
        self._beta, self._state, self._total = beta, state, total_examples
        self._updates: list[Update] = []

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        if GROUP_COUNTS not in update.up:
            raise ConfigError(
                "FairFed needs counts in groups of people from clients; allowed: as an Experiment's server"
            )
        self._updates.append(update)

    def result(self) -> Array:
        ids, examples, rows = (
            np.concatenate([getattr(update, name) for update in self._updates])
            for name in ("partition_ids", "num_examples", "weights")
        )
        counts = np.concatenate([update.up[GROUP_COUNTS] for update in self._updates])
        known = dict(zip(self._state.get(KNOWN, np.empty(0, int)).tolist(), self._state.get(OMEGA, ()), strict=True))
        start = examples / (self._total or examples.sum())
        omega = np.array([known.get(int(k), share) for k, share in zip(ids, start, strict=True)])
        distance = distances(counts)
        omega -= self._beta * (distance - distance.mean())
        known |= dict(zip(ids.tolist(), omega, strict=True))
        self._state[KNOWN], self._state[OMEGA] = np.array(list(known)), np.array(list(known.values()))
        positive = np.maximum(omega, 0)
        mean = RunningMean()
        mean.add(rows, positive if positive.any() else start)
        return mean.value()


def distances(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Delta_k of each client.

    Parameters
    ----------
    counts : ndarray of int, shape (clients, groups, 5)
        Of the global model on the clients' training examples, in the order of `COUNTS`.

    Returns
    -------
    ndarray of float64, shape (clients,)
    """
    pooled = counts.sum(axis=0)
    gaps, accuracy, (overall,) = opportunity_gap(counts), _accuracy(counts), opportunity_gap(pooled[None])
    return np.where(np.isnan(gaps - overall), np.abs(accuracy - _accuracy(pooled)), np.abs(gaps - overall))


def opportunity_gap(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the gap of true positive rates, shape (clients,), NaN if fewer than two groups have positive examples."""
    hits, misses = (counts[..., COUNTS.index(name)] for name in ("true_positives", "false_negatives"))
    positives = hits + misses
    rates = np.where(positives > 0, hits / np.maximum(positives, 1), np.nan)
    if rates.shape[-1] == 2:
        return rates[..., 0] - rates[..., 1]
    largest = np.where(np.isnan(rates), -np.inf, rates).max(axis=-1)
    smallest = np.where(np.isnan(rates), np.inf, rates).min(axis=-1)
    return np.where((positives > 0).sum(axis=-1) > 1, largest - smallest, np.nan)


def _accuracy(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    correct, examples = (counts[..., COUNTS.index(name)].sum(axis=-1) for name in ("correct", "num_examples"))
    return correct / examples
