"""Random numbers from the operating system, which no seed repeats."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray


def system_uniform(number: int) -> NDArray[np.float64]:
    """Return numbers between 0 and 1, both excluded, from the operating system's generator of random bytes."""
    bits = np.frombuffer(os.urandom(8 * number), np.uint64) >> np.uint64(11)
    uniform: NDArray[np.float64] = np.multiply(bits + 0.5, 2.0**-53, dtype=np.float64)
    return uniform


def system_normal(number: int) -> NDArray[np.float64]:
    """Return standard normal numbers from the operating system's generator of random bytes."""
    from scipy.special import ndtri

    normal: NDArray[np.float64] = ndtri(system_uniform(number))
    return normal
