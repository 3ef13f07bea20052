"""Label flipping: malicious clients train on wrong labels.

Tolpegin, Truex, Gursoy and Liu, "Data poisoning attacks against federated learning systems", ESORICS 2020
(arXiv:2007.08432), section 3, flips a source label to a target label; Fang, Cao, Jia and Gong, "Local model poisoning
attacks to Byzantine-robust federated learning", USENIX Security 2020 (arXiv:1911.11815), section 5, flips all labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import Attack, check_labels
from fedsim.checks import Interval
from fedsim.data import Dataset
from fedsim.errors import ConfigError


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Train on wrong labels: y becomes ``num_classes - 1 - y``, or one label becomes another.

    With a source and a target, the success rate is the share of test examples of the source that the global model
    labels as the target.

    Parameters
    ----------
    fraction, clients, start
        As for `Attack`.
    source, target : int, optional
        The label to change, and the label that it becomes; default: all labels change.
    """

    source: int | None = None
    target: int | None = None
    limits: ClassVar = {"source": Interval(0), "target": Interval(0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) != (self.target is None):
            raise ConfigError(
                f"LabelFlip has source={self.source} and target={self.target}; allowed: both, or neither to flip all"
            )
        if self.source is not None and self.source == self.target:
            raise ConfigError(f"LabelFlip's source and target are both {self.source}; allowed: two different labels")

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise ConfigError if the dataset has no labels, or not the source and the target."""
        check_labels(self, dataset, source=self.source, target=self.target)

    def poison(
        self, x: NDArray[Any], y: NDArray[Any], dataset: Dataset, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Flip labels."""
        if self.source is None:
            return x, dataset.num_classes - 1 - y
        y[y == self.source] = self.target
        return x, y

    def success_examples(self, dataset: Dataset) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the test examples of the source, with the target as their label."""
        if self.source is None:
            return None
        x = dataset.x_test[dataset.y_test == self.source]
        return x, np.full(len(x), self.target)
