"""Adult: does a person's income exceed 50,000 dollars a year? The standard data for fairness between groups of people.

Becker and Kohavi, "Adult", UCI Machine Learning Repository, 1996 (doi:10.24432/C5XW20): 32,561 training and 16,281 test
people of the US census of 1994, in the published files ``adult.data`` and ``adult.test``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.idx import Source
from fedsim.data.table import encode
from fedsim.data.table_reader import decompress, parse_csv
from fedsim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: The columns, which the files do not name.
COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
    "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip
#: Columns that are groups: of people, and by which `Natural` divides.
GROUPS = ("sex", "race", "workclass", "education", "occupation", "native-country")

ADULT = Source(
    "adult",
    "Adult",
    ("https://archive.ics.uci.edu/ml/machine-learning-databases/adult/",),
    ("", "adult"),
    {
        "adult.data": "sha256:5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "adult.test": "sha256:a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    },
    suffix="",
    contents="48,842 people, income above 50,000 dollars, by sex and race",
)


def load(drop: Sequence[str] = ("fnlwgt",), data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return Adult with its published division into training and test people.

    The label is 1 for an income above 50,000 dollars. Columns are encoded as by `fedsim.data.table`; a missing value,
    ``?`` in the files, is a category. The groups of training and test people are ``sex``, ``race``, ``workclass``,
    ``education``, ``occupation`` and ``native-country``.

    Parameters
    ----------
    drop : sequence of str
        Columns that are not features. Default: the census's sampling weight, which describes no person. Sex and race
        are features unless they are named here; they are groups in any case.
    data_dir : path, optional
        Folder with the two files, plain or ``.gz``; default ``$FEDSIM_DATA``, or else they are downloaded.

    Raises
    ------
    ConfigError
        `drop` names a column that does not exist.
    DataError
        The folder lacks a file, a file is damaged, or the download failed.
    """
    import pandas as pd

    train, test = (_read(ADULT.locate(name, data_dir)) for name in ADULT.files)
    in_test = np.arange(len(train) + len(test)) >= len(train)
    frame = pd.concat([train, test], ignore_index=True)
    return encode(frame, "adult", "income", drop=drop, group_columns=GROUPS, test=in_test)


def _read(file: Path) -> pd.DataFrame:
    """Return a file as a table: without its comment line, the full stops after labels, and question marks."""
    try:
        lines = [line for line in decompress(file).splitlines() if not line.startswith(b"|")]
        frame = parse_csv(b"\n".join([",".join(COLUMNS).encode(), *lines]), ",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    frame["income"] = frame["income"].astype(str).str.rstrip(".")
    if unknown := sorted(set(frame["income"]) - {"<=50K", ">50K"}):
        raise DataError(f"{file} has the income {unknown[0][:40]!r}; allowed: <=50K and >50K")
    return frame.where(frame != "?")
