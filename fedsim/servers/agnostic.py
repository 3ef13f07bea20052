"""Agnostic federated learning: a mixture of the clients in which those with a high loss gain weight.

Mohri, Sivek and Suresh, "Agnostic federated learning", ICML 2019 (arXiv:1902.00146), algorithm 1 (Stochastic-AFL), with
local training and sampled cohorts as in Deng, Kamani and Mahdavi, NeurIPS 2020 (arXiv:2102.12660), algorithm 1 (DRFA).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.clients.task import Update
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array, Mean


class AgnosticFL(FedAvg):
    """FedAvg on the worst mixture of clients, ``min over w, max over lambda of sum_k lambda_k F_k(w)``.

    Each round averages the cohort's models with weights r_k, where ``r_k = K lambda_k`` for K clients and r_k is 1 at
    first. Then it takes a step of projected gradient ascent: ``r_k + learning rate * (F_k - mean of the cohort's F)``,
    projected so that all r_k are at least 0 and their mean is 1. Subtracting the mean does not change the projection if
    all clients train. With sampled cohorts it keeps clients from losing weight only because they were not sampled, and
    the expected step still has the direction of the gradient. Clients that have never been sampled keep a weight of 1.
    A round in which all clients have weight 0 does not change the model.

    The loss F_k is the mean over the client's local training, measured before each step, where the papers measure it at
    the start of the round. Clients are not weighted by their numbers of examples.

    Parameters
    ----------
    mixture_learning_rate : float
        From 0 to 1e6; with 0 all clients keep the same weight. It is K times the papers' learning rate of lambda if all
        clients train.
    **options
        As for FedAvg.
    """

    def __init__(self, *, mixture_learning_rate: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        check_real("AgnosticFL's mixture_learning_rate", mixture_learning_rate, 0, 1e6)
        self.mixture_learning_rate = mixture_learning_rate
        self._mean: _MixtureMean | None = None

    def aggregator(self) -> Aggregator:
        """Average the weights by the clients' weights in the mixture."""
        self._mean = _MixtureMean(self.global_weights, self._mixture_of, self._add_weighted)
        return self._mean

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Give clients with a high loss a larger weight in later rounds."""
        assert self._mean is not None
        clients, losses = np.concatenate(self._mean.clients), np.concatenate(self._mean.losses)
        seen = np.union1d(self.state.get("clients", clients), clients)
        mixture = self._mixture_of(seen)
        mixture[np.searchsorted(seen, clients)] += self.mixture_learning_rate * (losses - losses.mean())
        self.state |= {"clients": seen, "mixture": project_to_simplex(mixture, len(seen))}
        return combined

    def _mixture_of(self, clients: NDArray[Any]) -> NDArray[np.float64]:
        """Return the clients' weights in the mixture, relative to a mean of 1."""
        mixture = np.ones(len(clients))
        if len(known := self.state.get("clients", clients[:0])):
            place = np.minimum(np.searchsorted(known, clients), len(known) - 1)
            found = known[place] == clients
            mixture[found] = self.state["mixture"][place[found]]
        return mixture


def project_to_simplex(values: NDArray[np.float64], total: float = 1.0) -> NDArray[np.float64]:
    """Return the point with elements of at least 0 and this sum that is closest to `values`.

    Duchi, Shalev-Shwartz, Singer and Chandra, ICML 2008, figure 1.

    Parameters
    ----------
    values : ndarray of float64, shape (clients,)
    total : float
        Greater than 0.

    Examples
    --------
    >>> import numpy as np
    >>> project_to_simplex(np.array([0.5, 1.5, -1.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    values = values - values.max()  # does not move the projection; next to large values `total` would be rounded away
    ordered = np.sort(values)[::-1]
    thresholds = (np.cumsum(ordered) - total) / np.arange(1, len(values) + 1)
    last = int(np.flatnonzero(ordered > thresholds)[-1])
    return np.maximum(values - thresholds[last], 0.0)


class _MixtureMean(Mean):
    """The mean by weights in the mixture; keeps the clients' ids and losses."""

    def __init__(self, old: Array, mixture_of: Any, add_weighted: Any) -> None:
        super().__init__(add_weighted)
        self._old, self._mixture_of = old, mixture_of
        self.clients: list[NDArray[Any]] = []
        self.losses: list[NDArray[np.float64]] = []

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        self.clients.append(update.partition_ids.astype(np.uint64))  # on other grids, node ids of 64 bits
        self.losses.append(update.train_loss)
        super().add(update, self._mixture_of(self.clients[-1]))

    def result(self) -> Array:
        return super().result() if self._mean.totals[0] > 0 else self._old.copy()
