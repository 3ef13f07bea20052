"""Updating weights in the scratch array."""

from fedsim.kernels.compiled.compilation import helper, inlined
from fedsim.kernels.compiled.intrinsics import prefetch_row
from fedsim.kernels.compiled.layout import D_ROW, H_ROW, INPUTS, OUTPUTS, TRANSPOSED, W_ROW, D, H
from fedsim.kernels.compiled.products import add_transposed_product

#: Rows of weights that are updated between two prefetches.
ROW_TILE = 80


@helper
def add_gradient(s, part, target, lanes, first, last, x, following):
    """Add a layer's gradient over rows `first` to `last` of a chunk to the array at `target`, laid out as its weights.

    Deltas contain the factor, such as minus the learning rate. The examples `following` are prefetched meanwhile, a few
    at a time, so that memory accesses overlap with arithmetic.
    """
    h, d, row = part[H] + first * part[H_ROW], part[D] + first * part[D_ROW], part[W_ROW]
    a, a_row, b, b_row, rows, columns = h, part[H_ROW], d, part[D_ROW], part[INPUTS] + 1, part[OUTPUTS]
    if part[TRANSPOSED]:
        a, a_row, b, b_row, rows, columns = d, part[D_ROW], h, part[H_ROW], part[OUTPUTS], part[INPUTS] + 1
    prefetched, tiles = 0, -(-rows // ROW_TILE) if len(following) else 1
    size = -(-rows // tiles)
    for tile in range(tiles):
        while prefetched * tiles < len(following) * (tile + 1):
            prefetch_row(x[following[prefetched]])
            prefetched += 1
        k = tile * size
        height = min(size, rows - k)
        add_transposed_product(s, target + k * row, row, height, a + k, a_row, b, b_row, columns, lanes, last - first)


@inlined
def start_velocity(w, length, momentum, shrink, has_constant):
    """Start a step's velocity, to which gradients are added: ``momentum * velocity + shrink * w + constant``.

    The velocity follows the weights, and the constant follows it.
    """
    velocity, constant = w[length:], w[2 * length :]
    for i in range(length):
        velocity[i] = momentum * velocity[i] + shrink * w[i]
    if has_constant:
        for i in range(length):
            velocity[i] += constant[i]


@helper
def shrink_and_subtract(w, shrink, lr, c, subtract):
    """``w = (1 - shrink) * w - lr * c``, without the last term unless `subtract`."""
    keep = w.dtype.type(1) - shrink
    if shrink != 0 and subtract:
        for i in range(len(w)):
            w[i] = keep * w[i] - lr * c[i]
    elif subtract:
        for i in range(len(w)):
            w[i] -= lr * c[i]
    else:
        for i in range(len(w)):
            w[i] *= keep
