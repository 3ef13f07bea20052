"""Forward propagation and backpropagation of a microbatch, into activations and deltas in the scratch array."""

from fedsim.kernels.compiled.activations import activate, activation_backward
from fedsim.kernels.compiled.compilation import helper, inlined
from fedsim.kernels.compiled.intrinsics import copy, prefetch_row
from fedsim.kernels.compiled.layout import D_ROW, H_ROW, INPUTS, OUTPUTS, TRANSPOSED, W_ROW, D, H, W
from fedsim.kernels.compiled.losses import CROSS_ENTROPY, elementwise_loss, softmax_cross_entropy
from fedsim.kernels.compiled.products import multiply, multiply_transposed

#: How many examples ahead of its use an example is prefetched; also across an update, which prefetches the next batch.
PREFETCH_DISTANCE = 10


@inlined
def forward_product(s, table, layer, first, rows, lanes):
    """Write a layer's outputs, before the activation, for `rows` rows of a chunk from `first` on."""
    part, h_row, z_row = table[layer], table[layer, H_ROW], table[layer + 1, H_ROW]
    h, z, w, w_row = part[H] + first * h_row, table[layer + 1, H] + first * z_row, part[W], part[W_ROW]
    if part[TRANSPOSED]:
        multiply_transposed(s, z, z_row, rows, h, h_row, w, w_row, part[OUTPUTS], w_row // lanes)
    else:
        multiply(s, z, z_row, rows, h, h_row, w, w_row, part[OUTPUTS], lanes, part[INPUTS] + 1)


@inlined
def backward_product(s, table, layer, first, rows, lanes):
    """Write the derivatives with respect to a layer's inputs: deltas of the layer below, before its activation."""
    part, d_row, below_row = table[layer], table[layer, D_ROW], table[layer - 1, D_ROW]
    d, below, w, w_row = part[D] + first * d_row, table[layer - 1, D] + first * below_row, part[W], part[W_ROW]
    if part[TRANSPOSED]:
        multiply(s, below, below_row, rows, d, d_row, w, w_row, part[INPUTS], lanes, part[OUTPUTS])
    else:
        multiply_transposed(s, below, below_row, rows, d, d_row, w, w_row, part[INPUTS], w_row // lanes)


@inlined
def load_examples(s, table, x, examples, first, last):
    """Copy rows `first` to `last` of a chunk's examples to the first layer's inputs, and prefetch later ones."""
    inputs, h_row = table[0, INPUTS], table[0, H_ROW]
    for r in range(first, last):
        h = table[0, H] + r * h_row
        if r + PREFETCH_DISTANCE < len(examples):
            prefetch_row(x[examples[r + PREFETCH_DISTANCE]])
        copy(s, h, x[examples[r]], 0, inputs)
        s[h + inputs] = 1  # the bias is the weight of an input that is always one


@inlined
def output_loss(s, net, y, examples, first, scale):
    """Write the last layer's deltas, times `scale`, for examples in rows from `first` on; return the summed loss."""
    layer = len(net.table) - 2
    outputs, z_row, d_row = net.table[layer, OUTPUTS], net.table[layer + 1, H_ROW], net.table[layer, D_ROW]
    z, d = net.table[layer + 1, H] + first * z_row, net.table[layer, D] + first * d_row
    if net.loss == CROSS_ENTROPY:
        return softmax_cross_entropy(s, z, z_row, d, d_row, outputs, y, examples, scale)
    total = 0.0
    for r in range(len(examples)):
        scores, delta = s[z + r * z_row :][:outputs], s[d + r * d_row :][:outputs]
        total += elementwise_loss(net.loss, scores, delta, y[examples[r]], scale)
    return total


@helper
def forward_backward(s, net, x, y, examples, first, last, scale):
    """Propagate rows `first` to `last` of a chunk forward and back; return their summed loss.

    Leaves each layer's inputs and, from the lowest trained layer up, its deltas (times `scale`) in the scratch array,
    where the update reads them. `examples` are those of the batch from the start of the chunk on.
    """
    table, rows = net.table, last - first
    load_examples(s, table, x, examples, first, last)
    for layer in range(len(table) - 1):
        forward_product(s, table, layer, first, rows, net.lanes)
        if layer + 2 < len(table):
            outputs, z_row = table[layer, OUTPUTS], table[layer + 1, H_ROW]
            z = table[layer + 1, H] + first * z_row
            for r in range(rows):
                place = z + r * z_row
                activate(net.activation, s[place : place + outputs])
                s[place + outputs] = 1
    loss = output_loss(s, net, y, examples[first:last], first, scale)
    for layer in range(len(table) - 2, net.lowest, -1):
        backward_product(s, table, layer, first, rows, net.lanes)
        h_row, d_row, width = table[layer, H_ROW], table[layer - 1, D_ROW], table[layer, INPUTS]
        h, d = table[layer, H] + first * h_row, table[layer - 1, D] + first * d_row
        for r in range(rows):
            place = d + r * d_row
            activation_backward(net.activation, s[place : place + width], s[h + r * h_row : h + r * h_row + width])
            s[place + width : place + d_row] = 0  # of a transposed layer, one of these columns is the bias's
    return loss
