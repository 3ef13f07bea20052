"""Handlers of signals that are in force for a block of code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handle_signals(numbers: Iterable[signal.Signals], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle signals in the main thread, except those that are ignored, as SIGHUP is under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = [(number, signal.signal(number, handler)) for number in heeded]
    try:
        yield
    finally:
        for number, earlier in previous:
            signal.signal(number, earlier)
