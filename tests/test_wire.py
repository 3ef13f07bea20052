"""A SuperNode that is hostile in every round, through Flower's own Grid: the run goes on as if its clients had failed.

docs/trust.md prints the table of cases and reasons.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from superlink import Objects, SuperLink, inflated, renamed, serialised

from fedsim import Experiment, clients, servers
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.clients import SGD
from fedsim.engines.supernodes.arrays import MAX_REASON_LENGTH, RESULT, first_line
from fedsim.engines.supernodes.delivery import send_and_receive
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.supernodes.replies import FAILED
from fedsim.errors import FedsimError
from fedsim.flower import internals, records, strategies
from fedsim.splits import IID
from fedsim.study import config
from fedsim.study.result import Result
from fedsim.updates.compression import TopK

NODES, LIAR = 3, 3
#: The clients of SuperNode 3, which is partition 1 of 3.
LOST = (1, 4)
BASE = Experiment(split=IID(6), hidden=(8,), kernel="numpy", fraction_train=1.0, on_failure="exclude")

#: What the hostile SuperNode sends, given its honest reply and the earlier replies of all SuperNodes.
Attack = Callable[[Message, list[Message]], list[Objects]]


def run(experiment: Experiment, attacks: list[Attack]) -> Result:
    """Run on SuperNodes of which one makes an attack in each round of training, from the first."""
    earlier: list[Message] = []
    left = list(attacks)

    def answer(message: Message) -> list[Objects]:
        node = message.metadata.dst_node_id
        reply = grid._handle(node - 2, message)
        if message.metadata.message_type != "train":
            return [serialised(reply)]
        reply = inflated(serialised(reply))
        sent = left.pop(0)(reply, list(earlier)) if node == LIAR and left else [serialised(reply)]
        earlier.append(reply)
        return sent

    settings = {"experiment": config.to_toml(replace(experiment, client=shown(experiment.client)))}
    with strategies.quiet(), AppGrid(app.client_app, NODES, run_config=settings, workers=1) as grid:
        link = SuperLink(list(grid.get_node_ids()), answer).grid()
        engine = partial(SuperNodeEngine, grid=link, nodes=NODES, timeout=0.0, on_failure=experiment.on_failure)
        return experiment.run(engine=engine)


def shown(client: Any) -> Any:
    return SGD() if isinstance(client, Lost) else client


class Lost(SGD):
    """The updates of the hostile SuperNode's clients are lost in the first rounds."""

    rounds: int = 0

    def train(self, ctx: clients.Context) -> Any:
        weights = ctx.fit()
        if ctx.round <= self.rounds:
            weights[np.isin(ctx.partition_ids, LOST)] = np.nan
        return weights


def with_content(reply: Message, content: RecordDict) -> list[Objects]:
    return [serialised(internals.make_message(reply.metadata, content))]


def with_array(name: str, change: Callable[[Any], Any]) -> Attack:
    """An attack that changes an array."""

    def attack(reply: Message, earlier: list[Message]) -> list[Objects]:
        arrays = {n: np.array(a.numpy()) for n, a in reply.content.array_records[RESULT].items()}
        changed = change(arrays[name]) if name in arrays else change(arrays["train_loss"])
        return with_content(reply, RecordDict({RESULT: records.record(arrays | {name: changed})}))

    return attack


def with_bytes(data: bytes) -> Attack:
    """An attack that sends other bytes than an array's."""

    def attack(reply: Message, earlier: list[Message]) -> list[Objects]:
        arrays = dict(reply.content.array_records[RESULT].items())
        arrays["weights"] = Array("float32", (2, 3), "numpy.ndarray", data)
        return with_content(reply, RecordDict({RESULT: ArrayRecord(arrays)}))

    return attack


def with_metadata(**changes: Any) -> Attack:
    """An attack that forges metadata."""

    def attack(reply: Message, earlier: list[Message]) -> list[Objects]:
        told = reply.metadata
        made = internals.reply_metadata(told.src_node_id, "", told.message_type, told.group_id, told.created_at)
        made.__dict__ |= {"_reply_to_message_id": told.reply_to_message_id} | changes
        return [serialised(internals.make_message(made, reply.content))]

    return attack


def malformed(reply: Message, earlier: list[Message]) -> list[Objects]:
    """The names of the records are a number."""
    objects = serialised(reply)
    content = list(objects)[-2]
    return [renamed({**objects, content: objects[content].partition(b"\x00")[0] + b"\x007"})]


