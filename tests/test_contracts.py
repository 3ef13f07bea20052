"""Each contract's promises, checked on every class that implements it.

`Model` and `ClientStrategy` have checks that users run too: tests/test_model.py and tests/test_testing.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same
from numpy.typing import NDArray

from fedsim import Experiment, clients, servers, updates
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.clients.local_round import new_client_state, run_local_round
from fedsim.clients.task import Task, Update
from fedsim.engines.engine import Engine
from fedsim.engines.ray import RayEngine
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import FedsimError
from fedsim.flower import strategies
from fedsim.objects import classes_of, from_text, to_text
from fedsim.secure import SecureAggregation
from fedsim.secure.clients import CHANGE
from fedsim.secure.server import SecureSum
from fedsim.splits import Dirichlet, LogNormal
from fedsim.study import config
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, EarlyStopping
from fedsim.study.progress import ProgressBar
from fedsim.study.runner import RejectedRounds
from fedsim.updates import TransformContext, UpdateTransform
from fedsim.updates.aggregators import Aggregator

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import extend_round

Array = NDArray[Any]

# Engines.

BASE = Experiment(
    split=Dirichlet(12, alpha=0.3, sizes=LogNormal(0.8)), client=clients.SCAFFOLD(lr=0.2), test_fraction=0.2, seed=3
)
ENGINES = [ThreadEngine, SuperNodeEngine, pytest.param(RayEngine, marks=pytest.mark.slow)]
#: Not in the order of their ids or sizes, and not all of them.
COHORT = np.array([7, 2, 11, 0, 5, 9, 1])


@contextmanager
def opened(engine: Any, experiment: Experiment) -> Iterator[Engine]:
    runtime = build_runtime(experiment)
    if engine is not SuperNodeEngine:
        with engine(runtime, workers=2, block_size=2) as made:
            yield made
        return
    settings = {"experiment": config.to_toml(experiment)}
    with (
        strategies.quiet(),
        AppGrid(app.client_app, 4, run_config=settings, workers=2) as grid,
        engine(runtime, block_size=2, grid=grid, nodes=4) as made,
    ):
        yield made


def task_of(engine: Engine, number: int) -> Task:
    model = engine.runtime.model
    zeros = {name: np.zeros(model.num_parameters, model.dtype) for name in engine.runtime.client.broadcast}
    return engine.runtime.task(model.init(np.random.default_rng(1)), number, down=zeros)


def joined(blocks: list[Any], name: str) -> Array:
    return np.concatenate([getattr(block, name) for block in blocks])


def assert_equal(blocks: list[Update], expected: Update) -> None:
    assert not any(block.failed for block in blocks)
    for name in ("partition_ids", "num_examples", "weights", "train_loss"):
        assert np.array_equal(joined(blocks, name), getattr(expected, name)), name
    for name, rows in expected.up.items():
        assert np.array_equal(np.concatenate([block.up[name] for block in blocks]), rows), name


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_trains_a_cohort_in_order_and_stores_state_only_when_told(engine: Any) -> None:
    with opened(engine, BASE) as made:
        first, second = task_of(made, 1), task_of(made, 2)
        expected = run_local_round(first, COHORT, new_client_state(first, COHORT))
        blocks = list(made.train(first, COHORT))
        assert len(blocks) > 1
        assert_equal(blocks, expected)
        assert_equal(list(made.train(first, COHORT)), expected)  # nothing was stored
        made.client_state.commit(1, blocks)
        assert_equal(list(made.train(second, COHORT)), run_local_round(second, COHORT, dict(expected.state)))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_evaluates_clients_in_order_on_their_own_test_examples(engine: Any) -> None:
    with opened(engine, BASE) as made:
        task = task_of(made, 1)
        blocks = list(made.evaluate(task, COHORT))
        assert np.array_equal(joined(blocks, "partition_ids"), COHORT)
        held = made.runtime.federated.partition_test
        assert held is not None
        assert np.array_equal(joined(blocks, "num_examples"), held.sizes[COHORT])
        for client, loss, accuracy in zip(COHORT, joined(blocks, "loss"), joined(blocks, "accuracy"), strict=True):
            own = held.indices[held.offsets[client] : held.offsets[client + 1]]
            x, y = made.runtime.x[None, own], made.runtime.y[None, own]
            losses, correct = made.runtime.model.evaluate(task.global_weights[None], x, y)
            np.testing.assert_allclose([loss, accuracy], [losses[0] / len(own), correct[0] / len(own)], rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_client_state_is_saved_and_loaded_or_the_loss_is_reported(engine: Any) -> None:
    with opened(engine, BASE) as made:
        made.client_state.commit(1, list(made.train(task_of(made, 1), COHORT)))
        saved, expected = made.client_state.state_dict(), list(made.train(task_of(made, 2), COHORT))
    with opened(engine, BASE) as made:
        if saved is None:  # it was on SuperNodes, and has gone with them
            with pytest.raises(FedsimError, match="start the run anew"):
                made.client_state.load_state_dict(saved)
            return
        made.client_state.load_state_dict(saved)
        found = list(made.train(task_of(made, 2), COHORT))
        assert np.array_equal(joined(found, "weights"), joined(expected, "weights"))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_protects_updates_and_exchanges_keys_in_order(engine: Any) -> None:
    """The sum of what it yields, once the masks are removed, is the mean of the plain updates."""
    settings = SecureAggregation()
    plain = ThreadEngine(build_runtime(BASE), workers=1)
    with opened(engine, replace(BASE, secure_aggregation=settings)) as made, plain:
        task = task_of(made, 1)
        sizes = task.partition.sizes[COHORT]
        total = SecureSum(settings, partial(made.exchange, task), task.seed, task.round)
        total.share_keys(COHORT, np.stack([sizes, sizes], axis=1) / sizes.max())
        assert np.array_equal(total.clients, COHORT)
        blocks = list(made.train(task, COHORT))
        assert np.array_equal(joined(blocks, "partition_ids"), COHORT)
        assert joined(blocks, "weights").size == 0
        assert not any(block.up for block in blocks)
        for block in blocks:
            total.add(block)
        found = total.mean()
        assert found
        expected = np.concatenate([block.weights for block in plain.train(task, COHORT)])
        mean = np.average(expected, axis=0, weights=sizes)
        np.testing.assert_allclose(task.global_weights + found[0][CHANGE], mean, atol=1e-6)


def test_no_engine_extends_another() -> None:
    kinds = (ThreadEngine, SuperNodeEngine, RayEngine)
    assert not any(issubclass(one, other) for one in kinds for other in kinds if one is not other)


# Aggregators.

SERVERS: dict[str, Any] = {name: getattr(servers, name) for name in servers.__all__}
SERVERS |= {
    "QFedAvg": partial(servers.QFedAvg, client_learning_rate=0.1),
    "UniformFedAvg": extend_round.UniformFedAvg,
    "NormBounding, streaming": partial(servers.NormBounding, norm=2.0),
    "FoolsGold": partial(servers.FoolsGold, output_layer=False),
    "SpectralFilter": partial(servers.SpectralFilter, num_malicious_nodes=2),
}


def blocks_of(rows: Array, sizes: NDArray[np.int64], cuts: list[int]) -> list[tuple[Update, NDArray[np.float64]]]:
    """Cut a cohort's updates into blocks before the given rows."""
    edges = [0, *cuts, len(rows)]
    parts = [np.arange(first, last) for first, last in pairwise(edges)]
    loss = np.ones(len(rows))
    return [(Update(part, sizes[part], rows[part].copy(), loss[part]), sizes[part].astype(float)) for part in parts]


