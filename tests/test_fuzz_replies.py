"""Replies of SuperNodes, mutated: whatever comes, the round ends, and each client is counted rightly or not at all.

A few hundred cases run with the other tests. Ten thousand, in some five minutes, by::

    FEDSIM_FUZZ=10000 python -m pytest tests/test_fuzz_replies.py

The honest replies are those of a real round, on 3 SuperNodes with 2 clients each, as the bytes that Flower sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from helpers import cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim import Experiment, clients
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.data import Dataset
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.supernodes.node import answer, hello
from fedsim.engines.supernodes.roster import HELLO
from fedsim.errors import FedsimError
from fedsim.flower import internals
from fedsim.flower.messages import LocalGrid
from fedsim.rounds.grid import RoundGrid
from fedsim.rounds.outcome import Cohort, RoundOutcome
from fedsim.rounds.round import run_round
from fedsim.splits import Dirichlet
from fedsim.streams import Purpose
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Mean
from fedsim.updates.compression import Int8, TopK

#: Cases of all seven tests together, and of each.
CASES = cases(700)
EXAMPLES = -(-CASES // 7)
NODES, CLIENTS = 3, 6
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=CASES < 10_000
)

rng = np.random.default_rng(0)
DATA = Dataset("fuzz", rng.normal(size=(90, 3)), np.arange(90) % 2, rng.normal(size=(30, 3)), np.arange(30) % 2)
BASE = Experiment(dataset=DATA, split=Dirichlet(CLIENTS, alpha=1.0), hidden=(3,), kernel="numpy", on_failure="exclude")
EXPERIMENTS = {
    "plain": BASE,
    "state": replace(BASE, client=clients.SCAFFOLD()),
    "compressed": replace(BASE, client=clients.FedNova(), transforms=(TopK(0.3), Int8())),
}


@dataclass
class Fake(LocalGrid):
    """Flower's Grid, which returns what it is told."""

    reply: Callable[[Sequence[Message]], list[Message]]
    nodes: int = NODES

    def __post_init__(self) -> None:
        super().__init__()

    def get_node_ids(self) -> Any:
        return range(2, 2 + self.nodes)

    def push_messages(self, messages: Any) -> Any:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> Any:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return self.reply(list(messages))


def context(node: int) -> Context:
    config: dict[str, Any] = {"partition-id": node - 2, "num-partitions": NODES}
    return Context(run_id=0, node_id=node, node_config=config, state=RecordDict(), run_config={})


@cache
def site(name: str) -> ClientRuntime:
    experiment = EXPERIMENTS[name]
    federated = experiment.federate(DATA)
    return ClientRuntime(experiment.make_model(DATA), federated, experiment.client, 0, "numpy", experiment.transforms)


def honestly(name: str, message: Message) -> RecordDict:
    """What an honest SuperNode answers, after Flower has made bytes of it."""
    kind, place = message.metadata.message_type, context(message.metadata.dst_node_id)
    made = hello(message, place, site(name)) if kind == HELLO else answer(message, place, site(name), kind)
    content = RecordDict()
    for key, record in made.content.items():
        content[key] = (
            record
            if not isinstance(record, ArrayRecord)
            else ArrayRecord({n: Array(a.dtype, tuple(a.shape), a.stype, a.data) for n, a in record.items()})
        )
    return content


def engine_of(name: str, reply: Callable[[Sequence[Message]], list[Message]]) -> SuperNodeEngine:
    fake: Any = Fake(reply)
    return SuperNodeEngine(site(name), workers=1, grid=fake, nodes=NODES, wait=0.0, on_failure="exclude")


def task_of(name: str) -> Task:
    here, experiment = site(name), EXPERIMENTS[name]
    weights = rng_weights(here.model.num_parameters)
    hooks = ServerHooks(experiment.client, here.model, 90, 0)
    down = hooks.down(weights) if experiment.client.broadcast else {}
    return here.task(weights, 3, down=down)


@cache
def rng_weights(size: int) -> Any:
    return (np.random.default_rng(1).normal(size=size) / 3).astype(np.float32)


def message_from(node: int, kind: str, group: str, content: RecordDict | None, error: Error | None = None) -> Message:
    metadata = internals.reply_metadata(node, "m", kind, group, 0.0)
    return internals.make_message(metadata, content, error)


