"""Temporal drift: clients train on consecutive parts of their examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedsim.checks import Interval, check_choice, check_instance
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.wrapped import ChangingWrapper


@dataclass(frozen=True)
class TimeOrdered(ChangingWrapper):
    """Cut each client's examples into consecutive parts, and train on one part after another.

    In rounds 1 to `rounds_per_window` clients train on the first part of their shards, then on the second, and so on;
    the last part is used until the end. The assignment of examples to clients does not change.

    Parameters
    ----------
    split : Split
        Divides the examples among the clients.
    windows : int
        Number of parts, at least 1. A client with fewer examples has empty parts, in which it does not take part.
    rounds_per_window : int
        At least 1.
    by : str, optional
        Sort key of a client's examples: one of the dataset's groups or ``"label"``; default the order of the data.
        With ``"label"``, all clients train on one label after another.
    seed : int, optional, keyword
    """

    windows: int = 5
    rounds_per_window: int = 1
    by: str | None = None
    limits = {"windows": Interval(1), "rounds_per_window": Interval(1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("TimeOrdered's by", self.by, str | None, "the name of a column, or 'label'")

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Sort each client's examples.

        Raises
        ------
        ConfigError
            The dataset has no such column.
        """
        data, indices = federated.dataset, federated.partition.indices
        keys = {**data.groups, "label": data.y_train}
        if self.by is not None:
            check_choice("TimeOrdered's by", self.by, keys)
        key = indices if self.by is None else keys[self.by][indices]
        order = federated.partition.sort(key)
        return replace(federated, partition=order, windows=self.windows, rounds_per_window=self.rounds_per_window)
