"""Trackers log what a run's result has, each round once, and never cost the run."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same

from fedsim import Experiment, Result, compare
from fedsim.cli import main as cli
from fedsim.clients import SGD, Context
from fedsim.errors import ConfigError, DivergenceError
from fedsim.servers import FedAdam
from fedsim.splits import IID, Dirichlet, LabelNoise
from fedsim.study import config, saving
from fedsim.study.callbacks import Callback, EarlyStopping, FinishedRound
from fedsim.study.result_files import git_revision
from fedsim.trackers import MLflow, TensorBoard, Tracker, WandB, tracker
from fedsim.trackers.description import RunDescription, describe_run, metrics, parameters, run_id, summary
from fedsim.updates import Int8, TopK

for package in ("mlflow", "tensorboard", "wandb"):
    if find_spec(package) is None:
        pytest.skip(f"the extra {package} is not installed", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("trackers")  # the packages are imported by one worker

BASE = Experiment(split=IID(4), hidden=(4,), rounds=5, kernel="numpy", client=SGD(lr=0.3))
#: Metric -> its values by step, sorted by step.
Series = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow's default place of artifacts
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(name, value)


class Records:
    """A tracker of a kind, and what it has logged."""

    def __init__(
        self, make: Callable[[], Tracker], runs: Callable[[], list[tuple[Series, dict[str, Any], str]]]
    ) -> None:
        self.make, self.runs = make, runs

    def run(self) -> tuple[Series, dict[str, Any], str]:
        """The metrics, the parameters and the status of the only run."""
        [run] = self.runs()
        return run


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, because making its tables takes a second."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(params=["mlflow", "tensorboard", "wandb"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Records:
    if request.param == "mlflow":
        uri = request.getfixturevalue("database")
        return Records(partial(MLflow, uri, str(tmp_path)), partial(mlflow_runs, uri, str(tmp_path)))
    if request.param == "tensorboard":
        return Records(partial(TensorBoard, tmp_path / "tb"), partial(tensorboard_runs, tmp_path / "tb"))
    numbers = count(1)
    return Records(lambda: WandB(directory=tmp_path / f"wandb{next(numbers)}"), partial(wandb_runs, tmp_path))


def mlflow_runs(uri: str, experiment: str) -> list[tuple[Series, dict[str, Any], str]]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = []
    for run in client.search_runs([found.experiment_id]):
        points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        series = {key: sorted((m.step, m.value) for m in history) for key, history in points.items()}
        runs.append((series, {**run.data.params, **run.data.tags}, run.info.status))
    return runs


def tensorboard_runs(logdir: Path) -> list[tuple[Series, dict[str, Any], str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    runs = []
    for folder in logdir.iterdir():
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        series = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        about = events.PluginTagToContent("hparams")
        start = metadata.parse_session_start_info_plugin_data(about[metadata.SESSION_START_INFO_TAG])
        values = {name: getattr(v, v.WhichOneof("kind")) for name, v in start.hparams.items()}
        texts = {
            tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            for tag in events.PluginTagToContent("text")
        }
        status = "RUNNING"
        if metadata.SESSION_END_INFO_TAG in about:
            ended = metadata.parse_session_end_info_plugin_data(about[metadata.SESSION_END_INFO_TAG]).status
            status = "FINISHED" if ended == api_pb2.STATUS_SUCCESS else texts["error"].partition(":")[0]
        runs.append((series, texts | values, status))
    return runs


def wandb_runs(folder: Path) -> list[tuple[Series, dict[str, Any], str]]:
    """Read the last file of each run, once the service has written them."""
    import wandb

    wandb.teardown()
    files = sorted(folder.glob("wandb*/wandb/offline-run-*/run-*.wandb"))
    return [wandb_run(file) for file in {file.name: file for file in files}.values()]


def wandb_run(file: Path) -> tuple[Series, dict[str, Any], str]:
    series: Series = {}
    values: dict[str, Any] = {}
    status = "RUNNING"
    for record in wandb_records(file):
        if record.history.item:
            row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            for name in row:
                if not name.startswith("_"):
                    series.setdefault(name, []).append((row["_step"], row[name]))
        values |= {
            u.key: json.loads(u.value_json) for u in (*record.run.config.update, *record.summary.update) if u.key
        }
        if record.WhichOneof("record_type") == "exit":
            status = {0: "FINISHED", 1: "FAILED", 255: "KILLED"}[record.exit.exit_code]
    return series, values, status


def wandb_records(file: Path) -> Iterator[Any]:
    """Read a file in the format of LevelDB's log, whose header has 7 bytes and whose blocks have 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def history_of(result: Result, exact: bool = True) -> Series:
    """The columns of a result's history, without NaN."""
    columns = result.history.drop(columns="round")
    found = {n: [(r, float(v)) for r, v in enumerate(columns[n]) if not math.isnan(v)] for n in columns}
    return {name: values for name, values in found.items() if values}


