"""FLTrust: the server trains on a small clean dataset, and trusts updates that point in the direction of its own.

Cao, Fang, Liu and Gong, "FLTrust: Byzantine-robust federated learning via trust bootstrapping", NDSS 2021
(arXiv:2012.13995), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.task import Update
from fedsim.errors import ConfigError
from fedsim.servers.fedavg import FedAvg
from fedsim.updates.aggregators import Aggregator, Array


class FLTrust(FedAvg):
    """A mean of updates weighted by their similarity to the server's own update, each scaled to its norm.

    The new weights are ``w + sum_i TS_i |g_0| / |g_i| g_i / sum_i TS_i`` with trust scores
    ``TS_i = max(0, cos(g_i, g_0))``. g_i is the update of client i, and g_0 that of the server, which trains on its
    root examples in every round as a client does, by SGD with the learning rate, the epochs or steps, and the batch
    size of the client strategy. An update that does not point in the direction of the server's has no weight, and all
    have the server's norm, so the result does not depend on how many clients are malicious, but on how well the root
    examples represent the data. If no update is trusted the model is unchanged. Numbers of examples that clients claim
    are not used.

    With the same number of epochs, clients with more examples than the server make more steps, and the model moves at
    the server's pace. ``steps`` of the client strategy makes these numbers equal, as in the paper.

    Parameters
    ----------
    root : int
        Number of root examples, at least 1: drawn at random from the clients' training examples, as the split makes
        them and before an attack changes them. The paper uses 100.
    **options
        As for FedAvg.
    """

    #: Function of the round and the global weights that returns the weights after training on the root examples, which
    #: the caller sets.
    train_on_root: Callable[[int, Array], Array] | None = None

    def __init__(self, *, root: int = 100, **options: Any) -> None:
        super().__init__(**options)
        check_integer("FLTrust's root", root, 1)
        self.root = root

    def aggregator(self) -> Aggregator:
        """Train on the root examples, and average updates weighted by trust."""
        if self.train_on_root is None:
            raise ConfigError("FLTrust has no root examples to train on; allowed: FLTrust as an Experiment's server")
        return TrustedMean(self.global_weights, self.train_on_root(self._round, self.global_weights))


class TrustedMean:
    """The mean of updates by trust score, each with the norm of the server's update.

    Parameters
    ----------
    start : ndarray, shape (parameters,)
        The global weights.
    trained : ndarray, shape (parameters,)
        The weights after training on the server.
    """

    needs: ClassVar[Literal["sums", "rows"]] = "sums"

    def __init__(self, start: Array, trained: Array) -> None:
        self._start = start
        server = np.subtract(trained, start, dtype=np.float64)
        self._norm = float(np.sqrt(np.einsum("i,i->", server, server)))
        self._direction = server / self._norm if self._norm else server
        self._sum, self._trust = np.zeros(len(start)), 0.0

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        """Add a block of updates; `weights` are not used."""
        for row in update.weights:
            change = np.subtract(row, self._start, dtype=np.float64)
            norm = float(np.sqrt(np.einsum("i,i->", change, change)))
            if norm == 0:
                continue
            change /= norm
            trust = float(np.maximum(np.einsum("i,i->", change, self._direction), 0.0))  # NaN is not hidden
            self._sum += trust * change
            self._trust += trust

    def result(self) -> Array:
        """Return the new weights."""
        if self._trust == 0:
            return self._start.copy()
        new: Array = self._start + self._norm * self._sum / self._trust
        return new.astype(self._start.dtype)
