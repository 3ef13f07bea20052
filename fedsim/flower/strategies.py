"""What a run needs around any Flower strategy: its log, its sampling, and rounds counted from a checkpoint."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.serverapp.strategy import Strategy


@contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Hold Flower's own log to errors while fedsim runs it, unless `verbose`."""
    logger = logging.getLogger("flwr")
    before = logger.level
    if not verbose:
        logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def freeze_gc() -> Iterator[None]:
    """Spare garbage collection what exists by now: some of Flower's strategies collect per array and client."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def seeded_sampling(seed: int) -> Iterator[None]:
    """Seed the global `random`, from which Flower's own strategies sample, and put it back afterwards."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


class ResumedStrategy(Strategy):
    """Another strategy, whose rounds go on counting after those that an interrupted run has done.

    Parameters
    ----------
    strategy : Strategy
    done : int
        Rounds done; with 0 the strategy runs as it is.
    """

    def __init__(self, strategy: Strategy, done: int) -> None:
        self._strategy, self._done = strategy, done

    def start(self, *args: Any, **kwargs: Any) -> Any:
        """Run the strategy's own loop where nothing has been done, else Flower's."""
        return self._strategy.start(*args, **kwargs) if not self._done else super().start(*args, **kwargs)

    def summary(self) -> None:
        """Log what the strategy logs."""
        self._strategy.summary()

    def configure_train(self, server_round: int, *args: Any) -> Any:
        """As the strategy does."""
        return self._strategy.configure_train(server_round + self._done, *args)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """As the strategy does."""
        return self._strategy.aggregate_train(server_round + self._done, replies)

    def configure_evaluate(self, server_round: int, *args: Any) -> Any:
        """As the strategy does."""
        return self._strategy.configure_evaluate(server_round + self._done, *args)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        """As the strategy does."""
        return self._strategy.aggregate_evaluate(server_round + self._done, replies)
