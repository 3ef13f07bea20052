"""A client's round: calls of a strategy's `client_state`, `train` and `personalise`, and checks of their results."""

from __future__ import annotations

import numpy as np

from fedsim.arguments import refusal
from fedsim.clients.check_hooks import check_array, check_client_state, check_personal, check_state_update
from fedsim.clients.context import Context
from fedsim.clients.private import PRIVATE, private_groups, private_mask
from fedsim.clients.sgd import overrides
from fedsim.clients.strategy import ClientStrategy
from fedsim.clients.task import Task, Update
from fedsim.errors import DivergenceError
from fedsim.models import Array, Model
from fedsim.splits.names import describe_client
from fedsim.splits.partition import Indices


def has_client_state(strategy: ClientStrategy, model: Model) -> bool:
    """Return whether clients have state between rounds."""
    return overrides(strategy, "client_state") or bool(private_groups(strategy, model))


def personalises(strategy: ClientStrategy, model: Model) -> bool:
    """Return whether clients predict with weights other than the global ones."""
    return overrides(strategy, "personalise") or bool(private_groups(strategy, model))


def new_client_state(task: Task, clients: Indices) -> dict[str, Array]:
    """Return the client state before the first round, one row per client."""
    context = Context(task, clients, {})
    state = check_client_state(task.strategy, task.strategy.client_state(context), len(clients))
    mask = private_mask(task.strategy, task.model)
    if mask.any():
        state[PRIVATE] = np.repeat(task.global_weights[None, mask], len(clients), axis=0)
    return state


def run_local_round(task: Task, clients: Indices, state: dict[str, Array]) -> Update:
    """Train some clients in one round.

    Parameters
    ----------
    task : Task
    clients : ndarray of int, shape (clients,)
        Partition ids, none of an empty client, in order of falling size.
    state : dict of str to ndarray, shape (clients, ...)
        The clients' state; may be changed.
    """
    context = Context(task, clients, state, trains=True)
    strategy, rows, declared = task.strategy, len(clients), dict(state)
    shape = rows, task.model.num_parameters
    weights = check_array(strategy, "train", "train() returned", strategy.train(context), shape)
    if weights.dtype.kind != "f":
        raise refusal(strategy, "train", f"train() returned an array of {weights.dtype}; it must contain floats")
    weights = weights.astype(task.model.dtype, copy=False)
    loss = context.training_loss()
    if loss is None:  # without a fit, the loss at the start of the round
        loss = context.evaluate(context.start)[0]
    check_state_update(strategy, "train", context.state, declared)
    for name, values in context.up.items():
        check_array(strategy, "train", f"ctx.up[{name!r}] is", values, (rows, ...))
    if PRIVATE in state:
        mask = private_mask(strategy, task.model)
        context.state[PRIVATE] = weights[:, mask]
        weights = np.where(mask, task.global_weights, weights)  # a new array: state may refer to what train() returned
    own_train = overrides(strategy, "train")
    for sent in [*context.up.values(), *([weights] if own_train else [])]:
        loss[~np.isfinite(sent).reshape(rows, -1).all(axis=1)] = np.nan
    for values in (v for v in context.state.values() if v.dtype.kind == "f"):
        loss[np.isnan(values).reshape(rows, -1).any(axis=1)] = np.nan
    norm = None if own_train or PRIVATE in state else context.update_norm
    return Update(clients, context.num_examples, weights, loss, context.up, context.state, update_norm=norm)


def personalise(task: Task, clients: Indices, state: dict[str, Array]) -> Array:
    """Return the weights with which each client predicts, shape (clients, parameters) or (1, parameters).

    Raises
    ------
    DivergenceError
        A client's training diverged.
    ConfigError
        The strategy returned something else than finite weights.
    """
    context = Context(task, clients, state)
    weights = task.strategy.personalise(context)
    loss = context.training_loss()
    diverged = np.flatnonzero(np.isnan(0.0 if loss is None else loss))
    if len(diverged):
        client = describe_client(clients[diverged[0]], task.client_names)
        raise DivergenceError(
            f"training diverged in round {task.round} at {client} when {task.strategy} made the client's own model; "
            "a smaller learning rate usually helps"
        )
    return check_personal(task.strategy, weights, clients, task.model.num_parameters, task.client_names)
