"""Mean ranks of several levels over many conditions.

J. Demšar, "Statistical comparisons of classifiers over multiple data sets", Journal of Machine Learning Research 2006.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Ranks(NamedTuple):
    """Mean ranks and their tests.

    Attributes
    ----------
    mean_ranks : ndarray, shape (levels,)
        1 is the best; tied levels share the mean of their ranks.
    statistic : float
        Friedman's chi-squared, corrected for ties; NaN if all levels are tied in every condition.
    p : float
        Of the null hypothesis that within each condition all orders of the levels are equally likely.
    critical_difference : float
        Nemenyi's: mean ranks that differ by at least this much differ at 5 %.
    """

    mean_ranks: Floats
    statistic: float
    p: float
    critical_difference: float


def rank_levels(scores: ArrayLike) -> Ranks:
    """Rank levels within each condition, and test whether their mean ranks differ.

    p is that of a permutation test of Friedman's statistic: exact if there are at most 9,999 arrangements, otherwise
    from 9,999 random ones with a fixed seed. The distributions that are often used instead, chi-squared and Iman and
    Davenport's F, are approximations for many conditions.

    Parameters
    ----------
    scores : array_like, shape (conditions, levels)
        Larger is better; at least two conditions and two levels, without NaN.
    """
    from scipy.stats import permutation_test, rankdata, studentized_range

    ranks = rankdata(-np.round(np.asarray(scores, dtype=float), 12), axis=1)  # rounding errors would break ties
    conditions, levels = ranks.shape
    centred = ranks - (levels + 1) / 2
    width = float(studentized_range.ppf(0.95, levels, np.inf)) / np.sqrt(2)
    critical = width * np.sqrt(levels * (levels + 1) / (6 * conditions))
    if not centred.any():
        return Ranks(ranks.mean(axis=0), float("nan"), 1.0, critical)

    def spread(*columns: Floats, axis: int) -> Floats:
        return np.sum([column.sum(axis=axis) ** 2 for column in columns], axis=0)

    options: dict[str, Any] = {"permutation_type": "samples", "alternative": "greater", "vectorized": True, "rng": 0}
    found = permutation_test(centred.T, spread, **options)
    statistic = (levels - 1) * found.statistic / float((centred**2).sum())
    return Ranks(ranks.mean(axis=0), float(statistic), float(found.pvalue), float(critical))
