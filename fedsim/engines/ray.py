"""Clients in Ray actors, on this machine or a cluster (extra ``ray``).

Actors hold the data as Ray shares it, one copy on each machine; a round's weights are put there once. Client state
stays in this process and travels with the blocks, so that an actor that is lost costs nothing but the block it was
training: Ray starts another actor, which trains the block again, to the same bits.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.blocks import Blocks
from fedsim.engines.client_state import ClientState
from fedsim.engines.runtime import ClientRuntime, LoadState
from fedsim.engines.workers import MAX_WORKERS, Workers, in_order
from fedsim.errors import ConfigError, FedsimError, missing_extra

Indices = NDArray[np.intp]

#: How often a block is tried again after the loss of its worker.
RETRIES = 3


class _Actor:
    """A client runtime in an actor."""

    def __init__(self) -> None:
        from threadpoolctl import threadpool_limits

        self._blas = threadpool_limits(1, "blas")
        self._runtime: ClientRuntime | None = None

    def _ready(self, runtime: list[Any]) -> ClientRuntime:
        """Return the runtime, which the first call brings: an actor that Ray restarts has none."""
        if self._runtime is None:
            self._runtime = _ray().get(runtime[0])
            self._runtime.prepare()
        return self._runtime

    def train(self, request: Any, block: Any, state: Any) -> Update:
        runtime = self._ready(request[0])
        return runtime.train(runtime.task(*request[1:]), block, _load(block, state))

    def evaluate(self, request: Any, block: Any, state: Any) -> Evaluation:
        runtime = self._ready(request[0])
        return runtime.evaluate(runtime.task(*request[1:]), block, _load(block, state))


def _load(block: Indices, state: dict[str, NDArray[Any]]) -> LoadState:
    """Return a function that copies the state of some clients of a block: arrays that Ray shares are read-only."""
    return lambda clients: {name: rows[np.isin(block, clients)] for name, rows in state.items()}


class RayEngine:
    """Trains blocks of clients in Ray actors.

    Parameters
    ----------
    runtime : ClientRuntime
    workers : int, optional
        Actors; default one per CPU of the cluster.
    block_size : int, optional
        Clients trained together; default by the size of the model and the cost of training.
    address : str, optional
        Of a running Ray cluster, or ``"auto"``; default: Ray is started here, and stopped at the end.

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
        self.runtime, self._address, self._num_actors, self._block_size = runtime, address, workers, block_size
        self.client_state = ClientState(len(runtime.partition))
        self.workers, self.blocks = Workers(1), Blocks(runtime, 1, block_size)
        self._actors: list[Any] = []
        self._shared: list[Any] = []  # a reference to the runtime, in a list so that Ray does not resolve it
        self._started = False

    def __enter__(self) -> Self:
        ray = _ray()
        if not ray.is_initialized():
            self._start(ray)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=RETRIES)(_Actor)
        self._shared = [ray.put(self.runtime)]
        self._actors = [actor.remote() for _ in range(max(1, min(self._num_actors or cpus, cpus)))]
        self.workers = Workers(len(self._actors))
        self.blocks = Blocks(self.runtime, len(self._actors), self._block_size)
        self.runtime.prepare()
        self.workers.__enter__()
        return self

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _reach(self._address)
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
        blocks = self.blocks.training(task, clients)
        return self._map("train", task, blocks, True, self.blocks.max_pending(blocks))

    def evaluate(self, task: Task, clients: Indices) -> Iterator[Evaluation]:
        """Evaluate clients; see `Engine`."""
        blocks = self.blocks.evaluation(clients)
        return self._map("evaluate", task, blocks, self.runtime.personalises(task.strategy), len(blocks))

    def _map(self, method: str, task: Task, blocks: list[Indices], has_state: bool, max_pending: int) -> Iterator[Any]:
        """Call a method of the actors for every block, and yield the results in the order of the blocks."""
        ray = _ray()
        request = ray.put((self._shared, task.global_weights, task.round, task.strategy, dict(task.down), task.purpose))
        actors = itertools.cycle(self._actors)  # in turn: blocks cost about the same

        def submit(block: Indices) -> Any:
            state = self.runtime.load_state(task, self.client_state, block) if has_state else {}
            return getattr(next(actors), method).remote(request, block, state)

        return in_order(submit, _result, blocks, max(max_pending, 2 * len(self._actors)))


def _reach(address: str | None) -> None:
    """Raise ConfigError if nobody listens at host:port; Ray itself would wait for minutes."""
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
    """Wait for a result; an error in an actor is raised as it would have been here."""
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise FedsimError(f"a Ray worker was lost {RETRIES + 1} times: {str(error).splitlines()[0]}") from None
