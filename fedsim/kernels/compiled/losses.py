"""Losses and their derivatives with respect to the scores."""

import math

from fedsim.kernels.compiled.compilation import helper
from fedsim.kernels.compiled.elementary import exp

#: Loss name -> its code in compiled functions.
LOSSES = {"mse": 0, "binary_cross_entropy": 1, "cross_entropy": 2}
_MSE, CROSS_ENTROPY = LOSSES["mse"], LOSSES["cross_entropy"]


# A negative index counts from the end, and checking for that keeps LLVM from vectorising s[h + j]: rows are slices.
@helper
def softmax_cross_entropy(s, z, z_row, d, d_row, outputs, y, examples, scale):
    """Write the derivatives of examples' cross-entropy, times `scale`, and return the sum of their losses.

    Each pass treats all examples before the next pass starts: short independent loops that a core can overlap.
    """
    total = 0.0
    for r in range(len(examples)):
        scores, delta = s[z + r * z_row :][:outputs], s[d + r * d_row :][:outputs]
        top = scores[0]
        for j in range(1, outputs):
            top = scores[j] if scores[j] > top else top
        for j in range(outputs):
            delta[j] = scores[j] - top
        total -= delta[int(y[examples[r]])]
    exp(s[d : d + len(examples) * d_row])
    for r in range(len(examples)):
        delta = s[d + r * d_row : d + (r + 1) * d_row]
        mass = delta[0]
        for j in range(1, outputs):
            mass += delta[j]
        total += math.log(mass)
        share = scale / mass
        for j in range(outputs):
            delta[j] *= share
        delta[outputs:] = 0
        delta[int(y[examples[r]])] -= scale
    return total


@helper
def elementwise_loss(kind, z, d, target, scale):
    """Write the derivative of one example's mse or binary cross-entropy, times `scale`, and return its loss.

    The target is the index of the output that should be 1 while all others are 0, or the value of a single output.
    """
    zero, one = z.dtype.type(0), z.dtype.type(1)
    outputs = len(z)
    loss, share = zero, scale / z.dtype.type(outputs)
    if kind != _MSE:
        for j in range(outputs):
            d[j] = -z[j] if z[j] > zero else z[j]
        exp(d)
    for j in range(outputs):
        wanted = (one if j == target else zero) if outputs > 1 else z.dtype.type(target)
        if kind == _MSE:
            error = z[j] - wanted
            loss += error * error
            d[j] = (error + error) * share
        else:
            loss += (z[j] - z[j] * wanted if z[j] > zero else -z[j] * wanted) + math.log1p(d[j])
            d[j] = ((d[j] if z[j] < zero else one) / (one + d[j]) - wanted) * share
    return loss / z.dtype.type(outputs)
