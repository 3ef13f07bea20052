"""The base classes of attacks on training: some clients are malicious, and change their examples or their updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit
from fedsim.checks import Interval, check_choice, check_fields, check_instance, check_integer, to_builtin_sequence
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.objects import short_repr
from fedsim.streams import Purpose, generator

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: Whose updates of the round a malicious client sees: its own, those of all malicious clients, or everybody's.
SEES = ("own", "malicious", "all")


@dataclass(frozen=True)
class AttackContext:
    """The context of an attack on updates.

    Attributes
    ----------
    seed, round : int
    clients : ndarray of int, shape (malicious,)
        Partition ids of the malicious clients.
    num_examples : ndarray of int, shape (malicious,)
    global_weights : ndarray of float64, shape (shared,)
        The shared parameters of the global model.
    others : ndarray of float64, shape (honest, shared)
        The updates of the round's honest clients if the attack sees "all"; otherwise no rows.
    cohort_size, cohort_examples : int
        Number of updates of the round, and of their examples; 0 if the attack sees its "own" update only.
    """

    seed: int
    round: int
    clients: Indices
    num_examples: Indices
    global_weights: NDArray[np.float64]
    others: NDArray[np.float64]
    cohort_size: int = 0
    cohort_examples: int = 0

    def rngs(self) -> list[np.random.Generator]:
        """Return a random generator per malicious client."""
        return [generator(self.seed, Purpose.ATTACK, self.round, int(client)) for client in self.clients]


@dataclass(frozen=True)
class Attack(CheckedInit):
    """The base class of attacks, which changes nothing.

    An attack overrides `poison`, `corrupt` or both. Private parameters and other arrays that a client strategy sends
    besides the model are not attacked. Malicious clients do not apply transforms that have no part on the server, such
    as `Clip` and `LocalDP`; what they send is encoded as everybody's.

    Parameters
    ----------
    fraction : float
        Share of the clients that are malicious, 0 to 1, rounded, and at least one client unless it is 0. They are drawn
        from the seed: the same clients in every round and for every attack; a larger fraction adds clients.
    clients : tuple of int
        Partition ids of the malicious clients, which replace the fraction.
    start : int
        The first round of the attack, at least 1.

    Raises
    ------
    ConfigError
        A value that is not allowed.
    """

    fraction: float = 0.2
    clients: tuple[int, ...] = ()
    start: int = 1

    limits: ClassVar = {"fraction": Interval(0, 1), "start": Interval(1)}

    def __post_init__(self) -> None:
        check_fields(self)
        name, clients = f"{type(self).__name__}'s clients", to_builtin_sequence(self.clients)
        check_instance(name, clients, tuple | list, "a list of partition ids")
        for client in clients:
            check_integer(name, client)
        if len(set(clients)) < len(clients):
            raise ConfigError(f"{name} is {clients}; allowed: each client once")
        object.__setattr__(self, "clients", tuple(clients))

    def __str__(self) -> str:
        """Return a short label: the settings that differ from their defaults."""
        return short_repr(self)

    @property
    def sees(self) -> str:
        """Whose updates of the round `corrupt` needs: "own", "malicious" or "all"."""
        return "own"

    def malicious(self, num_clients: int, seed: int) -> Indices:
        """Return the partition ids of the malicious clients, ascending, shape (malicious,).

        Raises
        ------
        ConfigError
            `clients` names a client that does not exist.
        """
        if self.clients:
            check_integer(f"{type(self).__name__}'s clients", max(self.clients), 0, num_clients - 1)
            return np.sort(np.array(self.clients, dtype=np.intp))
        count = max(round(self.fraction * num_clients), 1) if self.fraction else 0
        return np.sort(generator(seed, Purpose.ATTACK).permutation(num_clients)[:count])

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise ConfigError if the attack does not fit a dataset."""

    def poison(self, x: Array, y: Array, dataset: Dataset, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the changed training examples of a malicious client.

        Parameters
        ----------
        x : ndarray, shape (examples, ...)
            A copy, which may be changed.
        y : ndarray, shape (examples,)
            A copy, which may be changed.
        dataset : Dataset
        rng : Generator
            The client's own.
        """
        return x, y

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Return the updates that malicious clients send, shape (malicious, shared).

        Parameters
        ----------
        changes : ndarray of float64, shape (malicious, shared)
            Their updates after local training: the changes of the shared parameters. An attack that sees its "own"
            update must not combine rows.
        ctx : AttackContext
        """
        return changes

    def success_examples(self, dataset: Dataset) -> tuple[Array, Array] | None:
        """Return test examples and the labels that a targeted attack wants for them; None for other attacks.

        Returns
        -------
        x : ndarray, shape (examples, ...)
        y : ndarray of int, shape (examples,)
        """
        return None


@dataclass(frozen=True)
class ColludingAttack(Attack, ABC):
    """The base class of attacks whose malicious clients compute one update together.

    Parameters
    ----------
    fraction, clients, start
        As for `Attack`.
    knowledge : {"malicious", "all"}
        The updates from which they estimate those of honest clients: their own before the attack, or those of the
        round's honest clients. If no honest client is in the round, their own.
    """

    knowledge: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{type(self).__name__}'s knowledge", self.knowledge, SEES[1:])

    @property
    def sees(self) -> str:
        """The `knowledge`."""
        return self.knowledge

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Return the same update for all malicious clients."""
        known = ctx.others if len(ctx.others) else changes
        return np.tile(self.update(known, ctx), (len(changes), 1))

    @abstractmethod
    def update(self, known: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        """Return the update that malicious clients send, shape (shared,).

        Parameters
        ----------
        known : ndarray of float64, shape (clients, shared)
            The updates that they know, at least one.
        ctx : AttackContext
        """


def check_labels(attack: Attack, dataset: Dataset, **labels: int | None) -> None:
    """Raise ConfigError if a dataset has no labels, or not these."""
    name = type(attack).__name__
    if dataset.regression:
        raise ConfigError(f"attack {name} changes labels, and {dataset.name} has real-valued targets")
    for field, label in labels.items():
        if label is not None:
            check_integer(f"{name}'s {field}", label, 0, dataset.num_classes - 1)
