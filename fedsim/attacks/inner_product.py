"""Inner-product manipulation: the negative of the honest mean, short enough to pass defences.

Xie, Koyejo and Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation", UAI 2019
(arXiv:1903.03936), section 4, where epsilon is small against the median and Krum, and large against the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import AttackContext, ColludingAttack
from fedsim.checks import Interval


@dataclass(frozen=True)
class InnerProduct(ColludingAttack):
    """Send ``-epsilon`` times the mean of the known updates.

    Parameters
    ----------
    fraction, clients, start, knowledge
        As for `ColludingAttack`.
    epsilon : float
        Greater than 0. The mean of a round is reversed if it exceeds the ratio of honest to malicious clients.
    """

    epsilon: float = 0.5
    limits: ClassVar = {"epsilon": Interval(0, open_low=True)}

    def update(self, known: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Return the update."""
        return -self.epsilon * known.mean(axis=0)
