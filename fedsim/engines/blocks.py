"""Division of a cohort into blocks of clients that are trained together; it never changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.task import Task
from fedsim.engines.runtime import ClientRuntime
from fedsim.splits.partition import Indices

#: Bytes of weights in a block, by kernel. The NumPy kernel steps all clients of a block at once, so their weights must
#: fit a core's cache together with gradients and examples; the compiled kernel trains one client after another.
BLOCK_BYTES = {"numpy": 768 * 1024, "compiled": 4 * 1024 * 1024}
#: Floating-point operations beside which the overhead of a block is small. Each worker gets one to eight blocks, so
#: that all workers finish at about the same time.
BLOCK_WORK = 1e8
BLOCKS_PER_WORKER = 1, 8
#: Bytes of trained weights that may wait to be aggregated.
PENDING_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Blocks:
    """Divides cohorts into blocks.

    Parameters
    ----------
    runtime : ClientRuntime
    workers : int
    size : int, optional
        Clients in a block; default by the size of the model and the cost of training.
    """

    runtime: ClientRuntime
    workers: int
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_integer("block_size", self.size, 1)

    @property
    def _row_bytes(self) -> int:
        model = self.runtime.model
        return model.num_parameters * np.dtype(model.dtype).itemsize

    def of_equal_work(self, clients: Indices, work: NDArray[Any]) -> list[Indices]:
        """Return blocks that cost about the same.

        Parameters
        ----------
        clients : ndarray of int, shape (clients,)
            Partition ids in cohort order.
        work : ndarray, shape (clients,)
            Floating-point operations of each client.
        """
        if self.size:
            return _of_size(clients, self.size)
        total = np.cumsum(work, dtype=float)
        per_worker = np.clip(total[-1] / (self.workers * BLOCK_WORK), *BLOCKS_PER_WORKER)
        share = float(total[-1]) / (self.workers * int(per_worker)) * (1 + 1e-9)
        max_size = max(1, BLOCK_BYTES[self.runtime.kernel_name] // self._row_bytes)
        blocks, start = [], 0
        while start < len(clients):
            before = total[start - 1] if start else 0.0
            stop = int(np.searchsorted(total, before + share, side="right"))
            stop = min(max(stop, start + 1), start + max_size)
            blocks.append(clients[start:stop])
            start = stop
        return blocks

    def for_training(self, task: Task, clients: Indices) -> list[Indices]:
        """Return blocks for training, each by one worker."""
        examples = task.strategy.examples_per_round(self.runtime.partition.sizes[clients])
        return self.of_equal_work(clients, 3 * self.runtime.model.flops * examples)

    def for_evaluation(self, clients: Indices) -> list[Indices]:
        """Return blocks for evaluation, each by one worker."""
        return self.of_equal_work(clients, self.runtime.model.flops * self.runtime.partition.sizes[clients])

    def for_all_workers(self, clients: Indices) -> list[Indices]:
        """Return large blocks, each trained by all workers together."""
        max_size = max(1, PENDING_BYTES // (self.workers * self._row_bytes)) * self.workers
        return _of_size(clients, self.size or max_size)

    def max_pending(self, blocks: list[Indices]) -> int:
        """Return how many trained blocks may wait to be aggregated."""
        return PENDING_BYTES // (max(map(len, blocks)) * self._row_bytes)


def _of_size(clients: Indices, size: int) -> list[Indices]:
    return [clients[start : start + size] for start in range(0, len(clients), size)]
