"""The SuperNode's side of `fedsim.engines.supernodes.engine`: it handles the server's messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from fedsim import clients as client_strategies
from fedsim.clients import ClientStrategy
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.fingerprint import fingerprint
from fedsim.engines.supernodes.replies import EVALUATION, FAILED, ORDER, SECURE, WEIGHTS, columns_of
from fedsim.engines.supernodes.state import NodeState
from fedsim.errors import FedsimError
from fedsim.flower import records
from fedsim.objects import class_name, classes_of, from_text
from fedsim.secure.clients import SecureClients
from fedsim.streams import Purpose

#: Name of the record in Flower's context with the client state.
STATE = "fedsim.state."


def received_client(text: str, own: type[ClientStrategy]) -> ClientStrategy:
    """Return the client strategy that a message names: one of fedsim's, or of the class `own`; nothing is imported.

    Raises
    ------
    ConfigError
        As for `fedsim.objects.from_text`.
    """
    known = classes_of(client_strategies, ClientStrategy)
    made: ClientStrategy = from_text("client", text, known | {class_name(own, known): own})
    return made


def hello(message: Message, context: Context, runtime: ClientRuntime) -> Message:
    """Reply with the partition that this SuperNode serves, the number of partitions, and a fingerprint of its data."""
    config = context.node_config
    if "partition-id" not in config or "num-partitions" not in config:
        raise FedsimError("its node config lacks partition-id and num-partitions")
    numbers = {name: int(config[name]) for name in ("partition-id", "num-partitions")}
    record = ConfigRecord({**numbers, **fingerprint(runtime.federated)})
    return Message(RecordDict({RESULT: record}), reply_to=message)


def exchange(message: Message, context: Context, runtime: ClientRuntime) -> Message:
    """Answer for the clients that a message names in a step of secure aggregation; see `fedsim.secure.clients`."""
    order = message.content.config_records[ORDER]
    sent = {name: array.numpy() for name, array in message.content.array_records[SECURE].items()}
    ids, secure = np.array(order["clients"], dtype=np.intp), _secure_clients(context, runtime)
    answers = secure.answer(str(order["step"]), int(order["round"]), ids, sent)  # type: ignore[arg-type]
    context.state[SECURE] = records.record(secure.state)
    return Message(RecordDict({RESULT: records.record({"partition_ids": ids, **answers})}), reply_to=message)


def _secure_clients(context: Context, runtime: ClientRuntime) -> SecureClients:
    """Return this SuperNode's clients with their secrets, which are in Flower's context."""
    if runtime.secure is None:
        raise FedsimError("the experiment has no secure aggregation")
    record: Mapping[str, Any] = context.state.array_records.get(SECURE, ArrayRecord())
    return runtime.secure.with_state({name: array.numpy() for name, array in record.items()})


def answer(message: Message, context: Context, runtime: ClientRuntime, kind: str) -> Message:
    """Train or evaluate the clients that a message names, and reply with the results."""
    content = message.content
    order = content.config_records[ORDER]
    weights = content.array_records[WEIGHTS]["weights"].numpy()
    down = {name: array.numpy() for name, array in content.array_records.get(records.DOWN, {}).items()}
    client = received_client(str(order["client"]), type(runtime.client))
    clients = np.array(order["clients"], dtype=np.intp)
    task = runtime.task(weights, int(order["round"]), client, down, Purpose(order["purpose"]))  # type: ignore[arg-type]
    if runtime.secure:
        task = replace(task, protect=_secure_clients(context, runtime).protect)
    state = None
    if runtime.keeps_state(client):
        record: Mapping[str, Any] = context.state.array_records.get(STATE, ArrayRecord())
        state = NodeState(len(task.partition), {name: array.numpy() for name, array in record.items()})
        state.accept(clients, np.array(order["accepted"], dtype=np.intp))

    def load_state(some: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        return runtime.load_state(task, state, some) if state is not None else {}

    if kind == "evaluate":
        scores = runtime.evaluate(task, clients, load_state)
        failed, columns = scores.failed, {name: getattr(scores, name) for name in EVALUATION} | {**scores.measured}
    else:
        update = runtime.train(task, clients, load_state)
        failed, columns = update.failed, columns_of(update)
        if state is not None:
            state.store(update.partition_ids, update.state, task.round)
            context.state[STATE] = records.record(state.state_dict())
    reply = RecordDict({RESULT: records.record(columns)})
    if failed:
        reply[FAILED] = ConfigRecord({str(client): error.reason for client, error in failed.items()})
    return Message(reply, reply_to=message)
