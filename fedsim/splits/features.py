"""Feature skew: the same examples have different features at different clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import Interval, check_real, shorten, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.wrapped import ChangingWrapper, GradedWrapper

#: Number of examples that are changed at once, so that temporary arrays are small.
ROWS = 65_536


@dataclass(frozen=True)
class FeatureNoise(GradedWrapper):
    """Add Gaussian noise to the features, with a level that increases from client to client.

    Li et al., ICDE 2022 (arXiv:2102.02079), section IV-B: client i of N gets noise of level ``sigma * i / N``. As in
    NIID-Bench's code, the level is a standard deviation, it is ``i / (N - 1)``, and client 0 has none.

    Parameters
    ----------
    split : Split
        Divides the examples among the clients.
    high, low : float
        Standard deviation at the last and at the first client, at least 0, in the unit of the features.
    seed : int, optional, keyword
    """

    high: float = 0.1
    limits = {"high": Interval(0, 1e6), "low": Interval(0, 1e6)}

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Add the noise."""
        level = self.strengths(federated.partition)
        x = federated.dataset.x_train[federated.partition.indices]
        for start in range(0, len(x), ROWS):
            part = x.reshape(len(x), -1)[start : start + ROWS]
            part += (rng.standard_normal(part.shape) * level[start : start + ROWS, None]).astype(x.dtype)
        return federated.replace_examples(x=x)


@dataclass(frozen=True)
class FeatureScale(GradedWrapper):
    """Multiply the features by a factor, from `low` at the first client to `high` at the last.

    This models instruments with different calibrations, or different units.

    Parameters
    ----------
    split : Split
        Divides the examples among the clients.
    high, low : float
        Factors, finite.
    seed : int, optional, keyword
    """

    high: float = 2.0
    low: float = 0.5
    limits = {"high": Interval(-1e6, 1e6), "low": Interval(-1e6, 1e6)}

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Scale the features."""
        x = federated.dataset.x_train[federated.partition.indices]
        x.reshape(len(x), -1)[:] *= self.strengths(federated.partition)[:, None].astype(x.dtype)
        return federated.replace_examples(x=x)


@dataclass(frozen=True)
class Rotation(ChangingWrapper):
    """Rotate the images of client k counter-clockwise by ``degrees[k % len(degrees)]``.

    The rotated data of Ghosh et al., "An efficient framework for clustered federated learning", NeurIPS 2020
    (arXiv:2006.04088), section 6: four clusters of clients, rotated by 0, 90, 180 and 270 degrees. Multiples of 90
    degrees are exact; other angles use linear interpolation and fill the corners with 0.

    Parameters
    ----------
    split : Split
        Divides the examples among the clients.
    degrees : sequence of float
    seed : int, optional, keyword
    """

    degrees: Sequence[float] = (0, 90, 180, 270)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "degrees", to_builtin_sequence(self.degrees))
        if isinstance(self.degrees, str) or not isinstance(self.degrees, Sequence) or not self.degrees:
            raise ConfigError(f"Rotation's degrees is {shorten(self.degrees)}; allowed: a list of angles")
        for angle in self.degrees:
            check_real("Rotation's degrees", angle)

    def change(self, federated: FederatedDataset, rng: np.random.Generator) -> FederatedDataset:
        """Rotate the images.

        Raises
        ------
        ConfigError
            The features are not a square image with one channel.
        """
        x, name = federated.dataset.x_train[federated.partition.indices], federated.dataset.name
        side = math.isqrt(x.shape[1])
        if x.shape[1:] != (side * side,):
            raise ConfigError(f"Rotation needs flat square images; {name} has examples of shape {x.shape[1:]}")
        angles = np.repeat(np.arange(len(federated.partition)) % len(self.degrees), federated.partition.sizes)
        for number, angle in enumerate(self.degrees):
            chosen = angles == number
            x[chosen] = _rotate(x[chosen].reshape(-1, side, side), angle).reshape(-1, side * side)
        return federated.replace_examples(x=x)


def _rotate(images: NDArray[Any], degrees: float) -> NDArray[Any]:
    """Rotate images, shape (examples, side, side)."""
    quarters, rest = divmod(degrees, 90)
    if not rest:
        return np.rot90(images, int(quarters) % 4, axes=(1, 2))
    from scipy.ndimage import rotate

    return rotate(images, degrees, axes=(2, 1), reshape=False, order=1)
