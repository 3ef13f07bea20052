"""A dataset: training and test arrays, checked once and shared read-only by all clients."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import CheckedInit
from fedsim.errors import DataError

#: Number of classes into which splits sort real-valued targets, by their quantiles.
DECILES = 10
#: Largest number of classes: each is an output of the model, and a column of every table of labels.
MAX_CLASSES = 100_000


@dataclass(frozen=True, eq=False)
class Dataset(CheckedInit):
    """Training and test examples with labels, or with real-valued targets.

    Parameters
    ----------
    name : str
    x_train, x_test : ndarray, shape (examples, features) or (examples, ...)
        Finite numbers; cast to the model's dtype when training starts. The MLP takes one-dimensional examples; other
        models may take more dimensions.
    y_train, y_test : ndarray, shape (examples,)
        Labels 0..num_classes-1; finite numbers for regression.
    num_classes : int, optional
        Default: the largest label plus one, at least 2; always 1 for regression.
    regression : bool
        Whether the targets are real numbers.
    groups : mapping of str to ndarray, shape (training examples,)
        Name of a column -> the group of each training example, such as the client to which it belongs.
    groups_test : mapping of str to ndarray, shape (test examples,)
        The same for test examples, for columns between whose groups fairness is measured.
    label_names : tuple of str, optional
        Default "0", "1", ...
    notes : tuple of str
        Messages on how the data were preprocessed.
    feature_names : tuple of str, optional
        Name of each feature; default none.
    feature_columns : tuple of str, optional
        Name of the table's column from which each feature was made: features of one categorical column have the same.
        Default `feature_names`.

    Raises
    ------
    DataError
        An array has NaN or infinite values, labels that are not whole numbers from 0, a shape that does not match the
        others, or no examples.
    """

    name: str
    x_train: NDArray[Any] = field(repr=False)
    y_train: NDArray[Any] = field(repr=False)
    x_test: NDArray[Any] = field(repr=False)
    y_test: NDArray[Any] = field(repr=False)
    num_classes: int = 0
    regression: bool = field(default=False, kw_only=True)
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False, kw_only=True)
    groups_test: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False, kw_only=True)
    label_names: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    notes: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    feature_names: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    feature_columns: tuple[str, ...] = field(default=(), repr=False, kw_only=True)

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = self._features(f"x_{part}"), self._targets(f"y_{part}")
            if len(x) != len(y):
                raise self._error(f"x_{part} has {len(x)} rows but y_{part} has {len(y)} labels")
            object.__setattr__(self, f"x_{part}", _read_only(x))
            object.__setattr__(self, f"y_{part}", _read_only(y))
        train, test = self.x_train.shape[1:], self.x_test.shape[1:]
        if train != test:
            raise self._error(f"x_train has examples of shape {train} but x_test of shape {test}")
        self._set_classes()
        self._set_feature_names()
        groups = {k: self._group(f"group {k!r}", v, self.y_train) for k, v in self.groups.items()}
        tests = {k: self._group(f"group {k!r} of test examples", v, self.y_test) for k, v in self.groups_test.items()}
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "groups_test", tests)

    def _set_classes(self) -> None:
        """Check `num_classes`, and fill in the defaults of `num_classes` and `label_names`."""
        classes = 1 if self.regression else 1 + int(max(self.y_train.max(), self.y_test.max()))
        if max(classes, self.num_classes) > MAX_CLASSES:
            most = max(classes, self.num_classes)
            raise self._error(f"it has {most:,} classes; allowed: at most {MAX_CLASSES:,}, numbered from 0")
        if self.regression or self.num_classes == 0:
            object.__setattr__(self, "num_classes", classes if self.regression else max(classes, 2))
        elif self.num_classes < classes:
            raise self._error(f"num_classes is {self.num_classes} but a label is {classes - 1}")
        if not self.label_names:
            object.__setattr__(self, "label_names", tuple(map(str, range(self.num_strata))))

    def _set_feature_names(self) -> None:
        """Check the names of features, and fill in the default of `feature_columns`."""
        for field_name in ("feature_names", "feature_columns"):
            names = tuple(getattr(self, field_name) or self.feature_names)
            if names and (self.x_train.shape[1:] != (len(names),) or not all(isinstance(n, str) for n in names)):
                shape = self.x_train.shape[1:]
                raise self._error(f"{field_name} has {len(names)} items; allowed: a text for each feature of {shape}")
            object.__setattr__(self, field_name, names)
        if len(set(self.feature_names)) < len(self.feature_names):
            raise self._error("feature_names has a name twice; allowed: different names")

    def _group(self, name: str, values: Any, y: NDArray[Any]) -> NDArray[Any]:
        group = np.asarray(values)
        if group.dtype.kind == "O":
            group = group.astype(str)
        if group.shape != y.shape:
            raise self._error(f"{name} has shape {group.shape}; allowed: {y.shape}")
        return _read_only(group)

    @cached_property
    def strata(self) -> NDArray[Any]:
        """The classes of the training examples that splits use: the labels, or for regression the targets' deciles."""
        if not self.regression:
            return self.y_train
        cuts = np.quantile(self.y_train, np.linspace(0, 1, DECILES + 1)[1:-1])
        return np.searchsorted(cuts, self.y_train, side="right")

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the arrays and the groups, in hexadecimal digits."""
        names = sorted(self.groups), sorted(self.groups_test)
        groups = [self.groups[name] for name in names[0]] + [self.groups_test[name] for name in names[1]]
        digest = hashlib.sha256(repr((self.num_classes, self.regression, *names)).encode())
        for values in (self.x_train, self.y_train, self.x_test, self.y_test, *groups):
            digest.update(repr((values.shape, values.dtype.str)).encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    @property
    def num_strata(self) -> int:
        """The number of classes in `strata`."""
        return DECILES if self.regression else self.num_classes

    @cached_property
    def test_variance(self) -> float | None:
        """The variance of the test targets, on which R squared is based; None for labels."""
        return float(self.y_test.var()) if self.regression else None

    def _error(self, sentence: str) -> DataError:
        return DataError(f"dataset {self.name!r}: {sentence}")

    def _features(self, name: str) -> NDArray[Any]:
        try:
            x = np.asarray(getattr(self, name))
            if x.dtype.kind in "bui":
                x = x.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise self._error(f"{name} is not an array of numbers ({error})") from None
        if x.ndim < 2 or x.dtype.kind != "f" or 0 in x.shape:
            allowed = "(examples, features) of numbers, at least one of each"
            raise self._error(f"{name} has shape {x.shape} and dtype {x.dtype}; allowed: {allowed}")
        finite = np.isfinite(x)
        if not finite.all():
            row, *index = np.argwhere(~finite)[0].tolist()
            column = f"column {index[0]}" if len(index) == 1 else f"position {tuple(index)}"
            count = np.count_nonzero(~finite)
            raise self._error(f"{name} has {count} values that are NaN or infinite, the first at row {row}, {column}")
        return x

    def _targets(self, name: str) -> NDArray[Any]:
        y = np.asarray(getattr(self, name))
        finite = y.ndim == 1 and y.dtype.kind in "biuf" and y.size > 0 and bool(np.isfinite(y).all())
        if not finite or not (self.regression or (y.min() >= 0 and (y == np.floor(y)).all())):
            allowed = "finite numbers" if self.regression else "whole-number labels from 0"
            raise self._error(f"{name} must be {allowed}, shape (examples,)")
        return y.astype(np.float64) if self.regression else y.astype(np.int64, copy=False)


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view
