"""Free riders, who return the global model to receive the trained one without training.

Fraboni, Vidal and Lorenzi, "Free-rider attacks on model aggregation in federated learning", AISTATS 2021
(arXiv:2006.11901), section 3: plain free riders, and disguised ones that add noise with a standard deviation of
``sigma * t**-gamma`` in round t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import Attack, AttackContext
from fedsim.checks import Interval


@dataclass(frozen=True)
class FreeRider(Attack):
    """Send an update of zero, or noise that decays as the model converges.

    The simulation trains these clients all the same; only the report of their training loss depends on it.

    Parameters
    ----------
    fraction, clients, start
        As for `Attack`.
    noise : float
        Standard deviation of each coordinate in round 1 (the paper's sigma), at least 0.
    decay : float
        The paper's gamma, at least 0.
    """

    noise: float = 0.0
    decay: float = 1.0
    limits: ClassVar = {"noise": Interval(0), "decay": Interval(0)}

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Replace the updates."""
        if not self.noise:
            return np.zeros_like(changes)
        noise = np.stack([rng.standard_normal(changes.shape[1]) for rng in ctx.rngs()])
        return self.noise * float(ctx.round) ** -self.decay * noise
