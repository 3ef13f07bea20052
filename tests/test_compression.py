"""Compression of what clients send: each transform's promise, bytes as they are sent, the same bits on every engine."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from helpers import same
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim import Experiment, clients
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.clients import SGD
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.errors import ConfigError
from fedsim.flower import strategies
from fedsim.splits import Dirichlet
from fedsim.streams import Purpose, generator
from fedsim.study import config
from fedsim.updates import Float16, Int8, RandomMask, TopK, TransformContext, UpdateTransform
from fedsim.updates.transform import Pipeline

BASE = Experiment(split=Dirichlet(12, alpha=0.4), rounds=3, fraction_train=0.7, client=SGD(epochs=2))
#: What is none of the things that are allowed.
ANY: Any = 3
ALL: list[tuple[UpdateTransform, ...]] = [
    (Float16(),),
    (Int8(),),
    (TopK(0.1),),
    (TopK(0.1, error_feedback=False), Int8()),
    (TopK(0.2), Float16()),
    (RandomMask(0.25),),
    (RandomMask(0.5), TopK(0.5, error_feedback=False), Int8()),
]
NAMES = ["-".join(type(t).__name__ for t in transforms) for transforms in ALL]


def change(rows: int = 3, length: int = 200) -> NDArray[Any]:
    return np.random.default_rng(0).normal(size=(rows, length)).astype(np.float32)


def there_and_back(transforms: tuple[UpdateTransform, ...], values: NDArray[Any], seed: int = 0) -> NDArray[Any]:
    compression = Pipeline(transforms, np.ones(values.shape[1], dtype=bool), "float32")
    who = (seed, 1, np.arange(len(values)))
    return compression.decode(compression.encode(values, *who), *who)


def test_half_precision_is_numpys_and_saturates() -> None:
    values = change()
    values[:2, 0] = 1e9, -1e9
    back = there_and_back((Float16(),), values)
    assert back[:2, 0].tolist() == [65504, -65504]
    assert np.array_equal(back[:, 1:], values[:, 1:].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("transform", [Int8(), RandomMask(0.3)])
def test_random_transforms_are_right_on_average(transform: UpdateTransform) -> None:
    values = change(1, 50)
    tries = np.concatenate([there_and_back((transform,), values, seed) for seed in range(3000)]).astype(np.float64)
    error = tries.std(axis=0) / np.sqrt(len(tries))
    assert (np.abs(tries.mean(axis=0) - values[0]) < 5 * error + 1e-6).all()


def test_bytes_are_within_a_step_of_the_values() -> None:
    values = change()
    back = there_and_back((Int8(),), values)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - values) <= step * 1.0001).all()
    assert not there_and_back((Int8(),), np.zeros((2, 9), np.float32)).any()
    # A scale is rounded to float32, so that the largest value may be more than 127 steps; it still fits a byte.
    most = np.random.default_rng(1).uniform(0.5, 1, size=(400, 1)) * np.array([[1, -1]])
    sent, side = Int8().on_client(most, TransformContext(0, 1, np.arange(400), 2))
    assert sent[:, 0].tolist() == [127] * 400
    assert set(sent[:, 1].tolist()) <= {-127, -126}
    assert side["scale"].dtype == np.float32
    np.testing.assert_allclose(side["scale"], most[:, 0] / 127, rtol=1e-6)


@given(st.floats(0.01, 1.0), st.integers(1, 60), st.integers(0, 2**32))
def test_top_k_sends_the_largest(fraction: float, length: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, length)).astype(np.float32)
    back = there_and_back((TopK(fraction),), values)
    kept = max(1, round(fraction * length))
    for row, sent in zip(values, back, strict=True):
        assert np.count_nonzero(sent) == kept
        assert np.array_equal(sent[sent != 0], row[sent != 0])
        assert np.abs(row[sent == 0]).max(initial=0) <= np.abs(row[sent != 0]).min()


def test_what_is_not_sent_is_sent_later() -> None:
    """Error feedback: all that has been sent and what is kept add up to all changes."""
    from fedsim.rounds.grid import make_grid
    from fedsim.updates.transform import RESIDUAL

    experiment = replace(BASE, transforms=(TopK(0.05), Int8()), fraction_train=1.0)
    dataset = experiment.load_data()
    model = experiment.make_model(dataset)
    grid = make_grid(model, experiment.federate(dataset), experiment.client, transforms=experiment.transforms)
    plain = make_grid(model, experiment.federate(dataset), experiment.client)
    ids = np.arange(12)
    ids = ids[np.lexsort((ids, -grid.runtime.partition.sizes))]
    start = np.random.default_rng(0).normal(0, 0.1, model.num_parameters).astype(np.float32)
    sent, changed = np.zeros((12, model.num_parameters)), np.zeros((12, model.num_parameters))
    for number in range(1, 6):
        for held, total in ((grid, sent), (plain, changed)):
            for update in held.engine.train(held.runtime.task(start, number), ids):
                total[update.partition_ids] += update.weights - start
                held.engine.client_state.commit(number, [update])
    held_state: Any = grid.engine.client_state
    kept = held_state.load(np.arange(12), lambda new: {})[RESIDUAL]
    np.testing.assert_allclose(sent + kept, changed, atol=1e-5)


#: What one client sends of a model with 2,410 parameters, as (dtype, length) of each array: counted by hand.
SENT: list[list[tuple[str, tuple[int, ...]]]] = [
    [("float16", (2410,))],
    [("int8", (2410,)), ("float32", ())],
    [("float32", (241,)), ("uint16", (241,))],
    [("int8", (241,)), ("uint16", (241,)), ("float32", ())],
    [("float16", (482,)), ("uint16", (482,))],
    [("float32", (602,))],
    [("int8", (602,)), ("uint16", (602,)), ("float32", ())],
]


@pytest.mark.parametrize(("transforms", "sent"), list(zip(ALL, SENT, strict=True)), ids=NAMES)
def test_bytes_are_those_of_the_arrays_that_travel(
    transforms: tuple[UpdateTransform, ...], sent: list[tuple[str, tuple[int, ...]]]
) -> None:
    """An array's bytes are its numbers and NumPy's header of 128 bytes."""
    experiment = replace(BASE, transforms=transforms, rounds=1, fraction_train=1.0)
    assert experiment.make_model(experiment.load_data()).num_parameters == 2410
    each = sum(128 + np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in sent)
    assert experiment.run().history["bytes_up"].iloc[1] == 12 * each


@pytest.mark.parametrize(("length", "dtype"), [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_indices_are_as_narrow_as_the_model_allows(length: int, dtype: str) -> None:
    values = np.zeros((1, length))
    values[0, -1] = 1  # the last coordinate has the largest index
    sent, side = TopK(1 / length).on_client(values, TransformContext(0, 1, np.array([0]), length))
    assert side["index"].dtype == dtype
    assert side["index"].tolist() == [[length - 1]]
    assert sent.tolist() == [[1.0]]


@pytest.mark.parametrize(
    "chain", [(TopK(0.5), RandomMask(0.1)), (RandomMask(0.5), TopK(0.5), Int8()), (Int8(), TopK(0.2), RandomMask(0.9))]
)
def test_error_feedback_refuses_what_is_no_contraction(chain: tuple[UpdateTransform, ...]) -> None:
    with pytest.raises(ConfigError, match=r"TopK.*with error feedback together with RandomMask.*error_feedback=False"):
        replace(BASE, transforms=chain)
    with pytest.raises(ConfigError, match="with error feedback together with RandomMask"):
        Pipeline(chain, np.ones(5, dtype=bool), "float32")
    without = tuple(replace(t, error_feedback=False) if isinstance(t, TopK) else t for t in chain)
    assert replace(BASE, transforms=without).transforms == without
    assert replace(BASE, transforms=(TopK(0.5), RandomMask(1.0))).transforms


@pytest.mark.parametrize(
    "chain", [(TopK(0.1),), (TopK(0.1), Int8()), (Int8(), TopK(0.1)), (TopK(0.1), Float16()), (Float16(), TopK(0.1))]
)
def test_the_residual_of_a_contraction_stays_bounded(chain: tuple[UpdateTransform, ...]) -> None:
    """With changes of norm g and k of d coordinates sent it stays below g (1 - delta) / delta, delta = k / d / 2."""
    rng = np.random.default_rng(4)
    compression = Pipeline(chain, np.ones(300, dtype=bool), "float64")
    residual, g, worst = np.zeros((1, 300)), 1.0, 0.0
    for number in range(1, 400):
        step = rng.standard_t(2, size=(1, 300)) + 0.5
        given = residual + g * step / np.linalg.norm(step)
        who = (0, number, np.array([0]))
        residual = given - compression.decode(compression.encode(given, *who), *who)
        worst = max(worst, float(np.linalg.norm(residual)))
    assert worst < g * (1 - 0.05) / 0.05


def test_every_transform_that_contracts_does_and_the_other_does_not() -> None:
    """`is_contractive` against the largest ratio of what is lost to what was there, over many vectors."""
    rng = np.random.default_rng(8)
    for transform in (Float16(), Int8(), TopK(0.1), RandomMask(0.3)):
        values = rng.standard_t(3, size=(200, 120))
        back = Pipeline((transform,), np.ones(120, dtype=bool), "float64")
        who = (0, 1, np.arange(200))
        lost = np.linalg.norm(values - back.decode(back.encode(values, *who), *who), axis=1)
        assert (lost.mean() < np.linalg.norm(values, axis=1).mean()) == transform.is_contractive


def on_supernodes(experiment: Experiment, client_app: ClientApp = app.client_app) -> Any:
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), AppGrid(client_app, 5, run_config=settings) as grid:
        return experiment.run(engine=partial(SuperNodeEngine, grid=grid, nodes=5))


@pytest.mark.parametrize("transforms", ALL, ids=NAMES)
def test_the_same_bits_on_supernodes_workers_and_blocks(transforms: tuple[UpdateTransform, ...]) -> None:
    experiment = replace(BASE, transforms=transforms)
    here = experiment.run()
    assert same(here, on_supernodes(experiment))
    assert same(here, experiment.run(workers=2, block_size=1))
    assert not np.array_equal(here.weights["W1"], BASE.run().weights["W1"])


@pytest.mark.parametrize("client", [clients.SCAFFOLD(), clients.FedPer(), clients.Ditto()])
def test_it_goes_with_other_state_and_private_parameters(client: SGD) -> None:
    experiment = replace(BASE, transforms=(TopK(0.3), Float16()), client=client, fraction_evaluate=1.0)
    assert same(experiment.run(), on_supernodes(experiment))


def test_what_travels_is_encoded() -> None:
    seen: list[set[str]] = []

    def look(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if message.metadata.message_type == "train":
            seen.append(set(reply.content.array_records[RESULT]))
        return reply

    watched = ClientApp(mods=[look])
    for kind in ("query", "train", "evaluate"):
        getattr(watched, kind)()(app.client_app)
    on_supernodes(replace(BASE, transforms=(TopK(0.1), Int8())), watched)
    assert seen[0] == {
        "partition_ids", "num_examples", "train_loss", "encoded.values", "encoded.0.index", "encoded.1.scale"
    }  # fmt: skip


def test_learning_survives_it() -> None:
    base = replace(BASE, rounds=25, fraction_train=1.0, client=SGD(lr=0.1, epochs=3))
    plain = base.run().final_accuracy
    squeezed = replace(base, transforms=(TopK(0.05), Int8())).run()
    assert squeezed.final_accuracy > plain - 0.05
    without = replace(base, transforms=(TopK(0.05, error_feedback=False), Int8())).run()
    assert squeezed.history["bytes_up"].sum() * 10 < base.run().history["bytes_up"].sum()
    assert squeezed.final_accuracy > without.final_accuracy - 0.05


def test_it_is_written_and_read_as_text() -> None:
    experiment = replace(BASE, transforms=(TopK(0.05), Int8()))
    again = config.experiment(tomllib.loads(config.to_toml(experiment)))
    assert again.transforms == experiment.transforms
    changed = config.apply(BASE, ['transforms=["RandomMask(0.5)"]'])
    assert changed.transforms == (RandomMask(0.5),)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TopK(0), "TopK's fraction is 0; allowed"),
        (lambda: TopK(1.1), r"TopK's fraction is 1\.1; allowed"),
        (lambda: TopK(error_feedback=ANY), "TopK's error_feedback is 3; allowed"),
        (lambda: RandomMask(1.5), "RandomMask's fraction is 1.5"),
        (lambda: RandomMask(0), "RandomMask's fraction is 0; allowed"),
        (
            lambda: replace(BASE, transforms=(Int8(), RandomMask(0.1), TopK(0.5))),
            r"^transforms has TopK\(.*\) with error feedback together with RandomMask\(.*\), whose error can .* to "
            r"round; allowed: TopK with error_feedback=False, or no RandomMask$",
        ),
        (lambda: replace(BASE, transforms=ANY), "transforms is 3; allowed: a list"),
        (lambda: replace(BASE, transforms=(ANY,)), "an item of transforms is 3; allowed: a transform"),
        (
            lambda: config.apply(BASE, ['transforms=["Int9()"]']),
            r"transforms is 'Int9\(\)'; allowed: Float16, Int8.*Int8",
        ),
    ],
)
def test_bad_values_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_masks_differ_by_seed_round_and_client_and_reach_every_coordinate() -> None:
    compression = Pipeline((RandomMask(0.1),), np.ones(50, dtype=bool), "float32")
    values = np.ones((2, 50), np.float32)

    def sent(seed: int, number: int) -> NDArray[Any]:
        who = (seed, number, np.array([3, 4]))
        return np.not_equal(compression.decode(compression.encode(values, *who), *who), 0)

    masks = np.concatenate([sent(seed, number) for seed in (0, 1) for number in range(1, 11)])
    assert (masks.sum(axis=1) == 5).all()
    assert len({row.tobytes() for row in masks}) == len(masks)
    assert sum(sent(0, number)[0].astype(int) for number in range(1, 101)).min() > 0
    apart = compression.encode(values[:1], 0, 1, np.array([4]))
    np.testing.assert_array_equal(compression.decode(apart, 0, 1, np.array([4]))[0] != 0, sent(0, 1)[1])


def test_draws_differ_by_client_round_and_place() -> None:
    ids = np.array([1, 2])
    drawn = [TransformContext(0, r, ids, 5, p).rngs()[c].random() for r in (1, 2) for p in (0, 1) for c in (0, 1)]
    assert len(set(drawn)) == 8


def test_each_transform_of_a_chain_draws_numbers_of_its_own_on_both_sides() -> None:
    """A mask of a mask: the coordinates that arrive are those that both have chosen."""
    chain = (RandomMask(0.5), RandomMask(0.5), Int8())
    pipeline = Pipeline(chain, np.ones(40, dtype=bool), "float64")
    values, who = np.arange(1.0, 41)[None], (5, 2, np.array([3]))
    sent = pipeline.encode(values, *who)
    assert {name: rows.shape for name, rows in sent.items()} == {"2.scale": (1,), "values": (1, 10)}
    first, second = (
        np.sort(generator(5, Purpose.COMPRESS, 2, 3, place).permutation(length)[: length // 2])
        for place, length in ((0, 40), (1, 20))
    )
    back = pipeline.decode(sent, *who)[0]
    assert np.flatnonzero(back).tolist() == first[second].tolist()
    np.testing.assert_allclose(back[first[second]], 4 * values[0, first[second]], atol=4 * 40 / 127)


def test_only_shared_weights_travel_and_the_others_do_not_change() -> None:
    shared = np.array([True, False, True, True, False])
    pipeline = Pipeline((UpdateTransform(),), shared, "float32")
    values = np.arange(1.0, 6)[None]
    sent = pipeline.encode(values, 0, 1, np.array([0]))
    assert sent["values"].tolist() == [[1, 3, 4]]
    assert sent["values"].dtype == np.float32
    back = pipeline.decode(sent, 0, 1, np.array([0]))
    assert back.tolist() == [[1, 0, 3, 4, 0]]
    assert back.dtype == np.float32
    assert not pipeline.error_feedback
    assert Pipeline((Int8(), TopK(0.5)), shared, "float32").error_feedback


def test_a_transform_of_numpys_numbers_is_the_one_of_pythons() -> None:
    made = TopK(np.float32(0.5), error_feedback=np.bool_(False))  # type: ignore[arg-type]
    assert repr(made) == "TopK(fraction=0.5, error_feedback=False)"
    assert type(made.fraction) is float
