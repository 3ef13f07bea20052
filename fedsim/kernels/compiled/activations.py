"""Hidden activations of one example, forward and backward."""

from fedsim.kernels.compiled.compilation import helper
from fedsim.kernels.compiled.elementary import tanh

#: Activation name -> its code in compiled functions.
ACTIVATIONS = {"relu": 0, "tanh": 1, "sigmoid": 2}
_RELU, _TANH = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]


@helper
def activate(kind, h):
    """Replace z by f(z)."""
    half, zero = h.dtype.type(0.5), h.dtype.type(0)
    if kind == _RELU:
        for j in range(len(h)):
            h[j] = zero if h[j] < zero else h[j]  # NaN stays NaN
    elif kind == _TANH:
        tanh(h)
    else:
        for j in range(len(h)):
            h[j] *= half
        tanh(h)
        for j in range(len(h)):
            h[j] = half + half * h[j]


@helper
def activation_backward(kind, d, h):
    """Multiply the delta by f'(z), given h = f(z)."""
    one, zero = h.dtype.type(1), h.dtype.type(0)
    if kind == _RELU:
        for j in range(len(h)):
            d[j] *= one if h[j] > zero else zero
    elif kind == _TANH:
        for j in range(len(h)):
            d[j] *= one - h[j] * h[j]
    else:
        for j in range(len(h)):
            d[j] *= h[j] * (one - h[j])
