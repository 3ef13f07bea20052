"""Clients on Flower's SuperNodes: in Flower's own simulation, or on real machines.

The server side is the in-process engine's: cohort, order, aggregation and test are the same code, and so are the bits.
Only where a block of clients is trained differs. Each SuperNode says, when asked, which partition it is and of how
many; SuperNode i of N holds the clients whose partition id is i modulo N (one each, where there are as many as
clients). In a round every SuperNode gets one message with all of its clients that were sampled, and sends one back.
Nothing that it sends is believed: `fedsim.engines.supernodes.replies` checks it against what the server knows.

What a client keeps between rounds stays on its SuperNode, in the context that Flower keeps there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsim.clients.base import Task, Update
from fedsim.study.config import client_text, received_client
from fedsim.flower import internals as flower
from fedsim.engines.supernodes.fingerprint import fingerprint
from fedsim.rounds.grid import InProcessGrid
from fedsim.engines.supernodes.replies import (
    ENCODED,
    EVALUATION,
    FAILED,
    RESULT,
    UP,
    Hello,
    Layout,
    ReplyError,
    columns_of,
    failures_record,
    first_line,
    read_columns,
    read_failures,
    read_hello,
    training_layout,
    unsound,
)
from fedsim.engines.supernodes.state import NodeState
from fedsim.rounds.replies import Replies
from fedsim.engines.runtime import Evaluation, Site
from fedsim.errors import ClientError, FedsimError
from fedsim.streams import Purpose

#: Names of the records of a message to a SuperNode.
WEIGHTS, ORDER = "fedsim.weights", "fedsim.order"
#: What a SuperNode is asked at the start.
HELLO = "query"
#: Name of the record in which a SuperNode keeps clients' state.
STATE = "fedsim.state."


class SuperNodeGrid(InProcessGrid):
    """The in-process engine with its clients on SuperNodes.

    Parameters
    ----------
    *args, **options
        As for `InProcessGrid`.
    grid : Grid
        Flower's.
    nodes : int
        SuperNodes to wait for before the first round.
    wait : float
        Seconds to wait for them; then it goes on with those there are, if any.
    timeout : float, optional
        Seconds after which a SuperNode that has not answered has failed in this round; default: it is waited for.
    retries : int
        How often SuperNodes that failed are asked again in the same round.
    """

    def __init__(
        self,
        *args: Any,
        grid: Grid,
        nodes: int = 1,
        wait: float = 120.0,
        timeout: float | None = None,
        retries: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._grid, self._nodes, self._wait, self._timeout, self._retries = grid, nodes, wait, timeout, retries
        self._fingerprint: dict[str, Any] = {}
        self._hellos: dict[int, Hello] = {}  # by node id, in the order in which they came
        self._refused: dict[int, str] = {}  # node id -> why; until it leaves
        self._failing: dict[int, str] = {}  # node id -> why it could not say hello; it is asked again every round
        self._spare: dict[int, str] = {}  # node id -> which other one serves its partition
        self._hosts: dict[int, int] = {}  # partition -> node id of the SuperNode that serves it
        self._served_by: dict[int, int] = {}  # the same, of those that have left too
        self._of = 0  # the number of partitions
        self._begun = False
        # Of the last update of each client that counted; its SuperNode goes on from the state after it.
        self._accepted_rounds = np.zeros(len(self.site.partition), np.int64)

    def __enter__(self) -> SuperNodeGrid:
        super().__enter__()
        self._fingerprint = fingerprint(self.site.federated)
        until = time.monotonic() + self._wait
        self._find_hosts()
        while len(self._hellos | self._refused | self._failing) < self._nodes and time.monotonic() < until:
            time.sleep(0.2)
            self._find_hosts()
        if not self._hosts:
            reasons = "; ".join(self._refusals())
            raise FedsimError(reasons or f"no SuperNode has answered within {self._wait:g} seconds")
        self._begun = True
        return self

    def _find_hosts(self) -> None:
        """Ask SuperNodes that are new which partition they are, and decide which one serves each partition."""
        there = set(self._grid.get_node_ids())
        for known in (self._hellos, self._refused, self._failing):
            for node in known.keys() - there:  # one that comes back may be another partition
                del known[node]
        heard = self._hellos.keys() | self._refused.keys() | (set() if self._begun else self._failing.keys())
        self._greet(sorted(there - heard))
        if not self._begun and self._hellos:
            counts = Counter(hello.of for hello in self._hellos.values())
            self._of = max(counts, key=lambda of: (counts[of], of == self._nodes, of))
        self._hosts, self._spare = {}, {}
        for node, hello in list(self._hellos.items()):
            if hello.of != self._of:
                self._refuse(node, f"it says num-partitions={hello.of}, and others say {self._of}")
            elif (first := self._hosts.setdefault(hello.partition, node)) != node:
                reason = f"SuperNode {first} is partition {hello.partition} too"
                if self.on_failure == "raise" and not self._begun:
                    raise FedsimError(f"SuperNode {node} is refused: {reason}")
                self._spare[node] = reason
        self._served_by |= self._hosts

    def _greet(self, nodes: Sequence[int]) -> None:
        """Ask SuperNodes who they are."""
        if not nodes:
            return
        content = RecordDict({ORDER: ConfigRecord()})
        messages = [Message(content, dst_node_id=node, message_type=HELLO) for node in nodes]
        most = max(self._nodes, len(self.site.partition))
        for reply in self._grid.send_and_receive(messages, timeout=self._wait):
            node = reply.metadata.src_node_id
            if node not in nodes:
                continue
            self._failing.pop(node, None)
            if not reply.has_content():
                self._failing[node] = first_line(reply.error.reason)
                if self.on_failure == "raise" and not self._begun:
                    raise FedsimError(f"SuperNode {node} cannot start: {self._failing[node]}")
                continue
            try:
                self._hellos[node] = read_hello(reply.content, self._fingerprint, most)
            except ReplyError as reason:
                self._refuse(node, str(reason))

    def _refuse(self, node: int, reason: str) -> None:
        """Do without a SuperNode; before the first round that is an error unless failures are excluded."""
        if self.on_failure == "raise" and not self._begun:
            raise FedsimError(f"SuperNode {node} is refused: {reason}")
        self._hellos.pop(node, None)
        self._refused[node] = reason

    def _refusals(self) -> list[str]:
        """Say which SuperNodes are not used, and why."""
        return [
            *(f"SuperNode {node} cannot start: {reason}" for node, reason in self._failing.items()),
            *(f"SuperNode {node} is refused: {reason}" for node, reason in self._refused.items()),
            *(f"SuperNode {node} is at hand: {reason}" for node, reason in self._spare.items()),
        ]

    def kept(self) -> dict[str, NDArray[Any]] | None:
        """Return what clients have kept, for a checkpoint: nothing, or what is on their SuperNodes, out of reach."""
        return None if self.site.keeps_state(self.site.client) else super().kept()

    def resume(self, kept: Mapping[str, NDArray[Any]] | None) -> None:
        """Take up an interrupted run, of whatever engine; FedsimError if clients kept something."""
        super().resume(kept if self.kept() is not None else None)

    def commit(self, replies: Replies) -> None:
        """Keep what an accepted round changes, and of which clients it had updates."""
        super().commit(replies)
        for update in replies.updates:
            self._accepted_rounds[update.partition_ids] = replies.orders[0].task.round

    def run_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Update]:
        """Train the cohort on its SuperNodes; those that fail are left out, and recorded."""
        rows = self._ask("train", task, ids)
        for block in self.training_blocks(task, ids):
            known = np.array([client for client in block if int(client) in rows], dtype=np.intp)
            if not len(known):
                continue
            found = [rows[int(client)] for client in known]
            columns = {name: np.array([row[name] for row in found]) for name in found[0]}
            up = {name.removeprefix(UP): values for name, values in columns.items() if name.startswith(UP)}
            encoded = {name: values for name, values in columns.items() if name.startswith(ENCODED)}
            examples = task.partition.sizes[known]
            update = Update(known, examples, columns["weights"], columns["train_loss"], up, {}, encoded)
            with np.errstate(all="ignore"):
                yield self.site.measured(task, update)

    def evaluate_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Evaluation]:
        """Evaluate on SuperNodes."""
        rows = self._ask("evaluate", task, ids)
        for block in self.evaluation_blocks(ids):
            known = np.array([client for client in block if int(client) in rows], dtype=np.intp)
            if len(known):
                found = [rows[int(client)] for client in known]
                loss, accuracy = (np.array([row[name] for row in found]) for name in ("loss", "accuracy"))
                yield Evaluation(known, self.site.partition_test.sizes[known], loss, accuracy)

    def _ask(self, kind: str, task: Task, clients: NDArray[np.intp]) -> dict[int, dict[str, Any]]:
        """Return what each client answered, by partition id; record those that did not."""
        rows: dict[int, dict[str, Any]] = {}
        failed: dict[int, str] = {}
        content = self._records(task)
        try:
            layout = training_layout(self.site, task, clients) if kind == "train" else EVALUATION
            waiting = clients
        except ReplyError as error:
            failed, waiting = dict.fromkeys(map(int, clients), str(error)), clients[:0]
        for _ in range(1 + self._retries):
            if not len(waiting):
                break
            failed = self._ask_once(kind, task, waiting, content, layout, rows)
            waiting = np.array([c for c in waiting if int(c) in failed], dtype=np.intp)
        for client, reason in failed.items():
            self._failed(client, ClientError(client, task.round, reason))
        return rows

    def _ask_once(
        self,
        kind: str,
        task: Task,
        clients: NDArray[np.intp],
        content: Mapping[str, ArrayRecord],
        layout: Layout,
        rows: dict[int, dict[str, Any]],
    ) -> dict[int, str]:
        """Send each SuperNode its clients, take in what comes back; return why others failed."""
        failed: dict[int, str] = {}
        sent: dict[int, NDArray[np.intp]] = {}
        messages = []
        self._find_hosts()  # one that was away may be back, as another
        for partition in np.unique(clients % self._of):
            own = clients[clients % self._of == partition]
            node = self._hosts.get(int(partition))
            if node is None:
                failed |= dict.fromkeys(map(int, own), self._missing(int(partition)))
                continue
            sent[node] = own
            order = {ORDER: self._order_of(task, own)}
            message = Message(RecordDict({**content, **order}), node, kind, group_id=str(task.round))
            messages.append(message)
        answered, unsigned = set(), ""
        for reply in self._receive(messages):
            node = reply.metadata.src_node_id
            if node not in sent:  # the SuperLink's own word, on behalf of a SuperNode that is gone
                unsigned = first_line(reply.error.reason) if reply.has_error() else ""
                continue
            if node in answered:
                continue  # the first answer counts
            answered.add(node)
            own = sent[node]
            if not reply.has_content():
                why = f"SuperNode {node} failed: {first_line(reply.error.reason)}"
                failed |= dict.fromkeys(map(int, own), why)
            elif reply.metadata.group_id != str(task.round):
                failed |= dict.fromkeys(map(int, own), f"SuperNode {node} answered another message")
            else:
                failed |= self.take_in(kind, task, own, reply.content, layout, rows)
        for node, own in sent.items():
            if node not in answered:
                within = f" within {self._timeout:g} s" if self._timeout else ""
                why = f": {unsigned}" if unsigned else within
                failed |= dict.fromkeys(map(int, own), f"SuperNode {node} did not answer{why}")
        return failed

    def _receive(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Send messages and return the replies."""
        return list(self._grid.send_and_receive(messages, timeout=self._timeout)) if messages else []

    def _missing(self, partition: int) -> str:
        """Say why nobody serves a partition."""
        if partition in self._served_by:
            return f"SuperNode {self._served_by[partition]} is gone"
        return "; ".join([f"no SuperNode is partition {partition} of {self._of}", *self._refusals()])

    def _records(self, task: Task) -> dict[str, ArrayRecord]:
        """Return what is the same in the messages of a round: made once, and so serialised once."""
        records = {WEIGHTS: flower.record({"weights": task.global_weights})}
        if task.down:
            records[flower.DOWN] = flower.record(task.down)
        return records

    def _order_of(self, task: Task, clients: NDArray[np.intp]) -> ConfigRecord:
        return ConfigRecord(
            {
                "round": task.round,
                "client": client_text(task.strategy),
                "clients": [int(c) for c in clients],
                "accepted": [int(number) for number in self._accepted_rounds[clients]],
                "purpose": int(task.purpose),
            }
        )

    def take_in(
        self,
        kind: str,
        task: Task,
        clients: NDArray[np.intp],
        content: RecordDict,
        layout: Layout,
        rows: dict[int, dict[str, Any]],
    ) -> dict[int, str]:
        """Check a reply against what the server knows and keep its rows; return why clients are left out."""
        failed = read_failures(content, clients)
        clients = np.array([c for c in clients if int(c) not in failed], dtype=np.intp)
        try:
            columns = read_columns(content, layout, clients)
            if kind == "train" and self.site.compression:
                columns["weights"] = self._decoded(task, columns)
        except ReplyError as reason:
            return failed | dict.fromkeys(map(int, clients), str(reason))
        ids = columns["partition_ids"]
        held = (task.partition if kind == "train" else self.site.partition_test).sizes[ids]
        wrong = self._unsound_training(columns) if kind == "train" else self._unsound_evaluation(columns)
        for row in np.flatnonzero(columns["num_examples"] != held):
            number = columns["num_examples"][row]
            wrong[int(row)] = f"its SuperNode sent num_examples of {number}; the client has {held[row]}"
        for place, client in enumerate(ids):
            if place not in wrong:
                rows[int(client)] = {name: values[place] for name, values in columns.items()}
        return failed | {int(ids[row]): reason for row, reason in wrong.items()}

    def _unsound_training(self, columns: Mapping[str, NDArray[Any]]) -> dict[int, str]:
        """Return, by row, which clients have not diverged by their own account, and still cannot be aggregated."""
        loss = columns["train_loss"]
        with np.errstate(invalid="ignore"):
            wrong = dict.fromkeys(
                map(int, np.flatnonzero(loss < -self._loss_limit)), "its SuperNode sent a train_loss below any loss"
            )
            claimed = np.flatnonzero(np.isfinite(loss) & (loss <= self._loss_limit))
        if len(claimed):
            sent = {n: values[claimed] for n, values in columns.items() if n == "weights" or n.startswith(UP)}
            found = unsound(sent, self.net.dtype)
            wrong |= {int(claimed[row]): reason for row, reason in found.items()}
        return wrong

    def _unsound_evaluation(self, columns: Mapping[str, NDArray[Any]]) -> dict[int, str]:
        """Return, by row, which clients' scores cannot be."""
        wrong = {}
        least, most = 0.0 if self.site.variance is None else -np.inf, float(np.finfo(self.net.dtype).max)
        for row, (loss, accuracy) in enumerate(zip(columns["loss"], columns["accuracy"], strict=True)):
            if not (np.isfinite(loss) and np.isfinite(accuracy)):
                wrong[row] = "its SuperNode sent a loss or accuracy that is not finite"
            elif max(abs(loss), abs(accuracy)) > most:
                wrong[row] = f"its SuperNode sent a loss or accuracy too large for {self.net.dtype}"
            elif loss < 0 or not least <= accuracy <= 1:
                wrong[row] = f"its SuperNode sent a loss of {loss:g} and an accuracy of {accuracy:g}"
        return wrong

    def _decoded(self, task: Task, columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the weights that encoded arrays stand for."""
        assert self.site.compression
        sent = {n.removeprefix(ENCODED): rows for n, rows in columns.items() if n.startswith(ENCODED)}
        try:
            with np.errstate(all="ignore"):
                change = self.site.compression.decode(sent, task.seed, task.round, columns["partition_ids"])
                weights: NDArray[Any] = task.global_weights + change
        except (KeyError, ValueError, IndexError):
            raise ReplyError("its SuperNode sent compressed weights that cannot be decoded") from None
        return weights


# The other side: what a SuperNode does.


def hello(message: Message, context: Context, site: Site) -> Message:
    """Say which partition this SuperNode is, of how many, and what data it has."""
    config = context.node_config
    known = "partition-id" in config and "num-partitions" in config
    if not known:
        raise FedsimError("its node config lacks partition-id and num-partitions")
    numbers = {name: int(config[name]) for name in ("partition-id", "num-partitions")}
    said = ConfigRecord({**numbers, **fingerprint(site.federated)})
    return Message(RecordDict({RESULT: said}), reply_to=message)


def answer(message: Message, context: Context, site: Site, kind: str) -> Message:
    """Train or evaluate the clients that a message names, on the site that holds them."""
    content = message.content
    order = content.config_records[ORDER]
    weights = content.array_records[WEIGHTS]["weights"].numpy()
    down = {name: array.numpy() for name, array in content.array_records.get(flower.DOWN, {}).items()}
    client = received_client(str(order["client"]), type(site.client))
    clients = np.array(order["clients"], dtype=np.intp)
    task = site.task(weights, int(order["round"]), client, down, Purpose(order["purpose"]))  # type: ignore[arg-type]
    state = None
    if site.keeps_state(client):
        record: Mapping[str, Any] = context.state.array_records.get(STATE, ArrayRecord())
        state = NodeState(len(task.partition), {name: array.numpy() for name, array in record.items()})
        state.accept(clients, np.array(order["accepted"], dtype=np.intp))

    def load(some: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        return site.load_state(task, some, state) if state is not None else {}

    if kind == "evaluate":
        found = site.evaluate(task, clients, load)
        failed = found.failed
        columns: dict[str, NDArray[Any]] = {
            name: getattr(found, name) for name in ("partition_ids", "num_examples", "loss", "accuracy")
        }
    else:
        update = site.train(task, clients, load)
        failed, columns = update.failed, columns_of(update)
        if state is not None:
            state.store(update.partition_ids, update.state, task.round)
            context.state[STATE] = flower.record(state.dump())
    reply = RecordDict({RESULT: flower.record(columns)})
    if failed:
        reply[FAILED] = failures_record(failed)
    return Message(reply, reply_to=message)
