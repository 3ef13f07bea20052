"""The compiled kernel against the NumPy kernel, which is its definition."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numba
import numpy as np
import pytest
from helpers import cases, same
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim import Experiment, kernels, streams
from fedsim.clients import SCAFFOLD, SGD, Affine, Context, FedProx
from fedsim.clients.local_round import run_local_round
from fedsim.clients.sgd import numpy_hooks
from fedsim.clients.task import Task
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.kernels import compiled
from fedsim.kernels.compiled import elementary, training
from fedsim.kernels.fit import FitJob
from fedsim.models import MLP
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.losses import LOSSES
from fedsim.models.model import Array
from fedsim.splits import IID, Dirichlet, Natural, Partition, TimeOrdered

RNG = np.random.default_rng(0)
SHARDS = [RNG.integers(0, 500, n) for n in (300, 160, 160, 41, 40, 13, 9, 8, 2, 1)]
HELD = Partition(np.concatenate(SHARDS), np.concatenate([[0], np.cumsum([len(s) for s in SHARDS])]))
TOLERANCE = {"float32": 2e-4, "float64": 1e-11}


class Corrected(SGD):
    """Adds a vector of its own to each client's gradient, as SCAFFOLD and FedDyn do."""

    mu: float = 0.0

    def affine(self, ctx: Context) -> Affine:
        drawn = [streams.generator(1, streams.Purpose.DATA, int(k)) for k in ctx.partition_ids]
        added = np.array([rng.normal(size=ctx.global_weights.size) for rng in drawn])
        return Affine(self.mu, (0.02 * added).astype(ctx.global_weights.dtype))


class OwnCenters(SGD):
    """Pulls each client to a center of its own, as Ditto and pFedMe do."""

    def affine(self, ctx: Context) -> Affine:
        drawn = [streams.generator(2, streams.Purpose.DATA, int(k)) for k in ctx.partition_ids]
        away = np.array([rng.normal(size=ctx.global_weights.size) for rng in drawn])
        return Affine(0.5, center=ctx.global_weights + (0.2 * away).astype(ctx.global_weights.dtype))


class SomeLayers(SGD):
    """Trains some of the layers, as FedRep does."""

    layers: tuple[int, ...] = ()
    mu: float = 0.0

    def affine(self, ctx: Context) -> Affine:
        return Affine(self.mu, center=0.9 * ctx.global_weights)

    def train(self, ctx: Context) -> NDArray[Any]:
        return ctx.fit(groups=[ctx.model.groups[layer - 1] for layer in self.layers])


def task(model: MLP, strategy: SGD, kernel: str = "compiled") -> Task:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, model.sizes[0])).astype(model.dtype)
    y = rng.integers(0, max(2, model.sizes[-1]), 500)
    start = model.init(rng)
    start += 0.1 * rng.normal(size=start.shape).astype(model.dtype)  # biases too
    return Task(model, strategy, x, y, HELD, start, 3, 5, kernel=kernel)


def compare(model: MLP, strategy: SGD, held: Partition = HELD) -> None:
    job = replace(task(model, strategy), partition=held)
    ids = np.arange(len(held))
    fast, slow = (run_local_round(replace(job, kernel=kernel), ids, {}) for kernel in ("compiled", "numpy"))
    moved, rounding = np.abs(slow.weights - job.global_weights).max(), 50 * np.finfo(model.dtype).eps
    allowed = TOLERANCE[model.dtype] * moved + rounding * np.abs(slow.weights).max()
    assert np.abs(fast.weights - slow.weights).max() <= allowed
    np.testing.assert_allclose(fast.train_loss, slow.train_loss, rtol=10 * TOLERANCE[model.dtype])
    assert np.array_equal(fast.num_examples, slow.num_examples)
    assert fast.weights.dtype == model.dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_every_activation_and_loss(activation: str, loss: str, dtype: str, outputs: int) -> None:
    if outputs == 1 and loss == "cross_entropy":
        outputs = 2
    compare(MLP((7, 9, 5, outputs), activation, loss, dtype), SGD(lr=0.1, epochs=2, batch_size=8))


