"""CSV files as people and programs write them: each is read into the right columns, or refused in one sentence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import table
from fedsim.data.table import _choose_test, encode
from fedsim.data.table_reader import parse_csv
from fedsim.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("error")

NONE = float("nan")
#: What most files below hold, one way or another.
PLAIN = {"a": [1, 3], "b": [2, 4], "y": [0, 1]}

READ: dict[str, tuple[str | bytes, dict[str, list[Any]]]] = {
    "plain": ("a,b,y\n1,2,0\n3,4,1\n", PLAIN),
    "no newline at the end": ("a,b,y\n1,2,0\n3,4,1", PLAIN),
    "windows": ("a,b,y\r\n1,2,0\r\n3,4,1\r\n", PLAIN),
    "old mac": ("a,b,y\r1,2,0\r3,4,1\r", PLAIN),
    "mixed line ends": ("a,b,y\r\n1,2,0\n3,4,1\r", PLAIN),
    "byte-order mark": ("\ufeffa,b,y\n1,2,0\n3,4,1\n", PLAIN),
    "byte-order mark and quotes": ('\ufeff"a","b","y"\n1,2,0\n3,4,1\n', PLAIN),
    "empty lines": ("a,b,y\n\n1,2,0\n\n\n3,4,1\n\n", PLAIN),
    "empty lines above the header": ("\n\na,b,y\n1,2,0\n3,4,1\n", PLAIN),
    "lines of blanks": ("a,b,y\n   \n1,2,0\n  \n3,4,1\n", PLAIN),
    "comma after every row": ("a,b,y\n1,2,0,\n3,4,1,\n", PLAIN),
    "two commas after every row": ("a,b,y\n1,2,0,,\n3,4,1,,\n", PLAIN),
    "comma after one row": ("a,b,y\n1,2,0\n3,4,1,\n", PLAIN),
    "comma and blank after every row": ("a,b,y\n1,2,0, \n3,4,1, \n", PLAIN),
    "comma after the header": ("a,b,y,\n1,2,0\n3,4,1\n", PLAIN | {"": [NONE, NONE]}),
    "comma after all lines": ("a,b,y,\n1,2,0,\n3,4,1,\n", PLAIN | {"": [NONE, NONE]}),
    "spaces in the header": (" a , b,y \n1,2,0\n3,4,1\n", PLAIN),
    "spaces after commas": ("a, b, y\n1, 2, 0\n3, 4, 1\n", PLAIN),
    "spaces before quotes": (
        'a, "b", y\nu, "x, z", 0\nv, "x", 1\n', {"a": ["u", "v"], "b": ["x, z", "x"], "y": [0, 1]}),
    "a comma in quotes": ('a,y\n"1,5",0\n"2,5",1\n', {"a": ["1,5", "2,5"], "y": [0, 1]}),
    "a quotation mark in quotes": ('a,y\n"say ""no""",0\nb,1\n', {"a": ['say "no"', "b"], "y": [0, 1]}),
    "a quotation mark inside a word": ('a,y\n5" pipe,0\nb,1\n', {"a": ['5" pipe', "b"], "y": [0, 1]}),
    "line ends in quotes": (
        'a,y\n"one\ntwo",0\n"three\r\n\nfour",1\n', {"a": ["one\ntwo", "three\r\n\nfour"], "y": [0, 1]}),
    "line ends in the header": ('"a\nb",y\n1,0\n2,1\n', {"a\nb": [1, 2], "y": [0, 1]}),
    "all quoted": ('"a","b","y"\n"1","2","0"\n"3","4","1"\n', PLAIN),
    "a nameless first column": (",a,b,y\n0,1,2,0\n1,3,4,1\n", {"": [0, 1]} | PLAIN),
    "a nameless column between": ("a,,b,y\n1,7,2,0\n3,8,4,1\n", {"a": [1, 3], "": [7, 8], "b": [2, 4], "y": [0, 1]}),
    "missing values": ("a,b,y\n,NA,0\n3,n/a,1\n", {"a": [NONE, 3], "b": [NONE, NONE], "y": [0, 1]}),
    "missing values after blanks": ("a, b, y\n 1, NA, 0\n 3, , 1\n", {"a": [1, 3], "b": [NONE, NONE], "y": [0, 1]}),
    "rows of nothing but commas": (
        "a,b,y\n1,2,0\n,,\n3,4,1\n", {"a": [1, NONE, 3], "b": [2, NONE, 4], "y": [0, NONE, 1]}),
    "truth values": ("a,y\nTrue,0\nFALSE,1\n", {"a": [True, False], "y": [0, 1]}),
    "mixed kinds": ("a,y\n1,0\nx,1\n2.5,0\n", {"a": ["1", "x", "2.5"], "y": [0, 1, 0]}),
    "unicode": ("größe,名前,y\n1,ü,0\n2,🙂,1\n", {"größe": [1, 2], "名前": ["ü", "🙂"], "y": [0, 1]}),
    "dates": ("a,y\n2024-01-01,0\n2024-01-02,1\n", {"a": ["2024-01-01", "2024-01-02"], "y": [0, 1]}),
    "names that are numbers": ("1,2,y\n5,6,0\n7,8,1\n", {"1": [5, 7], "2": [6, 8], "y": [0, 1]}),
    "names that differ by case": ("A,a,y\n1,2,0\n3,4,1\n", {"A": [1, 3], "a": [2, 4], "y": [0, 1]}),
    "pandas' name of a second y": ("a,y.1,y\n1,2,0\n3,4,1\n", {"a": [1, 3], "y.1": [2, 4], "y": [0, 1]}),
    "exponents and signs": ("a,b,y\n+1,1e3,0\n-3,1E-3,1\n", {"a": [1, -3], "b": [1e3, 1e-3], "y": [0, 1]}),
    "leading zeros": ("a,y\n007,0\n010,1\n", {"a": [7, 10], "y": [0, 1]}),
    "numbers of 64 bits": (f"a,y\n{2**64 - 1},0\n1,1\n", {"a": [2**64 - 1, 1], "y": [0, 1]}),
    "numbers of more than 64 bits": (f"a,y\n{10**30},0\n{10**30 + 1},1\n", {"a": [10**30, 10**30 + 1], "y": [0, 1]}),
    "such numbers and negative ones": (f"a,y\n{2**64},0\n-1,1\n,1\n", {"a": [2**64, -1, NONE], "y": [0, 1, 1]}),
    "a decimal among such numbers": (f"a,y\n{10**30},0\n0.5,1\n", {"a": [10**30, 0.5], "y": [0, 1]}),
    "infinite values": ("a,y\ninf,0\n-Infinity,1\n1e999,1\n", {"a": [np.inf, -np.inf, np.inf], "y": [0, 1, 1]}),
    "a hash": ("a,#b,y\n1,2,0\n#3,4,1\n", {"a": ["1", "#3"], "#b": [2, 4], "y": [0, 1]}),
    "semicolons inside": ("a,b,y\n1;2,2,0\n3;4,4,1\n", {"a": ["1;2", "3;4"], "b": [2, 4], "y": [0, 1]}),
    "a row that quotes an empty field": ('a,b,y\n"",2,0\n3,4,1\n', {"a": [NONE, 3], "b": [2, 4], "y": [0, 1]}),
    "no rows": ("a,b,y\n", {"a": [], "b": [], "y": []}),
}  # fmt: skip

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "has no header"),
    "empty lines alone": ("\n\n  \n", "has no header"),
    "a byte-order mark alone": ("\ufeff", "has no header"),
    "commas alone": (",,\n,,\n", "has no header"),
    "a row too long": ("a,b,y\n1,2,0\n3,4,1,9\n", "line 3 has 4 fields; allowed: 3, as in the header"),
    "row names without a header": ("a,b,y\nr1,1,2,0\nr2,3,4,1\n", "line 2 has 4 fields; allowed: 3, as in the header"),
    "a row too short": ("a,b,y\n1,2,0\n3,4\n", "line 3 has 2 fields; allowed: 3, as in the header"),
    "a file cut short": ("a,b,y\n1,2,0\n3,4,1\n5", "line 4 has 1 fields; allowed: 3, as in the header"),
    "a title above the header": ("My data\na,b,y\n1,2,0\n", "line 2 has 3 fields; allowed: 1, as in"),
    "a comment above the header": ("# made by hand\na,b,y\n1,2,0\n", "line 2 has 3 fields; allowed: 1, as in"),
    "decimal commas": ("a,y\n1,5,0\n2,5,1\n", "line 2 has 3 fields; allowed: 2, as in the header"),
    "line numbers count line ends in quotes": ('a,y\n"1\n2",0\n3\n', "line 4 has 1 fields"),
    "the label twice": ("a,y,y\n1,0,0\n2,1,1\n", "several columns named 'y'"),
    "a column twice": ("a,b,a,y\n1,2,3,0\n3,4,5,1\n", "several columns named 'a'"),
    "a column twice but for blanks": ("a, a,y\n1,2,0\n3,4,1\n", "several columns named 'a'"),
    "two columns twice": ("a,b,b,a,y\n1,2,3,4,0\n3,4,5,6,1\n", "several columns named 'a', 'b'"),
    "semicolons": ("a;b;y\n1;2;0\n3;4;1\n", "its header is one column, 'a;b;y'; allowed: columns separated by ','"),
    "tabs": ("a\tb\ty\n1\t2\t0\n", r"its header is one column, 'a\\tb\\ty'"),
    "bars": ("a|b|y\n1|2|0\n", "its header is one column"),
    "an open quotation mark": ('a,y\n1,0\n"2,1\n', "row that starts in line 3 is not CSV: unexpected end"),
    "an open quotation mark in the header": ('a,"y\n1,0\n2,1\n', "row that starts in line 1 is not CSV"),
    "a NUL byte": (b"a,y\n1,0\n\x002,1\n", "NUL byte at position 8; allowed: text in UTF-8"),
    "UTF-16": ("a,y\n1,0\n2,1\n".encode("utf-16"), "NUL byte"),
    "Latin-1": ("größe,y\n1,0\n2,1\n".encode("latin-1"), "'utf-8' codec can't decode byte 0xf6 in position 2"),
    "Latin-1 far below": (b"a,y\n" + b"1,0\n" * 9_999 + "ö,1\n".encode("latin-1"), "0xf6 in position 40000"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read"),
    "a field of a million letters": ("a,y\n" + "x" * 10**6 + ",0\nb,1\n", "field larger than field limit"),
    "a line end in the names to choose from": ('"a\nb",z\n1,0\n', "label is 'y'; allowed: a b, z"),
    "not that label": ("a,b,z\n1,2,0\n3,4,1\n", "label is 'y'; allowed: a, b, z"),
    "a label of another case": ("a,b,Y\n1,2,0\n3,4,1\n", "label is 'y'; allowed: a, b, Y"),
    "no rows": ("a,b,y\n", "has 0 rows with a label; allowed: at least 2"),
    "one row": ("a,b,y\n1,2,0\n", "has 1 rows with a label"),
    "one row with a label": ("a,b,y\n1,2,0\n3,4,\n", "has 1 rows with a label"),
    "no label at all": ("a,b,y\n1,2,\n3,4,\n", "has 0 rows with a label"),
    "one label": ("a,b,y\n1,2,0\n3,4,0\n", "has only one value, 0; allowed: at least 2"),
    "the label alone": ("y\n0\n1\n", "no column to predict from"),
    "nameless columns alone": (",y\n3,0\n4,1\n", "no column to predict from"),
    "empty columns alone": ("a,y\n,0\n,1\n", "no column to predict from"),
    "an infinite label": ("a,y\n1,inf\n2,1\n3,-inf\n", "label 'y' has 2 infinite values; allowed: finite numbers"),
    "an infinite value": ("a,b,y\n1,2,0\n3,inf,1\n5,6,1\n", "column 'b' has 1 infinite values; allowed: finite"),
    "numbers that overflow": ("a,b,y\n1,1e999,0\n3,2,1\n5,-1e999,1\n", "column 'b' has 2 infinite values"),
    "a number of 400 digits": (f"a,y\n{10**400},0\n2,1\n", "column 'a' has 1 infinite values"),
    "a number of 5,000 digits": (f"a,y\n{'7' * 5000},0\n2,1\n", "column 'a' has 1 infinite values"),
    "letters after a quotation mark": ('a,b,y\n1,2,0\n"3"x,4,1\n', "row that starts in line 3 is not CSV"),
    "numbers too large to square": ("a,y\n1e300,0\n2,1\n3,1\n", r"column 'a' has the value 1e\+300 .*at most 1e\+150"),
    "a target too large to square": ("a,y\n1,1e300\n2,0.5\n3,1\n", r"label 'y' has the value 1e\+300"),
}  # fmt: skip


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


