"""How close reconstructed examples are to the originals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_real
from fedsim.errors import ConfigError

#: PSNR of an exact reconstruction, in decibels; the formula gives infinity.
MAX_PSNR = 200.0


@checked_arguments
def psnr(original: NDArray[Any], reconstruction: NDArray[Any], data_range: float = 1.0) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each example in decibels, ``10 log10(data_range^2 / MSE)``, at most 200.

    Parameters
    ----------
    original, reconstruction : ndarray, shape (..., features)
    data_range : float
        Difference of the largest and the smallest possible value.

    Returns
    -------
    ndarray of float64, shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> float(psnr(np.zeros(4), np.full(4, 0.1)).round(6))
    20.0
    """
    check_real("data_range", data_range, 0, open_low=True)
    if np.shape(original)[-1:] != np.shape(reconstruction)[-1:]:
        raise ConfigError(
            f"reconstruction has shape {np.shape(reconstruction)}; allowed: {np.shape(original)[-1:]} features"
        )
    error = np.mean(np.square(np.subtract(original, reconstruction, dtype=np.float64)), axis=-1)
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.minimum(10 * np.log10(data_range**2 / error), MAX_PSNR)
    return found


@checked_arguments
def assign(originals: NDArray[Any], reconstructions: NDArray[Any]) -> NDArray[np.intp]:
    """Return the row of `reconstructions` for each original, so that the sum of squared differences is smallest.

    Each reconstruction is used once; if there are fewer of them than originals, the others get -1.

    Parameters
    ----------
    originals : ndarray, shape (examples, features)
    reconstructions : ndarray, shape (any, features)
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    rows = np.full(len(originals), -1)
    if len(reconstructions):
        cost = cdist(np.asarray(originals, float), np.asarray(reconstructions, float), "sqeuclidean")
        found, chosen = linear_sum_assignment(cost)
        rows[found] = chosen
    return rows
