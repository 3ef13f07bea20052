"""FoolsGold: clients whose past updates are similar to those of another client lose their weight.

Fung, Yoon and Beschastnikh, "The limitations of federated learning in Sybil settings", RAID 2020 (arXiv:1808.04866),
algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_flag, check_real
from fedsim.clients.private import parameter_mask, private_groups
from fedsim.clients.task import Update
from fedsim.errors import ConfigError
from fedsim.kernels.mean import RunningMean
from fedsim.servers.fedavg import GatheringFedAvg
from fedsim.updates.aggregators import Aggregator, Array, GatheringAggregator

#: A similarity of 1 can be computed as slightly less.
ROUNDING = 1e-12


class FoolsGold(GatheringFedAvg):
    """A mean in which clients with similar sums of past updates have less weight.

    It is made for Sybils: one attacker behind many clients, which all push the model in one direction, while honest
    clients differ because their data differ. It makes no assumption about the number of malicious clients, and it does
    not notice a single one. Honest clients with similar data, as in an IID split, lose weight as Sybils do.

    The server keeps an array of shape (clients seen so far, parameters compared) between rounds, which checkpoints
    contain. Only the clients of a round are compared with one another. In the paper weighted updates are added up; here
    their sum is divided by the number of clients, so that a round without similar clients is one of FedAvg with equal
    weights, and one in which all are similar does not change the model. Negative similarities count as 0. Numbers of
    examples that clients claim are not used.

    Parameters
    ----------
    confidence : float
        Slope of the logit that separates weights, greater than 0; the paper's kappa.
    output_layer : bool
        Compare updates of the last group of parameters that clients send only, as the paper does for deep networks.
        With False all parameters are compared. The paper can also weight features by importance, which is not offered.
    **options
        As for FedAvg.
    """

    def __init__(self, *, confidence: float = 1.0, output_layer: bool = True, **options: Any) -> None:
        super().__init__(**options)
        check_real("FoolsGold's confidence", confidence, 0, open_low=True)
        check_flag("FoolsGold's output_layer", output_layer)
        self.confidence, self.output_layer = confidence, output_layer
        self._rows: _IdentifiedRows | None = None

    def aggregator(self) -> Aggregator:
        """Keep the cohort's weights and partition ids."""
        self._rows = _IdentifiedRows(self.combine)
        return self._rows

    def combine(self, rows: Array, weights: NDArray[np.float64]) -> Array:
        """Add the updates to the clients' histories, compare these, and average."""
        assert self._rows is not None
        learning_rates = foolsgold_weights(self._add_to_history(self._rows.clients(), rows), self.confidence)
        mean = RunningMean(self._add_weighted)
        mean.add(rows, learning_rates)
        mean.add(self.global_weights[None], (1 - learning_rates).sum(keepdims=True))  # what the clients lose
        return mean.value()

    def _add_to_history(self, clients: NDArray[np.int64], rows: Array) -> NDArray[np.float64]:
        """Return the sums of all updates of a cohort's clients, which include this round's."""
        compared = self._compared()
        seen = self.state.get("clients", np.empty(0, np.int64))
        history = self.state.get("history", np.empty((0, np.count_nonzero(compared))))
        new = np.setdiff1d(clients, seen)
        seen = np.concatenate([seen, new])
        if len(new):
            history = np.concatenate([history, np.zeros((len(new), history.shape[1]))])
        order = np.argsort(seen)
        place = order[np.searchsorted(seen, clients, sorter=order)]
        history[place] += np.subtract(rows[:, compared], self.global_weights[compared], dtype=np.float64)
        self.state |= {"clients": seen, "history": history}
        return history[place]

    def _compared(self) -> NDArray[np.bool_]:
        """Return a mask of the parameters whose updates are compared, shape (parameters,)."""
        if not self.output_layer:
            return np.ones(len(self.global_weights), bool)
        if self.server_hooks is None:
            raise ConfigError("FoolsGold's output_layer is True; allowed outside of an Experiment: False")
        model = self.server_hooks.model
        private = private_groups(self.server_hooks.strategy, model)
        return parameter_mask([group for group in model.groups if group not in private][-1:], model)


def foolsgold_weights(history: NDArray[np.float64], confidence: float = 1.0) -> NDArray[np.float64]:
    """Return the weight of each client, the learning rates alpha of algorithm 1.

    Parameters
    ----------
    history : ndarray of float64, shape (clients, parameters)
        Each client's sum of updates.
    confidence : float

    Returns
    -------
    ndarray of float64, shape (clients,)
        From 0 to 1; NaN if a history is not finite.
    """
    norms = np.linalg.norm(history, axis=1, keepdims=True)
    directions = history / np.where(norms == 0, 1, norms)
    similarity = np.maximum(directions @ directions.T, 0.0)
    np.fill_diagonal(similarity, 0.0)
    largest = similarity.max(axis=1)
    # Pardoning: a similarity to a client that is closer to some other client counts less.
    similarity *= np.minimum(1.0, largest[:, None] / np.where(largest == 0, 1, largest))
    weights = np.clip(1 - similarity.max(axis=1), 0.0, 1.0)
    weights[weights < ROUNDING] = 0.0
    if (top := weights.max()) > 0:
        weights /= top
    with np.errstate(divide="ignore"):  # 0 and 1 become minus and plus infinity
        return np.clip(confidence * (np.log(weights) - np.log1p(-weights) + 0.5), 0.0, 1.0)


class _IdentifiedRows(GatheringAggregator):
    """Keeps the partition ids too."""

    def add(self, update: Update, weights: NDArray[np.float64]) -> None:
        super().add(update, weights)
        self._ids = [*getattr(self, "_ids", []), update.partition_ids]

    def clients(self) -> NDArray[np.int64]:
        """Return the partition ids, shape (clients,)."""
        return np.concatenate(self._ids).astype(np.int64)
