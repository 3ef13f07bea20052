"""Validation of the replies of SuperNodes, which the server does not trust.

A reply is valid if it consists of the arrays that this round's strategy sends, with a row for each requested client,
and if the server can compute with their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedsim.clients.sgd import overrides
from fedsim.clients.task import Task, Update
from fedsim.engines.client_state import ClientState
from fedsim.engines.runtime import GROUP_COUNTS, ClientRuntime
from fedsim.engines.supernodes.arrays import RESULT, Layout, ReplyError, first_line, invalid_rows, read_columns
from fedsim.engines.supernodes.fingerprint import difference
from fedsim.errors import FedsimError
from fedsim.splits import Partition
from fedsim.text import describe
from fedsim.updates.transform import Pipeline

Array = NDArray[Any]

#: Names of the records of a message to a SuperNode.
WEIGHTS, ORDER = "fedsim.weights", "fedsim.order"
#: Record of the arrays of a step of secure aggregation, and the type of its messages.
SECURE, SECURE_QUERY = "fedsim.secure", "query.secure"
#: Name of the record with the reasons for clients without rows.
FAILED = "fedsim.failed"
#: Prefixes of the arrays that a reply has besides the weights.
UP, ENCODED = "up.", "encoded."
#: Largest number of clients that the server trains to find the arrays that a strategy sends, and of examples of each.
TRIAL_CLIENTS, TRIAL_EXAMPLES = 3, 10


@dataclass(frozen=True)
class Hello:
    """The partition that a SuperNode serves, and the number of partitions."""

    partition: int
    num_partitions: int


def read_hello(content: RecordDict, own: Mapping[str, Any], max_partitions: int) -> Hello:
    """Return the partition that a SuperNode serves.

    Parameters
    ----------
    content : RecordDict
    own : mapping
        The fingerprint of the server's data.
    max_partitions : int
        Largest valid number of partitions.

    Raises
    ------
    ReplyError
        The partition is missing or not valid, or the SuperNode's data differs from the server's.
    """
    record = content.get(RESULT)
    sent = record if isinstance(record, ConfigRecord) else ConfigRecord()
    partition, count = sent.get("partition-id"), sent.get("num-partitions")
    if type(partition) is not int or type(count) is not int:
        raise ReplyError("it did not say which partition it is")
    if not 1 <= count <= max_partitions:
        raise ReplyError(f"it says num-partitions={count}; allowed: 1 to {max_partitions}")
    if not 0 <= partition < count:
        raise ReplyError(f"it says partition-id={partition} with num-partitions={count}; allowed: 0 to {count - 1}")
    try:
        differs = difference(own, sent)
    except (TypeError, ValueError, OverflowError):
        differs = "it sent no fingerprint of its data"
    if differs:
        raise ReplyError(f"it has other data than the server: {differs}")
    return Hello(partition, count)


def columns_of(update: Update) -> dict[str, Array]:
    """Return the arrays that a SuperNode sends after training, a row per client."""
    encoded = {ENCODED + name: rows for name, rows in update.encoded.items()}
    return {
        "partition_ids": update.partition_ids,
        "num_examples": update.num_examples,
        **(encoded or {"weights": update.weights}),
        "train_loss": update.train_loss,
        **{UP + name: rows for name, rows in update.up.items()},
    }


#: The arrays that a SuperNode sends after evaluation.
EVALUATION: Layout = {
    **dict.fromkeys(("partition_ids", "num_examples"), ((), np.dtype(np.int64))),
    **dict.fromkeys(("loss", "accuracy"), ((), np.dtype(np.float64))),
}


def evaluation_layout(runtime: ClientRuntime) -> Layout:
    """Return the arrays that a SuperNode sends after evaluation, with those of the experiment's measures."""
    return {**EVALUATION, **{name: (measure.shape, measure.dtype) for name, measure in runtime.measures.items()}}


def training_layout(runtime: ClientRuntime, task: Task, clients: NDArray[np.intp]) -> Layout:
    """Return the arrays that a client of this round's strategy sends, found by training one on a few examples.

    Parameters
    ----------
    runtime : ClientRuntime
    task : Task
    clients : ndarray of int, shape (clients,)
        The cohort. If the strategy fails for a client, another one is tried.

    Raises
    ------
    ReplyError
        The strategy fails for each client that was tried.
    """
    reason = ""
    for client in clients[:TRIAL_CLIENTS]:
        few = task.partition[int(client)][:TRIAL_EXAMPLES]
        sizes = np.zeros(len(task.partition), dtype=np.intp)
        sizes[client] = len(few)
        trial, one = replace(task, partition=Partition.from_sizes(few, sizes)), np.array([client])
        if runtime.secure:
            trial = replace(trial, protect=runtime.secure.without_neighbours(int(client), task.round).protect)
        try:
            update = runtime.train(trial, one, partial(runtime.load_state, trial, ClientState(len(sizes))))
        except FedsimError as error:
            reason = first_line(str(error))
            continue
        if not update.failed:
            return {name: (rows.shape[1:], rows.dtype) for name, rows in columns_of(update).items()}
        reason = update.failed[int(client)].reason
    raise ReplyError(f"{type(task.strategy).__name__} fails on the server too: {reason}")


def read_failures(content: RecordDict, clients: NDArray[np.intp]) -> dict[int, str]:
    """Return the clients that have failed according to their SuperNode, with the reasons."""
    record = content.get(FAILED)
    sent = record if isinstance(record, ConfigRecord) else ConfigRecord()
    reasons = {int(client): sent.get(str(client)) for client in clients}
    return {client: first_line(reason) for client, reason in reasons.items() if isinstance(reason, str)}


