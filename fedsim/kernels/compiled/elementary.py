"""Exponential and hyperbolic tangent, applied in place; in single precision as polynomials that vectorise."""

from __future__ import annotations

import math
from typing import Any

import numba

from fedsim.kernels.compiled.compilation import helper, named_helper
from fedsim.kernels.compiled.intrinsics import power_of_two


def _make_polynomial(name: str, highest: float, *rest: float) -> Any:
    """Make a helper with a name: a polynomial in x in precision `kind`, given its coefficients from the highest power.

    Unlike a call of a library function, it vectorises.
    """

    @named_helper(name)
    def value(kind, x):
        total = kind(highest)
        for c in numba.literal_unroll(rest):
            total = total * x + kind(c)
        return total

    return value


#: log 2 in two parts, the first with few bits, so that its product with an integer is exact.
_LN_2 = 0.693359375, math.log(2) - 0.693359375
#: Q in e^r = 1 + r + r^2 Q(r) for |r| <= log(2) / 2: minimax of the relative error (3e-9), by Lawson's iteration.
_exp_q = _make_polynomial("_exp_q", 1.38146132e-03, 8.36870982e-03, 4.16683874e-02, 1.66665207e-01, 4.99999935e-01)


@helper
def exp(h):
    """Replace x by e^x, for x that are not positive; in single precision to two units in the last place."""
    kind = h.dtype.type
    if h.itemsize == 8:
        for j in range(len(h)):
            h[j] = math.exp(h[j])
    else:
        bottom, rounder = kind(-87), kind(1.5 * 2**23)  # adding and subtracting `rounder` rounds to an integer
        for j in range(len(h)):
            x = bottom if h[j] < bottom else h[j]  # NaN stays NaN
            n = ((x if x >= bottom else bottom) * kind(1 / math.log(2)) + rounder) - rounder
            r = (x - n * kind(_LN_2[0])) - n * kind(_LN_2[1])
            h[j] = (_exp_q(kind, r) * r * r + r + kind(1)) * power_of_two(n)


#: tanh x = x P(x^2) / Q(x^2) for |x| <= 9 in single precision: the minimax coefficients of Eigen
#: (generic_fast_tanh_float) and XLA.
_tanh_p = _make_polynomial(
    "_tanh_p", -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_tanh_q = _make_polynomial(
    "_tanh_q", 1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03
)


@helper
def tanh(h):
    """Replace x by tanh(x), to a few units in the last place."""
    kind = h.dtype.type
    if h.itemsize == 8:
        for j in range(len(h)):
            h[j] = math.tanh(h[j])
    else:
        top = kind(9)
        for j in range(len(h)):
            x = -top if h[j] < -top else (top if h[j] > top else h[j])  # NaN stays NaN
            square = x * x
            h[j] = x * _tanh_p(kind, square) / _tanh_q(kind, square)
