"""Example-level differential privacy: DP-SGD's steps in both kernels, what they cost, what is refused."""

from __future__ import annotations

import argparse
import pickle
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp import strategy as stock
from helpers import cases, same
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim import Experiment, clients, kernels, servers, streams
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.cli import privacy as cli_privacy
from fedsim.clients.example_noise import ExampleNoise
from fedsim.data import Dataset
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.errors import ConfigError
from fedsim.flower import strategies as flower_strategies
from fedsim.kernels import compiled
from fedsim.kernels.fit import FitJob, FitResult, PrivateSteps
from fedsim.models import MLP
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.clipping import clipped_by_example
from fedsim.models.losses import LOSSES
from fedsim.privacy import ExampleDP, LocalDP
from fedsim.privacy.accounting import PrivacyLoss, default_delta
from fedsim.privacy.examples import ExampleLosses
from fedsim.splits import IID, Dirichlet, FederatedDataset, Partition, TimeOrdered
from fedsim.study import config, saving
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, EarlyStopping, FinishedRound
from fedsim.updates import Int8, TopK

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

Array = NDArray[Any]
TOLERANCE = {"float32": 2e-4, "float64": 1e-11}


@st.composite
def private_fits(draw: st.DrawFn) -> FitJob:
    """Draw a private fit of a block of ragged clients of any network."""
    widths = st.integers(1, 40)
    loss = draw(st.sampled_from(sorted(LOSSES)))
    outputs = draw(st.integers(2, 40) if loss == "cross_entropy" else widths)
    hidden = draw(st.lists(widths, max_size=3))
    # Rounding decides on which side of 0 a ReLU's argument lies, which float64 hides.
    dtype = draw(st.sampled_from(["float32", "float64"]))
    activation = draw(st.sampled_from(sorted(ACTIVATIONS if dtype == "float64" else {"tanh", "sigmoid"})))
    model = MLP((draw(widths), *hidden, outputs), activation, loss, dtype)
    sizes = np.array(sorted(draw(st.lists(st.integers(1, 45), min_size=1, max_size=6)), reverse=True))
    batch = draw(st.integers(0, 50))
    trained = draw(st.lists(st.booleans(), min_size=len(hidden) + 1, max_size=len(hidden) + 1).filter(any))
    clip = draw(st.sampled_from([1e-3, 0.3, 2.0, 1e6]))
    noise = ExampleNoise(
        clip, min(draw(st.sampled_from([0.0, 1.0])), 1 / clip), draw(st.sampled_from(["poisson", "fixed"]))
    )

    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(size=(sizes.sum(), model.sizes[0])).astype(dtype)
    y = rng.integers(0, max(2, outputs), sizes.sum())
    values = rng.normal(size=sizes.sum()).astype(dtype)
    held = Partition(rng.permutation(sizes.sum()), np.concatenate([[0], np.cumsum(sizes)]))
    clients, steps = np.arange(len(sizes)), rng.integers(1, 9, len(sizes))
    start = model.init(rng)
    start += 0.1 * rng.normal(size=start.shape).astype(dtype)
    rows = (len(sizes), start.size)
    return FitJob(
        model=model,
        x=x,
        y=values if outputs == 1 and loss == "mse" and draw(st.booleans()) else y,
        partition=held,
        clients=clients,
        start=(start + 0.1 * rng.normal(size=rows)).astype(dtype) if draw(st.booleans()) else start[None],
        steps=steps,
        shuffles=np.empty((0, len(sizes)), np.uint64),
        batch_size=batch,
        lr=rng.uniform(0.01, 0.1, len(sizes)),
        momentum=draw(st.sampled_from([0.0, 0.9])),
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
        mu=draw(st.sampled_from([0.0, 0.5])),
        center=(start + 0.1 * rng.normal(size=rows)).astype(dtype) if draw(st.booleans()) else start[None],
        correction=(0.02 * rng.normal(size=rows)).astype(dtype) if draw(st.booleans()) else None,
        trained=tuple(trained),
        private=noise.steps(3, 2, clients, sizes, steps, batch),
    )


def check_agree(job: FitJob, found: FitResult, expected: FitResult) -> None:
    moved = np.abs(expected.weights - job.start)
    eps = np.finfo(job.model.dtype).eps
    allowed = TOLERANCE[job.model.dtype] * moved.max() + 50 * eps * np.abs(expected.weights).max()
    assert np.abs(found.weights - expected.weights).max() <= allowed
    np.testing.assert_allclose(found.loss, expected.loss, rtol=10 * TOLERANCE[job.model.dtype], atol=1e-12)


# The definition: one client, one step and one example after another.


