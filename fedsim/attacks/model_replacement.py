"""Model replacement: a backdoor whose update is scaled so that the mean becomes the attacker's model.

Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How to backdoor federated learning", AISTATS 2020 (arXiv:1807.00459),
section 4.2, eq. 3, without the constraint that evades detection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.backdoor import Backdoor
from fedsim.attacks.base import AttackContext
from fedsim.checks import Interval


@dataclass(frozen=True)
class ModelReplacement(Backdoor):
    """A `Backdoor` whose malicious clients also scale their updates.

    Parameters
    ----------
    fraction, clients, start, target, size, share
        As for `Backdoor`.
    boost : float, optional
        The factor, greater than 0. Default: the number of examples of the round's clients divided by that of the
        malicious ones, with which the mean is that of the malicious clients' models if the honest updates cancel; the
        attackers then know the number of examples of the round.
    """

    boost: float | None = None
    limits: ClassVar = {"boost": Interval(0, open_low=True)}

    @property
    def sees(self) -> str:
        """Whose updates the attack needs; the factor depends on the round unless it is given."""
        return "malicious" if self.boost is None else "own"

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Scale the updates."""
        return changes * (ctx.cohort_examples / ctx.num_examples.sum() if self.boost is None else self.boost)