def aggregate(server: Any, rows: Array, sizes: NDArray[np.int64], cuts: list[int]) -> Array:
    aggregator: Aggregator = server.aggregator()
    for update, weights in blocks_of(rows, sizes, cuts):
        aggregator.add(update, weights)
    return aggregator.result()


def server_of(name: str) -> Any:
    made = SERVERS[name]()
    made._sent_flat = np.zeros(40, np.float32)  # the global model of the round, as `configure_train` notes it
    if isinstance(made, servers.FLTrust):
        made.train_on_root = lambda number, weights: weights + 1
    return made


@pytest.mark.parametrize("name", SERVERS)
def test_an_aggregator_gives_one_model_however_the_cohort_is_cut(name: str) -> None:
    rng = np.random.default_rng(2)
    rows, sizes = rng.normal(size=(11, 40)).astype(np.float32), rng.integers(1, 50, 11)
    whole = aggregate(server_of(name), rows, sizes, [])
    assert whole.shape == (40,)
    assert np.isfinite(whole).all()
    for cuts in ([1, 2, 7], list(range(1, 11))):
        assert np.array_equal(aggregate(server_of(name), rows, sizes, cuts), whole)
    assert server_of(name).aggregator().needs in ("sums", "rows")


#: The step is part of the aggregator, updates are scaled, or equal ones have no weight.
OTHER_NORMS = {"QFedAvg", "FLTrust", "NormBounding, streaming", "FoolsGold"}