def gradient_of(job: FitJob, weights: Array, example: int) -> tuple[float, Array]:
    """Return the loss of an example and its gradient by all trained parameters, 0 for the others."""
    loss, grad = job.model.loss_and_gradient(weights[None], job.x[[[example]]], job.y[[[example]]])
    for group, trained in zip(job.model.groups, job.trained, strict=True):
        for name in group:
            grad[0, job.model.layout[name][0]] *= trained
    return float(loss[0]), grad[0].astype(np.float64)


def fit_by_loop(job: FitJob) -> FitResult:
    private, model = job.private, job.model
    assert private is not None
    rows, losses = [], []
    on = np.zeros(model.num_parameters)
    for group, trained in zip(model.groups, job.trained, strict=True):
        for name in group:
            on[model.layout[name][0]] = trained
    for k, client in enumerate(job.clients):
        shard = job.partition[int(client)]
        order = list(range(len(shard)))
        start, center = (np.broadcast_to(a, (len(job.clients), on.size))[k] for a in (job.start, job.center))
        w, velocity, total = start.astype(np.float64), np.zeros(on.size), 0.0
        for step in range(job.steps[k]):
            batch = int(private.counts[step, k])
            drawn = streams.words(private.batches[step, k : k + 1], batch)[0]
            for place in range(batch):  # Fisher and Yates
                other = place + (int(drawn[place]) >> 32) * (len(order) - place) // 2**32
                order[place], order[other] = order[other], order[place]
            grad = private.noise * streams.normals(private.normals[step, k : k + 1], on.size, model.dtype)[0]
            grad = grad.astype(np.float64)
            for example in shard[order[:batch]]:
                loss, one = gradient_of(job, w.astype(model.dtype), example)
                norm = np.sqrt((one**2).sum())
                grad += one * min(1, private.clip / norm) if norm else 0
                total += loss
            grad = grad / private.expected[k] + job.weight_decay * w + job.mu * (w - center)
            if job.correction is not None:
                grad += job.correction[k]
            velocity = job.momentum * velocity + grad
            w = w - job.lr[k] * velocity * on
        rows.append(w)
        losses.append(total)
    return FitResult(np.array(rows), np.array(losses), np.zeros(len(rows)))


@settings(deadline=None, max_examples=cases(12))
@given(private_fits())
def test_the_definition_is_a_loop_over_clients_steps_and_examples(job: FitJob) -> None:
    check_agree(job, kernels.load("numpy").fit(job), fit_by_loop(job))


@pytest.mark.parametrize("hidden", [(), (9,), (9, 7), (9, 7, 5)])
@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_clipped_gradients_are_those_of_single_examples(hidden: tuple[int, ...], loss: str, activation: str) -> None:
    model = MLP((6, *hidden, 4), activation, loss, "float64")
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(3, model.num_parameters))
    x, y = rng.normal(size=(3, 8, 6)), rng.integers(0, 4, (3, 8))
    for groups in (None, model.groups[-1:], model.groups[:1]):
        norms = []
        for k in range(8):
            _, grad = clipped_by_example(model, weights, x[:, [k]], y[:, [k]], 1e9, groups)
            norms.append(np.linalg.norm(grad, axis=1))
        for clip in (0.5 * np.min(norms), np.median(norms), 2 * np.max(norms)):
            found, expected = (
                clip_all(weights, x, y, clip, groups)
                for clip_all in (model.clipped_gradient, lambda *args: clipped_by_example(model, *args))
            )
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-13)


def test_the_gradient_of_one_example_is_the_finite_difference() -> None:
    """For the loop above, which relies on the model's gradient of a batch of one."""
    model = MLP((5, 4, 3), "tanh", "cross_entropy", "float64")
    rng = np.random.default_rng(2)
    weights, x, y = rng.normal(size=(1, model.num_parameters)), rng.normal(size=(1, 1, 5)), rng.integers(0, 3, (1, 1))
    _, grad = model.clipped_gradient(weights, x, y, 1e9)
    for k in range(weights.size):
        change = np.zeros_like(weights)
        change[0, k] = 1e-6
        up, down = (model.loss_and_gradient(weights + s * change, x, y)[0][0] for s in (1, -1))
        assert grad[0, k] == pytest.approx((up - down) / 2e-6, abs=1e-8)


def test_an_empty_batch_shrinks_weights_as_any_other() -> None:
    model = MLP((3, 2), dtype="float64")
    start = np.ones((1, 8))
    private = PrivateSteps(
        1.0, 0.0, np.array([[0]]), np.array([[1]], np.uint64), np.array([[2]], np.uint64), np.array([2.0])
    )
    for momentum in (0.0, 0.9):
        job = FitJob(
            model=model, x=np.ones((2, 3)), y=np.array([0, 1]), partition=Partition(np.arange(2), np.array([0, 2])),
            clients=np.array([0]), start=start, steps=np.array([1]), shuffles=np.empty((0, 1), np.uint64),
            batch_size=1, lr=np.array([0.5]), momentum=momentum, weight_decay=0.1, mu=0.3, center=np.zeros((1, 8)),
            correction=np.full((1, 8), 0.2), trained=(True,), private=private,
        )  # fmt: skip
        for kernel in ("numpy", "compiled"):
            found = kernels.load(kernel).fit(job).weights
            np.testing.assert_allclose(found, 1 - 0.5 * (0.1 + 0.3 + 0.2))