STRATEGIES = [
    SGD(lr=0.02, momentum=0.9),
    SGD(lr=0.02, weight_decay=0.1),
    SGD(lr=0.02, epochs=3, momentum=0.5, weight_decay=0.1),
    FedProx(lr=0.02, epochs=3, proximal_mu=0.7),
    FedProx(lr=0.02, epochs=3, proximal_mu=0.7, momentum=0.5, weight_decay=0.1),
    Corrected(lr=0.02, epochs=2),
    Corrected(lr=0.02, epochs=2, mu=0.5, weight_decay=0.1),
    Corrected(lr=0.02, epochs=2, mu=0.5, momentum=0.9, weight_decay=0.1),
    OwnCenters(lr=0.02, epochs=2),
    OwnCenters(lr=0.02, epochs=2, momentum=0.9),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("batch", [1, 10, 130, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_term_of_a_step(strategy: SGD, batch: int | None, dtype: str) -> None:
    """Momentum, weight decay, proximal term, correction; batches of one, partial, past a chunk, and whole shards."""
    compare(MLP((20, 33, 10), "tanh", dtype=dtype), replace(strategy, batch_size=batch))


@pytest.mark.parametrize("batch", [None, 641, 1000])
@pytest.mark.parametrize("strategy", [SGD(lr=0.2, epochs=2), Corrected(lr=0.2, epochs=2, mu=0.5)], ids=str)
def test_batches_of_more_than_one_chunk_are_one_step(strategy: SGD, batch: int | None) -> None:
    """All examples of a batch see the same weights, though activations are kept of 640 at a time."""
    shards = [RNG.integers(0, 500, n) for n in (1500, 700)]
    held = Partition(np.concatenate(shards), np.array([0, 1500, 2200]))
    compare(MLP((20, 33, 10), "tanh", dtype="float64"), replace(strategy, batch_size=batch), held)


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 3), (2, 3)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_frozen_layers_keep_their_bits(layers: tuple[int, ...], momentum: float) -> None:
    """Whatever else a step has; the other layers change, and as the NumPy kernel has them."""
    model = MLP((6, 9, 7, 3), "tanh", dtype="float64")
    strategy = SomeLayers(lr=0.02, epochs=2, layers=layers, momentum=momentum, weight_decay=0.1, mu=0.5)
    for kernel in kernels.KERNELS[1:]:
        job = task(model, strategy, kernel)
        weights = run_local_round(job, np.arange(10), {}).weights
        for name, (place, _) in model.layout.items():
            same_bits = weights[:, place] == job.global_weights[place]
            assert not same_bits.any() if int(name[1:]) in layers else same_bits.all()
    compare(model, strategy)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 70), max_size=3),
    st.integers(1, 40) | st.integers(150, 170),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(1, 320)),
    st.sampled_from(["float32", "float64"]),
)
def test_every_shape(hidden: list[int], inputs: int, outputs: int, batch: int | None, dtype: str) -> None:
    """Every width leaves another remainder of vectors, rows and tiles."""
    loss = "cross_entropy" if outputs > 1 else "mse"
    compare(MLP((inputs, *hidden, outputs), "tanh", loss, dtype), SGD(lr=0.005, batch_size=batch))