def repeated(reply: Message, earlier: list[Message]) -> list[Objects]:
    """A chunk of 4 kB that is repeated a million times."""
    arrays = dict(reply.content.array_records[RESULT].items())
    arrays["weights"] = Array("float32", (2, 3), "numpy.ndarray", bytes(4096))
    objects = with_content(reply, RecordDict({RESULT: ArrayRecord(arrays)}))[0]
    target = next(name for name, content in objects.items() if b'"shape": [2, 3]' in content)
    changed = objects[target].replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [' + b"0, " * 10**6 + b"0]")
    return [renamed({**objects, target: changed})]


def of_another_node(reply: Message, earlier: list[Message]) -> list[Objects]:
    """The rows of another SuperNode's clients."""
    other = next(one for one in earlier if one.metadata.src_node_id == 2)
    return with_content(reply, other.content)


def failing(text: str) -> Attack:
    return lambda reply, earlier: [serialised(internals.make_message(reply.metadata, error=Error(2, text)))]


def failures(reply: Message, earlier: list[Message]) -> list[Objects]:
    """Its own words for each of its clients, and for others."""
    own = ConfigRecord({str(k): "\x1b[2Jall is well\nreally" for k in range(6)})
    return with_content(reply, RecordDict({FAILED: own, RESULT: reply.content.array_records[RESULT]}))


huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + b"f" * 9000 + b",)}"
bomb = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"
pickled = b"{'descr': 'O', 'fortran_order': False, 'shape': (2,)}"


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


#: The case, as docs/trust.md prints it -> the attack, and the reason that is recorded.
CASES: dict[str, tuple[Attack, str]] = {
    "bytes that are no message": (malformed, "SuperNode 3 failed: its reply cannot be read: AttributeError"),
    "an array that repeats 4 kB a million times": (
        repeated,
        "SuperNode 3 failed: its reply cannot be read: ValueError",
    ),
    "another SuperNode's name": (
        with_metadata(_src_node_id=2),
        "SuperNode 3 failed: its reply is in the name of 2",
    ),
    "a reply to another message": (with_metadata(_reply_to_message_id="f" * 64), "SuperNode 3 did not answer"),
    "another round": (with_metadata(_group_id="1"), "SuperNode 3 answered another message"),
    "no reply": (lambda reply, earlier: [], "SuperNode 3 did not answer"),
    "an error with escape sequences": (failing("\x1b[2Jboo\nmore"), r"SuperNode 3 failed: \x1b[2Jboo"),
    "its own words for its clients": (failures, r"\x1b[2Jall is well"),
    "rows of another SuperNode's clients": (of_another_node, "its SuperNode answered for other clients"),
    "a client twice": (
        with_array("partition_ids", lambda ids: ids * 0 + ids[0]),
        "its SuperNode answered for other clients",
    ),
    "an array that was not asked for": (
        with_array("up.more", np.zeros_like),
        "its SuperNode sent 'up.more', which was",
    ),
    "another dtype": (
        with_array("weights", lambda w: w.astype(np.float64)),
        "its SuperNode sent weights of shape (2, 610) and dtype float64; expected (2, 610) and float32",
    ),
    "another shape": (with_array("weights", lambda w: w[:, 1:]), "its SuperNode sent weights of shape (2, 609)"),
    "a header of 10**12 numbers": (with_bytes(npy(bomb)), "its SuperNode sent weights of shape (1000000000000,)"),
    "a header with a number of 10,838 digits": (
        with_bytes(npy(huge)),
        "its SuperNode sent weights of bytes that are no array",
    ),
    "a pickle": (with_bytes(npy(pickled)), "its SuperNode sent weights of shape (2,) and dtype object"),
    "NaN with a finite loss": (
        with_array("weights", lambda w: w * np.nan),
        "its SuperNode sent weights that are not finite",
    ),
    "numbers whose squares overflow": (
        with_array("weights", lambda w: w * 0 + 3e38),
        "its SuperNode sent weights too large for float32",
    ),
    "more examples than it has": (
        with_array("num_examples", lambda n: n * 0 + 10**15),
        "its SuperNode sent num_examples of 1000000000000000; the client has",
    ),
    "a negative loss": (with_array("train_loss", lambda v: -v), "its SuperNode sent a training loss of -"),
    "a loss of NaN": (with_array("train_loss", lambda v: v * np.nan), "weights or loss not finite"),
    "a loss of 1e30": (with_array("train_loss", lambda v: v * 0 + 1e30), "training loss 1e+30"),
}


def first_good_then_bad(reply: Message, earlier: list[Message]) -> list[Objects]:
    return [serialised(reply), *with_array("weights", lambda w: w * 0 + 1)(reply, earlier)]


@pytest.mark.parametrize("server", [servers.FedAvg, servers.QFedAvg, servers.FedMedian, stock.FedAvg])
def test_the_run_has_the_bits_of_one_in_which_the_clients_failed(server: Any) -> None:
    experiment = replace(BASE, server=server, rounds=len(CASES) + 1)
    there = run(experiment, [attack for attack, _ in CASES.values()])
    here = replace(experiment, client=Lost(rounds=len(CASES))).run()
    assert all(np.array_equal(here.weights[name], there.weights[name]) for name in here.weights)
    assert there.history["test_loss"].equals(here.history["test_loss"])
    assert there.failures[["round", "partition_id"]].equals(here.failures[["round", "partition_id"]])
    assert there.failures["partition_id"].tolist() == [*LOST] * len(CASES)
    for number, (name, (_, reason)) in enumerate(CASES.items(), 1):
        found = there.failures.loc[there.failures["round"] == number, "reason"].tolist()
        assert all(reason in one and one.isprintable() for one in found), (name, found)


def test_docs_print_the_cases_and_the_reasons() -> None:
    page = (Path(__file__).parent.parent / "docs" / "trust.md").read_text(encoding="utf-8")
    for name, (_, reason) in CASES.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| {name} | `")), "")
        assert reason in row, name


def test_an_array_that_repeats_a_chunk_is_refused_before_it_fills_the_memory() -> None:
    tracemalloc.start()
    try:
        result = run(replace(BASE, rounds=1), [repeated])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.failures["partition_id"].tolist() == [*LOST]
    assert peak < 2**27  # of 4 GB
    zeros = Message(RecordDict({RESULT: ArrayRecord([np.zeros(6 * 10**6)])}), 2, "train")  # chunks of zeros repeat
    with internals.limit_repetition():
        assert not inflated(serialised(zeros)).content.array_records[RESULT]["0"].numpy().any()


def test_a_second_reply_does_not_replace_the_first() -> None:
    experiment = replace(BASE, rounds=2, on_failure="raise")
    there = run(experiment, [first_good_then_bad])
    assert all(np.array_equal(there.weights[name], values) for name, values in experiment.run().weights.items())


def test_an_earlier_round_again_is_a_client_s_own_affair() -> None:
    """The server cannot know that the numbers are old; it counts them as that client's, and as no other's."""

    def again(reply: Message, earlier: list[Message]) -> list[Objects]:
        old = next((one for one in earlier if one.metadata.src_node_id == LIAR), reply)
        return with_content(reply, old.content)

    result = run(replace(BASE, rounds=2), [again, again])
    assert result.failures.empty
    assert not np.array_equal(result.weights["W1"], replace(BASE, rounds=2).run().weights["W1"])


@pytest.mark.parametrize(
    ("changes", "name", "change", "reason"),
    [
        ({"client": clients.IFCA()}, "up.cluster", lambda c: c * 0 + 1, "arrays that give it no valid weight"),
        ({"client": clients.IFCA()}, "up.cluster", lambda c: -c, "arrays that give it no valid weight"),
        ({"client": clients.IFCA()}, "up.cluster", lambda c: c * 0, "arrays that give it no valid weight"),
        ({"transforms": (TopK(0.1),)}, "encoded.0.index", lambda i: i * 0, "ValueError: the indices do not increase"),
        ({"transforms": (TopK(0.1),)}, "encoded.0.index", lambda i: i + 60000, "cannot be decoded: IndexError"),
    ],
)
def test_arrays_of_a_strategy_or_a_transform_are_checked_before_they_are_used(
    changes: dict[str, Any], name: str, change: Callable[[Any], Any], reason: str
) -> None:
    """With them a cluster of all counts twice, a negative weight ends the run, and an index counts twice."""
    result = run(replace(BASE, rounds=1, **changes), [with_array(name, change)])
    assert result.failures["partition_id"].tolist() == [*LOST]
    assert result.failures["reason"].str.contains(reason, regex=False).all(), result.failures["reason"].tolist()
    assert all(np.isfinite(values).all() for values in result.weights.values())


def test_a_hostile_reply_ends_a_run_that_is_to_end_at_a_failure() -> None:
    with pytest.raises(FedsimError, match="client 1 failed in round 1: SuperNode 3 failed: its reply cannot be read"):
        run(replace(BASE, on_failure="raise", rounds=1), [malformed])


def test_a_lost_connection_is_no_fault_of_a_supernode() -> None:
    grid: Any = SuperLink([2], lambda message: []).grid()

    def lost(request: Any) -> Any:
        raise ConnectionError("gone")

    grid._client.PullMessages = lost
    with pytest.raises(ConnectionError, match="gone"):
        send_and_receive(grid, [Message(RecordDict(), 2, "train")], None)


def test_messages_that_are_not_delivered_are_not_waited_for() -> None:
    grid: Any = SuperLink([2], lambda message: []).grid()
    grid.push_messages = lambda messages: []  # as Flower's Grid does if they are too large
    assert list(send_and_receive(grid, [Message(RecordDict(), 2, "train")], None)) == []


@pytest.mark.parametrize("text", ["\U000e0001" * 400, "x" * 10**6, "\x85\u2028 y" * 99, "\u202e" * 300, None, "\n"])
def test_a_reason_is_short_and_printable(text: str | None) -> None:
    assert 0 < len(first_line(text)) <= MAX_REASON_LENGTH
    assert first_line(text).isprintable()
