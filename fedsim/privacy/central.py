"""Central differential privacy of clients: clipped updates, equal weights, and noise on their sum, added by the server.

McMahan, Ramage, Talwar and Zhang, "Learning differentially private recurrent language models", ICLR 2018
(arXiv:1710.06963), algorithm 1 (DP-FedAvg) with flat clipping and a fixed denominator.

Adaptive clipping: Andrew, Thakkar, McMahan and Ramaswamy, "Differentially private learning with adaptive clipping",
NeurIPS 2021 (arXiv:1905.03871), algorithm 1 and theorem 1.

Noise that is correlated between rounds, by a binary tree: Kairouz, McMahan, Song, Thakkar, Thakurta and Xu, "Practical
and private (deep) learning without sampling or shuffling", ICML 2021 (arXiv:2103.00039), algorithm 1 (DP-FTRL), with a
new tree in each epoch.

The server is trusted: it sees each update, and what it releases, the global model of each round, is private. Losses,
scores and drift in the history are computed without noise, for whoever runs the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval
from fedsim.clients.task import Update
from fedsim.errors import ConfigError
from fedsim.models.clipping import clip_factors
from fedsim.privacy.accounting import PrivacyLoss, default_delta, noise_multiplier_for
from fedsim.privacy.settings import Privacy
from fedsim.privacy.system_noise import system_normal, system_uniform
from fedsim.streams import Purpose, generator
from fedsim.updates.aggregators import Array, distances_to

#: Name of the server strategy's state that holds the clipping norm, where it adapts.
CLIP = "privacy clip"


@dataclass(frozen=True)
class CentralDP(Privacy):
    """Central differential privacy of clients.

    Each update is clipped to a norm, the mean gives every client the same weight, and Gaussian noise is added to it.

    Parameters
    ----------
    clip : float
        Clipping norm of an update, greater than 0; with `target_quantile` that of the first round.
    noise_multiplier : float, optional
        Standard deviation of the noise on the sum of a round's updates, in clipping norms, at least 0. Default: what
        makes all rounds of the experiment together cost `epsilon`.
    epsilon : float, optional
        Privacy budget, greater than 0: the run ends before the round that would exceed it.
    delta : float, optional
        Default ``clients ** -1.1``; see `fedsim.privacy.accounting.default_delta`.
    sampling : {"poisson", "fixed", "epochs"}
        Each client takes part with probability ``fraction_train``, on its own; or cohorts have a fixed size, which the
        accountant can amplify less; or they have a fixed size and each client takes part once in an epoch, in random
        order, and the noise is that of DP-FTRL, which needs no amplification.
    accountant : {"rdp", "pld"}
        See `fedsim.privacy.accounting.PrivacyLoss`.
    target_quantile : float, optional
        Adapt the clipping norm to this quantile of the updates' norms, between 0 and 1.
    clip_lr : float
        Learning rate of the adaptation, greater than 0.
    system_noise : bool
        Draw cohorts and noise from the operating system's generator, so that a run does not repeat, also after an
        interruption. By default they come from the seeded streams: for simulation only, because whoever knows the seed
        can remove them.

    Raises
    ------
    ConfigError
        A value outside these, or neither noise_multiplier nor epsilon.
    """

    target_quantile: float | None = None
    clip_lr: float = 0.2
    system_noise: bool = False

    limits = {
        "target_quantile": Interval(0, 1),
        "clip_lr": Interval(0, 10, open_low=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in (("system_noise", self.system_noise), ("target_quantile", self.target_quantile is not None)):
            if given and self.sampling == "epochs":
                raise ConfigError(f"CentralDP has {name} and sampling='epochs'; allowed: one of them")

    def mechanism(
        self, clients: int, fraction: float, rounds: int, seed: int, shared: NDArray[np.bool_] | None = None
    ) -> CentralMechanism:
        """Return the mechanism of a run.

        Parameters
        ----------
        clients : int
            Registered.
        fraction : float
            Share of them, or probability of each, in a round.
        rounds : int
        seed : int
        shared : ndarray of bool, shape (parameters,), optional
            Mask of the parameters that clients send; the others get no noise. Default all.

        Raises
        ------
        ConfigError
            dp-accounting is not installed, or no noise is enough for `epsilon`.
        """
        cohort = clients * fraction if self.sampling == "poisson" else max(1, int(clients * fraction))
        delta = default_delta(clients) if self.delta is None else self.delta
        accounted = clients, cohort, delta, self.sampling, self.accountant
        noise = self.noise_multiplier
        if noise is None:
            assert self.epsilon is not None
            noise = noise_multiplier_for(self.epsilon, rounds, *accounted)
        return CentralMechanism(self, PrivacyLoss(noise, *accounted), seed, shared)


class CentralMechanism:
    """Central DP in a run: what it samples, how it aggregates, and what it has cost.

    Parameters
    ----------
    settings : CentralDP
    loss : PrivacyLoss
    seed : int
    shared : ndarray of bool, optional
        As for `CentralDP.mechanism`.
    """

    def __init__(self, settings: CentralDP, loss: PrivacyLoss, seed: int, shared: NDArray[np.bool_] | None) -> None:
        self.settings, self.loss, self.shared, self._seed = settings, loss, shared, seed
        z = loss.noise_multiplier
        #: Standard deviation of the noise on the number of updates within the clipping norm.
        self.count_noise = loss.cohort / 20 if settings.target_quantile is not None else 0.0
        #: Noise multiplier of the sum: with the noisy count it costs what `z` alone would.
        self.sum_noise = z
        if settings.target_quantile is not None and z:
            if 2 * self.count_noise <= z:
                raise ConfigError(
                    f"CentralDP's noise_multiplier is {z:g}; allowed with target_quantile: less than a tenth of the "
                    f"cohort of {loss.cohort:g}"
                )
            self.sum_noise = (z**-2 - (2 * self.count_noise) ** -2) ** -0.5

    def sample(self, clients: int, server_round: int) -> NDArray[np.intp]:
        """Return the partition ids of a round's cohort, in rising order."""
        if self.settings.sampling == "epochs":
            epoch, number = divmod(server_round - 1, self.loss.rounds_per_epoch)
            order, size = generator(self._seed, Purpose.SAMPLE_TRAIN, epoch).permutation(clients), int(self.loss.cohort)
            return np.sort(order[number * size : (number + 1) * size])
        draws = generator(self._seed, Purpose.SAMPLE_TRAIN, server_round).random(clients)
        if self.settings.system_noise:
            draws = system_uniform(clients)
        if self.settings.sampling == "poisson":
            return np.flatnonzero(draws < self.loss.cohort / self.loss.clients)
        return np.sort(np.argsort(draws, kind="stable")[: int(self.loss.cohort)])

    def aggregator(
        self, server_round: int, weights: Array, clip: float, add_weighted: Callable[..., None]
    ) -> PrivateMean:
        """Return what combines the updates of a round that started from some weights."""
        normal: Callable[[int], NDArray[np.float64]]
        if self.settings.system_noise:
            normal = system_normal
        elif self.settings.sampling == "epochs":
            normal = partial(self._tree_noise, server_round)
        else:
            normal = generator(self._seed, Purpose.PRIVACY, server_round).standard_normal
        return PrivateMean(self, weights, clip, normal, add_weighted)

    def _tree_noise(self, server_round: int, length: int) -> NDArray[np.float64]:
        """Return a round's noise: the noise of the epoch's sum up to this round, less that of the sum before it."""
        epoch, number = divmod(server_round - 1, self.loss.rounds_per_epoch)
        before, after = _nodes(number), _nodes(number + 1)
        noise = np.zeros(length)
        for nodes, sign in ((after - before, 1), (before - after, -1)):
            for level, index in sorted(nodes):
                noise += sign * generator(self._seed, Purpose.PRIVACY, epoch, level, index).standard_normal(length)
        return noise


