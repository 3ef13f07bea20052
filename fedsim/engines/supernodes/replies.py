"""What SuperNodes send, checked before it counts. Nothing here trusts a message, and nothing here sends one.

Three questions are asked of a reply, each answered with a sentence or with arrays: is it made of the arrays that this
round's strategy sends, are they about the clients that were asked, and can the server compute with their numbers?
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import Any

import flwr.app
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedsim.clients.task import Task, Update
from fedsim.engines.client_state import ClientState
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.fingerprint import difference
from fedsim.errors import FedsimError
from fedsim.flower import internals
from fedsim.splits import Partition
from fedsim.text import printable
from fedsim.updates.transform import Pipeline

Array = NDArray[Any]
#: Name -> the shape of a client's row, and the dtype.
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

#: Names of the records of a message to a SuperNode.
WEIGHTS, ORDER = "fedsim.weights", "fedsim.order"
#: Names of a reply's records: arrays with a row per client; why other clients have none.
RESULT, FAILED = "fedsim.result", "fedsim.failed"
#: Prefixes of what a reply holds besides weights.
UP, ENCODED = "up.", "encoded."
#: Examples on which the server learns what a strategy sends.
SAMPLE = 10
#: Clients on which it tries to learn it.
TRIALS = 3
#: Longest reason that is kept of an error message.
LONGEST = 300


class ReplyError(Exception):
    """A reply that does not count; says why."""


@dataclass(frozen=True)
class Hello:
    """Which partition a SuperNode is, and of how many."""

    partition: int
    of: int


def read_hello(content: RecordDict, own: Mapping[str, Any], most: int) -> Hello:
    """Return what a SuperNode says about itself.

    Parameters
    ----------
    content : RecordDict
    own : mapping
        The fingerprint of the server's data.
    most : int
        Largest number of partitions that makes sense.

    Raises
    ------
    ReplyError
        It says nothing of use, or has other data than the server.
    """
    record = content.get(RESULT)
    said = record if isinstance(record, ConfigRecord) else ConfigRecord()
    numbers = [said.get(name) for name in ("partition-id", "num-partitions")]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise ReplyError("it did not say which partition it is")
    partition, of = int(numbers[0]), int(numbers[1])  # type: ignore[arg-type]
    if not 1 <= of <= most:
        raise ReplyError(f"it says num-partitions={of}; allowed: 1 to {most}")
    if not 0 <= partition < of:
        raise ReplyError(f"it says partition-id={partition} with num-partitions={of}; allowed: 0 to {of - 1}")
    try:
        differs = difference(own, said)
    except (TypeError, ValueError, OverflowError):
        differs = "it sent no fingerprint of its data"
    if differs:
        raise ReplyError(f"it has other data than the server: {differs}")
    return Hello(partition, of)


def columns_of(update: Update) -> dict[str, Array]:
    """Return the arrays that a SuperNode sends after training, a row per client."""
    columns: dict[str, Array] = {name: getattr(update, name) for name in ("partition_ids", "num_examples")}
    if update.encoded:
        columns |= {ENCODED + name: rows for name, rows in update.encoded.items()}
    else:
        columns["weights"] = update.weights
    columns["train_loss"] = update.train_loss
    return columns | {UP + name: rows for name, rows in update.up.items()}


#: What a SuperNode sends after evaluation.
EVALUATION: Layout = {
    "partition_ids": ((), np.dtype(np.int64)),
    "num_examples": ((), np.dtype(np.int64)),
    "loss": ((), np.dtype(np.float64)),
    "accuracy": ((), np.dtype(np.float64)),
}


def training_layout(runtime: ClientRuntime, task: Task, clients: NDArray[np.intp]) -> Layout:
    """Return what a client of this round's strategy sends, learnt by training one on a few of its examples.

    Parameters
    ----------
    clients : ndarray of int, shape (clients,)
        The cohort. A strategy may fail for a client; then another one is tried.

    Raises
    ------
    ReplyError
        The strategy fails for each client that was tried.
    """
    reason = ""
    for client in clients[:TRIALS]:
        few = task.partition[int(client)][:SAMPLE]
        sizes = np.zeros(len(task.partition), dtype=np.intp)
        sizes[client] = len(few)
        trial, one = replace(task, partition=Partition.from_sizes(few, sizes)), np.array([client])
        try:
            update = runtime.train(trial, one, partial(runtime.load_state, trial, ClientState(len(sizes))))
        except FedsimError as error:
            reason = first_line(str(error))
            continue
        if update.failed:
            reason = update.failed[int(client)].reason
            continue
        return {name: (rows.shape[1:], rows.dtype) for name, rows in columns_of(update).items()}
    raise ReplyError(f"{type(task.strategy).__name__} fails on the server too: {reason}")


def failures_record(failed: Mapping[int, FedsimError]) -> ConfigRecord:
    """Return why clients have no rows, as a SuperNode sends it."""
    return ConfigRecord({str(client): error.reason for client, error in failed.items()})


def read_failures(content: RecordDict, clients: NDArray[np.intp]) -> dict[int, str]:
    """Return which of the clients have failed by their SuperNode's account, and why."""
    record = content.get(FAILED)
    said = record if isinstance(record, ConfigRecord) else ConfigRecord()
    reasons = {int(client): said.get(str(client)) for client in clients}
    return {client: first_line(reason) for client, reason in reasons.items() if isinstance(reason, str)}


