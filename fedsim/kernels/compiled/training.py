"""The training loop: clients of a block, their epochs and their steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from fedsim import streams
from fedsim.kernels.compiled.backprop import PREFETCH_DISTANCE, forward_backward
from fedsim.kernels.compiled.compilation import cached, inlined
from fedsim.kernels.compiled.intrinsics import atomic_fetch_add, prefetch
from fedsim.kernels.compiled.layout import CHUNK, Network, W, clear_padding, pack, unpack, weights_length
from fedsim.kernels.compiled.private import (
    Private,
    add_noise,
    choose,
    clip_deltas,
    divisor,
    largest_batch,
    scale_before_clipping,
)  # fmt: skip
from fedsim.kernels.compiled.shuffle import shuffle
from fedsim.kernels.compiled.sums import is_finite, squared_distance
from fedsim.kernels.compiled.update import add_gradient, shrink_and_subtract, start_velocity

#: Examples of a chunk that are propagated forward and back together, so that their activations stay in cache.
MICROBATCH = 120


class Step(NamedTuple):
    """What all steps of a client's fit share."""

    lr: Any
    momentum: Any
    shrink: Any  # factor of the weights in the gradient: weight decay plus mu
    has_constant: bool  # whether each step adds the constant vector to the gradient
    in_place: bool  # whether gradients are added to the weights directly, not to the velocity


@inlined
def row_of(rows, client):
    """Return a client's row, or the row that all clients share."""
    return rows[min(client, len(rows) - 1)]


@inlined
def load_client(s, net, client, start, mu, centers, corrections, constant):
    """Write a client's weights and, unless `constant` is empty, ``correction - mu * center`` to the scratch array."""
    pack(s, 0, net.table, row_of(start, client))
    if len(constant):
        center = row_of(centers, client)
        for j in range(len(constant)):
            constant[j] = -mu * center[j]
        if len(corrections):
            correction = row_of(corrections, client)
            for j in range(len(constant)):
                constant[j] += correction[j]
        pack(s, 2 * net.weights, net.table, constant)


@inlined
def take_step(s, net, step, x, y, order, begin, stop, loss, private, client, number, block):
    """Take one step on a batch, examples ``order[begin:stop]``; return `loss` plus the losses of its microbatches."""
    if not step.in_place:
        start_velocity(s[net.table[0, W] :], net.weights, step.momentum, step.shrink, step.has_constant)
    scale = s.dtype.type((-step.lr if step.in_place else 1.0) / divisor(private, client, stop - begin))
    for chunk in range(begin, max(stop, begin + 1), CHUNK):  # an empty batch has an empty chunk
        rows = min(CHUNK, stop - chunk)
        for first in range(0, rows, MICROBATCH):
            last = min(first + MICROBATCH, rows)
            factor = scale_before_clipping(private, scale)
            loss += forward_backward(s, net, x, y, order[chunk:stop], first, last, factor)
            clip_deltas(private, s, net, first, last, scale)
        for layer in range(net.lowest, len(net.trained)):
            if net.trained[layer]:
                part = net.table[layer]
                place, length = part[W], weights_length(part)
                if step.in_place and (step.has_constant or step.shrink != 0):
                    w, constant = s[place : place + length], s[place + 2 * net.weights :]
                    shrink_and_subtract(w, step.lr * step.shrink, step.lr, constant, step.has_constant)
                target = place if step.in_place else place + net.weights
                following = order[stop : stop + PREFETCH_DISTANCE] if layer == net.lowest else order[:0]
                for first in range(0, rows, MICROBATCH):
                    last = min(first + MICROBATCH, rows)
                    upcoming = following if chunk + rows == stop and first == 0 else order[:0]
                    add_gradient(s, part, target, net.lanes, first, last, x, upcoming)
    add_noise(private, s, net, 0 if step.in_place else net.weights, client, number, scale, block)
    if not step.in_place:
        for layer in range(net.lowest, len(net.trained)):
            if net.trained[layer]:
                place, length = net.table[layer, W], weights_length(net.table[layer])
                w, direction = s[place : place + length], s[place + net.weights :]
                for i in range(length):
                    w[i] -= step.lr * direction[i]
    return loss