# Mutations: each makes something of an honest reply that an honest SuperNode does not send, or leaves it alone.

names = st.sampled_from(["partition_ids", "num_examples", "weights", "train_loss", "loss", "accuracy", "encoded.values",
                         "encoded.0.index", "encoded.1.scale", "up.delta", "x" * 100, "", "up."])  # fmt: skip
numbers = st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -3e38, 1e300, -1e30])
wholes = st.sampled_from([-1, 0, 7, 2**31, 2**62, -(2**63), 10**15])
dtypes = st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "i4", "i8", "u8", "?", "c8", "U3", "M8[s]", "S2"])
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 22, 10**6, 2**40, 2**63 - 1]), max_size=4).map(tuple)


def npy(values: Any) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def wire(values: Any) -> Array:
    return Array(str(values.dtype), tuple(values.shape), "numpy.ndarray", npy(values))


@st.composite
def one_array(draw: Any, array: Array) -> Array | None:
    """Another array in the place of an honest one; None to leave it out."""
    values, data = array.numpy(), array.data
    kind = draw(
        st.sampled_from(
            ["number", "whole", "dtype", "shape", "cut", "bytes", "header", "gone", "stype", "flip", "more"]
        )
    )
    if kind == "number" and values.dtype.kind == "f" and values.size:
        changed = values.astype(np.float64)
        changed.flat[draw(st.integers(0, values.size - 1))] = draw(numbers)
        with np.errstate(all="ignore"):
            return wire(changed.astype(values.dtype))
    if kind == "whole" and values.dtype.kind in "iu" and values.size:
        changed = values.astype(object)
        changed.flat[draw(st.integers(0, values.size - 1))] = draw(wholes)
        limits = np.iinfo(values.dtype)
        return wire(np.clip(changed, limits.min, limits.max).astype(values.dtype))
    if kind == "dtype":
        with np.errstate(all="ignore"):
            return wire(values.astype(draw(dtypes)))
    if kind == "shape":
        return Array(array.dtype, draw(shapes), array.stype, data)
    if kind == "cut":
        return Array(array.dtype, tuple(array.shape), array.stype, data[: draw(st.integers(0, len(data) - 1))])
    if kind == "more":
        return Array(array.dtype, tuple(array.shape), array.stype, data + draw(st.binary(min_size=1, max_size=9)))
    if kind == "bytes":
        return Array(array.dtype, tuple(array.shape), array.stype, draw(st.binary(max_size=200)))
    if kind == "header":
        buffer = BytesIO()
        header = {"descr": draw(dtypes), "fortran_order": draw(st.booleans()), "shape": draw(shapes)}
        np.lib.format.write_array_header_1_0(buffer, header)
        return Array(array.dtype, tuple(array.shape), array.stype, buffer.getvalue() + values.tobytes())
    if kind == "flip":
        place = draw(st.integers(0, min(len(data), 128) - 1))
        other = data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
        return Array(array.dtype, tuple(array.shape), array.stype, other)
    return None


other_records = st.one_of(
    st.builds(
        lambda k, v: MetricRecord({k: v}),
        names.filter(bool),
        st.floats(allow_nan=True) | st.integers(-(2**63), 2**63 - 1),
    ),
    st.builds(
        lambda k, v: ConfigRecord({k: v}),
        names.filter(bool),
        st.text(max_size=9) | st.binary(max_size=9) | st.booleans(),
    ),
    st.just(ArrayRecord()),
)


@st.composite
def one_content(draw: Any, honest: RecordDict) -> RecordDict:
    """Another content in the place of an honest one."""
    kind = draw(
        st.sampled_from(["array", "array", "array", "array", "rows", "name", "record", "renamed", "empty", "extra"])
    )
    arrays = dict(honest.array_records[RESULT].items())
    if kind == "array":
        for name in draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=3, unique=True)):
            if (changed := draw(one_array(arrays[name]))) is None:
                del arrays[name]
            else:
                arrays[name] = changed
    elif kind == "rows":  # whole clients twice, or not at all, or one more
        count = len(arrays["partition_ids"].numpy())
        rows = draw(st.lists(st.integers(0, count - 1), max_size=4).filter(lambda r: sorted(r) != list(range(count))))
        arrays = {name: wire(array.numpy()[rows]) for name, array in arrays.items()}
    elif kind == "name":
        name = draw(st.sampled_from(sorted(arrays)))
        arrays[draw(names)] = arrays.pop(name)
    elif kind == "record":
        return RecordDict({RESULT: draw(other_records)})
    elif kind == "renamed":
        return RecordDict({draw(st.text(max_size=9)): ArrayRecord(arrays)})
    elif kind == "empty":
        return RecordDict()
    else:
        return RecordDict({RESULT: ArrayRecord(arrays), "more": draw(other_records)})
    return RecordDict({RESULT: ArrayRecord(arrays)})


