"""Counter-based random numbers: each is a function of seed, purpose and ids, and does not depend on order.

A stream has a 64-bit key, computed from the seed, a purpose and any ids (round, client, epoch); its values are
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
#: Normal numbers of a stream are made in blocks: the cosines of half as many pairs, then their sines.
NORMAL_BLOCK = 512


class Purpose(IntEnum):
    """The purpose of a stream; streams of different purposes are independent."""

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
    PRIVACY = 12
    BATCH_SIZE = 13
    BATCH = 14
    GRADIENT_NOISE = 15
    SHADOW = 16
    QUANTISE = 17
    DROPOUT = 18
    NEIGHBOURS = 19
    ATTACK = 20
    DEFENCE = 21
    CONTRIBUTION = 22
    IMPORTANCE = 23
    SEARCH = 24


def mix(values: Any) -> NDArray[np.uint64]:
    """Return SplitMix64's output function of each 64-bit value, with wrapping arithmetic."""
    z = np.array(values, dtype=np.uint64, ndmin=1)
    z ^= z >> np.uint64(30)
    z *= MIX_1
    z ^= z >> np.uint64(27)
    z *= MIX_2
    z ^= z >> np.uint64(31)
    return z


def keys(seed: int, purpose: Purpose, *ids: int | NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """Compute the keys of streams from a seed, a purpose and ids.

    Parameters
    ----------
    seed : int
        Any non-negative integer, of which the low 64 bits are used.
    purpose : Purpose
        Purpose of the numbers.
    *ids : int or array of int
        Round, client, epoch; arrays broadcast.

    Returns
    -------
    ndarray of uint64
        One key per element of the broadcast ids, at least one-dimensional.
    """
    plain = list(takewhile(lambda part: isinstance(part, int), ids))
    key = _scalar_key(int(seed), purpose, *plain)  # type: ignore[arg-type]
    for part in ids[len(plain) :]:
        key = mix(key + (np.atleast_1d(part).astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return key


@lru_cache(maxsize=256)
def _scalar_key(seed: int, purpose: Purpose, *ids: int) -> NDArray[np.uint64]:
    """Return the key for ids that are Python integers, which is faster than with arrays."""
    key = _mix_one(seed)
    for part in (int(purpose), *ids):
        key = _mix_one(key + (part + 1) * int(GOLDEN))
    return np.array([key], dtype=np.uint64)


def _mix_one(value: int) -> int:
    """Return `mix` of the low 64 bits of a number."""
    low_64 = 0xFFFFFFFFFFFFFFFF
    z = value & low_64
    z = (z ^ (z >> 30)) * int(MIX_1) & low_64
    z = (z ^ (z >> 27)) * int(MIX_2) & low_64
    return z ^ (z >> 31)


def generator(seed: int, purpose: Purpose, *ids: int) -> np.random.Generator:
    """Return a NumPy generator for a stream, for code in which speed does not matter."""
    return np.random.Generator(np.random.Philox(key=int(keys(seed, purpose, *ids)[0])))


def permutations(stream_keys: NDArray[np.uint64], sizes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return a random permutation for each stream.

    Each number is stored below 32 random bits in a 64-bit word; sorting the words shuffles the numbers. A row depends
    only on its own key and size.

    Parameters
    ----------
    stream_keys : ndarray of uint64, shape (rows,)
        One key per row.
    sizes : ndarray of int, shape (rows,)
        Number of elements that each row permutes.

    Returns
    -------
    ndarray of intp, shape (rows, max(sizes))
        Row k starts with a permutation of 0..sizes[k]-1, followed by padding.
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


def words(stream_keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return the first `count` values of each stream, shape (..., count)."""
    return mix(stream_keys[..., None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def choose(order: NDArray[np.intp], stream_keys: NDArray[np.uint64], sizes: Any, counts: Any) -> None:
    """Move a random choice, without replacement, to the front of each row, by steps of a Fisher-Yates shuffle.

    Whatever order a row has before, each choice is equally probable, up to ``size / 2**32``.

    Parameters
    ----------
    order : ndarray of int, shape (rows, largest size)
        Permuted in place.
    stream_keys : ndarray of uint64, shape (rows,)
    sizes : ndarray of int, shape (rows,)
        Number of elements of each row; the others are padding.
    counts : ndarray of int, shape (rows,)
        Number of elements to choose in each row.
    """
    drawn = words(stream_keys, int(counts.max(initial=0))) >> np.uint64(32)
    for place in range(drawn.shape[1]):
        rows = np.flatnonzero(counts > place)
        left = (sizes[rows] - place).astype(np.uint64)
        other = place + ((drawn[rows, place] * left) >> np.uint64(32)).astype(np.intp)
        order[rows, place], order[rows, other] = order[rows, other], order[rows, place]


def normals(stream_keys: NDArray[np.uint64], count: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Return the first `count` standard normal numbers of each stream, by the transform of Box and Muller.

    Box and Muller, "A note on the generation of random normal deviates", Annals of Mathematical Statistics 1958. A
    value of the stream gives a pair: 40 bits the radius, 23 bits an angle between -pi/2 and pi/2, and one bit the sign
    of its cosine. No number exceeds ``sqrt(2 * log(2**41))`` = 7.54 in absolute value, which a normal number does with
    probability 5e-14.

    Parameters
    ----------
    stream_keys : ndarray of uint64, shape (rows,)
    count : int
    dtype : dtype
        float32 or float64; for float32 the radius is computed from a number that is rounded to float32.

    Returns
    -------
    ndarray, shape (rows, count)
        Row by row, blocks of NORMAL_BLOCK numbers.
    """
    half = NORMAL_BLOCK // 2
    blocks = -(-count // NORMAL_BLOCK)
    bits = words(stream_keys, blocks * half).reshape(len(stream_keys), blocks, half)
    kind = np.dtype(dtype).type
    high, low = (bits >> np.uint64(33)).astype(dtype), (bits >> np.uint64(23) & np.uint64(0x1FF)).astype(dtype)
    uniform = high * kind(2.0**-31) + (low + kind(0.5)) * kind(2.0**-40)
    radius = np.sqrt(-2 * np.log(uniform, dtype=np.float64))
    angle = np.pi * ((bits & np.uint64(0x7FFFFF)).astype(np.float64) * 2.0**-23 - 0.5)
    radius_cos = np.where(bits >> np.uint64(32) & np.uint64(1), -radius, radius) * np.cos(angle)
    pairs = np.concatenate([radius_cos, radius * np.sin(angle)], axis=2)
    return pairs.reshape(len(stream_keys), -1)[:, :count].astype(dtype, copy=False)