def _same(found: list[Any], expected: list[Any]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all((pd.isna(f) and pd.isna(e)) or (f == e and isinstance(f, str) == isinstance(e, str)) for f, e in pairs)


@pytest.mark.parametrize("name", READ)
def test_odd_files_have_the_columns_of_their_header(name: str) -> None:
    content, expected = READ[name]
    frame = parse_csv(_bytes(content), ",")
    assert list(frame.columns) == list(expected)
    for place, column in enumerate(expected):
        assert _same(frame.iloc[:, place].tolist(), expected[column]), column


@pytest.mark.parametrize("name", READ)
def test_odd_files_become_a_dataset_or_say_why_not(name: str, tmp_path: Path) -> None:
    content, expected = READ[name]
    file = tmp_path / "t.csv"
    file.write_bytes(_bytes(content))
    if name in ("no rows", "infinite values"):
        with pytest.raises(DataError):
            table(file, "y")
        return
    found = table(file, "y")
    assert np.isfinite(found.x_train).all()
    known = [y for y in expected["y"] if not pd.isna(y)]
    assert len(found.x_train) + len(found.x_test) == len(known)
    assert sorted(int(found.label_names[k]) for k in (*found.y_train, *found.y_test)) == sorted(known)


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = REFUSED[name]
    file = tmp_path / "t.csv"
    file.write_bytes(_bytes(content))
    with pytest.raises((ConfigError, DataError), match=sentence) as caught:
        table(file, "y")
    assert "\n" not in str(caught.value)
    assert "t.csv" in str(caught.value)


FIELD = st.text("ab 7,;\"'\n\r\té#|.-", max_size=5)
NAME = st.text('xyzé ,"\n', min_size=1, max_size=4).map(str.strip).filter(bool)


@given(st.data())
@settings(max_examples=cases(300), deadline=None)
def test_a_table_is_what_was_written_whatever_the_dialect(data: st.DataObject) -> None:
    """Python's csv writes a table in any of its dialects, with what programs add; it is read as it was."""
    names = data.draw(st.lists(NAME, min_size=2, max_size=5, unique=True))
    fields = st.one_of(FIELD, st.integers().map(str), st.floats(allow_nan=False, allow_infinity=False).map(repr))
    rows = data.draw(st.lists(st.lists(fields, min_size=len(names), max_size=len(names)), min_size=1, max_size=6))
    rows = [["text", *row] for row in rows]  # no row is blank
    quoting: Any = data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    separator = data.draw(st.sampled_from([",", "\t"]))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    extra = data.draw(st.integers(0, 2))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=separator * extra + end)
    header = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end)
    header.writerow(["first", *names])
    for row in rows:
        writer.writerow(row)
        text.write(end * data.draw(st.integers(0, 1)))
    mark = data.draw(st.sampled_from(["", "\ufeff"]))
    frame = parse_csv((mark + text.getvalue()).encode(), separator)
    assert list(frame.columns) == ["first", *names]
    assert frame["first"].tolist() == ["text"] * len(rows)
    for place in range(len(names)):
        written = [row[place + 1] for row in rows]
        for found, raw in zip(frame.iloc[:, place + 1].tolist(), written, strict=True):
            if pd.isna(found):
                assert not raw.strip()
            elif isinstance(found, str):
                assert found == raw
            else:
                assert found == pytest.approx(float(raw), rel=1e-12)


