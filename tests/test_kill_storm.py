"""``fedsim run --out`` and ``fedsim compare --out`` are killed at any instant, and then go on to the same bits.

Some twenty kills are in the tests; ``python tests/test_kill_storm.py 1000`` makes as many of each kind as it says: at
random instants, and just before a chosen file operation, so that the instants between two of them are all met.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.cli import main as cli
from fedsim.files import EARLIER
from fedsim.study import result_files, store
from fedsim.study import saving as run
from fedsim.study.tables import TABLES

#: Operations by which files come, change and go.
OPERATIONS = ("open", "fsync", "replace", "rename", "unlink", "mkdir")
RUN = """
split = "Dirichlet(6, alpha=0.5)"
client = "SCAFFOLD(lr=0.1)"
hidden = [4]
rounds = 4
fraction_train = 0.5
fraction_evaluate = 1.0
"""
STUDY = RUN + '[compare]\nseeds = 2\nsplit = ["IID(6)", "Shards(6, per_client=2)"]\n'
COMMANDS = {
    "run": ["run", "e.toml", "--out", "out"],
    "compare": ["compare", "s.toml", "--out", "out", "--jobs", "1"],
    "processes": ["compare", "s.toml", "--out", "out", "--jobs", "2"],
}


def command(place: Path, arguments: list[str], kill_at: int | None = None) -> None:
    """Run a command in a process of its own; it counts its file operations, and kills itself just before one."""
    os.chdir(place)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE, store.WRITING_SHARE = 0.0, 1e9, 1e9
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*args, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    try:
        cli.main(arguments)
    finally:
        Path("count").write_text(str(count))


def without_clock(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["seconds", "seconds_to_target"], errors="ignore")


class Storm:
    """Runs commands in a folder, in processes forked from one that has imported everything.

    Parameters
    ----------
    place : Path
    kind : {"run", "compare", "processes"}
    """

    def __init__(self, place: Path, kind: str) -> None:
        self.place, self.kind, self.kills = place, kind, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["fedsim.cli", "fedsim.study.runner", "fedsim.study.compare", "fedsim.report.plots"]
        )
        self.reference, _, self.seconds = self.finished("reference")
        self.operations = int((place / "reference" / "count").read_text())

    def begin(self, name: str, kill_at: int | None = None, resume: bool = False) -> Any:
        """Start the command, or what goes on with it, in a folder."""
        folder = self.place / name
        folder.mkdir(exist_ok=True)
        (folder / "e.toml").write_text(RUN)
        (folder / "s.toml").write_text(STUDY)
        out = folder / "out"
        if self.kind == "run":
            going_on = (out / result_files.CONFIGURATION).exists() and store.state_of(out) == store.INTERRUPTED
        else:
            going_on = (out / store.CONFIGURATION).exists()
        arguments = ["resume", "out"] if resume and going_on else COMMANDS[self.kind]
        process = self._context.Process(target=command, args=(folder, arguments, kill_at))
        process.start()
        return process

    def finished(self, name: str, resume: bool = False) -> tuple[dict[str, Any], Path, float]:
        """Run the command to its end; return what it found, where, and how long it took."""
        started = time.perf_counter()
        process = self.begin(name, resume=resume)
        process.join(300)
        folder = self.place / name
        assert process.exitcode == 0, (folder / "log").read_text()
        return self.found(folder / "out"), folder, time.perf_counter() - started

    def killed(self, name: str, after: float | None = None, kill_at: int | None = None, resume: bool = False) -> None:
        """Run the command until it is killed."""
        process = self.begin(name, kill_at, resume)
        if after is not None:
            time.sleep(after)
            process.kill()
        process.join(300)
        assert process.exitcode in (-signal.SIGKILL, 0), (self.place / name / "log").read_text()
        self.kills += process.exitcode == -signal.SIGKILL

    def found(self, out: Path) -> dict[str, Any]:
        """Return what a folder of results holds, but for the clock."""
        names = result_files.RESULTS[:3] if self.kind == "run" else (*TABLES, result_files.INDEX)
        names = tuple(name for name in names if (out / name).exists())
        tables = {name: pd.read_csv(out / name) for name in names}
        found: dict[str, Any] = {n: without_clock(t).to_csv() for n, t in tables.items()}
        if self.kind == "run":
            with np.load(out / "weights.npz") as weights:
                found |= {name: weights[name].tobytes() for name in weights.files}
        return found

    def check(self, name: str) -> None:
        """Finish the command, and look whether the folder is as it would be without any kill."""
        folder = self.place / name
        earlier = len(list(folder.glob("out.*")))
        if store.state_of(folder / "out") != store.INTERRUPTED:  # what is there is a complete run's, to be kept
            earlier += any((folder / "out" / file).exists() for file in (*result_files.RESULTS, EARLIER))
        found, folder, _ = self.finished(name, resume=True)
        assert found == self.reference
        pictures = {f.name for f in (self.place / "reference" / "out").iterdir()}
        assert {f.name for f in (folder / "out").iterdir()} == pictures
        kept = sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name != "out")
        if self.kind == "run":
            assert kept == [f"out.{n + 1}" for n in range(earlier)]
        for place in kept:  # of a study: the tables of what was finished, each whole
            held = {f.name for f in (folder / place).iterdir()}
            assert held
            assert not [n for n in held if n.startswith(".")]
            for table in held & set(TABLES):
                assert len(pd.read_csv(folder / place / table))
        assert not (folder / "out" / EARLIER).exists()
        shutil.rmtree(folder)


def at_random_instants(storm: Storm, kills: int, rng: random.Random) -> None:
    """Kill a command one to three times, each time at a random instant, then finish it."""
    done = storm.kills + kills
    while storm.kills < done:
        for _ in range(rng.randint(1, 3)):
            storm.killed("random", after=rng.uniform(0, storm.seconds), resume=rng.random() < 0.5)
        storm.check("random")


def at_file_operations(storm: Storm, kills: int, rng: random.Random, earlier: bool = False) -> None:
    """Kill a command just before a file operation, then finish it; also with earlier results in the folder."""
    places = range(storm.operations + (len(result_files.RESULTS) + 2 if earlier else 0))
    for place in sorted(rng.sample(places, min(kills, len(places)))):
        if earlier:
            shutil.copytree(storm.place / "reference", storm.place / "operation")
        storm.killed("operation", kill_at=place)
        storm.check("operation")


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_at_random_instants(kind: str, tmp_path: Path) -> None:
    storm = Storm(tmp_path, kind)
    at_random_instants(storm, 8 if kind == "run" else 3, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("kind", ["run", "compare"])
def test_killed_before_a_file_operation(kind: str, earlier: bool, tmp_path: Path) -> None:
    storm = Storm(tmp_path, kind)
    at_file_operations(storm, 5 if kind == "run" else 1, random.Random(1), earlier)
    assert storm.kills


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    source = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for kind in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            made = Storm(Path(folder), kind)
            at_random_instants(made, number, source)
            print(f"{kind}: {made.kills} kills at random instants, each resumed to the same bits", flush=True)
            if kind == "processes":  # a worker that kills itself is an error, not the end of the command
                continue
            before = made.kills
            for earlier in (False, True):
                at_file_operations(made, number, source, earlier)
            print(f"{kind}: {made.kills - before} kills before a file operation, likewise", flush=True)
