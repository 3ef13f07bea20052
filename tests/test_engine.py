"""The in-process Grid under fedsim's strategy and under every stock strategy of Flower."""

from __future__ import annotations

import dataclasses
import inspect
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import flwr.app
import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.exception import AggregationError
from helpers import OnRound, same
from threadpoolctl import threadpool_info

from fedsim import data, kernels
from fedsim.clients import SGD, FedProx
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import Evaluation, Update, mean_evaluation
from fedsim.engines.blocks import Blocks
from fedsim.engines.engine import engine_class, make_engine
from fedsim.engines.isolation import concatenate, isolate_failures
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.threads import ThreadEngine
from fedsim.engines.workers import Workers, available_cores, in_order
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.flower import internals, records, strategies
from fedsim.kernels.mean import RunningMean
from fedsim.models import MLP, named_arrays
from fedsim.rounds.grid import make_grid
from fedsim.rounds.outcome import RoundOutcome
from fedsim.servers import FedAvg
from fedsim.splits import IID, Dirichlet, FederatedDataset, Partition
from fedsim.splits.sizes import LogNormal
from fedsim.study import saving
from fedsim.study.experiment import Experiment
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Mean

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


def test_flowers_server_side_noise_is_by_the_seed_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws from NumPy's global generator."""
    wrapped = partial(
        stock.DifferentialPrivacyServerSideFixedClipping,
        strategy=FedAvg(),
        noise_multiplier=0.1,
        clipping_norm=1.0,
        num_sampled_clients=5,
    )
    experiment = Experiment(split=IID(5, seed=0), rounds=4, server=wrapped)
    whole = experiment.run()
    assert same(whole, experiment.run())
    assert not same(whole, dataclasses.replace(experiment, seed=1).run())
    before = str(np.random.get_state(legacy=True))  # noqa: NPY002

    def interrupt(row: Mapping[str, float]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(saving, "CHECKPOINT_SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(directory=tmp_path, callbacks=[OnRound(interrupt)])
    assert same(whole, experiment.run(directory=tmp_path))
    assert str(np.random.get_state(legacy=True)) == before  # noqa: NPY002


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
    with pytest.raises(FedsimError, match=r"^Flower's FedXgbCyclic failed: ZeroDivisionError: .*modulo"):
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
    lazy.data = doubled = flwr.app.Array(2 * values).data
    assert np.array_equal(lazy.numpy(), 2 * values)
    assert lazy.data == doubled


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
    with pytest.raises(ConfigError, match=r"proximal-mu = 0.5, which SGD lacks"):
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
    blocks = engine.blocks.of_equal_work(np.arange(clients), 1e7 * sizes)
    assert np.array_equal(np.concatenate(blocks), np.arange(clients))
    loads = [0.0] * workers
    for block in blocks:
        loads[loads.index(min(loads))] += float(sizes[block].sum())
    assert max(loads) <= sizes.sum() / workers + max(sizes[block].sum() for block in blocks)
    assert max(loads) <= max(1.35 * sizes.sum() / workers, sizes.max())
    assert len(blocks) <= 10 * workers


# The parts of an engine, without a run.


class Watched(list[int]):
    """Jobs that say how many of them have been taken."""

    taken = 0

    def __iter__(self) -> Iterator[int]:
        for job in list.__iter__(self):
            self.taken += 1
            yield job


def test_jobs_are_started_up_to_a_bound_and_those_left_are_cancelled() -> None:
    started, cancelled = list[int](), list[int]()

    def begin(bound: int) -> Any:
        def submit(job: int) -> int:
            started.append(job)
            return job

        return in_order(submit, lambda handle: 10 * handle, [1, 2, 3, 4, 5], bound, cancelled.append)

    results = begin(3)
    assert started == []
    assert next(results) == 10
    assert started == [1, 2, 3]
    assert next(results) == 20
    assert started == [1, 2, 3, 4]
    results.close()
    assert cancelled == [3, 4]
    assert list(begin(3)) == [10, 20, 30, 40, 50]
    assert list(begin(99)) == [10, 20, 30, 40, 50]
    assert cancelled == [3, 4]


@pytest.mark.parametrize(("max_pending", "taken"), [(1, 4), (7, 7), (None, 20), (50, 20)])
def test_workers_keep_the_order_and_at_least_two_jobs_each(max_pending: int | None, taken: int) -> None:
    names = set()

    def work(job: int) -> int:
        names.add(threading.current_thread().name.partition("_")[0])
        return job * job

    jobs = Watched(range(20))
    with Workers(2) as workers:
        results = workers.map(work, jobs, max_pending)
        assert next(results) == 0
        assert jobs.taken == taken
        assert list(results) == [k * k for k in range(1, 20)]
        assert names == {"fedsim"}
        names.clear()
        assert list(workers.map(work, [3])) == [9]  # one job needs no thread
        with Workers(1) as one:
            assert list(one.map(work, [3, 4])) == [9, 16]
        assert names == {threading.main_thread().name}
    assert list(workers.map(work, [3, 4])) == [9, 16]  # nor does one that is closed have any


def test_all_workers_do_a_common_work_at_the_same_time() -> None:
    """Each on a core of its own where there is one for each; BLAS has one thread in each."""
    barrier, seen = threading.Barrier(available_cores()), list[Any]()

    def work() -> None:
        barrier.wait(60)
        seen.append(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {len(seen)})

    def fail() -> None:
        raise ZeroDivisionError("of a worker")

    with Workers(available_cores()) as workers:
        workers.run_on_all(work)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
        with pytest.raises(ZeroDivisionError, match="of a worker"):
            workers.run_on_all(fail)
    assert len(set().union(*seen)) == len(seen) == available_cores()
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    with Workers(available_cores() + 1) as workers:  # more than cores: the system places them
        barrier = threading.Barrier(available_cores() + 1)
        seen.clear()
        workers.run_on_all(work)
    assert not before or all(cores == before for cores in seen)


@pytest.mark.parametrize("interrupted", [True, False])
def test_after_ctrl_c_clients_in_training_are_not_waited_for(interrupted: bool) -> None:
    """Those that have not begun never do."""
    release, done = threading.Event(), list[int]()

    def work(job: int) -> int:
        if job:
            release.wait(20 if interrupted else 0.05)
        done.append(job)
        return job

    before = set(threading.enumerate())
    workers = Workers(2)
    workers.__enter__()
    results = workers.map(work, range(12))
    assert next(results) == 0
    threads = set(threading.enumerate()) - before
    error = KeyboardInterrupt() if interrupted else ValueError()
    workers.__exit__(type(error), error, None)
    assert any(thread.is_alive() for thread in threads) == interrupted
    assert (done == [0]) == interrupted
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(done) < 12


def test_the_number_of_workers_follows_from_the_kernel() -> None:
    held = IID(4).federate(data.load("digits"))
    counts = [make_grid(MLP((64, 10)), held, SGD(), kernel=k).engine.workers.count for k in ("numpy", "compiled")]
    assert counts == [1, available_cores()]
    assert make_grid(MLP((64, 10)), held, SGD(), workers=4096).engine.workers.count == 4096
    for workers in (0, 4097):
        with pytest.raises(ConfigError, match=rf"workers is {workers}; allowed: .*1.*4096"):
            make_grid(MLP((64, 10)), held, SGD(), workers=workers)
    with pytest.raises(ConfigError, match="block_size is 0"):
        make_grid(MLP((64, 10)), held, SGD(), block_size=0)


def test_an_engine_is_a_name_or_what_makes_one() -> None:
    own = partial(ThreadEngine, workers=2)
    assert (engine_class("in-process"), engine_class(own)) == (ThreadEngine, own)
    for wrong in (7, "rai"):
        with pytest.raises(ConfigError, match=f"^engine is {wrong!r}; allowed: in-process, ray"):
            engine_class(wrong)  # type: ignore[arg-type]


def test_what_a_partial_of_an_engine_sets_is_used_unless_a_run_sets_it() -> None:
    own = partial(ThreadEngine, workers=3, block_size=2)
    held = IID(12).federate(data.load("digits"))
    runtime = ClientRuntime(MLP((64, 10)), held, SGD(), 0, "numpy")
    for given, workers, blocks in (((), 3, 6), ((None, 4), 3, 3), ((1, 12), 1, 1)):
        engine: Any = make_engine(own, runtime, *given)
        assert (engine.workers.count, len(engine.blocks.for_evaluation(np.arange(12)))) == (workers, blocks)


def blocks_of(kernel: str, clients: int, examples: int, workers: int, size: int | None = None) -> Blocks:
    """Of a model of 15,010 parameters, whose row has 60,040 bytes."""
    held = Partition(np.zeros(clients * examples, np.intp), np.arange(clients + 1) * examples)
    federated = FederatedDataset(data.load("digits"), held)
    grid = make_grid(MLP((64, 200, 10)), federated, SGD(), kernel=kernel, workers=workers, block_size=size)
    made: Blocks = cast(Any, grid.engine).blocks
    return made


def test_blocks_fit_a_cache_and_results_that_wait_fit_memory() -> None:
    """768 KiB of weights with the NumPy kernel, 4 MiB with the compiled one, 32 MiB of results."""
    everyone = np.arange(200)
    for kernel, most in (("numpy", 13), ("compiled", 69)):
        blocks = blocks_of(kernel, 200, 1, 1)
        cut = blocks.of_equal_work(everyone, np.ones(200))
        assert [len(block) for block in cut[:-1]] == [most] * (200 // most)
        assert np.array_equal(np.concatenate(cut), everyone)
        assert blocks.max_pending(cut) == 2**25 // (most * 60040)
        assert [len(block) for block in blocks_of(kernel, 200, 1, 1, 60).of_equal_work(everyone, np.ones(200))] == [
            60,
            60,
            60,
            20,
        ]
    shared = blocks_of("compiled", 1300, 1, 3).for_all_workers(np.arange(1300))
    assert [len(block) for block in shared] == [558, 558, 184]  # a multiple of the workers, at most 2^25 bytes
    assert [len(block) for block in blocks_of("compiled", 20, 1, 3, 8).for_all_workers(np.arange(20))] == [8, 8, 4]


@pytest.mark.parametrize(("work", "blocks"), [(1e4, 2), (2.5e5, 2), (5e5, 4), (1e6, 8), (2e6, 16), (1e9, 16)])
def test_each_worker_gets_one_to_eight_blocks_of_a_tenth_of_a_second(work: float, blocks: int) -> None:
    """A hundred million operations each, as far as that goes."""
    cut = blocks_of("compiled", 48, 4, 2).of_equal_work(np.arange(48), np.full(48, work * 100 / 6 * (1 + 1e-9)))
    assert [len(block) for block in cut] == [48 // blocks] * blocks
    most = blocks_of("compiled", 480, 4, 2).of_equal_work(np.arange(480), np.full(480, 1e9))
    assert [len(block) for block in most] == [30] * 16


def test_the_work_of_a_client_is_its_examples_passes_and_parameters() -> None:
    """Six operations for each in training, two in evaluation."""
    blocks, everyone = blocks_of("compiled", 52, 100, 1), np.arange(52)
    work = 52 * 100 * 15010
    runtime = blocks.runtime
    weights = np.zeros(15010, np.float32)
    lengths = [len(blocks.for_training(runtime.task(weights, 1, SGD(epochs=e)), everyone)) for e in (1, 2)]
    assert lengths[0] == 6 * work // 10**8 == 4
    assert lengths[1] > 6
    assert len(blocks.for_evaluation(everyone)) == 2 * work // 10**8 == 1


def test_an_error_is_a_clients_own_or_ends_the_run() -> None:
    def call(block: Any) -> list[int]:
        calls.append(block.tolist())
        if 5 in block:
            raise ZeroDivisionError("a fault")
        if 6 in block:
            raise DivergenceError("too far")
        return list(block)

    calls: list[list[int]] = []
    results, failed = isolate_failures(call, np.array([3, 5, 1, 6, 2]), 7)
    assert results == [[3], [1], [2]]
    assert calls == [[3, 5, 1, 6, 2], [3], [5], [1], [6], [2]]
    assert str(failed.pop(5)).startswith("client 5 failed in round 7: ZeroDivisionError: a fault (")
    assert str(failed.pop(6)) == "too far"
    assert not failed
    assert isinstance(isolate_failures(call, np.array([5]), 1)[1][5].__cause__, ZeroDivisionError)
    assert isolate_failures(call, np.array([4, 1]), 7) == ([[4, 1]], {})
    for error in (MemoryError("none left"), FedsimError("stop"), ConfigError("wrong")):

        def end(block: Any, error: Exception = error) -> None:
            raise error

        for block in (np.array([1]), np.array([1, 2])):
            with pytest.raises(type(error), match=str(error)):
                isolate_failures(end, block, 1)


def test_updates_of_single_clients_make_a_block() -> None:
    one, other = (
        Update(np.array([k]), np.array([k + 1]), np.full((1, 2), k), np.array([k / 2]), up={"u": np.full((1, 3), k)},
               failed={9: FedsimError("not here")})
        for k in (3, 1)
    )  # fmt: skip
    block = concatenate([one, other])
    assert block.partition_ids.tolist() == [3, 1]
    assert block.weights.tolist() == [[3, 3], [1, 1]]
    assert block.up["u"].tolist() == [[3, 3, 3], [1, 1, 1]]
    assert block.update_norm is None
    assert not block.failed


def test_scores_are_averaged_over_examples() -> None:
    parts = [
        Evaluation(np.array([0, 1]), np.array([1, 3]), np.array([2.0, 4.0]), np.array([0.0, 1.0])),
        Evaluation(np.array([2]), np.array([4]), np.array([1.0]), np.array([0.5])),
    ]
    assert mean_evaluation(parts) == ((2 + 12 + 4) / 8, (3 + 2) / 8)
    assert np.isnan(mean_evaluation([])).all()


# The server strategy between a grid and its clients.


@pytest.mark.parametrize("sizes", [None, LogNormal(0.7)])
def test_replies_are_added_in_the_cohorts_order_whatever_their_own(sizes: Any) -> None:
    """By falling number of examples, then node id: in float64 another order has other bits."""
    net = MLP((64, 8, 10), dtype="float64")
    held = Dirichlet(12, alpha=0.3, sizes=sizes).federate(data.load("digits"))
    start = records.to_record(net, net.init(np.random.default_rng(0)))
    strategy = FedAvg(seed=3)
    with make_grid(net, held, SGD()) as grid:
        replies: Any = list(grid.send_and_receive(list(strategy.configure_train(1, start, ConfigRecord(), grid))))
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    order = sorted(range(12), key=lambda k: (-held.partition.sizes[k], k))
    rows = [records.to_flat(net, by_node[k + 2].content.array_records["arrays"]) for k in order]
    total = np.zeros(net.num_parameters)
    for k, row in zip(order, rows, strict=True):
        total = total + row * float(held.partition.sizes[k])
    expected = total / held.partition.sizes.sum()
    assert [reply.metadata.src_node_id - 2 for reply in replies] == order
    for shuffled in (replies, replies[::-1], [by_node[node] for node in sorted(by_node)]):
        record, _ = strategy.aggregate_train(1, shuffled)
        assert record is not None
        assert np.array_equal(records.to_flat(net, record), expected)


def test_a_cohort_is_a_share_of_the_nodes_but_at_least_so_many() -> None:
    """Of training by min_train_nodes, of evaluation by min_evaluate_nodes; no more than there are."""
    net = MLP((64, 10))
    start = records.to_record(net, np.zeros(net.num_parameters, np.float32))
    strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0.25, min_train_nodes=3, min_evaluate_nodes=5)
    found = []
    for clients in (12, 2):
        grid = make_grid(net, IID(clients).federate(data.load("digits")), SGD())
        for configure in (strategy.configure_train, strategy.configure_evaluate):
            found.append(len(list(configure(1, start, ConfigRecord(), grid))))
    assert found == [6, 5, 2, 2]
    least = FedAvg(fraction_train=0.25, min_train_nodes=4, min_evaluate_nodes=9, min_clients=4)
    least.check_clients(12)
    with pytest.raises(ConfigError, match=r"min_clients is 5; allowed: 1 to 4, the clients sampled in a round"):
        FedAvg(fraction_train=0.25, min_train_nodes=4, min_evaluate_nodes=9, min_clients=5).check_clients(12)
    none = FedAvg(fraction_train=0.0, fraction_evaluate=0.0)
    assert list(none.configure_train(1, start, ConfigRecord(), grid)) == []
    assert list(none.configure_evaluate(1, start, ConfigRecord(), grid)) == []
    outcome = grid.send_and_receive([])
    assert strategy.aggregate_evaluate(1, outcome) is None
    assert strategy.aggregate_train(1, outcome) == (None, None)


class Halves(SGD):
    """Counts each client for as much as any other."""

    def server_state(self, weights: Any, server: Any) -> dict[str, Any]:
        return {}

    def weigh(self, num_examples: Any, up: Any) -> Any:
        return np.ones(len(num_examples))


def test_the_length_of_the_mean_update_is_by_examples_under_a_strategy_with_weights_of_its_own() -> None:
    """While the model is the mean by its weights."""
    net = MLP((2, 2), dtype="float64")
    sums = Aggregation(Mean(), ServerHooks(Halves(), net, 9, 0))
    sums.add(Update(np.array([0, 1]), np.array([1, 3]), np.array([[0.0] * 6, [4.0] * 6]), np.array([1.0, 2.0])))
    sums.add(Update(np.array([], int), np.array([], int), np.empty((0, 6)), np.empty(0)))
    assert sums.combined.tolist() == [2.0] * 6
    assert sums.mean().tolist() == [3.0] * 6
    assert (sums.clients, sums.examples, sums.train_loss) == (2, 4, 7 / 4)