def check_history(series: Series, result: Result) -> None:
    """Each value of the history was logged once, at its round; TensorBoard stores float32."""
    expected = history_of(result)
    totals = summary(result)
    assert set(series) - set(expected) <= set(totals)
    for name, values in expected.items():
        assert [step for step, _ in series[name]] == [step for step, _ in values], name
        np.testing.assert_allclose([v for _, v in series[name]], [v for _, v in values], rtol=1e-6, err_msg=name)


# Parameters, names and ids.


def test_parameters_are_the_toml_form_and_the_arguments_of_its_objects() -> None:
    split = LabelNoise(Dirichlet(8, alpha=0.1), low=0.0, high=0.5)
    experiment = replace(BASE, split=split, server=FedAdam(eta=0.5), transforms=(TopK(0.1), Int8()), hidden=(8, 4))
    found = parameters(experiment)
    settings = config.to_settings(experiment)
    assert {name for name in found if "." not in name} == set(settings)
    assert found["client"] == settings["client"]
    assert config.build("split", str(found["split"])) == split
    assert found["client.lr"] == 0.3
    assert found["server.eta"] == 0.5
    assert found["split.split"] == "Dirichlet(num_clients=8, alpha=0.1)"
    assert found["split.split.alpha"] == 0.1
    assert found["transforms.0.fraction"] == 0.1
    assert (found["hidden"], found["rounds"], found["weight_divergence"]) == ("8, 4", 5, False)
    assert all(type(value) in (bool, int, float, str) for value in found.values())
    assert parameters(replace(experiment, dataset=experiment.load_data())) == found
    long = parameters(replace(BASE, split=IID(300, sizes=[3] * 300)))
    assert len(str(long["split"])) == 500
    assert str(long["split"]).endswith("...")


def test_a_run_is_identified_by_its_first_row() -> None:
    rows = [BASE.run().history.iloc[0].to_dict() for _ in range(2)]
    assert run_id(rows[0]) == run_id(json.loads(json.dumps(rows[0]))) != run_id(rows[1])
    assert metrics({"round": 1, "a": 0.5, "b": math.nan}) == {"a": 0.5}


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_git_revision_is_that_of_the_current_folder(tmp_path: Path) -> None:
    assert git_revision() == ""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert "git_revision" not in describe_run(BASE, {}, {}).tags
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    written = subprocess.run([*git, "log", "--format=%H"], check=True, capture_output=True, text=True).stdout
    assert describe_run(BASE, {}, {}).tags["git_revision"] == written.strip() != ""


# What is logged.


def test_a_run_is_logged_with_its_history_parameters_summary_and_status(records: Records) -> None:
    """With the failures of all rounds and the reason why the run ended."""
    made = records.make()
    experiment = replace(BASE, client=Fails(lr=0.3), on_failure="exclude")
    result = experiment.run(callbacks=[made, StopsAt(4)])
    assert same(result, experiment.run(callbacks=[StopsAt(4)]))
    series, values, status = records.run()
    check_history(series, result)
    for name, value in parameters(experiment).items():
        if name != "rounds" or not isinstance(made, WandB):  # whose summary has it too
            assert values[name] == (str(value) if isinstance(made, MLflow) else value)
    logged = values | {name: points[-1][1] for name, points in series.items()}
    expected = summary(result)
    assert expected["total_failures"] == 1.0 == series["failures"][2][1]
    assert expected["best_accuracy"] == result.history["test_accuracy"].max()
    assert expected["total_seconds"] == pytest.approx(result.history["seconds"].sum())
    for name, value in expected.items():
        assert float(logged[name]) == pytest.approx(value, rel=1e-6)
    assert values["stop_reason"] == "seen enough"
    assert status == "FINISHED"


