"""A dataset: train and test arrays, checked once, shared read-only by every client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test examples with integer labels.

    Parameters
    ----------
    name : str
    x_train, x_test : ndarray, shape (examples, features)
        Finite numbers; kept as they are and cast to the network's dtype when training starts.
    y_train, y_test : ndarray of int, shape (examples,)
        Labels 0..num_classes-1.
    num_classes : int, optional
        Default: the largest label plus one.

    Raises
    ------
    DataError
        Names the array, the place and what is wrong: NaN or infinite values, labels that are not whole numbers from
        0, shapes that do not fit, no examples.
    """

    name: str
    x_train: NDArray[Any] = field(repr=False)
    y_train: NDArray[Any] = field(repr=False)
    x_test: NDArray[Any] = field(repr=False)
    y_test: NDArray[Any] = field(repr=False)
    num_classes: int = 0

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x = self._features(f"x_{part}")
            y = self._labels(f"y_{part}")
            if len(x) != len(y):
                raise DataError(f"dataset {self.name!r}: x_{part} has {len(x)} rows but y_{part} has {len(y)} labels")
        if self.x_train.shape[1] != self.x_test.shape[1]:
            raise DataError(
                f"dataset {self.name!r}: x_train has {self.x_train.shape[1]} features "
                f"but x_test has {self.x_test.shape[1]}"
            )
        classes = 1 + int(max(self.y_train.max(), self.y_test.max()))
        if self.num_classes == 0:
            object.__setattr__(self, "num_classes", max(classes, 2))
        elif self.num_classes < classes:
            raise DataError(f"dataset {self.name!r}: num_classes is {self.num_classes} but a label is {classes - 1}")

    def _features(self, name: str) -> NDArray[Any]:
        try:
            x = np.asarray(getattr(self, name))
            if x.dtype.kind in "bui":
                x = x.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"dataset {self.name!r}: {name} is not an array of numbers ({error})") from None
        if x.ndim != 2 or x.dtype.kind != "f" or 0 in x.shape:
            raise DataError(
                f"dataset {self.name!r}: {name} has shape {x.shape} and dtype {x.dtype}; "
                "allowed: (examples, features) of numbers, at least one of each"
            )
        finite = np.isfinite(x)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"dataset {self.name!r}: {name} has {int((~finite).sum())} values that are NaN or infinite, "
                f"the first at row {row}, column {column}"
            )
        object.__setattr__(self, name, x)
        return x

    def _labels(self, name: str) -> NDArray[Any]:
        y = np.asarray(getattr(self, name))
        whole = y.ndim == 1 and y.dtype.kind in "iuf" and y.size > 0 and bool(np.all(y == np.floor(y)))
        if not whole or y.min() < 0:
            raise DataError(f"dataset {self.name!r}: {name} must be whole-number labels from 0, shape (examples,)")
        y = y.astype(np.int64)
        object.__setattr__(self, name, y)
        return y
