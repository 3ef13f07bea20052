"""Permutation importance: how much the score falls if a feature's values are exchanged among the examples.

Breiman, "Random forests", Machine Learning 2001, section 10; Fisher, Rudin and Dominici, "All models are wrong, but
many are useful: learning a variable's importance by studying an entire class of prediction models simultaneously", JMLR
2019 (arXiv:1801.01489), section 3. Each repetition permutes by a random cycle: no example keeps its own value, and each
pair of different examples is equally likely. The mean over repetitions is therefore an unbiased estimate of the average
over all such pairs of the second paper, also for clients with few examples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance, check_integer, check_seed, shorten
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.explain.subject import Subject, Weights, check_examples, check_rows, flat, one_blas_thread
from fedsim.models import Array, Model, losses
from fedsim.streams import Purpose, keys, permutations
from fedsim.study.result import Result

if TYPE_CHECKING:
    import pandas as pd

Columns = Mapping[str, Sequence[int]]
#: Largest number of feature values in the permuted copies of examples that are evaluated together.
BLOCK = 2**22


@dataclass(frozen=True, eq=False)
class Importance:
    """The importance of each column: by how much permuting it lowers the score.

    Attributes
    ----------
    names : tuple of str
        Names of the columns.
    values : ndarray of float64, shape (rows, columns)
        Decrease of the score in each repetition, or the mean of each client's repetitions.
    num_examples : ndarray of int, shape (rows,)
        The examples behind each row, which are its weight in the mean.
    score : {"accuracy", "r2"}
    rows : {"repetition", "client"}
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    num_examples: NDArray[np.intp]
    score: str
    rows: str

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """The importance of each column, the mean of the rows weighted by examples, shape (columns,)."""
        return np.average(self.values, axis=0, weights=self.num_examples)

    @property
    def half_widths(self) -> NDArray[np.float64]:
        """Half of the 95 % interval of the mean over repetitions; NaN for clients, whose means differ for a reason."""
        from fedsim.report.intervals import half_width

        if self.rows == "client":
            return np.full(len(self.names), np.nan)
        return np.array([half_width(column) for column in self.values.T.tolist()])

    def to_frame(self) -> pd.DataFrame:
        """Return a row per column, the most important first: ``column, importance, ci95, smallest, largest``."""
        import pandas as pd

        table = {"importance": self.mean, "ci95": self.half_widths}
        rows = self.values[self.num_examples > 0]
        table |= {"smallest": rows.min(axis=0), "largest": rows.max(axis=0)}
        frame = pd.DataFrame({"column": self.names, **table})
        return frame.sort_values("importance", ascending=False, kind="stable", ignore_index=True)

    def plot(self, path: str | os.PathLike[str], count: int = 15) -> None:
        """Plot the most important columns as bars, and write the picture to `path`."""
        from fedsim.report.importances import plot_importances

        title = f"Permutation importance, {'clients' if self.rows == 'client' else 'one set of examples'}"
        bars = [(f"mean of {len(self.values)} {self.rows}s", self.mean, self.half_widths)]
        plot_importances(self.names, bars, path, title, f"decrease of {self.score}", count)


@checked_arguments
def permutation_importance(
    result: Result,
    x: Array | None = None,
    y: Array | None = None,
    *,
    columns: Columns | None = None,
    repeats: int = 10,
    seed: int = 0,
    weights: Weights | None = None,
) -> Importance:
    """Return the permutation importance of each column on one set of examples.

    Parameters
    ----------
    result : Result
    x : ndarray, shape (examples, ...), optional
    y : ndarray, shape (examples,), optional
        Preprocessed as the dataset's; default its test set.
    columns : mapping of str to sequence of int, optional
        Name -> positions of the features that are permuted together. Default: the features of each column of the table
        (`Dataset.feature_columns`), otherwise each feature, named by its position.
    repeats : int
        Number of permutations of each column.
    seed : int
    weights : ndarray, shape (parameters,), or mapping of str to ndarray, optional
        Default the final global weights.

    Raises
    ------
    ConfigError
        An argument is not allowed.
    """
    subject = Subject.of(result, weights)
    if (x is None) != (y is None):
        raise ConfigError("x and y are not given together; allowed: both, or neither for the test set")
    examples = subject.examples(x)
    labels = subject.dataset.y_test if y is None else _check_labels(y, examples, subject)
    if len(examples) < 2:
        raise ConfigError("x has 1 example; allowed: at least 2, whose values can be exchanged")
    measure = _Measure(subject, result.score, columns, repeats, seed)
    with one_blas_thread():
        values = measure.decreases(subject.row, examples, labels, 0)
    return measure.importance(values, np.full(len(values), len(examples)), "repetition")


