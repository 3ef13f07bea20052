"""Shared data: one copy on a machine, read-only, for threads and processes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import Experiment, data
from fedsim.data import Dataset
from fedsim.data.shared import SharedDataset, open_shared, share
from fedsim.errors import DataError
from fedsim.splits import IID


def big(megabytes: int) -> Dataset:
    x = np.zeros((megabytes * 1024, 256), dtype=np.float32)
    x[:, 0] = np.arange(len(x))
    y = np.arange(len(x)) % 3
    return Dataset("big", x, y, x[:2], y[:2], groups={"who": np.array(["a", "b"])[y % 2]}, notes=("a note",))


def own_memory() -> int:
    """Memory of this process that no file backs, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def look(received: SharedDataset, answer: Any) -> None:
    before = own_memory()
    total = float(received.x_train.sum(dtype=np.float64))
    answer.send((total, own_memory() - before, received.groups["who"][:2].tolist()))


def test_another_process_reads_the_same_pages(tmp_path: Path) -> None:
    shared = share(big(200), tmp_path)
    assert len(pickle.dumps(shared)) < 1000
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=look, args=(shared, sending))
    process.start()
    total, grown, groups = receiving.recv()
    process.join()
    assert total == np.arange(200 * 1024).sum()
    assert groups == ["a", "b"]
    assert grown < 20_000  # of 200,000 kB that it has read


def test_nobody_can_write(tmp_path: Path) -> None:
    shared = share(data.load("digits"), tmp_path)
    for dataset in (shared, data.load("digits")):
        with pytest.raises(ValueError, match="read-only"):
            dataset.x_train[0, 0] = 1


def test_training_on_it_copies_nothing_and_gives_the_same_bits(tmp_path: Path) -> None:
    from fedsim.rounds.grid import make_grid

    dataset = data.load("digits")
    shared = share(dataset, tmp_path / "there")
    base = Experiment(split=IID(5), rounds=2)
    plain, mapped = (Experiment(dataset=d, split=IID(5), rounds=2).run() for d in (dataset, shared))
    assert all(np.array_equal(plain.weights[k], mapped.weights[k]) for k in plain.weights)
    grid = make_grid(base.make_model(shared), base.federate(shared), base.client)
    assert np.shares_memory(grid.runtime.x, shared.x_train)


def test_everything_else_comes_along(tmp_path: Path) -> None:
    again = open_shared(share(big(1), tmp_path).folder)
    assert (again.name, again.num_classes, again.notes) == ("big", 3, ("a note",))
    assert again.label_names == ("0", "1", "2")
    assert isinstance(pickle.loads(pickle.dumps(again)), SharedDataset)


def test_what_is_there_is_not_overwritten_and_damage_is_said(tmp_path: Path) -> None:
    share(data.load("digits"), tmp_path)
    with pytest.raises(DataError, match="contains a shared dataset already"):
        share(data.load("digits"), tmp_path)
    (tmp_path / "x_train.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="contains no shared dataset that can be read"):
        open_shared(tmp_path)
    with pytest.raises(DataError, match="contains no shared dataset"):
        open_shared(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="contains no shared dataset"):
        open_shared(tmp_path)


def test_a_regression_dataset_and_all_its_groups_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be relative, and is made; by default it is a new temporary one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    groups = {"site": np.array([3, 1, 2, 3]), "who": np.array(["a", "b", "c", "d"])}
    mine = Dataset("mine", x[:4], y[:4], x[4:], y[4:], regression=True, groups=groups, notes=("one", "two"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for folder in ("made/here", None):
        found = share(mine, folder)
        assert Path(found.folder).is_absolute()
        assert Path(found.folder).is_relative_to(tmp_path.resolve())
        for name in ("x_train", "y_train", "x_test", "y_test"):
            assert np.array_equal(getattr(found, name), getattr(mine, name))
        assert list(found.groups) == ["site", "who"]
        assert all(np.array_equal(found.groups[name], groups[name]) for name in groups)
        assert (found.regression, found.num_classes, found.notes) == (True, 1, ("one", "two"))
        assert np.array_equal(found.strata, mine.strata)
    assert Path(found.folder).name.startswith("fedsim-data-")


def test_groups_and_settings_keep_their_names_and_a_folder_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder given as a relative path is found from elsewhere; without one, each dataset has a temporary one."""
    y = np.linspace(-1, 1, 6)
    groups = {"who": np.array(list("abcabc")), "when": np.arange(6)}
    dataset = Dataset("numbers", y[:, None], y, y[:2, None], y[:2], regression=True, groups=groups)
    dataset = replace(dataset, label_names=tuple("ABCDEFGHIJ"), notes=("one", "two"))
    monkeypatch.chdir(tmp_path)
    copies = [share(dataset, "here"), share(dataset), share(dataset)]
    monkeypatch.chdir("/")
    assert len({copy.folder for copy in copies}) == 3
    assert copies[0].folder == str(tmp_path.resolve() / "here")
    for found in [pickle.loads(pickle.dumps(copy)) for copy in copies]:
        for name in ("name", "num_classes", "regression", "label_names", "notes"):
            assert getattr(found, name) == getattr(dataset, name)
        for name in ("x_train", "y_train", "x_test", "y_test", "strata"):
            assert np.array_equal(getattr(found, name), getattr(dataset, name))
        assert {name: group.tolist() for name, group in found.groups.items()} == {
            "who": list("abcabc"),
            "when": list(range(6)),
        }
    for copy in copies[1:]:
        assert Path(copy.folder).name.startswith("fedsim-data-")
        shutil.rmtree(copy.folder)
