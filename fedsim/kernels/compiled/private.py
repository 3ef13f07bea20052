"""Steps of DP-SGD: random batches, clipping of examples' gradients, and noise, as `kernels.numpy` defines them.

Where `private` is None, steps are those of SGD, and Numba compiles only that branch.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fedsim import streams
from fedsim.kernels.compiled.compilation import helper, sum_helper
from fedsim.kernels.compiled.layout import D_ROW, FLAT, H_ROW, INPUTS, OUTPUTS, TRANSPOSED, W_ROW, D, H, W
from fedsim.kernels.compiled.normals import LANES, add_scaled, add_scaled_part, normal_pairs

_BLOCK, _HALF = streams.NORMAL_BLOCK, streams.NORMAL_BLOCK // 2


class Private(NamedTuple):
    """What compiled functions know about the private steps of a fit: fields of `kernels.fit.PrivateSteps`."""

    clip: float
    noise: float
    counts: Any
    normals: Any
    expected: Any


@helper
def largest_batch(private, client, steps, size):
    """Return the size of a client's largest batch, which is `size` without privacy."""
    if private is None:
        return size
    largest = 0
    for number in range(steps):
        largest = max(private.counts[number, client], largest)
    return largest


@helper
def divisor(private, client, rows):
    """Return the number by which the sum of a batch's gradients is divided: that of its rows, or the expected one."""
    if private is None:
        return np.float64(rows)
    return private.expected[client]


@helper
def scale_before_clipping(private, scale):
    """Return the factor of deltas during backpropagation, 1 if they are clipped afterwards."""
    if private is None:
        return scale
    return type(scale)(1)


@helper
def choose(order, key, count):
    """Move a random choice to the front, as `streams.choose` does."""
    for place in range(count):
        z = key + np.uint64(place + 1) * streams.GOLDEN
        z = (z ^ (z >> np.uint64(30))) * streams.MIX_1
        z = (z ^ (z >> np.uint64(27))) * streams.MIX_2
        drawn = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
        other = place + np.int64((drawn * np.uint64(len(order) - place)) >> np.uint64(32))
        order[place], order[other] = order[other], order[place]


@sum_helper
def squared_norm(values):
    """Return the squared norm of a vector."""
    total = 0.0
    for j in range(len(values)):
        total += np.float64(values[j]) * np.float64(values[j])
    return total


@helper
def clip_deltas(private, s, net, first, last, scale):
    """Scale the deltas of rows `first` to `last` of a chunk: those of an example clip its gradient, times `scale`.

    The gradient of a layer on one example is the outer product of its inputs, with the bias's 1, and its deltas.
    """
    if private is None:
        return
    for r in range(first, last):
        square = 0.0
        for layer in range(net.lowest, len(net.trained)):
            if net.trained[layer]:
                part = net.table[layer]
                h, d = s[part[H] + r * part[H_ROW] :], s[part[D] + r * part[D_ROW] :]
                square += (squared_norm(h[: part[INPUTS]]) + 1) * squared_norm(d[: part[OUTPUTS]])
        norm = math.sqrt(square)
        factor = s.dtype.type(
            scale * (1.0 if norm <= private.clip else private.clip / norm)
        )  # NaN for a norm that is NaN
        for layer in range(net.lowest, len(net.trained)):
            if net.trained[layer]:
                part = net.table[layer]
                delta = s[part[D] + r * part[D_ROW] :][: part[D_ROW]]
                for j in range(len(delta)):
                    delta[j] *= factor


@helper
def normal_block(out, key, block):
    """Write a block of `streams.normals`."""
    first = key + np.uint64(block * _HALF) * streams.GOLDEN
    cosines, sines = out[:_HALF], out[_HALF:_BLOCK]
    if out.itemsize == 4:
        for j in range(0, _HALF, LANES):
            normal_pairs(cosines, sines, j, first + np.uint64(j) * streams.GOLDEN)
    else:
        for j in range(_HALF):
            z = first + np.uint64(j + 1) * streams.GOLDEN
            z = (z ^ (z >> np.uint64(30))) * streams.MIX_1
            z = (z ^ (z >> np.uint64(27))) * streams.MIX_2
            z = z ^ (z >> np.uint64(31))
            high, low = z >> np.uint64(33), (z >> np.uint64(23)) & np.uint64(0x1FF)
            radius = math.sqrt(-2 * math.log(high * 2.0**-31 + (low + 0.5) * 2.0**-40))
            angle = math.pi * ((z & np.uint64(0x7FFFFF)) * 2.0**-23 - 0.5)
            cosines[j] = (-radius if (z >> np.uint64(32)) & np.uint64(1) else radius) * math.cos(angle)
            sines[j] = radius * math.sin(angle)


@helper
def add_noise(private, s, net, offset, client, step, scale, block):
    """Add the noise of a step, times `scale`, to arrays laid out as the trained layers' weights, `offset` after them.

    `block` is an array for numbers on the way.
    """
    if private is None or private.noise == 0:
        return
    key, scale = private.normals[step, client], s.dtype.type(scale * private.noise)
    number = -1
    for layer in range(net.lowest, len(net.trained)):
        if net.trained[layer]:
            part = net.table[layer]
            outputs, row, first = part[OUTPUTS], part[W_ROW], part[FLAT]
            place, last = part[W] + offset, first + (part[INPUTS] + 1) * outputs
            flat, i, j = first, 0, 0  # the parameter, and its row and column in [W; b]
            while flat < last:
                if flat // _BLOCK != number:
                    number = flat // _BLOCK
                    normal_block(block, key, number)
                begin = flat % _BLOCK
                length = min(outputs - j, _BLOCK - begin, last - flat)
                if part[TRANSPOSED]:
                    for k in range(length):
                        s[np.uintp(place + (j + k) * row + i)] += scale * block[np.uintp(begin + k)]
                else:
                    to = place + i * row + j
                    for k in range(0, length - net.lanes + 1, net.lanes):
                        add_scaled(s, to + k, block, begin + k, scale)
                    rest = length % net.lanes
                    add_scaled_part(s, to + length - rest, block, begin + length - rest, scale, rest)
                flat += length
                j += length
                if j == outputs:
                    i, j = i + 1, 0