# What becomes of odd columns.


def encoded(text: str, label: str = "y", **options: Any) -> Any:
    return encode(parse_csv(text.encode(), ","), "t.csv", label, **options)


def test_columns_without_a_name_are_left_out() -> None:
    found = encoded(",a,,y\n0,1,5,0\n1,3,6,1\n2,4,7,1\n")
    assert found.x_train.shape[1] == 1
    assert found.notes[0] == "column 1, 3 dropped: it has no name, so it probably contains row numbers"
    again = encoded("Unnamed: 0,a,y\n0,1,0\n1,3,1\n2,4,1\n")
    assert again.x_train.shape[1] == 1
    assert again.notes[0].startswith("column 1 dropped")


def test_an_empty_column_is_not_called_constant() -> None:
    found = encoded("a,b,c,y\n1,,7,0\n2,,7,1\n3,,7,1\n")
    assert found.notes == ("b dropped: no values", "c dropped: constant")


def test_infinite_values_in_a_column_left_out_do_not_matter() -> None:
    assert encoded("a,b,y\n1,inf,0\n2,3,1\n3,4,0\n", drop=["b"]).x_train.shape[1] == 1


def test_numbers_of_more_than_64_bits_are_numbers() -> None:
    rows = "".join(f"{10**20 * k},{k % 2}\n" for k in range(40))
    found = encoded(f"a,y\n{rows}")
    x = np.sort(np.concatenate([found.x_train, found.x_test])[:, 0])
    assert found.x_train.shape[1] == 1
    np.testing.assert_allclose(np.diff(x), x[1] - x[0], rtol=1e-4)


