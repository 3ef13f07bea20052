"""Centered clipping: updates are clipped around the previous round's aggregated update before they are averaged.

Karimireddy, He and Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021 (arXiv:2012.10333),
eq. 12 and algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer, check_real
from fedsim.servers.fedavg import GatheringFedAvg
from fedsim.updates.aggregators import Array, distances_to


class CenteredClipping(GatheringFedAvg):
    """``v <- v + mean of (x_i - v) min(1, tau / ||x_i - v||)`` over the clients' updates x_i; v is kept between rounds.

    All clients have the same weight, as in the paper. In the paper, workers send momentum, an average over their past
    gradients, whose variance is smaller; here x_i is the update of one round of local training. The paper's guarantee
    therefore does not hold for attacks that stay within the variance of the honest updates and have the same direction
    in every round.

    Parameters
    ----------
    tau : float, optional
        Clipping radius, greater than 0. A good value depends on the norm of the updates, and thus on the model, the
        learning rate and the round. Default: the median of the distances ``||x_i - v||``, recomputed in each
        iteration, which is close to the distances of honest updates if most clients are honest.
    iterations : int
        At least 1, which is enough according to the paper.
    **options
        As for FedAvg.
    """

    def __init__(self, *, tau: float | None = None, iterations: int = 1, **options: Any) -> None:
        super().__init__(**options)
        if tau is not None:
            check_real("CenteredClipping's tau", tau, 0, open_low=True)
        check_integer("CenteredClipping's iterations", iterations, 1)
        self.tau, self.iterations = tau, iterations

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Clip around the center and average."""
        start = self.global_weights.astype(np.float64)
        center = self.state.get("center", np.zeros_like(start))
        for _ in range(self.iterations):
            distances = distances_to(start + center, rows)
            tau = float(np.median(distances)) if self.tau is None else self.tau
            shares = np.minimum(1.0, tau / np.maximum(distances, 1e-300)) / len(rows)
            mean = np.zeros_like(start)
            self._add_weighted(mean, rows, shares)
            center = center + mean - shares.sum() * (start + center)
        self.state["center"] = center
        return start + center