@st.composite
def one_reply(draw: Any, node: int, kind: str, honest: RecordDict) -> list[Message]:
    """What comes from a SuperNode: nothing, an error, a reply that is mutated or stale, several of them."""
    what = draw(st.sampled_from(["content"] * 8 + ["nothing", "error", "stale", "kind", "twice", "stranger"]))
    content = draw(one_content(honest)) if what in ("content", "twice", "stranger") else honest
    if what == "nothing":
        return []
    if what == "error":
        reason = draw(st.none() | st.text(max_size=50) | st.just("x" * 10**5))
        return [message_from(node, kind, "3", None, Error(draw(st.integers(0, 9)), reason))]
    group = draw(st.sampled_from(["2", "", "4", "-3", "x"])) if what == "stale" else "3"
    sender = draw(st.sampled_from([1, 99, -5])) if what == "stranger" else node
    message = message_from(sender, "query" if what == "kind" else kind, group, content)
    return [message, message_from(node, kind, group, honest)] if what == "twice" else [message]


@cache
def round_of(name: str, kind: str) -> tuple[RoundGrid, Task, dict[int, RecordDict], list[Any]]:
    """A grid at work, what it asks of its clients, the honest contents, and what the server makes of those."""
    current: dict[str, Any] = {"contents": {}}

    def reply(messages: Sequence[Message]) -> list[Message]:
        if messages[0].metadata.message_type == HELLO:
            return [message_from(m.metadata.dst_node_id, HELLO, "", honestly(name, m)) for m in messages]
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in current["mutated"]:
                replies += current["mutated"][node]
                continue
            if node not in current["contents"]:
                current["contents"][node] = honestly(name, message)
            replies.append(message_from(node, kind, "3", current["contents"][node]))
        return replies

    grid = RoundGrid(engine_of(name, reply), "exclude")
    grid.__enter__()
    grid.checks.limit_loss(1.0)
    grid.fuzzed = current  # type: ignore[attr-defined]
    current["mutated"] = {}
    task = task_of(name)
    if kind == "evaluate":
        task = replace(task, purpose=Purpose.SHUFFLE_PERSONAL)
    honest = parts_of(grid, kind, task)
    assert not grid.statistics.failed
    return grid, task, current["contents"], honest


def parts_of(grid: RoundGrid, kind: str, task: Task) -> list[Any]:
    """Run a round and return its parts; the grid then holds what went wrong."""
    grid.take_statistics()
    cohort = Cohort(kind, task, np.lexsort((np.arange(CLIENTS), -task.partition.sizes)), None)
    outcome = RoundOutcome(grid.runtime.model, [cohort], Aggregation(Mean()), keeps_rows=True)
    with np.errstate(all="raise", under="ignore"):
        run_round(grid.engine, outcome, grid.checks, grid.statistics, 0)
    return [*outcome.updates, *outcome.evaluations]


def by_client(parts: list[Any]) -> dict[int, list[Any]]:
    """Each client's row of everything, once."""
    rows: dict[int, list[Any]] = {}
    for part in parts:
        assert isinstance(part, Update | Evaluation)
        for k, client in enumerate(part.partition_ids.tolist()):
            assert client not in rows
            if isinstance(part, Evaluation):
                rows[client] = [part.num_examples[k], part.loss[k], part.accuracy[k]]
            else:
                sent = [part.up[name][k] for name in sorted(part.up)]
                rows[client] = [part.num_examples[k], part.weights[k], part.train_loss[k], *sent]
    return rows


