"""fedsim's own Flower app: what run configuration, node configs and the environment tell it, and what its log says."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from threadpoolctl import threadpool_info, threadpool_limits

from fedsim import Experiment
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid, run_flower
from fedsim.clients import SGD
from fedsim.flower import strategies
from fedsim.splits import IID
from fedsim.study import config

BASE = Experiment(
    split=IID(6), client=SGD(batch_size=50), hidden=(4,), rounds=2, fraction_train=1.0, fraction_evaluate=0.0, seed=5
)


class Arriving(AppGrid):
    """One more SuperNode is there each time; the timeouts of messages are written down, by type."""

    asked = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.timeouts: dict[str, set[Any]] = {}

    def get_node_ids(self) -> list[int]:
        self.asked += 1
        return list(super().get_node_ids())[: self.asked]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        for message in messages:
            self.timeouts.setdefault(message.metadata.message_type, set()).add(timeout)
        return super().send_and_receive(messages, timeout=timeout)


def serve(settings: dict[str, Any], client_app: ClientApp = app.client_app) -> Arriving:
    """Run fedsim's ServerApp where three SuperNodes arrive one after another."""
    with strategies.quiet(), Arriving(client_app, 3, run_config=settings) as grid:
        assert isinstance(grid, Arriving)
        state = Context(run_id=0, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
        app.server_app(grid, state)
    return grid


@pytest.mark.timeout(60)
def test_a_server_waits_for_as_many_supernodes_as_it_is_told_to_and_asks_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed: list[int] = []
    client_app = ClientApp()
    client_app.query()(lambda message, context: app.client_app(message, context))

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        if len(failed) < 2:
            failed.append(1)
            raise OSError("a passing fault")
        return app.client_app(message, context)

    settings: dict[str, Any] = {"experiment": config.to_toml(BASE), "nodes": 3, "retries": 2, "timeout": 33.5}
    grid = serve(settings | {"out": str(tmp_path / "out")}, client_app)
    assert len(failed) == 2
    assert grid.timeouts == {"query": {120.0}, "train": {33.5}}
    here = BASE.run()
    with np.load(tmp_path / "out" / "weights.npz") as there:
        assert all(np.array_equal(here.weights[name], there[name]) for name in here.weights)
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert history["test_accuracy"].tolist() == here.history["test_accuracy"].tolist()
    row = here.history.iloc[1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(
        f"fedsim: round 1 test_loss={row['test_loss']:.4g} test_accuracy={row['test_accuracy']:.4g}"
    )
    assert not re.search(r"nan|\bround=", "\n".join(lines))
    assert lines[3:] == [f"fedsim: done after 2 rounds, accuracy={here.final_accuracy:.4g}"]


@pytest.mark.timeout(60)
def test_a_server_goes_on_with_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if it is told no number, and if fewer come than it was told after a while; it may wait in a round."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"experiment": config.to_toml(replace(BASE, rounds=1, on_failure="exclude"))}
    grid = serve(settings | {"wait": 5.25})
    assert grid.timeouts == {"query": {5.25}, "train": {None}}
    assert grid.asked <= 4
    serve(settings | {"nodes": 4, "wait": 0.9})
    assert list(tmp_path.iterdir()) == [], "without a directory it writes none"


def test_data_are_where_the_supernode_says_else_the_environment_else_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in (20, 30, 40):
        (tmp_path / str(rows)).mkdir()
        text = "a,y\n" + "".join(f"{k},{k % 2}\n" for k in range(rows))
        (tmp_path / str(rows) / "my.csv").write_text(text)
    experiment = Experiment(dataset="table('my.csv', label='y')", data_dir=str(tmp_path / "20"), split=IID(2))

    def examples(**node_config: Any) -> int:
        settings: dict[str, Any] = {"experiment": config.to_toml(experiment)}
        state = Context(run_id=0, node_id=2, node_config=node_config, state=RecordDict(), run_config=settings)
        site = app._client_runtime(state, None)
        assert site is app._client_runtime(state, None), "it is made once"
        data = site.federated.dataset
        return len(data.x_train) + len(data.x_test)

    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    assert examples() == 20
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "30"))
    assert examples() == 30
    assert examples(**{"data-dir": str(tmp_path / "40")}) == 40
    assert app.read_experiment({}) == Experiment()
    assert app.read_experiment({"experiment": "rounds = 3"}, "/there") == Experiment(rounds=3, data_dir="/there")


def test_a_supernode_calculates_on_one_thread() -> None:
    """More would sum in another order."""
    with threadpool_limits(2, "blas"):
        app._build_runtime(config.to_toml(replace(BASE, seed=6)), None, None)
        assert {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"} == {1}


ORPHAN = """
import os, time
from fedsim.apps import app
if os.fork() == 0:
    app._exit_with_parent()
    time.sleep(1.5)
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(3.0)
"""


@pytest.mark.slow
def test_a_supervised_server_ends_with_what_started_it_and_not_before() -> None:

    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert parent.poll() is None
        assert parent.wait(60) == 0
        until = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert not Path(f"/proc/{pid}").exists()


def test_a_server_is_supervised_if_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    monkeypatch.setattr(app, "_exit_with_parent", lambda: started.append(True))
    settings = {"experiment": config.to_toml(replace(BASE, rounds=1))}
    run_flower(app.server_app, app.client_app, 1, run_config=settings | {"supervised": False})
    assert started == []
    run_flower(app.server_app, app.client_app, 1, run_config=settings | {"supervised": True})
    assert started == [True]
