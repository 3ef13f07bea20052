"""Aggregation of a round's updates: the weights by an aggregator, other arrays by their means."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.server_hooks import ServerHooks, needs_server_hooks
from fedsim.clients.sgd import overrides
from fedsim.clients.task import Update
from fedsim.kernels.mean import RunningMean
from fedsim.kernels.numpy import add_weighted
from fedsim.updates.aggregators import Aggregator, Array, Mean


class Aggregation:
    """Aggregates a round's updates, which are added block by block in cohort order.

    Parameters
    ----------
    aggregator : Aggregator
        Combines the weights.
    server_hooks : ServerHooks, optional
        The server hooks of the client strategy, which may override the clients' weights in the means.
    add_weighted : callable
        Adds a weighted sum of arrays to another; see `fedsim.kernels`.
    check_groups : callable
        Called with a client strategy's name if it averages in groups; raises if the server does not support that.

    Attributes
    ----------
    clients, examples : int
        Number of updates so far, and of their examples.
    server_hooks : ServerHooks or None
        None if the client strategy does not need them.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        server_hooks: ServerHooks | None = None,
        add_weighted: Callable[..., None] = add_weighted,
        check_groups: Callable[[str], None] = lambda client: None,
    ) -> None:
        self.aggregator, self._add_weighted, self._check_groups = aggregator, add_weighted, check_groups
        self.server_hooks = server_hooks if server_hooks and needs_server_hooks(server_hooks.strategy) else None
        own_weights = self.server_hooks is not None and overrides(self.server_hooks.strategy, "weigh")
        #: The mean weighted by examples, where the aggregator returns something else.
        self._mean = None if type(aggregator) is Mean and not own_weights else RunningMean(add_weighted)
        self._others: dict[str, RunningMean] = {}
        self.clients = self.examples = 0
        self._losses: list[NDArray[np.float64]] = []

    def add(self, update: Update) -> None:
        """Add a block of updates."""
        if not len(update.partition_ids):
            return
        self.clients += len(update.partition_ids)
        self.examples += int(update.num_examples.sum())
        self._losses.append(update.train_loss * update.num_examples)
        hooks = self.server_hooks
        weights = hooks.weigh(update.num_examples, update.up) if hooks else update.num_examples
        factors = np.asarray(weights, dtype=np.float64)
        if hooks and factors.ndim > 1:
            self._check_groups(type(hooks.strategy).__name__)
        self.aggregator.add(update, factors)
        if self._mean:
            self._mean.add(update.weights, update.num_examples)
        for name, rows in update.up.items():
            add = self._add_weighted if rows.dtype == update.weights.dtype else add_weighted
            self._others.setdefault(name, RunningMean(add)).add(rows, factors)

    @property
    def train_loss(self) -> float:
        """The mean training loss, weighted by examples; NaN without updates."""
        if not self._losses:
            return float("nan")
        return float(np.concatenate(self._losses).sum() / self.examples)

    @cached_property
    def combined(self) -> Array:
        """The aggregator's result; at least one update must have been added."""
        return self.aggregator.result()

    def mean(self) -> Array:
        """Return the mean of the weights, weighted by examples, shape (parameters,)."""
        return self._mean.value() if self._mean else self.combined

    def means(self) -> dict[str, Array]:
        """Return the combined weights, and the means of the other arrays that clients sent."""
        return {"weights": self.combined} | {name: mean.value() for name, mean in self._others.items()}
