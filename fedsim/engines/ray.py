"""Clients in Ray actors, on this machine or a cluster: the in-process engine, its blocks run elsewhere (extra ``ray``).

Actors hold the data as Ray shares it, one copy on each machine; a round's weights are put there once. What clients keep
between rounds stays with this process and travels with their blocks, so that an actor that is lost costs nothing but
the work it was doing: Ray starts another, which does it again, to the same bits.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.base import Task, Update
from fedsim.rounds.grid import InProcessGrid
from fedsim.engines.runtime import Evaluation, Load, Site
from fedsim.errors import ConfigError, FedsimError, missing_extra

#: How often a block is tried again after the loss of its worker.
RETRIES = 3


class _Worker:
    """A site in an actor."""

    def __init__(self) -> None:
        from threadpoolctl import threadpool_limits

        self._blas = threadpool_limits(1, "blas")
        self._site: Site | None = None

    def _place(self, held: list[Any]) -> Site:
        """Return the site, made of what the first call brings: an actor that starts again asks for nothing before."""
        if self._site is None:
            self._site = Site(*_ray().get(held))
            self._site.prepare()
        return self._site

    def train(self, order: Any, block: Any, state: Any) -> Update:
        held, *task = order
        site = self._place(held)
        return site.train(site.task(*task), block, _load(block, state))

    def evaluate(self, order: Any, block: Any, state: Any) -> Evaluation:
        held, *task = order
        site = self._place(held)
        return site.evaluate(site.task(*task), block, _load(block, state))


def _load(block: NDArray[np.intp], state: dict[str, NDArray[Any]]) -> Load:
    """Return what copies the state of some clients of a block, for a strategy to change: Ray shares what it sends."""
    return lambda clients: {name: rows[np.isin(block, clients)] for name, rows in state.items()}


class RayGrid(InProcessGrid):
    """The in-process engine with its blocks of clients in Ray actors.

    Parameters
    ----------
    *args, **options
        As for `InProcessGrid`; `workers` is the number of actors, by default one per CPU of the cluster.
    address : str, optional
        Of a running Ray cluster, or ``"auto"``; default: Ray is started here, and stopped at the end.

    Raises
    ------
    ConfigError
        Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, *args: Any, address: str | None = None, workers: int | None = None, **options: Any) -> None:
        super().__init__(*args, workers=workers, **options)
        site = self.site
        self._site_parts = (
            site.net, site.federated, site.client, site.seed, site.kernel_name, tuple(options.get("compress", ()))
        )  # fmt: skip
        self._address, self._actors_wanted = address, workers
        self._actors: list[Any] = []
        self._held: list[Any] = []  # of what an actor makes its site
        self._started = False

    def __enter__(self) -> RayGrid:
        ray = _ray()
        if not ray.is_initialized():
            self._start(ray)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=RETRIES)(_Worker)
        self._held = [ray.put(p) for p in self._site_parts]
        self._actors = [actor.remote() for _ in range(max(1, min(self._actors_wanted or cpus, cpus)))]
        self.workers = len(self._actors)  # blocks are cut for them
        super().__enter__()
        return self

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _reach(self._address)
        where: dict[str, Any] = {"address": self._address} if self._address else {"num_cpus": self._actors_wanted}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster at {self._address!r}: {str(error).splitlines()[0]}") from None
        self._started = True

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        ray = _ray()
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._held = [], []
        if self._started:
            ray.shutdown()

    def run_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Update]:
        """Train in the actors."""
        blocks = self.training_blocks(task, ids)
        yield from self._in_actors("train", task, blocks, True, self.ahead(blocks))

    def evaluate_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Evaluation]:
        """Evaluate in the actors."""
        blocks = self.evaluation_blocks(ids)
        yield from self._in_actors("evaluate", task, blocks, self.site.personalises(task.strategy), len(blocks))

    def _in_actors(
        self, method: str, task: Task, blocks: Sequence[NDArray[np.intp]], keeps: bool, ahead: int
    ) -> Iterator[Any]:
        """Call a method of the actors for every block; yield the results in order, a few blocks in advance."""
        ray = _ray()
        order = ray.put((self._held, task.global_weights, task.round, task.strategy, dict(task.down), task.purpose))
        running: deque[Any] = deque()
        idle = deque(self._actors)  # in turn: blocks are of like work
        for block in blocks:
            if len(running) >= max(ahead, 2 * len(self._actors)):
                yield _result(ray, running.popleft())
            actor = idle[0]
            idle.rotate(-1)
            state = self.site.load_state(task, block, self.state) if keeps else {}
            running.append(getattr(actor, method).remote(order, block, state))
        while running:
            yield _result(ray, running.popleft())


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


def _result(ray: Any, reference: Any) -> Any:
    """Wait for a result; an error in an actor is raised as it would have been here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise FedsimError(f"a Ray worker was lost {RETRIES + 1} times: {str(error).splitlines()[0]}") from None