def sites(factor: float) -> Dataset:
    """Return data of five sites with 24, 19, 19, 19 and 19 examples, the second site's inputs scaled by a factor."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(140, 6))
    y = (x[:, 0] + x[:, 1] ** 2 > 0.7).astype(int)
    site = np.repeat(np.arange(5), [24, 19, 19, 19, 19])
    x[:100] *= np.where(site == 1, factor, 1.0)[:, None]
    return Dataset("sites", x[:100], y[:100], x[100:], y[100:], groups={"site": site})


#: Hidden layers of less than half a vector, the output layer turned: the smallest network in which NaN used to spread.
DIVERGING = Experiment(
    dataset=sites(1e30),
    split=Natural("site"),
    hidden=(6, 4),
    loss="binary_cross_entropy",
    rounds=4,
    on_failure="exclude",
)


@pytest.mark.parametrize("workers", [1, 3])
def test_one_diverging_client_is_one_failure(workers: int) -> None:
    by_numpy, by_compiled = (replace(DIVERGING, kernel=k).run(workers=workers) for k in ("numpy", "compiled"))
    assert by_numpy.history["failures"].tolist() == [0, 1, 1, 1, 1]
    assert by_compiled.failures["partition_id"].tolist() == by_numpy.failures["partition_id"].tolist()
    for name, weights in by_numpy.weights.items():
        np.testing.assert_allclose(by_compiled.weights[name], weights, rtol=1e-3, atol=1e-5)


def test_a_run_has_the_same_bits_after_one_that_diverged() -> None:
    """SCAFFOLD trains on the calling thread, which keeps its scratch array from run to run."""
    diverging = replace(DIVERGING, kernel="compiled", client=SCAFFOLD())
    healthy = replace(diverging, dataset=sites(1.0))
    first = healthy.run(workers=1)
    assert not first.history["failures"].any()
    diverging.run(workers=1)
    assert same(first, healthy.run(workers=1))


@st.composite
def fits_with_a_diverging_client(draw: st.DrawFn) -> tuple[FitJob, int]:
    """Draw a block of ragged clients of any network, and the row of one whose training diverges."""
    loss = draw(st.sampled_from(sorted(LOSSES)))
    widths = st.integers(1, 40)
    outputs = draw(st.integers(2, 40) if loss == "cross_entropy" else widths)
    hidden = draw(st.lists(widths, max_size=4))
    activation, dtype = draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.sampled_from(["float32", "float64"]))
    model = MLP((draw(widths), *hidden, outputs), activation, loss, dtype)
    sizes = np.array(sorted(draw(st.lists(st.integers(1, 45), min_size=2, max_size=6)), reverse=True))
    batch = draw(st.integers(0, 50))
    trained = draw(st.lists(st.booleans(), min_size=len(hidden) + 1, max_size=len(hidden) + 1).filter(any))
    diverging, by_inputs = draw(st.integers(0, len(sizes) - 1)), draw(st.booleans())

    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(size=(sizes.sum(), model.sizes[0])).astype(dtype)
    held = Partition(rng.permutation(sizes.sum()), np.concatenate([[0], np.cumsum(sizes)]))
    lr = np.full(len(sizes), 0.02)
    if by_inputs:
        x[held[diverging]] *= np.finfo(dtype).max / 1e3
    else:
        lr[diverging] = np.inf
    steps = rng.integers(1, 13, len(sizes))
    epochs = int((-(-steps // (-(-sizes // batch) if batch else 1))).max())
    start = model.init(rng)
    start += 0.1 * rng.normal(size=start.shape).astype(dtype)
    rows = (len(sizes), start.size)
    job = FitJob(
        model=model,
        x=x,
        y=rng.integers(0, max(2, outputs), sizes.sum()),
        partition=held,
        clients=np.arange(len(sizes)),
        start=(start + 0.1 * rng.normal(size=rows)).astype(dtype) if draw(st.booleans()) else start[None],
        steps=steps,
        shuffles=rng.integers(0, 2**63, (epochs, len(sizes))).astype(np.uint64),
        batch_size=batch,
        lr=lr,
        momentum=draw(st.sampled_from([0.0, 0.9])),
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
        mu=draw(st.sampled_from([0.0, 0.5])),
        center=(start + 0.1 * rng.normal(size=rows)).astype(dtype) if draw(st.booleans()) else start[None],
        correction=(0.02 * rng.normal(size=rows)).astype(dtype) if draw(st.booleans()) else None,
        trained=tuple(trained),
    )
    return job, diverging


def failed(fitted: tuple[Any, ...], job: FitJob) -> NDArray[np.bool_]:
    """Return the rows that the engine would exclude: it limits the loss, too, for sums of 1e38 may overflow or not."""
    limited: NDArray[np.bool_] = fitted[1] / job.steps < 1e6
    return ~limited


def rows_of(job: FitJob, k: int) -> FitJob:
    """Return the job of one client of a block."""
    row = slice(k, k + 1)

    def own(values: Any) -> Any:
        return values if values is None or len(values) == 1 else values[row]

    return replace(
        job,
        clients=job.clients[row],
        steps=job.steps[row],
        shuffles=np.ascontiguousarray(job.shuffles[:, row]),
        lr=job.lr[row],
        start=own(job.start),
        center=own(job.center),
        correction=own(job.correction),
    )


# Rounding decides on which side of 0 a ReLU's argument lies; a float32 client in a thousand shows it.
KINK = 5e-2


@settings(deadline=None, max_examples=cases(150))
@given(fits_with_a_diverging_client(), st.integers(1, 3))
def test_a_diverging_client_changes_no_other(case: tuple[FitJob, int], threads: int) -> None:
    """Rows agree with the NumPy kernel, the same clients fail, and threads and blocks change no bit."""
    job, diverging = case
    with np.errstate(all="ignore"):
        slow = kernels.load("numpy").fit(job)
    fast = compiled.fit(replace(job, run_on_all_workers=partial(run_on, threads)))
    assert np.array_equal(failed(fast, job), failed(slow, job))
    healthy = ~failed(slow, job)
    healthy[diverging] = False
    assert healthy.sum() == len(job.clients) - 1

    weights = slow[0][healthy]
    assert isinstance(job.model, MLP)
    tolerance = KINK if (job.model.activation, job.model.dtype) == ("relu", "float32") else TOLERANCE[job.model.dtype]
    moved = weights - np.broadcast_to(job.start, slow[0].shape)[healthy]
    allowed = tolerance * np.abs(moved).max() + 50 * np.finfo(job.model.dtype).eps * np.abs(weights).max()
    assert np.abs(fast[0][healthy] - weights).max() <= allowed
    relative = max(tolerance, 10 * TOLERANCE[job.model.dtype])
    np.testing.assert_allclose(fast[1][healthy], slow[1][healthy], rtol=relative)
    np.testing.assert_allclose(fast[2][healthy], np.linalg.norm(moved, axis=1), rtol=relative, atol=allowed)

    for k in np.flatnonzero(healthy):
        for values, alone in zip(fast, compiled.fit(rows_of(job, int(k))), strict=True):
            assert np.array_equal(values[k], alone[0])


@pytest.mark.parametrize("batch", [None, 10])
def test_a_clients_bits_do_not_depend_on_its_block_or_thread_history(batch: int | None) -> None:
    """Nor on what the thread trained before: the scratch array is another client's, or another network's."""
    job = task(MLP((20, 33, 10)), FedProx(epochs=2, batch_size=batch))
    whole = run_local_round(job, np.arange(10), {})
    for size in (1, 3):
        for k in range(0, 10, size):
            part = run_local_round(job, np.arange(k, min(k + size, 10)), {})
            assert np.array_equal(part.weights, whole.weights[k : k + size])
            assert np.array_equal(part.train_loss, whole.train_loss[k : k + size])
        run_local_round(task(MLP((3, 2, 1), loss="mse"), SGD(momentum=0.9, lr=5.0)), np.arange(10), {})


def test_an_experiment_agrees_on_both_kernels_and_says_which_ran() -> None:
    both = Experiment(split=Dirichlet(20, alpha=0.1), rounds=3, dtype="float64", client=SGD(epochs=2))
    results = [replace(both, kernel=kernel).run() for kernel in ("numpy", "compiled")]
    assert [r.kernel for r in results] == ["numpy", "compiled"]
    for name, weights in results[0].weights.items():
        np.testing.assert_allclose(results[1].weights[name], weights, rtol=1e-9, atol=1e-12)
    again = replace(both, kernel="compiled").run(workers=3, block_size=2)
    assert all(np.array_equal(again.weights[k], results[1].weights[k]) for k in again.weights)


def test_divergence_is_seen_in_the_compiled_kernel() -> None:
    from fedsim.errors import DivergenceError

    for lr in (10, 1e4, 1e30):
        with pytest.raises(DivergenceError, match=r"diverged in round 1 at client \d+ "):
            Experiment(kernel="compiled", client=SGD(lr=lr), rounds=2).run()


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_enormous_scores_are_finite_and_equal(loss: str, dtype: str) -> None:
    """Scores of thousands overflow an exponential that is not taken of differences or of minus the absolute value."""
    model = MLP((7, 5, 3), "relu", loss, dtype)
    job = replace(task(model, SGD(lr=1e-6, epochs=2)), partition=HELD)
    job = replace(job, x=1e4 * job.x)
    fast, slow = (run_local_round(replace(job, kernel=kernel), np.arange(10), {}) for kernel in ("compiled", "numpy"))
    assert np.isfinite(slow.train_loss).all()
    np.testing.assert_allclose(fast.train_loss, slow.train_loss, rtol=1e-3)
    np.testing.assert_allclose(fast.weights, slow.weights, rtol=1e-3, atol=1e-3 * np.abs(slow.weights).max())


class Own(SGD):
    """A direction of its own, in NumPy."""

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        return np.sign(grad)


ARTICLE, TWO_NN = MLP((100, 50, 10)), MLP((784, 200, 200, 10))


@pytest.mark.parametrize(
    ("kernel", "strategy", "model", "examples", "chosen"),
    [
        ("auto", SGD(), ARTICLE, 10_000, "compiled"),
        ("auto", FedProx(), TWO_NN, 6_000, "compiled"),
        ("auto", SGD(), ARTICLE, 1_000, "numpy"),
        ("auto", SGD(), MLP((64, 32, 10)), 5 * 1437, "numpy"),  # the digits: a first result compiles nothing
        ("auto", Own(), TWO_NN, 6_000, "numpy"),
        ("numpy", SGD(), TWO_NN, 6_000, "numpy"),
        ("compiled", SGD(), ARTICLE, 10, "compiled"),
    ],
)
def test_the_cost_of_a_round_chooses_the_kernel(
    kernel: str, strategy: SGD, model: MLP, examples: float, chosen: str
) -> None:
    assert kernels.choose(kernel, numpy_hooks(strategy), model, examples) == chosen


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({"rounds": 2}, "numpy"),
        ({"rounds": 10_000}, "numpy"),
        ({"rounds": 2, "client": SGD(epochs=2)}, "compiled"),
        ({"client": SGD(epochs=2), "fraction_train": 0.5}, "numpy"),
        ({"client": SGD(epochs=2), "split": TimeOrdered(IID(40), windows=2)}, "numpy"),
        ({"client": SGD(steps=14, batch_size=10)}, "numpy"),
        ({"client": SGD(steps=25, batch_size=10)}, "compiled"),
        ({"client": SGD(steps=2, batch_size=None)}, "compiled"),
        ({"client": SGD(steps=2, batch_size=1000)}, "compiled"),
    ],
)
def test_an_experiments_round_chooses_the_kernel_and_not_its_number_of_rounds(
    changes: dict[str, Any], chosen: str
) -> None:
    """One epoch on these 4,000 examples costs 1.33e8 operations."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4100, 100)), rng.integers(0, 10, 4100)
    data = Dataset("made up", x[:4000], y[:4000], x[4000:], y[4000:])
    experiment = replace(Experiment(dataset=data, hidden=(50,), split=IID(40)), **changes)
    assert experiment.kernel_for(ARTICLE, experiment.federate(data)) == chosen


