"""The in-process Grid under fedsim's strategy and under every stock strategy of Flower."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import flwr.app
import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.exception import AggregationError
from helpers import same

from fedsim import data, kernels
from fedsim.clients import SGD, FedProx
from fedsim.errors import ConfigError, FedsimError
from fedsim.flower import internals, records, strategies
from fedsim.kernels.mean import RunningMean
from fedsim.models import MLP, named_arrays
from fedsim.rounds.grid import make_grid
from fedsim.rounds.outcome import RoundOutcome
from fedsim.servers import FedAvg
from fedsim.splits import IID, Dirichlet, FederatedDataset, Partition
from fedsim.study.experiment import Experiment

SMALL = Experiment(split=Dirichlet(12, alpha=1.0), hidden=(8,), rounds=3, fraction_train=0.6, fraction_evaluate=0.5)

XGBOOST = {"FedXgbBagging", "FedXgbCyclic"}  # they exchange trees; their own test is below
WRAPPERS = {name for name in stock.__all__ if name.startswith("DifferentialPrivacy")}
#: What a strategy cannot do without.
OPTIONS: dict[str, dict[str, Any]] = {
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.1},
    "MultiKrum": {"num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
}
STRATEGIES = [
    name
    for name in stock.__all__
    if inspect.isclass(getattr(stock, name)) and name not in XGBOOST | WRAPPERS | {"Strategy", "Result"}
]


def changed(experiment: Experiment, **changes: Any) -> Experiment:
    from dataclasses import replace

    return replace(experiment, **changes)


def test_the_list_of_stock_strategies_is_flowers() -> None:
    """If this fails Flower has a new strategy: it must be tried below."""
    assert set(STRATEGIES) == {
        "FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedProx", "FedMedian", "FedTrimmedAvg", "Krum",
        "MultiKrum", "Bulyan", "QFedAvg",
    }  # fmt: skip
    assert len(WRAPPERS) == 4


@pytest.mark.parametrize("name", STRATEGIES)
def test_stock_strategies_run_unmodified(name: str) -> None:
    strategy = partial(getattr(stock, name), **OPTIONS.get(name, {}))
    client = FedProx() if name == "FedProx" else SGD()
    experiment = changed(SMALL, split=IID(12), server=strategy, client=client, rounds=6)
    result = experiment.run()
    losses = result.history["test_loss"]
    assert losses[1:].min() < losses[0]
    assert (result.history["clients"][1:] == 7).all()
    assert len(result.clients) == 6 * 6
    assert same(result, experiment.run(workers=3, block_size=2))


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_stock_privacy_wrappers_run_around_ours_and_flowers(name: str) -> None:
    wrapper = getattr(stock, name)
    options: dict[str, Any] = {"noise_multiplier": 0.01, "num_sampled_clients": 12}
    options |= {"clipping_norm": 5.0} if "Fixed" in name else {"initial_clipping_norm": 5.0}
    for inner in (FedAvg(seed=1), stock.FedAvg(fraction_evaluate=0.0, min_available_nodes=1)):
        dataset = data.load("digits")
        model = MLP((64, 8, 10))
        with make_grid(model, IID(12).federate(dataset), SGD()) as grid, strategies.quiet():
            start = records.to_record(model, model.init(np.random.default_rng(0)))
            client_side = "ClientSide" in name
            if client_side and "Adaptive" in name:
                # Its clients must answer with a norm bit, which Flower's client mod adds; without it Flower says so.
                with pytest.raises(AggregationError, match="norm_bit"):
                    wrapper(inner, **options).start(grid, start, num_rounds=1)
                continue
            result = wrapper(inner, **options).start(grid, start, num_rounds=2)
        weights = records.to_flat(model, result.arrays)
        assert np.isfinite(weights).all()
        assert not np.array_equal(weights, records.to_flat(model, start))


def test_federated_xgboost_reaches_its_clients() -> None:
    """Flower's XGBoost strategies carry trees as bytes, which an MLP cannot train: the message says which array."""
    with pytest.raises(ConfigError, match="W1"):
        changed(SMALL, server=_trees).run()


