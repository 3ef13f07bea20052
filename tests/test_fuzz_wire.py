"""Hostile messages through Flower's own Grid: the server counts the valid replies, bit for bit, and names the others.

In every round most SuperNodes send a reply that was changed: arrays, records, metadata, or the bytes of its objects. A
second implementation in plain NumPy says which clients' rows are valid. Some hundred messages are sent with the other
tests; 100,000 by::

    FEDSIM_FUZZ=100000 python -m pytest tests/test_fuzz_wire.py -n 0
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from helpers import cases
from superlink import Objects, SuperLink, inflated, renamed, serialised

from fedsim import Experiment, clients
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import Task, Update
from fedsim.data import Dataset
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.supernodes.node import answer, exchange, hello
from fedsim.engines.supernodes.replies import FAILED
from fedsim.engines.supernodes.roster import HELLO
from fedsim.flower import internals
from fedsim.rounds.grid import RoundGrid
from fedsim.rounds.outcome import Cohort, RoundOutcome
from fedsim.rounds.round import run_round
from fedsim.secure import SecureAggregation
from fedsim.splits import Dirichlet
from fedsim.streams import Purpose
from fedsim.study.build import build_runtime
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Mean
from fedsim.updates.compression import Int8, TopK

NODES, CLIENTS, ROUND, HONEST = 8, 16, 3, 2
rng = np.random.default_rng(0)
DATA = Dataset("wire", rng.normal(size=(240, 3)), np.arange(240) % 2, rng.normal(size=(30, 3)), np.arange(30) % 2)
BASE = Experiment(dataset=DATA, split=Dirichlet(CLIENTS), hidden=(3,), kernel="numpy", on_failure="exclude")
EXPERIMENTS = {
    "plain": BASE,
    "evaluate": replace(BASE, test_fraction=0.3),
    "control variates": replace(BASE, client=clients.SCAFFOLD()),
    "clusters": replace(BASE, client=clients.IFCA()),
    "compressed": replace(BASE, client=clients.FedNova(), transforms=(TopK(0.3), Int8())),
    "secure": replace(BASE, secure_aggregation=SecureAggregation(neighbours=6)),
}
#: Hostile messages of all tests but that of secure aggregation; a round has one of each SuperNode that is not honest.
MESSAGES = cases(750)
ROUNDS = -(-MESSAGES // ((len(EXPERIMENTS) - 1) * (NODES - HONEST)))
Change = Callable[[random.Random, Message], Message]


# Arrays.

NUMBERS = [math.nan, math.inf, -math.inf, 1e38, -3e38, 1e300, -1e30, 5e-324, -1.0, 0.0]
WHOLES = [-1, 0, 1, 3, 7, 255, 2**31, 2**62, -(2**63), 2**63 - 1, 10**15]
DTYPES = ["f2", "f4", "f8", ">f4", ">i8", "i1", "i4", "i8", "u1", "u4", "u8", "?", "c8", "U3", "M8[s]", "S2", "V4"]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (2,), (3,), (2, 22), (10**12,), (2**63 - 1, 2), (1, 1, 1, 1, 1), (-1,)]
HEADERS = [
    b"{'descr': 'O', 'fortran_order': False, 'shape': (2,)}", b"{'descr': '<f4'}", b"[" * 3000, b"",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + b"f" * 9000 + b",)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}",
    b"{'descr': [('\x1b[2J', '<f4')], 'fortran_order': True, 'shape': (2,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, True)}", b"__import__('os').abort()",
]  # fmt: skip


def npy(values: Any) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def other_values(draw: random.Random, values: Any) -> Any:
    """Return an array in the place of another: other numbers, rows, dtype, shape or order."""
    kind = draw.choice(["number", "number", "number", "dtype", "shape", "rows", "order", "all"])
    with np.errstate(all="ignore"):
        if kind in ("number", "all") and values.size:
            wide = values.astype(np.float64 if values.dtype.kind == "f" else object)
            place = draw.randrange(values.size) if kind == "number" else slice(None)
            wide.flat[place] = draw.choice(NUMBERS if values.dtype.kind == "f" else WHOLES)
            if values.dtype.kind == "f":
                return wide.astype(values.dtype)
            limits = np.iinfo(values.dtype)
            return np.clip(wide, limits.min, limits.max).astype(values.dtype)
        if kind == "dtype":
            dtype = draw.choice(DTYPES)
            return values.astype(dtype) if dtype != "V4" else np.zeros(values.shape, dtype)
    if kind == "shape":
        return draw.choice([values[..., None], values[:1], values.ravel(), values.reshape(-1)[:0], values.sum()])
    if kind == "rows":
        return values[[draw.randrange(len(values)) for _ in range(draw.choice([0, 1, len(values), 5]))]]
    return np.asfortranarray(values).astype(values.dtype.newbyteorder(draw.choice("<>")))


def other_array(draw: random.Random, array: Array) -> Array:
    """Return an array whose values, bytes or description differ."""
    values, data, shape, stype = array.numpy(), array.data, tuple(array.shape), array.stype
    kind = draw.choice(["values"] * 4 + ["cut", "more", "flip", "bytes", "header", "shape", "stype"])
    if kind == "values":
        data = npy(other_values(draw, values))
    elif kind == "cut":
        data = data[: draw.randrange(len(data))]
    elif kind == "more":
        data += draw.randbytes(draw.choice([1, 8, 1000]))
    elif kind == "flip":
        place = draw.randrange(len(data))
        data = data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :]
    elif kind == "bytes":
        data = draw.choice([b"", b"\x93NUMPY", b"PK\x03\x04" + draw.randbytes(40), draw.randbytes(300)])
    elif kind == "header":
        header = draw.choice(HEADERS)
        start = b"\x93NUMPY" + bytes([draw.choice([1, 1, 1, 2, 3, 9]), 0])
        data = start + struct.pack("<H", len(header)) + header + values.tobytes()
    elif kind == "shape":
        shape = draw.choice(SHAPES)
    else:
        stype = draw.choice(["", "pickle", "torch.Tensor"])
    return Array(draw.choice([array.dtype, "object", "x" * 99]), shape, stype, data)


# Contents, metadata and bytes.

TEXTS = ["", "=cmd()", "\x1b[2J\x07", "\u202e" * 400, "\U000e0001" * 400, "a\nb", "x" * 10**5, "\x00", "its data"]
NAMES = ["weights", "up.delta", "up.control", "encoded.values", "loss", "", "\x1b[2J", "\U000e0001" * 99, "x" * 9999]


def change_arrays(draw: random.Random, message: Message) -> Message:
    arrays = dict(message.content.array_records[RESULT].items())
    for name in draw.sample(sorted(arrays), draw.choice([1, 1, 1, 2])):
        arrays[name] = other_array(draw, arrays[name])
    return internals.make_message(message.metadata, RecordDict({RESULT: ArrayRecord(arrays)}))


def change_rows(draw: random.Random, message: Message) -> Message:
    """Clients twice, not at all, in another order, or of another SuperNode."""
    arrays = {name: array.numpy() for name, array in message.content.array_records[RESULT].items()}
    count = len(next(iter(arrays.values())))
    if "partition_ids" in arrays and draw.random() < 0.4:
        arrays["partition_ids"] = arrays["partition_ids"] + draw.choice([1, -1, NODES, CLIENTS, 2**40])
    else:
        rows = [draw.randrange(count) for _ in range(draw.choice([1, count, count, count + 1]))] if count else []
        arrays = {name: values[rows] for name, values in arrays.items()}
    return internals.make_message(
        message.metadata, RecordDict({RESULT: ArrayRecord({n: Array(v) for n, v in arrays.items()})})
    )


def change_names(draw: random.Random, message: Message) -> Message:
    arrays = dict(message.content.array_records[RESULT].items())
    name = draw.choice(sorted(arrays))
    kind = draw.choice(["renamed", "gone", "more", "thousands"])
    if kind == "more":
        arrays[draw.choice(NAMES)] = arrays[name]
    elif kind == "thousands":
        arrays |= {f"{k}": arrays[name] for k in range(300)}
    elif kind == "renamed":
        arrays[draw.choice(NAMES)] = arrays.pop(name)
    else:
        del arrays[name]
    return internals.make_message(message.metadata, RecordDict({RESULT: ArrayRecord(arrays)}))


def change_records(draw: random.Random, message: Message) -> Message:
    result, text = message.content.array_records[RESULT], draw.choice(TEXTS)
    others: list[Any] = [ArrayRecord(), MetricRecord({"weights": draw.choice(NUMBERS)}), ConfigRecord({"a": text})]
    reasons: dict[str, Any] = {str(k): draw.choice([text, 3, b"\xff", [text]]) for k in range(-1, CLIENTS)}
    contents = [
        {}, {RESULT: draw.choice(others)}, {draw.choice(NAMES): result}, {RESULT: result, "more": draw.choice(others)},
        {RESULT: result, FAILED: ConfigRecord(reasons)}, {RESULT: result, FAILED: draw.choice(others)},
        {RESULT: ArrayRecord(), FAILED: ConfigRecord(reasons)},
    ]  # fmt: skip
    return internals.make_message(message.metadata, RecordDict(draw.choice(contents)))


def change_metadata(draw: random.Random, message: Message) -> Message:
    """In another's name, to another message, of another round or type; an error; the same for no reason at all."""
    told = message.metadata
    sender = draw.choice([told.src_node_id, told.src_node_id, 1, 2, 3, 99])
    made = internals.reply_metadata(sender, "", told.message_type, "", draw.choice(NUMBERS))
    made.__dict__ |= {
        "_message_type": draw.choice([told.message_type, "query", "", "x" * 99]),
        "_reply_to_message_id": draw.choice([told.reply_to_message_id] * 3 + ["", "m", "f" * 64]),
        "_group_id": draw.choice([told.group_id, told.group_id, "2", "", "x" * 999]),
    }
    if draw.random() < 0.4:
        return internals.make_message(made, error=Error(draw.choice([0, 7, 2**31 - 1]), draw.choice(TEXTS)))
    return internals.make_message(made, message.content)