def believable(honest: list[Any], counted: list[Any]) -> bool:
    """Whether what is counted could have come from an honest client: other numbers, but finite, in the same arrays."""
    assert honest[0] == counted[0], "a client has the number of examples that the server knows"
    for ours, theirs in zip(honest[1:], counted[1:], strict=True):
        one, other = np.asarray(ours), np.asarray(theirs)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if not np.isfinite(other).all() or float(np.abs(other).max(initial=0)) > 3.5e38:
            return False
    return True


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("name", list(EXPERIMENTS))
@given(data=st.data())
@fuzz
def test_every_client_is_counted_rightly_or_not_at_all(name: str, kind: str, data: st.DataObject) -> None:
    grid, task, contents, honest = round_of(name, kind)
    liars = data.draw(st.sets(st.sampled_from(sorted(contents)), min_size=1))
    mutated = {node: data.draw(one_reply(node, kind, contents[node])) for node in sorted(liars)}
    grid.fuzzed["mutated"] = mutated  # type: ignore[attr-defined]
    try:
        parts = parts_of(grid, kind, task)
    finally:
        grid.fuzzed["mutated"] = {}  # type: ignore[attr-defined]
    failed = grid.take_statistics().failed
    expected, counted = by_client(honest), by_client(parts)
    assert counted.keys() | failed.keys() == set(range(CLIENTS))
    assert not counted.keys() & failed.keys()
    assert all(0 < len(reason) < 1000 for reason in failed.values())
    for client, row in counted.items():
        if client % NODES + 2 in liars:
            assert believable(expected[client], row)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(expected[client], row, strict=True))
    assert not {c for c in failed if c % NODES + 2 not in liars}
    if kind == "train":
        assert sum(len(part.partition_ids) for part in parts) == len(counted)


values = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(max_size=5), st.binary(max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), st.lists(st.floats(), max_size=9),
    st.lists(st.text(max_size=3), max_size=9), st.integers(-1, NODES),
)  # fmt: skip
said = st.sampled_from(
    ["partition-id", "num-partitions", "examples", "features", "classes", "clients", "held", "sketch"]
)


@given(data=st.data())
@fuzz
def test_every_hello_is_understood_or_refused(data: st.DataObject) -> None:
    """Whatever SuperNodes say, a partition is served by one that says that it is this one and has the same data."""

    def reply(messages: Sequence[Message]) -> list[Message]:
        replies = []
        for message in messages:
            node, content = message.metadata.dst_node_id, hellos()[message.metadata.dst_node_id]
            what = data.draw(st.sampled_from(["honest", "honest", "fields", "record", "empty", "error", "nothing"]))
            if what == "fields":
                changes = data.draw(st.dictionaries(said, values, max_size=3))
                record = dict(content.config_records[RESULT].items())
                for gone in data.draw(st.sets(said, max_size=2)):
                    record.pop(gone)
                content = RecordDict({RESULT: ConfigRecord(record | changes)})
            elif what == "record":
                content = RecordDict({RESULT: data.draw(other_records)})
            elif what == "empty":
                content = RecordDict()
            elif what == "error":
                replies.append(
                    message_from(node, HELLO, "", None, Error(1, data.draw(st.none() | st.text(max_size=9))))
                )
                continue
            elif what == "nothing":
                continue
            sent[node] = content
            replies.append(message_from(node, HELLO, "", content))
        return replies

    sent: dict[int, RecordDict] = {}
    engine = engine_of("plain", reply)
    try:
        engine.__enter__()
    except FedsimError as error:
        said_why = str(error)
    else:
        engine.__exit__()
        said_why = ""
    roster = engine.roster
    assert bool(roster.hosts) == (not said_why)
    assert not said_why or "SuperNode" in said_why
    fields = ("examples", "features", "classes", "clients", "held")
    for partition, node in roster.hosts.items():
        record = sent[node].config_records[RESULT]
        assert record["partition-id"] == partition < roster.num_partitions == record["num-partitions"]
        assert all(record[f] == hellos()[2].config_records[RESULT][f] for f in fields)
    assert len(set(roster.hosts.values())) == len(roster.hosts)


@cache
def hellos() -> dict[int, RecordDict]:
    internals.set_default_identity()
    nodes = range(2, 2 + NODES)
    return {node: honestly("plain", Message(RecordDict(), node, HELLO)) for node in nodes}