def _trees(**_: Any) -> Any:
    class Trees(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
            trees = ArrayRecord([np.frombuffer(b"{}", dtype=np.uint8)])
            return super().configure_train(server_round, trees, config, grid)

    return Trees()


def test_an_error_inside_a_stock_strategy_is_one_sentence() -> None:
    """It takes the next of no sampled clients."""
    server = partial(stock.FedXgbCyclic, fraction_train=0.0, min_available_nodes=0)
    with pytest.raises(FedsimError, match=r"^Flower's FedXgbCyclic gave up: ZeroDivisionError: .*modulo"):
        changed(SMALL, server=server, fraction_evaluate=0.0).run()


def test_our_fedavg_agrees_with_flowers_to_rounding() -> None:
    ours = changed(SMALL, fraction_train=1.0, dtype="float64").run()
    theirs = changed(SMALL, fraction_train=1.0, dtype="float64", server=stock.FedAvg).run()
    for name, weights in ours.weights.items():
        np.testing.assert_allclose(weights, theirs.weights[name], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(ours.history["test_loss"], theirs.history["test_loss"], rtol=1e-12)


def test_streaming_equals_ordinary_replies_bit_for_bit() -> None:
    """Our FedAvg gives the same bits from blocks as from the messages any other grid would hand it."""
    dataset = data.load("digits")
    model = MLP((64, 8, 10))
    start = records.to_record(model, model.init(np.random.default_rng(0)))
    found = []
    for as_messages in (False, True):
        strategy = FedAvg(seed=3, fraction_train=0.5)
        strategy.streams = not as_messages
        with make_grid(model, Dirichlet(12, alpha=0.3).federate(dataset), SGD()) as grid:
            messages = strategy.configure_train(1, start, ConfigRecord(), grid)
            replies: Any = grid.send_and_receive(list(messages) if as_messages else messages)
            record, metrics = strategy.aggregate_train(1, list(reversed(replies)) if as_messages else replies)
        assert record is not None
        assert metrics is not None
        found.append((records.to_flat(model, record), metrics["train_loss"]))
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-12)


def test_an_error_among_ordinary_replies_counts_for_nothing() -> None:
    model = MLP((64, 8, 10))
    start = records.to_record(model, model.init(np.random.default_rng(0)))
    strategy = FedAvg(seed=3)
    strategy.streams = False
    with make_grid(model, IID(6).federate(data.load("digits")), SGD()) as grid:
        replies = list(grid.send_and_receive(list(strategy.configure_train(1, start, ConfigRecord(), grid))))
    failed = internals.make_message(replies[2].metadata, error=flwr.app.Error(1, "the client failed"))
    found = []
    for answers in ([*replies[:2], failed, *replies[3:]], [*replies[:2], *replies[3:]]):
        record, metrics = strategy.aggregate_train(1, answers)
        assert record is not None
        assert metrics is not None
        found.append((records.to_flat(model, record), metrics["train_loss"]))
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 7, 50])
def test_same_seed_same_bits(workers: int, block: int) -> None:
    """Any number of workers, any block size; and another seed differs."""
    experiment = changed(SMALL, split=Dirichlet(50, alpha=0.1), client=SGD(epochs=2, batch_size=7))
    assert same(experiment.run(workers=1, block_size=50), experiment.run(workers=workers, block_size=block))
    assert not same(experiment.run(), changed(experiment, seed=1).run())


def test_sampling_is_seeded_and_leaves_the_global_generator_alone() -> None:
    import random

    random.seed(5)
    expected = random.random()
    random.seed(5)
    changed(SMALL, server=stock.FedAvg).run()
    assert random.random() == expected


def test_bytes_are_what_flower_would_send() -> None:
    model = MLP((64, 8, 10))
    record = ArrayRecord()
    for name, values in named_arrays(model, np.zeros(model.num_parameters, np.float32)).items():
        record[name] = flwr.app.Array(values)
    each = sum(len(array.data) for array in record.values())
    history = changed(SMALL, fraction_evaluate=0.0).run().history
    assert (history["bytes_up"][1:] == 7 * each).all()
    assert (history["bytes_down"][1:] == 7 * each).all()
    assert history["bytes_up"][0] == 0


def test_lazy_arrays_are_flowers_arrays_on_the_wire() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    lazy, plain = internals.Array(values), flwr.app.Array(values)
    assert lazy == plain
    assert lazy.object_id == plain.object_id
    assert lazy.deflate() == plain.deflate()
    copy = lazy.numpy()
    copy[:] = 0
    assert np.array_equal(lazy.numpy(), values)
    lazy.data = flwr.app.Array(2 * values).data
    assert np.array_equal(lazy.numpy(), 2 * values)


def test_push_and_pull() -> None:
    dataset = data.load("digits")
    model = MLP((64, 10))
    with make_grid(model, IID(5).federate(dataset), SGD()) as grid:
        content = RecordDict({"arrays": records.to_record(model, np.zeros(model.num_parameters, np.float32))})
        messages = [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]
        ids = list(grid.push_messages(messages))
        some = list(grid.pull_messages(ids[:2]))
        rest = list(grid.pull_messages(ids))
        assert sorted(m.metadata.reply_to_message_id for m in some + rest) == sorted(ids)
        assert {m.metadata.src_node_id for m in some} == {2, 3}
        assert list(grid.pull_messages(ids)) == []
        with pytest.raises(ValueError, match="unknown node"):
            grid.send_and_receive([Message(content, 99, MessageType.TRAIN)])
        with pytest.raises(ConfigError, match="message_type is 'query'"):
            grid.send_and_receive([Message(content, 2, MessageType.QUERY)])
        assert len(grid.send_and_receive([])) == 0


def test_a_round_is_run_once_and_read_often() -> None:
    dataset = data.load("digits")
    model = MLP((64, 10))
    with make_grid(model, IID(5).federate(dataset), SGD()) as grid:
        content = RecordDict({"arrays": records.to_record(model, np.zeros(model.num_parameters, np.float32))})
        replies = grid.send_and_receive([Message(content, n, MessageType.TRAIN) for n in grid.get_node_ids()])
        assert isinstance(replies, RoundOutcome)
        assert len(replies) == 5
        assert grid.statistics.clients == 5
        assert all(m.has_content() for m in replies)
        assert list(replies) == list(replies)
        assert grid.statistics.clients == 5


