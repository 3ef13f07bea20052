"""Local differential privacy of updates: each client clips its update and adds noise before it sends it.

Kasiviswanathan, Lee, Nissim, Raskhodnikova and Smith, "What can we learn privately?", SIAM Journal on Computing 2011
(arXiv:0803.0924), with the Gaussian mechanism. The server is not trusted; the noise of a mean over n clients is that of
one client divided by the square root of n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.checks import Interval
from fedsim.models.clipping import clip_factors
from fedsim.privacy.accounting import PrivacyLoss
from fedsim.privacy.system_noise import system_normal
from fedsim.updates.transform import Array, TransformContext, UpdateTransform


@dataclass(frozen=True)
class Clip(UpdateTransform):
    """Shorten updates that are longer than a norm to that norm.

    Parameters
    ----------
    norm : float
        Euclidean, greater than 0.
    """

    norm: float = 1.0
    limits = {"norm": Interval(0, open_low=True)}

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Clip."""
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
        return values * clip_factors(lengths, self.norm), {}

    @property
    def is_contractive(self) -> bool:
        """False: a long update loses most of its norm."""
        return False


@dataclass(frozen=True)
class LocalDP(Clip):
    """Clip updates, and add Gaussian noise to each coordinate.

    Parameters
    ----------
    norm : float
        Clipping norm, greater than 0.
    noise_multiplier : float
        Standard deviation of the noise, in clipping norms, at least 0.
    system_noise : bool
        Draw the noise from the operating system's generator, so that a run does not repeat; by default it comes from
        the seeded streams, for simulation only.
    """

    noise_multiplier: float = 1.0
    system_noise: bool = False
    limits = {"noise_multiplier": Interval(0)}

    def on_client(self, values: Array, ctx: TransformContext) -> tuple[Array, dict[str, Array]]:
        """Clip and add noise."""
        clipped, _ = super().on_client(values, ctx)
        if self.system_noise:
            noise = system_normal(clipped.size).reshape(clipped.shape)
        else:
            noise = np.stack([rng.standard_normal(ctx.length) for rng in ctx.rngs()])
        return clipped + self.noise_multiplier * self.norm * noise, {}

    @property
    def is_private(self) -> bool:
        """True."""
        return True

    def loss(self, delta: float) -> PrivacyLoss:
        """Return the privacy loss of a client that takes part in every round so far: two updates differ by 2 norms."""
        return PrivacyLoss(self.noise_multiplier, 1, 1, delta, "fixed")
