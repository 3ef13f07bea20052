"""A user's table, CSV or Parquet, as a dataset, with notes on how its columns were preprocessed.

Numeric columns are standardised; missing values are replaced by the median and marked in an additional column. Other
columns are one-hot encoded, with a category for missing values. Statistics are computed from the training rows only.
Columns that identify clients are not features but groups, by which `Natural` divides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_flag, check_integer, check_real, shorten, suggest
from fedsim.data.dataset import Dataset
from fedsim.data.table_features import check_range, encode_features
from fedsim.data.table_reader import check_names, locate, read_table
from fedsim.errors import ConfigError, DataError
from fedsim.streams import Purpose, generator

if TYPE_CHECKING:
    import pandas as pd

#: Integer labels with more distinct values are a regression target, not classes.
MAX_INTEGER_LABELS = 50


def table(
    path: str | os.PathLike[str],
    label: str,
    client_column: str | Sequence[str] = (),
    *,
    test_fraction: float = 0.2,
    regression: bool | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    max_categories: int = 50,
    group_columns: str | Sequence[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Return the dataset in a table file.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv`` (also compressed) or ``.parquet`` (extra ``parquet``), with a header.
    label : str
        The column to predict. Text, booleans and integers with at most 50 distinct values are classes; other numbers
        are a regression target, which is standardised.
    client_column : str or sequence of str
        Columns that identify the client of each row.
    test_fraction : float
        Share of the rows for the test set, between 0 and 1, chosen at random and stratified by label.
    regression : bool, optional
        Whether the label is a regression target; default: determined as described above.
    drop : sequence of str
        Columns to exclude.
    categorical : sequence of str
        Numeric columns to treat as categories.
    max_categories : int
        Largest number of columns that a categorical column is encoded as, at least 2; rarer categories share one.
    group_columns : str or sequence of str
        Columns between whose groups of people fairness is measured, such as ``("sex", "race")``, on training and test
        rows. They are features too unless `drop` names them. A missing value is the group ``"(missing)"``.
    data_dir : path, optional
        Where a relative path is looked up if it does not exist in the working directory.

    Returns
    -------
    Dataset
        Its `notes` say which rows and columns were dropped, and which values were replaced or merged.

    Raises
    ------
    ConfigError
        A column does not exist, or an option is invalid.
    DataError
        The file cannot be read, or contains no usable rows or columns.
    """
    check_real("table's test_fraction", test_fraction, 0, 1, open_low=True, open_high=True)
    file = locate(path, data_dir)
    return encode(
        read_table(file),
        file.name,
        label,
        client_column,
        test_fraction=test_fraction,
        regression=regression,
        drop=drop,
        categorical=categorical,
        max_categories=max_categories,
        group_columns=group_columns,
    )


def encode(
    frame: pd.DataFrame,
    name: str,
    label: str,
    client_column: str | Sequence[str] = (),
    *,
    test_fraction: float = 0.2,
    regression: bool | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    max_categories: int = 50,
    group_columns: str | Sequence[str] = (),
    test: NDArray[np.bool_] | None = None,
) -> Dataset:
    """Return a data frame as a dataset; the parameters are those of `table`.

    `test` is a mask of the rows of the test set, shape (rows,); by default they are chosen at random.
    """
    max_categories = check_integer("table's max_categories", max_categories, 2)
    regression = None if regression is None else check_flag("table's regression", regression)
    clients = column_names("table's client_column", client_column)
    drop, categorical = column_names("table's drop", drop), column_names("table's categorical", categorical)
    people = column_names("table's group_columns", group_columns)
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)
    chosen = {"client_column": clients, "drop": drop, "categorical": categorical, "group_columns": people}
    check_columns(list(frame.columns), name, label=[label], **chosen)
    notes: list[str] = []
    known = frame[[label, *clients]].notna().all(axis=1)
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(frame)} rows dropped: the label or client is missing")
        frame, test = frame[known], None if test is None else test[known]
    if len(frame) < 2:
        raise DataError(f"{name} has {len(frame)} rows with a label; allowed: at least 2")
    y, label_names = _target(frame[label], regression, f"{name}'s label {label!r}")
    test = _choose_test(y, test_fraction) if test is None else test
    features = _drop_unnamed(frame, [label, *clients, *drop], notes)
    x, made_from = encode_features(features, ~test, categorical, max_categories, name, notes)
    regression = label_names is None
    if regression:
        mean, deviation = float(y[~test].mean()), float(y[~test].std()) or 1.0
        y = (y - mean) / deviation
        notes.append(f"{label} standardised: subtracted {mean:.6g}, divided by {deviation:.6g}")
    groups = {column: _group(frame[column]) for column in [*clients, *people]}
    names = label_names or ()
    arrays = x[~test], y[~test], x[test], y[test]
    return Dataset(
        name,
        *arrays,
        len(names),
        regression=regression,
        groups={column: values[~test] for column, values in groups.items()},
        groups_test={column: groups[column][test] for column in people},
        label_names=names,
        notes=tuple(notes),
        feature_names=tuple(made_from),
        feature_columns=tuple(made_from.values()),
    )


