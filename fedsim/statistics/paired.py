"""Paired tests and effect sizes, for many pairs of samples together.

All functions take differences of shape (pairs, seeds): a row for each pair of samples, NaN where a seed has no value in
one of the two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.report.intervals import EQUAL, MIN_SEEDS

Floats = NDArray[np.float64]
#: |t| above which limits of effect sizes are those of large t.
FAR = 300.0


class PairedStatistics(NamedTuple):
    """Statistics of paired differences, each of shape (pairs,); NaN where they are not defined.

    Attributes
    ----------
    seeds : ndarray of int
        Number of differences.
    difference, difference_low, difference_high : ndarray
        Mean difference with its 95 % interval (Student's t).
    effect_size, effect_size_low, effect_size_high : ndarray
        Hedges' g_z with a 95 % interval, see `effect_sizes`.
    statistic, p : ndarray
        Of the test, two-sided.
    """

    seeds: NDArray[np.int64]
    difference: Floats
    difference_low: Floats
    difference_high: Floats
    effect_size: Floats
    effect_size_low: Floats
    effect_size_high: Floats
    statistic: Floats
    p: Floats


def t_test(differences: ArrayLike) -> PairedStatistics:
    """Test whether mean differences are zero by the paired t test.

    Rows of fewer than `MIN_SEEDS` differences have a mean only. If all differences are zero, the interval is [0, 0] and
    p is 1. If all are the same other number, t and p are NaN, because there is no variance to compare the mean with.

    Parameters
    ----------
    differences : array_like, shape (pairs, seeds)

    Returns
    -------
    PairedStatistics
    """
    from scipy.special import stdtr, stdtrit

    d = np.asarray(differences, dtype=float)
    n = np.count_nonzero(~np.isnan(d), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(d, axis=1) / n
        spread = np.sqrt(np.nansum((d - mean[:, None]) ** 2, axis=1) / (n - 1))
        constant = np.nansum(np.abs(d - mean[:, None]), axis=1) <= EQUAL * n * np.abs(mean)
        spread[constant], spread[n < MIN_SEEDS] = 0.0, np.nan
        t = mean / (spread / np.sqrt(n))
        t[np.isinf(t)] = np.nan
    p = 2 * stdtr(n - 1, -np.abs(t))
    p[(spread == 0) & (mean == 0)] = 1.0
    half = stdtrit(np.maximum(n - 1, 1), 0.975) * spread / np.sqrt(np.maximum(n, 1))
    half[constant & (mean != 0)] = np.nan
    return PairedStatistics(n, mean, mean - half, mean + half, *effect_sizes(t, n), t, p)


def effect_sizes(t: Floats, seeds: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Return the effect sizes of paired differences, Hedges' g_z, with the limits of their 95 % intervals.

    d_z is the mean difference divided by the standard deviation of the differences (D. Lakens, "Calculating and
    reporting effect sizes to facilitate cumulative science", Frontiers in Psychology 2013). g_z is d_z without its bias
    in small samples (L. V. Hedges, "Distribution theory for Glass's estimator of effect size and related estimators",
    Journal of Educational Statistics 1981). The interval is that of the population's effect size, from the noncentral t
    distribution (G. Cumming and S. Finch, "A primer on the understanding, use, and calculation of confidence intervals
    that are based on central and noncentral distributions", Educational and Psychological Measurement 2001).

    Parameters
    ----------
    t : ndarray, shape (pairs,)
        Statistics of paired t tests; NaN gives NaN.
    seeds : ndarray of int, shape (pairs,)
        Numbers of differences.
    """
    from scipy.special import chdtri, gammaln, nctdtrinc

    known = ~np.isnan(t)
    m, root = seeds[known] - 1.0, np.sqrt(seeds[known])
    bias = np.exp(gammaln(m / 2) - gammaln((m - 1) / 2)) / np.sqrt(m / 2)
    # Far out, where scipy's function is inexact and does not end, only the chi-square part of noncentral t matters.
    near = np.clip(t[known], -FAR, FAR)
    limits = np.array([nctdtrinc(m, q, near) for q in (0.975, 0.025)])
    tails = np.where(t[known] > 0, [[0.975], [0.025]], [[0.025], [0.975]])
    limits = np.where(np.abs(t[known]) > FAR, t[known] * np.sqrt(chdtri(m, tails) / m), limits)
    found = np.full((3, len(t)), np.nan)
    found[:, known] = bias * t[known] / root, *limits / root
    return found[0], found[1], found[2]


def wilcoxon_test(differences: ArrayLike) -> PairedStatistics:
    """Test whether differences are symmetric about zero by Wilcoxon's signed-rank test (`scipy.stats.wilcoxon`).

    p is exact for up to 13 differences, also with ties; differences of zero are left out. The mean and the effect size
    with their intervals are those of `t_test`.

    Parameters
    ----------
    differences : array_like, shape (pairs, seeds)

    Returns
    -------
    PairedStatistics
    """
    from scipy.stats import wilcoxon

    d = np.asarray(differences, dtype=float)
    by_t = t_test(d)
    statistic, p = np.full(len(d), np.nan), np.where(by_t.p == 1, 1.0, np.nan)
    for row in np.flatnonzero((by_t.seeds >= MIN_SEEDS) & (np.nan_to_num(d) != 0).any(axis=1)):
        values = d[row][~np.isnan(d[row])]
        found = wilcoxon(np.round(values / np.abs(values).max(), 9))  # rounding errors would break ties
        statistic[row], p[row] = found.statistic, found.pvalue
    return by_t._replace(statistic=statistic, p=p)


def smallest_wilcoxon_p(differences: ArrayLike) -> Floats:
    """Return the smallest p that Wilcoxon's signed-rank test can give with as many differences other than zero."""
    d = np.asarray(differences, dtype=float)
    return 2.0 ** (1 - np.count_nonzero(np.nan_to_num(d), axis=1))


def holm(p: ArrayLike) -> Floats:
    """Return p values corrected for the number of tests; NaN is not counted.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979: the
    probability that any of the true null hypotheses is rejected is at most the level of the test.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN is sorted last
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return corrected
