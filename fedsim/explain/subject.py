"""What is explained: a model with one row of parameters, and the examples on which it is explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_instance, check_integer, shorten
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import Array, Model, flat_parameters
from fedsim.models.losses import predicted_labels
from fedsim.study.result import Result

#: Parameters of a model: a flat row, shape (parameters,), or named arrays such as `Result.weights`.
Weights = Array | Mapping[str, Array]


class Subject(NamedTuple):
    """A model, its parameters and its dataset; made by `Subject.of`.

    Attributes
    ----------
    model : Model
    row : ndarray, shape (1, parameters)
    dataset : Dataset
    """

    model: Model
    row: Array
    dataset: Dataset

    @classmethod
    def of(cls, result: Result, weights: Weights | None = None) -> Subject:
        """Return the model of a result with its final global weights, or with other weights of the same shape."""
        check_instance("result", result, Result, "the Result of an experiment")
        model, row = result.model, result.flat_weights
        if weights is not None:
            row = check_rows(flat(model, weights), model)
            if row.ndim > 1:
                raise ConfigError(f"weights has shape {row.shape}; allowed: ({model.num_parameters},)")
        return cls(model, np.asarray(row, dtype=model.dtype)[None], result.dataset)

    def scores(self, x: Array) -> Array:
        """Return the scores of examples, shape (examples, outputs)."""
        return self.model.scores(self.row, np.asarray(x, dtype=self.model.dtype)[None])[0]

    def examples(self, x: Any, name: str = "x") -> Array:
        """Return examples in the model's dtype, by default the test set; ConfigError for other shapes and for NaN."""
        shape = self.dataset.x_test.shape[1:]
        return check_examples(self.dataset.x_test if x is None else x, shape, name).astype(self.model.dtype)

    def directions(self, x: Array, target: Any) -> Array:
        """Return one-hot rows, shape (examples, outputs), of the explained outputs: by default the predicted labels."""
        outputs = self.model.outputs
        if target is None:
            chosen = predicted_labels(self.scores(x)) if outputs > 1 else np.zeros(len(x), dtype=np.intp)
        elif np.ndim(target) == 0:
            chosen = np.full(len(x), check_integer("target", target, 0, outputs - 1))
        else:
            chosen = np.asarray(target)
            allowed = f"a whole number from 0 to {outputs - 1}, or one for each of {len(x)} examples"
            whole = chosen.dtype.kind in "iu" and chosen.shape == (len(x),)
            if not whole or chosen.min() < 0 or chosen.max() >= outputs:
                raise ConfigError(f"target is {shorten(target)}; allowed: {allowed}")
        return np.eye(outputs, dtype=self.model.dtype)[chosen]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: matrices here are small, and the bits do not depend on the number of cores."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


def flat(model: Model, weights: Weights) -> Array:
    """Return parameters as rows; named arrays are put in the order of the model's layout.

    ConfigError for an array that is missing or has another shape.
    """
    if not isinstance(weights, Mapping):
        return np.asarray(weights)
    for name, (_, shape) in model.layout.items():
        if name not in weights:
            raise ConfigError(f"weights has no array {name!r}; allowed: arrays named {', '.join(model.layout)}")
        if np.shape(weights[name]) != shape:
            raise ConfigError(f"weights has {name} of shape {np.shape(weights[name])}; allowed: {shape}")
    return flat_parameters(model, weights)


def check_rows(rows: Array, model: Model) -> Array:
    """Return rows of parameters, shape (..., parameters); ConfigError for other shapes and for values not finite."""
    if rows.dtype.kind != "f" or rows.shape[-1:] != (model.num_parameters,):
        allowed = f"a row of {model.num_parameters} numbers"
        raise ConfigError(f"weights has shape {rows.shape} and dtype {rows.dtype}; allowed: {allowed}")
    if not np.isfinite(rows).all():
        raise ConfigError("weights has values that are NaN or infinite; allowed: finite numbers")
    return rows


def check_examples(x: Any, shape: tuple[int, ...], name: str = "x") -> NDArray[Any]:
    """Return examples of a shape as an array of numbers; ConfigError for anything else, for none, and for NaN."""
    try:
        found = np.asarray(x)
    except ValueError:  # rows of different lengths
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "buif" or found.shape[1:] != shape or len(found) == 0:
        allowed = f"numbers of shape (examples, {', '.join(map(str, shape))}), at least one example"
        raise ConfigError(f"{name} has shape {found.shape} and dtype {found.dtype}; allowed: {allowed}")
    if not np.isfinite(found).all():
        raise ConfigError(f"{name} has values that are NaN or infinite; allowed: finite numbers")
    return found
