"""Adaptive server optimisers: FedAdagrad, FedAdam and FedYogi.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar and McMahan, "Adaptive federated optimization", ICLR 2021
(arXiv:2003.00295), algorithm 2: the mean update Delta is used as a pseudo-gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from fedsim.checks import check_real
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Array


class FedOpt(FedAvg):
    """The base class of the three: ``m <- beta_1 m + (1 - beta_1) Delta`` and ``w <- w + eta m / (sqrt(v) + tau)``.

    Each agrees with Flower's strategy of the same name to rounding. As in Flower, v is initialised with 0, where the
    paper uses ``tau^2`` or more; the first steps are therefore larger than the paper's.

    Parameters
    ----------
    eta : float
        Server learning rate, greater than 0.
    beta_1, beta_2 : float
        At least 0 and less than 1.
    tau : float
        Degree of adaptivity, greater than 0; smaller is more adaptive.
    **options
        As for FedAvg.
    """

    def __init__(
        self, *, eta: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3, **options: Any
    ) -> None:
        super().__init__(**options)
        name = type(self).__name__
        check_real(f"{name}'s eta", eta, 0, open_low=True)
        check_real(f"{name}'s beta_1", beta_1, 0, 1, open_high=True)
        check_real(f"{name}'s beta_2", beta_2, 0, 1, open_high=True)
        check_real(f"{name}'s tau", tau, 0, open_low=True)
        self.eta, self.beta_1, self.beta_2, self.tau = eta, beta_1, beta_2, tau

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Update both moments and apply them."""
        delta = combined - weights
        zero = np.zeros_like(weights)
        m = self.beta_1 * self.state.get("m", zero) + (1 - self.beta_1) * delta
        v = self.second_moment(self.state.get("v", zero), delta * delta)
        self.state.update(m=m, v=v)
        return weights + self.corrected_eta(server_round) * m / (np.sqrt(v) + self.tau)

    @abstractmethod
    def second_moment(self, v: Array, square: Array) -> Array:
        """Return the new v, given the old one and Delta squared."""

    def corrected_eta(self, server_round: int) -> float:
        """Return the round's learning rate."""
        return self.eta


class FedAdagrad(FedOpt):
    """FedOpt with ``v <- v + Delta^2``.

    Parameters
    ----------
    eta, tau
        As for FedOpt.
    **options
        As for FedAvg.
    """

    def __init__(self, *, eta: float = 0.1, tau: float = 1e-3, **options: Any) -> None:
        super().__init__(eta=eta, beta_1=0.0, beta_2=0.0, tau=tau, **options)

    def second_moment(self, v: Array, square: Array) -> Array:
        """Return the sum."""
        return v + square


class FedAdam(FedOpt):
    """FedOpt with ``v <- beta_2 v + (1 - beta_2) Delta^2`` and Adam's bias correction.

    The paper has no bias correction. This is Flower's, which multiplies eta in round t by
    ``sqrt(1 - beta_2^(t + 1)) / (1 - beta_1^(t + 1))``: Adam's own exponent is t, so the correction is one round ahead.

    Parameters
    ----------
    eta, beta_1, beta_2, tau
        As for FedOpt.
    **options
        As for FedAvg.
    """

    def second_moment(self, v: Array, square: Array) -> Array:
        """Return the moving average."""
        return self.beta_2 * v + (1 - self.beta_2) * square

    def corrected_eta(self, server_round: int) -> float:
        """Return eta with the bias correction of Adam (Kingma and Ba, arXiv:1412.6980, section 2), as Flower does."""
        power = server_round + 1.0  # in Adam, server_round
        return float(self.eta * np.sqrt(1 - self.beta_2**power) / (1 - self.beta_1**power))


class FedYogi(FedOpt):
    """FedOpt with ``v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)``.

    Parameters
    ----------
    eta, beta_1, beta_2, tau
        As for FedOpt.
    **options
        As for FedAvg.
    """

    def __init__(
        self, *, eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3, **options: Any
    ) -> None:
        super().__init__(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau, **options)

    def second_moment(self, v: Array, square: Array) -> Array:
        """Return v changed towards Delta squared by ``(1 - beta_2) Delta^2``."""
        return v - (1 - self.beta_2) * square * np.sign(v - square)
