"""Clients on Flower's SuperNodes: in Flower's own simulation, or on real machines.

The server side is the in-process engine's: cohort, order, aggregation and test are the same code, and so are the bits.
Only where a block of clients is trained differs. Each SuperNode says, when asked, which partition it is and of how
many; SuperNode i of N holds the clients whose partition id is i modulo N (one each, where there are as many as
clients). In a round every SuperNode gets one message with all of its clients that were sampled, and sends one back.

What a client keeps between rounds stays on its SuperNode, in the context that Flower keeps there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsim.clients.base import Task, Update
from fedsim.compression import Compression
from fedsim.config import client_text, received_client
from fedsim.engines import flower
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.node_state import NodeState
from fedsim.engines.replies import Replies
from fedsim.engines.site import Evaluation, Site
from fedsim.errors import FedsimError
from fedsim.streams import Purpose

#: Names of the records of a message between the two sides.
WEIGHTS, ORDER, RESULT = "fedsim.weights", "fedsim.order", "fedsim.result"
#: What a SuperNode is asked at the start.
HELLO = "query"
#: Prefixes of what a reply holds besides weights.
UP, ENCODED = "up.", "encoded."
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
        self._hosts: dict[int, int] = {}  # partition of a SuperNode -> its node id
        self._of = 0  # partitions that SuperNodes are
        self._asked: set[int] = set()
        self._begun = False
        # Of the last update of each client that counted; its SuperNode goes on from the state after it.
        self._accepted_rounds = np.zeros(len(self.site.partition), np.int64)

    def __enter__(self) -> SuperNodeGrid:
        super().__enter__()
        until = time.monotonic() + self._wait
        self._find_hosts()
        while len(self._hosts) < self._nodes and time.monotonic() < until:
            time.sleep(0.2)
            self._find_hosts()
        if not self._hosts:
            raise FedsimError(f"no SuperNode has answered within {self._wait:g} seconds")
        self._begun = True
        return self

    def _find_hosts(self) -> set[int]:
        """Ask SuperNodes that are new which partition they are; return the ids of all that are there."""
        there = set(self._grid.get_node_ids())
        new = sorted(there - self._asked)
        content = RecordDict({ORDER: ConfigRecord()})
        messages = [Message(content, dst_node_id=node, message_type=HELLO) for node in new]
        for reply in self._grid.send_and_receive(messages, timeout=self._wait) if messages else ():
            node = reply.metadata.src_node_id
            if not reply.has_content():
                if not self._begun:
                    raise FedsimError(f"SuperNode {node} cannot start: {_first_line(reply.error.reason)}")
                continue  # of one that comes later, the round says that its clients are missing
            self._asked.add(node)
            said = reply.content.metric_records[RESULT]
            self._hosts[int(said["partition-id"])] = node  # type: ignore[arg-type]
            self._of = int(said["num-partitions"])  # type: ignore[arg-type]
        return there

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
            loss = columns["train_loss"].astype(np.float64)
            weights = columns["weights"].astype(self.net.dtype, copy=False)
            for sent in (weights, *up.values()):  # what has come is not trusted
                loss[~np.isfinite(sent).reshape(len(known), -1).all(axis=1)] = np.nan
            encoded = {name: values for name, values in columns.items() if name.startswith(ENCODED)}
            update = Update(known, columns["num_examples"].astype(np.intp), weights, loss, up, {}, encoded)
            with np.errstate(all="ignore"):
                yield self.site.measured(task, update)

    def evaluate_blocks(self, task: Task, ids: NDArray[np.intp]) -> Iterator[Evaluation]:
        """Evaluate on SuperNodes."""
        rows = self._ask("evaluate", task, ids)
        for block in self.evaluation_blocks(ids):
            known = np.array([client for client in block if int(client) in rows], dtype=np.intp)
            if len(known):
                found = [rows[int(client)] for client in known]
                examples, loss, accuracy = (
                    np.array([row[name] for row in found]) for name in ("num_examples", "loss", "accuracy")
                )
                yield Evaluation(known, examples, loss, accuracy)

    def _ask(self, kind: str, task: Task, clients: NDArray[np.intp]) -> dict[int, dict[str, Any]]:
        """Return what each client answered, by partition id; record those that did not."""
        rows: dict[int, dict[str, Any]] = {}
        failed: dict[int, str] = {}
        waiting = clients
        for _ in range(1 + self._retries):
            if not len(waiting):
                break
            failed = self._ask_once(kind, task, waiting, rows)
            waiting = np.array([c for c in waiting if int(c) in failed], dtype=np.intp)
        failed |= _odd_ones(rows)
        for client, reason in failed.items():
            self._lost(task, client, reason)
        return rows

    def _ask_once(
        self, kind: str, task: Task, clients: NDArray[np.intp], rows: dict[int, dict[str, Any]]
    ) -> dict[int, str]:
        """Send each SuperNode its clients, take in what comes back; return why others failed."""
        failed: dict[int, str] = {}
        sent: dict[int, NDArray[np.intp]] = {}
        messages = []
        there = self._find_hosts()  # one that was away may be back, as another
        for partition in np.unique(clients % self._of):
            own = clients[clients % self._of == partition]
            node = self._hosts.get(int(partition))
            if node is None:
                failed |= {int(c): f"no SuperNode is partition {partition} of {self._of}" for c in own}
                continue
            if node not in there:
                failed |= {int(c): f"SuperNode {node} is gone" for c in own}
                continue
            sent[node] = own
            content = self._message(task, own)
            messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=str(task.round)))
        answered, unsigned = set(), ""
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout) if messages else ():
            node = reply.metadata.src_node_id
            if node not in sent:  # the SuperLink's own word, on behalf of a SuperNode that is gone
                unsigned = _first_line(reply.error.reason) if reply.has_error() else ""
                continue
            answered.add(node)
            own = sent[node]
            if reply.has_content():
                failed |= self._take_in(kind, task, own, reply.content, rows)
            else:
                failed |= {int(c): f"SuperNode {node} failed: {_first_line(reply.error.reason)}" for c in own}
        for node, own in sent.items():
            if node not in answered:
                within = f" within {self._timeout:g} s" if self._timeout else ""
                why = f": {unsigned}" if unsigned else within
                failed |= {int(c): f"SuperNode {node} did not answer{why}" for c in own}
        return failed

    def _message(self, task: Task, clients: NDArray[np.intp]) -> RecordDict:
        order = ConfigRecord(
            {
                "round": task.round,
                "client": client_text(task.strategy),
                "clients": [int(c) for c in clients],
                "accepted": [int(number) for number in self._accepted_rounds[clients]],
                "purpose": int(task.purpose),
            }
        )
        content = RecordDict({WEIGHTS: flower.record({"weights": task.global_weights}), ORDER: order})
        if task.down:
            content[flower.DOWN] = flower.record(task.down)
        return content

    def _take_in(
        self,
        kind: str,
        task: Task,
        clients: NDArray[np.intp],
        content: RecordDict,
        rows: dict[int, dict[str, Any]],
    ) -> dict[int, str]:
        """Check a reply and keep its rows; return why clients are left out."""
        arrays = {name: array.numpy() for name, array in content.array_records.get(RESULT, {}).items()}
        wanted: dict[str, tuple[int, ...]] = {"partition_ids": (), "num_examples": ()}
        if kind == "train":
            wanted |= {"weights": (self.net.num_parameters,), "train_loss": ()}
        else:
            wanted |= {"loss": (), "accuracy": ()}
        if kind == "train" and self.site.compression:
            self._decode(self.site.compression, task, arrays)
        for name, shape in wanted.items():
            found = arrays[name].shape if name in arrays else None
            if found != (len(clients), *shape):
                reason = f"its SuperNode sent {name} of shape {found}; expected {(len(clients), *shape)}"
                return {int(c): reason for c in clients}
        for name, values in arrays.items():
            if values.dtype.kind not in "biuf" or values.shape[:1] != (len(clients),):
                reason = f"its SuperNode sent {name} of shape {values.shape} and dtype {values.dtype}"
                return {int(c): reason for c in clients}
        if arrays["num_examples"].dtype.kind not in "iu" or arrays["num_examples"].min() < 1:
            return {int(c): "its SuperNode sent num_examples that are no whole numbers above 0" for c in clients}
        if set(arrays["partition_ids"].tolist()) != set(clients.tolist()):
            return {int(c): "its SuperNode answered for other clients" for c in clients}
        for row, client in enumerate(arrays["partition_ids"]):
            rows[int(client)] = {name: values[row] for name, values in arrays.items()}
        return {}

    def _decode(self, compression: Compression, task: Task, arrays: dict[str, NDArray[Any]]) -> None:
        """Put the weights in the place of what was sent of them; what cannot be decoded is left without."""
        sent = {n.removeprefix(ENCODED): arrays.pop(n) for n in list(arrays) if n.startswith(ENCODED)}
        try:
            change = compression.decode(sent, task.seed, task.round, arrays["partition_ids"].astype(np.intp))
        except (KeyError, ValueError, IndexError):
            return
        if len(change) == len(arrays["partition_ids"]):
            arrays["weights"] = task.global_weights + change
            arrays |= {ENCODED + name: rows for name, rows in sent.items()}

    def _lost(self, task: Task, client: int, reason: str) -> None:
        self.traffic.failed[client] = reason
        if self.on_failure == "raise":
            raise FedsimError(f"client {client} failed in round {task.round}: {reason}")


def _odd_ones(rows: dict[int, dict[str, Any]]) -> dict[int, str]:
    """Take out the rows that hold other arrays than most do; return why."""
    kinds = {c: tuple((name, np.shape(v), np.asarray(v).dtype.str) for name, v in r.items()) for c, r in rows.items()}
    if len(set(kinds.values())) < 2:
        return {}
    usual = Counter(kinds.values()).most_common(1)[0][0]
    odd = [client for client, kind in kinds.items() if kind != usual]
    for client in odd:
        del rows[client]
    return dict.fromkeys(odd, "its SuperNode sent other arrays than the rest")


def _first_line(text: str | None) -> str:
    return ((text or "").strip() or "no reason given").splitlines()[0]


# The other side: what a SuperNode does.


def hello(message: Message, context: Context) -> Message:
    """Say which partition this SuperNode is, and of how many."""
    config = context.node_config
    known = "partition-id" in config and "num-partitions" in config
    if not known:
        raise FedsimError("its node config lacks partition-id and num-partitions")
    said = MetricRecord({name: int(config[name]) for name in ("partition-id", "num-partitions")})
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
        _raise_first(found.failed)
        columns: dict[str, NDArray[Any]] = {
            name: getattr(found, name) for name in ("partition_ids", "num_examples", "loss", "accuracy")
        }
    else:
        update = site.train(task, clients, load)
        _raise_first(update.failed)
        columns = {name: getattr(update, name) for name in ("partition_ids", "num_examples", "weights", "train_loss")}
        columns |= {UP + name: values for name, values in update.up.items()}
        if update.encoded:
            del columns["weights"]
            columns |= {ENCODED + name: values for name, values in update.encoded.items()}
        if state is not None:
            state.store(update.partition_ids, update.state, task.round)
            context.state[STATE] = flower.record(state.dump())
    return Message(RecordDict({RESULT: flower.record(columns)}), reply_to=message)


def _raise_first(failed: Mapping[int, FedsimError]) -> None:
    """Raise the first client's error: a message is answered for all of its clients or none."""
    for error in failed.values():
        raise error
