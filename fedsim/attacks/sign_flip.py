"""Sign flipping: malicious clients send the opposite of their updates.

Li, Xu, Chen, Giannakis and Ling, "RSA: Byzantine-robust stochastic aggregation methods for distributed learning from
heterogeneous datasets", AAAI 2019 (arXiv:1811.03761), section 5, where messages are multiplied by a negative number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import Attack, AttackContext
from fedsim.checks import Interval


@dataclass(frozen=True)
class SignFlip(Attack):
    """Send ``-scale`` times the update.

    Parameters
    ----------
    fraction, clients, start
        As for `Attack`.
    scale : float
        Greater than 0.
    """

    scale: float = 1.0
    limits: ClassVar = {"scale": Interval(0, open_low=True)}

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Flip the signs."""
        return -self.scale * changes
