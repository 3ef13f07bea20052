"""The contract of engines: where clients train and evaluate, and where their state is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.workers import Workers
from fedsim.errors import ConfigError

Indices = NDArray[np.intp]

#: Names that `Experiment.run` accepts.
ENGINES = ("in-process", "ray")


class StateStore(Protocol):
    """Client state between rounds."""

    def commit(self, round_number: int, updates: Sequence[Update]) -> None:
        """Store the state of the clients whose updates an accepted round has aggregated."""

    def state_dict(self) -> dict[str, NDArray[Any]] | None:
        """Return all state as arrays, for a checkpoint; None if it cannot be had."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]] | None) -> None:
        """Take up what `state_dict` returned; FedsimError if that was None and clients had state."""


class Engine(Protocol):
    """Runs blocks of clients. An open engine is a context manager that has been entered.

    Attributes
    ----------
    runtime : ClientRuntime
        The data, the model and the client strategy.
    workers : Workers
        Threads of this process, for evaluation on the test set.
    client_state : StateStore
    """

    runtime: ClientRuntime
    workers: Workers

    @property
    def client_state(self) -> StateStore:
        """Where client state is kept."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *details: object) -> None: ...

    def train(self, task: Task, clients: Indices) -> Iterator[Update]:
        """Train clients and yield their updates, block by block, in the order of the clients.

        A client that cannot be trained has no row; it is in `Update.failed`, with the reason. Client state does not
        change before `StateStore.commit`.

        Parameters
        ----------
        task : Task
        clients : ndarray of int, shape (clients,)
            Partition ids in cohort order, none of an empty client.
        """

    def evaluate(self, task: Task, clients: Indices) -> Iterator[Evaluation]:
        """Evaluate clients on their own examples and yield the scores, block by block; as for `train`."""


def choose(engine: str | Callable[..., Engine]) -> Callable[..., Engine]:
    """Return an engine's class by its name, or the callable that was given.

    Raises
    ------
    ConfigError
        Unknown name.
    """
    if not isinstance(engine, str):
        if not callable(engine):
            raise ConfigError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}, or a class of an engine")
        return engine
    check_choice("engine", engine, ENGINES)
    if engine == "ray":
        from fedsim.engines.ray import RayEngine

        return RayEngine
    from fedsim.engines.threads import ThreadEngine

    return ThreadEngine
