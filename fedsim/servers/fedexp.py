"""FedExP: a server learning rate that grows with the disagreement between clients.

Jhunjhunwala, Wang and Joshi, "FedExP: speeding up federated averaging via extrapolation", ICLR 2023
(arXiv:2301.09604), eq. 5 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.clients.task import Update
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array, Mean


class FedExP(FedAvg):
    """FedAvg with server learning rate ``max(1, sum_k p_k ||Delta_k||^2 / (2 (||sum_k p_k Delta_k||^2 + epsilon)))``.

    Delta_k is the update of client k, and p_k its share of the examples. The paper evaluates the mean of the last two
    models; here the last model is evaluated, as for all strategies.

    Parameters
    ----------
    epsilon : float
        At least 0; the paper tunes it between 1e-3 and 1e-1.
    **options
        As for FedAvg.
    """

    def __init__(self, *, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        check_real("FedExP's epsilon", epsilon, 0)
        self.epsilon = epsilon
        self._mean: _MeanAndNorms | None = None

    def aggregator(self) -> Aggregator:
        """Average the weights, and the squared norms of the updates."""
        self._mean = _MeanAndNorms(self.global_weights, self._add_weighted)
        return self._mean

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Extrapolate."""
        assert self._mean is not None
        update = combined - weights
        scale = float(np.dot(update, update)) + self.epsilon
        eta = max(1.0, self._mean.squared_norm() / (2 * scale)) if scale else 1.0
        return weights + eta * update


class _MeanAndNorms(Mean):
    """The mean of the weights and of the squared norms of the updates."""

    def __init__(self, old: Array, add_weighted: Callable[..., None]) -> None:
        super().__init__(add_weighted)
        self._old, self._squares = old, 0.0

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        super().add(update, weights)
        for row, weight in zip(update.weights, weights, strict=True):
            change = (row - self._old).astype(np.float64)
            self._squares += float(weight) * float(change @ change)

    def squared_norm(self) -> float:
        return float(self._squares / self._mean.totals[0])
