"""Support for any Flower strategy: its log, its sampling, and the numbers of rounds after a checkpoint."""

from __future__ import annotations

import gc
import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy


@contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Show only errors in Flower's log, unless `verbose`."""
    logger = logging.getLogger("flwr")
    before = logger.level
    if not verbose:
        logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)


_RUNNING = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Wait until no other thread of this process has a run: runs share Flower's log and global random generators."""
    with _RUNNING:
        yield


def _forget_threads() -> None:
    """Release the lock in a forked process, which does not have the thread that holds it."""
    global _RUNNING
    _RUNNING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@contextmanager
def freeze_gc() -> Iterator[None]:
    """Exclude existing objects from garbage collection, which some of Flower's strategies run per array and client."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def seeded_sampling(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators, which Flower's strategies use, and restore them afterwards."""
    before = sampling_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        load_sampling_state(before)


def sampling_state() -> tuple[Any, Any]:
    """Return the states of Python's and NumPy's global generators."""
    return random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002


def load_sampling_state(state: tuple[Any, Any]) -> None:
    """Set the states of Python's and NumPy's global generators."""
    python, numpy = state
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


class ResumedStrategy(Strategy):
    """A strategy whose round numbers continue those of an interrupted run.

    Parameters
    ----------
    strategy : Strategy
    done : int
        Number of finished rounds; with 0 the strategy runs unchanged.
    """

    def __init__(self, strategy: Strategy, done: int) -> None:
        self._strategy, self._done = strategy, done

    def start(self, *args: Any, **kwargs: Any) -> Any:
        """Run the strategy's own loop if no round is finished, else Flower's."""
        return super().start(*args, **kwargs) if self._done else self._strategy.start(*args, **kwargs)

    def summary(self) -> None:
        """Call the strategy's method."""
        self._strategy.summary()

    def configure_train(self, server_round: int, *args: Any) -> Any:
        """Call the strategy's method."""
        return self._strategy.configure_train(server_round + self._done, *args)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Call the strategy's method."""
        return self._strategy.aggregate_train(server_round + self._done, replies)

    def configure_evaluate(self, server_round: int, *args: Any) -> Any:
        """Call the strategy's method."""
        return self._strategy.configure_evaluate(server_round + self._done, *args)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        """Call the strategy's method."""
        return self._strategy.aggregate_evaluate(server_round + self._done, replies)