CHANGES: list[Change] = [*[change_arrays] * 4, change_rows, change_names, change_records, change_metadata]
JSON: list[Any] = [None, True, [], {}, -1, 1e308, 2**70, "\ud800", "x", [[]], {"a": []}, [0] * 99]


def changed_bytes(draw: random.Random, objects: Objects) -> Objects:
    """Return objects of which one has other bytes, under the right id, as a SuperLink accepts them."""
    target = draw.choice(list(objects))
    head, _, body = objects[target].partition(b"\x00")
    kind = draw.choice(["flip", "flip", "cut", "json", "json", "json", "type", "children", "nested", "child"])
    if kind == "flip" and body:
        place = draw.randrange(len(body))
        body = body[:place] + bytes([body[place] ^ draw.randrange(1, 256)]) + body[place + 1 :]
    elif kind == "cut":
        body = body[: draw.randrange(len(body) + 1)]
    elif kind == "json" and body.startswith(b"{"):
        tree = json.loads(body)
        if tree:
            tree[draw.choice(list(tree))] = draw.choice(JSON)
        body = json.dumps(draw.choice([tree, tree, tree, draw.choice(JSON)])).encode()
    elif kind == "type":
        new = draw.choice([b"Array", b"ArrayRecord", b"ConfigRecord", b"MetricRecord", b"RecordDict", b"Message"])
        head = b" ".join([new, *head.split(b" ")[1:]])
    elif kind == "children":
        words = head.split(b" ")
        head = b" ".join([words[0], draw.choice([b"", words[1] + b"," + words[1], words[1][:64]]), words[2]])
    elif kind == "nested":
        body = draw.choice([b"[" * 10**5, b"9" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"NaN"])
    made = renamed({**objects, target: head + b"\x00" + body})
    if kind == "child" and len(made) > 1:
        del made[draw.choice(list(made)[:-1])]  # the sender does not declare it
    return made


