"""The order of a client's examples in an epoch."""

import numpy as np

from fedsim import streams
from fedsim.kernels.compiled.compilation import helper


@helper
def shuffle(order, shard, key, words, spare, counts):
    """Write a shard in the order that `streams.permutations` gives for a key, by a radix sort of its random words."""
    for j in range(len(shard)):
        z = key + np.uint64(j + 1) * streams.GOLDEN
        z = (z ^ (z >> np.uint64(30))) * streams.MIX_1
        z = (z ^ (z >> np.uint64(27))) * streams.MIX_2
        words[j] = ((z ^ (z >> np.uint64(31))) & ~streams.LOW_32) | np.uint64(j)
    for shift in range(32, 64, 8):
        counts[:] = 0
        for j in range(len(shard)):
            counts[((words[j] >> np.uint64(shift)) & np.uint64(255)) + np.uint64(1)] += 1
        for digit in range(256):
            counts[digit + 1] += counts[digit]
        for j in range(len(shard)):
            digit_ = (words[j] >> np.uint64(shift)) & np.uint64(255)
            spare[counts[digit_]] = words[j]
            counts[digit_] += 1
        words, spare = spare, words
    for j in range(len(shard)):
        order[j] = shard[words[j] & streams.LOW_32]
