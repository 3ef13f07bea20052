"""TERM: tilted empirical risk minimization, with a tilt of the clients' losses.

Li, Beirami, Sanjabi and Smith, "Tilted empirical risk minimization", ICLR 2021 (arXiv:2007.01162), eq. 1, with the
clients as the groups of its eq. 4, and no tilt within a client.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.clients.task import Update
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array, Mean


class TERM(FedAvg):
    """FedAvg on ``log(sum_k p_k exp(t F_k)) / t``: a client's weight in the mean is ``p_k exp(t F_k)``.

    p_k is the client's share of the examples, or its weight by the client strategy. With a large t the client with the
    highest loss determines the update, as in a minimax problem; t = 0 is FedAvg; a negative t reduces the weight of
    clients with high losses, as against outliers.

    The loss F_k is the mean over the client's local training, measured before each step, where the paper's gradient has
    the loss of the global model.

    Parameters
    ----------
    t : float
        The tilt, from -1e6 to 1e6.
    **options
        As for FedAvg.
    """

    def __init__(self, *, t: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_real("TERM's t", t, -1e6, 1e6)
        self.t = t

    def aggregator(self) -> Aggregator:
        """Weight the updates by loss."""
        return _TiltedMean(self.t, self._add_weighted)


class _TiltedMean(Mean):
    """The mean with tilted weights, which need the largest of the losses: ``exp(t F_k)`` could overflow."""

    needs: ClassVar[Literal["sums", "rows"]] = "rows"

    def __init__(self, t: float, add_weighted: Any) -> None:
        super().__init__(add_weighted)
        self._t = t
        self._blocks: list[tuple[Update, NDArray[np.float64]]] = []

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        self._blocks.append((update, weights))

    def result(self) -> Array:
        largest = max(float((self._t * update.train_loss).max()) for update, _ in self._blocks)
        for update, weights in self._blocks:
            super().add(update, weights * np.exp(self._t * update.train_loss - largest))
        return super().result()
