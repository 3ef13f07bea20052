"""DP-SGD's steps of a fit: random batches, clipped gradients of their examples, and noise.

Abadi et al., "Deep learning with differential privacy", CCS 2016 (arXiv:1607.00133), algorithm 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.fit import PrivateSteps
from fedsim.splits.partition import Indices
from fedsim.streams import Purpose, keys, words

if TYPE_CHECKING:
    from fedsim.clients.sgd import SGD


@dataclass(frozen=True)
class ExampleNoise:
    """How the steps of all clients are made private.

    Attributes
    ----------
    clip : float
        Norm to which an example's gradient is clipped.
    noise_multiplier : float
        Standard deviation of the noise on the sum of a batch's gradients, in clipping norms.
    sampling : {"poisson", "fixed"}
        A step draws each example with the same probability, independently of the others, or a number of examples.
    system_noise : bool
        Whether the keys of batches and noise are drawn from the operating system's generator.
    """

    clip: float
    noise_multiplier: float
    sampling: str
    system_noise: bool = False

    def steps(
        self, seed: int, round_number: int, clients: Indices, sizes: Indices, steps: Indices, batch_size: int
    ) -> PrivateSteps:
        """Return the steps of a fit.

        Parameters
        ----------
        seed, round_number : int
        clients, sizes, steps : ndarray of int, shape (clients,)
            Partition ids, numbers of examples, and numbers of steps.
        batch_size : int
            Expected size of a batch; 0 for the whole shard.
        """
        number = np.arange(steps.max(initial=0))[:, None]
        expected = np.minimum(batch_size or sizes, sizes)
        batch_sizes, batches, normals = (
            _system_keys(len(number), len(clients))
            if self.system_noise
            else keys(seed, purpose, round_number, clients, number)
            for purpose in (Purpose.BATCH_SIZE, Purpose.BATCH, Purpose.GRADIENT_NOISE)
        )
        counts = np.tile(expected, (len(number), 1))
        if self.sampling == "poisson":
            uniform = ((words(batch_sizes, 1)[..., 0] >> np.uint64(11)) + 0.5) * 2.0**-53
            for size in np.unique(sizes[expected < sizes]):
                rows = sizes == size
                counts[:, rows] = np.searchsorted(_binomial(int(size), batch_size), uniform[:, rows])
        counts[number >= steps] = 0
        noise = self.clip * self.noise_multiplier
        return PrivateSteps(self.clip, noise, counts, batches, normals, expected.astype(np.float64))


def _system_keys(steps: int, clients: int) -> NDArray[np.uint64]:
    """Return keys of streams that no seed repeats, shape (steps, clients)."""
    return np.frombuffer(bytearray(os.urandom(8 * steps * clients)), np.uint64).reshape(steps, clients)


@lru_cache(maxsize=1024)
def _binomial(size: int, expected: int) -> NDArray[np.float64]:
    """Return the distribution function of the number of examples in a batch, at 0, 1, ..., as far as it is below 1."""
    from scipy.special import bdtr

    below = np.asarray(bdtr(np.arange(size), size, expected / size), np.float64)
    return below[: np.searchsorted(below, 1.0)]


def accounted_steps(strategy: SGD, sizes: Indices) -> Indices:
    """Return the number of steps of each client in a fit, as `SGD.local_steps`, which must not be overridden."""
    if strategy.steps is not None:
        return np.full_like(sizes, strategy.steps)
    batches = -(-sizes // strategy.batch_size) if strategy.batch_size else np.ones_like(sizes)
    return strategy.epochs * batches