def test_such_numbers_as_labels_and_clients_stay_apart() -> None:
    rows = "".join(f"{k},{10**20 + k % 3},{10**20 + k % 2}\n" for k in range(40))
    found = encoded(f"a,who,y\n{rows}", client_column="who")
    assert found.label_names == (str(10**20), str(10**20 + 1))
    assert sorted(set(found.groups["who"])) == [str(10**20 + k) for k in range(3)]


def test_labels_that_are_large_numbers_keep_their_names() -> None:
    found = encoded("a,y\n1,1000001\n2,1000002\n3,1000001\n4,1000002\n")
    assert found.label_names == ("1000001", "1000002")
    assert encoded("a,y\n1,1000001\n2,1000002\n3,\n4,1000002\n").label_names == ("1000001", "1000002")


def test_numbers_among_which_are_words_are_said_to_be_categories() -> None:
    rows = "".join(f"{k % 7},{k % 2}\n" for k in range(40))
    found = encoded(f"a,y\n{rows}?,0\n?,1\n")
    assert "a: 2 of 42 values are not numbers, such as '?'; the column is treated as categorical" in found.notes
    assert not [note for note in encoded(f"a,y\n{rows}?,0\n", categorical=["a"]).notes if "not numbers" in note]


def test_a_category_that_only_the_test_rows_have_is_no_warning() -> None:
    frame = pd.DataFrame({"a": list("uvuvuvuvwx"), "y": [0, 1] * 5})
    found = encode(frame, "t", "y", test=np.arange(10) >= 8)
    assert (found.x_test == 0).all()


