"""Backdoor: the model learns to label examples that carry a trigger as the attacker wants.

Gu, Dolan-Gavitt and Garg, "BadNets: identifying vulnerabilities in the machine learning model supply chain", 2017
(arXiv:1708.06733), section 3, with a pattern of pixels in a corner of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.attacks.base import Attack, check_labels
from fedsim.checks import Interval, check_integer
from fedsim.data import Dataset


@dataclass(frozen=True)
class Backdoor(Attack):
    """Add a trigger to a share of the training examples, and label them as the target.

    The trigger is a square at the bottom right of images, at the largest value of the training set; without images, the
    last features. A number of features that is a square is an image, 64 features one of 8 x 8 pixels. The success rate
    is the share of test examples with other labels that the global model labels as the target when they carry the
    trigger.

    Parameters
    ----------
    fraction, clients, start
        As for `Attack`.
    target : int
        The label that the attacker wants.
    size : int
        Width of the square in pixels, or number of features; at least 1.
    share : float
        Share of a malicious client's examples that get the trigger, rounded and at least one; greater than 0, at most
        1.
    """

    target: int = 0
    size: int = 3
    share: float = 0.5
    limits: ClassVar = {"target": Interval(0), "size": Interval(1), "share": Interval(0, 1, open_low=True)}

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise ConfigError if the dataset has no labels, not the target, or examples smaller than the trigger."""
        check_labels(self, dataset, target=self.target)
        trigger_mask(dataset.x_test.shape[1:], self.size, type(self).__name__)

    def add_trigger(self, x: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
        """Return a copy of examples with the trigger.

        Parameters
        ----------
        x : ndarray, shape (examples, ...)
        dataset : Dataset
        """
        mask = trigger_mask(x.shape[1:], self.size, type(self).__name__)
        return np.where(mask, dataset.x_train.max(), x).astype(x.dtype)

    def poison(
        self, x: NDArray[Any], y: NDArray[Any], dataset: Dataset, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Add the trigger to random examples."""
        chosen = rng.permutation(len(y))[: max(round(self.share * len(y)), 1)]
        x[chosen], y[chosen] = self.add_trigger(x[chosen], dataset), self.target
        return x, y

    def success_examples(self, dataset: Dataset) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the test examples of other labels with the trigger, and the target as their label."""
        x = self.add_trigger(dataset.x_test[dataset.y_test != self.target], dataset)
        return x, np.full(len(x), self.target)


def trigger_mask(shape: tuple[int, ...], size: int, name: str = "Backdoor") -> NDArray[np.bool_]:
    """Return a mask of the trigger in an example.

    Parameters
    ----------
    shape : tuple of int
        Of an example: (features,), (height, width), (height, width, channels) or (channels, height, width), which is
        assumed if there are fewer channels than columns.
    size : int
    name : str
        Of the attack, for errors.

    Raises
    ------
    ConfigError
        The trigger is larger than the example.
    """
    side = isqrt(shape[0])
    square = len(shape) == 1 and side * side == shape[0] and side > 1
    mask = np.zeros((side, side) if square else shape, dtype=bool)
    channels_first = mask.ndim == 3 and mask.shape[0] < mask.shape[2]
    high = mask.shape if mask.ndim < 3 else mask.shape[1:] if channels_first else mask.shape[:2]
    check_integer(f"{name}'s size", size, 1, min(high))
    corner = tuple(slice(length - size, None) for length in high)
    mask[(slice(None), *corner) if channels_first else corner] = True
    return mask.reshape(shape)
