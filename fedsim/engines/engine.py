"""The contract of engines, which train and evaluate clients and store their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.workers import Workers
from fedsim.errors import ConfigError, FedsimError

Indices = NDArray[np.intp]

#: Names that `Experiment.run` accepts.
ENGINES = ("in-process", "ray")


class StateStore(Protocol):
    """Client state between rounds."""

    def commit(self, round_number: int, updates: Sequence[Update]) -> None:
        """Store the state of the clients whose updates an accepted round has aggregated."""

    def state_dict(self) -> dict[str, NDArray[Any]] | None:
        """Return all state as arrays, for a checkpoint; None if it is on other machines."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]] | None) -> None:
        """Restore the state that `state_dict` returned; FedsimError if that was None and clients have state."""


class Engine(Protocol):
    """Trains and evaluates blocks of clients. Use it as a context manager.

    Attributes
    ----------
    runtime : ClientRuntime
        The data, the model and the client strategy.
    workers : Workers
        Threads of this process, which evaluate the global model on the test set.
    client_state : StateStore
    """

    runtime: ClientRuntime
    workers: Workers

    @property
    def client_state(self) -> StateStore:
        """Client state between rounds."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *details: object) -> None: ...

    def train(self, task: Task, clients: Indices) -> Iterator[Update]:
        """Train clients and yield their updates, block by block, in the order of the clients.

        A client that cannot be trained has no row; `Update.failed` has the reason. Client state does not change before
        `StateStore.commit`.

        Parameters
        ----------
        task : Task
        clients : ndarray of int, shape (clients,)
            Partition ids in cohort order; every client has examples.
        """

    def exchange(
        self, task: Task, step: str, clients: Indices, sent: Mapping[str, NDArray[Any]]
    ) -> tuple[Indices, dict[str, NDArray[Any]], Mapping[int, FedsimError]]:
        """Send arrays to clients in a step of secure aggregation, and return their answers.

        `train` protects the updates of clients that have exchanged keys in this round.

        Parameters
        ----------
        task : Task
        step : {"keys", "shares", "unmask"}
            See `fedsim.secure.clients`.
        clients : ndarray of int, shape (clients,)
        sent : mapping of str to ndarray, shape (clients, ...)

        Returns
        -------
        clients : ndarray of int
            Those that have answered, in order.
        answers : dict of str to ndarray, shape (clients that have answered, ...)
        failed : dict of int to FedsimError
            Partition id -> error of a client that has not answered.
        """

    def evaluate(self, task: Task, clients: Indices) -> Iterator[Evaluation]:
        """Evaluate clients on their own examples and yield the scores, block by block; see `train`."""


def engine_class(engine: str | Callable[..., Engine]) -> Callable[..., Engine]:
    """Return the class of an engine by its name; a callable is returned as it is.

    Raises
    ------
    ConfigError
        Unknown name.
    """
    if callable(engine):
        return engine
    if not isinstance(engine, str):
        raise ConfigError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}, or a class of an engine")
    check_choice("engine", engine, ENGINES)
    if engine == "ray":
        from fedsim.engines.ray import RayEngine

        return RayEngine
    from fedsim.engines.threads import ThreadEngine

    return ThreadEngine


def make_engine(
    engine: str | Callable[..., Engine],
    runtime: ClientRuntime,
    workers: int | None = None,
    block_size: int | None = None,
) -> Engine:
    """Return an engine over a client runtime.

    Parameters
    ----------
    engine : str or callable
        As for `engine_class`.
    runtime : ClientRuntime
    workers, block_size : int, optional
        As for the engine; by default those of a partial, or the engine's own.
    """
    make, options = engine_class(engine), {"workers": workers, "block_size": block_size}
    if isinstance(make, partial):
        options = {name: value for name, value in options.items() if value is not None or name not in make.keywords}
    return make(runtime, **options)
