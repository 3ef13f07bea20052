"""Centred clipping: updates are clipped around the last round's before they are averaged.

Karimireddy, He and Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021 (arXiv:2012.10333),
eq. 12 and algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import real, whole
from fedsim.servers.fedavg import Array, FedAvg, Rule
from fedsim.servers.rows import Rows


class CenteredClipping(FedAvg):
    """``v <- v + mean of (x_i - v) min(1, tau / ||x_i - v||)`` over the clients' movements x_i, v from the last round.

    Every client counts alike, as in the paper.

    Parameters
    ----------
    tau : float
        Radius of clipping, greater than 0; the paper's experiments take 10 for gradients.
    iterations : int
        At least 1; the paper finds 1 enough.
    **options
        As for FedAvg.
    """

    def __init__(self, *, tau: float = 10.0, iterations: int = 1, **options: Any) -> None:
        super().__init__(**options)
        real("CenteredClipping's tau", tau, 0, open_low=True)
        whole("CenteredClipping's iterations", iterations, 1)
        self.tau, self.iterations = tau, iterations

    def rule(self) -> Rule:
        """Clip around the center and average."""

        def combine(rows: Array, weights: NDArray[np.float64]) -> Array:
            start = self.global_weights
            center = self.state.get("center", np.zeros(rows.shape[1])).astype(np.float64)
            for _ in range(self.iterations):
                total = np.zeros_like(center)
                for row in rows:
                    off = (row - start) - center
                    total += off * min(1.0, self.tau / max(float(np.linalg.norm(off)), 1e-300))
                center = center + total / len(rows)
            self.state["center"] = center
            return start + center

        return Rows(combine)
