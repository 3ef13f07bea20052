"""The default engine: simulated clients in this process, behind Flower's own `Grid`.

Any Flower `Strategy` runs on it by ``strategy.start(grid, ...)``. A round's messages carry one model: it is decoded
once, the cohort is trained in cache-sized blocks of clients on a thread per core, and replies become messages only for
a strategy that asks for messages. fedsim's own strategies take the blocks as they finish (`Replies.blocks`), so a
round's memory does not grow with its cohort.

The cohort's order is fixed by falling shard size, then partition id. Blocks are cut from it and handed over in it, so
neither workers nor block sizes can change a sum.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from fedsim.clients import SGD
from fedsim.clients.base import Task, Update
from fedsim.updates.compression import Transform
from fedsim.flower import internals as flower
from fedsim.rounds.drift import Movements
from fedsim.rounds.replies import Order, Replies
from fedsim.engines.runtime import Evaluation, Site
from fedsim.engines.client_state import ClientState
from fedsim.errors import ConfigError, DivergenceError, FedsimError, one_of, whole
from fedsim.kernels.mean import RunningMean
from fedsim.kernels.numpy import evaluate
from fedsim.models.mlp import MLP
from fedsim.splits import FederatedDataset
from fedsim.streams import Purpose

J = TypeVar("J")
T = TypeVar("T")

#: Bytes of weights that a block of clients may fill, by kernel. The NumPy kernel steps all of a block at once, so it
#: must fit a core's cache with gradients and examples; the compiled one goes client by client.
BLOCK_BYTES = {"numpy": 768 * 1024, "compiled": 4 * 1024 * 1024}
#: Floating-point operations a block should have, so that cutting it costs little; but a worker is given from one to
#: eight blocks, so that all finish at about the same time.
BLOCK_WORK = 1e8
BLOCKS_PER_WORKER = 1, 8
#: Bytes of finished weights that may wait for their turn to be aggregated.
WAITING_BYTES = 32 * 1024 * 1024
#: Threads, or actors; more than any machine's cores.
MOST_WORKERS = 4_096
#: Test examples scored at a time; a constant, so that sums do not depend on workers.
EVALUATE_ROWS = 1_000
#: A client whose training loss passes this multiple of the untrained model's has diverged.
DIVERGED = 10.0


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_core_each(workers: int) -> Callable[[], None] | None:
    """Return what a worker thread does first: bind itself to a core of its own, where there are as many as workers.

    Left to the system, two threads that wake at once may share a core for milliseconds, which is a small round's time.
    """
    if not hasattr(os, "sched_setaffinity") or workers != available_cores():
        return None
    cores = iter(sorted(os.sched_getaffinity(0)))
    return lambda: os.sched_setaffinity(0, {next(cores)})  # of the calling thread


def _every(size: int, ids: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Cut ids into blocks of a size, the last one smaller."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _check_once(orders: Sequence[Order]) -> None:
    """Raise ConfigError if a client is asked twice for the same: it has one state, and replies are told apart by it."""
    for kind in {order.kind for order in orders}:
        ids, asked = np.unique(np.concatenate([o.ids for o in orders if o.kind == kind]), return_counts=True)
        if (asked > 1).any():
            first = int(asked.argmax())
            raise ConfigError(
                f"the server strategy asks client {ids[first]} {asked[first]} times in a round to {kind}; allowed: once"
            )


@dataclass
class Traffic:
    """What one round did, counted where it happened.

    Attributes
    ----------
    clients : int
        Clients that trained and were aggregated.
    failed : dict of int to str
        Partition id -> why, for clients left out.
    bytes_down, bytes_up : int
        Serialised arrays sent to and received from clients.
    movements : Movements
        How far clients went.
    rejected : tuple of two int, optional
        Of a round that was not accepted: how many updates it had, and how many it needed.
    """

    clients: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    movements: Movements = field(default_factory=Movements)
    rejected: tuple[int, int] | None = None
    _ids: list[NDArray[np.intp]] = field(default_factory=list)
    _losses: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def train_loss(self) -> float:
        """Return the mean over the aggregated clients' examples, or NaN."""
        if not self.clients:
            return float("nan")
        losses, examples = np.concatenate(self._losses), np.concatenate(self.movements.examples)
        return float((losses * examples).sum() / examples.sum())

    @property
    def largest_update(self) -> tuple[int, float]:
        """Return which client's update was the longest, and its length; at least one client was aggregated."""
        ids, lengths = np.concatenate(self._ids), np.concatenate(self.movements.lengths)
        return int(ids[lengths.argmax()]), float(lengths.max())

    def trained(self, update: Update) -> None:
        """Count a block."""
        assert update.moved is not None
        self.clients += len(update.partition_ids)
        self._ids.append(update.partition_ids)
        self._losses.append(update.train_loss)
        self.movements.add(update.moved, update.num_examples)


