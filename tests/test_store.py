"""Results and studies in directories: the same bits after saving, killing, damage and sharing; and worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.serverapp.strategy import FedAdam
from helpers import OnRound

from fedsim import Dataset, Experiment, Result, Study, compare, data
from fedsim.clients import SGD, FedProx
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.splits import IID, Dirichlet, Shards
from fedsim.study import saving, store
from fedsim.study.callbacks import Callback, EarlyStopping
from fedsim.study.directory import RunDirectory
from fedsim.study.execution import Execution
from fedsim.study.pool import WorkerError, in_processes
from fedsim.study.progress import ProgressBar
from fedsim.study.result_files import CHECKSUMS, RESULTS, TABLES
from fedsim.study.stored_runs import list_study

BASE = Experiment(split=Dirichlet(6, alpha=0.5), hidden=(4,), rounds=3, fraction_evaluate=1.0)
AXES: dict[str, Any] = {"client": [SGD(lr=0.1), FedProx(lr=0.1, proximal_mu=0.5)]}


class Failing(SGD):
    """Fails in some rounds, with a text that a CSV file must quote."""

    def train(self, ctx: Any) -> Any:
        if ctx.round == 2 and 0 in ctx.partition_ids:
            raise RuntimeError('no, "really"; äöü')
        return ctx.fit()


def bits(study: Study) -> pd.DataFrame:
    return pd.concat([study.rounds().drop(columns=["seconds", "secure_seconds"]), study.clients()], axis=1)


def check_same(a: Result, b: Result) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name), check_exact=True)
    assert list(a.weights) == list(b.weights)
    for name, values in a.weights.items():
        assert values.dtype == b.weights[name].dtype
        assert np.array_equal(values, b.weights[name])
    assert (a.kernel, a.score, a.stop_reason, a.privacy) == (b.kernel, b.score, b.stop_reason, b.privacy)


# Results.


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, client=Failing(lr=0.1), on_failure="exclude", rounds=4),
        replace(BASE, early_stopping=EarlyStopping(patience=1, metric="test_loss"), client=SGD(lr=2.0), rounds=20),
        replace(BASE, dataset="synthetic(1, 1)", fraction_evaluate=0.0),
    ],
    ids=["usual", "failures", "stopped early", "nobody evaluated"],
)
def test_a_loaded_result_has_the_bits_of_the_saved_one(experiment: Experiment, tmp_path: Path) -> None:
    result = experiment.run(directory=tmp_path / "run")
    loaded = Result.load(tmp_path / "run", experiment)
    check_same(result, loaded)
    loaded.save(tmp_path / "again")
    check_same(result, Result.load(tmp_path / "again", experiment))
    if not isinstance(experiment.client, Failing):
        assert Result.load(tmp_path / "run").experiment == experiment


def test_groups_with_odd_names_are_loaded_as_they_were(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    names = np.array(["=1+1", "a,b", 'c"d', "nan"])[np.arange(40) % 4]
    own = Dataset("own", x, y, x, y, groups={"g": names}, groups_test={"g": names})
    experiment = replace(BASE, dataset=own, sensitive="g", split=IID(3))
    result = experiment.run(directory=tmp_path)
    check_same(result, Result.load(tmp_path, experiment))
    with pytest.raises(ConfigError, match="because its dataset was given as arrays; give the experiment"):
        Result.load(tmp_path)


@pytest.mark.parametrize("name", [name for name in RESULTS if name != CHECKSUMS])
@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted"])
def test_a_damaged_file_is_found(name: str, damage: str, finished: Path, tmp_path: Path) -> None:
    folder = copy(finished, tmp_path / "run")
    spoil(folder / name, damage)
    with pytest.raises(ConfigError, match=f"no result that can be read: its {name} is (damaged|missing)"):
        Result.load(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    BASE.run(directory=folder)
    return folder


def copy(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def spoil(file: Path, damage: str) -> None:
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.unlink()


def test_a_manifest_names_files_of_the_directory_only(finished: Path, tmp_path: Path) -> None:
    folder = copy(finished, tmp_path / "run")
    (tmp_path / "elsewhere").touch()
    lines = (folder / CHECKSUMS).read_text()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder / CHECKSUMS).write_text(f"{lines}{empty}  ../elsewhere\n")
    with pytest.raises(ConfigError, match="its SHA256SUMS is damaged"):
        Result.load(folder)


def test_checksums_are_those_of_sha256sum(finished: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=finished, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Studies.


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return bits(compare(BASE, seeds=2, **AXES))


def test_a_finished_run_is_not_run_again(tmp_path: Path, reference: pd.DataFrame) -> None:
    """Of a study that is repeated, that has one more seed, or that shares a variant with another."""
    compare(BASE, seeds=1, directory=tmp_path / "out", jobs=1, **AXES)
    runs = sorted((tmp_path / "out/runs").iterdir())
    stamps = [(run / CHECKSUMS).stat().st_mtime_ns for run in runs]
    study = compare(BASE, seeds=2, directory=tmp_path / "out", jobs=1, **AXES)
    assert [(run / CHECKSUMS).stat().st_mtime_ns for run in runs] == stamps
    assert len(list((tmp_path / "out/runs").iterdir())) == 4
    pd.testing.assert_frame_equal(bits(study), reference)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # the tables of a part of the study are not kept
    stale = tmp_path / "out/ranks.csv"  # of a part that had ranks
    stale.touch()
    compare(BASE, seeds=2, directory=tmp_path / "out", jobs=1, **AXES)
    assert not stale.exists()


def test_a_study_is_saved_and_loaded(tmp_path: Path, reference: pd.DataFrame) -> None:
    study = compare(BASE, seeds=2, **AXES)
    study.save(tmp_path / "out")
    loaded = Study.load(tmp_path / "out")
    pd.testing.assert_frame_equal(bits(loaded), reference)
    pd.testing.assert_frame_equal(loaded.summary(), study.summary())
    assert [v.label for v in loaded.variants] == [v.label for v in study.variants]
    assert [r.experiment for v in loaded.variants for r in v.results] == [
        r.experiment for v in study.variants for r in v.results
    ]
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out/runs").glob("*/*")}
    study.save(tmp_path / "out")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out/runs").glob("*/*")} == before
    pd.testing.assert_frame_equal(bits(compare(BASE, seeds=2, directory=tmp_path / "out", **AXES)), reference)
    assert before.items() <= {f: f.stat().st_mtime_ns for f in (tmp_path / "out/runs").glob("*/*")}.items()


def test_a_saved_study_is_not_taken_for_runs_with_other_code(tmp_path: Path) -> None:
    """Early stopping by a callback of its own is no part of a result."""

    class Stops(Callback):
        def round_finished(self, finished: Any) -> None:
            if finished.number == 1:
                finished.stop("enough")

    stopped, whole = compare(BASE, callbacks=[Stops()]), compare(BASE)
    for study in (stopped, whole):
        study.save(tmp_path / "out")
        assert Study.load(tmp_path / "out").rounds().equals(study.rounds())
    assert compare(BASE, directory=tmp_path / "out").rounds()["round"].max() == BASE.rounds


def test_a_run_and_a_study_have_directories_of_their_own(tmp_path: Path) -> None:
    BASE.run(directory=tmp_path / "run")
    with pytest.raises(ConfigError, match="has a run; choose another directory for a study"):
        compare(BASE, directory=tmp_path / "run")
    compare(BASE, directory=tmp_path / "study")
    with pytest.raises(ConfigError, match="has a study; choose another directory for a run"):
        BASE.run(directory=tmp_path / "study")
    assert Result.load(tmp_path / "run").rounds == Study.load(tmp_path / "study").variants[0].results[0].rounds


def test_a_study_without_tuning_has_none_of_an_earlier_one(tmp_path: Path) -> None:
    compare(BASE, directory=tmp_path, tune={"client.lr": [0.1]}, tune_seeds=1)
    assert Study.load(tmp_path).tuning
    compare(BASE, directory=tmp_path)
    assert Study.load(tmp_path).tuning is None


def test_a_tuned_study_is_loaded_without_its_tuning(tmp_path: Path) -> None:
    study = compare(BASE, tune={"client.lr": [0.1]}, tune_seeds=1)
    replace(study, tuning=None).save(tmp_path)
    loaded = Study.load(tmp_path)
    assert loaded.tuning is None
    assert loaded.rounds().equals(study.rounds())


def test_an_incomplete_study_loads_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(row: Any) -> None:
        if len(list(tmp_path.glob("out/runs/*/SHA256SUMS"))) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(BASE, seeds=2, directory=tmp_path / "out", callbacks=[OnRound(stop)], **AXES)
    capsys.readouterr()
    study = Study.load(tmp_path / "out")
    assert [len(v.results) for v in study.variants] == [1]
    assert capsys.readouterr().err.endswith(
        "3 of the 4 runs in " + str(tmp_path / "out") + " are not finished, and are left out\n"
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        Study.load(tmp_path)


@pytest.mark.parametrize("text", ["", "seed,run\n", "seed,run\n0,../x\n", "a,b\n1,2\n", "seed,run\n1\n", 'seed,run\n"'])
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ConfigError):
        Study.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted"])
def test_damaged_results_are_run_again(damage: str, tmp_path: Path, reference: pd.DataFrame, capsys: Any) -> None:
    out = tmp_path / "out"
    compare(BASE, seeds=2, directory=out, **AXES)
    folders = sorted((out / "runs").iterdir())
    spoil(folders[0] / "history.csv", damage)
    spoil(folders[1] / "weights.npz", damage)
    spoil(folders[2] / CHECKSUMS, damage)
    stamp = (folders[3] / CHECKSUMS).stat().st_mtime_ns
    pd.testing.assert_frame_equal(bits(compare(BASE, seeds=2, directory=out, jobs=1, **AXES)), reference)
    assert (folders[3] / CHECKSUMS).stat().st_mtime_ns == stamp
    said = capsys.readouterr().err
    assert said.count("starts again, because its") == (2 if damage == "deleted" else 3)
    assert said.count("kept the earlier results in") == 3


def test_the_checkpoint_before_replaces_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:

    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(saving, "CHECKPOINT_SHARE", 1e9)
    experiment = replace(BASE, rounds=6)

    def cut(row: Any) -> None:
        if row["round"] == 4:
            raise KeyboardInterrupt

    for damage in ("truncated", "changed", "deleted"):
        folder = tmp_path / damage
        with pytest.raises(KeyboardInterrupt):
            experiment.run(directory=folder, callbacks=[OnRound(cut)])
        spoil(folder / "checkpoint.npz", damage)
        rounds: list[float] = []
        result = experiment.run(directory=folder, callbacks=[OnRound(lambda row: rounds.append(row["round"]))])  # noqa: B023
        said = capsys.readouterr().err
        assert "resuming after round 2" in said
        assert ("the checkpoint before it is used instead" in said) == (damage != "deleted")
        check = experiment.run()
        assert np.array_equal(result.weights["W1"], check.weights["W1"])
        assert not list(folder.glob("checkpoint*"))
        assert rounds == [0, 1, 2, 3, 4, 5, 6]


def test_a_study_starts_a_run_again_whose_checkpoints_are_all_damaged(tmp_path: Path, reference: pd.DataFrame) -> None:
    out = tmp_path / "out"
    study = compare(BASE, seeds=2, directory=out, jobs=1, **AXES)
    folder = next((out / "runs").iterdir())
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    (folder / "checkpoint.npz").write_bytes(b"damaged")
    pd.testing.assert_frame_equal(bits(compare(BASE, seeds=2, directory=out, jobs=1, **AXES)), reference)
    assert len(study.variants) == 2


def test_another_study_in_the_same_directory_keeps_the_tables_and_shares_the_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(BASE, seeds=2, directory=out, **AXES)
    compare(BASE, seeds=1, directory=out, client=[SGD(lr=0.1), SGD(lr=0.3)])
    assert (tmp_path / "out.1/summary.csv").exists()
    assert (tmp_path / "out.1/study.toml").exists()
    assert len(list((out / "runs").iterdir())) == 5  # four, and the one that is new


def test_a_study_whose_directory_became_another_studys_ends(tmp_path: Path) -> None:
    out, other = tmp_path / "out", replace(BASE, seed=7)

    def on_round(row: Any) -> None:
        compare(other, directory=out, client=[SGD(lr=0.3)])

    with pytest.raises(ConfigError, match="holds another study now"):
        compare(BASE, directory=out, callbacks=[OnRound(on_round)], client=[SGD(lr=0.1)])


def test_callbacks_see_a_finished_run_as_resumed(tmp_path: Path) -> None:
    class Watch(Callback):
        passive = True

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def run_started(self, experiment: Any, history: Sequence[Any]) -> None:
            self.seen.append(("started", len(history)))

        def round_finished(self, finished: Any) -> None:
            self.seen.append(("round", finished.number))

        def run_finished(self, result: Result) -> None:
            self.seen.append(("finished", result.final_score))

    first, second = Watch(), Watch()
    result = compare(BASE, directory=tmp_path, callbacks=[first], jobs=1).variants[0].results[0]
    compare(BASE, directory=tmp_path, callbacks=[second], jobs=1)
    assert first.seen == [("started", 0), *(("round", k) for k in range(4)), ("finished", result.final_score)]
    assert second.seen == [("started", 4), ("finished", result.final_score)]


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """Each run is run once, by one of them; both return all results."""
    script = (
        "import sys\nfrom fedsim import Experiment, compare\nfrom fedsim.clients import SGD\n"
        "from fedsim.splits import Dirichlet\n"
        "base = Experiment(split=Dirichlet(6, alpha=0.5), hidden=(4,), rounds=60)\n"
        "class Count:\n    pass\n"
        "from fedsim.study import runner\nreal = runner._Run.run\n"
        "def run(self, verbose):\n    print('ran', self.experiment.client.lr, self.experiment.seed, flush=True)\n"
        "    return real(self, verbose)\n"
        "runner._Run.run = run\n"
        "s = compare(base, seeds=3, directory='out', client=[SGD(lr=0.1), SGD(lr=0.2)], jobs=1)\n"
        "print('result', s.summary()['final_accuracy'].tolist())\n"
    )
    command = [sys.executable, "-c", script]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = [line for out, _ in said for line in out.splitlines()]
    ran = [line for line in lines if line.startswith("ran")]
    assert len(ran) == len(set(ran)) == 6, said
    assert len({line for line in lines if line.startswith("result")}) == 1


# Worker processes.


@pytest.mark.parametrize("jobs", [2, 3])
@pytest.mark.parametrize("stored", [False, True])
def test_runs_in_processes_have_the_same_bits(jobs: int, stored: bool, tmp_path: Path, reference: pd.DataFrame) -> None:
    directory = tmp_path / "out" if stored else None
    study = compare(BASE, seeds=2, jobs=jobs, directory=directory, **AXES)
    pd.testing.assert_frame_equal(bits(study), reference)
    assert [r.experiment.seed for v in study.variants for r in v.results] == [0, 1, 0, 1]


def test_large_runs_go_alone_and_small_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default; unless the callbacks, the threads or the engine are the user's."""
    groups: list[tuple[list[int], int]] = []

    def only(self: Execution, numbers: Sequence[int], bar: Any, jobs: int) -> Any:
        groups.append((list(numbers), jobs))
        return ((number, self.run(number, [], None)) for number in numbers)

    monkeypatch.setattr(Execution, "_pass", only)
    monkeypatch.setattr("fedsim.study.execution.available_cores", lambda: 4)
    monkeypatch.setattr("fedsim.study.execution.LARGE_ROUND", 1e8)
    sizes: dict[str, Any] = {"hidden": [(4,), (400,)]}
    compare(BASE, seeds=2, **sizes)
    assert [group for group in groups if group[0]] == [([0, 1], 4), ([2, 3], 1)]
    for options in ({"workers": 1}, {"callbacks": [OnRound(lambda row: None)]}, {"verbose": True}):
        groups.clear()
        compare(BASE, seeds=2, **sizes, **options)
        assert [group for group in groups if group[0]] == [([0, 1, 2, 3], 1)]
    groups.clear()
    compare(BASE, seeds=2, jobs=3, **sizes)
    assert [group for group in groups if group[0]] == [([0, 1, 2, 3], 3)]


