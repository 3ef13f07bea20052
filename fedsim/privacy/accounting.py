"""The privacy loss of a run after each round, computed by Google's dp-accounting.

A round samples a cohort and adds Gaussian noise to the sum of its clipped updates. Its privacy loss depends on how the
cohort is sampled, and on the definition of neighbouring datasets:

- Poisson sampling (each client takes part with probability q, independently of the others): datasets that differ by one
  client more or less. Mironov, Talwar and Zhang, "Renyi differential privacy of the sampled Gaussian mechanism", 2019
  (arXiv:1908.10530).
- A cohort of fixed size, sampled without replacement: datasets in which one client's data are replaced, so that the
  sum changes by up to twice the clipping norm. Wang, Balle and Kasiviswanathan, "Subsampled Renyi differential privacy
  and analytical moments accountant", AISTATS 2019 (arXiv:1808.00087), theorem 27.
- Epochs in which each client takes part once, in random order, with noise that is correlated between the rounds of an
  epoch: datasets in which one client's updates are removed. Kairouz, McMahan, Song, Thakkar, Thakurta and Xu,
  "Practical and private (deep) learning without sampling or shuffling", ICML 2021 (arXiv:2103.00039), theorem 4.1 and
  appendix D.
- No sampling (every client in every round, as in local DP): the Gaussian mechanism.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice, check_integer, check_real
from fedsim.errors import ConfigError, missing_extra

SAMPLING = ("poisson", "fixed", "epochs")
ACCOUNTANTS = ("rdp", "pld")
#: Width of the grid on which the PLD accountant rounds privacy losses up.
PLD_INTERVAL = 1e-3
#: The noise multipliers that the accountants can handle.
MAX_NOISE = 1e6
MIN_NOISE = {"rdp": 1e-3, "pld": 0.1}


def check_accounting(owner: str, sampling: str, accountant: str) -> None:
    """Raise ConfigError unless the accountant exists and knows the sampling; `owner` begins the error."""
    check_choice(f"{owner}sampling", sampling, SAMPLING)
    check_choice(f"{owner}accountant", accountant, ACCOUNTANTS)
    if sampling != "poisson" and accountant == "pld":
        raise ConfigError(
            f"{owner}accountant is 'pld', which knows Poisson sampling only; allowed for {sampling} sampling: rdp"
        )


def default_delta(clients: int) -> float:
    """Return ``clients ** -1.1``, less than one over the number of clients.

    McMahan, Ramage, Talwar and Zhang, "Learning differentially private recurrent language models", ICLR 2018
    (arXiv:1710.06963), section 3.
    """
    return float(max(clients, 2) ** -1.1)


@dataclass(frozen=True)
class PrivacyLoss:
    """The privacy loss of rounds that each sample a cohort and add noise.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise on the sum, in clipping norms; for epochs that of a node of the tree.
    clients : int
        Registered.
    cohort : int
        Clients of a round; for Poisson sampling their expected number, `clients` times the probability.
    delta : float
    sampling : {"poisson", "fixed", "epochs"}
        How the cohort is sampled. With as many clients as there are, the first two are no sampling.
    accountant : {"rdp", "pld"}
        Renyi DP, or privacy loss distributions, which usually give a tighter bound and take longer; only for Poisson
        sampling.

    Raises
    ------
    ConfigError
        A value outside these, or dp-accounting is not installed.
    """

    noise_multiplier: float
    clients: int
    cohort: float
    delta: float
    sampling: str = "poisson"
    accountant: str = "rdp"

    def __post_init__(self) -> None:
        check_accounting("", self.sampling, self.accountant)
        check_real("noise_multiplier", self.noise_multiplier, 0, MAX_NOISE)
        least = MIN_NOISE[self.accountant]
        if 0 < self.noise_multiplier < least:
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier:g}; allowed: 0, or at least {least:g}")
        check_integer("clients", self.clients, 1)
        check_real("cohort", self.cohort, 0, self.clients, open_low=True)
        if self.sampling != "poisson":
            check_integer("cohort", self.cohort, 1)
        check_real("delta", self.delta, 0, 1, open_low=True, open_high=True)
        _library()

    def epsilon(self, rounds: int) -> float:
        """Return epsilon after some rounds; infinite without noise."""
        if rounds == 0:
            return 0.0
        if not self.noise_multiplier:
            return float("inf")
        if self.accountant == "pld":
            epsilon = float(self._distribution.self_compose(rounds).get_epsilon_for_delta(self.delta))
            return min(epsilon, self._renyi_epsilon(rounds))  # both are bounds; the grid of the first is coarse
        return self._renyi_epsilon(rounds)

    @property
    def rounds_per_epoch(self) -> int:
        """Number of cohorts without a common client, for sampling in epochs."""
        return self.clients // int(self.cohort)

    def _renyi_epsilon(self, rounds: int) -> float:
        if self.sampling == "epochs":
            epochs, rest = divmod(rounds, self.rounds_per_epoch)
            divergence = epochs * self._tree_rdp(self.rounds_per_epoch) + (self._tree_rdp(rest) if rest else 0.0)
        else:
            divergence = rounds * self._rdp
        epsilon, _ = _library().rdp.compute_epsilon(self._orders, divergence, self.delta)
        return float(epsilon)

    def _tree_rdp(self, rounds: int) -> NDArray[np.float64]:
        """Return the Renyi divergence of the first rounds of an epoch, by order."""
        dp = _library()
        event = dp.SingleEpochTreeAggregationDpEvent(self.noise_multiplier, rounds)
        accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
        divergence: NDArray[np.float64] = accountant.compose(event).rdp
        return divergence

    @cached_property
    def _orders(self) -> NDArray[np.float64]:
        """The orders of the Renyi divergences."""
        orders: NDArray[np.float64] = _library().rdp.RdpAccountant().orders
        return orders

    @cached_property
    def _rdp(self) -> NDArray[np.float64]:
        """One round's Renyi divergence, by order."""
        dp = _library()
        with _without_warnings():
            if self.sampling == "poisson":
                event = dp.PoissonSampledDpEvent(self.cohort / self.clients, dp.GaussianDpEvent(self.noise_multiplier))
                divergence: NDArray[np.float64] = dp.rdp.RdpAccountant().compose(event).rdp
                return divergence
            # Replacing a client's data moves the sum by up to twice the clipping norm.
            gaussian = dp.GaussianDpEvent(self.noise_multiplier / 2)
            event = dp.SampledWithoutReplacementDpEvent(self.clients, int(self.cohort), gaussian)
            relation = dp.NeighboringRelation.REPLACE_ONE
            whole, sampled = (
                dp.rdp.RdpAccountant(neighboring_relation=relation).compose(e).rdp for e in (gaussian, event)
            )
        least: NDArray[np.float64] = np.minimum(whole, sampled)
        return least  # sampling does not increase the divergence, which the theorem's bound may

    @cached_property
    def _distribution(self) -> Any:
        """One round's privacy loss distribution."""
        from dp_accounting.pld import privacy_loss_distribution as pld

        return pld.from_gaussian_mechanism(
            self.noise_multiplier,
            sampling_prob=self.cohort / self.clients,
            value_discretization_interval=PLD_INTERVAL,
            neighboring_relation=_library().NeighboringRelation.ADD_OR_REMOVE_ONE,
        )

    def rounds_within(self, epsilon: float, most: int) -> int:
        """Return how many rounds, up to some number, cost at most an epsilon."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon(middle) <= epsilon else (low, middle - 1)
        return low


@cache
def noise_multiplier_for(
    epsilon: float,
    rounds: int,
    clients: int,
    cohort: float,
    delta: float,
    sampling: str = "poisson",
    accountant: str = "rdp",
) -> float:
    """Return the smallest noise multiplier, to four digits, with which some rounds cost at most an epsilon.

    Parameters
    ----------
    epsilon : float
        Greater than 0.
    rounds : int
    clients, cohort, delta, sampling, accountant
        As for `PrivacyLoss`.

    Raises
    ------
    ConfigError
        No noise multiplier up to 1e6 is enough.
    """
    check_integer("rounds", rounds, 1)

    def cost(noise_multiplier: float) -> float:
        return PrivacyLoss(noise_multiplier, clients, cohort, delta, sampling, accountant).epsilon(rounds)

    return smallest_noise(cost, epsilon, f"{rounds} rounds", delta, accountant)


def smallest_noise(cost: Callable[[float], float], epsilon: float, what: str, delta: float, accountant: str) -> float:
    """Return the smallest noise multiplier, to four digits, whose cost is at most an epsilon.

    Parameters
    ----------
    cost : callable
        Noise multiplier -> epsilon.
    epsilon : float
        Greater than 0.
    what : str
        For the error: what has the cost.
    delta : float
    accountant : {"rdp", "pld"}

    Raises
    ------
    ConfigError
        No noise multiplier up to 1e6 is enough.
    """
    check_real("epsilon", epsilon, 0, open_low=True)

    from scipy.optimize import brentq

    def excess(noise_multiplier: float) -> float:
        return math.log(max(cost(noise_multiplier), 1e-300) / epsilon)  # 0 where delta alone covers the loss

    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > MAX_NOISE:
            raise ConfigError(
                f"epsilon is {epsilon:g}, which {what} with delta {delta:g} exceed with any noise; allowed: more, or "
                "fewer rounds"
            )
    low = max(high / 2, MIN_NOISE[accountant])
    while excess(low) <= 0:
        if low == MIN_NOISE[accountant]:
            return low
        low, high = max(low / 2, MIN_NOISE[accountant]), low
    found = brentq(excess, low, high, rtol=1e-4)
    while excess(found) > 0:  # the root is found from either side
        found *= 1 + 1e-4
    return float(found)


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise missing_extra("privacy", "privacy") from None
    return dp_accounting


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide warnings about orders that do not converge; the accountant drops them, and the bound holds without them."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
