"""Counter-based randomness: every random number is a function of (seed, purpose, ids), never of order.

A stream is one 64-bit key folded from the seed, a purpose and any ids (round, client, epoch); its values are
SplitMix64's outputs from that state (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, figure 16). No generator is shared, so threads, engines and block sizes cannot change a result.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: SplitMix64's step from one state to the next.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
#: The factors of SplitMix64's output function.
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOW_32 = np.uint64(0xFFFFFFFF)


class Purpose(IntEnum):
    """What a stream is for; two purposes never share numbers."""

    INIT = 1
    SPLIT = 2
    SAMPLE_TRAIN = 3
    SAMPLE_EVALUATE = 4
    SHUFFLE = 5
    DATA = 6
    FLOWER = 7
    SHUFFLE_PERSONAL = 8
    CLIENT_TEST = 9
    SPLIT_CHANGE = 10
    COMPRESS = 11


def mix(values: Any) -> NDArray[np.uint64]:
    """Return SplitMix64's output function of each 64-bit value (wrapping arithmetic)."""
    z = np.array(values, dtype=np.uint64, ndmin=1)
    z ^= z >> np.uint64(30)
    z *= MIX_1
    z ^= z >> np.uint64(27)
    z *= MIX_2
    z ^= z >> np.uint64(31)
    return z


def keys(seed: int, purpose: Purpose, *ids: int | NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """Fold a seed, a purpose and ids into stream keys.

    Parameters
    ----------
    seed : int
        Any non-negative integer; its low 64 bits count.
    purpose : Purpose
        What the numbers are for.
    *ids : int or array of int
        Round, client, epoch; arrays broadcast.

    Returns
    -------
    ndarray of uint64
        One key per element of the broadcast ids, at least one-dimensional.
    """
    plain = list(takewhile(lambda part: isinstance(part, int), ids))
    return _fold(_start(int(seed), purpose, *plain), ids[len(plain) :])  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _start(seed: int, purpose: Purpose, *ids: int) -> NDArray[np.uint64]:
    """Return the key of leading ids that are plain numbers, which Python folds faster than arrays of one."""
    key = _mix_one(seed)
    for part in (int(purpose), *ids):
        key = _mix_one(key + (part + 1) * int(GOLDEN))
    return np.array([key], dtype=np.uint64)


def _mix_one(value: int) -> int:
    """Return what `mix` makes of one number's low 64 bits."""
    low_64 = 0xFFFFFFFFFFFFFFFF
    z = value & low_64
    z = (z ^ (z >> 30)) * int(MIX_1) & low_64
    z = (z ^ (z >> 27)) * int(MIX_2) & low_64
    return z ^ (z >> 31)


def _fold(key: NDArray[np.uint64], ids: tuple[int | NDArray[np.integer[Any]], ...]) -> NDArray[np.uint64]:
    for part in ids:
        key = mix(key + (np.atleast_1d(part).astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return key


def generator(seed: int, purpose: Purpose, *ids: int) -> np.random.Generator:
    """Return a NumPy generator of its own for one stream (used where speed does not matter)."""
    return np.random.Generator(np.random.Philox(key=int(keys(seed, purpose, *ids)[0])))


def permutations(stream_keys: NDArray[np.uint64], sizes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return one random permutation per stream, all at once.

    Each position's 32 random bits sit above its number in one 64-bit word; sorting the words shuffles the
    numbers. A row depends on its own key and size alone.

    Parameters
    ----------
    stream_keys : ndarray of uint64, shape (rows,)
        One key per row.
    sizes : ndarray of int, shape (rows,)
        How many numbers each row shuffles.

    Returns
    -------
    ndarray of intp, shape (rows, max(sizes))
        Row k starts with a permutation of 0..sizes[k]-1; what follows it is padding.
    """
    width = int(sizes.max(initial=0))
    position = np.arange(width, dtype=np.uint64)
    words = mix(stream_keys[:, None] + (position + np.uint64(1)) * GOLDEN)
    words &= ~LOW_32
    words |= position
    if sizes.size and int(sizes.min()) < width:
        words[np.arange(width) >= sizes[:, None]] = np.uint64(0xFFFFFFFFFFFFFFFF)
    words.sort(axis=1)
    words &= LOW_32
    return words.astype(np.intp)
