"""The user's own table, CSV or Parquet, as a dataset: columns of any kind to numbers, and said what was done.

Numeric columns are standardised, missing values replaced by the median and marked in a column of their own; other
columns become one column per category, a missing value being a category. Everything is learnt from the training part
alone. A column that names clients is no feature; it becomes a group, by which `Natural` divides.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_flag, check_integer, check_path, check_real, shorten, suggest
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError, DataError, missing_extra
from fedsim.streams import Purpose, generator

if TYPE_CHECKING:
    import pandas as pd

#: What a file's name may end in; CSV also compressed.
SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.xz", ".csv.zip")
#: Whole numbers with more different values than this are a target to regress on, not labels.
MOST_LABELS = 50
#: The largest number that can be standardised: the sum of a column's squares must be finite.
LARGEST_VALUE = 1e150


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
    check_path("table's path", path)
    if data_dir is not None:
        check_path("table's data_dir", data_dir)
    check_real("table's test_fraction", test_fraction, 0, 1, open_low=True, open_high=True)
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
    name = file.name.lower()
    if not name.endswith(SUFFIXES):
        raise ConfigError(f"the table {str(file)!r} ends in {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise DataError(f"the table {str(file)!r} does not exist")
    try:
        if name.endswith(".parquet"):
            import pandas as pd

            return pd.read_parquet(file)
        return _parse(_decompress(file), "\t" if ".tsv" in name else ",")
    except ImportError:
        raise missing_extra("reading Parquet", "parquet") from None
    except (*_UNREADABLE, DataError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the table {str(file)!r} cannot be read: {reason}") from None


#: What the readers of CSV, of Parquet and of the compressed formats raise for a damaged file.
_UNREADABLE = (OSError, ValueError, EOFError, csv.Error, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


def _decompress(file: Path) -> bytes:
    """Return a file's content, decompressed by what its name ends in."""
    raw = file.read_bytes()
    expand = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}.get(file.suffix.lower())
    if expand:
        return expand(raw)
    if file.suffix.lower() != ".zip":
        return raw
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise DataError(f"it holds {len(members)} files; allowed: one")
            return archive.read(members[0])
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed by an unknown method
        raise DataError(str(error)) from None