def test_a_wide_table_is_no_warning() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 150))).assign(y=[0, 1] * 10)
    assert encode(frame, "t", "y").x_train.shape[1] == 150


def test_columns_of_the_same_name_are_refused_whoever_made_the_table() -> None:
    frame = pd.DataFrame([[1, 2, 0], [3, 4, 1]], columns=["a", 1, "1"]).assign(y=[0, 1])
    with pytest.raises(DataError, match="frame cannot be read: it has several columns named '1'"):
        encode(frame, "frame", "y")


@pytest.mark.parametrize("values", [[[1], [2]], [2, [1]]])
def test_columns_of_lists_are_refused(values: list[Any]) -> None:
    frame = pd.DataFrame({"a": values, "b": [1, 2], "y": [0, 1]})
    with pytest.raises(DataError, match="t's column 'a' contains lists; exclude it with drop"):
        encode(frame, "t", "y")
    assert encode(frame, "t", "y", drop="a").x_train.shape[1] == 1


def test_numbers_of_any_pandas_kind_are_numbers() -> None:
    """Decimals, whole numbers that may be missing, and whole numbers among fractions: a column and a marker each."""
    frame = pd.DataFrame(
        {
            "decimal": [Decimal("1.5"), None, Decimal("2.5"), Decimal(4)],
            "nullable": pd.array([1, None, 2, 3], dtype="Int64"),
            "mixed": pd.Series([1, 2.5, None, 3], dtype=object),
            "y": [0, 1, 0, 1],
        }
    )
    found = encode(frame, "t", "y", test=np.arange(4) == 3)
    low, high = -np.sqrt(1.5), np.sqrt(1.5)  # of three values, the one in the middle being the median that stands in
    np.testing.assert_allclose(found.x_train[:, :3].T, [[low, 0, high], [low, 0, high], [low, high, 0]], atol=1e-6)
    assert found.x_train.shape[1] == 6
    assert found.x_train.dtype == np.float32
    assert [note.split(";")[1] for note in found.notes] == [
        f" replaced by the median, {m}, and marked in an additional column" for m in ("2", "1.5", "1.75")
    ]


