"""Drift over rounds: clients see their examples in the order of time, a part at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedsim.checks import check_integer, shorten, suggest
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.wrapped import Wrapped


@dataclass(frozen=True)
class TimeOrdered(Wrapped):
    """Cut every client's examples, in order, into parts, and train on one part after the other.

    In rounds 1 to `rounds_per_window` clients train on the first part of their shards, then on the second, and so on;
    the last part stays to the end. Who holds what never changes, what they train on does.

    Parameters
    ----------
    split : Split
        Who holds what.
    windows : int
        Parts, at least 1. A client with fewer examples has empty parts, and is left out while they last.
    rounds_per_window : int
        At least 1.
    by : str, optional
        What orders a client's examples: one of the dataset's groups, or ``"label"``; default the data's own order.
        With ``"label"``, labels come one after the other, everywhere at once.
    seed : int, optional, keyword
    """

    windows: int = 5
    rounds_per_window: int = 1
    by: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("TimeOrdered's windows", self.windows, 1)
        check_integer("TimeOrdered's rounds_per_window", self.rounds_per_window, 1)
        if self.by is not None and not isinstance(self.by, str):
            raise ConfigError(f"TimeOrdered's by is {shorten(self.by)}; allowed: the name of a column, or 'label'")

    def federate(self, dataset: Dataset, seed: int = 0) -> FederatedDataset:
        """Divide, and order.

        Raises
        ------
        ConfigError
            The dataset has no such column.
        """
        held = self.inner(dataset, seed)
        data, indices = held.dataset, held.partition.indices
        keys = {**data.groups, "label": data.y_train}
        if self.by is not None and self.by not in keys:
            raise ConfigError(f"TimeOrdered's by is {self.by!r}; allowed: {', '.join(keys)}{suggest(self.by, keys)}")
        key = indices if self.by is None else keys[self.by][indices]
        return replace(
            held, partition=held.partition.sort(key), windows=self.windows, rounds_per_window=self.rounds_per_window
        )
