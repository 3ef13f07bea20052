"""The metrics of an experiment as a measure that clients send; see `fedsim.models.metrics`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import Array, Model
from fedsim.models.metrics import METRICS, AnyMetric, Predictions, compute, metric_name, shape_of
from fedsim.splits.partition import Indices

if TYPE_CHECKING:
    import pandas as pd

#: Columns of `Result.metrics`, in order.
COLUMNS = ("round", "partition_id", "metric", "class", "predicted", "value")


def has_class_scores(dataset: Dataset, model: Model) -> bool:
    """Return whether a model has an output per class, or one for two classes; for regression one."""
    return model.outputs == dataset.num_classes or (model.outputs, dataset.num_classes) == (1, 2)


class Metrics:
    """Computes metrics of a model's scores, one after another in a row of numbers.

    Parameters
    ----------
    metrics : sequence of str or callable
        See `fedsim.models.metrics.AnyMetric`.
    dataset : Dataset
    model : Model

    Raises
    ------
    ConfigError
        A metric does not fit the dataset, or the model has not one score per class.
    """

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float64)

    def __init__(self, metrics: Sequence[AnyMetric], dataset: Dataset, model: Model) -> None:
        self._metrics, self._loss, self._classes = tuple(metrics), model.loss, dataset.num_classes
        self._check(dataset, model)
        self._shapes = [shape_of(metric, self._classes) for metric in self._metrics]
        sizes = [math.prod(shape) for shape in self._shapes]
        self._starts = np.cumsum([0, *sizes])
        self.shape = (sum(sizes),)
        names = [list(dataset.label_names)] * 2
        cells: list[tuple[str, str, str]] = []
        for metric, shape in zip(self._metrics, self._shapes, strict=True):
            axes = [*names[: len(shape)], *[[""]] * (2 - len(shape))]
            cells += [(metric_name(metric), true, predicted) for true in axes[0] for predicted in axes[1]]
        self._cells = cells

    def _check(self, dataset: Dataset, model: Model) -> None:
        allowed = ", ".join(name for name, metric in METRICS.items() if metric.regression == dataset.regression)
        targets = "real-valued targets" if dataset.regression else "labels"
        for name in (metric for metric in self._metrics if isinstance(metric, str)):
            if METRICS[name].regression != dataset.regression:
                raise ConfigError(f"metrics has {name!r}, and {dataset.name} has {targets}; allowed: {allowed}")
            if not has_class_scores(dataset, model):
                raise ConfigError(
                    f"metrics has {name!r}, and the model has {model.outputs} outputs for {dataset.num_classes} "
                    "classes; allowed: one output per class, or one for two classes"
                )

    def measure(self, y: Array, scores: Array, examples: Indices | None = None) -> Array:
        """Return the metrics of sets of examples, shape (sets, numbers); see `Measure.measure`."""
        sets = [Predictions(*arrays, self._loss, self._classes) for arrays in zip(y, scores, strict=True)]
        rows = [[np.ravel(compute(metric, predictions)) for metric in self._metrics] for predictions in sets]
        return np.array([np.concatenate(row) for row in rows])

    def scalars(self, row: Array) -> dict[str, float]:
        """Return the metrics that are numbers from a row of `measure`."""
        return {name: value for name, value in self.named(row).items() if isinstance(value, float)}

    def named(self, row: Array) -> dict[str, Any]:
        """Return the metrics in a row of `measure` by name: a number, or an array with an axis per class."""
        found = zip(self._metrics, self._shapes, self._starts[:-1], strict=True)
        return {
            metric_name(metric): row[start : start + math.prod(shape)].reshape(shape) if shape else float(row[start])
            for metric, shape, start in found
        }

    def refusal(self, value: Array, num_examples: int) -> str:
        """Return which metric has an impossible value; see `Measure.refusal`. NaN is always possible."""
        for metric, start, stop in zip(self._metrics, self._starts, self._starts[1:], strict=False):
            if not isinstance(metric, str):
                continue
            known = value[start:stop][~np.isnan(value[start:stop])]
            if not ((known >= 0) & (known <= METRICS[metric].high) & np.isfinite(known)).all():
                return f"an impossible {metric}"
            if metric == "confusion_matrix" and len(known) and known.sum() != num_examples:
                return f"a confusion_matrix of {known.sum():g} examples"
        return ""

    def to_frame(self, rounds: Indices, clients: Indices, values: Array) -> pd.DataFrame:
        """Return a row per set of examples, metric and class, with the columns `COLUMNS`; see `Measure.to_frame`."""
        import pandas as pd

        count = len(self._cells)
        names = (np.tile(np.array(column, dtype=object), len(rounds)) for column in zip(*self._cells, strict=True))
        columns = (np.repeat(rounds, count), np.repeat(clients, count), *names, values.ravel())
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
