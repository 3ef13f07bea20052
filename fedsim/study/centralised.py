"""Training on all examples in one place, with which the global weights are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.clients import SGD
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.threads import ThreadEngine
from fedsim.rounds.validity import ValidityChecks


class CentralisedTraining:
    """Centralised training, round by round, in the context of its `engine`.

    Parameters
    ----------
    clients : ClientRuntime
        SGD with the hyperparameters of its client strategy trains on the examples of its clients together.
    weights : ndarray, shape (parameters,)
        The initial weights.
    """

    def __init__(self, clients: ClientRuntime, weights: NDArray[Any]) -> None:
        pooled, client = clients.federated.pooled(), SGD.of(clients.client)
        self._runtime = ClientRuntime(clients.model, pooled, client, clients.seed, clients.kernel_name)
        self.engine = ThreadEngine(self._runtime, workers=1)
        self.weights = weights

    def divergence(self, server_round: int, weights: NDArray[Any]) -> float:
        """Train for a round and return ``|w - w_central| / |w_central|``."""
        if server_round:
            task = self._runtime.task(self.weights, server_round)
            [update] = self.engine.train(task, np.zeros(1, dtype=np.intp))
            update = ValidityChecks(self._runtime.model.dtype).keep_valid(task, update, {})
            self.weights = update.weights[0]
        difference = np.subtract(weights, self.weights, dtype=np.float64)
        return float(np.linalg.norm(difference) / np.linalg.norm(self.weights.astype(np.float64)))
