"""Concept shift: clients give the same examples different labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.checks import Interval
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.wrapped import ChangingWrapper, GradedWrapper


def _check_has_labels(dataset: Dataset, split: str) -> int:
    """Return the number of classes; ConfigError if the targets are real numbers."""
    if dataset.regression:
        raise ConfigError(f"{split} changes labels; {dataset.name} has real-valued targets")
    return dataset.num_classes


@dataclass(frozen=True)
class LabelNoise(GradedWrapper):
    """Replace the labels of a share of each client's examples by a random other label.

    Parameters
    ----------
    split : Split
        Divides the examples among the clients.
    high, low : float
        Probability of a noisy label at the last and at the first client, 0 to 1, with linear interpolation between.
    seed : int, optional, keyword
    """

    high: float = 0.4
    limits = {"high": Interval(0, 1), "low": Interval(0, 1)}

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Add the label noise."""
        classes = _check_has_labels(federated.dataset, "LabelNoise")
        y = federated.dataset.y_train[federated.partition.indices]
        noisy = rng.random(len(y)) < self.strengths(federated.partition)
        shift = rng.integers(1, classes, len(y))
        return federated.replace_examples(y=np.where(noisy, (y + shift) % classes, y))


@dataclass(frozen=True)
class LabelPermutation(ChangingWrapper):
    """Permute the labels of each cluster of clients at random; the first cluster keeps its labels.

    Sattler, Müller and Samek, "Clustered federated learning", IEEE TNNLS 2020 (arXiv:1910.01991), section V: clusters
    with permuted labels. No single model fits all clients, but personalised and clustered strategies can.

    Parameters
    ----------
    split : Split
        Divides the examples among the clients.
    clusters : int
        At least 1; client k is in cluster ``k % clusters``.
    seed : int, optional, keyword
    """

    clusters: int = 4
    limits = {"clusters": Interval(1)}

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Permute the labels."""
        classes = _check_has_labels(federated.dataset, "LabelPermutation")
        permuted = np.tile(np.arange(classes), (self.clusters, 1))
        permuted[1:] = rng.permuted(permuted[1:], axis=1)
        cluster = np.repeat(np.arange(len(federated.partition)) % self.clusters, federated.partition.sizes)
        return federated.replace_examples(y=permuted[cluster, federated.dataset.y_train[federated.partition.indices]])
