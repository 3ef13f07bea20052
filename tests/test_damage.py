"""Folders of studies that are damaged, exchanged, foreign or hostile."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import Experiment, Result, Study, compare
from fedsim.cli import main as cli
from fedsim.clients import SGD
from fedsim.errors import ConfigError
from fedsim.report.terminal import to_text
from fedsim.splits import IID
from fedsim.study import checkpoint, stored_runs
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.directory import CHECKPOINT, DIVERGED, finished_rounds
from fedsim.study.result_files import CHECKSUMS, ENVIRONMENT, INDEX, SUMMARY, WEIGHTS, damage
from fedsim.study.store import REMARKS, RUNS

BASE = Experiment(split=IID(4), hidden=(4,), rounds=2, client=SGD(lr=0.1), metrics=("macro_f1",), kernel="numpy")
RATES: dict[str, Any] = {"client.lr": [0.1, 0.001]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    compare(BASE, seeds=2, directory=out, jobs=1, **RATES)
    return out


@pytest.fixture
def out(study: Path, tmp_path: Path) -> Path:
    """A copy of the study's directory."""
    return Path(shutil.copytree(study, tmp_path / "out"))


def folders(out: Path) -> list[Path]:
    return [out / RUNS / name for name in pd.read_csv(out / INDEX)["run"]]


def again(out: Path) -> pd.DataFrame:
    return compare(BASE, seeds=2, directory=out, jobs=1, **RATES).rounds().drop(columns="seconds")


def exchange(out: Path) -> None:
    """The folders of two runs, as if they had been copied under wrong names."""
    first, last = folders(out)[0], folders(out)[-1]
    first.rename(out / "moved")
    last.rename(first)
    (out / "moved").rename(last)


def shorten(out: Path) -> None:
    """The list of checksums at the end of a line, and a file that it no longer names."""
    folder = folders(out)[0]
    lines = (folder / CHECKSUMS).read_text().splitlines(keepends=True)
    (folder / CHECKSUMS).write_text("".join(lines[:-1]))
    (folder / "metrics.csv").unlink()


def compress(out: Path) -> None:
    """The weights, as in an archive that expands to more than memory holds."""
    folder = folders(out)[0]
    with np.load(folder / WEIGHTS) as archive:
        arrays = dict(archive)
    np.savez_compressed(folder / WEIGHTS, **arrays)
    lines = [line for line in (folder / CHECKSUMS).read_text().splitlines() if not line.endswith(WEIGHTS)]
    sums = [f"{hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}  {WEIGHTS}", *lines]
    (folder / CHECKSUMS).write_text("\n".join(sums) + "\n")


def foreign(out: Path) -> None:
    """The checkpoint of another run in the place of a result."""
    folder = folders(out)[0]
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        replace(BASE, seed=9).run(directory=out / "other", callbacks=[Interrupt()])
    (out / "other" / CHECKPOINT).rename(folder / CHECKPOINT)
    shutil.rmtree(out / "other")


def empty_divergence(out: Path) -> None:
    """A note of a divergence that was cut off, beside what is left of a run."""
    folder = folders(out)[0]
    (folder / CHECKSUMS).unlink()
    (folder / DIVERGED).touch()


def empty_checksums(out: Path) -> None:
    (folders(out)[0] / CHECKSUMS).write_text("")


def damaged_index(out: Path) -> None:
    (out / INDEX).write_text("")


class Interrupt(Callback):
    """Ctrl-C after the first round."""

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("harm", [exchange, shorten, foreign, empty_divergence, empty_checksums, damaged_index])
def test_a_harmed_study_is_mended_to_the_same_bits(harm: Callable[[Path], None], study: Path, out: Path) -> None:
    whole = again(Path(shutil.copytree(study, out.parent / "whole")))
    harm(out)
    pd.testing.assert_frame_equal(again(out), whole)
    assert not [damage(folder) for folder in folders(out) if damage(folder)]
    pd.testing.assert_frame_equal(Study.load(out).rounds().drop(columns="seconds"), whole)
    assert len(stored_runs.list_study(out).query("state == 'finished'")) == 4


def test_results_under_the_name_of_another_run_are_not_loaded(out: Path) -> None:
    exchange(out)
    with pytest.raises(ConfigError, match="it is the result of another run"):
        Study.load(out)
    folder = folders(out)[0]
    folder.rename(out / "a copy of one's own")
    assert Result.load(out / "a copy of one's own").rounds == 2