def test_progress_is_shown_for_all_processes(capsys: pytest.CaptureFixture[str]) -> None:
    compare(BASE, seeds=2, jobs=2, progress=True, **AXES)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "12/12" in shown


def square(number: int, report: Callable[[Any], None]) -> int:
    report(number)
    return number**2


def test_jobs_are_all_done_and_reported() -> None:
    seen: list[tuple[int, Any]] = []
    found = dict(in_processes(square, range(20), 3, lambda number, content: seen.append((number, content))))
    assert found == {n: n**2 for n in range(20)}
    assert sorted(seen) == [(n, n) for n in range(20)]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (DivergenceError("it went off"), DivergenceError, "it went off"),
        (ZeroDivisionError("by zero"), WorkerError, r"ZeroDivisionError: by zero \(test_store.py, line \d+\)"),
        (SystemExit(3), WorkerError, "SystemExit: 3"),
    ],
)
def test_the_first_failure_ends_the_jobs(error: BaseException, kind: type[Exception], sentence: str) -> None:
    def work(number: int, report: Any) -> int:
        if number == 1:
            raise error
        if number > 1:
            time.sleep(60)
        return number

    began = time.perf_counter()
    with pytest.raises(kind, match=sentence):
        list(in_processes(work, range(6), 2, print))
    assert time.perf_counter() - began < 30
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error() -> None:
    def work(number: int, report: Any) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(FedsimError, match="a worker process was ended by signal 9; if memory ran out"):
        list(in_processes(work, range(4), 2, print))
    assert not multiprocessing.active_children()