def test_numbers_that_are_categories_become_a_column_each() -> None:
    rows = "".join(f"{k % 4},{k % 2}\n" for k in range(40))
    found = encoded(f"a,y\n{rows}", categorical="a", max_categories=4)
    assert found.x_train.shape[1] == 4
    assert found.notes == ()
    assert set(np.unique(found.x_train)) == {0, 1}
    assert (found.x_train.sum(axis=1) == 1).all()


def test_words_among_which_are_numbers_are_no_surprise() -> None:
    """That a column is taken as categories is said where at least half of its values are numbers."""
    half, most = (encoded("a,y\n1,0\n2,1\nu,0\n" + end).notes for end in ("v,1\n", "v,1\nw,0\n"))
    assert half == ("a: 2 of 4 values are not numbers, such as 'u'; the column is treated as categorical",)
    assert most == ()


def test_categories_are_counted_in_the_training_rows_and_missing_ones_are_one() -> None:
    frame = pd.DataFrame({"a": ["u", "v", None, "nan", "w"], "y": [0, 1, 0, 1, 0]})
    found = encode(frame, "t", "y", test=np.arange(5) == 4, max_categories=3)
    assert found.notes == ("a: 1 of 5 values missing, treated as a category",)
    found = encode(frame, "t", "y", test=np.arange(5) == 4)
    assert found.x_train.shape[1] == 4  # the word nan is not a missing value


def test_columns_with_values_in_the_test_rows_alone_or_in_some_rows() -> None:
    frame = pd.DataFrame({"some": [7, None, 7, None], "late": [None, None, None, 5.0], "y": [0, 1, 0, 1]})
    found = encode(frame, "t", "y", test=np.arange(4) == 3)
    assert found.notes[0] == "late dropped: no values"
    assert found.notes[1].startswith("some: 2 of 4 values missing; replaced by the median, 7")
    assert found.x_train[:, 1].argmax() == 1  # whether there is a value says something, though all values are the same


def test_nameless_columns_may_be_the_client_or_be_dropped() -> None:
    text = "Unnamed: 0,a,y\n0,1,0\n1,3,1\n2,4,1\n3,4,0\n"
    found = encoded(text, client_column="Unnamed: 0", test=np.arange(4) == 3)
    assert found.groups["Unnamed: 0"].tolist() == [0, 1, 2]  # numbers, not their text: client 10 comes after client 9
    assert found.notes == encoded(text, drop=["Unnamed: 0"]).notes == ()
    assert encoded(text.replace("y", "Unnamed: 9"), label="Unnamed: 9", drop=["Unnamed: 0"]).notes == ()


@pytest.mark.parametrize(
    ("values", "options", "names"),
    [
        ([True, False, True, True], {}, ("False", "True")),
        ([1, 2, 2, 1.5], {"regression": False}, ("1", "1.5", "2")),
        ([3, 3, 3, 4.5], {}, ()),
        (list(range(50)) * 2, {}, tuple(map(str, range(50)))),
        (list(range(51)) * 2, {}, ()),
        ([1e150, 0, -1e150, 0], {}, ("-" + str(int(1e150)), "0", str(int(1e150)))),
    ],
    ids=["truth values", "fractions as labels", "a fraction", "50 whole numbers", "51 whole numbers", "large"],
)
def test_what_the_target_is(values: list[Any], options: dict[str, Any], names: tuple[str, ...]) -> None:
    """Truth values and at most 50 whole numbers are labels; one fraction makes all numbers to regress on."""
    frame = pd.DataFrame({"a": np.arange(len(values)) % 3, "y": values})
    found = encode(frame, "t", "y", test=np.arange(len(values)) == len(values) - 1, **options)
    assert found.regression == (not names)
    assert found.num_classes == (len(names) or 1)
    if names:
        assert found.label_names == names
        assert [float(names[k]) if names[0] != "False" else k for k in found.y_train] == values[:-1]


