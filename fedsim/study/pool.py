"""Worker processes that do numbered jobs of a study and report their progress.

On Linux, workers are forked from this process, so that they share its data and its loaded kernels without copying.
Elsewhere they are started anew and receive a pickled copy.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from tqdm import tqdm

from fedsim.errors import FedsimError, RemoteError
from fedsim.signals import handle_signals
from fedsim.text import describe

T = TypeVar("T")
#: Does the job with a number; calls the second argument with what it wants to report.
Work = Callable[[int, Callable[[Any], None]], T]
FORKS = sys.platform == "linux"
#: Seconds that workers have to end before they are killed.
EXIT_SECONDS = 1.0


class WorkerError(FedsimError):
    """A worker process failed; the message says how."""


def in_processes(
    work: Work[T], numbers: Sequence[int], processes: int, observe: Callable[[int, Any], None]
) -> Iterator[tuple[int, T]]:
    """Do jobs in worker processes; yield each number and what its job returned, in the order in which they finish.

    Ctrl-C is passed on to the workers: the first lets a job that handles it end in order, and the second ends it at
    once. If a job fails, the others are interrupted likewise. Workers end when this process ends, however it does.

    Parameters
    ----------
    work : callable
        Called in the workers; under another system than Linux it is pickled.
    numbers : sequence of int
        The jobs, in the order in which they are started.
    processes : int
        Number of workers.
    observe : callable
        Called in this process with a job's number and its reports.

    Raises
    ------
    Exception
        Of the first job that failed; `WorkerError` if it was not one of fedsim's, or if the worker was killed.
    KeyboardInterrupt
        After Ctrl-C, once all workers have ended.
    """
    with _Pool(work, numbers, processes, observe) as pool:
        yield from pool.results()


class _Pool:
    """The workers of `in_processes`, which has the same parameters."""

    def __init__(
        self, work: Work[Any], numbers: Sequence[int], processes: int, observe: Callable[[int, Any], None]
    ) -> None:
        self._context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")
        self._work, self._observe = work, observe
        self._waiting = deque(numbers)
        self._count = min(processes, len(numbers))
        self._workers: dict[Connection, Any] = {}
        self._running: dict[Connection, int] = {}
        self._error: BaseException | None = None
        self._interrupts = 0
        self._printed: set[str] = set()

    def __enter__(self) -> _Pool:
        sys.stdout.flush()  # a forked worker would write what is buffered a second time
        sys.stderr.flush()
        for _ in range(self._count):
            ours, theirs = self._context.Pipe()
            worker = self._context.Process(target=_serve, args=(theirs, self._work), daemon=True)
            worker.start()
            theirs.close()
            self._workers[ours] = worker
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._workers:
            with suppress(OSError):  # it has ended
                connection.send(None)
            connection.close()
        for worker in self._workers.values():
            worker.join(EXIT_SECONDS)
            if worker.is_alive():
                worker.kill()
                worker.join()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield numbers and results; see `in_processes`."""
        with handle_signals([signal.SIGINT], self._interrupt):
            for connection in self._workers:
                self._next(connection)
            while self._running:
                ready: Any = wait(list(self._running))
                for connection in ready:
                    yield from self._receive(connection)
        if self._error:
            raise self._error

    def _next(self, connection: Connection) -> None:
        """Give a worker its next job, if one is waiting."""
        if self._waiting and self._error is None:
            self._running[connection] = number = self._waiting.popleft()
            with suppress(OSError):  # if the worker is dead, its connection is found closed
                connection.send(number)

    def _receive(self, connection: Any) -> Iterator[tuple[int, Any]]:
        """Read a message of a worker."""
        number = self._running[connection]
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            kind, content = "failed", (self._describe_death(self._workers[connection]), "")
        if kind == "report":
            self._observe(number, content)
        elif kind == "line":
            if self._error is None or (self._interrupts and content not in self._printed):  # each says that it stops
                tqdm.write(content, file=sys.stderr, end="")
            self._printed.add(content)
        elif kind == "done":
            del self._running[connection]
            self._next(connection)
            yield number, content
        else:
            del self._running[connection]
            error, text = content
            if text:
                error.__cause__ = RemoteError(text)
            self._fail(error)

    def _interrupt(self, signum: int, frame: Any) -> None:
        """Handle Ctrl-C."""
        self._interrupts += 1
        self._error = self._error or KeyboardInterrupt()
        self._signal(signal.SIGKILL if self._interrupts > 2 else signal.SIGINT)

    def _fail(self, error: BaseException) -> None:
        """Handle the failure of a job: keep the first, and interrupt the others."""
        if self._error is None:
            self._error = error
            self._signal(signal.SIGINT)

    def _signal(self, number: int) -> None:
        for connection in self._running:
            with suppress(OSError):  # it has ended
                os.kill(self._workers[connection].pid, number)

    @staticmethod
    def _describe_death(worker: Any) -> WorkerError:
        worker.join(5)
        code = worker.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return WorkerError(f"a worker process {how}; if memory ran out, let fewer runs go at the same time (jobs)")


class _Lines(io.TextIOBase):
    """Standard error of a worker: sends lines to the parent, which prints them above its progress bar."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send, self._partial = send, ""

    def write(self, text: str) -> int:
        """Send the lines that are complete."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._send(("line", f"{line}\n"))
        return len(text)


def _serve(connection: Connection, work: Work[Any]) -> None:
    """Do jobs until None is received."""
    from threadpoolctl import threadpool_limits

    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent only, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock, interrupted = threading.Lock(), threading.Event()

    def interrupt(signum: int, frame: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def send(message: Any) -> None:
        with _without_interrupts(), lock:  # a handler that prints would send within another message
            connection.send(message)

    def report(content: Any) -> None:
        send(("report", content))
        if interrupted.is_set():  # Python ignored the exception, as it does in destructors
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    threadpool_limits(1, "blas")  # its other threads would take the cores of the other workers
    tqdm.set_lock(threading.RLock())  # not that of the parent, which a killed worker would hold for ever
    sys.stderr = _Lines(send)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while (number := connection.recv()) is not None:
            try:
                message = "done", work(number, report)
            except BaseException as error:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
                message = "failed", (_portable(error), "".join(traceback.format_exception(error)))
            send(message)
    os._exit(0)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process when its parent does."""
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """Return an exception that can be pickled: fedsim's own, or a sentence with the line of the user's code."""
    own = isinstance(error, FedsimError | KeyboardInterrupt | OSError | MemoryError)
    return error if own else WorkerError(describe(error))


def may_start_workers() -> bool:
    """Return whether this thread of this process can start worker processes and pass Ctrl-C on to them."""
    main = threading.current_thread() is threading.main_thread()
    return main and not multiprocessing.current_process().daemon
