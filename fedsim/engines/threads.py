"""The default engine, which trains clients on threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Self

from fedsim.checks import check_integer
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.blocks import Blocks
from fedsim.engines.client_state import ClientState
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.workers import MAX_WORKERS, Workers, available_cores
from fedsim.splits.partition import Indices


class ThreadEngine:
    """Trains blocks of clients on threads.

    Parameters
    ----------
    runtime : ClientRuntime
    workers : int, optional
        Threads; by default one per available core with the compiled kernel and one with the NumPy kernel.
    block_size : int, optional
        Clients trained together; default by the size of the model and the cost of training.
    """

    def __init__(self, runtime: ClientRuntime, *, workers: int | None = None, block_size: int | None = None) -> None:
        count = worker_count(runtime, workers)
        self.runtime, self.workers = runtime, Workers(count)
        self.blocks = Blocks(runtime, count, block_size)
        self.client_state = ClientState(len(runtime.partition))
        self.exchange = runtime.exchange

    def __enter__(self) -> Self:
        self.runtime.prepare()
        self.workers.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.workers.__exit__(*details)

    def train(self, task: Task, clients: Indices) -> Iterator[Update]:
        """Train clients; see `Engine`."""
        if self.runtime.secure:
            task = replace(task, protect=self.runtime.secure.protect)
        load_state = partial(self.runtime.load_state, task, self.client_state)
        if self.runtime.only_fits(task.strategy):
            task = replace(task, run_on_all_workers=self.workers.run_on_all)
            return (self.runtime.train(task, block, load_state) for block in self.blocks.for_all_workers(clients))
        blocks = self.blocks.for_training(task, clients)
        train_block = partial(self.runtime.train, task, load_state=load_state)
        return self.workers.map(train_block, blocks, self.blocks.max_pending(blocks))

    def evaluate(self, task: Task, clients: Indices) -> Iterator[Evaluation]:
        """Evaluate clients; see `Engine`."""
        load_state = partial(self.runtime.load_state, task, self.client_state)
        evaluate_block = partial(self.runtime.evaluate, task, load_state=load_state)
        return self.workers.map(evaluate_block, self.blocks.for_evaluation(clients))


def worker_count(runtime: ClientRuntime, workers: int | None) -> int:
    """Return the number of threads: `workers` if given, else one per core with the compiled kernel and one with NumPy.

    The NumPy kernel makes many small calls, and Python's lock would let only one thread run at a time.
    """
    if workers is None:
        return available_cores() if runtime.kernel_name == "compiled" else 1
    return check_integer("workers", workers, 1, MAX_WORKERS)