def read_columns(content: RecordDict, layout: Layout, clients: NDArray[np.intp]) -> dict[str, Array]:
    """Return the arrays of a reply, with a row for each of the clients, in the reply's order.

    Raises
    ------
    ReplyError
        They are not of this layout, or about other clients.
    """
    record = content.get(RESULT)
    arrays = dict(record.items()) if isinstance(record, ArrayRecord) else {}
    if unknown := sorted(arrays.keys() - layout.keys()):
        raise ReplyError(f"its SuperNode sent {unknown[0][:40]!r}, which was not asked for")
    columns = {}
    for name, (row, dtype) in layout.items():
        if name not in arrays:
            raise ReplyError(f"its SuperNode sent no {name}")
        try:
            columns[name] = read_array(arrays[name], (len(clients), *row), dtype)
        except ReplyError as refused:
            raise ReplyError(f"its SuperNode sent {name} {refused}") from None
    if sorted(columns["partition_ids"].tolist()) != sorted(clients.tolist()):
        raise ReplyError("its SuperNode answered for other clients")
    return columns


def read_array(array: flwr.app.Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the values of an array that has come by message; nothing is allocated before its size is known.

    Raises
    ------
    ReplyError
        It is no array of that shape and dtype.
    """
    if isinstance(array, internals.Array):  # it has not left this process
        values, start, data = array.__dict__["values"], 0, b""
        found, order, kind = values.shape, False, values.dtype
    else:
        data, values = array.data, None
        try:
            stream = BytesIO(data)
            version = np.lib.format.read_magic(stream)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, order, kind = header(stream)
            start = stream.tell()
        except Exception:  # whatever a parser makes of a stranger's bytes
            raise ReplyError("of bytes that are no array") from None
    if found != shape or (kind.kind, kind.itemsize) != (dtype.kind, dtype.itemsize):
        raise ReplyError(f"of shape {str(found)[:60]} and dtype {str(kind)[:20]}; expected {shape} and {dtype}")
    if values is None:
        if len(data) - start != math.prod(shape) * dtype.itemsize:
            raise ReplyError(f"of {len(data) - start} bytes; expected {math.prod(shape) * dtype.itemsize}")
        flat = np.frombuffer(data, kind, offset=start)
        values = flat.reshape(shape[::-1]).T if order else flat.reshape(shape)
    result: Array = values.astype(dtype, copy=False)
    return result


def unsound(sent: Mapping[str, Array], dtype: str) -> dict[int, str]:
    """Return why the server cannot compute with some clients' numbers, by row.

    A client that has diverged says so by its training loss; this is about those that do not.

    Parameters
    ----------
    sent : mapping of str to ndarray, shape (clients, ...)
    dtype : str
        Of the network: a row that is longer than its largest number overflows wherever it is used.
    """
    wrong: dict[int, str] = {}
    for name, rows in sent.items():
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        finite = np.asarray(np.isfinite(flat).all(axis=1))
        with np.errstate(all="ignore"):
            longest = np.sqrt(np.square(flat).sum(axis=1))
        for row in np.flatnonzero(~finite | (longest > np.finfo(dtype).max)):
            what = f"too large for {dtype}" if finite[row] else "that are not finite"
            wrong.setdefault(int(row), f"its SuperNode sent {name} {what}")
    return wrong


def first_line(text: str | None) -> str:
    """Return the first line of an error message that has come by message."""
    return printable(((text or "").strip() or "no reason given").splitlines()[0][:LONGEST])


def read_reply(
    kind: str, runtime: ClientRuntime, task: Task, clients: NDArray[np.intp], content: RecordDict, layout: Layout
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Check a SuperNode's reply against what the server knows.

    Parameters
    ----------
    kind : {"train", "evaluate"}
    clients : ndarray of int, shape (clients,)
        Whom the SuperNode was asked for.
    layout : Layout
        The arrays that it should have sent.

    Returns
    -------
    rows : dict of int to dict
        Partition id -> what counts of the client, by name.
    failed : dict of int to str
        Partition id -> why nothing of the client counts.
    """
    failed = read_failures(content, clients)
    clients = np.array([c for c in clients if int(c) not in failed], dtype=np.intp)
    try:
        columns = read_columns(content, layout, clients)
        if kind == "train" and runtime.pipeline:
            columns["weights"] = _decoded(runtime.pipeline, task, columns)
    except ReplyError as reason:
        return {}, failed | dict.fromkeys(map(int, clients), str(reason))
    ids = columns["partition_ids"]
    held = (task.partition if kind == "train" else runtime.partition_test).sizes[ids]
    wrong = _unsound_training(columns, runtime) if kind == "train" else _unsound_evaluation(columns, runtime)
    for row in np.flatnonzero(columns["num_examples"] != held):
        number = columns["num_examples"][row]
        wrong[int(row)] = f"its SuperNode sent num_examples of {number}; the client has {held[row]}"
    rows = {
        int(client): {name: values[row] for name, values in columns.items()}
        for row, client in enumerate(ids)
        if row not in wrong
    }
    return rows, failed | {int(ids[row]): reason for row, reason in wrong.items()}


def _decoded(pipeline: Pipeline, task: Task, columns: Mapping[str, Array]) -> Array:
    """Return the weights that encoded arrays stand for."""
    sent = {name.removeprefix(ENCODED): rows for name, rows in columns.items() if name.startswith(ENCODED)}
    try:
        with np.errstate(all="ignore"):
            change = pipeline.decode(sent, task.seed, task.round, columns["partition_ids"])
            weights: Array = task.global_weights + change
    except (KeyError, ValueError, IndexError):
        raise ReplyError("its SuperNode sent compressed weights that cannot be decoded") from None
    return weights


def _unsound_training(columns: Mapping[str, Array], runtime: ClientRuntime) -> dict[int, str]:
    """Return, by row, which clients do not say that they have diverged, and still cannot be aggregated."""
    finite = np.flatnonzero(np.isfinite(columns["train_loss"]))
    if not len(finite):
        return {}
    sent = {name: rows[finite] for name, rows in columns.items() if name == "weights" or name.startswith(UP)}
    return {int(finite[row]): reason for row, reason in unsound(sent, runtime.model.dtype).items()}


def _unsound_evaluation(columns: Mapping[str, Array], runtime: ClientRuntime) -> dict[int, str]:
    """Return, by row, which clients' scores are impossible."""
    wrong = {}
    least, most = 0.0 if runtime.variance is None else -np.inf, float(np.finfo(runtime.model.dtype).max)
    for row, (loss, accuracy) in enumerate(zip(columns["loss"], columns["accuracy"], strict=True)):
        if not (np.isfinite(loss) and np.isfinite(accuracy)):
            wrong[row] = "its SuperNode sent a loss or accuracy that is not finite"
        elif max(abs(loss), abs(accuracy)) > most:
            wrong[row] = f"its SuperNode sent a loss or accuracy too large for {runtime.model.dtype}"
        elif loss < 0 or not least <= accuracy <= 1:
            wrong[row] = f"its SuperNode sent a loss of {loss:g} and an accuracy of {accuracy:g}"
    return wrong
