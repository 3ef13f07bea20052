"""FedExP: a server step that grows as the clients disagree.

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
    """FedAvg with step size ``max(1, sum_k p_k ||Delta_k||^2 / (2 (||mean Delta||^2 + epsilon)))``, p_k by examples.

    The paper evaluates the mean of the last two models; here the last is evaluated, as for all others.

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
        self._spread: _Spread | None = None

    def aggregator(self) -> Aggregator:
        """Average, and measure how far clients moved."""
        self._spread = _Spread(self.global_weights, self._add_weighted)
        return self._spread

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Extrapolate."""
        assert self._spread is not None
        moved = combined - weights
        length = float(np.dot(moved, moved))
        eta = max(1.0, self._spread.mean_square() / (2 * (length + self.epsilon))) if length + self.epsilon else 1.0
        new: Array = weights + eta * moved
        return new


class _Spread(Mean):
    """The mean, and the mean squared movement."""

    def __init__(self, old: Array, add_weighted: Callable[..., None]) -> None:
        super().__init__(add_weighted)
        self._old, self._squares, self._total = old, 0.0, 0.0

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        super().add(update, weights)
        for row, weight in zip(update.weights, weights, strict=True):
            moved = (row - self._old).astype(np.float64)
            self._squares += float(weight) * float(moved @ moved)
            self._total += float(weight)

    def mean_square(self) -> float:
        return self._squares / self._total
