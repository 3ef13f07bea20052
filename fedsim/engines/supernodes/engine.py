"""The engine that trains clients on Flower's SuperNodes, in Flower's simulation or on real machines.

Each SuperNode serves one of N partitions: SuperNode i has the clients whose partition id is i modulo N (one client if N
is the number of clients). In a round every SuperNode receives one message for all of its sampled clients and sends one
reply, which `fedsim.engines.supernodes.replies` validates.

Client state stays on the client's SuperNode, in Flower's context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsim import clients as client_strategies
from fedsim.clients import ClientStrategy
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.blocks import Blocks
from fedsim.engines.client_state import ClientState
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.arrays import Layout, ReplyError, first_line, read_columns
from fedsim.engines.supernodes.delivery import send_and_receive
from fedsim.engines.supernodes.fingerprint import fingerprint
from fedsim.engines.supernodes.replies import (
    ENCODED,
    ORDER,
    SECURE,
    SECURE_QUERY,
    UP,
    WEIGHTS,
    evaluation_layout,
    read_reply,
    training_layout,
)
from fedsim.engines.supernodes.roster import Roster
from fedsim.engines.threads import worker_count
from fedsim.engines.workers import Workers
from fedsim.errors import ClientError
from fedsim.flower import records
from fedsim.objects import classes_of, to_text
from fedsim.secure.clients import answer_layout

Array = NDArray[Any]
Indices = NDArray[np.intp]
#: Partition id -> the client's row of each array, by name.
Rows = dict[int, dict[str, Any]]


class RemoteState:
    """Client state on SuperNodes, which use the state after the last update that the server accepted.

    Parameters
    ----------
    runtime : ClientRuntime

    Attributes
    ----------
    accepted_rounds : ndarray of int, shape (clients,)
        Round of the last accepted update of each client; 0 for none.
    """

    def __init__(self, runtime: ClientRuntime) -> None:
        self._runtime = runtime
        self.accepted_rounds = np.zeros(len(runtime.partition), np.int64)

    def commit(self, round_number: int, updates: Sequence[Update]) -> None:
        """Record the clients whose updates an accepted round has aggregated."""
        for update in updates:
            self.accepted_rounds[update.partition_ids] = round_number

    def state_dict(self) -> dict[str, Array] | None:
        """Return an empty state; None if clients have state, which is on their SuperNodes."""
        return None if self._runtime.keeps_state(self._runtime.client) else ClientState(0).state_dict()

    def load_state_dict(self, state: Mapping[str, Array] | None) -> None:
        """Resume an interrupted run; FedsimError if clients have state."""
        ClientState(0).load_state_dict(None if state is None else self.state_dict())


class SuperNodeEngine:
    """Trains clients on SuperNodes.

    Parameters
    ----------
    runtime : ClientRuntime
    workers : int, optional
        Threads for evaluation on the test set; default as for `ThreadEngine`.
    block_size : int, optional
        Updates that are aggregated together; default by the size of the model.
    grid : Grid
        Flower's.
    nodes, wait, on_failure
        As for `Roster`.
    timeout : float, optional
        Seconds after which a SuperNode without a reply has failed in this round; default: no limit.
    retries : int
        Number of times that SuperNodes that failed are asked again in the same round.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        *,
        workers: int | None = None,
        block_size: int | None = None,
        grid: Grid,
        nodes: int = 1,
        wait: float = 120.0,
        timeout: float | None = None,
        retries: int = 0,
        on_failure: str = "raise",
    ) -> None:
        count = worker_count(runtime, workers)
        self.runtime, self.workers, self.blocks = runtime, Workers(count), Blocks(runtime, count, block_size)
        self.client_state = RemoteState(runtime)
        self.grid, self._timeout, self._retries = grid, timeout, retries
        self.roster = Roster(
            grid, nodes, wait, on_failure, fingerprint(runtime.federated), max(nodes, len(runtime.partition))
        )

    def __enter__(self) -> Self:
        self.runtime.prepare()
        self.workers.__enter__()
        try:
            self.roster.wait()
        except BaseException:
            self.workers.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.workers.__exit__(*details)

    def train(self, task: Task, clients: Indices) -> Iterator[Update]:
        """Train clients; see `Engine`."""
        rows, failed = self._ask("train", task, clients)
        for block in self.blocks.for_training(task, clients):
            known, lost = _split(block, rows, failed)
            if not len(known):
                yield Update.without_rows(self.runtime.model, lost)
                continue
            found = [rows[int(client)] for client in known]
            columns = {name: np.array([row[name] for row in found]) for name in found[0]}
            up = {name.removeprefix(UP): values for name, values in columns.items() if name.startswith(UP)}
            encoded = {n.removeprefix(ENCODED): values for n, values in columns.items() if n.startswith(ENCODED)}
            sizes, loss = task.partition.sizes[known], columns["train_loss"]
            if self.runtime.secure:
                weights, unknown = np.empty((len(known), 0), self.runtime.model.dtype), np.full(len(known), np.nan)
                yield Update(known, sizes, weights, loss, encoded=encoded, update_norm=unknown, failed=lost)
                continue
            update = Update(known, sizes, columns["weights"], loss, up, encoded=encoded, failed=lost)
            with np.errstate(all="ignore"):
                yield self.runtime.with_norms(task, update)

    def exchange(
        self, task: Task, step: str, clients: Indices, sent: Mapping[str, Array]
    ) -> tuple[Indices, dict[str, Array], dict[int, ClientError]]:
        """Exchange arrays with clients in a step of secure aggregation; see `Engine`."""
        if step == "keys":
            self.roster.update()  # a SuperNode may have returned, as in `_ask`, which is not called without keys
        name, row, dtype = answer_layout(step, sent["public" if step == "shares" else "shares"].shape[1] if sent else 0)
        layout: Layout = {"partition_ids": ((), np.dtype(np.int64)), name: (row, dtype)}
        failed: dict[int, str] = {}
        answers: dict[int, Array] = {}
        messages, asked = [], self._by_node(clients, failed)
        for node, own in asked.items():
            order = ConfigRecord({"round": task.round, "step": step, "clients": [int(c) for c in own]})
            rows = {name: values[np.isin(clients, own)] for name, values in sent.items()}
            content = RecordDict({ORDER: order, SECURE: records.record(rows)})
            messages.append(Message(content, node, SECURE_QUERY, group_id=str(task.round)))
        for node, reply in self._replies(messages, asked, failed):
            try:
                columns = read_columns(reply.content, layout, asked[node])
            except ReplyError as error:
                failed |= dict.fromkeys(map(int, asked[node]), str(error))
                continue
            answers |= dict(zip(columns["partition_ids"].tolist(), columns[name], strict=True))
        kept = np.array([c for c in clients.tolist() if c in answers], dtype=np.intp)
        stacked = np.array([answers[c] for c in kept.tolist()], dtype).reshape(len(kept), *row)
        return kept, {name: stacked}, {c: ClientError(c, task.round, reason) for c, reason in failed.items()}

    def evaluate(self, task: Task, clients: Indices) -> Iterator[Evaluation]:
        """Evaluate clients; see `Engine`."""
        rows, failed = self._ask("evaluate", task, clients)
        for block in self.blocks.for_evaluation(clients):
            known, lost = _split(block, rows, failed)
            names = evaluation_layout(self.runtime)
            columns = {name: np.array([rows[int(c)][name] for c in known]) for name in names}
            measured = {name: columns[name] for name in self.runtime.measures} if len(known) else {}
            sizes = self.runtime.partition_test.sizes[known]
            yield Evaluation(known, sizes, columns["loss"], columns["accuracy"], lost, measured)

    def _ask(self, kind: str, task: Task, clients: Indices) -> tuple[Rows, dict[int, ClientError]]:
        """Return each client's rows, and the errors of clients without rows, by partition id."""
        rows: Rows = {}
        failed: dict[int, str] = {}
        content = {WEIGHTS: records.record({"weights": task.global_weights})}  # serialised once
        if task.down:
            content[records.DOWN] = records.record(task.down)
        try:
            layout = (
                training_layout(self.runtime, task, clients) if kind == "train" else evaluation_layout(self.runtime)
            )
            waiting = clients
        except ReplyError as error:
            failed, waiting = dict.fromkeys(map(int, clients), str(error)), clients[:0]
        for _ in range(1 + self._retries):
            if not len(waiting):
                break
            self.roster.update()  # a SuperNode may have returned, with another partition
            failed = {}
            messages, sent = self._messages(kind, task, waiting, content, failed)
            for node, reply in self._replies(messages, sent, failed):
                found, lost = read_reply(kind, self.runtime, task, sent[node], reply.content, layout)
                rows |= found
                failed |= lost
            waiting = np.array([c for c in waiting if int(c) in failed], dtype=np.intp)
        return rows, {client: ClientError(client, task.round, reason) for client, reason in failed.items()}

    def _messages(
        self, kind: str, task: Task, clients: Indices, content: Mapping[str, ArrayRecord], failed: dict[int, str]
    ) -> tuple[list[Message], dict[int, Indices]]:
        """Return a message to each SuperNode, and by node id the clients that it is asked for."""
        messages, sent = [], self._by_node(clients, failed)
        for node, own in sent.items():
            order = ConfigRecord(
                {
                    "round": task.round,
                    "client": to_text(task.strategy, classes_of(client_strategies, ClientStrategy)),
                    "clients": [int(c) for c in own],
                    "accepted": [int(number) for number in self.client_state.accepted_rounds[own]],
                    "purpose": int(task.purpose),
                }
            )
            messages.append(Message(RecordDict({**content, ORDER: order}), node, kind, group_id=str(task.round)))
        return messages, sent

    def _by_node(self, clients: Indices, failed: dict[int, str]) -> dict[int, Indices]:
        """Return the clients that each SuperNode serves, by node id; record why the others are not served."""
        served = {}
        partitions = clients % self.roster.num_partitions
        for partition in np.unique(partitions):
            own = clients[partitions == partition]
            node = self.roster.hosts.get(int(partition))
            if node is None:
                failed |= dict.fromkeys(map(int, own), self.roster.missing(int(partition)))
            else:
                served[node] = own
        return served

    def _replies(
        self, messages: Sequence[Message], sent: Mapping[int, Indices], failed: dict[int, str]
    ) -> Iterator[tuple[int, Message]]:
        """Send messages and yield each SuperNode's first reply, if it has content; record the other failures."""
        answered, link_error = set(), ""
        for reply in send_and_receive(self.grid, messages, self._timeout) if messages else []:
            node = reply.metadata.src_node_id
            if node not in sent:  # from the SuperLink, for a SuperNode that is gone
                link_error = first_line(reply.error.reason) if reply.has_error() else ""
            elif node not in answered:
                answered.add(node)
                if reply.has_content() and reply.metadata.group_id == messages[0].metadata.group_id:
                    yield node, reply
                    continue
                error = f"failed: {first_line(reply.error.reason)}" if reply.has_error() else "answered another message"
                failed |= dict.fromkeys(map(int, sent[node]), f"SuperNode {node} {error}")
        for node, own in sent.items():
            if node not in answered:
                within = f" within {self._timeout:g} s" if self._timeout else ""
                why = f": {link_error}" if link_error else within
                failed |= dict.fromkeys(map(int, own), f"SuperNode {node} did not answer{why}")


def _split(
    block: Indices, rows: Mapping[int, Any], failed: Mapping[int, ClientError]
) -> tuple[Indices, dict[int, ClientError]]:
    """Return the clients of a block that have rows, and the errors of the others."""
    known = np.array([client for client in block if int(client) in rows], dtype=np.intp)
    return known, {int(client): failed[int(client)] for client in block if int(client) in failed}
