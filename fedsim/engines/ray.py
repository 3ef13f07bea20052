"""The Ray engine, which trains clients in Ray actors on this machine or on a cluster (extra ``ray``).

Ray stores one copy of the data, and of each round's weights, on every machine. Client state is kept in this process and
sent with the blocks. If an actor is lost, Ray starts another one, which trains the block again with the same result.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.local_round import personalises
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.blocks import Blocks
from fedsim.engines.client_state import ClientState
from fedsim.engines.runtime import ClientRuntime, LoadState
from fedsim.engines.workers import MAX_WORKERS, Workers, in_order
from fedsim.errors import ConfigError, FedsimError, missing_extra
from fedsim.splits.partition import Indices
from fedsim.text import describe

#: Number of times that a block is trained again after its actor was lost.
RETRIES = 3


class _Actor:
    """A client runtime in an actor."""

    def __init__(self) -> None:
        from threadpoolctl import threadpool_limits

        self._blas = threadpool_limits(1, "blas")
        self._runtime: ClientRuntime | None = None

    def call(self, method: str, request: Any, block: Any, state: Any) -> Any:
        """Train or evaluate a block of clients."""
        runtime, *arguments = request
        if self._runtime is None:  # also after Ray has restarted the actor
            self._runtime = _ray().get(runtime[0])
            self._runtime.prepare()
        try:
            return getattr(self._runtime, method)(self._runtime.task(*arguments), block, _state_loader(block, state))
        except SystemExit as error:  # it would end the actor
            raise FedsimError(describe(error)) from error


def _state_loader(block: Indices, state: dict[str, NDArray[Any]]) -> LoadState:
    """Return a function that copies the state of clients of a block; arrays that Ray shares are read-only."""
    return lambda clients: {name: rows[np.isin(block, clients)] for name, rows in state.items()}


class RayEngine:
    """Trains blocks of clients in Ray actors.

    Parameters
    ----------
    runtime : ClientRuntime
    workers : int, optional
        Number of actors; default one per CPU of the cluster.
    block_size : int, optional
        Clients trained together; default by the size of the model and the cost of training.
    address : str, optional
        Address of a running Ray cluster, or ``"auto"``; by default Ray is started here, and stopped at the end.

    Raises
    ------
    ConfigError
        Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        *,
        workers: int | None = None,
        block_size: int | None = None,
        address: str | None = None,
    ) -> None:
        if workers is not None:
            check_integer("workers", workers, 1, MAX_WORKERS)
        self.runtime, self._address, self._num_actors = runtime, address, workers
        self.client_state = ClientState(len(runtime.partition))
        self.workers, self.blocks = Workers(1), Blocks(runtime, 1, block_size)
        self._actors: list[Any] = []
        self._shared: list[Any] = []  # a reference to the runtime, in a list so that Ray does not resolve it
        self._started = False
        self.exchange = runtime.exchange

    def __enter__(self) -> Self:
        ray = _ray()
        if not ray.is_initialized():
            self._start(ray)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=RETRIES)(_Actor)
        self._shared = [ray.put(self.runtime)]
        self._actors = [actor.remote() for _ in range(max(1, min(self._num_actors or cpus, cpus)))]
        self.workers = Workers(len(self._actors))
        self.blocks = replace(self.blocks, workers=len(self._actors))
        self.runtime.prepare()
        self.workers.__enter__()
        return self

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _check_listening(self._address)
        where: dict[str, Any] = {"address": self._address} if self._address else {"num_cpus": self._num_actors}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster at {self._address!r}: {str(error).splitlines()[0]}") from None
        self._started = True

    def __exit__(self, *details: object) -> None:
        self.workers.__exit__(*details)
        ray = _ray()
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._shared = [], []
        if self._started:
            ray.shutdown()

    def train(self, task: Task, clients: Indices) -> Iterator[Update]:
        """Train clients; see `Engine`."""
        blocks = self.blocks.for_training(task, clients)
        return self._map("train", task, blocks, True, self.blocks.max_pending(blocks))

    def evaluate(self, task: Task, clients: Indices) -> Iterator[Evaluation]:
        """Evaluate clients; see `Engine`."""
        blocks = self.blocks.for_evaluation(clients)
        return self._map("evaluate", task, blocks, personalises(task.strategy, self.runtime.model), len(blocks))

    def _map(self, method: str, task: Task, blocks: list[Indices], has_state: bool, max_pending: int) -> Iterator[Any]:
        """Call a method of the actors' runtimes for every block; yield the results in the order of the blocks."""
        request = (
            self._shared,
            task.global_weights,
            task.round,
            task.strategy,
            dict(task.down),
            task.purpose,
            self.runtime.secure,
        )
        reference = _ray().put(request)
        actors = itertools.cycle(self._actors)  # in turn: blocks cost about the same

        def submit(block: Indices) -> Any:
            state = self.runtime.load_state(task, self.client_state, block) if has_state else {}
            return next(actors).call.remote(method, reference, block, state)

        return in_order(submit, _result, blocks, max(max_pending, 2 * len(self._actors)))


def _check_listening(address: str | None) -> None:
    """Raise ConfigError if no process listens at host:port; Ray would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error.strerror or error}") from None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise missing_extra("the engine ray", "ray") from None
    return ray


def _result(reference: Any) -> Any:
    """Wait for a result; raise an error in an actor as if it had been raised here."""
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise FedsimError(f"a Ray worker was lost {RETRIES + 1} times: {str(error).splitlines()[0]}") from None