def _nodes(rounds: int) -> set[tuple[int, int]]:
    """Return the nodes of a binary tree, as level and index, whose leaves are the first `rounds` leaves."""
    return {(level, (rounds >> level) - 1) for level in range(rounds.bit_length()) if rounds >> level & 1}


class PrivateMean:
    """The mean of clipped updates over the expected cohort, with Gaussian noise; every client has the same weight.

    Parameters
    ----------
    mechanism : CentralMechanism
    weights : ndarray, shape (parameters,)
        The global weights that clients started from.
    clip : float
    normal : callable
        Number -> so many standard normal numbers.
    add_weighted : callable
        How to add up weights; see `fedsim.kernels`.
    """

    needs: ClassVar[Literal["sums", "rows"]] = "sums"

    def __init__(
        self,
        mechanism: CentralMechanism,
        weights: Array,
        clip: float,
        normal: Callable[[int], NDArray[np.float64]],
        add_weighted: Callable[..., None],
    ) -> None:
        self._mechanism, self._start, self.clip, self._normal = mechanism, weights, clip, normal
        self._add_weighted = add_weighted
        self._sum, self._factors = np.zeros(len(weights)), 0.0
        self._clients = self._within = 0

    @property
    def adapts(self) -> bool:
        """Whether the clipping norm changes from round to round."""
        return self._mechanism.settings.target_quantile is not None

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Add a block of updates, clipped."""
        norms = distances_to(self._start, update.weights)
        factors = clip_factors(norms, self.clip)
        self._add_weighted(self._sum, update.weights, factors)
        self._factors = float(np.add.accumulate(np.append(self._factors, factors))[-1])  # one after another
        self._clients += len(norms)
        self._within += int((norms <= self.clip).sum())

    def result(self) -> Array:
        """Return the new weights."""
        cohort = self._mechanism.loss.cohort
        start = self._start.astype(np.float64)
        noise = self._mechanism.sum_noise * self.clip * self._normal(len(start))
        if self._mechanism.shared is not None:
            noise[~self._mechanism.shared] = 0.0
        new: Array = start + (self._sum - self._factors * start + noise) / cohort
        return new.astype(self._start.dtype)

    def next_clip(self) -> float:
        """Return the next round's clipping norm, where it adapts; called after `result`."""
        quantile = self._mechanism.settings.target_quantile
        assert quantile is not None
        # Counted as 1/2 and -1/2, so that a client changes the sum by at most 1/2.
        count = self._within - self._clients / 2 + self._mechanism.count_noise * float(self._normal(1)[0])
        share = count / self._mechanism.loss.cohort + 0.5
        return self.clip * math.exp(-self._mechanism.settings.clip_lr * (share - quantile))