@cached
def train(
    out, losses, squares, start, x, y, indices, offsets, sizes, steps, keys, batch_size, net,
    lr, momentum, weight_decay, mu, centers, corrections, private, counter, s,
):  # fmt: skip
    """Train clients of a block, one after another, until the counter that all its threads share has reached the last.

    The scratch array ends in three parts of `net.weights` numbers, laid out alike: the weights; the velocity, which is
    a step's direction where gradients are not added in place; and the constant vector of the step.

    Parameters
    ----------
    out : ndarray, shape (clients, parameters)
        Receives the weights.
    losses, squares : ndarray of float64, shape (clients,)
        Receive the summed losses, NaN if a weight is not finite, and the squared distances from the start.
    corrections : ndarray, shape (clients, parameters), (1, parameters) or (0, 0)
        The latter for none.
    net : Network
    keys : ndarray of uint64, shape (epochs, clients) or (steps, clients)
        Those of the shuffles, or of the batches of a private fit.
    private : Private or None
        None for a fit that is not private, for which Numba compiles no code of private steps.
    counter : ndarray of int, shape (1,)
        The next client.
    s : ndarray
        The thread's scratch array.

    The others are fields of `kernels.fit.FitJob`.
    """
    largest = 0
    for n in sizes:
        largest = max(n, largest)
    order, digits = np.empty(largest, np.int64), np.empty(257, np.int64)
    words, spare = np.empty(largest, np.uint64), np.empty(largest, np.uint64)
    velocity = s[net.table[0, W] + net.weights : net.table[0, W] + 2 * net.weights]
    has_constant = mu != 0 or len(corrections) > 0
    block = np.empty(streams.NORMAL_BLOCK, s.dtype)
    constant = np.empty(out.shape[1] if has_constant else 0, s.dtype)
    while True:
        client = atomic_fetch_add(counter)
        if client >= len(sizes):
            break
        n, first_row = sizes[client], row_of(start, client)
        prefetch(indices, offsets[min(client + 2, len(sizes) - 1)])  # shards lie anywhere in memory
        size = batch_size if 0 < batch_size < n else n
        batches, largest = -(-n // size), largest_batch(private, client, steps[client], size)
        in_place = momentum == 0 and largest <= CHUNK
        step = Step(lr[client], momentum, weight_decay + mu, has_constant, in_place)
        clear_padding(s, net.table, min(largest, CHUNK))
        load_client(s, net, client, start, mu, centers, corrections, constant)
        if not in_place:
            velocity[:] = 0
        shard, shuffled, loss = indices[offsets[client] : offsets[client] + n], order[:n], 0.0
        if private is not None:
            for j in range(n):  # assigning the slice compiles Numba's error messages, which takes seconds
                shuffled[j] = shard[j]
        for number in range(steps[client]):
            if private is not None:
                begin, stop = 0, private.counts[number, client]
                choose(shuffled, keys[number, client], stop)
            else:
                if number % batches == 0:
                    shuffle(shuffled, shard, keys[number // batches, client], words, spare, digits)
                begin = number % batches * size
                stop = min(begin + size, n)
            loss = take_step(s, net, step, x, y, shuffled, begin, stop, loss, private, client, number, block)
        unpack(out[client], s, net.table)
        losses[client] = loss if is_finite(out[client]) else np.nan
        squares[client] = squared_distance(out[client], first_row)


def train_signature(dtype: str, targets: bool, private: bool) -> Any:
    """Return the Numba signature of `train` for a dtype, real-valued targets or labels, and private steps or others."""
    real, integer = numba.from_dtype(np.dtype(dtype)), types.int64
    integers, doubles, network = integer[::1], types.float64[::1], [integer[:, ::1], integer, integer, integer, integer]
    network_type = types.NamedTuple([*network, types.boolean[::1], integer], Network)
    rows, labels = (types.Array(item, ndim, "C", readonly=True) for item, ndim in ((real, 2), (integer, 1)))
    y = types.Array(real, 1, "C", readonly=True) if targets else labels
    keys = types.uint64[:, ::1]
    private_type = types.NamedTuple([types.float64, types.float64, integer[:, ::1], keys, doubles], Private)
    return types.void(
        real[:, ::1], doubles, doubles, rows, rows, y, integers, integers, integers, integers, keys,
        integer, network_type, real[::1], real, real, real, rows, rows, private_type if private else types.none,
        integers, real[::1],
    )  # fmt: skip