def hostile(draw: random.Random, message: Message) -> list[Objects]:
    """Return what a hostile SuperNode sends in place of a reply: nothing, or one or two changed replies."""
    kind = draw.choice(["content"] * 6 + ["bytes"] * 3 + ["both", "nothing", "twice"])
    if kind == "nothing":
        return []
    if kind == "twice":
        return [*hostile(draw, message)[:1], serialised(message)]
    changed = message if kind == "bytes" else draw.choice(CHANGES)(draw, message)
    objects = serialised(changed)
    return [objects if kind == "content" else changed_bytes(draw, objects)]


# Which rows are valid, in plain NumPy.


def plain_array(array: Array, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array's values; ValueError unless it has the shape and dtype, and nothing follows it."""
    major, size = array.data[6], struct.unpack("<H", array.data[8:10])[0]
    start = 10 + size if major == 1 else 12 + struct.unpack("<I", array.data[8:12])[0]
    values = np.load(BytesIO(array.data), allow_pickle=False)
    if major > 2 or not isinstance(values, np.ndarray) or values.shape != shape:
        raise ValueError
    if values.dtype.kind != dtype.kind or values.itemsize != dtype.itemsize or len(array.data) - start != values.nbytes:
        raise ValueError
    return values.astype(dtype)


def valid_rows(case: Case, own: list[int], asked: str, node: int, sent: list[Objects]) -> dict[int, dict[str, Any]]:
    """Return the valid clients' rows of each array in the first reply to a message, if Flower can read all replies."""
    try:
        replies = [reply for reply in map(inflated, sent) if reply.metadata.reply_to_message_id == asked]
        with np.errstate(all="ignore"):
            return _valid_rows(case, own, node, replies[0])
    except Exception:
        return {}


def _valid_rows(case: Case, own: list[int], node: int, reply: Message) -> dict[int, dict[str, Any]]:
    told = reply.metadata
    if (told.src_node_id, told.group_id) != (node, str(ROUND)):
        return {}
    reasons = reply.content.get(FAILED)
    if isinstance(reasons, ConfigRecord):
        own = [client for client in own if not isinstance(reasons.get(str(client)), str)]
    result: Any = reply.content[RESULT]
    if not isinstance(result, ArrayRecord) or set(result) != set(case.layout):
        return {}
    arrays = {n: plain_array(result[n], (len(own), *row), dtype) for n, (row, dtype) in case.layout.items()}
    ids = arrays["partition_ids"]
    if sorted(ids.tolist()) != sorted(own):
        return {}
    pipeline = case.grid.runtime.pipeline
    if case.kind == "train" and pipeline:
        encoded = {n.removeprefix("encoded."): v for n, v in arrays.items() if n.startswith("encoded.")}
        if (np.diff(encoded["0.index"].astype(int), axis=1) <= 0).any():
            return {}
        arrays["weights"] = case.task.global_weights + pipeline.decode(encoded, case.task.seed, ROUND, ids)
    rows = {int(client): {n: v[k] for n, v in arrays.items()} for k, client in enumerate(ids)}
    return {client: row for client, row in rows.items() if case.is_valid(client, row)}


class Case:
    """A server at work on an experiment, the honest replies, and the mean of any rows."""

    def __init__(self, name: str) -> None:
        experiment = EXPERIMENTS[name]
        self.kind = "evaluate" if name == "evaluate" else "train"
        self.runtime = build_runtime(experiment)
        self.link = SuperLink(range(2, 2 + NODES), self.reply)
        self.draw, self.liars = random.Random(0), set[int]()
        self.sent: dict[int, tuple[str, list[Objects]]] = {}
        self._contexts = {node: context(node) for node in self.link.nodes}
        self._honest: dict[int, RecordDict] = {}
        self.layout: Mapping[str, Any] = {}
        self.messages = 0
        engine = SuperNodeEngine(self.runtime, workers=1, grid=self.link.grid(), nodes=NODES, wait=0.0, timeout=0.0)
        self.grid = RoundGrid(engine, "exclude").__enter__()
        self.grid.checks.limit_loss(1.0)
        weights = (np.random.default_rng(1).normal(size=self.runtime.model.num_parameters) / 3).astype(np.float32)
        hooks = ServerHooks(experiment.client, self.runtime.model, 240, 0)
        purpose = Purpose.SHUFFLE if self.kind == "train" else Purpose.SHUFFLE_PERSONAL
        down = hooks.down(weights) if experiment.client.broadcast else {}
        self.task: Task = self.runtime.task(weights, ROUND, down=down, purpose=purpose)
        self.order = np.lexsort((np.arange(CLIENTS), -self.task.partition.sizes))
        failed = self.run()[1]
        assert not failed
        if not self.runtime.secure:
            record = self._honest[2].array_records[RESULT]
            self.layout = {n: (a.numpy().shape[1:], a.numpy().dtype) for n, a in record.items()}

    def reply(self, message: Message) -> list[Objects]:
        """Answer a message of the server as a SuperNode does, honest or hostile."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if kind == HELLO:
            return [serialised(hello(message, self._contexts[node], self.runtime))]
        if self.runtime.secure or node not in self._honest:
            given = message, self._contexts[node], self.runtime
            try:
                made = exchange(*given) if kind == "query.secure" else answer(*given, self.kind)
            except Exception as error:
                return [serialised(Message(Error(2, str(error)), reply_to=message))]
            self._honest[node] = made.content
        made = Message(self._honest[node], reply_to=message)
        made = inflated(serialised(made))
        try:
            sent = hostile(self.draw, made) if node in self.liars else [serialised(made)]
        except Exception as error:  # which the server would take for malformed bytes
            pytest.fail(f"no hostile reply: {error!r}")
        self.messages += node in self.liars
        self.sent[node] = message.metadata.message_id, sent
        return sent

    def run(self) -> tuple[RoundOutcome, dict[int, str]]:
        """Run a round; return its outcome and the failures."""
        self.sent.clear()
        self.link.forget()
        self.grid.take_statistics()
        hooks = ServerHooks(self.task.strategy, self.runtime.model, 240, 0)
        outcome = RoundOutcome(
            self.runtime.model, [Cohort(self.kind, self.task, self.order, None)], Aggregation(Mean(), hooks),
            keeps_rows=False, min_clients=1,
        )  # fmt: skip
        if self.kind == "evaluate":
            outcome.min_clients = 0
        with np.errstate(all="raise", under="ignore"):
            run_round(self.grid.engine, outcome, self.grid.checks, self.grid.statistics, 0)
        return outcome, self.grid.take_statistics().failed

    def is_valid(self, client: int, row: Mapping[str, Any]) -> bool:
        """Return whether a client's numbers are such that the server can use them."""
        held = self.task.partition if self.kind == "train" else self.runtime.partition_test
        if row["num_examples"] != held.sizes[client]:
            return False
        if self.kind == "evaluate":
            return bool(0 <= row["loss"] <= np.finfo(np.float32).max and 0 <= row["accuracy"] <= 1)
        numbers = [row["weights"], *(v for n, v in row.items() if n.startswith("up."))]
        limit = float(np.finfo(np.float32).max)
        lengths = [float(np.linalg.norm(v.astype(np.float64).ravel())) for v in numbers]
        update = float(np.linalg.norm((row["weights"] - self.task.global_weights).astype(np.float64)))
        if "up.cluster" in row and sorted(row["up.cluster"]) != [0, 1]:
            return False
        return bool(0 <= row["train_loss"] <= 10 and all(v <= limit for v in [*lengths, update]))

    def mean(self, rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the means of clients' rows, added up one by one in cohort order."""
        hooks = ServerHooks(self.task.strategy, self.runtime.model, 240, 0)
        total = Aggregation(Mean(), hooks)
        for client in self.order.tolist():
            if client in rows:
                row = {n: v[None] for n, v in rows[client].items()}
                up = {n.removeprefix("up."): v for n, v in row.items() if n.startswith("up.")}
                ids = np.array([client])
                total.add(Update(ids, row["num_examples"], row["weights"], row["train_loss"], up))
        return total.means()


@cache
def case_of(name: str) -> Case:
    return Case(name)


def context(node: int) -> Context:
    config: dict[str, Any] = {"partition-id": node - 2, "num-partitions": NODES}
    return Context(run_id=0, node_id=node, node_config=config, state=RecordDict(), run_config={})


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_the_valid_replies_are_counted_and_the_others_are_named(name: str) -> None:
    case, counted_liars = case_of(name), 0
    before = case.messages
    rounds = ROUNDS if not case.runtime.secure else ROUNDS // 4  # each has up to four messages to a SuperNode
    for number in range(rounds):
        case.draw.seed(f"{name} {number}")
        case.liars = set(case.draw.sample(case.link.nodes, NODES - HONEST))
        outcome, failed = case.run()
        parts: list[Any] = [*outcome.updates, *outcome.evaluations]
        counted = [int(client) for part in parts for client in part.partition_ids]
        assert sorted([*counted, *failed]) == list(range(CLIENTS)), number
        assert all(0 < len(reason) <= 450 and reason.isprintable() for reason in failed.values()), failed
        if case.runtime.secure:
            mean = outcome.aggregation.means()["weights"] if counted else np.zeros(1)
            assert np.abs(mean).max() <= 8 * CLIENTS + 10
            continue
        valid: dict[int, dict[str, Any]] = {}
        for node, (asked, sent) in case.sent.items():
            own = [client for client in case.order.tolist() if client % NODES + 2 == node]
            valid |= valid_rows(case, own, asked, node, sent)
        assert set(counted) == set(valid), (number, {c: failed.get(c) for c in set(counted) ^ set(valid)})
        assert valid.keys() >= {c for c in range(CLIENTS) if c % NODES + 2 not in case.liars}
        counted_liars += sum(client % NODES + 2 in case.liars for client in valid)
        if case.kind == "train":
            expected, found = case.mean(valid), outcome.aggregation.means()
            assert expected.keys() == found.keys()
            assert all(np.array_equal(expected[n], found[n], equal_nan=True) for n in found), number
        else:
            rows = {
                int(c): (p.loss[k], p.accuracy[k]) for p in outcome.evaluations for k, c in enumerate(p.partition_ids)
            }
            assert rows == {c: (row["loss"], row["accuracy"]) for c, row in valid.items()}
    assert case.messages - before >= rounds * (NODES - HONEST)
    assert case.runtime.secure or 0 < counted_liars < rounds * CLIENTS * 0.7, "both kinds of replies occur"
