"""The user's own table, CSV or Parquet, as a dataset: columns of any kind to numbers, and said what was done.

Numeric columns are standardised, missing values replaced by the median and marked in a column of their own; other
columns become one column per category, a missing value being a category. Everything is learnt from the training part
alone. A column that names clients is no feature; it becomes a group, by which `Natural` divides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError, DataError, missing_extra, near, real, whole
from fedsim.streams import Purpose, generator

if TYPE_CHECKING:
    import pandas as pd

#: What a file's name may end in; CSV also compressed.
SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.xz", ".csv.zip")
#: Whole numbers with more different values than this are a target to regress on, not labels.
MOST_LABELS = 50


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
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Return the dataset in a file.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv`` (also compressed) or ``.parquet`` (extra ``parquet``), with a header.
    label : str
        The column to predict. Text, truth values and whole numbers of at most 50 different values are labels, other
        numbers a target for regression, which is standardised.
    client_column : str or sequence of str
        Columns that say whose a row is.
    test_fraction : float
        Share of the rows for the test set, between 0 and 1, chosen at random and evenly over labels.
    regression : bool, optional
        Whether the label is a number to regress on; default: as above.
    drop : sequence of str
        Columns to leave out.
    categorical : sequence of str
        Numeric columns that are categories.
    max_categories : int
        Most columns that a categorical column becomes, at least 2; rarer categories share the last.
    data_dir : path, optional
        Where a relative path starts if there is no such file in the working directory.

    Returns
    -------
    Dataset
        With `notes` on what was dropped, filled in or gathered.

    Raises
    ------
    ConfigError
        A column that is not there, or an option that is not allowed.
    DataError
        The file cannot be read, or holds nothing to train on.
    """
    real("table's test_fraction", test_fraction, 0, 1, open_low=True, open_high=True)
    file = Path(path)
    if data_dir and not file.exists():
        file = Path(data_dir) / file
    return encode(
        _read(file),
        file.name,
        label,
        client_column,
        test_fraction=test_fraction,
        regression=regression,
        drop=drop,
        categorical=categorical,
        max_categories=max_categories,
    )


def _read(file: Path) -> pd.DataFrame:
    import pandas as pd

    name = file.name.lower()
    if not name.endswith(SUFFIXES):
        raise ConfigError(f"the table {str(file)!r} ends in {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise DataError(f"the table {str(file)!r} does not exist")
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(file)
        return pd.read_csv(file, sep="\t" if ".tsv" in name else ",", low_memory=False)
    except ImportError:
        raise missing_extra("reading Parquet", "parquet") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the table {str(file)!r} cannot be read: {str(error).splitlines()[0]}") from None


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
    test: NDArray[np.bool_] | None = None,
) -> Dataset:
    """Return a frame as a dataset; see `table`.

    `test` says which rows, shape (rows,), are the test set; default chosen at random.
    """
    whole("table's max_categories", max_categories, 2)
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    clients, drop, categorical = (_names(v) for v in (client_column, drop, categorical))
    for what, chosen in (
        ("label", [label]),
        ("client_column", clients),
        ("drop", drop),
        ("categorical", categorical),
    ):
        for column in chosen:
            if column not in columns:
                raise ConfigError(
                    f"{name}'s {what} is {column!r}; allowed: {', '.join(columns[:30])}{near(str(column), columns)}"
                )
    notes: list[str] = []
    known = frame[[label, *clients]].notna().all(axis=1)
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(frame)} rows left out, whose label or client is missing")
        frame, test = frame[known], None if test is None else test[known]
    if len(frame) < 2:
        raise DataError(f"{name} has {len(frame)} rows with a label; allowed: at least 2")
    y, label_names = _target(frame[label], regression, f"{name}'s label {label!r}")
    test = _choose_test(y, test_fraction) if test is None else test
    unnamed = [c for c in columns if c.startswith("Unnamed: ")]
    if unnamed:
        notes.append(f"{', '.join(unnamed)} left out: a column without a name numbers the rows")
    features = frame.drop(columns=[label, *clients, *drop, *unnamed])
    x = _features(features, ~test, categorical, max_categories, name, notes)
    if label_names is None:
        mean, deviation = float(y[~test].mean()), float(y[~test].std()) or 1.0
        y = (y - mean) / deviation
        notes.append(f"{label} standardised: subtracted {mean:.6g}, divided by {deviation:.6g}")
    return Dataset(
        name,
        x[~test],
        y[~test],
        x[test],
        y[test],
        len(label_names or ()),
        regression=label_names is None,
        groups={column: _group(frame[column])[~test] for column in clients},
        label_names=label_names or (),
        notes=tuple(notes),
    )


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _group(column: pd.Series) -> NDArray[Any]:
    """Return a client column as numbers or text, which sort."""
    group: NDArray[Any] = column.to_numpy() if column.dtype.kind in "iu" else column.astype(str).to_numpy(dtype=str)
    return group


