"""The Flower app: a ServerApp and a ClientApp that run an experiment, given as run configuration.

``experiment`` is the experiment's TOML, as `fedsim.config.to_toml` writes it; the rest says how to run it (see
docs/scale.md). Every part reads its data itself, from ``data-dir`` of a SuperNode's own node config, ``$FEDSIM_DATA``,
or the experiment's ``data_dir``.
"""

from __future__ import annotations

import os
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from threadpoolctl import threadpool_limits

from fedsim import config
from fedsim.engines.site import Site
from fedsim.engines.supernodes import SuperNodeGrid, answer, hello
from fedsim.experiment import Experiment

server_app = ServerApp()
client_app = ClientApp()


def experiment_of(settings: Mapping[str, Any], data_dir: str | None = None) -> Experiment:
    """Return the experiment that run configuration describes."""
    made = config.experiment(tomllib.loads(str(settings["experiment"])))
    return replace(made, data_dir=data_dir) if data_dir else made


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment on the SuperNodes there are."""
    settings = context.run_config
    if settings.get("supervised"):
        _end_with_parent()
    experiment = experiment_of(settings)
    timeout = float(settings.get("timeout", 0)) or None
    engine = partial(
        SuperNodeGrid,
        grid=grid,
        nodes=int(settings.get("nodes", 0)) or len(list(grid.get_node_ids())) or 1,
        wait=float(settings.get("wait", 120.0)),
        timeout=timeout,
        retries=int(settings.get("retries", 0)),
    )
    out = str(settings.get("out", "")) or None
    result = experiment.run(engine=engine, directory=out, on_round=_say)
    print(f"fedsim: done after {experiment.rounds} rounds, {result.score}={result.final_accuracy:.4g}", flush=True)


def _end_with_parent() -> None:
    """End this process soon after the one that started it: it would wait for its SuperLink for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _say(row: Mapping[str, float]) -> None:
    """Print a row of the history: a server's log is all that its user sees."""
    shown = {name: value for name, value in row.items() if value == value and name != "round"}
    words = " ".join(f"{name}={value:.4g}" for name, value in shown.items())
    print(f"fedsim: round {row['round']:.0f} {words}", flush=True)


@client_app.query()
def _hello(message: Message, context: Context) -> Message:
    return hello(message, context, _site(context))  # what is wrong here is said now


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    return answer(message, context, _site(context), "train")


@client_app.evaluate()
def _evaluate(message: Message, context: Context) -> Message:
    return answer(message, context, _site(context), "evaluate")


def _site(context: Context) -> Site:
    data_dir = str(context.node_config.get("data-dir", "") or os.environ.get("FEDSIM_DATA", "")) or None
    return _made(str(context.run_config["experiment"]), data_dir)


@lru_cache(maxsize=1)
def _made(text: str, data_dir: str | None) -> Site:
    """Return the site of an experiment; a process answers many messages with it."""
    threadpool_limits(1, "blas")  # for good: more threads would sum in another order
    experiment = experiment_of({"experiment": text}, data_dir)
    dataset = experiment.load_data()
    federated = experiment.federate(dataset)
    net = experiment.network(dataset)
    kernel = experiment.kernel_for(net, federated)
    site = Site(net, federated, experiment.client, experiment.seed, kernel, experiment.compress)
    site.prepare()
    return site
