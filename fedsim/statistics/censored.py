"""Times to an event that some runs did not reach before they ended: right-censored data.

E. L. Kaplan and P. Meier, "Nonparametric estimation from incomplete observations", Journal of the American Statistical
Association 1958.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class CensoredTimes(NamedTuple):
    """Statistics of censored times.

    Attributes
    ----------
    reached : int
        Number of runs that reached the event.
    median : float
        Kaplan-Meier estimate: the time by which half of the runs have reached the event. NaN if it is not known,
        because half or more have not when the last run ends.
    later_than : float
        The median is later than this: a time to which the data reach, for a median that is not known.
    low, high : float
        95 % interval of the median, from Greenwood's formula on the log-log scale (R. Brookmeyer and J. Crowley, "A
        confidence interval for the median survival time", Biometrics 1982). `high` is infinite where the data give no
        upper limit, and `low` is NaN where they give no lower one.
    restricted_mean : float
        Mean of the times up to a horizon: a run that has not reached the event by then counts with the horizon.
    """

    reached: int
    median: float
    later_than: float
    low: float
    high: float
    restricted_mean: float


def kaplan_meier(times: ArrayLike, reached: ArrayLike, horizon: float) -> CensoredTimes:
    """Estimate the distribution of times to an event (`scipy.stats.ecdf`).

    Parameters
    ----------
    times : array_like, shape (runs,)
        Time of the event, or of the end of a run that did not reach it.
    reached : array_like of bool, shape (runs,)
    horizon : float
        Of the restricted mean.

    Notes
    -----
    Where the curve is exactly one half between two events, the median is the middle between them, so that without
    censoring it is the sample median. Where it is one half after the last event, the median is not known: a run that
    missed the event never makes it earlier.
    """
    from scipy.stats import CensoredData, ecdf

    known = np.asarray(reached, dtype=bool)
    if not len(known):
        return CensoredTimes(0, *[math.nan] * 5)
    curve = ecdf(CensoredData.right_censored(np.asarray(times, dtype=float), ~known)).sf
    with warnings.catch_warnings():  # the interval is not defined where the curve is 0 or 1
        warnings.simplefilter("ignore", RuntimeWarning)
        band: Any = curve.confidence_interval(0.95, method="log-log")
    at, share = curve.quantiles, curve.probabilities
    half = _first(at, share <= 0.5 + 1e-9, float(np.max(times)))
    median = (half + _first(at, share < 0.5 - 1e-9, math.nan)) / 2
    low = _first(at, band.low.probabilities <= 0.5, math.nan)
    high = _first(at, band.high.probabilities <= 0.5, math.inf)
    edges = np.clip([0.0, *at, math.inf], 0.0, horizon)
    restricted = float(np.sum(np.diff(edges) * np.append(1.0, share)))
    return CensoredTimes(int(known.sum()), median, half, low, high, restricted)


def _first(values: NDArray[np.float64], found: NDArray[np.bool_], otherwise: float) -> float:
    return float(values[found.argmax()]) if found.any() else otherwise
