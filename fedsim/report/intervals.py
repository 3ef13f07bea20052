"""Confidence intervals of means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % confidence interval of the mean (Student's t), or NaN for fewer than two values."""
    n = len(values)
    if n < 2:
        return math.nan
    return t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


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
