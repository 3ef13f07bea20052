"""Confidence intervals of means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: The smallest number of seeds with an interval or a test. Half of the 95 % interval of two values is nine times their
#: standard deviation, which says nothing.
MIN_SEEDS = 3
#: Numbers whose range is at most this share of the largest are equal; rounding errors are smaller still.
EQUAL = 1e-9


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % confidence interval of the mean (Student's t), or NaN for fewer than three values."""
    n = len(values)
    if n < MIN_SEEDS:
        return math.nan
    return t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean; NaN for fewer than three values, or if one of them is NaN.

    Bias-corrected and accelerated, from 9,999 resamples with a fixed seed (`scipy.stats.bootstrap`; B. Efron, "Better
    bootstrap confidence intervals", Journal of the American Statistical Association 1987). It needs no normal
    distribution, but is too narrow for few values: use ten or more.
    """
    from scipy.stats import bootstrap

    if len(values) < MIN_SEEDS or np.isnan(values).any():
        return math.nan, math.nan
    if np.ptp(values) <= EQUAL * np.max(np.abs(values)):
        return float(np.min(values)), float(np.max(values))
    found = bootstrap((values,), np.mean, confidence_level=0.95, method="BCa", rng=0).confidence_interval
    return float(found.low), float(found.high)


def with_interval(mean: float, half: float, digits: int = 3, sign: str = "") -> str:
    """Return a mean and half of its interval as text, the mean alone if the interval is NaN, and "" if the mean is.

    Parameters
    ----------
    mean, half : float
    digits : int
        Decimals.
    sign : {"", "+"}
        Whether a positive mean has a sign.

    Examples
    --------
    >>> with_interval(0.5, 0.03125), with_interval(0.5, float("nan"), 2, "+")
    ('0.500 ± 0.031', '+0.50')
    """
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def t_quantile(degrees_of_freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, half of a 95 % interval in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 0.975))
