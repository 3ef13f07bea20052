"""A little is enough: a change of every coordinate within the spread of the honest updates.

Baruch, Baruch and Goldberg, "A little is enough: circumventing defenses for distributed learning", NeurIPS 2019
(arXiv:1902.06156), algorithm 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import AttackContext, ColludingAttack
from fedsim.checks import Interval


def largest_z(clients: int, malicious: int) -> float:
    """Return the z with which enough honest clients are farther from the mean than the malicious ones.

    With n clients, m of them malicious, the attack needs ``s = floor(n / 2 + 1) - m`` supporters for a majority; z is
    the quantile ``(n - m - s) / (n - m)`` of the normal distribution. It is 0 where that is negative, with few
    malicious clients; with a majority of malicious clients, s is 1.

    Parameters
    ----------
    clients : int
        In the round.
    malicious : int
    """
    from scipy.special import ndtri

    honest = clients - malicious
    supporters = max(clients // 2 + 1 - malicious, 1)
    return max(float(ndtri((honest - supporters) / honest)), 0.0) if honest > supporters else 0.0


@dataclass(frozen=True)
class LittleIsEnough(ColludingAttack):
    """Send the mean of the known updates minus z of their standard deviations, in each coordinate.

    A malicious client that knows its own update only has a deviation of 0, and sends that update.

    Parameters
    ----------
    fraction, clients, start, knowledge
        As for `ColludingAttack`; by default the attackers know their own updates, as in the paper.
    z : float, optional
        At least 0; default `largest_z`, which is small: the paper's experiments use 1.5 on MNIST.
    """

    knowledge: str = "malicious"
    z: float | None = None
    limits: ClassVar = {"z": Interval(0)}

    def update(self, known: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Return the update."""
        z = largest_z(ctx.cohort_size, len(ctx.clients)) if self.z is None else self.z
        return known.mean(axis=0) - z * known.std(axis=0)
