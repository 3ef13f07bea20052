"""Gaussian noise in place of updates.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent",
NeurIPS 2017 (arXiv:1703.02757), section 5, where the standard deviation is an absolute number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import Attack, AttackContext
from fedsim.checks import Interval


@dataclass(frozen=True)
class GaussianAttack(Attack):
    """Send Gaussian noise.

    Parameters
    ----------
    fraction, clients, start
        As for `Attack`.
    deviation : float
        Standard deviation of each coordinate, as a multiple of the root mean square of the coordinates of the update
        that the client would have sent; greater than 0. The noise therefore has about `deviation` times its length.
    """

    deviation: float = 10.0
    limits: ClassVar = {"deviation": Interval(0, open_low=True)}

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Replace the updates."""
        squares = np.einsum("ij,ij->i", changes, changes) / max(changes.shape[1], 1)
        noise = np.stack([rng.standard_normal(changes.shape[1]) for rng in ctx.rngs()])
        return self.deviation * np.sqrt(squares)[:, None] * noise
