"""What an attacker sees of a round: the global weights before it, and an update, a sum of updates or the new model.

Updates come from the pipeline of the round, local training and transforms included, and not from a separate computation
of gradients, so that an attack sees clipping, noise, compression, local epochs and batches as the server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MessageType, RecordDict
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_instance, check_integer, shorten
from fedsim.clients import SGD
from fedsim.engines.engine import make_engine
from fedsim.errors import ConfigError
from fedsim.flower import records, strategies
from fedsim.flower.internals import FIRST_NODE_ID
from fedsim.flower.messages import Instructions
from fedsim.models import MLP, named_arrays
from fedsim.rounds.grid import RoundGrid
from fedsim.rounds.outcome import RoundOutcome
from fedsim.servers import FedAvg
from fedsim.splits import Partition
from fedsim.study.build import build_runtime
from fedsim.study.experiment import Experiment
from fedsim.study.run_state import RunState
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Mean

Array = NDArray[Any]

#: Who sees what of a round: the server each update; under secure aggregation their mean; everybody the new model.
VIEWS = ("updates", "mean", "model")


@dataclass(frozen=True, eq=False)
class Observation:
    """One update as an attacker sees it.

    Attributes
    ----------
    model : MLP
    weights : ndarray, shape (parameters,)
        The global weights that the clients started from.
    update : ndarray of float64, shape (parameters,)
        The change of the weights: of one client, or the mean of several clients.
    num_examples : int
        Number of examples behind the update, which clients report to the server.
    lr : float
        Learning rate.
    steps : int
        Local steps of a client.
    clients : ndarray of int
        Partition ids of the clients behind the update.
    indices : ndarray of int
        Their training examples, before malicious clients change theirs: what is to be found. No attack reads them.
    client_names : tuple of str
        Of all clients of the experiment, by partition id; empty if clients have numbers only.
    """

    model: MLP
    weights: Array
    update: NDArray[np.float64]
    num_examples: int
    lr: float
    steps: int
    clients: NDArray[np.intp]
    indices: NDArray[np.intp]
    client_names: tuple[str, ...] = ()

    @property
    def gradient(self) -> dict[str, NDArray[np.float64]]:
        """The update as a mean gradient, ``-update / (lr * steps)``, by name; exact for one step of SGD."""
        return named_arrays(self.model, -self.update / (self.lr * self.steps))


@checked_arguments
def observe(
    experiment: Experiment,
    *,
    view: str = "updates",
    clients: Sequence[int] | None = None,
    weights: Array | None = None,
    round_number: int = 1,
) -> list[Observation]:
    """Run a round of an experiment and return what an attacker sees of it.

    Parameters
    ----------
    experiment : Experiment
        Its model is an MLP, its client strategy plain `SGD` without momentum and weight decay.
    view : {"updates", "mean", "model"}
        The server sees each client's update, after the transforms; with secure aggregation it sees only their mean,
        weighted by examples; whoever gets the new global model sees its change, which has the noise of central DP.
    clients : sequence of int, optional
        Partition ids of the cohort; default all. The view "model" takes the cohort that the server samples.
    weights : ndarray, shape (parameters,), optional
        The global weights before the round; default the initial ones.
    round_number : int
        Selects the random numbers of the round.

    Returns
    -------
    list of Observation
        One per client, in the order of the partition ids, or a single one.

    Raises
    ------
    ConfigError
        The model or the client strategy is another one, there is no such client, no client has sent an update, or
        `view` is "updates" with secure aggregation.
    """
    check_choice("view", view, VIEWS)
    secure = experiment.secure_aggregation is not None
    if secure and view == "updates":
        raise ConfigError("view is 'updates', which secure_aggregation hides from the server; allowed: mean, model")
    check_integer("round_number", round_number, 1)
    runtime = build_runtime(experiment)
    model, client = runtime.model, experiment.client
    if not isinstance(model, MLP):
        raise ConfigError(f"the model is a {type(model).__name__}; allowed: an MLP, whose layers the attack knows")
    if type(client) is not SGD or client.momentum or client.weight_decay:
        raise ConfigError(f"client is {client}; allowed: SGD without momentum and weight decay, whose update is known")
    if clients is not None and view == "model":
        raise ConfigError("clients is given for the view 'model', in which the server samples them; allowed: None")
    cohort = _cohort(clients, len(runtime.partition))
    with ExitStack() as stack:
        stack.enter_context(strategies.quiet(False))
        grid = stack.enter_context(RoundGrid(make_engine("in-process", runtime)))
        state = RunState(experiment, grid)
        start = state.weights if weights is None else np.array(weights, dtype=model.dtype)
        if start.shape != (model.num_parameters,):
            raise ConfigError(f"weights has shape {start.shape}; allowed: ({model.num_parameters},)")
        arrays = records.to_record(model, start)
        if view == "model":
            outcome, new = _server_step(state, grid, arrays, round_number)
        else:
            config = ConfigRecord({"server-round": round_number})
            content = RecordDict({"arrays": arrays, "config": config})
            aggregation = Aggregation(Mean(grid.add_weighted)) if secure else None
            nodes = cohort + FIRST_NODE_ID
            outcome = grid.send_and_receive(Instructions(content, nodes, MessageType.TRAIN, aggregation))
    if view != "model" and not outcome.updates:
        raise ConfigError(f"no client has sent an update: {next(iter(outcome.failed.values()))}")
    ids = np.concatenate([update.partition_ids for update in outcome.updates] or [cohort[:0]])
    partition, names = runtime.federated.at(round_number), runtime.federated.client_names
    seen = partial(_observation, model, start, client, partition, names, round_number)
    if view == "model":
        return [seen(new, ids)]
    order = np.argsort(ids)
    if secure:
        return [seen(outcome.aggregation.mean(), ids[order])]
    ids, rows = ids[order], np.concatenate([update.weights for update in outcome.updates])[order]
    if view == "updates":
        return [seen(row, ids[k : k + 1]) for k, row in enumerate(rows)]
    return [seen(np.average(rows.astype(np.float64), axis=0, weights=partition.sizes[ids]), ids)]


def _observation(
    model: MLP,
    start: Array,
    client: SGD,
    partition: Partition,
    names: tuple[str, ...],
    round_number: int,
    after: Array,
    clients: NDArray[np.intp],
) -> Observation:
    """Return the observation of weights that some clients have made of those at the start of a round."""
    indices = np.concatenate([partition[int(k)] for k in clients] or [clients])
    largest = int(partition.sizes[clients].max(initial=1))
    steps = client.steps or client.epochs * -(-largest // (client.batch_size or largest))
    lr = client.lr * client.lr_decay ** ((round_number - 1) // client.lr_decay_every)
    change = after.astype(np.float64) - start
    return Observation(model, start, change, len(indices), lr, steps, clients, indices, names)


def _cohort(clients: Sequence[int] | None, registered: int) -> NDArray[np.intp]:
    if clients is None:
        return np.arange(registered)
    check_instance("clients", clients, Sequence | np.ndarray, "a list of partition ids")
    ids = [check_integer("clients", client, 0, registered - 1) for client in clients]
    if not ids or len(set(ids)) < len(ids):
        raise ConfigError(f"clients is {shorten(clients)}; allowed: at least one partition id, each once")
    return np.sort(np.array(ids, dtype=np.intp))


def _server_step(state: RunState, grid: RoundGrid, arrays: Any, round_number: int) -> tuple[RoundOutcome, Array]:
    """Let the server sample a cohort and combine its updates; return the outcome and the new global weights."""
    strategy = state.strategy
    if not isinstance(strategy, FedAvg):
        raise ConfigError(f"the server is Flower's {type(strategy).__name__}; allowed: a server of fedsim.servers")
    strategy.streams = True
    messages = strategy.configure_train(round_number, arrays, ConfigRecord(), grid)
    outcome = grid.send_and_receive(messages)
    made, _ = strategy.aggregate_train(round_number, outcome)
    return outcome, records.to_flat(state.model, arrays if made is None else made)
