"""Child processes that end with this process, and the signals that end it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.signals import handle_signals

#: Signals that end a deployment.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds after SIGTERM in which a process may end before it gets SIGKILL.
STOP_TIMEOUT = 10.0


def start_process(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process in its own session; on Linux it ends when this process ends.

    Parameters
    ----------
    command : sequence of str
    environment : mapping
    **options
        For `subprocess.Popen`.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        preexec_fn=_terminate_with_parent() if sys.platform == "linux" else None,
        **options,
    )


def _terminate_with_parent() -> Callable[[], None]:
    """Return a function for the child process that requests SIGTERM at the end of the parent process."""
    prctl, pdeathsig = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(pdeathsig, signal.SIGTERM)


def end_processes(*processes: subprocess.Popen[Any]) -> None:
    """End processes and their descendants in all sessions, first by SIGTERM, then by SIGKILL."""
    pids = [pid for process in processes for pid in (process.pid, *descendants(process.pid))]
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + STOP_TIMEOUT
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.1) if number == signal.SIGTERM else None)


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, their children and so on; none on systems without ``/proc``."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@contextlib.contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first of `STOP_SIGNALS`, and ignore later ones."""
    stopping = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            raise KeyboardInterrupt

    with handle_signals(STOP_SIGNALS, stop):
        yield


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Defer `STOP_SIGNALS` to the end of the block, and raise KeyboardInterrupt there."""
    received = threading.Event()
    with handle_signals(STOP_SIGNALS, lambda number, frame: received.set()):
        yield
    if received.is_set():
        raise KeyboardInterrupt
