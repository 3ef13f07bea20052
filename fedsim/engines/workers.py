"""Threads that run jobs and yield their results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

J = TypeVar("J")
F = TypeVar("F")
T = TypeVar("T")

#: Largest number of threads or actors, above the cores of any machine.
MAX_WORKERS = 4_096


def available_cores() -> int:
    """Return the number of cores that this process may use."""
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
        Starts a job and returns its handle.
    result : callable
        Waits for the result of a handle.
    jobs : sequence
    max_pending : int
        Largest number of jobs that are started and not yet yielded.
    cancel : callable
        Called with each remaining handle if the caller stops early.
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
        # Even one worker has its own thread, so that the main thread can receive Ctrl-C.
        self._pool = ThreadPoolExecutor(self.count, "fedsim", initializer=_core_binder(self.count))
        return self

    def __exit__(self, *details: object) -> None:
        if self._pool is not None:
            # After Ctrl-C the run ends without waiting for clients in training.
            interrupted = bool(details) and isinstance(details[1], KeyboardInterrupt)
            self._pool.shutdown(wait=not interrupted, cancel_futures=True)
            self._pool = None
        self._blas.restore_original_limits()

    def run_on_all(self, work: Callable[[], None]) -> None:
        """Call a function once on every worker, all at the same time."""
        assert self._pool, "use the workers as a context manager"
        for future in [self._pool.submit(work) for _ in range(self.count)]:
            future.result()

    def map(self, work: Callable[[J], T], jobs: Sequence[J], max_pending: int | None = None) -> Iterator[T]:
        """Call a function for each job and yield the results in the order of the jobs.

        Parameters
        ----------
        work : callable
        jobs : sequence
        max_pending : int, optional
            Largest number of results that may wait to be yielded, but at least two for each worker; default all.
        """
        if self._pool is None or self.count == 1 or len(jobs) == 1:
            return map(work, jobs)
        pool, max_pending = self._pool, max(max_pending or len(jobs), 2 * self.count)
        return in_order(lambda job: pool.submit(work, job), Future.result, jobs, max_pending, Future.cancel)


def _core_binder(workers: int) -> Callable[[], None] | None:
    """Return a function that binds each worker thread to its own core, if there are as many cores as workers.

    Otherwise the system may put two threads that wake up together on one core for milliseconds, as long as a small
    round takes.
    """
    if not hasattr(os, "sched_setaffinity") or workers != available_cores():
        return None
    cores = iter(sorted(os.sched_getaffinity(0)))
    return lambda: os.sched_setaffinity(0, {next(cores)})  # of the calling thread