class Fails(SGD):
    """Client 3 diverges in round 2."""

    def train(self, ctx: Context) -> Any:
        weights = ctx.fit()
        if ctx.round == 2:
            weights[ctx.partition_ids == 3] = np.nan
        return weights


class StopsAt(Callback):
    def __init__(self, number: int) -> None:
        self._number = number

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == self._number:
            finished.stop("seen enough")


def test_artifacts_are_the_weights_the_card_and_the_experiment(database: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    result = BASE.run(callbacks=[MLflow(database, str(tmp_path))])
    client = MlflowClient(database)
    found = client.get_experiment_by_name(str(tmp_path))
    assert found is not None
    [run] = client.search_runs([found.experiment_id])
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    with np.load(folder / "weights.npz") as weights:
        assert {name: values.tolist() for name, values in weights.items()} == {
            name: values.tolist() for name, values in result.weights.items()
        }
    assert (folder / "model_card.md").read_text() == result.card()
    assert config.experiment(config.read(folder / "experiment.toml")) == BASE
    assert run.info.run_name == "IID, SGD(lr=0.3), seed 0"


# Interruptions.


class Cut(Callback):
    """Ends a run in a round with an error."""

    def __init__(self, number: int, error: BaseException) -> None:
        self._number, self._error = number, error

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == self._number:
            raise self._error


class KillsAt(Callback):
    """Kills the process in a round."""

    def __init__(self, number: int) -> None:
        self._number = number

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == self._number:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def _checkpoint_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(saving, "CHECKPOINT_SHARE", 1e9)


@pytest.mark.usefixtures("_checkpoint_every_round")
@pytest.mark.parametrize(("seconds", "last"), [(0.0, 3), (1e9, 0)], ids=["after", "before"])
def test_a_killed_run_that_is_resumed_is_one_run_with_each_round_once(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, last: int
) -> None:
    """The process was killed with rounds logged that are not in its checkpoint, or with rounds not logged yet."""
    monkeypatch.setattr(tracker, "LOGGING_SECONDS", seconds)
    import wandb

    killed = records.make()
    wandb.teardown()  # the child starts a service of its own, which ends with it
    process = get_context("fork").Process(
        target=BASE.run, kwargs={"directory": tmp_path / "out", "callbacks": [killed, KillsAt(3)]}
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    series, _, status = records.run()
    assert status == "RUNNING"
    if not isinstance(killed, WandB):  # which writes with some delay
        assert [step for step, _ in series["test_loss"]] == list(range(last + 1))
    result = BASE.run(directory=tmp_path / "out", callbacks=[records.make()])
    series, _, status = records.run()
    assert status == "FINISHED"
    check_history({name: points for name, points in series.items() if name != "seconds"}, _without_seconds(result))


def _without_seconds(result: Result) -> Result:
    """Round 3 was measured twice; MLflow keeps the first of its times."""
    return replace(result, history=result.history.assign(seconds=math.nan))


@pytest.mark.usefixtures("_checkpoint_every_round")
def test_a_run_that_ctrl_c_ended_is_killed_and_then_continued(records: Records, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        BASE.run(directory=tmp_path / "out", callbacks=[records.make(), Cut(3, KeyboardInterrupt())])
    series, values, status = records.run()
    assert status == "KILLED"
    assert [step for step, _ in series["test_loss"]] == [0, 1, 2, 3]
    assert "KeyboardInterrupt" in values["error"]
    BASE.run(directory=tmp_path / "out", callbacks=[records.make()])
    series, _, status = records.run()
    assert status == "FINISHED"
    assert [step for step, _ in series["test_loss"]] == [0, 1, 2, 3, 4, 5]


def test_a_run_that_diverges_has_failed(records: Records) -> None:
    with pytest.raises(DivergenceError):
        replace(BASE, client=Fails(lr=0.3)).run(callbacks=[records.make()])
    series, values, status = records.run()
    assert status == "FAILED"
    assert [step for step, _ in series["test_loss"]] == [0, 1]
    assert "training diverged in round 2 at client 3" in values["error"]


# Failures of trackers.


class Full:
    """A tracked run whose disk is full from its second request on."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def log_rounds(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.requests.append([row["round"] for row in rows])
        if len(self.requests) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    def log_result(self, summary: Mapping[str, float], notes: Mapping[str, str], files: Sequence[Path]) -> None:
        self.requests.append(summary)

    def close(self, status: str, reason: str) -> None:
        self.requests.append((status, reason))
        raise OSError(errno.ENOSPC, "No space left on device")


class FullTracker(Tracker):
    package = "json"

    def __init__(self) -> None:
        self.opened: list[Full] = []

    def open_run(self, description: RunDescription, resumed: bool) -> Full:
        self.opened.append(Full())
        return self.opened[-1]


def test_a_tracker_that_fails_during_a_run_costs_one_notice_and_no_bit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "LOGGING_SECONDS", 0.0)
    made = FullTracker()
    assert same(BASE.run(callbacks=[made]), BASE.run())
    error = "OSError: [Errno 28] No space left on device (test_trackers.py, line "
    [notice] = capsys.readouterr().err.splitlines()
    assert notice.startswith(f"fedsim: FullTracker failed, and the run continues without it: {error}")
    first, second, closed = made.opened[0].requests
    assert (first, second, closed[0]) == ([0], [1], "FAILED")
    assert closed[1].startswith(f"logging failed: {error}")
    BASE.run(callbacks=[made])  # the next run is tried again
    assert len(made.opened) == 2


def test_a_tracker_that_cannot_open_a_run_costs_one_notice_and_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is a file, and no server listens."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("")
    result = BASE.run(callbacks=[TensorBoard(tmp_path / "file"), MLflow(f"http://127.0.0.1:{free_port()}")])
    assert same(result, BASE.run())
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedsim: ")]
    assert [line.split()[1] for line in notices] == ["TensorBoard", "MLflow"]
    assert all("failed, and the run continues without it" in line for line in notices)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_runs_are_logged_to_a_server_and_survive_its_end(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    pytest.importorskip("flask", reason="the server of mlflow is not installed")
    uri = f"http://127.0.0.1:{free_port()}"
    options = ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "artifacts")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", uri.rpartition(":")[2], *options],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"{uri}/health", server)
        result = BASE.run(callbacks=[MLflow(uri, "server")])
        [(series, values, status)] = mlflow_runs(uri, "server")
        check_history(series, result)
        assert (values["client.lr"], status) == ("0.3", "FINISHED")
        assert list((tmp_path / "artifacts").rglob("weights.npz"))

        class StopsServer(Callback):
            def round_finished(self, finished: FinishedRound) -> None:
                if finished.number == 2:
                    server.terminate()
                    server.wait(60)

        capsys.readouterr()
        assert same(BASE.run(callbacks=[StopsServer(), MLflow(uri)]), result)
        [notice] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedsim: ")]
        assert notice.startswith("fedsim: MLflow failed, and the run continues without it")
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


# Studies, worker processes and the command line.


def test_each_run_of_a_study_is_a_run_with_its_labels(records: Records) -> None:
    made = records.make()
    study = compare(replace(BASE, rounds=1), split=[IID(3), Dirichlet(3, alpha=1.0)], seeds=[7], callbacks=[made])
    results = {(v.label, r.experiment.seed): r for v in study.variants for r in v.results}
    runs = records.runs()
    assert len(runs) == 2
    for series, values, status in runs:
        check_history(series, results[values["study.split"], int(values["seed"])])
        assert status == "FINISHED"
    assert not made._labels


def test_trackers_log_in_forked_worker_processes(records: Records) -> None:
    made = records.make()
    replace(BASE, seed=9, rounds=1).run(callbacks=[made])  # the parent's connections are not the workers'
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        results = list(pool.map(partial(run_with, made), [replace(BASE, seed=seed) for seed in (0, 1)]))
    runs = {int(values["seed"]): (series, status) for series, values, status in records.runs()}
    assert sorted(runs) == [0, 1, 9]
    for seed, result in enumerate(results):
        check_history(runs[seed][0], result)
        assert runs[seed][1] == "FINISHED"


def run_with(made: Tracker, experiment: Experiment) -> Result:
    return experiment.run(callbacks=[made])


def test_trackers_are_passive_and_can_be_pickled() -> None:
    for made in (MLflow("sqlite:///x.db", "mine"), TensorBoard(Path("tb")), WandB("mine", mode="offline")):
        assert made.passive
        assert repr(pickle.loads(pickle.dumps(made))) == repr(made)
    assert not EarlyStopping(patience=1).passive


def test_the_command_line_tracks_runs_and_studies(tmp_path: Path) -> None:
    Path("exp.toml").write_text('split = "IID(3)"\nhidden = [4]\nrounds = 1\nkernel = "numpy"\n')
    Path("study.toml").write_text(Path("exp.toml").read_text() + "[compare]\nseeds = 2\n")
    for arguments, logdir in [
        (["run", "exp.toml", "--track", "TensorBoard(logdir='mine')"], "mine"),
        (["compare", "study.toml", "--track", "tensorboard", "--track", f"{__name__}:Mine"], "tensorboard"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        runs = tensorboard_runs(tmp_path / logdir)
        assert [(status, len(series["test_loss"])) for series, _, status in runs] == [("FINISHED", 2)] * len(runs)
        assert len(runs) == (1 if logdir == "mine" else 2)
    assert sorted(file.name for file in Path().glob("mine *.txt")) == ["mine 0.txt", "mine 1.txt"]


class Mine(FullTracker):
    """A user's own tracker."""

    def run_finished(self, result: Result) -> None:
        super().run_finished(result)
        Path(f"mine {result.experiment.seed}.txt").touch()  # in a process of its own


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--track", "mlfow"],
            "--track is 'mlfow'; allowed: mlflow, tensorboard, wandb, MLflow, TensorBoard, WandB",
        ),
        (["--track", "MLflow(url='x')"], "MLflow takes uri, experiment"),
        (["--track", "MLflow(uri=3)"], "MLflow's uri is 3; allowed: text, such as 'sqlite:///mlflow.db'"),
        (["--track", "MLflow(experiment=None)"], "MLflow's experiment is None; allowed: the name of an experiment"),
        (["--track", "WandB(mode='ofline')"], "allowed: online, offline; did you mean 'offline'?"),
        (["--track", "TensorBoard(logdir=1)"], "TensorBoard's logdir is 1; allowed: a path"),
        (["--track", "TensorBoard(__import__('os'))"], "--track names '__import__'; it takes plain values only"),
        (["--track", "fedsim.study.callbacks:EarlyStopping(patience=1)"], "allowed: a concrete subclass of Tracker"),
        (
            ["--track", "mlflow", "--engine", "deployment"],
            "--track is for runs in this process; --engine is 'deployment'",
        ),
    ],
)
def test_trackers_that_cannot_be_are_refused(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exp.toml").write_text("rounds = 1\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(tmp_path / "exp.toml"), *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("cls", [MLflow, TensorBoard, WandB])
def test_a_missing_extra_is_named(cls: type[Tracker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the folder that the package writes is taken for the package."""
    monkeypatch.setitem(sys.modules, cls.package, None)
    with pytest.raises(ConfigError, match=rf"{cls.__name__} needs the extra '{cls.package}'; install it by"):
        cls()
    (tmp_path / cls.package).mkdir()
    monkeypatch.delitem(sys.modules, cls.package)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=f"needs the extra '{cls.package}'"):
        cls()


def test_the_code_on_the_page_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "trackers.md"
    [code] = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    [iid, skewed] = [v.results[0] for v in names["study"].variants]
    for series, values, _ in tensorboard_runs(tmp_path / "tensorboard"):
        check_history(series, iid if values["study.split"] == "IID" else skewed)


def test_the_best_score_of_a_run_may_be_an_earlier_one() -> None:
    result = BASE.run()
    result.history.loc[2, "test_accuracy"] = 0.99
    found = summary(result)
    assert (found["best_accuracy"], found["final_accuracy"]) == (0.99, result.history["test_accuracy"].iloc[-1])


def test_a_single_run_after_a_study_has_none_of_its_labels(tmp_path: Path) -> None:
    callback = TensorBoard(tmp_path / "tb")
    compare(BASE, split=[IID(4)], callbacks=[callback])
    replace(BASE, seed=1).run(callbacks=[callback])
    tags = [parameters for _, parameters, _ in tensorboard_runs(tmp_path / "tb")]
    assert sorted("study.split" in found for found in tags) == [False, True]


def test_more_parameters_than_mlflow_takes_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str
) -> None:
    monkeypatch.setattr("fedsim.trackers.mlflow.MAX_PARAMETERS", 3)
    BASE.run(callbacks=[MLflow(database, str(tmp_path))])
    [(_, logged, _)] = mlflow_runs(database, str(tmp_path))
    wanted = {key: str(value) for key, value in parameters(BASE).items()}
    assert len(wanted) > 3
    assert wanted.items() <= logged.items()
