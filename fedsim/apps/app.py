"""The Flower app: a ServerApp and a ClientApp that run the experiment in the run configuration.

``experiment`` is the experiment's TOML, as `fedsim.study.config.to_toml` writes it; docs/scale.md describes the other
settings. Every process reads the data itself, from ``data-dir`` of a SuperNode's node config, ``$FEDSIM_DATA``, or the
experiment's ``data_dir``. The TOML may name fedsim's and Flower's strategies and, in an app that `fedsim.apps.export`
has written, classes of the modules beside the app's file; nothing else is imported.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from threadpoolctl import threadpool_limits

from fedsim.checks import check_integer, check_real
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.supernodes.node import answer, exchange, hello
from fedsim.modules import Modules
from fedsim.study import config
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment
from fedsim.toml import read_toml


def read_experiment(settings: Mapping[str, Any], data_dir: str | None = None, folder: Path | None = None) -> Experiment:
    """Return the experiment in a run configuration, which may name classes of the modules in an app's folder."""
    table = read_toml("the run configuration's experiment", str(settings.get("experiment", "")))
    experiment = config.experiment(table, Modules(folder=folder))
    return replace(experiment, data_dir=data_dir) if data_dir else experiment


def make_apps(file: str | os.PathLike[str] | None = None) -> tuple[ServerApp, ClientApp]:
    """Return a ServerApp and a ClientApp.

    Parameters
    ----------
    file : path, optional
        The app's own ``__file__``. Experiments may name classes of the modules beside it; by default those of fedsim
        and Flower only.
    """
    folder = Path(file).resolve().parent if file else None
    server, client = ServerApp(), ClientApp()
    server.main()(partial(main, folder=folder))
    client.query()(lambda message, context: hello(message, context, _client_runtime(context, folder)))
    client.query("secure")(lambda message, context: exchange(message, context, _client_runtime(context, folder)))
    client.train()(lambda message, context: answer(message, context, _client_runtime(context, folder), "train"))
    client.evaluate()(lambda message, context: answer(message, context, _client_runtime(context, folder), "evaluate"))
    return server, client


def main(grid: Grid, context: Context, folder: Path | None = None) -> None:
    """Run the experiment of a run configuration on the SuperNodes of a grid."""
    settings: Mapping[str, Any] = context.run_config
    if settings.get("supervised"):
        _exit_with_parent()
    experiment = read_experiment(settings, folder=folder)
    nodes = check_integer("nodes", settings.get("nodes", 0))
    engine = partial(
        SuperNodeEngine,
        grid=grid,
        nodes=nodes or len(list(grid.get_node_ids())) or 1,
        retries=check_integer("retries", settings.get("retries", 0)),
        wait=check_real("wait", settings.get("wait", 120.0), 0),
        timeout=check_real("timeout", settings.get("timeout", 0.0), 0) or None,
        on_failure=experiment.on_failure,
    )
    out = str(settings.get("out", "")) or None
    result = experiment.run(engine=engine, directory=out, callbacks=[_PrintMetrics()])
    score = f"{result.score}={result.final_score:.4g}" if result.has_global_model else "no global model"
    print(f"fedsim: done after {result.rounds} rounds, {score}", flush=True)


def _exit_with_parent() -> None:
    """Exit within a second of the parent process, instead of waiting for its SuperLink forever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _PrintMetrics(Callback):
    """Prints the metrics of each round, to the log of the ServerApp."""

    def round_finished(self, finished: FinishedRound) -> None:
        shown = {name: value for name, value in finished.metrics.items() if value == value and name != "round"}
        words = " ".join(f"{name}={value:.4g}" for name, value in shown.items())
        print(f"fedsim: round {finished.number} {words}", flush=True)


def _client_runtime(context: Context, folder: Path | None) -> ClientRuntime:
    data_dir = str(context.node_config.get("data-dir", "") or os.environ.get("FEDSIM_DATA", "")) or None
    return _build_runtime(str(context.run_config["experiment"]), data_dir, folder)


@lru_cache(maxsize=1)
def _build_runtime(text: str, data_dir: str | None, folder: Path | None) -> ClientRuntime:
    """Return the client runtime of an experiment; cached, because a process may handle many messages."""
    threadpool_limits(1, "blas")  # for the whole process: more threads would sum in another order
    runtime = build_runtime(read_experiment({"experiment": text}, data_dir, folder))
    runtime.prepare()
    return runtime


server_app, client_app = make_apps()
