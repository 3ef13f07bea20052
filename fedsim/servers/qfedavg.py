"""q-FedAvg: clients with a higher loss have a larger weight.

Li, Sanjabi, Beirami and Smith, "Fair resource allocation in federated learning", ICLR 2020 (arXiv:1905.10497),
algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.clients.task import Update
from fedsim.errors import ConfigError
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array, Mean


class QFedAvg(FedAvg):
    """FedAvg on ``sum_k F_k^(q+1) / (q + 1)``; agrees with Flower's QFedAvg to rounding.

    As in Flower, F_k is the mean loss that the client reports from its local training, and clients are not weighted
    by their numbers of examples.

    Parameters
    ----------
    q : float
        Degree of fairness, at least 0; with 0 all clients have the same weight.
    client_learning_rate : float, optional
        Greater than 0; its inverse estimates the Lipschitz constant of the gradient. Default: the client strategy's
        ``lr``.
    **options
        As for FedAvg.
    """

    def __init__(self, *, q: float = 0.1, client_learning_rate: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_real("QFedAvg's q", q, 0)
        if client_learning_rate is None:
            client_learning_rate = getattr(self.server_hooks and self.server_hooks.strategy, "lr", None)
            if client_learning_rate is None:
                raise ConfigError("QFedAvg's client_learning_rate is missing, and no client strategy has an lr")
        check_real("QFedAvg's client_learning_rate", client_learning_rate, 0, open_low=True)
        self.q, self.client_learning_rate = q, client_learning_rate

    def aggregator(self) -> Aggregator:
        """Weight the updates by loss."""
        return _FairMean(self.global_weights, self.q, 1 / self.client_learning_rate, self._add_weighted)


class _FairMean(Mean):
    """Accumulates ``sum Delta_k`` and ``sum h_k`` of the paper's eq. 7 and 8."""

    def __init__(self, old: Array, q: float, lipschitz: float, add_weighted: Any) -> None:
        super().__init__(add_weighted)
        self._old, self._q, self._lipschitz, self._h = old, q, lipschitz, 0.0

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        losses = update.train_loss + 1e-10  # as in Flower, for a loss of 0
        super().add(update, losses**self._q)
        for row, loss in zip(update.weights, losses, strict=True):
            gradient = self._lipschitz * (self._old - row).astype(np.float64)
            square = float(gradient @ gradient)
            self._h += self._q * loss ** (self._q - 1) * square + self._lipschitz * loss**self._q

    def result(self) -> Array:
        delta = self._lipschitz * self._mean.totals[0] * (self._old - self._mean.value())
        return self._old - delta / self._h