def test_a_direction_of_ones_own_cannot_be_compiled() -> None:
    with pytest.raises(
        ConfigError, match=r"kernel is 'compiled' but Own's direction\(\) runs in the NumPy kernel only"
    ):
        Experiment(kernel="compiled", client=Own()).run()
    with pytest.raises(ConfigError, match="kernel is 'fast'; allowed: auto, numpy, compiled"):
        Experiment(kernel="fast")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


CHOOSE = """
from fedsim import kernels
from fedsim.models import MLP
from fedsim.models.losses import LOSSES
from fedsim.models.activations import ACTIVATIONS
for _ in range(2):
    chosen = kernels.choose({!r}, '', MLP((64, 10)), 1e12)
print(chosen)
"""


@pytest.mark.parametrize("broken", ["disabled", "absent"])
def test_without_a_working_numba_there_is_numpy_and_one_line_of_notice(broken: str, tmp_path: Path) -> None:
    environment = {"NUMBA_DISABLE_JIT": "1"}
    if broken == "absent":
        (tmp_path / "numba.py").write_text("raise ImportError('no LLVM for this machine')")
        environment = {"PYTHONPATH": str(tmp_path)}
    auto = python(CHOOSE.format("auto"), **environment)
    assert auto.stdout.strip() == "numpy", auto.stderr
    assert len(auto.stderr.strip().splitlines()) == 1, auto.stderr
    assert auto.stderr.startswith("fedsim: running on the NumPy kernel, which is slower: ")
    asked = python(CHOOSE.format("compiled"), **environment)
    assert "ConfigError: kernel is 'compiled' but" in asked.stderr


