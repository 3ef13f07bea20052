"""Centred clipping: updates are clipped around the last round's before they are averaged.

Karimireddy, He and Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021 (arXiv:2012.10333),
eq. 12 and algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer, check_real
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array, GatheringAggregator, distances_to


class CenteredClipping(FedAvg):
    """``v <- v + mean of (x_i - v) min(1, tau / ||x_i - v||)`` over the clients' updates x_i, v kept between rounds.

    Every client has the same weight, as in the paper. What differs from the paper: its workers send momentum, an
    average over their past gradients, which reduces the variance that an attacker can hide in; here x_i is the update
    of one round of local training. Attacks that stay within the variance of the honest updates and point the same way
    in every round are therefore not defended against as the paper's theorem says.

    Parameters
    ----------
    tau : float, optional
        Clipping radius, greater than 0. The right one depends on the length of the updates, and thus on the model,
        the learning rate and the round. Default: the median of the distances ``||x_i - v||``, recomputed in each
        iteration, which is of the size of the honest ones as long as most clients are honest.
    iterations : int
        At least 1; the paper finds 1 enough.
    **options
        As for FedAvg.
    """

    def __init__(self, *, tau: float | None = None, iterations: int = 1, **options: Any) -> None:
        super().__init__(**options)
        if tau is not None:
            check_real("CenteredClipping's tau", tau, 0, open_low=True)
        check_integer("CenteredClipping's iterations", iterations, 1)
        self.tau, self.iterations = tau, iterations

    def aggregator(self) -> Aggregator:
        """Clip around the center and average."""

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            start = self.global_weights.astype(np.float64)
            center = self.state.get("center", np.zeros_like(start))
            for _ in range(self.iterations):
                lengths = distances_to(start + center, rows)
                tau = float(np.median(lengths)) if self.tau is None else self.tau
                shares = np.minimum(1.0, tau / np.maximum(lengths, 1e-300)) / len(rows)
                mean = np.zeros_like(start)
                self._add_weighted(mean, rows, shares)
                center = center + mean - shares.sum() * (start + center)
            self.state["center"] = center
            return start + center

        return GatheringAggregator(combine)