@checked_arguments
def client_importance(
    result: Result,
    *,
    columns: Columns | None = None,
    repeats: int = 10,
    seed: int = 0,
    weights: Weights | None = None,
) -> Importance:
    """Return the permutation importance that clients measure on their own examples, without pooling them.

    Each client permutes its own examples and sends one number per column, the mean over its repetitions; the server
    averages these by examples. A client measures on its test examples if `Experiment.test_fraction` is positive, and on
    its training examples otherwise. A column's values are exchanged within clients only, so differences between clients
    do not count: what clients find is smaller than `permutation_importance` on their pooled examples if their data
    differ.

    Parameters
    ----------
    result, columns, repeats, seed
        As for `permutation_importance`. The variance in R squared is that of the dataset's test targets.
    weights : ndarray, shape (parameters,) or (clients, parameters), or mapping of str to ndarray, optional
        Of one model, or of each client's own; default the final global weights.

    Returns
    -------
    Importance
        A row per client; clients with fewer than two examples, which they cannot permute, have zeros and weight 0.

    Raises
    ------
    ConfigError
        An argument is not allowed, or no client has two examples.
    """
    subject = Subject.of(result)
    federated = result.experiment.federate(subject.dataset)
    partition = federated.partition_test or federated.partition
    rows = subject.row if weights is None else np.atleast_2d(check_rows(flat(subject.model, weights), subject.model))
    rows = rows.astype(subject.model.dtype, copy=False)
    if rows.ndim > 2 or len(rows) not in (1, len(partition)):
        allowed = f"one row, or one for each of {len(partition)} clients"
        raise ConfigError(f"weights has shape {rows.shape}; allowed: {allowed}")
    measure = _Measure(subject, result.score, columns, repeats, seed)
    values = np.zeros((len(partition), len(measure.columns)))
    x, y = federated.dataset.x_train, federated.dataset.y_train
    with one_blas_thread():
        for client, indices in enumerate(partition):
            if len(indices) > 1:
                own, examples = rows[client % len(rows)][None], x[indices].astype(subject.model.dtype)
                values[client] = measure.decreases(own, examples, y[indices], client + 1).mean(axis=0)
    num_examples = np.where(partition.sizes > 1, partition.sizes, 0)
    if not num_examples.any():
        raise ConfigError("no client has two examples whose values can be exchanged; allowed: at least one such client")
    return measure.importance(values, num_examples, "client")


class _Measure:
    """How importance is measured: the score, the columns and the permutations."""

    def __init__(self, subject: Subject, score: str, columns: Columns | None, repeats: int, seed: int) -> None:
        self.model: Model = subject.model
        self.score = score
        self.columns = _check_columns(columns, subject.dataset)
        self.repeats = check_integer("repeats", repeats, 1)
        self.seed = check_seed("seed", seed)
        self.variance = subject.dataset.test_variance
        if self.variance == 0:
            raise ConfigError("the test targets are all equal, so R squared is not defined; allowed: different targets")

    def decreases(self, row: Array, x: Array, y: Array, stream: int) -> NDArray[np.float64]:
        """Return the decrease of the score in each repetition, shape (repeats, columns)."""
        intact = self._scores(row, x[None], y)[0]
        features = x.reshape(len(x), -1)
        found = np.empty((self.repeats, len(self.columns)))
        block = max(1, BLOCK // features.size)
        for number, positions in enumerate(self.columns.values()):
            for start in range(0, self.repeats, block):
                repeats = np.arange(start, min(start + block, self.repeats))
                source = _cycles(keys(self.seed, Purpose.IMPORTANCE, stream, number, repeats), len(x))
                permuted = np.repeat(features[None], len(repeats), axis=0)
                permuted[:, :, positions] = features[:, positions][source]
                scores = self._scores(row, permuted.reshape(-1, *x.shape), y)
                found[repeats, number] = intact - scores
        return found

    def _scores(self, row: Array, x: Array, y: Array) -> NDArray[np.float64]:
        """Return the score of each set of examples, x of shape (sets, examples, ...)."""
        loss, correct = self.model.evaluate(row, x, np.broadcast_to(y, x.shape[:2]))
        scores: NDArray[np.float64] = losses.score(loss / x.shape[1], correct / x.shape[1], self.variance)
        return scores

    def importance(self, values: NDArray[np.float64], num_examples: NDArray[np.intp], rows: str) -> Importance:
        """Return the importance with these rows."""
        return Importance(tuple(self.columns), values, num_examples, self.score, rows)


def _cycles(stream_keys: NDArray[np.uint64], size: int) -> NDArray[np.intp]:
    """Return random cyclic permutations of 0..size-1, shape (keys, size), in which no number keeps its place."""
    order = permutations(stream_keys, np.full(len(stream_keys), size))
    cycles = np.empty_like(order)
    np.put_along_axis(cycles, order, np.roll(order, -1, axis=1), axis=1)
    return cycles


def _check_columns(columns: Columns | None, dataset: Dataset) -> dict[str, list[int]]:
    features = int(np.prod(dataset.x_test.shape[1:]))
    names = dataset.feature_columns or [str(k) for k in range(features)]
    if columns is None:
        return {name: [k for k, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    check_instance("columns", columns, Mapping, "a mapping of names to positions of features")
    found = {}
    for name, positions in columns.items():
        check_instance("a name in columns", name, str, "text")
        check_instance(f"columns[{name!r}]", positions, Sequence | np.ndarray, "a list of positions of features")
        found[name] = [check_integer(f"columns[{name!r}]", k, 0, features - 1) for k in positions]
        if not found[name] or len(set(found[name])) < len(found[name]):
            raise ConfigError(f"columns[{name!r}] is {shorten(positions)}; allowed: at least one position, each once")
    if not found:
        raise ConfigError("columns is empty; allowed: at least one column")
    return found


def _check_labels(y: Any, x: Array, subject: Subject) -> Array:
    """Return labels or targets of examples; ConfigError unless there is a valid one for each."""
    labels = check_examples(y, (), "y")
    if len(labels) != len(x):
        raise ConfigError(f"y has {len(labels)} labels; allowed: one for each of {len(x)} examples")
    if subject.dataset.regression:
        return labels.astype(np.float64)
    classes = subject.dataset.num_classes
    if (labels != np.floor(labels)).any() or labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(f"y is {shorten(y)}; allowed: whole numbers from 0 to {classes - 1}")
    return labels.astype(np.int64)