def test_a_failing_run_of_a_study_leaves_the_others(tmp_path: Path) -> None:
    axes: dict[str, Any] = {"client": [SGD(lr=0.1), Failing(lr=0.1)]}
    with pytest.raises(FedsimError, match=r"client 0 failed in round 2: RuntimeError: no, .*test_store.py, line"):
        compare(BASE, seeds=2, directory=tmp_path, jobs=2, **axes)
    assert len(Study.load(tmp_path).variants[0].results) >= 1


def test_notices_of_workers_reach_the_terminal(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Once, and above the bar."""
    experiment = replace(BASE, min_clients=6, on_failure="exclude", client=Failing(lr=0.1))
    compare(experiment, seeds=2, jobs=2)
    said = capfd.readouterr().err
    assert said.count("had 5 updates, fewer than min_clients = 6") == 2


STUDY = """
import sys
from fedsim import Experiment, compare
from fedsim.clients import SGD
from fedsim.splits import Dirichlet
from fedsim.study import saving
saving.CHECKPOINT_SECONDS = 0.2
base = Experiment(split=Dirichlet(6, alpha=0.5), hidden=(4,), rounds=int(sys.argv[1]))
compare(base, seeds=2, directory="out", client=[SGD(lr=0.1), SGD(lr=0.2)], jobs=2)
"""


def begin(folder: Path, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STUDY, str(rounds)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("out/runs/*/checkpoint.previous.npz")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_ends_a_study_in_order_and_it_continues(tmp_path: Path) -> None:
    process = begin(tmp_path, 400)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said.count("stopping after this round; Ctrl-C again stops at once") == 1
    assert "of 4 runs are finished in out" in said
    assert list(tmp_path.glob("out/runs/*/checkpoint.npz"))
    done = subprocess.run([sys.executable, "-c", STUDY, "400"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming after round" in done.stderr


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = begin(tmp_path, 100_000)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_daemon_process_runs_a_study_alone() -> None:
    """It may have no children."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        theirs.send(len(compare(BASE, seeds=2).variants[0].results))

    process = context.Process(target=run, daemon=True)
    process.start()
    assert ours.poll(60)
    assert ours.recv() == 2
    process.join()


def test_runs_in_threads_do_not_disturb_each_other() -> None:
    """Flower's strategies sample with Python's global generator, of which a process has one."""
    experiment = replace(BASE, server=partial(FedAdam, eta=0.01), fraction_train=0.4, rounds=6)
    alone = experiment.run()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: experiment.run(), range(4)))
    for result in results:
        assert all(np.array_equal(result.weights[name], alone.weights[name]) for name in alone.weights)