class InProcessGrid(flower.LocalGrid):
    """Flower's Grid over simulated clients.

    Use it as a context manager: it holds BLAS to one thread per worker while open.

    Parameters
    ----------
    net : MLP
    federated : FederatedDataset
        Who holds which examples; node id = partition id + 2 (Flower keeps 1 for the server).
    client : SGD
        The client strategy.
    seed : int
    kernel : {"numpy", "compiled"}
        What trains; see `fedsim.kernels`.
    workers : int, optional
        Threads; default one per available core with the compiled kernel, one with the NumPy kernel.
    block_size : int, optional
        Clients trained together; default by model and work. Neither changes a result.
    on_failure : {"raise", "exclude"}
        What a diverged client does: end the run with DivergenceError, or be left out of the round and recorded.
    compress : sequence of Transform
        What clients do to what they send; see `fedsim.updates.compression`.
    """

    def __init__(
        self,
        net: MLP,
        federated: FederatedDataset,
        client: SGD,
        seed: int = 0,
        *,
        kernel: str = "numpy",
        workers: int | None = None,
        block_size: int | None = None,
        on_failure: str = "raise",
        compress: Sequence[Transform] = (),
    ) -> None:
        super().__init__()
        if workers is not None:
            whole("workers", workers, 1, MOST_WORKERS)
        if block_size is not None:
            whole("block_size", block_size, 1)
        one_of("on_failure", on_failure, ("raise", "exclude"))
        self.net, self.client = net, client
        self.site = Site(net, federated, client, seed, kernel, compress)
        self.on_failure = on_failure
        self.state = ClientState(len(federated.partition))
        # The NumPy kernel's many small steps wait for one another's hold of Python: a second thread slows them.
        self.workers = workers or (available_cores() if kernel == "compiled" else 1)
        self.block_size = block_size
        self._row_bytes = net.num_parameters * np.dtype(net.dtype).itemsize
        self.traffic = Traffic()
        self.evaluations: list[Evaluation] = []
        data = federated.dataset
        self._x_test = np.ascontiguousarray(data.x_test, dtype=net.dtype)
        self._y_test = data.y_test.astype(net.dtype) if data.regression else data.y_test
        shared = set(range(1, len(net.sizes))) - set(client.private_layers(net))
        self._payload = flower.payload_bytes(net, sorted(shared))
        self._loss_limit = float("inf")
        self._movement_limit = float(np.finfo(net.dtype).max)
        self._train_calls = 0
        self._waiting: dict[str, Message] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._blas: Any = None

    def __enter__(self) -> InProcessGrid:
        from threadpoolctl import threadpool_limits

        self.site.prepare()
        self._blas = threadpool_limits(1, "blas")
        # One worker has a thread too: this one then listens to Ctrl-C.
        self._pool = ThreadPoolExecutor(self.workers, "fedsim", initializer=_one_core_each(self.workers))
        return self

    def __exit__(self, *details: object) -> None:
        if self._pool is not None:
            # Who interrupts a run does not wait for the clients that are training.
            interrupted = bool(details) and isinstance(details[1], KeyboardInterrupt)
            self._pool.shutdown(wait=not interrupted, cancel_futures=True)
            self._pool = None
        self._blas.restore_original_limits()

    # Flower's interface.

    def get_node_ids(self) -> Sequence[int]:
        """Return all nodes' ids in the order of their partition ids."""
        return range(2, len(self.site.partition) + 2)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; `pull_messages` runs them."""
        ids = []
        for message in messages:
            flower.stamp(message, self.next_id())
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run those of the messages that have not been run and return their replies."""
        messages = [self._waiting.pop(i) for i in message_ids if i in self._waiting]
        return list(self.send_and_receive(messages))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Run a round, or an evaluation, and return its outcome.

        Client state and statistics are kept only if the round is accepted: at least as many clients have sent an
        update as the instructions ask for. `timeout` has no meaning here: every reply is waited for.
        """
        told = messages if isinstance(messages, flower.Instructions) else None
        replies = Replies(self.net, list(self._orders(messages)), told.aggregator if told else None)
        _check_once(replies.orders)
        for order in replies.orders:
            if order.kind == MessageType.TRAIN:
                for update in self.train(order.task, order.ids):
                    replies.add(update)
            else:
                replies.evaluations += self.evaluate_clients(order.task, order.ids)
                without = order.ids[self.site.partition_test.sizes[order.ids] == 0]
                replies.failed |= {int(k): f"client {k} has no examples to evaluate on" for k in without}
        replies.failed |= self.traffic.failed
        sent = sum(len(update.partition_ids) for update in replies.updates)
        if told and sent < told.min_clients:
            self.traffic.rejected = sent, told.min_clients
        else:
            self.commit(replies)
        self.evaluations += replies.evaluations
        return replies

    def commit(self, replies: Replies) -> None:
        """Keep what an accepted round changes: clients' state and the round's statistics."""
        for update in replies.updates:
            self.state.store(update.partition_ids, update.state)
            self.traffic.trained(update)
        if any(len(update.partition_ids) for update in replies.updates) and len(replies.orders) == 1:
            if replies.aggregator is not None:
                mean = replies.aggregator.mean()
            else:
                running = RunningMean(self.add_weighted)
                for update in replies.updates:
                    running.add(update.weights, update.num_examples)
                mean = running.value()
            start = replies.orders[0].task.global_weights
            self.traffic.movements.mean_length = float(self.site.kernel.movement(mean[None], start)[0])

    @property
    def add_weighted(self) -> Callable[..., None]:
        """How the kernel that trains adds up weights."""
        add: Callable[..., None] = self.site.kernel.add_weighted
        return add

    # What the engine does.

    def _orders(self, messages: Iterable[Message]) -> Iterator[Order]:
        """Gather messages that share a content, so that each model is decoded once."""
        if isinstance(messages, flower.Instructions):
            if len(messages):
                nodes = np.asarray(messages.node_ids, dtype=np.int64)
                yield self._order(messages.record, messages.message_type, nodes, None)
            return
        groups: dict[tuple[int, str], list[Message]] = {}
        for message in messages:
            if not message.metadata.message_id:
                flower.stamp(message, self.next_id())
            groups.setdefault((id(message.content), message.metadata.message_type), []).append(message)
        for group in groups.values():
            nodes = np.array([m.metadata.dst_node_id for m in group], dtype=np.int64)
            yield self._order(group[0].content, group[0].metadata.message_type, nodes, group)

    def _order(
        self, record: RecordDict, message_type: str, nodes: NDArray[np.int64], messages: list[Message] | None
    ) -> Order:
        kind = message_type.partition(".")[0]
        one_of("message_type", kind, (MessageType.TRAIN, MessageType.EVALUATE))
        ids = (nodes - 2).astype(np.intp)
        if ids.min() < 0 or ids.max() >= len(self.site.partition):
            raise ValueError(f"message for an unknown node; nodes are 2..{len(self.site.partition) + 1}")
        # Not record.array_records: what that returns refers to itself, and keeps the model until garbage is collected.
        records: Mapping[str, Any] = record
        arrays = next(r for name, r in records.items() if isinstance(r, ArrayRecord) and name != flower.DOWN)
        config = next((r for r in records.values() if isinstance(r, ConfigRecord)), ConfigRecord())
        down = {name: array.numpy() for name, array in records.get(flower.DOWN, {}).items()}
        if kind == MessageType.TRAIN:
            self._train_calls += 1
        round_number = int(config.get("server-round", self._train_calls))  # type: ignore[arg-type]
        weights = flower.to_flat(self.net, arrays)
        client = self.client.configured(config)
        purpose = Purpose.SHUFFLE if kind == MessageType.TRAIN else Purpose.SHUFFLE_PERSONAL
        task = self.site.task(weights, round_number, client, down, purpose)
        order = np.lexsort((ids, -task.partition.sizes[ids]))
        self.traffic.bytes_down += len(ids) * (self._payload + sum(flower.array_bytes(a) for a in down.values()))
        ordered = [messages[k] for k in order] if messages else None
        return Order(kind, task, ids[order], ordered)

    def blocks(self, ids: NDArray[np.intp], work: float) -> list[NDArray[np.intp]]:
        """Cut ordered partition ids into blocks of like work, small enough to keep every worker busy to the end.

        Parameters
        ----------
        ids : ndarray of int, shape (clients,)
        work : float
            Floating-point operations per example.
        """
        if self.block_size:
            return _every(self.block_size, ids)
        done = np.cumsum(self.site.partition.sizes[ids]) * work
        per_worker = np.clip(done[-1] / (self.workers * BLOCK_WORK), *BLOCKS_PER_WORKER)
        share = float(done[-1]) / (self.workers * int(per_worker)) * (1 + 1e-9)
        most = max(1, BLOCK_BYTES[self.site.kernel_name] // self._row_bytes)
        blocks, start = [], 0
        while start < len(ids):
            before = done[start - 1] if start else 0.0
            stop = int(np.searchsorted(done, before + share, side="right"))
            stop = min(max(stop, start + 1), start + most)
            blocks.append(ids[start:stop])
            start = stop
        return blocks

    def training_blocks(self, task: Task, ids: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Cut a cohort into blocks that each are one worker's."""
        return self.blocks(ids, 6 * self.net.num_parameters * task.strategy.epochs)

    def large_blocks(self, ids: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Cut a cohort into blocks that all workers share, as large as may be, and of as many clients for each."""
        most = max(1, WAITING_BYTES // (self.workers * self._row_bytes)) * self.workers
        return _every(self.block_size or most, ids)

    def evaluation_blocks(self, ids: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Cut a cohort that evaluates into blocks that each are one worker's."""
        return self.blocks(ids, 2 * self.net.num_parameters)

    def ahead(self, blocks: Sequence[NDArray[np.intp]]) -> int:
        """Return how many blocks may be finished and wait for their turn."""
        return WAITING_BYTES // (max(map(len, blocks)) * self._row_bytes)

    def spread(self, work: Callable[[], None]) -> None:
        """Do some work on every worker at once."""
        assert self._pool, "use the grid as a context manager"
        for future in [self._pool.submit(work) for _ in range(self.workers)]:
            future.result()

    def in_order(self, work: Callable[[J], T], jobs: Sequence[J], ahead: int | None = None) -> Iterator[T]:
        """Run jobs on the workers and hand their results over in the order of the jobs, at most `ahead` in advance."""
        if self._pool is None or self.workers == 1 or len(jobs) == 1:
            yield from map(work, jobs)
            return
        running: deque[Future[T]] = deque()
        try:
            for job in jobs:
                running.append(self._pool.submit(work, job))
                if len(running) >= max(ahead or len(jobs), 2 * self.workers):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def train(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Update]:
        """Train clients, given in cohort order; yield each block's sound updates and record why others are left out.

        A client is left out that has no examples, that raised an error, whose training diverged, or whose update is
        longer than any number of the network's dtype.
        """
        empty = task.partition.sizes[ids] == 0
        self.traffic.failed |= {int(client): f"client {client} has no examples to train on" for client in ids[empty]}
        ids = ids[~empty]
        if not len(ids):
            return
        for update in self.run_blocks(task, ids):
            for client, error in update.failed.items():
                self._failed(client, error)
            assert update.moved is not None
            sound = np.isfinite(update.train_loss) & (update.train_loss <= self._loss_limit)
            sound &= update.moved <= self._movement_limit
            for row in np.flatnonzero(~sound):
                self._failed(int(update.partition_ids[row]), self._diverged(task, update, int(row)))
            if not sound.all():
                update = update.rows(sound)
            if len(update.partition_ids):
                encoded = sum(flower.array_bytes(rows[0]) for rows in update.encoded.values())
                besides = sum(flower.array_bytes(rows[0]) for rows in update.up.values())
                self.traffic.bytes_up += len(update.partition_ids) * ((encoded or self._payload) + besides)
            yield update

    def run_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Update]:
        """Train wherever this engine does; yield updates by blocks, in cohort order."""

        def work(block: NDArray[np.intp]) -> Update:
            return self.site.train(task, block, lambda ids: self.site.load_state(task, ids, self.state))

        if self.site.only_fits(task.strategy):
            task = replace(task, spread=self.spread)
            yield from map(work, self.large_blocks(ids))
        else:
            blocks = self.training_blocks(task, ids)
            yield from self.in_order(work, blocks, self.ahead(blocks))

    def _diverged(self, task: Task, update: Update, row: int) -> DivergenceError:
        loss, moved = float(update.train_loss[row]), float(update.moved[row])  # type: ignore[index]
        if not np.isfinite(loss):
            what = "weights or loss not finite"
        elif moved <= self._movement_limit:
            what = f"training loss {loss:.3g}"
        else:
            what = f"its update is too large: length {moved:.3g}"
        return DivergenceError(
            f"training diverged in round {task.round} at client {update.partition_ids[row]} ({what}) "
            f"with {task.strategy}; a smaller lr usually helps"
        )

    def _failed(self, client: int, error: FedsimError) -> None:
        """Leave a client out of the round, or end the run."""
        if self.on_failure == "raise":
            raise error
        self.traffic.failed[client] = error.reason

    def evaluate_clients(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Evaluation]:
        """Evaluate on clients' own examples, block by block; a client that has none is left out."""
        ids = ids[self.site.partition_test.sizes[ids] > 0]
        if not len(ids):
            return
        for evaluation in self.evaluate_blocks(task, ids):
            for client, error in evaluation.failed.items():
                self._failed(client, error)
            if len(evaluation.partition_ids):
                yield evaluation

    def evaluate_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Evaluation]:
        """Evaluate wherever this engine does, by blocks, in cohort order."""

        def work(block: NDArray[np.intp]) -> Evaluation:
            return self.site.evaluate(task, block, lambda ids: self.site.load_state(task, ids, self.state))

        yield from self.in_order(work, self.evaluation_blocks(ids))

    def evaluate_test(self, weights: NDArray[Any]) -> tuple[float, float]:
        """Return the loss and accuracy (for regression R squared) of flat weights on the test set."""

        def work(start: int) -> tuple[float, int]:
            rows = slice(start, start + EVALUATE_ROWS)
            with np.errstate(all="ignore"):
                loss, right = evaluate(self.net, weights[None], self._x_test[None, rows], self._y_test[None, rows])
            return float(loss[0]), int(right[0])

        parts = list(self.in_order(work, range(0, len(self._y_test), EVALUATE_ROWS)))
        examples = len(self._y_test)
        loss, accuracy = (sum(values) / examples for values in zip(*parts, strict=True))
        return loss, float(self.site.score(loss, accuracy))

    def kept(self) -> dict[str, NDArray[Any]] | None:
        """Return what clients have kept so far, for a checkpoint; None if it is out of reach."""
        return self.state.dump()

    def resume(self, kept: Mapping[str, NDArray[Any]] | None) -> None:
        """Take up what clients kept when a run was interrupted, as `kept` gave it.

        Raises
        ------
        FedsimError
            It was out of reach.
        """
        if kept is None:
            raise FedsimError(
                f"what clients of {type(self.client).__name__} kept on their SuperNodes went with the interrupted run; "
                "start it anew in another directory"
            )
        self.state.restore(kept)

    def limit_loss(self, untrained_loss: float) -> None:
        """Say what the untrained model's test loss is, from which divergence is judged."""
        self._loss_limit = DIVERGED * max(untrained_loss, 1.0)

    def take_round(self) -> tuple[Traffic, list[Evaluation]]:
        """Return what has happened since the last call, and start afresh."""
        taken = self.traffic, self.evaluations
        self.traffic, self.evaluations = Traffic(), []
        return taken
