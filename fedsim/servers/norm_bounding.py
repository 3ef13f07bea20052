"""Norm bounding: updates are clipped to a norm before they are averaged, and noise is added to the new weights.

Sun, Kairouz, Suresh and McMahan, "Can you really backdoor federated learning?", NeurIPS Workshop on Federated Learning
for Data Privacy and Confidentiality 2019 (arXiv:1911.07963), the defences "norm thresholding of updates" and "(weak)
differential privacy".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real
from fedsim.clients.private import private_mask
from fedsim.clients.task import Update
from fedsim.kernels.mean import RunningMean
from fedsim.models.clipping import clip_factors
from fedsim.servers.fedavg import FedAvg
from fedsim.streams import Purpose, generator
from fedsim.updates.aggregators import Aggregator, Array, GatheringAggregator, Mean, distances_to


class NormBounding(FedAvg):
    """FedAvg of updates that are clipped to a norm, with Gaussian noise on the new weights.

    It limits what one client can add to the model in a round: an update that is multiplied to replace the model has no
    more weight than the largest allowed one. It does not detect a malicious update within the norm.

    It is not `fedsim.privacy.CentralDP`: clients keep their weights in the mean, with which they can claim to have more
    examples than they have; the noise has no relation to the number of clients; and no privacy loss is computed.

    Parameters
    ----------
    norm : float, optional
        Largest Euclidean norm of an update, greater than 0; the paper's M. A good value depends on the model, the
        learning rate and the round. Default: the median of the norms of a round's updates, for which the server keeps
        all of them; it is at most the largest honest norm as long as fewer than half of the clients are malicious.
    noise : float
        Standard deviation of the Gaussian noise on each new weight, at least 0.
    **options
        As for FedAvg.
    """

    def __init__(self, *, norm: float | None = None, noise: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        if norm is not None:
            check_real("NormBounding's norm", norm, 0, open_low=True)
        check_real("NormBounding's noise", noise, 0)
        self.norm, self.noise = norm, noise

    def aggregator(self) -> Aggregator:
        """Average the clipped updates as they arrive if the norm is given, otherwise at the end."""
        if self.norm is None:
            return GatheringAggregator(self._combine)
        return _ClippedMean(self.global_weights, self.norm, self._add_weighted)

    def _combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        norms, mean = distances_to(self.global_weights, rows), RunningMean(self._add_weighted)
        mean.add(clip_rows(rows, self.global_weights, norms, float(np.median(norms))), weights)
        return mean.value()

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Add the noise, to the parameters that clients share."""
        if not self.noise:
            return combined
        normal = generator(self.seed, Purpose.DEFENCE, server_round).standard_normal(len(weights))
        if self.server_hooks:
            normal[private_mask(self.server_hooks.strategy, self.server_hooks.model)] = 0.0
        return combined + self.noise * normal


def clip_rows(rows: Array, start: Array, norms: NDArray[np.float64], norm: float) -> Array:
    """Return weights whose distance from a point is clipped; rows within the norm keep their bits.

    Parameters
    ----------
    rows : ndarray, shape (clients, parameters)
    start : ndarray, shape (parameters,)
        The point.
    norms : ndarray of float64, shape (clients,)
        The distance of each row.
    norm : float
        The largest distance.

    Returns
    -------
    ndarray, shape (clients, parameters)
    """
    factors = clip_factors(norms, norm)
    outside = np.flatnonzero(~(factors >= 1))  # NaN is not hidden
    if not len(outside):
        return rows
    clipped = rows.copy()
    for k in outside:
        clipped[k] = start + factors[k] * np.subtract(rows[k], start, dtype=np.float64)
    return clipped


class _ClippedMean(Mean):
    """The weighted mean of clipped updates."""

    def __init__(self, start: Array, norm: float, add_weighted: Callable[..., None]) -> None:
        super().__init__(add_weighted)
        self._start, self._norm = start, norm

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        norms = distances_to(self._start, update.weights)
        super().add(replace(update, weights=clip_rows(update.weights, self._start, norms, self._norm)), weights)