def read_reply(
    kind: str, runtime: ClientRuntime, task: Task, clients: NDArray[np.intp], content: RecordDict, layout: Layout
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return the valid rows of a SuperNode's reply.

    Parameters
    ----------
    kind : {"train", "evaluate"}
    runtime : ClientRuntime
    task : Task
    clients : ndarray of int, shape (clients,)
        The clients that the SuperNode was asked for.
    content : RecordDict
    layout : Layout
        The expected arrays.

    Returns
    -------
    rows : dict of int to dict
        Partition id -> the client's row of each array, by name.
    failed : dict of int to str
        Partition id -> reason for which the client has no valid row.
    """
    failed = read_failures(content, clients)
    clients = np.array([c for c in clients if int(c) not in failed], dtype=np.intp)
    try:
        columns = read_columns(content, layout, clients)
        if kind == "train" and runtime.pipeline and not runtime.secure:
            columns["weights"] = _decoded(runtime.pipeline, task, columns)
    except ReplyError as reason:
        return {}, failed | dict.fromkeys(map(int, clients), str(reason))
    ids = columns["partition_ids"]
    held = (task.partition if kind == "train" else runtime.partition_test).sizes[ids]
    invalid = _invalid_updates(columns, runtime, task) if kind == "train" else _invalid_scores(columns, runtime)
    for row in np.flatnonzero(columns["num_examples"] != held):
        number = columns["num_examples"][row]
        invalid[int(row)] = f"its SuperNode sent num_examples of {number}; the client has {held[row]}"
    rows = {
        int(client): {name: values[row] for name, values in columns.items()}
        for row, client in enumerate(ids)
        if row not in invalid
    }
    return rows, failed | {int(ids[row]): reason for row, reason in invalid.items()}


def _decoded(pipeline: Pipeline, task: Task, columns: Mapping[str, Array]) -> Array:
    """Return the weights that clients have sent encoded."""
    sent = {name.removeprefix(ENCODED): rows for name, rows in columns.items() if name.startswith(ENCODED)}
    try:
        with np.errstate(all="ignore"):
            change = pipeline.decode(sent, task.seed, task.round, columns["partition_ids"])
            weights: Array = task.global_weights + change
    except Exception as error:  # a transform may raise anything on arbitrary numbers
        raise ReplyError(f"its SuperNode sent an update that cannot be decoded: {describe(error)}") from None
    return weights


def _invalid_updates(columns: Mapping[str, Array], runtime: ClientRuntime, task: Task) -> dict[int, str]:
    """Return the rows that the server cannot use among the clients that have not diverged, by their training loss."""
    finite = np.flatnonzero(np.isfinite(columns["train_loss"]))
    if not len(finite):
        return {}
    sent = {name: rows[finite] for name, rows in columns.items() if name == "weights" or name.startswith(UP)}
    invalid = _unweighable(task, sent, columns["partition_ids"][finite]) | invalid_rows(sent, runtime.model.dtype)
    if _has_positive_loss(task):  # others may change the loss
        loss = columns["train_loss"][finite]
        invalid |= {int(k): f"its SuperNode sent a training loss of {loss[k]:.3g}" for k in np.flatnonzero(loss < 0)}
    for row, counts in enumerate(sent.get(UP + GROUP_COUNTS, ())):
        if refusal := runtime.measures["groups"].refusal(counts, columns["num_examples"][finite[row]]):
            invalid[row] = f"its SuperNode sent {refusal}"
    return {int(finite[row]): reason for row, reason in invalid.items()}


def _has_positive_loss(task: Task) -> bool:
    """Return whether a strategy has one of fedsim's losses, which are at least 0."""
    hook = getattr(type(task.strategy), "gradient", None)
    return hook is not None and hook.__module__.startswith("fedsim.")


def _unweighable(task: Task, sent: Mapping[str, Array], clients: NDArray[np.intp]) -> dict[int, str]:
    """Return the rows to which the client strategy gives no valid weight in the means, if it has weights of its own."""
    if not overrides(task.strategy, "weigh"):
        return {}
    up = {name.removeprefix(UP): rows for name, rows in sent.items() if name.startswith(UP)}
    try:
        with np.errstate(all="ignore"):
            weights = np.asarray(task.strategy.weigh(task.partition.sizes[clients], up), dtype=np.float64)
    except Exception as error:  # a strategy may raise anything on arbitrary numbers
        return dict.fromkeys(range(len(clients)), f"its SuperNode sent arrays without a weight: {describe(error)}")
    valid = (np.isfinite(weights) & (weights >= 0)).reshape(len(clients), -1).all(axis=1)
    return dict.fromkeys(np.flatnonzero(~valid).tolist(), "its SuperNode sent arrays that give it no valid weight")


def _invalid_scores(columns: Mapping[str, Array], runtime: ClientRuntime) -> dict[int, str]:
    """Return the rows with impossible scores, and the reasons."""
    invalid = {}
    low, high = 0.0 if runtime.variance is None else -np.inf, float(np.finfo(runtime.model.dtype).max)
    for row, (loss, accuracy) in enumerate(zip(columns["loss"], columns["accuracy"], strict=True)):
        if not (np.isfinite(loss) and np.isfinite(accuracy)):
            invalid[row] = "its SuperNode sent a loss or accuracy that is not finite"
        elif max(abs(loss), abs(accuracy)) > high:
            invalid[row] = f"its SuperNode sent a loss or accuracy too large for {runtime.model.dtype}"
        elif loss < 0 or not low <= accuracy <= 1:
            invalid[row] = f"its SuperNode sent a loss of {loss:g} and an accuracy of {accuracy:g}"
        else:
            for name, measure in runtime.measures.items():
                if refusal := measure.refusal(columns[name][row], columns["num_examples"][row]):
                    invalid[row] = f"its SuperNode sent {refusal}"
    return invalid