def check_columns(columns: Sequence[str], name: str, **chosen: Sequence[str]) -> None:
    """Check that column names are unique, and that the columns chosen for each option exist."""
    try:
        check_names(columns)
    except DataError as error:
        raise DataError(f"{name} cannot be read: {error}") from None
    for option, names in chosen.items():
        for column in names:
            if not isinstance(column, str) or column not in columns:
                allowed = " ".join(", ".join(columns[:30]).split())  # a name may contain a line break
                allowed += suggest(column, columns)
                raise ConfigError(f"{name}'s {option} is {shorten(column)}; allowed: {allowed}")


def _drop_unnamed(frame: pd.DataFrame, used: Sequence[str], notes: list[str]) -> pd.DataFrame:
    """Drop the columns in `used` and, with a note, columns without a name."""
    unnamed = [c for c in frame.columns if (not c or c.startswith("Unnamed: ")) and c not in used]
    if unnamed:
        numbers = [str(k) for k, c in enumerate(frame.columns, 1) if c in unnamed]
        notes.append(f"column {', '.join(numbers)} dropped: it has no name, so it probably contains row numbers")
    return frame.drop(columns=[*used, *unnamed])


def column_names(field: str, value: str | Sequence[str]) -> list[str]:
    """Return a column's name, or a list of them, as a list; raise ConfigError for anything else."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a column's name, or a list of names")
    return list(names)


def _group(column: pd.Series) -> NDArray[Any]:
    """Return a column of clients or groups as integers or text, which can be sorted.

    pandas reads whole numbers as floats if some are missing; here they are whole numbers in any case.
    """
    known = column.notna()
    if column.dtype.kind == "f" and ((column.abs() < 2**53) & (column % 1 == 0))[known].all():
        column = column.astype("Int64")
    if column.dtype.kind in "iu" and known.all():
        return column.to_numpy()
    return column.astype(object).where(known, "(missing)").astype(str).to_numpy(dtype=str)


def _target(column: pd.Series, regression: bool | None, what: str) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return the labels and their names, or a regression target and None."""
    import pandas as pd

    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric:
        check_range(what, column.to_numpy(dtype=float))
    if regression and not numeric:
        raise ConfigError(f"{what} is {column.dtype}, not numbers; regression needs numbers")
    names, y = np.unique(column.to_numpy() if numeric else column.astype(str).to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{what} has only one value, {names[0]}; allowed: at least 2")
    if regression is None:
        regression = numeric and (bool((names % 1 != 0).any()) or len(names) > MAX_INTEGER_LABELS)
    if regression:
        return column.to_numpy(dtype=float), None
    return y, tuple(str(int(n) if numeric and n == np.floor(n) else n) for n in names)


def _choose_test(y: NDArray[Any], fraction: float) -> NDArray[np.bool_]:
    """Choose the test rows at random, stratified by label or target; both sets get at least one row."""
    shuffled = generator(0, Purpose.DATA, 4).permutation(len(y))
    ordered = shuffled[np.argsort(y[shuffled], kind="stable")]
    counted = np.floor(np.arange(len(y) + 1) * fraction + 0.5)
    test = np.empty(len(y), dtype=bool)
    test[ordered] = np.diff(counted) > 0
    if test.all() or not test.any():
        test[ordered[0]] = not test[ordered[0]]
    return test
