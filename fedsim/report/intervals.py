"""Confidence intervals of means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % confidence interval of the mean (Student's t), or NaN for fewer than two values."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return math.nan
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))
