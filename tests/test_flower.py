"""The records and the parts of Flower on which the engines stand: arrays, messages, and what is put back afterwards."""

from __future__ import annotations

import gc
import logging
import random
from contextlib import suppress
from io import BytesIO
from typing import Any

import flwr.app
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity

from fedsim.errors import ConfigError
from fedsim.flower import internals, messages, records, strategies
from fedsim.models.mlp import MLP

NET = MLP((3, 4, 2))
FLAT = np.arange(NET.num_parameters, dtype=np.float32)


# Arrays and records.


def test_arrays_differ_in_values_shape_and_type_and_only_arrays_are_compared() -> None:
    values = np.arange(6, dtype=np.float32)
    array = internals.Array(values)
    for other in (values + 1, values.reshape(2, 3), values.astype(np.float64)):
        assert array != internals.Array(other)
        assert array != flwr.app.Array(other)
    assert array == internals.Array(values.copy())
    assert (array == 3) is False
    assert array.data is array.data, "it is serialised once"


def test_no_array_is_a_pickle() -> None:
    """Reading one could run code."""
    objects = np.array([{}], dtype=object)
    stream = BytesIO()
    np.save(stream, objects, allow_pickle=True)
    array = internals.Array(np.zeros(1))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        array.data = stream.getvalue()
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _ = internals.Array(objects).data


def test_weights_go_into_a_record_uncopied_and_come_back_read_only() -> None:
    """As layers: a weight matrix and a bias each."""
    record = records.to_record(NET, FLAT)
    assert {name: array.shape for name, array in record.items()} == {
        "W1": (3, 4),
        "b1": (4,),
        "W2": (4, 2),
        "b2": (2,),
    }
    assert all(np.shares_memory(array.__dict__["values"], FLAT) for array in record.values())
    plain = ArrayRecord({name: flwr.app.Array(array.numpy()) for name, array in record.items()})
    doubles = records.record({name: array.numpy().astype(np.float64) for name, array in record.items()})
    for sent in (record, plain, doubles):
        back = records.to_flat(NET, sent)
        assert back.dtype == np.float32
        assert back.tolist() == FLAT.tolist()
        assert not back.flags.writeable
    with pytest.raises(ConfigError, match=r"the arrays {'W1': \(4, 3\).*; the model has {'W1': \(3, 4\)"):
        records.to_flat(NET, records.record({n: a.numpy().T for n, a in record.items()}))
    with pytest.raises(ConfigError, match="the model has"):
        records.to_flat(NET, records.record({n: a.numpy() for n, a in record.items() if n != "b2"}))


def test_any_record_is_flat_and_back_again() -> None:
    """Of several shapes and types: one array that holds them all, in their order."""
    arrays: dict[str, Any] = {
        "z": np.array([[1, 2], [3, 4]], np.int16),
        "a": np.float64(0.1) * np.ones((1, 3)),
        "m": np.array(7, np.int64),
        "e": np.zeros((0, 5), np.float32),
    }
    record = records.record(arrays)
    flat = records.flatten(record)
    assert flat.dtype == np.float64
    assert flat.tolist() == [1, 2, 3, 4, 0.1, 0.1, 0.1, 7]
    assert not flat.flags.writeable
    back = records.unflatten(record, flat)
    assert list(back) == list(arrays)
    for name, values in arrays.items():
        found = back[name].numpy()
        assert (found.dtype, found.shape, found.tolist()) == (values.dtype, values.shape, values.tolist())


def test_a_reply_is_weights_and_what_was_sent_besides() -> None:
    sent = records.record({"W1": np.ones(2), "fedsim.up.control": np.zeros(3), "b1": np.ones(1)})
    weights, besides = records.split_reply(sent)
    assert list(weights) == ["W1", "b1"]
    assert weights["W1"] is sent["W1"]
    assert {name: values.tolist() for name, values in besides.items()} == {"control": [0, 0, 0]}


# Messages.


def test_a_reply_says_whose_it_is() -> None:
    internals.set_default_identity()
    found = internals.reply_metadata(7, "m", "train", "3", 12.5)
    said = (found.message_id, found.reply_to_message_id, found.src_node_id, found.dst_node_id)
    assert said == ("m-reply", "m", 7, 1)
    assert (found.group_id, found.created_at, found.ttl, found.message_type) == ("3", 12.5, 3600, "train")
    assert found.run_id == internals.run_id()


def test_an_identity_is_taken_only_where_flower_has_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    internals.set_default_identity()
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (0, 1, 0)
    monkeypatch.setattr(TaskIdentity, "_run_id", 77)
    monkeypatch.setattr(TaskIdentity, "_node_id", 5)
    Unconnected()
    assert (internals.run_id(), TaskIdentity.node_id) == (77, 5)


