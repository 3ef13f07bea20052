"""Fixed-point numbers, whose sums are exact integers.

A coordinate between ``-max_abs`` and ``max_abs`` becomes an integer modulo 2**32. Its scale is such that the sum over
a round's clients cannot overflow. Rounding is stochastic, so that the expected sum is right: Konecny et al., "Federated
learning: strategies for improving communication efficiency", 2016 (arXiv:1610.05492), section 3. The training loss
becomes an integer modulo 2**64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Bits of the loss after the binary point.
LOSS_BITS = 24


def scale_of(max_abs: float, clients: int) -> float:
    """Return the number of integer steps per unit, with which the sum of `clients` numbers stays below 2**31."""
    return ((2**31 - 1) // clients - 1) / max_abs


def quantise(
    values: Mapping[str, Array], weight: float, max_abs: float, clients: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Return a client's numbers, multiplied by its weight, as unsigned integers.

    Parameters
    ----------
    values : mapping of str to ndarray
    weight : float
        At most 1.
    max_abs : float
        Largest absolute value that is allowed.
    clients : int
        Number of clients in the sum.
    rng : Generator
        For stochastic rounding; used in the order of the names.

    Raises
    ------
    ValueError
        A number is too large, or not finite.
    """
    integers, scale = {}, scale_of(max_abs, clients)
    for name in sorted(values):
        largest = float(np.abs(values[name]).max(initial=0.0))
        if not largest <= max_abs:
            raise ValueError(f"its {name} has a coordinate of {largest:.3g}; allowed: at most {max_abs:g}")
        rounded = np.floor(weight * values[name] * scale + rng.random(values[name].shape))
        integers[name] = rounded.astype(np.int64).astype(np.uint32)
    return integers


def quantise_loss(loss: float, weight: float, clients: int) -> Array:
    """Return a client's loss, multiplied by its weight, as an unsigned integer; ValueError as for `quantise`."""
    largest = 2.0 ** (62 - LOSS_BITS) / clients
    if not abs(loss) < largest:
        raise ValueError(f"its training loss is {loss:.3g}; allowed: less than {largest:.3g}")
    return np.array([round(weight * loss * 2**LOSS_BITS)], np.int64).astype(np.uint64)


def dequantise(total: Array, max_abs: float, clients: int) -> NDArray[np.float64]:
    """Return the sum of the clients' numbers."""
    return total.astype(np.int32) / scale_of(max_abs, clients)


def dequantise_loss(total: Array) -> float:
    """Return the sum of the clients' losses."""
    return float(total.astype(np.int64)[0]) / 2**LOSS_BITS