def test_compiling_is_announced_once_and_kept_on_disk(tmp_path: Path) -> None:
    code = "from fedsim.kernels import compiled; compiled.prepare('float64')"
    first, second = (python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stderr.strip() == "fedsim: compiling the fast kernel for this machine, once; a few seconds"
    assert second.stderr == ""
    assert any(tmp_path.rglob("*.nbc"))


def test_a_cache_that_cannot_be_written_costs_time_not_the_run(tmp_path: Path) -> None:
    nowhere: Any = tmp_path / "file"
    nowhere.write_text("not a folder")
    code = "from fedsim.kernels import compiled; compiled.prepare('float32'); print('done')"
    done = python(code, NUMBA_CACHE_DIR=str(nowhere / "cache"))
    assert done.stdout.strip() == "done", done.stderr


HITS = """
import sys
sys.path.insert(0, {!r})
import numpy as np
from fedsim.kernels.compiled import update_norms, sums
update_norms(np.ones((1, 4)), np.zeros(4))
print(len(sums.squared_distances.stats.cache_hits))
"""


def test_machine_code_is_not_loaded_after_a_change_in_any_file(tmp_path: Path) -> None:
    """Numba itself compares only the file of the outermost function."""
    package = tmp_path / "fedsim"
    shutil.copytree(Path(compiled.__file__).parents[2], package, ignore=shutil.ignore_patterns("__pycache__"))

    def hits() -> str:
        return python(HITS.format(str(tmp_path)), NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout

    assert [hits(), hits()] == ["0\n", "1\n"]
    with open(package / "kernels" / "compiled" / "emitter.py", "a") as file:
        file.write("# changed\n")
    assert hits() == "0\n"


def called(function: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Return what a function of the kernel that writes over its argument makes of values."""
    import numba

    @numba.njit  # type: ignore[untyped-decorator]
    def call(values: Any) -> None:
        function(values)

    found = values.copy()
    call(found)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_numpys_to_rounding(dtype: Any) -> None:
    x = np.concatenate([np.linspace(-12, 12, 100_001), np.geomspace(1e-30, 1, 1000)]).astype(dtype)
    np.testing.assert_allclose(called(elementary.tanh, x), np.tanh(x), rtol=5 * np.finfo(dtype).eps)
    special = called(elementary.tanh, np.array([np.nan, np.inf, -np.inf, 0.0], dtype))
    assert np.isnan(special[0])
    np.testing.assert_allclose(special[1:], [1, -1, 0], rtol=5 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_is_numpys_to_rounding(dtype: Any) -> None:
    x = -np.concatenate([np.linspace(0, 87, 300_001), np.geomspace(1e-30, 1, 1000)]).astype(dtype)
    np.testing.assert_allclose(called(elementary.exp, x), np.exp(x), rtol=2 * np.finfo(dtype).eps)
    nan, least, one = called(elementary.exp, np.array([np.nan, -np.inf, 0.0], dtype))
    assert np.isnan(nan)
    assert 0 <= least < 1e-37
    assert one == 1


def run_on(threads: int, work: Any) -> None:
    """Call `work` on a number of threads at once."""
    started = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def test_threads_that_share_a_block_give_the_bits_of_one() -> None:
    job = task(MLP((20, 33, 10)), Corrected(lr=0.02, epochs=20, momentum=0.5))
    alone = run_local_round(job, np.arange(10), {})
    for _ in range(10):
        shared = run_local_round(replace(job, run_on_all_workers=partial(run_on, 4)), np.arange(10), {})
        assert np.array_equal(shared.weights, alone.weights)
        assert np.array_equal(shared.train_loss, alone.train_loss)


def test_an_interrupted_block_lets_its_threads_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end the client at hand, and take no other."""
    threads: list[threading.Thread] = []
    seen: list[NDArray[np.float64]] = []
    train = training.train

    def watched(out: Any, losses: NDArray[np.float64], *more: Any) -> None:
        losses[:] = -1
        seen.append(losses)
        train(out, losses, *more)

    def run_on_one(work: Any) -> None:
        threads.append(threading.Thread(target=work))
        threads[0].start()
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.kernels.compiled.kernel.train", watched)
    sizes = np.full(100, 10)
    long = Partition(np.zeros(sizes.sum(), np.intp), np.concatenate([[0], np.cumsum(sizes)]))
    job = replace(task(MLP((20, 33, 10)), SGD(epochs=20_000)), partition=long, run_on_all_workers=run_on_one)
    with pytest.raises(KeyboardInterrupt):
        run_local_round(job, np.arange(100), {})
    threads[0].join()
    assert (seen[0] == -1).sum() > 90


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_fit_says_how_far_it_went_to_the_bit(kernel: str, dtype: str) -> None:
    """Histories do not tell whether the kernel measured it, or the server what it received."""
    job = task(MLP((20, 33, 10), dtype=dtype), SGD(epochs=2), kernel)
    update = run_local_round(job, np.arange(10), {})
    assert update.update_norm is not None
    assert np.array_equal(update.update_norm, kernels.load(kernel).update_norms(update.weights, job.global_weights))
    exactly = np.linalg.norm(update.weights.astype(float) - job.global_weights.astype(float), axis=1)
    np.testing.assert_allclose(update.update_norm, exactly, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_weights_that_are_not_finite_show_in_the_loss(kernel: str) -> None:
    """A last step can overflow after the last loss was fine; the engine judges by the loss alone."""
    job = task(MLP((20, 33, 10)), SGD(lr=3e38, batch_size=None), kernel)
    with np.errstate(all="ignore"):
        update = run_local_round(job, np.arange(10), {})
    finite = np.isfinite(update.weights).all(axis=1)
    assert finite.sum() < 10
    assert np.array_equal(np.isfinite(update.train_loss), finite)


def test_every_compiled_function_has_a_name_of_its_own() -> None:
    """Machine code of two processes is mixed on disk, where names alone tell functions apart."""
    modules = [
        importlib.import_module(f"{compiled.__name__}.{module.name}") for module in iter_modules(compiled.__path__)
    ]
    values = {id(value): value for module in modules for value in vars(module).values()}.values()
    functions = [value.py_func for value in values if isinstance(value, numba.core.dispatcher.Dispatcher)]
    names = [(function.__module__, function.__qualname__) for function in functions]
    assert len(names) > 20
    assert len(set(names)) == len(names)


MIXED = """
import sys
import numba
from fedsim.kernels import compiled

for k in range(int(sys.argv[2])):  # numbers of functions that another session would have given away
    numba.njit(lambda x: x + 1)(1.0)
compiled.prepare("float64", targets=sys.argv[1] == "targets")
"""


@pytest.mark.slow
def test_kernels_kept_by_different_processes_are_not_mixed_up(tmp_path: Path) -> None:
    """A third process that classifies and regresses loads both; 18 shifts the number of one product to the other's."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for what, shift in (("labels", "0"), ("targets", "18")):
        subprocess.run([sys.executable, "-c", MIXED, what, shift], env=environment, check=True, capture_output=True)
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from fedsim.kernels import compiled
compiled.prepare("float64")
import test_regression as t
for client in (t.SGD(lr=0.05), t.SCAFFOLD(lr=0.05)):
    t.test_both_kernels_agree(client, "float64")
"""
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", script, tests], env=environment, check=True, capture_output=True)
