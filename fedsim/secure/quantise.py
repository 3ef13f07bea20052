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

#: Name of the array with the loss; those of the update have other names.
LOSS = "loss"
#: Bits of the loss after the binary point.
LOSS_BITS = 24


def scale_of(max_abs: float, clients: int) -> float:
    """Return the number of integer steps per unit, with which the sum of `clients` numbers stays below 2**31."""
    return ((2**31 - 1) // clients - 1) / max_abs


def quantise(
    values: Mapping[str, Array], loss: float, scale: float, clients: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Return a client's numbers as unsigned integers.

    Parameters
    ----------
    values : mapping of str to ndarray
        Of absolute values that the scale allows.
    loss : float
    scale : float
        As `scale_of` returns it.
    clients : int
        In the sum.
    rng : Generator
        For stochastic rounding; used in the order of the names.

    Raises
    ------
    ValueError
        A number is too large for a sum that cannot overflow, or not finite; the message says which.
    """
    if not abs(loss) < 2.0 ** (62 - LOSS_BITS) / clients:
        raise ValueError(f"its training loss is {loss:.3g}")
    integers: dict[str, Array] = {LOSS: np.array([round(loss * 2**LOSS_BITS)], np.int64).astype(np.uint64)}
    for name in sorted(values):
        largest = float(np.abs(values[name]).max(initial=0.0))
        if not largest * scale * clients < 2**31:
            raise ValueError(f"its {name} has a coordinate of {largest:.3g}")
        exact = values[name] * scale
        integers[name] = np.floor(exact + rng.random(exact.shape)).astype(np.int64).astype(np.uint32)
    return integers


def dequantise(sums: Mapping[str, Array], scale: float) -> tuple[dict[str, Array], float]:
    """Return the sums of the clients' numbers, in float64, and of their losses."""
    values = {name: total.astype(np.int32) / scale for name, total in sums.items() if name != LOSS}
    return values, float(sums[LOSS].astype(np.int64)[0]) / 2**LOSS_BITS
