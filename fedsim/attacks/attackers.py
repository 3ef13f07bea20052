"""The malicious clients of a run: their training examples, and their updates on the client or at the server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import Attack, AttackContext
from fedsim.checks import shorten
from fedsim.clients.task import Task, Update
from fedsim.errors import ConfigError
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose, generator


def poison(attack: Attack, federated: FederatedDataset, seed: int) -> FederatedDataset:
    """Return a copy in which malicious clients train on changed examples, from the first round of the attack.

    The changed examples are appended to the training set, so that examples that honest clients share with malicious
    ones, and those that any client evaluates on, are unchanged.

    Raises
    ------
    ConfigError
        The attack does not fit the dataset, or its `poison` returned arrays of another shape.
    """
    data, partition = federated.dataset, federated.partition
    attack.check_dataset(data)
    malicious = attack.malicious(len(partition), seed)
    entries = np.flatnonzero(np.isin(partition.owners, malicious))
    if type(attack).poison is Attack.poison or not len(entries):
        return federated
    parts = []
    for client in malicious[partition.sizes[malicious] > 0].tolist():
        x, y = data.x_train[partition[client]], data.y_train[partition[client]]
        made: Any = attack.poison(x.copy(), y.copy(), data, generator(seed, Purpose.ATTACK, client))
        if not isinstance(made, tuple) or [np.shape(part) for part in made] != [x.shape, y.shape]:
            raise ConfigError(
                f"{type(attack).__name__}'s poison() returned {shorten(made)}; allowed: a tuple of examples, shape "
                f"{x.shape}, and labels, shape {y.shape}"
            )
        parts.append(made)
    copied, indices = partition.indices[entries], partition.indices.copy()
    indices[entries] = len(data.x_train) + np.arange(len(entries))
    changed = replace(
        data,
        x_train=np.concatenate([data.x_train, *(x for x, _ in parts)]).astype(data.x_train.dtype, copy=False),
        y_train=np.concatenate([data.y_train, *(y for _, y in parts)]),
        groups={name: np.concatenate([group, group[copied]]) for name, group in data.groups.items()},
    )
    return replace(
        federated, dataset=changed, poisoned=Partition(indices, partition.offsets), poisoned_from=attack.start
    )


class Attackers:
    """The malicious clients of a run.

    Parameters
    ----------
    attack : Attack
    num_clients, seed : int
    shared : ndarray of bool, shape (parameters,)
        Mask of the parameters that clients send.

    Attributes
    ----------
    clients : ndarray of int, shape (malicious,)
        Their partition ids.
    """

    def __init__(self, attack: Attack, num_clients: int, seed: int, shared: NDArray[np.bool_]) -> None:
        self.attack, self._shared = attack, shared
        self.clients = attack.malicious(num_clients, seed)
        self._corrupts = type(attack).corrupt is not Attack.corrupt

    def among(self, round_number: int, clients: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return a mask of the clients that are malicious in a round, shape (clients,)."""
        return np.isin(clients, self.clients) & (round_number >= self.attack.start)

    @property
    def on_client(self) -> bool:
        """Whether a malicious client computes its update from its own, before the transforms."""
        return self._corrupts and self.attack.sees == "own"

    @property
    def on_server(self) -> bool:
        """Whether malicious updates are computed from those of several clients, which only the server has."""
        return self._corrupts and self.attack.sees != "own"

    def corrupt(self, task: Task, update: Update) -> Update:
        """Return updates with those of malicious clients changed by the attack.

        Parameters
        ----------
        task : Task
        update : Update
            A block of clients if the attack sees its own updates, otherwise those of the whole round.

        Raises
        ------
        ConfigError
            The attack's `corrupt` returned an array of another shape.
        """
        malicious = self.among(task.round, update.partition_ids)
        if not malicious.any():
            return update
        together, start = self.on_server, task.global_weights[self._shared].astype(np.float64)
        visible = ~malicious if self.attack.sees == "all" else np.zeros_like(malicious)
        ctx = AttackContext(
            task.seed,
            task.round,
            update.partition_ids[malicious],
            update.num_examples[malicious],
            start,
            update.weights[np.ix_(visible, self._shared)] - start,
            len(malicious) if together else 0,
            int(update.num_examples.sum()) if together else 0,
        )
        changes = update.weights[np.ix_(malicious, self._shared)] - start
        sent = self.attack.corrupt(changes, ctx)
        if np.shape(sent) != changes.shape:
            raise ConfigError(
                f"{type(self.attack).__name__}'s corrupt() returned an array of shape {np.shape(sent)}; allowed: "
                f"{changes.shape}"
            )
        weights = update.weights.copy()
        weights[np.ix_(malicious, self._shared)] = start + sent
        return replace(update, weights=weights, update_norm=None)
