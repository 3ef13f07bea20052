"""Reading of table files, CSV or Parquet, as data frames; damaged or ambiguous files are refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.checks import check_path
from fedsim.errors import ConfigError, DataError, missing_extra

if TYPE_CHECKING:
    import pandas as pd

#: Suffixes of table files; CSV files may be compressed.
SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.xz", ".csv.zip")
#: Exceptions that the readers of CSV, Parquet and compressed files raise for a damaged file.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, csv.Error, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


def locate(path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None, dataset: str = "table") -> Path:
    """Return a path, inside `data_dir` if it does not exist in the working directory."""
    check_path(f"{dataset}'s path", path)
    if data_dir is not None:
        check_path(f"{dataset}'s data_dir", data_dir)
    return Path(path) if not data_dir or Path(path).exists() else Path(data_dir) / path


def read_table(file: Path) -> pd.DataFrame:
    """Return the table in a file; ConfigError for an unknown suffix, DataError for a file that cannot be read."""
    name = file.name.lower()
    if not name.endswith(SUFFIXES):
        raise ConfigError(f"the table {str(file)!r} ends in {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise DataError(f"the table {str(file)!r} does not exist")
    try:
        if name.endswith(".parquet"):
            import pandas as pd

            return pd.read_parquet(file)
        return parse_csv(decompress(file), "\t" if ".tsv" in name else ",")
    except ImportError:
        raise missing_extra("reading Parquet", "parquet") from None
    except (*_UNREADABLE, DataError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the table {str(file)!r} cannot be read: {reason}") from None


def decompress(file: Path) -> bytes:
    """Return a file's content, decompressed according to its suffix."""
    raw = file.read_bytes()
    expand = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}.get(file.suffix.lower())
    if expand:
        return expand(raw)
    if file.suffix.lower() != ".zip":
        return raw
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise DataError(f"it contains {len(members)} files; allowed: one")
        return archive.read(members[0])  # RuntimeError if encrypted, or compressed by an unknown method


def parse_csv(raw: bytes, separator: str) -> pd.DataFrame:
    """Return the table in CSV text.

    Each row must have as many fields as the header. Additional empty fields at the end of a row are ignored, and so
    are missing fields of unnamed columns at the end of the header. Empty lines and white space around names and
    before values are skipped.
    """
    import pandas as pd

    if b"\0" in raw:
        raise DataError(f"it has a NUL byte at position {raw.index(0):,}; allowed: text in UTF-8")
    lines = io.StringIO(raw.decode("utf-8-sig"), newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    rows = _rows(reader)
    first, skipped = next(((row, number) for number, row in enumerate(rows, 1) if not _is_blank(row)), ([], 0))
    header = [name.strip() for name in first]
    if not any(header):
        raise DataError("it has no header; allowed: a first line with the columns' names")
    check_names(header, separator)
    count, widest = _check_widths(rows, reader, header)
    frame = pd.read_csv(
        io.BytesIO(raw), sep=separator, names=range(widest), skiprows=skipped, skipinitialspace=True, low_memory=False
    )
    if len(frame) != count:
        raise DataError(f"its quotation marks are ambiguous: it has {count} or {len(frame)} rows")
    for column in frame.columns[[pd.api.types.is_string_dtype(kind) for kind in frame.dtypes]]:
        if all(isinstance(value, str) and _NUMBER.fullmatch(value) for value in frame[column].dropna()):
            frame[column] = frame[column].astype(object).map(_number, na_action="ignore")
    return frame.iloc[:, : len(header)].set_axis(header, axis=1)


def _check_widths(rows: Iterator[list[str]], reader: Any, header: list[str]) -> tuple[int, int]:
    """Check the number of fields of each row; return the number of rows and the largest number of fields."""
    count, widest = 0, len(header)
    for row in rows:
        if _is_blank(row):
            continue
        if len(row) != len(header) and (any(row[len(header) :]) or any(header[len(row) :])):
            raise DataError(f"line {reader.line_num:,} has {len(row)} fields; allowed: {len(header)}, as in the header")
        count, widest = count + 1, max(widest, len(row))
    return count, widest


#: A number as text. pandas reads a column of numbers as text if some need more than 64 bits.
_NUMBER = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:  # a fraction, or more digits than Python reads
        return float(text)


def _rows(reader: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield the rows of a CSV reader; raise DataError with the line of a row that cannot be read."""
    number = 1
    try:
        for row in reader:
            yield row
            number = reader.line_num + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise DataError(f"the row that starts in line {number:,} is not CSV: {error}") from None


def _is_blank(row: list[str]) -> bool:
    return not row or row == [""]


def check_names(names: Sequence[str], separator: str = ",") -> None:
    """Raise DataError for repeated column names and for a header with another separator."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"it has several columns named {', '.join(map(repr, twice))}; allowed: unique names")
    other = [mark for mark in ";\t|," if mark != separator and mark in names[0]]
    if len(names) == 1 and other:
        raise DataError(f"its header is one column, {names[0]!r}; allowed: columns separated by {separator!r}")
