"""Encoding of table columns as features: numbers are standardised, other columns are one-hot encoded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: The largest number that can be standardised: the sum of a column's squares must be finite.
LARGEST_VALUE = 1e150


def encode_features(
    frame: pd.DataFrame,
    train: NDArray[np.bool_],
    categorical: Sequence[str],
    max_categories: int,
    name: str,
    notes: list[str],
) -> tuple[NDArray[np.float32], dict[str, str]]:
    """Return the columns as numbers, shape (rows, features), with medians, means and categories of the training rows.

    `train` is a mask of the training rows, shape (rows,). Messages about dropped columns, missing values and categories
    are appended to `notes`. The second result has the name of each feature and of the column from which it is made.
    """
    import pandas as pd

    frame = _drop_uninformative(frame, train, name, notes)
    dates = [c for c in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[c])]
    frame = frame.assign(**{c: (frame[c] - frame[c].min()).dt.total_seconds() / 86_400 for c in dates})  # days
    numeric = [c for c in frame.columns if c not in categorical and _is_numeric(frame[c])]
    text = [c for c in frame.columns if c not in numeric]
    numbers = {c: _numbers(frame[c], train, name, notes) for c in numeric}
    categories = {c: _categories(frame[c], train, c in categorical, max_categories, notes) for c in text}
    table = pd.DataFrame({**numbers, **categories}, index=frame.index)
    encoder = _encoder(numeric, text, max_categories).fit(table[train])
    with warnings.catch_warnings():
        # Categories that occur in the test rows only are handled by handle_unknown.
        warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)
        x: NDArray[np.float32] = np.ascontiguousarray(encoder.transform(table), dtype=np.float32)
    return x, _feature_names(encoder, numeric, text)


def _feature_names(encoder: Any, numeric: list[str], text: list[str]) -> dict[str, str]:
    """Return the name of each feature that a fitted encoder makes, and its column, in order."""
    parts, pairs = encoder.named_transformers_, [(c, c) for c in numeric]
    if numeric:
        marked = parts["numeric"][0].indicator_.features_
        pairs += [(f"{numeric[k]} is missing", numeric[k]) for k in marked]
    if text:
        one_hot = parts["text"]
        for column, kept, merged in zip(text, one_hot.categories_, one_hot.infrequent_categories_, strict=True):
            rare = set() if merged is None else set(merged)
            pairs += [(f"{column}: {value}", column) for value in kept if value not in rare]
            pairs += [(f"{column}: (other)", column)] * bool(rare)
    names: dict[str, str] = {}
    for name, column in pairs:
        while name in names:  # a column may be called as a feature of another one
            name += "'"
        names[name] = column
    return names


def _drop_uninformative(frame: pd.DataFrame, train: NDArray[np.bool_], name: str, notes: list[str]) -> pd.DataFrame:
    """Drop empty and constant columns; DataError if none is left, or if a column contains lists."""
    import pandas as pd

    for column in frame.columns:
        if frame[column].map(pd.api.types.is_list_like).any():
            raise DataError(f"{name}'s column {column!r} contains lists; exclude it with drop")
    empty = [c for c in frame.columns if frame.loc[train, c].nunique() < 1]
    if empty:
        notes.append(f"{', '.join(empty)} dropped: no values")
    constant = [c for c in frame.columns if c not in empty and frame[c].nunique(dropna=False) < 2]
    if constant:
        notes.append(f"{', '.join(constant)} dropped: constant")
    frame = frame.drop(columns=[*empty, *constant])
    if not len(frame.columns):
        raise DataError(f"{name} has no column to predict from")
    return frame


def _numbers(column: pd.Series, train: NDArray[np.bool_], name: str, notes: list[str]) -> NDArray[np.float64]:
    """Return a numeric column as float64, with NaN for missing values."""
    values = _floats(column)
    check_range(f"{name}'s column {column.name!r}", values)
    missing = int(np.isnan(values).sum())
    if missing:
        replaced = f"replaced by the median, {np.nanmedian(values[train]):.6g}, and marked in an additional column"
        notes.append(f"{column.name}: {missing} of {len(values)} values missing; {replaced}")
    return values


def _categories(
    column: pd.Series, train: NDArray[np.bool_], categorical: bool, max_categories: int, notes: list[str]
) -> pd.Series:
    """Return a column as text, with a category for missing values."""
    import pandas as pd

    present = column.notna()
    values = column.astype(object).where(present, "(missing)").astype(str)
    missing, distinct = int((~present).sum()), column[train].nunique()
    if missing:
        notes.append(f"{column.name}: {missing} of {len(column)} values missing, treated as a category")
    if distinct > max_categories:
        notes.append(f"{column.name}: {distinct} categories; all but the {max_categories - 1} most frequent are merged")
    text = values[present]
    words = text[pd.to_numeric(text, errors="coerce").isna()]
    if not categorical and 0 < len(words) <= len(text) / 2:
        odd = f"{len(words)} of {len(column)} values are not numbers, such as {words.iloc[0]!r}"
        notes.append(f"{column.name}: {odd}; the column is treated as categorical")
    return values


def _encoder(numeric: list[str], text: list[str], max_categories: int) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    one_hot = OneHotEncoder(
        max_categories=max_categories, handle_unknown="infrequent_if_exist", sparse_output=False, dtype=np.float32
    )
    scaled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    return ColumnTransformer([("numeric", scaled, numeric), ("text", one_hot, text)])


def check_range(what: str, values: NDArray[np.float64]) -> None:
    """Raise DataError for infinite numbers and numbers too large to standardise; NaN is a missing value."""
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"{what} has {infinite} infinite values; allowed: finite numbers, and empty fields")
    largest = float(np.abs(values[~np.isnan(values)]).max(initial=0))
    if largest > LARGEST_VALUE:
        raise DataError(f"{what} has the value {largest:g} or its negative; allowed: at most {LARGEST_VALUE:g}")


def _is_numeric(column: pd.Series) -> bool:
    import pandas as pd

    kind = pd.api.types.infer_dtype(column, skipna=True)
    return pd.api.types.is_numeric_dtype(column) or kind in ("integer", "mixed-integer-float", "decimal")


def _floats(column: pd.Series) -> NDArray[np.float64]:
    """Return a numeric column as float64: NaN for a missing value, infinity for an integer that is too large."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        numbers: NDArray[np.float64] = column.to_numpy(dtype=float, na_value=np.nan)
    else:
        text = column.astype(str).where(column.notna())
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return numbers
