"""Threads that run jobs of this process, and hand their results over in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

J = TypeVar("J")
F = TypeVar("F")
T = TypeVar("T")

#: The most threads, or actors; more than any machine's cores.
MAX_WORKERS = 4_096


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    submit: Callable[[J], F],
    result: Callable[[F], T],
    jobs: Sequence[J],
    max_pending: int,
    cancel: Callable[[F], Any] = lambda pending: None,
) -> Iterator[T]:
    """Run jobs concurrently and yield their results in the order of the jobs.

    Parameters
    ----------
    submit : callable
        Starts a job and returns a handle of it.
    result : callable
        Waits for a handle's result.
    jobs : sequence
    max_pending : int
        The most jobs that may be started and not yet yielded.
    cancel : callable
        Called with the handles that are left when the caller stops early.
    """
    pending: deque[F] = deque()
    try:
        for job in jobs:
            pending.append(submit(job))
            if len(pending) >= max_pending:
                yield result(pending.popleft())
        while pending:
            yield result(pending.popleft())
    finally:
        for handle in pending:
            cancel(handle)


class Workers:
    """A pool of threads. Use it as a context manager: while it is open, BLAS has one thread in each worker.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._blas: Any = None

    def __enter__(self) -> Self:
        from threadpoolctl import threadpool_limits

        self._blas = threadpool_limits(1, "blas")
        # One worker has a thread too, so that the main thread can receive Ctrl-C.
        self._pool = ThreadPoolExecutor(self.count, "fedsim", initializer=_one_core_each(self.count))
        return self

    def __exit__(self, *details: object) -> None:
        if self._pool is not None:
            # After Ctrl-C the run ends without waiting for the clients that are training.
            interrupted = bool(details) and isinstance(details[1], KeyboardInterrupt)
            self._pool.shutdown(wait=not interrupted, cancel_futures=True)
            self._pool = None
        self._blas.restore_original_limits()

    def run_on_all(self, work: Callable[[], None]) -> None:
        """Call a function once on every worker at the same time."""
        assert self._pool, "use the workers as a context manager"
        for future in [self._pool.submit(work) for _ in range(self.count)]:
            future.result()

    def map(self, work: Callable[[J], T], jobs: Sequence[J], max_pending: int | None = None) -> Iterator[T]:
        """Call a function of each job; yield the results in the order of the jobs.

        Parameters
        ----------
        work : callable
        jobs : sequence
        max_pending : int, optional
            The most results that may wait for their turn, but at least two for each worker; default all.
        """
        if self._pool is None or self.count == 1 or len(jobs) == 1:
            return map(work, jobs)
        pool = self._pool
        most = max(max_pending or len(jobs), 2 * self.count)
        return in_order(lambda job: pool.submit(work, job), Future.result, jobs, most, Future.cancel)


def _one_core_each(workers: int) -> Callable[[], None] | None:
    """Return a function that binds a worker thread to a core of its own, where there are as many cores as workers.

    The system may start two threads that wake at once on one core and leave them there for milliseconds, which is a
    small round's time.
    """
    if not hasattr(os, "sched_setaffinity") or workers != available_cores():
        return None
    cores = iter(sorted(os.sched_getaffinity(0)))
    return lambda: os.sched_setaffinity(0, {next(cores)})  # of the calling thread
