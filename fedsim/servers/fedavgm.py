"""FedAvgM: FedAvg with server momentum.

Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual classification", 2019
(arXiv:1909.06335), section 4.3: ``v <- beta v + Delta``, ``w <- w - v``, with Delta the old weights minus the round's
mean.
"""

from __future__ import annotations

from typing import Any

from fedsim.checks import check_real
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Array


class FedAvgM(FedAvg):
    """FedAvg with server momentum; agrees with Flower's FedAvgM to rounding.

    Parameters
    ----------
    server_learning_rate : float
        Greater than 0.
    server_momentum : float
        At least 0 and less than 1. The default of 0 is Flower's; it makes the strategy FedAvg with a server learning
        rate, SCAFFOLD's eta_g. The paper uses 0.9.
    **options
        As for FedAvg.
    """

    def __init__(self, *, server_learning_rate: float = 1.0, server_momentum: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        check_real("FedAvgM's server_learning_rate", server_learning_rate, 0, open_low=True)
        check_real("FedAvgM's server_momentum", server_momentum, 0, 1, open_high=True)
        self.server_learning_rate, self.server_momentum = server_learning_rate, server_momentum

    def step(self, server_round: int, weights: Array, combined: Array) -> Array:
        """Update the momentum and apply it."""
        momentum = weights - combined
        if "momentum" in self.state:
            momentum = self.server_momentum * self.state["momentum"] + momentum
        self.state["momentum"] = momentum
        return weights - self.server_learning_rate * momentum
