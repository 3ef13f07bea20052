"""The speed of an experiment on every engine, and of a Flower app in process and on Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.measure import median
from fedsim.apps.deployment import run_local_deployment
from fedsim.apps.export import export
from fedsim.apps.in_process import run_flower
from fedsim.clients import SGD
from fedsim.flower import strategies
from fedsim.splits import Dirichlet
from fedsim.study.experiment import Experiment

#: 20 clients with the digits, all in every round.
EXPERIMENT = Experiment(split=Dirichlet(20, alpha=0.3), client=SGD(epochs=5), rounds=5)
NODES, APP_NODES, APP_ROUNDS = 4, 20, 5


def measure(samples: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of a round by engine, and for experiments the seconds that a run takes besides."""
    runs: dict[str, Callable[[], pd.DataFrame]] = {
        "in process": lambda: EXPERIMENT.run().history,
        "Ray": lambda: EXPERIMENT.run(engine="ray").history,
        "Flower's simulation": _flwr_run,
        "deployment": lambda: run_local_deployment(EXPERIMENT, NODES),
    }
    found = {}
    for name, run in runs.items():
        started = time.perf_counter()
        rounds = [float(seconds) for seconds in run()["seconds"].iloc[1:]]
        total = time.perf_counter() - started
        found[name] = {"round": median(rounds), "besides": total - sum(rounds)}
    for name, run_app in {"an app in process": _app_in_process, "an app on Ray": _app_on_ray}.items():
        found[name] = {"round": median([run_app() for _ in range(min(samples, 3))]) / APP_ROUNDS, "besides": 0.0}
    return found


def _flwr_run() -> pd.DataFrame:
    """Run ``flwr run`` on an exported app, and stop the processes that it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        app = export(EXPERIMENT, Path(folder) / "app", out=str(out))
        environment = os.environ | {
            "FLWR_HOME": f"{folder}/home",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        try:
            command = ["flwr", "run", str(app), "--stream"]
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
            return pd.read_csv(out / "history.csv")
        finally:
            _stop(f"FLWR_HOME={folder}/home")


def _stop(variable: str) -> None:
    """End the processes whose environment has a variable."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGTERM)


def _app() -> tuple[ServerApp, ClientApp]:
    """Return a simple app, whose clients add 1 to a model of the article's size."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        added = ArrayRecord([a + 1 for a in arrays.to_numpy_ndarrays()])
        return Message(RecordDict({"a": added, "m": MetricRecord({"num-examples": 1})}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        start = ArrayRecord([np.zeros(shape, np.float32) for shape in ((100, 50), (50,), (50, 10), (10,))])
        FedAvg(fraction_evaluate=0.0).start(grid, start, num_rounds=APP_ROUNDS)

    return server, client


def _app_in_process() -> float:
    server, client = _app()
    started = time.perf_counter()
    run_flower(server, client, APP_NODES)
    return time.perf_counter() - started


def _app_on_ray() -> float:
    from flwr.simulation import run_simulation

    server, client = _app()
    seconds: list[float] = []
    main = server._main
    assert main

    def timed(grid: Grid, context: Context) -> None:
        started = time.perf_counter()
        main(grid, context)
        seconds.append(time.perf_counter() - started)

    server._main = timed
    with strategies.quiet():
        run_simulation(server, client, APP_NODES)
    return seconds[0]
