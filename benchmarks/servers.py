"""The time of a round with each server strategy of Flower and with fedsim's of the same name, both in process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
from flwr.app import ConfigRecord

from benchmarks.jobs import Job
from benchmarks.measure import median, take_turns
from fedsim import servers
from fedsim.flower import records, strategies
from fedsim.rounds.grid import make_grid
from fedsim.splits import FederatedDataset

#: 100 clients with the article's network and little local training, so that aggregation takes most of the time.
JOB = Job((100, 50, 10), registered=100, cohort=100, examples=10, batch=None, epochs=1)
OPTIONS: dict[str, dict[str, Any]] = {
    "FedAvgM": {"server_momentum": 0.9},
    "Krum": {"num_malicious_nodes": 10},
    "MultiKrum": {"num_malicious_nodes": 10, "num_nodes_to_select": 50},
    "Bulyan": {"num_malicious_nodes": 10},
    "QFedAvg": {"client_learning_rate": 0.1},
}
NAMES = [name for name in servers.__all__ if hasattr(stock, name)]


def rounds(strategy: Any, stack: ExitStack) -> Callable[[], None]:
    """Return a function that runs one more round from the same weights."""
    data, model = JOB.data(), JOB.model
    grid = stack.enter_context(
        make_grid(model, FederatedDataset(data, JOB.partition(data)), JOB.strategy, kernel="compiled")
    )
    arrays = records.to_record(model, model.init(np.random.default_rng(2)))
    if isinstance(strategy, servers.FedAvg):
        strategy.streams = True  # as in a run

    def step() -> None:
        strategy.aggregate_train(1, grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
        grid.take_statistics()

    step()
    return step


def measure(samples: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of a round by strategy, for fedsim and for Flower."""
    found = {}
    for name in NAMES:
        options = {"min_train_nodes": 1, "min_available_nodes": 1, **OPTIONS.get(name, {})}
        with ExitStack() as stack:
            stack.enter_context(strategies.quiet())
            peers = {
                who: rounds(getattr(module, name)(**options), stack)
                for who, module in (("fedsim", servers), ("Flower", stock))
            }
            stack.enter_context(strategies.freeze_gc())  # as in a run, after compilation
            found[name] = {who: median(seconds) for who, seconds in take_turns(peers, samples).items()}
    return found
