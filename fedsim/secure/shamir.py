"""Secret sharing: any `threshold` shares recover a secret, fewer say nothing about it.

Shamir, "How to share a secret", Communications of the ACM 22(11), 1979. A secret is a sequence of digits, each shared
by a random polynomial over the integers modulo the prime 2**31 - 1, so that products fit in 64 bits.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

#: A secret of 32 bytes has this many digits in base 2**30.
DIGITS, DIGIT_BITS = 9, 30
PRIME = np.uint64(2**31 - 1)
Shares = NDArray[np.uint64]


def share(secret: bytes, points: NDArray[np.integer], threshold: int) -> Shares:
    """Share a secret of 32 bytes.

    Parameters
    ----------
    secret : bytes
    points : ndarray of int, shape (shares,)
        Different numbers from 1 to 2**31 - 2, at which the polynomials are evaluated.
    threshold : int
        Number of shares that recover the secret.

    Returns
    -------
    ndarray of uint64, shape (shares, DIGITS)
        Numbers below 2**31 - 1.
    """
    number = int.from_bytes(secret, "big")
    digits = [number >> DIGIT_BITS * k & (2**DIGIT_BITS - 1) for k in range(DIGITS)]
    coefficients = [[secrets.randbelow(int(PRIME)) for _ in range(DIGITS)] for _ in range(threshold - 1)]
    x = points.astype(np.uint64)[:, None]
    values: Shares = np.zeros((len(points), DIGITS), np.uint64)
    for coefficient in np.array([*coefficients, digits], np.uint64):  # Horner's rule, the secret last
        values = (values * x + coefficient) % PRIME
    return values


def recover(shares: Shares, points: NDArray[np.integer]) -> bytes:
    """Return the secret of at least `threshold` shares, by interpolation at 0.

    Parameters
    ----------
    shares : ndarray of uint64, shape (shares, DIGITS)
    points : ndarray of int, shape (shares,)
    """
    x = points.astype(np.uint64)
    total = np.zeros(DIGITS, np.uint64)
    for k, own in enumerate(x):
        others = np.delete(x, k)
        above, below = _product(others), _product((others + PRIME - own) % PRIME)
        factor = np.uint64(above * pow(below, -1, int(PRIME)) % int(PRIME))
        total = (total + shares[k] * factor) % PRIME
    number = sum(int(digit) << DIGIT_BITS * k for k, digit in enumerate(total))
    return number.to_bytes(-(-DIGITS * (DIGIT_BITS + 1) // 8), "big")[-32:]


def _product(values: NDArray[np.uint64]) -> int:
    """Return the product modulo the prime."""
    result = 1
    for value in values.tolist():
        result = result * value % int(PRIME)
    return result