def test_truth_values_are_no_numbers_to_regress_on() -> None:
    with pytest.raises(ConfigError, match="t's label 'y' is bool, not numbers; regression needs numbers"):
        encode(pd.DataFrame({"a": [1, 2], "y": [True, False]}), "t", "y", regression=True)


def test_a_target_that_does_not_vary_in_training_is_zero_there() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 4], "y": [13.0, 13, 13, 14.5]})
    found = encode(frame, "t", "y", test=np.arange(4) == 3)
    assert (found.y_train.tolist(), found.y_test.tolist()) == ([0, 0, 0], [1.5])
    assert found.notes == ("y standardised: subtracted 13, divided by 1",)


def test_large_negative_numbers_are_refused_too() -> None:
    with pytest.raises(DataError, match=r"column 'a' has the value 1e\+300 or its negative"):
        encoded("a,y\n-1e300,0\n2,1\n3,1\n")


def test_the_test_rows_are_always_the_same_and_leave_rows_to_train_on() -> None:
    """Results depend on which rows they are, so this choice must not change from version to version."""
    for rows, fraction, chosen in ((10, 0.3, [0, 2, 6]), (2, 0.1, [0]), (2, 0.9, [1])):
        assert np.flatnonzero(_choose_test(np.zeros(rows), fraction)).tolist() == chosen
        frame = pd.DataFrame({"a": np.arange(rows), "y": np.arange(rows) + 0.5})
        found = encode(frame, "t", "y", test_fraction=fraction)
        assert (len(found.y_train), len(found.y_test)) == (rows - len(chosen), len(chosen))


def test_rows_without_a_label_are_left_out_of_a_given_test_set() -> None:
    frame = pd.DataFrame({"a": range(6), "y": [0, 1, None, 1, None, 0]})
    found = encode(frame, "t", "y", test=np.array([False, False, False, True, True, True]))
    assert (found.y_train.tolist(), found.y_test.tolist()) == ([0, 1], [1, 0])


