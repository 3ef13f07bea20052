"""How a cohort is cut into blocks of clients that are trained together; the cut never changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_integer
from fedsim.clients.task import Task
from fedsim.engines.runtime import ClientRuntime

Indices = NDArray[np.intp]

#: Bytes of weights in a block, by kernel. The NumPy kernel steps all clients of a block at once, so their weights must
#: fit a core's cache beside gradients and examples; the compiled kernel trains one client after another.
BLOCK_BYTES = {"numpy": 768 * 1024, "compiled": 4 * 1024 * 1024}
#: Floating-point operations of a block that make the cost of cutting it small; each worker gets one to eight blocks, so
#: that all workers finish at about the same time.
BLOCK_WORK = 1e8
BLOCKS_PER_WORKER = 1, 8
#: Bytes of finished weights that may wait for their turn to be aggregated.
PENDING_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Blocks:
    """Cuts cohorts into blocks.

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

    def of_like_work(self, clients: Indices, work: NDArray[Any]) -> list[Indices]:
        """Cut ordered partition ids into blocks that cost about the same.

        Parameters
        ----------
        clients : ndarray of int, shape (clients,)
        work : ndarray, shape (clients,)
            Floating-point operations of each client.
        """
        if self.size:
            return _cut(clients, self.size)
        done = np.cumsum(work, dtype=float)
        per_worker = np.clip(done[-1] / (self.workers * BLOCK_WORK), *BLOCKS_PER_WORKER)
        share = float(done[-1]) / (self.workers * int(per_worker)) * (1 + 1e-9)
        most = max(1, BLOCK_BYTES[self.runtime.kernel_name] // self._row_bytes)
        blocks, start = [], 0
        while start < len(clients):
            before = done[start - 1] if start else 0.0
            stop = int(np.searchsorted(done, before + share, side="right"))
            stop = min(max(stop, start + 1), start + most)
            blocks.append(clients[start:stop])
            start = stop
        return blocks

    def training(self, task: Task, clients: Indices) -> list[Indices]:
        """Cut a cohort for training, one worker to a block."""
        examples = task.strategy.examples_per_round(self.runtime.partition.sizes[clients])
        return self.of_like_work(clients, 3 * self.runtime.model.flops * examples)

    def evaluation(self, clients: Indices) -> list[Indices]:
        """Cut a cohort for evaluation, one worker to a block."""
        return self.of_like_work(clients, self.runtime.model.flops * self.runtime.partition.sizes[clients])

    def shared(self, clients: Indices) -> list[Indices]:
        """Cut a cohort into large blocks, each trained by all workers together."""
        most = max(1, PENDING_BYTES // (self.workers * self._row_bytes)) * self.workers
        return _cut(clients, self.size or most)

    def max_pending(self, blocks: list[Indices]) -> int:
        """Return how many finished blocks may wait for their turn."""
        return PENDING_BYTES // (max(map(len, blocks)) * self._row_bytes)


def _cut(clients: Indices, size: int) -> list[Indices]:
    """Cut clients into blocks of a size, the last one smaller."""
    return [clients[start : start + size] for start in range(0, len(clients), size)]