def test_a_server_proximal_term_is_never_ignored() -> None:
    server = partial(stock.FedProx, proximal_mu=0.5)
    with pytest.raises(ConfigError, match=r"proximal-mu = 0.5 but the client strategy SGD"):
        changed(SMALL, server=server).run()
    sent = changed(SMALL, server=server, client=FedProx(proximal_mu=0.0)).run()
    own = changed(SMALL, server=stock.FedAvg, client=FedProx(proximal_mu=0.5)).run()
    assert same(sent, own)


def test_running_mean_is_exact_where_float32_is_not() -> None:
    mean = RunningMean()
    mean.add(np.array([[1.0]], np.float32), np.array([1e8]))
    mean.add(np.full((100, 1), 3.0, np.float32), np.ones(100))
    assert mean.value().dtype == np.float32
    assert mean.value()[0] == np.float32((1e8 + 300) / (1e8 + 100))


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
@pytest.mark.parametrize("shape", [(1,), (3, 4), (5000,)])
def test_running_mean_has_the_bits_of_adding_one_after_another(shape: tuple[int, ...], kernel: str) -> None:
    """In float64, terms of many sizes; another order, or sums of blocks that are then added, would be other bits."""
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 999, 40)
    values = rng.normal(size=(40, *shape)) * 10.0 ** rng.integers(-6, 6, (40, *shape))

    def total(order: Any) -> Any:
        added = np.zeros(shape)
        for row, weight in zip(values[order], weights[order], strict=True):
            added = added + row * float(weight)
        return added

    expected = total(np.arange(40)) / weights.sum()
    assert shape == (1,) or not np.array_equal(total(np.arange(40)[::-1]) / weights.sum(), expected)
    for block in (1, 7, 40):
        mean = RunningMean(kernels.load(kernel).add_weighted)
        for start in range(0, 40, block):
            mean.add(values[start : start + block], weights[start : start + block])
        assert np.array_equal(mean.value(), expected)


@pytest.mark.parametrize("block", [1, 2, 6])
def test_running_means_of_groups_are_each_groups_own(block: int) -> None:
    """A column of weights per group; a group that nobody has weight in has no mean."""
    values, members = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 1, 0])
    weights = np.array([1, 2, 3, 4, 5, 6])[:, None] * (members[:, None] == np.arange(3))
    mean = RunningMean()
    for start in range(0, 6, block):
        mean.add(values[start : start + block], weights[start : start + block])
    assert mean.totals.tolist() == [10, 11, 0]
    for group in (0, 1):
        rows = members == group
        expected = np.average(values[rows], axis=0, weights=weights[rows, group])
        np.testing.assert_allclose(mean.value()[group], expected)
    assert np.isnan(mean.value()[2]).all()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("examples", [7, 1000, 2300])
def test_every_test_example_counts_once(examples: int, workers: int) -> None:
    """The test set is evaluated in blocks, the last of which may be smaller."""
    rng = np.random.default_rng(0)
    model = MLP((5, 4, 3), dtype="float64")
    x, y = rng.normal(size=(10 + examples, 5)), rng.integers(0, 3, 10 + examples)
    held = IID(2).federate(data.Dataset("made up", x[:10], y[:10], x[10:], y[10:], 3))
    weights = model.init(rng)
    with make_grid(model, held, SGD(), workers=workers) as grid:
        loss, accuracy = grid.evaluate_test(weights)
    z = model.scores(weights[None], x[None, 10:])[0]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[np.arange(examples), y[10:]]).mean(), rel=1e-12)
    assert accuracy == (z.argmax(axis=1) == y[10:]).mean()


@pytest.mark.parametrize("skew", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("clients", "workers"), [(1, 2), (10, 2), (11, 3), (200, 4)])
def test_blocks_end_at_about_the_same_time(clients: int, workers: int, skew: float) -> None:
    """Every client once and in order; no worker has more than its share and a block."""
    sizes = np.maximum(1, 300 * np.arange(1, clients + 1) ** -skew).astype(int)
    dataset = data.load("digits")
    held = Partition(np.zeros(sizes.sum(), np.intp), np.concatenate([[0], np.cumsum(sizes)]))
    grid = make_grid(MLP((64, 200, 10)), FederatedDataset(dataset, held), SGD(), kernel="compiled", workers=workers)
    engine: Any = grid.engine
    blocks = engine.blocks.of_like_work(np.arange(clients), 1e7 * sizes)
    assert np.array_equal(np.concatenate(blocks), np.arange(clients))
    loads = [0.0] * workers
    for block in blocks:
        loads[loads.index(min(loads))] += float(sizes[block].sum())
    assert max(loads) <= sizes.sum() / workers + max(sizes[block].sum() for block in blocks)
    assert max(loads) <= max(1.35 * sizes.sum() / workers, sizes.max())
    assert len(blocks) <= 10 * workers