@pytest.mark.parametrize("name", sorted(SERVERS.keys() - OTHER_NORMS))
def test_an_aggregator_combines_equal_updates_to_that_update_and_does_not_write_on_them(name: str) -> None:
    row = np.random.default_rng(4).normal(size=40).astype(np.float32)
    rows = np.repeat(row[None], 11, axis=0)
    before = rows.copy()
    found = aggregate(server_of(name), rows, np.arange(1, 12), [4])
    np.testing.assert_allclose(found, row, rtol=1e-6, atol=1e-7)
    assert np.array_equal(rows, before)


# Update transforms.

TRANSFORMS = [
    *(made() for made in classes_of(updates, UpdateTransform).values()),
    UpdateTransform(),
    extend_round.Clip(0.5),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_a_transform_works_row_by_row_and_the_server_gets_what_it_expects(transform: UpdateTransform) -> None:
    values = np.random.default_rng(5).normal(size=(6, 30))
    whole = TransformContext(seed=1, round=2, clients=np.array([4, 0, 9, 3, 8, 1]), length=30, position=1)

    def both_ways(rows: NDArray[np.intp]) -> tuple[Array, Array]:
        ctx, given = replace(whole, clients=whole.clients[rows]), values[rows]
        before = given.copy()
        sent, side = transform.on_client(given, ctx)
        assert np.array_equal(given, before)  # what it was given is not changed in place
        kept = [sent.copy(), *(part.copy() for part in side.values())]
        assert all(len(part) == len(rows) for part in kept)
        arrived = transform.on_server(sent, side, ctx)
        assert all(np.array_equal(a, b) for a, b in zip(kept, [sent, *side.values()], strict=True))
        return sent, arrived

    sent, arrived = both_ways(np.arange(6))
    assert arrived.shape == values.shape
    assert np.isfinite(arrived).all()
    for rows in (np.array([2]), np.array([5, 1])):
        alone = both_ways(rows)
        assert np.array_equal(alone[0], sent[rows])
        assert np.array_equal(alone[1], arrived[rows])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_a_transform_is_a_value_with_a_text(transform: UpdateTransform) -> None:
    names = {type(transform).__name__: type(transform)}
    assert from_text("transforms", to_text(transform, names), names) == transform
    assert replace(transform) == transform
    if transform.is_contractive:  # the error is smaller than the values, which error feedback relies on
        values = np.random.default_rng(6).normal(size=(3, 30))
        ctx = TransformContext(1, 2, np.arange(3), 30)
        arrived = transform.on_server(*transform.on_client(values, ctx), ctx)
        assert (np.linalg.norm(values - arrived, axis=1) < np.linalg.norm(values, axis=1)).all()


# Callbacks.


@pytest.mark.parametrize(
    "callback",
    [
        Callback(),
        EarlyStopping(patience=100),
        ProgressBar(5, show=False),
        RejectedRounds(),
        extend_round.StopAtDrift(limit=1e9),
        app._PrintMetrics(),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_callback_watches_runs_one_after_another_without_changing_them(callback: Callback) -> None:
    experiment = Experiment(split=Dirichlet(6, alpha=0.3), rounds=5, fraction_evaluate=1.0)
    expected = experiment.run()
    for _ in range(2):
        assert same(experiment.run(callbacks=[callback]), expected)
