"""Groups of people: counts of a model's predictions in each group, from which rates and gaps are computed.

Counts add up: those of several clients together are the sum of theirs, which means of rates are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice, check_integer
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import Array
from fedsim.models.losses import predicted_labels
from fedsim.splits.partition import Indices

if TYPE_CHECKING:
    import pandas as pd

#: What is counted in each group, in order. A positive is an example of the positive label, or predicted to be.
COUNTS = ("num_examples", "correct", "true_positives", "false_positives", "false_negatives")
#: Columns of `Result.groups`, in order.
COLUMNS = ("round", "partition_id", "group", *COUNTS)
#: Largest number of groups; a column with more identifies people or clients.
MAX_GROUPS = 100


@dataclass(frozen=True, eq=False)
class Sensitive:
    """A column whose groups of people are compared.

    Parameters
    ----------
    column : str
    names : tuple of str
        The groups, sorted.
    positive : int
        The label that counts as positive.
    train, test : ndarray of int, shape (examples,)
        Index in `names` of the group of each example.
    """

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int64)
    column: str
    names: tuple[str, ...]
    positive: int
    train: Indices = field(repr=False)
    test: Indices = field(repr=False)

    @classmethod
    def of(cls, dataset: Dataset, column: str, positive: int | None = None) -> Sensitive:
        """Return a column of a dataset.

        Parameters
        ----------
        dataset : Dataset
        column : str
            A column in both `Dataset.groups` and `Dataset.groups_test`.
        positive : int, optional
            A label; may be omitted if there are two, and is then 1.

        Raises
        ------
        ConfigError
            The column or the label does not exist, the targets are real numbers, or there are fewer than two groups or
            more than 100.
        """
        columns = [name for name in dataset.groups if name in dataset.groups_test]
        if not columns:
            raise ConfigError(
                f"sensitive is {column!r}, and {dataset.name} has no columns of groups of people; a table has those of "
                "table's group_columns, or of --group-column"
            )
        check_choice(f"sensitive for {dataset.name}", column, columns)
        if dataset.regression:
            raise ConfigError(f"sensitive is {column!r}, and {dataset.name} has real-valued targets; allowed: labels")
        if positive is None and dataset.num_classes > 2:
            raise ConfigError(
                f"positive is None, and {dataset.name} has {dataset.num_classes} labels; allowed: one of them, 0 to "
                f"{dataset.num_classes - 1}"
            )
        label = check_integer("positive", 1 if positive is None else positive, 0, dataset.num_classes - 1)
        train, test = dataset.groups[column], dataset.groups_test[column]
        names, codes = np.unique(np.concatenate([train, test]), return_inverse=True)
        if not 2 <= len(names) <= MAX_GROUPS:
            raise ConfigError(f"sensitive is {column!r}, which has {len(names)} groups; allowed: 2 to {MAX_GROUPS}")
        return cls(column, tuple(map(str, names)), label, codes[: len(train)], codes[len(train) :])

    def count(self, predicted: Array, y: Array, groups: Indices) -> NDArray[np.int64]:
        """Count predictions in each group.

        Parameters
        ----------
        predicted, y : ndarray, shape (sets, examples)
            Labels.
        groups : ndarray of int, shape (sets, examples)

        Returns
        -------
        ndarray of int64, shape (sets, groups, 5)
            In the order of `COUNTS`.
        """
        is_positive, said_positive = y == self.positive, predicted == self.positive
        marks = (
            np.ones_like(is_positive),
            predicted == y,
            is_positive & said_positive,
            ~is_positive & said_positive,
            is_positive & ~said_positive,
        )
        size = len(self.names)
        cells = (np.arange(len(groups))[:, None] * size + groups).ravel()
        counts = [np.bincount(cells, mark.ravel(), len(groups) * size) for mark in marks]
        return np.stack(counts, axis=-1).astype(np.int64).reshape(len(groups), size, len(COUNTS))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the counts of a set of examples."""
        return len(self.names), len(COUNTS)

    def measure(self, y: Array, scores: Array, examples: Indices | None) -> Array:
        """Count the predictions on sets of examples, shape (sets, groups, 5); see `Measure.measure`."""
        groups = self.test[None] if examples is None else self.train[examples]
        return self.count(predicted_labels(scores), y, groups)

    def refusal(self, value: Array, num_examples: int) -> str:
        """Return what is wrong with counts, or an empty text; see `Measure.refusal`."""
        return "" if possible_counts(value, num_examples) else "impossible counts in groups"

    def to_frame(self, rounds: Indices, clients: Indices, values: Array) -> pd.DataFrame:
        """Return a row per set of examples and group, with the columns `COLUMNS`; see `Measure.to_frame`."""
        import pandas as pd

        count, names = len(self.names), np.tile(np.array(self.names), len(rounds))
        columns = (np.repeat(rounds, count), np.repeat(clients, count), names, *values.reshape(-1, len(COUNTS)).T)
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def possible_counts(counts: NDArray[np.int64], num_examples: int) -> bool:
    """Return whether counts, shape (groups, 5), are those of so many examples.

    Counts that come from elsewhere may have any value; sums are of Python's integers, which do not overflow.
    """
    rows = [dict(zip(COUNTS, row, strict=True)) for row in counts.tolist()]
    for row in rows:
        wrong = row["false_positives"] + row["false_negatives"]
        fits = row["true_positives"] <= row["correct"] <= row["num_examples"] - wrong
        if min(row.values()) < 0 or not fits:
            return False
    return sum(row["num_examples"] for row in rows) == num_examples
