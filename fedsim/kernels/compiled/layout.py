"""Layout of a network in a thread's scratch array: packed weights, activations and deltas.

Rows are padded with zeros to whole vectors. The padding stays zero as long as the numbers beside it are finite; because
a diverged client may leave NaN there, it is cleared when a client starts. A layer that has few outputs for its inputs
is stored transposed, as ``[W; b].T``, because those rows waste less.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compiled.compilation import helper, inlined
from fedsim.kernels.compiled.emitter import VECTOR_BYTES
from fedsim.kernels.compiled.intrinsics import copy
from fedsim.models.mlp import MLP

#: Examples whose activations are stored for one update in place; larger batches accumulate their gradient.
CHUNK = 640
#: Layers with so many times more inputs than outputs are stored transposed: their rows then fill whole vectors.
TRANSPOSE_RATIO = 4

# Columns of the layer table: inputs, outputs, offset in the flat weights, whether the layer is stored transposed; then
# offsets and row strides in the scratch array of a layer's weights, the activations that enter it, and its deltas. The
# table's last row has only activations: the scores.
INPUTS, OUTPUTS, FLAT, TRANSPOSED, W, W_ROW, H, H_ROW, D, D_ROW = range(10)


class Network(NamedTuple):
    """What compiled functions know about a network and about the layers that a fit trains."""

    table: NDArray[np.int64]  # shape (layers + 1, 10), with the columns above
    weights: int  # length of the packed weights; the scratch array ends in three arrays of that length and layout
    lanes: int  # numbers in a vector
    activation: int  # code of `ACTIVATIONS`
    loss: int  # code of `LOSSES`
    trained: NDArray[np.bool_]  # shape (layers,)
    lowest: int  # the first trained layer


@helper
def weights_length(layer):
    """Return the length of a layer's packed weights."""
    return layer[W_ROW] * (layer[OUTPUTS] if layer[TRANSPOSED] else layer[INPUTS] + 1)


@functools.lru_cache(maxsize=16)
def make_layout(net: MLP) -> tuple[NDArray[np.int64], int, int]:
    """Return the layer table, the length of the packed weights and that of the scratch array."""
    lanes = VECTOR_BYTES // np.dtype(net.dtype).itemsize

    def padded(length: int) -> int:
        return -(-length // lanes) * lanes

    layers = len(net.sizes) - 1
    table = np.zeros((layers + 1, 10), dtype=np.int64)
    place = 0
    for layer, width in enumerate(net.sizes):
        table[layer, [H, H_ROW]] = place, padded(width + 1)
        place += CHUNK * padded(width + 1)
    for layer in range(layers):
        inputs, outputs = net.sizes[layer] + 1, net.sizes[layer + 1]
        transposed = TRANSPOSE_RATIO * outputs <= inputs
        table[layer, [INPUTS, OUTPUTS, TRANSPOSED]] = inputs - 1, outputs, transposed
        table[layer, [W_ROW, D, D_ROW]] = padded(inputs if transposed else outputs), place, padded(outputs)
        table[layer, FLAT] = net.layout[f"W{layer + 1}"][0].start
        place += CHUNK * padded(outputs)
    start = place
    for layer in range(layers):
        table[layer, W] = place
        place += int(weights_length.py_func(table[layer]))
    return table, place - start, place + 2 * (place - start)


_local = threading.local()


def thread_scratch(net: MLP) -> NDArray[Any]:
    """Return this thread's scratch array for a network, aligned to vectors; zeros when it is made."""
    if getattr(_local, "net", None) != net:
        length, item = make_layout(net)[2], np.dtype(net.dtype).itemsize
        memory = np.zeros(length + VECTOR_BYTES // item, dtype=net.dtype)
        start = -memory.ctypes.data % VECTOR_BYTES // item
        _local.net, _local.memory = net, memory[start : start + length]
    scratch: NDArray[Any] = _local.memory
    return scratch


@helper
def pack(s, offset, table, flat):
    """Write each layer's ``[W; b]`` from flat weights to the scratch array, `offset` after its place, zero-padded."""
    for k in range(len(table) - 1):
        layer = table[k]
        place, inputs, outputs, row = layer[W] + offset, layer[INPUTS] + 1, layer[OUTPUTS], layer[W_ROW]
        matrix = flat[layer[FLAT] : layer[FLAT] + inputs * outputs]
        if layer[TRANSPOSED]:
            for j in range(outputs):
                column = s[place + j * row : place + (j + 1) * row]
                for i in range(inputs):
                    column[i] = matrix[i * outputs + j]
                column[inputs:] = 0
        else:
            for i in range(inputs):
                copy(s, place + i * row, matrix, i * outputs, outputs)
                s[place + i * row + outputs : place + (i + 1) * row] = 0


@inlined
def unpack(flat, s, table):
    """Write each layer's ``[W; b]`` from the scratch array to flat weights."""
    for k in range(len(table) - 1):
        layer = table[k]
        place, inputs, outputs, row = layer[W], layer[INPUTS] + 1, layer[OUTPUTS], layer[W_ROW]
        matrix = flat[layer[FLAT] : layer[FLAT] + inputs * outputs]
        if layer[TRANSPOSED]:
            for i in range(inputs):
                for j in range(outputs):
                    matrix[i * outputs + j] = s[place + j * row + i]
        else:
            for i in range(inputs):
                copy(matrix, i * outputs, s, place + i * row, outputs)


@inlined
def clear_padding(s, table, rows):
    """Set the padding of hidden activations to zero in the first `rows` rows of a chunk, after another client.

    A product writes sums of zero weights there, which are NaN if an activation was not finite. Products skip unused
    lanes, so later rows would keep it, and transposed layers multiply it by zero weights, which is NaN again. The
    padding of the inputs is never written, and that of deltas is overwritten with every row.
    """
    for layer in range(1, len(table) - 1):
        start, row, width = table[layer, H], table[layer, H_ROW], table[layer, INPUTS] + 1
        for r in range(rows):
            s[start + r * row + width : start + (r + 1) * row] = 0