def test_compressed_weights_are_refused(out: Path) -> None:
    compress(out)
    with pytest.raises(ConfigError, match=r"an entry of weights\.npz is compressed"):
        Result.load(folders(out)[0])


def test_lists_say_what_is_damaged(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third, _ = folders(out)
    (first / "history.csv").write_text("")
    (second / ENVIRONMENT).write_text("")
    (third / CHECKSUMS).unlink()
    state = {"experiment": "x", "history": [{}] * 2}
    checkpoint.save(third / CHECKPOINT, state)
    listed = stored_runs.list_study(out)
    assert list(listed["state"]) == ["damaged", "damaged", "interrupted", "finished"]
    assert listed["rounds"][2] == finished_rounds(third) == 1
    assert stored_runs.describe(second)["environment"] == "damaged"
    shutil.copytree(out, out.parent / "other")
    damaged_index(out)
    assert list(stored_runs.list_all(out.parent)["directory"]) == [str(out.parent / "other")]
    assert (
        f"'{out / INDEX}' cannot be read: it is damaged; the study's command writes it anew" in capsys.readouterr().err
    )


def test_terminals_get_no_control_characters(out: Path) -> None:
    text = (out / INDEX).read_text().replace("0.001", "\x1b[31mred\x07")
    (out / INDEX).write_text(text)
    (out / REMARKS).write_text("a \x1b]0;title\x07 remark\n")
    for shown in (to_text(stored_runs.list_study(out)), str(Study.load(out))):
        assert "red" in shown
        assert "\x1b" not in shown
        assert "\x07" not in shown
    assert any("remark" in note for note in Study.load(out).notes)


def test_removal_takes_the_tuning_and_stays_inside(out: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folders(out)[0], mine)
    shutil.copytree(out, out / "tuning")
    link = folders(out)[1]
    shutil.rmtree(link)
    link.symlink_to(mine)
    with pytest.raises(ConfigError, match="is, or is in, a link to another place"):
        stored_runs.remove(out)
    assert (mine / SUMMARY).exists()
    link.unlink()
    stored_runs.remove(out)
    assert not out.exists()


def test_results_of_other_data_or_code_are_told_apart(tmp_path: Path) -> None:
    """Two runs with the same settings, but of other data or code."""
    made = [replace(BASE).run(), replace(BASE, client=SGD(lr=0.1)).run()]
    for number, result in enumerate(made):
        result.save(tmp_path / f"run{number}")
    same = stored_runs.combine([tmp_path / "run0", tmp_path / "run1"])
    assert len(same.variants) == 1
    other = replace(made[1], weights={name: 2 * values for name, values in made[1].weights.items()})
    other.save(tmp_path / "run2")
    apart = stored_runs.combine([tmp_path / "run0", tmp_path / "run2"])
    assert [variant.labels for variant in apart.variants] == [
        {"directory": str(tmp_path / "run0")},
        {"directory": str(tmp_path / "run2")},
    ]


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "..", "a/b", ""])
def test_an_index_names_folders_of_its_own_only(name: str, out: Path) -> None:
    text = (out / INDEX).read_text()
    (out / INDEX).write_text(text.replace(folders(out)[0].name, name))
    for use in (Study.load, stored_runs.list_study, stored_runs.remove):
        with pytest.raises(ConfigError, match="is damaged"):
            use(out)


def test_the_command_lists_shows_compares_and_deletes(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(out.parent)

    def runs(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["runs", *arguments])
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return said.out if code == 0 else said.err

    run = str(folders(Path("out"))[0])
    assert re.search(r"out +study +4 +4", runs("list", "."))
    assert runs("list", "out").count("finished") == 4
    study = runs("show", "out")
    assert "final accuracy" in study
    assert "client.lr" in study
    shown = runs("show", run)
    assert "state = finished" in shown
    assert "client = SGD(lr=0.1" in shown
    assert "test_accuracy" in shown
    replace(BASE, rounds=3).run(directory="other")
    compared = runs("compare", run, "other")
    assert [line.split()[0] for line in compared.splitlines()[2:4]] == ["2", "3"]  # the number of rounds
    assert "asks before it deletes, and there is no terminal; give --yes" in runs("rm", "out", code=2)
    assert "has neither a run nor a study" in runs("rm", ".", "--yes", code=2)
    assert runs("rm", "out", "other", "--yes").splitlines() == ["deleted out", "deleted other"]
    assert not Path("out").exists()
    assert "no studies and no runs in ." in runs("list", ".")
