"""Sums over clients' weights: weighted sums, distances, and the check for finite values."""

import numpy as np

from fedsim.kernels.compiled.compilation import cached, sum_helper


@sum_helper
def is_finite(values):
    """Whether no value is infinite or NaN: such a value minus itself is not 0."""
    total = values.dtype.type(0)
    for j in range(len(values)):
        total += values[j] - values[j]
    return total == 0


@sum_helper
def squared_distance(row, center):
    """Return the squared Euclidean distance of a row from a center; equal arguments give equal bits in every call."""
    total = 0.0
    for j in range(len(center)):
        difference = np.float64(row[j]) - np.float64(center[j])
        total += difference * difference
    return total


@cached
def squared_distances(out, rows, center):
    """Write the `squared_distance` of each row from a center."""
    for k in range(len(rows)):
        out[k] = squared_distance(rows[k], center)


@cached
def add_weighted(total, rows, weights):
    """Add weighted rows to a running sum, as `kernels.numpy.add_weighted` does."""
    k = 0
    while k + 4 <= len(rows):  # rows may be in another core's cache: four at a time keep more requests in flight
        p, q, r, s = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for j in range(len(total)):
            two = total[j] + np.float64(p[j]) * a + np.float64(q[j]) * b
            total[j] = two + np.float64(r[j]) * c + np.float64(s[j]) * d
        k += 4
    while k < len(rows):
        p, a = rows[k], weights[k]
        for j in range(len(total)):
            total[j] += np.float64(p[j]) * a
        k += 1
