"""What commands and studies print: everything into a file or a pipe, and what fits on a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, compare
from fedsim.cli import options
from fedsim.clients import SGD
from fedsim.report import terminal
from fedsim.report.terminal import MAX_ROUNDS, OPTIONAL_COLUMNS, history_text, terminal_width, to_text
from fedsim.splits import IID, Shards
from fedsim.study.result import history_columns

BASE = Experiment(split=IID(5), hidden=(), rounds=1)


def history(rounds: int, score: str = "accuracy") -> pd.DataFrame:
    """Return a history in which no column is empty."""
    table = pd.DataFrame(1 / 3, index=range(rounds + 1), columns=list(history_columns(score)))
    return table.assign(round=range(rounds + 1))


def shown_rounds(text: str) -> list[int]:
    return [int(line.split()[0]) for line in text.splitlines()[1:]]


def test_a_pipe_gets_all_rounds_and_all_columns_that_are_not_empty() -> None:
    table = history(200).assign(epsilon=np.nan)
    text, omission = history_text(table)
    assert text.splitlines()[0].split() == [name for name in table if name != "epsilon"]
    assert shown_rounds(text) == list(range(201))
    assert omission == ""


@pytest.mark.parametrize("score", ["accuracy", "r2"])
@pytest.mark.parametrize("width", [50, 60, 80, 100, 150, 250])
def test_a_terminal_gets_lines_as_long_as_it_is_wide(score: str, width: int) -> None:
    text, omission = history_text(history(5, score), width)
    assert max(map(len, text.splitlines())) <= width
    columns = text.splitlines()[0].split()
    assert columns[:3] == ["round", "test_loss", f"test_{score}"]
    assert columns == [name for name in history_columns(score) if name in columns]
    all_shown = len(columns) == len(history_columns(score))
    assert omission == ("" if all_shown else f"{len(columns)} of 19 columns")
    assert all_shown == (width == 250)


def test_a_reader_needs_all_columns_but_the_optional_ones() -> None:
    """A column that is renamed, or new, is not left out by mistake."""
    needed = ["round", "test_loss", "test_accuracy", "local_accuracy"]
    assert sorted([*OPTIONAL_COLUMNS, *needed]) == sorted(history_columns("accuracy"))


@pytest.mark.parametrize(
    ("rounds", "step"), [(1, 1), (30, 1), (31, 2), (61, 2), (62, 5), (200, 10), (1_999, 100), (100_000, 5_000)]
)
def test_a_terminal_gets_the_first_the_last_and_rounds_at_equal_distances(rounds: int, step: int) -> None:
    text, omission = history_text(history(rounds), 300)
    expected = sorted({*range(0, rounds + 1, step), rounds})
    assert shown_rounds(text) == expected
    assert len(expected) <= MAX_ROUNDS + 1
    assert omission == ("" if step == 1 else f"{len(expected)} of {rounds + 1} rows")


def test_what_is_not_shown_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "terminal_width", lambda: 80)
    options.print_history(history(100), None)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "showing 21 of 101 rows and 6 of 19 columns; with --out DIR, history.csv has all"
    options.print_history(history(100), "results")
    assert capsys.readouterr().out.splitlines()[-1].endswith("; history.csv has all")
    options.print_history(history(3)[["round", "test_loss"]], None)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_width_is_that_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "93")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal_width() == 93
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal_width() is None


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    """The command itself, at the other end of a pseudo-terminal of 70 columns."""
    import fcntl
    import pty
    import struct
    import subprocess
    import termios

    (tmp_path / "e.toml").write_text("rounds = 40\nsplit = 'IID(5)'\nhidden = []\n")
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "fedsim.cli", "run", "e.toml"]
    with subprocess.Popen(command, stdout=child, stderr=subprocess.PIPE, cwd=tmp_path, env=environment) as process:
        os.close(child)
        parts = []
        try:
            while part := os.read(parent, 4096):
                parts.append(part)
        except OSError:  # Linux's end of a pseudo-terminal
            pass
        assert process.wait() == 0, process.stderr and process.stderr.read()
    os.close(parent)
    lines = b"".join(parts).decode().splitlines()
    assert shown_rounds("\n".join(lines[:-1])) == list(range(0, 41, 2))
    assert max(map(len, lines[:-1])) <= 70
    assert lines[-1].startswith("showing 21 of 41 rows and ")


# Studies


def test_a_study_is_printed_with_all_columns() -> None:
    """As its table is in files; pandas alone would leave out columns, or show the rows' numbers."""
    study = compare(replace(BASE, fraction_evaluate=1.0), split=[IID(5), Shards(5)], client=[SGD(), SGD(lr=0.2)])
    with pd.option_context("display.width", 40, "display.max_columns", 3):
        shown, whole = str(study).splitlines(), "\n".join([study.table().to_string(), *study.notes]).splitlines()
        assert [line.split() for line in shown] == [line.split() for line in whole]
    assert (
        len(re.findall(r"\w  +\w", shown[0])) == 4
    )  # two spaces at least between the five headers, which have one inside
    header, row, *_ = str(compare(BASE)).splitlines()
    assert header.split()[:2] == ["final", "accuracy"]
    assert row.split()[0] == f"{compare(BASE).variants[0].results[0].final_score:.3f}"


def test_columns_of_chinese_names_are_aligned() -> None:
    """A Chinese character is as wide as two others."""
    lines = to_text(
        pd.DataFrame({"examples": [1, 2]}, index=pd.Index(["东京医院", "Bergen"], name="client"))
    ).splitlines()
    assert [len(line.encode("gbk")) for line in lines[2:]] == [len(lines[0])] * 2


def test_columns_for_which_a_terminal_is_too_narrow_follow_below(monkeypatch: pytest.MonkeyPatch) -> None:
    table = compare(replace(BASE, fraction_evaluate=1.0), split=[IID(5), Shards(5)]).table()
    monkeypatch.setattr(terminal, "terminal_width", lambda: 50)
    text = to_text(table)
    assert max(map(len, text.splitlines())) <= 50
    assert text.count("Shards(2)") > 1
    assert all(name in text for name in table)