def _target(column: pd.Series, regression: bool | None, what: str) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return the labels and their names, or numbers and None."""
    import pandas as pd

    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric and not np.isfinite(column.to_numpy(dtype=float)).all():
        raise DataError(f"{what} has infinite values")
    if regression is None:
        regression = numeric and (bool((column % 1 != 0).any()) or column.nunique() > MOST_LABELS)
    if regression:
        if not numeric:
            raise ConfigError(f"{what} is {column.dtype}, not numbers; regression needs numbers")
        return column.to_numpy(dtype=float), None
    names, y = np.unique(column.to_numpy() if numeric else column.astype(str).to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{what} has one value, {names[0]}; there is nothing to predict")
    return y, tuple(f"{n:g}" if numeric else str(n) for n in names)


def _choose_test(y: NDArray[Any], fraction: float) -> NDArray[np.bool_]:
    """Choose rows for the test set at random, evenly over labels or the range of a target; at least one of each set."""
    shuffled = generator(0, Purpose.DATA, 4).permutation(len(y))
    ordered = shuffled[np.argsort(y[shuffled], kind="stable")]
    counted = np.floor(np.arange(len(y) + 1) * fraction + 0.5)
    test = np.empty(len(y), dtype=bool)
    test[ordered] = np.diff(counted) > 0
    if test.all() or not test.any():
        test[ordered[0]] = not test[ordered[0]]
    return test


def _features(
    frame: pd.DataFrame,
    train: NDArray[np.bool_],
    categorical: Sequence[str],
    max_categories: int,
    name: str,
    notes: list[str],
) -> NDArray[np.float32]:
    """Return the columns as numbers, fitted on the training rows; say what happened in `notes`."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    constant = [c for c in frame.columns if frame.loc[train, c].nunique() < 1 or frame[c].nunique(dropna=False) < 2]
    if constant:
        notes.append(f"{', '.join(constant)} left out: the same value everywhere")
        frame = frame.drop(columns=constant)
    if not len(frame.columns):
        raise DataError(f"{name} has no column to predict from")
    dates = [c for c in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[c])]
    frame = frame.assign(**{c: (frame[c] - frame[c].min()).dt.total_seconds() / 86_400 for c in dates})  # days
    numeric = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c]) and c not in categorical]
    named = [c for c in frame.columns if c not in numeric]
    table = pd.DataFrame(index=frame.index)
    for column in numeric:
        values = frame[column].to_numpy(dtype=float, na_value=np.nan)
        table[column] = np.where(np.isfinite(values), values, np.nan)
        missing = int(table[column].isna().sum())
        if missing:
            middle = table.loc[train, column].median()
            notes.append(
                f"{column}: {missing} of {len(frame)} values missing; the median, {middle:.6g}, stands in, and a "
                "column of its own marks them"
            )
    for column in named:
        table[column] = frame[column].astype(object).where(frame[column].notna(), "(missing)").astype(str)
        missing, kinds = int(frame[column].isna().sum()), frame.loc[train, column].nunique()
        if missing:
            notes.append(f"{column}: {missing} of {len(frame)} values missing, a category of their own")
        if kinds > max_categories:
            notes.append(f"{column}: {kinds} categories, of which the {max_categories - 1} commonest are kept apart")
    encoder = ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), numeric),
            (
                "named",
                OneHotEncoder(
                    max_categories=max_categories,
                    handle_unknown="infrequent_if_exist",
                    sparse_output=False,
                    dtype=np.float32,
                ),
                named,
            ),
        ]
    )
    encoder.fit(table[train])
    x: NDArray[np.float32] = np.ascontiguousarray(encoder.transform(table), dtype=np.float32)
    return x