def _parse(raw: bytes, separator: str) -> pd.DataFrame:
    """Return the table in CSV text, whose rows must have as many fields as its header.

    A row may end in further empty fields (spreadsheets write them), and need not have those of columns that have no
    name at the end of the header. Empty lines are skipped, and so is white space around names and before values.
    """
    import pandas as pd

    if b"\0" in raw:
        raise DataError(f"it has a NUL byte at position {raw.index(0):,}; allowed: text in UTF-8")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte {raw[error.start]:#04x} at position {error.start:,}"
        raise DataError(f"{found} is not UTF-8; allowed: text in UTF-8") from None
    lines = io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    rows = _rows(reader)
    skipped, count, widest = 0, 0, 0
    header: list[str] = []
    for row in rows:
        skipped += 1
        if not _is_blank(row):
            header = [name.strip() for name in row]
            break
    if not any(header):
        raise DataError("it has no header; allowed: a first line with the columns' names")
    _check_names(header, separator)
    width = widest = len(header)
    for row in rows:
        if _is_blank(row):
            continue
        if len(row) != width and (any(row[width:]) or any(header[len(row) :])):
            raise DataError(
                f"line {reader.line_num:,} has {len(row)} fields, and the header has {width}; allowed: as many in all"
            )
        count, widest = count + 1, max(widest, len(row))
    frame = pd.read_csv(
        io.BytesIO(raw),
        sep=separator,
        header=None,
        names=range(widest),
        skiprows=skipped,
        index_col=False,
        skipinitialspace=True,
        low_memory=False,
        encoding="utf-8",
    )
    if len(frame) != count:
        raise DataError(f"its quotation marks are ambiguous: it has {count} or {len(frame)} rows")
    for column in frame.columns[[pd.api.types.is_string_dtype(kind) for kind in frame.dtypes]]:
        if all(isinstance(value, str) and _NUMBER.fullmatch(value) for value in frame[column].dropna()):
            frame[column] = frame[column].astype(object).map(_number, na_action="ignore")
    return frame.iloc[:, :width].set_axis(header, axis=1)


#: A number in text. Columns of them are text to pandas where some have more than 64 bits.
_NUMBER = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:  # a fraction, or more digits than Python reads
        return float(text)


def _rows(reader: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield a CSV reader's rows; name the line if one cannot be read."""
    number = 1
    try:
        for row in reader:
            yield row
            number = reader.line_num + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise DataError(f"the row that starts in line {number:,} is not CSV: {error}") from None


def _is_blank(row: list[str]) -> bool:
    return not row or row == [""]


def _check_names(names: Sequence[str], separator: str = ",") -> None:
    """Refuse columns that have the same name, and a header that another character separates."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(
            f"it has several columns named {', '.join(map(repr, twice))}; allowed: a name of its own for each"
        )
    other = [mark for mark in ";\t|," if mark != separator and mark in names[0]]
    if len(names) == 1 and other:
        raise DataError(f"its header is one column, {names[0]!r}; allowed: columns separated by {separator!r}")


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
    max_categories = check_integer("table's max_categories", max_categories, 2)
    regression = None if regression is None else check_flag("table's regression", regression)
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    try:
        _check_names(columns)
    except DataError as error:
        raise DataError(f"{name} cannot be read: {error}") from None
    clients = column_names("table's client_column", client_column)
    drop, categorical = column_names("table's drop", drop), column_names("table's categorical", categorical)
    for what, chosen in (
        ("label", [label]),
        ("client_column", clients),
        ("drop", drop),
        ("categorical", categorical),
    ):
        for column in chosen:
            if not isinstance(column, str) or column not in columns:
                allowed = " ".join(", ".join(columns[:30]).split())  # a name may have a line end
                raise ConfigError(f"{name}'s {what} is {shorten(column)}; allowed: {allowed}{suggest(column, columns)}")
    notes: list[str] = []
    known = frame[[label, *clients]].notna().all(axis=1)
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(frame)} rows left out, whose label or client is missing")
        frame, test = frame[known], None if test is None else test[known]
    if len(frame) < 2:
        raise DataError(f"{name} has {len(frame)} rows with a label; allowed: at least 2")
    y, label_names = _target(frame[label], regression, f"{name}'s label {label!r}")
    test = _choose_test(y, test_fraction) if test is None else test
    unnamed = [c for c in columns if (not c or c.startswith("Unnamed: ")) and c not in (label, *clients, *drop)]
    if unnamed:
        numbers = [str(k) for k, c in enumerate(columns, 1) if c in unnamed]
        notes.append(f"column {', '.join(numbers)} left out: it has no name; such columns number the rows")
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


def column_names(field: str, value: str | Sequence[str]) -> list[str]:
    """Return a column's name, or a list of them, as a list; raise ConfigError for anything else."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{field} is {shorten(value)}; allowed: a column's name, or a list of names")
    return list(names)


def _group(column: pd.Series) -> NDArray[Any]:
    """Return a client column as numbers or text, which sort."""
    group: NDArray[Any] = column.to_numpy() if column.dtype.kind in "iu" else column.astype(str).to_numpy(dtype=str)
    return group


def _target(column: pd.Series, regression: bool | None, what: str) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return the labels and their names, or numbers and None."""
    import pandas as pd

    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric:
        _check_range(what, column.to_numpy(dtype=float))
    if regression and not numeric:
        raise ConfigError(f"{what} is {column.dtype}, not numbers; regression needs numbers")
    names, y = np.unique(column.to_numpy() if numeric else column.astype(str).to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{what} has one value, {names[0]}; there is nothing to predict")
    if regression is None:
        regression = numeric and (bool((names % 1 != 0).any()) or len(names) > MOST_LABELS)
    if regression:
        return column.to_numpy(dtype=float), None
    return y, tuple(str(int(n) if numeric and n == np.floor(n) else n) for n in names)


def _check_range(what: str, values: NDArray[np.float64]) -> None:
    """Refuse infinite numbers, and those whose squares no float holds; NaN stands for a missing value."""
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"{what} has {infinite} infinite values; allowed: finite numbers, and none for a missing value")
    largest = float(np.abs(values[~np.isnan(values)]).max(initial=0))
    if largest > LARGEST_VALUE:
        raise DataError(f"{what} has the value {largest:g} or its negative; allowed: at most {LARGEST_VALUE:g}")


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

    for column in frame.columns:
        if frame[column].map(pd.api.types.is_list_like).any():
            raise DataError(f"{name}'s column {column!r} holds lists; leave it out by drop")
    empty = [c for c in frame.columns if frame.loc[train, c].nunique() < 1]
    if empty:
        notes.append(f"{', '.join(empty)} left out: no values")
    constant = [c for c in frame.columns if c not in empty and frame[c].nunique(dropna=False) < 2]
    if constant:
        notes.append(f"{', '.join(constant)} left out: the same value everywhere")
    frame = frame.drop(columns=[*empty, *constant])
    if not len(frame.columns):
        raise DataError(f"{name} has no column to predict from")
    dates = [c for c in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[c])]
    frame = frame.assign(**{c: (frame[c] - frame[c].min()).dt.total_seconds() / 86_400 for c in dates})  # days
    numeric = [c for c in frame.columns if c not in categorical and _is_numeric(frame[c])]
    named = [c for c in frame.columns if c not in numeric]
    made: dict[str, Any] = {}
    for column in numeric:
        values = made[column] = _floats(frame[column])
        _check_range(f"{name}'s column {column!r}", values)
        missing = int(np.isnan(values).sum())
        if missing:
            middle = np.nanmedian(values[train])
            notes.append(
                f"{column}: {missing} of {len(frame)} values missing; the median, {middle:.6g}, stands in, and a "
                "column of its own marks them"
            )
    for column in named:
        present = frame[column].notna()
        made[column] = frame[column].astype(object).where(present, "(missing)").astype(str)
        missing, kinds = int((~present).sum()), frame.loc[train, column].nunique()
        if missing:
            notes.append(f"{column}: {missing} of {len(frame)} values missing, a category of their own")
        if kinds > max_categories:
            notes.append(f"{column}: {kinds} categories, of which the {max_categories - 1} commonest are kept apart")
        text = made[column][present]
        odd = text[pd.to_numeric(text, errors="coerce").isna()]
        if column not in categorical and 0 < len(odd) <= len(text) / 2:
            notes.append(
                f"{column}: {len(odd)} of {len(frame)} values are not numbers, such as {odd.iloc[0]!r}; "
                "all are taken as categories"
            )
    table = pd.DataFrame(made, index=frame.index)
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
    with warnings.catch_warnings():
        # That it has not seen a category of the test rows is what handle_unknown is for.
        warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)
        x: NDArray[np.float32] = np.ascontiguousarray(encoder.transform(table), dtype=np.float32)
    return x


def _is_numeric(column: pd.Series) -> bool:
    import pandas as pd

    kind = pd.api.types.infer_dtype(column, skipna=True)
    return pd.api.types.is_numeric_dtype(column) or kind in ("integer", "mixed-integer-float", "decimal")


def _floats(column: pd.Series) -> NDArray[np.float64]:
    """Return a numeric column as float64: NaN where a value is missing, infinite where a whole number is too large."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        numbers: NDArray[np.float64] = column.to_numpy(dtype=float, na_value=np.nan)
    else:
        text = column.astype(str).where(column.notna())
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return numbers