def test_an_empty_batch_is_noise_only() -> None:
    model = MLP((3, 2), dtype="float64")
    job = FitJob(
        model=model, x=np.ones((2, 3)), y=np.array([0, 1]), partition=Partition(np.arange(2), np.array([0, 2])),
        clients=np.array([0]), start=np.zeros((1, 8)), steps=np.array([1]), shuffles=np.empty((0, 1), np.uint64),
        batch_size=1, lr=np.array([0.5]), momentum=0.0, weight_decay=0.0, mu=0.0, center=np.zeros((1, 8)),
        correction=None, trained=(True,),
        private=PrivateSteps(
            1.0, 3.0, np.array([[0]]), np.array([[1]], np.uint64), np.array([[2]], np.uint64), np.array([2.0])
        ),
    )  # fmt: skip
    for kernel in ("numpy", "compiled"):
        fitted = kernels.load(kernel).fit(job)
        assert fitted.loss == 0
        np.testing.assert_allclose(fitted.weights, -0.5 * 3.0 * streams.normals(np.array([2], np.uint64), 8) / 2.0)


def run_on(threads: int, work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()


@settings(deadline=None, max_examples=cases(40))
@given(private_fits(), st.integers(1, 3))
def test_the_compiled_kernel_agrees_and_threads_and_blocks_change_no_bit(job: FitJob, threads: int) -> None:
    fast = compiled.fit(replace(job, run_on_all_workers=partial(run_on, threads)))
    check_agree(job, fast, kernels.load("numpy").fit(job))
    for k in range(len(job.clients)):
        for values, alone in zip(fast, compiled.fit(row_of(job, k)), strict=True):
            assert np.array_equal(values[k], alone[0])


def row_of(job: FitJob, k: int) -> FitJob:
    """Return the job of one client of a block."""

    def own(values: Any) -> Any:
        return values if values is None or len(values) == 1 else values[k : k + 1]

    assert job.private is not None
    columns: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(job.private, name)[:, [k]]) for name in ("counts", "batches", "normals")
    }
    return replace(
        job,
        clients=job.clients[[k]],
        steps=job.steps[[k]],
        shuffles=job.shuffles[:, [k]],
        lr=job.lr[[k]],
        start=own(job.start),
        center=own(job.center),
        correction=own(job.correction),
        private=replace(job.private, expected=job.private.expected[[k]], **columns),
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_batches_of_more_than_a_chunk_and_noise_over_many_blocks(momentum: float) -> None:
    """The compiled kernel keeps 640 examples at a time, and 512 normal numbers."""
    model = MLP((60, 70, 5), "tanh", dtype="float64")
    rng = np.random.default_rng(1)
    sizes = np.array([2000, 900, 30])
    x, y = rng.normal(size=(2930, 60)), rng.integers(0, 5, 2930)
    start = model.init(rng)[None]
    job = FitJob(
        model=model, x=x, y=y, partition=Partition.from_sizes(rng.permutation(2930), sizes), clients=np.arange(3),
        start=start, steps=np.array([3, 2, 4]), shuffles=np.empty((0, 3), np.uint64), batch_size=640,
        lr=np.array([0.1, 0.2, 0.1]), momentum=momentum, weight_decay=0.1, mu=0.0, center=start, correction=None,
        trained=(True, True),
        private=ExampleNoise(0.5, 0.3, "poisson").steps(1, 1, np.arange(3), sizes, np.array([3, 2, 4]), 640),
    )  # fmt: skip
    assert job.private is not None
    assert job.private.counts.min(axis=0)[0] < 640 < job.private.counts.max()
    slow = kernels.load("numpy").fit(job)
    check_agree(job, compiled.fit(job), slow)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_kernels_make_the_same_normal_numbers(dtype: str) -> None:
    """A model without inputs' signal and a batch without examples: weights are noise."""
    model = MLP((300, 40, 7), dtype=dtype)
    zeros = np.zeros((1, model.num_parameters), dtype)
    private = PrivateSteps(
        1.0, 1.0, np.zeros((1, 1), np.int64), np.ones((1, 1), np.uint64), np.full((1, 1), 77, np.uint64), np.ones(1)
    )
    job = FitJob(
        model=model, x=np.zeros((1, 300), dtype), y=np.zeros(1, np.int64),
        partition=Partition.from_sizes(np.arange(1), np.array([1])), clients=np.arange(1), start=zeros,
        steps=np.ones(1, np.int64), shuffles=np.empty((0, 1), np.uint64),
        batch_size=1, lr=-np.ones(1), momentum=0.0, weight_decay=0.0, mu=0.0, center=zeros, correction=None,
        trained=(True, True), private=private,
    )  # fmt: skip
    expected = streams.normals(np.array([77], np.uint64), model.num_parameters, dtype)
    for kernel in ("numpy", "compiled"):
        np.testing.assert_allclose(
            kernels.load(kernel).fit(job).weights, expected, rtol=0, atol=8 * float(np.finfo(dtype).eps)
        )


# Sampling.


def draws(sampling: str, size: int, batch: int, steps: int, **changes: Any) -> tuple[PrivateSteps, list[Array]]:
    """Return the steps of a client and the positions of the examples in each batch."""
    arguments: dict[str, Any] = {"seed": 1, "round_number": 1, "clients": np.array([0])} | changes
    sizes = np.array([size])
    private = ExampleNoise(1.0, 1.0, sampling).steps(
        **arguments, sizes=sizes, steps=np.array([steps]), batch_size=batch
    )
    order, batches = np.arange(size)[None], []
    for keys, counts in zip(private.batches, private.counts, strict=True):
        streams.choose(order, keys, sizes, counts)
        batches.append(order[0, : counts[0]].copy())
    return private, batches


def test_poisson_batches_contain_each_example_independently() -> None:
    private, batches = draws("poisson", 40, 10, 4000)
    counts = private.counts[:, 0]
    assert counts.mean() == pytest.approx(10, abs=0.2)
    assert counts.var() == pytest.approx(7.5, rel=0.1)
    assert all(len(set(batch)) == len(batch) for batch in batches)
    times = np.zeros((40, 40))
    for batch in batches:
        times[np.ix_(batch, batch)] += 1
    single, pair = np.diag(times), times[~np.eye(40, dtype=bool)]
    assert np.abs(single - 1000).max() < 4.5 * np.sqrt(4000 * 0.25 * 0.75)
    assert pair.mean() == pytest.approx(4000 / 16, rel=0.02)
    assert np.abs(pair - 4000 / 16).max() < 5 * np.sqrt(4000 / 16 * 15 / 16)
    both = [len(np.intersect1d(a, b)) for a, b in pairwise(batches)]
    assert np.mean(both) == pytest.approx(2.5, abs=0.1)  # the draw of a step does not depend on that before


def test_fixed_batches_have_one_size_and_the_whole_shard_is_not_sampled() -> None:
    private, batches = draws("fixed", 40, 10, 500)
    assert (private.counts == 10).all()
    assert np.abs(np.bincount(np.concatenate(batches), minlength=40) - 125).max() < 45
    for sampling in ("poisson", "fixed"):
        for batch in (0, 40, 50):
            private, batches = draws(sampling, 40, batch, 5)
            assert (private.counts == 40).all()
            assert private.expected == 40
            assert all(sorted(drawn) == list(range(40)) for drawn in batches)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_the_noise_is_in_clipping_norms_and_a_mean_is_over_the_expected_batch(sampling: str) -> None:
    sizes = np.array([40, 7, 1])
    private = ExampleNoise(0.25, 6.0, sampling).steps(1, 1, np.arange(3), sizes, np.full(3, 50), 10)
    assert (private.clip, private.noise) == (0.25, 1.5)
    assert private.expected.tolist() == [10, 7, 1]


def test_a_round_adds_the_accounted_noise_to_the_mean_of_a_batch() -> None:
    """The whole path: examples without a signal leave noise of ``lr * noise_multiplier * clip / batch`` in weights."""
    client = clients.SGD(lr=0.5, batch_size=20, steps=1)
    experiment = replace(ZEROS, client=client, privacy=ExampleDP(clip=0.1, noise_multiplier=4.0))
    for kernel in ("numpy", "compiled"):
        moved: list[Array] = []
        replace(experiment, kernel=kernel).run(callbacks=[Weights(moved)])
        assert (moved[1] - moved[0]).std() == pytest.approx(0.5 * 4.0 * 0.1 / 20, rel=0.05)


#: Examples without a signal.
ZEROS = Experiment(
    dataset=Dataset("zeros", np.zeros((400, 2000)), np.arange(400) % 2, np.zeros((2, 2000)), np.arange(2)),
    split=IID(1),
    hidden=(),
    rounds=1,
)


class Weights(Callback):
    """Collects the weights of each round."""

    def __init__(self, found: list[Array]) -> None:
        self.found = found

    def round_finished(self, finished: FinishedRound) -> None:
        self.found.append(finished.weights["W1"])


def test_streams_differ_between_clients_rounds_steps_and_seeds() -> None:
    keys = set()
    for changes in ({}, {"seed": 2}, {"round_number": 2}, {"clients": np.array([1])}):
        private, _ = draws("poisson", 40, 10, 5, **changes)
        keys |= {int(key) for array in (private.batches, private.normals) for key in array.ravel()}
    assert len(keys) == 4 * 5 * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_is_normal_and_uncorrelated(dtype: str) -> None:
    from scipy import stats

    keys = streams.keys(1, streams.Purpose.GRADIENT_NOISE, 1, np.arange(200), 0)
    noise = streams.normals(keys, 1500, dtype).astype(np.float64)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert noise.var() == pytest.approx(1, abs=4 * np.sqrt(2 / noise.size))
    assert stats.kurtosis(noise.ravel()) == pytest.approx(0, abs=0.05)
    for other in (np.roll(noise, 1, axis=0), np.roll(noise, 1, axis=1), np.roll(noise, 256, axis=1)):
        assert abs((noise * other).mean()) < 4.5 / np.sqrt(noise.size)
        assert abs((noise**2 * other**2).mean() - 1) < 0.05


@pytest.mark.slow
def test_the_tails_of_the_noise() -> None:
    """A hundred million numbers up to 5 sigma, and the documented largest one."""
    from scipy import stats

    counts, total, largest = np.zeros(6), 0, 0.0
    for part in range(20):
        keys = streams.keys(part, streams.Purpose.GRADIENT_NOISE, np.arange(50))
        noise = streams.normals(keys, 100_000, "float32")
        if part < 2:
            assert stats.kstest(noise.ravel().astype(np.float64), "norm").pvalue > 1e-3
        noise = np.abs(noise)
        counts += [(noise > sigma).sum() for sigma in range(6)]
        total += noise.size
        largest = max(largest, float(noise.max()))
    expected = 2 * stats.norm.sf(np.arange(6)) * total
    assert (np.abs(counts - expected) <= 4.5 * np.sqrt(expected)).all()
    assert largest < np.sqrt(2 * np.log(2**41))


# What it costs.


def loss_of(size: int, batch: int, delta: float, **settings: Any) -> PrivacyLoss:
    return PrivacyLoss(1.0, size, min(batch, size), delta, **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(s, marks=pytest.mark.slow) for s in ({"sampling": "fixed"}, {"accountant": "pld"}))],
    ids=str,
)
def test_epsilon_is_the_largest_of_all_clients(settings: dict[str, Any]) -> None:
    sizes, steps = np.array([7, 300, 40, 40, 12, 90]), np.array([0, 4000, 9, 14, 3, 14])
    losses = ExampleLosses(ExampleDP(noise_multiplier=1.0, **settings), 1.0, 10, 1e-4)
    every = [
        loss_of(size, 10, 1e-4, **settings).epsilon(number)
        for size, number in zip(sizes.tolist(), steps.tolist(), strict=True)
    ]
    assert losses.largest_epsilon(sizes, steps) == max(every)
    assert losses.largest_epsilon(sizes, np.zeros(6, int)) == 0
    for alone in range(1, 6):
        assert losses.largest_epsilon(sizes[[alone]], steps[[alone]]) == every[alone]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_a_client_with_fewer_examples_than_a_batch_is_not_sampled(sampling: str) -> None:
    losses = ExampleLosses(ExampleDP(noise_multiplier=1.0, sampling=sampling), 1.0, 10, 1e-5)
    whole = PrivacyLoss(1.0, 1, 1, 1e-5, sampling).epsilon(5)
    assert [losses.of(size).epsilon(5) for size in (1, 3, 10)] == pytest.approx([whole] * 3)
    assert losses.of(20).epsilon(5) < whole