def test_another_thread_starts_no_processes() -> None:
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ConfigError, match="jobs is 2; allowed in a daemon process and outside of the main"):
            pool.submit(partial(compare, BASE, seeds=2, jobs=2)).result()
        assert len(pool.submit(partial(compare, BASE, seeds=2)).result().variants[0].results) == 2


def test_bad_jobs_are_refused() -> None:
    for jobs in (0, 1.5, "two"):
        with pytest.raises(ConfigError, match="jobs is"):
            compare(BASE, jobs=jobs)  # type: ignore[arg-type]


def test_a_directory_is_free_for_one_process_per_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, BASE), pytest.raises(ConfigError, match="another run is writing"):
        BASE.run(directory=tmp_path)


def test_the_datasets_of_workers_are_those_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is loaded once, in the process that starts the workers."""
    asked: list[str] = []
    real = data.load

    def load(name: str, folder: Any = None) -> Dataset:
        asked.append(name)
        return real(name, folder)

    monkeypatch.setattr("fedsim.data.load", load)
    compare(replace(BASE, rounds=1), dataset=["digits", "article"], seeds=2, jobs=2)
    assert asked == ["digits", "article"]


def test_store_states(tmp_path: Path) -> None:
    assert store.state_of(tmp_path) == store.NOT_STARTED
    BASE.run(directory=tmp_path)
    assert store.state_of(tmp_path) == store.FINISHED


def test_the_bar_counts_what_was_finished_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(BASE, seeds=1, directory=tmp_path, **AXES)
    compare(BASE, seeds=2, directory=tmp_path, progress=True, **AXES)
    assert "12/12" in capsys.readouterr().err.split("\r")[-1]
    with ProgressBar(10, show=True) as bar:
        bar.add(4, {"test_r2": 0.5})
    assert "4/10" in capsys.readouterr().err


def test_shards_and_splits_are_paired() -> None:
    """Runs with one seed have the same initial weights, split and cohorts where these are comparable."""
    study = compare(
        replace(BASE, fraction_train=0.5, fraction_evaluate=0.5, rounds=1),
        seeds=2,
        client=[SGD(lr=0.1), FedProx(lr=0.1, proximal_mu=1.0)],
        split=[IID(6), Shards(6, per_client=2)],
    )
    for seed in range(2):
        results = [variant.results[seed] for variant in study.variants]
        start = [result.history["test_loss"].iloc[0] for result in results]
        assert len(set(start)) == 1  # the untrained model
        cohorts = [tuple(sorted(result.clients["partition_id"])) for result in results]
        assert len(set(cohorts)) == 1
        sizes = [tuple(sorted(result.clients["num_examples"])) for result in results]
        assert sizes[0] == sizes[2]  # both with IID


def test_runs_that_diverge_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for jobs in (1, 2):
        axes: dict[str, Any] = {"client": [SGD(lr=0.1), SGD(lr=1e9)]}
        study = compare(BASE, seeds=2, jobs=jobs, directory=tmp_path / str(jobs), **axes)
        assert [variant.label for variant in study.variants] == ["SGD"]
        names = "SGD(lr=1000000000.0), seed 0; SGD(lr=1000000000.0), seed 1"
        assert study.notes[-1] == f"Diverged, and not in the means: {names}."
        said = capsys.readouterr().err
        assert "2 of 4 runs diverged and are left out; the first: SGD(lr=1000000000.0), seed 0: training dive" in said
        assert len(pd.read_csv(tmp_path / str(jobs) / "summary.csv")) == 1
        assert Study.load(tmp_path / str(jobs)).notes == study.notes
        assert not capsys.readouterr().err  # a run that diverged is finished
        assert list(list_study(tmp_path / str(jobs))["state"]) == ["finished"] * 2 + ["diverged"] * 2
        with monkeypatch.context() as patch:
            patch.delattr(Execution, "run")  # nothing is run again
            again = compare(BASE, seeds=2, jobs=jobs, directory=tmp_path / str(jobs), **axes)
        assert (again.notes, capsys.readouterr().err.splitlines()[-1]) == (study.notes, said.splitlines()[-1])
    with pytest.raises(DivergenceError):
        compare(BASE, client=[SGD(lr=1e9)])


def test_classes_of_a_script_are_known_in_it(tmp_path: Path) -> None:
    """A study is loaded where they are defined; elsewhere a sentence says so."""
    script = tmp_path / "script.py"
    script.write_text(
        "from fedsim import Experiment, Study, compare\nfrom fedsim.clients import SGD\nfrom fedsim.splits import IID\n"
        "class Own(SGD):\n    pass\n"
        "study = compare(Experiment(split=IID(4), rounds=1, client=Own()), directory='out')\n"
        "assert Study.load('out').rounds().equals(study.rounds())\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ConfigError, match="'Own' of the script or notebook that made it; do this there"):
        Study.load(tmp_path / "out")