class Unconnected(messages.LocalGrid):
    """Sends nothing."""

    def get_node_ids(self) -> Any:
        return [2, 3]

    def push_messages(self, messages: Any) -> Any:
        return []

    def pull_messages(self, message_ids: Any) -> Any:
        return []

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        return []


def test_a_grid_has_a_run_new_ids_and_makes_messages() -> None:
    grid = Unconnected()
    assert grid.run.run_id == 0
    run = internals.empty_run()
    grid.set_run(run)
    assert grid.run is run
    assert len({grid.next_id() for _ in range(5)}) == 5
    content = RecordDict({"c": ConfigRecord({"x": 1})})
    message = grid.create_message(content, "train", 9, "4", 33.0)
    said = message.metadata
    assert (said.message_type, said.dst_node_id, said.group_id, said.ttl) == ("train", 9, "4", 33.0)
    assert message.content == content
    internals.set_message_id(message, "here")
    assert message.metadata.message_id == "here"


def test_one_instruction_for_many_nodes_is_a_sequence_of_messages() -> None:
    internals.set_default_identity()
    content = RecordDict({"arrays": records.record({"W1": np.ones(2)})})
    told = messages.Instructions(content, np.array([5, 3, 8]), "evaluate")
    assert (len(told), told.aggregation, told.min_clients) == (3, None, 0)
    assert [m.metadata.dst_node_id for m in told] == [5, 3, 8]
    assert [m.metadata.dst_node_id for m in told[-2:]] == [3, 8]
    assert [m.metadata.dst_node_id for m in told[::-2]] == [8, 5]
    assert (told[-1].metadata.dst_node_id, told[0].metadata.message_type) == (8, "evaluate")
    assert told[1].content == content
    with pytest.raises(IndexError):
        told[3]


# What is put back afterwards.


@pytest.mark.parametrize("level", [logging.INFO, logging.CRITICAL])
def test_flowers_log_is_held_to_errors_and_put_back(level: int) -> None:
    """One that is held to less already stays so."""
    logger = logging.getLogger("flwr")
    before = logger.level
    try:
        logger.setLevel(level)
        with suppress(LookupError), strategies.quiet():
            assert logger.level == max(level, logging.ERROR)
            raise LookupError
        assert logger.level == level
        with strategies.quiet(verbose=True):
            assert logger.level == level
    finally:
        logger.setLevel(before)


def test_what_exists_is_spared_by_the_collector_until_the_end() -> None:
    gc.unfreeze()
    with suppress(LookupError), strategies.freeze_gc():
        assert gc.get_freeze_count() > 1000
        raise LookupError
    assert gc.get_freeze_count() == 0


def test_sampling_is_by_the_seed_and_goes_on_afterwards_as_if_nothing_had_been() -> None:
    def draws(seed: int) -> list[float]:
        with strategies.seeded_sampling(seed):
            return [random.random() for _ in range(3)]

    random.seed(1)
    expected = [random.random() for _ in range(2)]
    random.seed(1)
    first = random.random()
    assert draws(4) == draws(4) != draws(5)
    with suppress(LookupError), strategies.seeded_sampling(6):
        raise LookupError
    assert [first, random.random()] == expected


class Recording(Strategy):
    """Writes down of which rounds it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def start(self, *args: Any, **kwargs: Any) -> Any:
        return "its own loop", args, kwargs

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        self.asked.append(("train", server_round, arrays["w"].numpy().tolist(), config["lr"], grid.get_node_ids()))
        return []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.asked.append(("trained", server_round, list(replies)))
        return records.record({"w": np.full(1, float(server_round))}), MetricRecord({"loss": server_round / 2})

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        self.asked.append(("evaluate", server_round, arrays["w"].numpy().tolist()))
        return []

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        self.asked.append(("evaluated", server_round, list(replies)))
        return MetricRecord({"accuracy": 1 / server_round})

    def summary(self) -> None:
        self.asked.append(("summary",))


def test_a_run_that_goes_on_counts_after_the_rounds_that_are_done() -> None:
    strategy = Recording()
    start = records.record({"w": np.zeros(1)})
    result = strategies.ResumedStrategy(strategy, 3).start(
        Unconnected(), start, num_rounds=2, train_config=ConfigRecord({"lr": 0.5})
    )
    assert [each for each in strategy.asked if each != ("summary",)] == [
        ("train", 4, [0.0], 0.5, [2, 3]),
        ("trained", 4, []),
        ("evaluate", 4, [4.0]),
        ("evaluated", 4, []),
        ("train", 5, [4.0], 0.5, [2, 3]),
        ("trained", 5, []),
        ("evaluate", 5, [5.0]),
        ("evaluated", 5, []),
    ]
    assert strategy.asked.count(("summary",)) == 1
    assert result.arrays["w"].numpy().tolist() == [5.0]
    assert result.train_metrics_clientapp[2]["loss"] == 2.5
    assert strategies.ResumedStrategy(strategy, 0).start(1, key=2) == ("its own loop", (1,), {"key": 2})