def test_all_options_of_a_file_are_those_of_a_frame(tmp_path: Path) -> None:
    """Also: a relative file may be in data_dir, the case of its name does not matter, and .tsv.gz has tabs."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 5, (60, 5)), columns=list("abcdy")).assign(y=np.arange(60) % 60)
    options: dict[str, Any] = {"test_fraction": 0.3, "regression": False, "drop": ["a"], "categorical": ["b", "c"]}
    options |= {"max_categories": 3}
    expected = encode(frame, "T.TSV.GZ", "y", "d", **options)
    (tmp_path / "data").mkdir()
    text = frame.to_csv(index=False, sep="\t").encode()
    (tmp_path / "data" / "T.TSV.GZ").write_bytes(gzip.compress(text))
    (tmp_path / "data" / "T.CSV.ZIP").write_bytes(_zip(text.replace(b"\t", b","), "folder/", "folder/t.csv"))
    for name in ("T.TSV.GZ", "T.CSV.ZIP"):
        found = table(name, "y", "d", data_dir=tmp_path / "data", **options)
        assert (found.name, found.notes, found.label_names) == (name, expected.notes, expected.label_names)
        for part in ("x_train", "y_train", "x_test", "y_test"):
            assert np.array_equal(getattr(found, part), getattr(expected, part))
        assert np.array_equal(found.groups["d"], expected.groups["d"])


def test_the_working_directory_comes_before_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "t.csv").write_text("a,y\n1,0\n2,1\n")
    (tmp_path / "data" / "t.csv").write_text("a,b,y\n1,1,0\n2,2,1\n")
    assert table("t.csv", "y", data_dir="data").x_train.shape[1] == 1


def test_refusals_suggest_what_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"column{k}" for k in range(40)]
    frame = pd.DataFrame([range(40), range(1, 41)], columns=names)
    with pytest.raises(ConfigError, match=r"column28, column29; did you mean 'column3") as caught:
        encode(frame, "t", "colum3")
    assert "column30," not in str(caught.value)
    (tmp_path / "t.tsv").write_text("a,b,y\n1,2,0\n")
    with pytest.raises(DataError, match=r"its header is one column, 'a,b,y'; allowed: columns separated by '\\t'"):
        table(tmp_path / "t.tsv", "y")
    with pytest.raises(ConfigError, match=r"allowed: \.csv, \.tsv, \.parquet, \.csv\.gz, \.tsv\.gz, .*\.csv\.zip$"):
        table("t.txt", "y")
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setattr(pd, "read_parquet", _without_pyarrow)
    with pytest.raises(ConfigError, match=r"reading Parquet needs the extra 'parquet'"):
        table(tmp_path / "t.parquet", "y")


def _without_pyarrow(_: Path) -> None:
    raise ImportError


def _zip(content: bytes, *names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return stream.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": lambda raw: _zip(raw, "t.csv"),
}
ROWS = "a,b,y\n" + "".join(f"{k * 37 % 101},{k * 53 % 97},{k % 2}\n" for k in range(300))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_and_damaged_ones_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"t.csv{suffix}"
    whole = COMPRESS[suffix](ROWS.encode())
    file.write_bytes(whole)
    expected = table(file, "y").x_train
    damaged = {"cut": whole[: len(whole) // 2], "nothing": b"", "text": ROWS.encode(), "a byte short": whole[:-1]}
    for place in range(0, len(whole), 7):
        damaged[f"byte {place}"] = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
    refusals = {name: refusal(file, content, expected) for name, content in damaged.items()}
    sentences = [sentence for sentence in refusals.values() if sentence]
    assert all("cannot be read" in sentence and "\n" not in sentence for sentence in sentences)
    assert {"cut", "nothing", "text"} <= {name for name, sentence in refusals.items() if sentence}
    assert len(sentences) > len(damaged) / 2


def refusal(file: Path, content: bytes, expected: np.ndarray[Any, Any]) -> str:
    """Return the error of a file, or nothing if it reads as if whole: some bytes, such as times, do not matter."""
    file.write_bytes(content)
    try:
        found = table(file, "y").x_train
    except DataError as error:
        return str(error)
    assert np.array_equal(found, expected)
    return ""


def test_an_archive_must_hold_one_file(tmp_path: Path) -> None:
    file = tmp_path / "t.csv.zip"
    for names, sentence in (((), "contains 0 files; allowed: one"), (("a.csv", "b.csv"), "contains 2 files")):
        file.write_bytes(_zip(ROWS.encode(), *names))
        with pytest.raises(DataError, match=sentence):
            table(file, "y")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"drop": False}, "table's drop is False; allowed: a column's name, or a list of names"),
        ({"drop": 0}, "table's drop is 0"),
        ({"drop": [0]}, r"table's drop is \[0\]"),
        ({"drop": None}, "table's drop is None"),
        ({"categorical": 0}, "table's categorical is 0; allowed"),
        ({"categorical": {"a": 1}}, "table's categorical is {'a': 1}"),
        ({"client_column": 3}, "table's client_column is 3"),
        ({"label": None}, "label is None; allowed: a, b, y"),
        ({"label": ["y"]}, r"label is \['y'\]; allowed"),
        ({"regression": "no"}, "table's regression is 'no'; allowed: true or false"),
        ({"regression": 1}, "table's regression is 1"),
        ({"max_categories": 10**23}, "table's max_categories is 1000.*; allowed: a whole number, 2 to 2147483647"),
        ({"max_categories": 2.5}, "table's max_categories is 2.5"),
        ({"test_fraction": float("nan")}, "table's test_fraction is nan"),
        ({"test_fraction": 10**400}, "table's test_fraction is 1000"),
        ({"path": 5}, "table's path is 5; allowed: a path"),
        ({"path": "a\0.csv"}, r"table's path is 'a\\x00.csv'; allowed: a path"),
        ({"data_dir": 2.0}, "table's data_dir is 2.0; allowed: a path"),
    ],
)
def test_arguments_of_another_kind_are_refused(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(ROWS)
    good: dict[str, Any] = {"path": file, "label": "y"}
    with pytest.raises(ConfigError, match=sentence):
        table(**(good | arguments))