def test_the_noise_for_an_epsilon_is_that_of_the_client_that_costs_most() -> None:
    sizes = np.array([15, 200, 60])
    settings = ExampleDP(epsilon=3.0, delta=1e-4)
    noise = settings.noise(sizes, 4 * -(-sizes // 10), 10, 1e-4)
    losses = ExampleLosses(settings, noise.noise_multiplier, 10, 1e-4)
    assert 2.99 < losses.largest_epsilon(sizes, 4 * -(-sizes // 10)) <= 3.0


def printed(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    parser = argparse.ArgumentParser()
    cli_privacy.add_options(parser)
    cli_privacy.privacy(parser.parse_args(text.split()))
    return capsys.readouterr().out


def test_the_command_prints_the_epsilon_of_the_published_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorFlow Privacy's MNIST tutorial: about 3 by the bounds of its time."""
    found = printed("--noise 1.1 --examples 60000 --batch 256 --epochs 60 --delta 1e-5", capsys)
    assert found.startswith("noise multiplier 1.1: epsilon 2.6 with delta 1e-05 after 14,100 steps\n")
    for options in ("--clients 3", "--examples 3 --batch 1 --rounds 1", ""):
        with pytest.raises(
            ConfigError, match=r"the options given are .*; allowed: --clients, --cohort and --rounds, or"
        ):
            printed(f"--noise 1 {options}", capsys)
    with pytest.raises(ConfigError, match="--sampling is 'epochs'; allowed: poisson, fixed"):
        printed("--noise 1 --examples 100 --batch 10 --epochs 3 --sampling epochs", capsys)


# In a run.

PRIVACY = ExampleDP(clip=0.5, noise_multiplier=1.0)
BASE = Experiment(split=Dirichlet(8, alpha=0.3), rounds=3, fraction_train=0.5, privacy=PRIVACY, hidden=(8,))


def sizes_of(experiment: Experiment) -> Array:
    return experiment.federate(experiment.load_data()).partition.sizes


def test_an_experiment_is_written_and_read_as_text() -> None:
    experiment = replace(BASE, privacy=ExampleDP(clip=0.25, epsilon=3.0, sampling="fixed"))
    assert config.experiment(tomllib.loads(config.to_toml(experiment))) == experiment
    assert str(experiment.privacy) == "ExampleDP(clip=0.25, epsilon=3.0, sampling='fixed')"
    with pytest.raises(ConfigError, match="ExampleDP has neither noise_multiplier nor epsilon"):
        ExampleDP(clip=1.0)
    with pytest.raises(ConfigError, match="ExampleDP's accountant is 'pld'"):
        ExampleDP(noise_multiplier=1.0, sampling="fixed", accountant="pld")
    with pytest.raises(ConfigError, match="ExampleDP's clip is 0"):
        ExampleDP(clip=0, noise_multiplier=1.0)


def test_without_clipping_noise_and_sampling_it_is_gradient_descent() -> None:
    plain = replace(BASE, privacy=None, dtype="float64", client=clients.SGD(lr=0.5, epochs=3, batch_size=None))
    private = replace(plain, privacy=ExampleDP(clip=1e6, noise_multiplier=0.0))
    expected = plain.run()
    for kernel in ("numpy", "compiled"):
        found = replace(private, kernel=kernel).run()
        for name, values in expected.weights.items():
            np.testing.assert_allclose(found.weights[name], values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.history["train_loss"], expected.history["train_loss"], rtol=1e-9)
        assert list(found.history["epsilon"]) == [0, np.inf, np.inf, np.inf]


def test_epsilon_is_that_of_the_clients_that_took_part() -> None:
    seen: list[set[int]] = []

    class Cohorts(clients.SGD):
        def train(self, ctx: clients.Context) -> Any:
            seen[-1].update(ctx.partition_ids.tolist())
            return ctx.fit()

    class NextRound(Callback):
        def round_finished(self, finished: FinishedRound) -> None:
            seen.append(set())

    result = replace(BASE, split=Dirichlet(4, alpha=0.3), client=Cohorts(epochs=2), kernel="numpy").run(
        callbacks=[NextRound()], workers=1
    )
    sizes = sizes_of(replace(BASE, split=Dirichlet(4, alpha=0.3)))
    delta, times = default_delta(int(sizes.sum())), np.zeros(4, int)
    for number in range(4):
        times += np.isin(np.arange(4), list(seen[number - 1])) if number else 0
        every = [
            loss_of(int(size), 10, delta).epsilon(int(t * 2 * -(-size // 10)))
            for size, t in zip(sizes, times, strict=True)
        ]
        assert result.history["epsilon"][number] == max(every)
    assert times.min() < times.max()


def test_the_budget_ends_the_run_before_a_round_that_could_exceed_it() -> None:
    experiment = replace(BASE, fraction_train=1.0)
    costs = experiment.run().history["epsilon"]
    budget = (costs[2] + costs[3]) / 2
    result = replace(experiment, privacy=replace(PRIVACY, epsilon=budget)).run()
    assert result.rounds == 2
    assert result.stop_reason == f"another round could exceed the privacy budget, epsilon {budget:g}"


@pytest.mark.slow
def test_a_run_with_the_noise_for_an_epsilon_ends_there() -> None:
    calibrated = replace(BASE, fraction_train=1.0, privacy=ExampleDP(epsilon=6.0)).run()
    assert calibrated.rounds == 3
    assert not calibrated.stop_reason
    assert 5.98 < calibrated.history["epsilon"].iloc[-1] <= 6.0


@pytest.mark.slow
def test_an_example_costs_only_in_the_window_of_its_rounds() -> None:
    split = TimeOrdered(IID(6), windows=2, rounds_per_window=2)
    experiment = replace(BASE, split=split, fraction_train=1.0, rounds=4)
    costs = list(experiment.run().history["epsilon"])
    assert costs[1] < costs[2] == costs[3] <= costs[4] < 1.05 * costs[2]
    assert replace(experiment, privacy=replace(PRIVACY, epsilon=1.01 * costs[4])).run().rounds == 4


@pytest.mark.slow
def test_the_noise_for_an_epsilon_knows_windows() -> None:
    split = TimeOrdered(IID(6), windows=2, rounds_per_window=2)
    experiment = replace(BASE, split=split, fraction_train=1.0, rounds=4)
    calibrated = replace(experiment, privacy=ExampleDP(epsilon=5.0)).run().history["epsilon"]
    assert 4.9 < calibrated.iloc[-1] <= 5.0


STRATEGIES = [
    clients.SGD(momentum=0.9, weight_decay=0.01),
    clients.SCAFFOLD(),
    *(
        pytest.param(client, marks=pytest.mark.slow)
        for client in (
            clients.FedProx(proximal_mu=0.1),
            clients.FedDyn(),
            clients.FedNova(),
            clients.FedSGD(),
            clients.FedPer(),
            clients.ClippedSGD(),
        )
    ),
]


@pytest.mark.parametrize("client", STRATEGIES, ids=lambda client: type(client).__name__)
def test_strategies_that_only_fit_combine_and_kernels_agree(client: clients.SGD) -> None:
    experiment = replace(BASE, client=client, dtype="float64", rounds=2)
    found = experiment.run()
    assert found.history["epsilon"].iloc[-1] > 0
    if not isinstance(client, clients.ClippedSGD):
        other = replace(experiment, kernel="compiled").run(workers=2, block_size=1)
        for name, values in found.weights.items():
            np.testing.assert_allclose(other.weights[name], values, rtol=1e-9, atol=1e-11)


class Stopped(Exception):  # noqa: N818
    pass


class StopsAfter(Callback):
    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == self.rounds:
            raise Stopped


@pytest.mark.parametrize("kernel", ["numpy", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampling", ["poisson", pytest.param("fixed", marks=pytest.mark.slow)])
def test_the_same_bits_for_any_workers_and_blocks_and_after_an_interruption(
    kernel: str, sampling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(saving, "CHECKPOINT_SHARE", 1e9)
    experiment = replace(BASE, kernel=kernel, privacy=replace(PRIVACY, sampling=sampling))
    whole = experiment.run()
    assert same(whole, experiment.run(workers=3, block_size=2))
    with pytest.raises(Stopped):
        experiment.run(directory=tmp_path / "run", callbacks=[StopsAfter(2)])
    resumed = experiment.run(directory=tmp_path / "run", workers=2)
    assert "resuming after round 1" in capsys.readouterr().err
    assert same(whole, resumed)
    assert list(resumed.history["epsilon"]) == list(whole.history["epsilon"])
    assert not same(whole, replace(experiment, seed=1).run())


def test_the_runtime_of_another_process_has_the_noise() -> None:
    """As Ray sends it."""
    runtime = build_runtime(BASE)
    again = pickle.loads(pickle.dumps(runtime))
    assert again.example_noise == runtime.example_noise == ExampleNoise(0.5, 1.0, "poisson")


def test_the_training_loss_is_the_mean_over_the_examples_of_the_batches() -> None:
    """Of examples that are all zeros it is log 2, however many are in a batch."""
    client = clients.SGD(lr=0.1, batch_size=20, steps=1)
    privacy = ExampleDP(clip=0.1, noise_multiplier=4.0)
    for seed in range(3):
        experiment = replace(ZEROS, client=client, privacy=privacy, seed=seed)
        assert experiment.run().history["train_loss"].iloc[-1] == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("privacy", [PRIVACY, pytest.param(ExampleDP(epsilon=9.0), marks=pytest.mark.slow)], ids=str)
def test_supernodes_give_the_same_bits(privacy: ExampleDP) -> None:
    experiment = replace(BASE, rounds=2, privacy=privacy)
    text = {"experiment": config.to_toml(experiment)}
    with flower_strategies.quiet(), AppGrid(app.client_app, 3, run_config=text, workers=2) as grid:
        found = experiment.run(engine=partial(SuperNodeEngine, grid=grid, nodes=3))
    expected = experiment.run()
    assert same(expected, found)
    assert list(expected.history["epsilon"]) == list(found.history["epsilon"])


class Twice(clients.SGD):
    def train(self, ctx: clients.Context) -> Any:
        return ctx.fit(ctx.fit())


class RowsTwice(clients.SGD):
    def train(self, ctx: clients.Context) -> Any:
        for _ in range(2):
            weights = ctx.rows(slice(0, 1)).fit()
        return np.repeat(weights, len(ctx.partition_ids), axis=0)


class FitsBefore(clients.SGD):
    def client_state(self, ctx: clients.Context) -> Any:
        return {"first": ctx.fit()}


class SendsLoss(clients.SGD):
    def train(self, ctx: clients.Context) -> Array:
        weights = ctx.fit()
        ctx.up["loss"] = np.asarray(ctx.loss_sum)
        return weights


class Looks(clients.SGD):
    def affine(self, ctx: clients.Context) -> clients.Affine:
        return clients.Affine(correction=ctx.full_gradient(ctx.global_weights)[1])


class OwnSteps(clients.SGD):
    def local_steps(self, ctx: clients.Context) -> Any:
        return 1000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"client": clients.FedSAM()}, r"FedSAM has its own gradient\(\), which is not clipped by example"),
        ({"client": clients.MOON()}, r"MOON has its own gradient\(\)"),
        ({"client": clients.FedLC()}, r"FedLC has its own gradient\(\)"),
        ({"client": clients.APFL()}, r"APFL has its own gradient\(\)"),
        ({"client": clients.SCAFFOLD(option=1)}, r"SCAFFOLD uses ctx.full_gradient\(\), which has no noise"),
        ({"client": clients.MimeLite()}, r"MimeLite uses ctx.full_gradient\(\)"),
        ({"client": clients.IFCA()}, r"IFCA uses ctx.evaluate\(\)"),
        ({"client": clients.FineTune()}, "FineTune fits another strategy"),
        ({"client": clients.Ditto()}, "Ditto fits another strategy"),
        ({"client": clients.FedRep()}, "FedRep fits another strategy"),
        ({"client": clients.FedALA()}, "FedALA fits another strategy"),
        ({"client": Twice()}, "Twice fits more than once in a round"),
        ({"client": RowsTwice()}, "RowsTwice fits more than once in a round"),
        ({"client": FitsBefore()}, "FitsBefore fits more than once in a round, or not in train"),
        ({"client": Looks()}, r"Looks uses ctx.full_gradient\(\)"),
        ({"client": SendsLoss()}, r"SendsLoss uses ctx.loss_sum, which has no noise"),
        ({"client": OwnSteps()}, r"OwnSteps has its own local_steps\(\)"),
        ({"early_stopping": EarlyStopping("train_loss", patience=1)}, "early_stopping watches train_loss"),
        ({"transforms": (LocalDP(),)}, "privacy is ExampleDP and transforms has LocalDP"),
        (
            {"server": partial(servers.QFedAvg, client_learning_rate=0.1)},
            "QFedAvg weighs updates by .* training losses",
        ),
        ({"server": partial(stock.QFedAvg, client_learning_rate=0.1)}, "QFedAvg weighs updates by .* training losses"),
    ],
)
def test_what_is_not_private_is_refused_before_the_run(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(BASE, **changes).run()


@pytest.mark.slow
def test_other_servers_and_transforms_use_private_updates() -> None:
    for changes in ({"server": servers.Krum}, {"server": servers.FedAdam}, {"transforms": (TopK(0.2), Int8())}):
        assert replace(BASE, rounds=1, **changes).run().history["epsilon"].iloc[-1] > 0


def test_an_example_of_two_clients_is_refused() -> None:
    class Shared(IID):
        def federate(self, dataset: Dataset, seed: int = 0) -> FederatedDataset:
            made = super().federate(dataset, seed)
            made.partition.indices[0] = made.partition.indices[-1]
            return made

    with pytest.raises(ConfigError, match=r"gives an example to several clients"):
        replace(BASE, split=Shared(5)).run()


def test_a_model_of_ones_own_is_clipped_by_single_examples() -> None:
    class Own(MLP):
        clipped_gradient = None  # type: ignore[assignment]

    built_in = replace(BASE, hidden=(), rounds=1)
    own = replace(BASE, hidden=(32,), rounds=1, model=lambda data: Own((64, 10)))
    expected, found = built_in.run().weights, own.run().weights
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5)


def test_system_noise_does_not_repeat() -> None:
    """Neither batches nor noise; what is clipped and accounted for is the same."""
    experiment = replace(ZEROS, client=clients.SGD(batch_size=20, steps=2), privacy=ExampleDP(noise_multiplier=1.0))
    assert same(experiment.run(), experiment.run())
    system = replace(experiment, privacy=ExampleDP(noise_multiplier=1.0, system_noise=True))
    one, other = system.run(), system.run()
    assert not np.allclose(one.weights["W1"], other.weights["W1"])
    assert one.weights["W1"].std() == pytest.approx(experiment.run().weights["W1"].std(), rel=0.1)
    assert one.history["epsilon"].equals(experiment.run().history["epsilon"])
