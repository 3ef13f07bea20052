"""Server strategies against malicious clients: their formulas written down independently, identities and limits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import same
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_servers import TWELVE, Attack, Recorded, played, sent
from test_supernodes import on_supernodes

from fedsim import Experiment, clients, servers
from fedsim.cli.guard import guard
from fedsim.clients.private import private_mask
from fedsim.clients.sgd import SGD
from fedsim.clients.strategy import ClientStrategy
from fedsim.clients.task import Update
from fedsim.errors import ConfigError, DivergenceError
from fedsim.models import MLP
from fedsim.privacy import CentralDP, ExampleDP, LocalDP
from fedsim.secure import SecureAggregation
from fedsim.servers.fltrust import TrustedMean
from fedsim.servers.foolsgold import foolsgold_weights
from fedsim.servers.spectral import outlier_scores
from fedsim.splits import IID, Dirichlet, LogNormal, TimeOrdered
from fedsim.streams import Purpose, generator
from fedsim.study.build import build_runtime
from fedsim.study.root import RootTraining
from fedsim.updates.aggregators import Aggregator

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "trust"))
import defence_cost

Array = NDArray[Any]
BASE = Experiment(
    split=Dirichlet(17, alpha=0.5, sizes=LogNormal(0.7)), hidden=(8,), rounds=5, dtype="float64", fraction_train=0.7
)
RNG = np.random.default_rng(0)
ONES = np.ones(7, np.intp)


def trusting(update: Array) -> servers.FLTrust:
    """FLTrust whose server makes this update."""
    server = servers.FLTrust()
    server.train_on_root = lambda number, weights: weights + update
    return server


def made(name: str, parameters: int = 4) -> servers.FedAvg:
    """A defence outside of an experiment, with the global weights 0."""
    classes: dict[str, Callable[[], servers.FedAvg]] = {
        "NormBounding": servers.NormBounding,
        "NormBounding, given": partial(servers.NormBounding, norm=1.5),
        "FLTrust": partial(trusting, np.arange(1.0, parameters + 1)),
        "FoolsGold": partial(servers.FoolsGold, output_layer=False),
        "SpectralFilter": partial(servers.SpectralFilter, num_malicious_nodes=2),
    }
    server = classes[name]()
    sent(server, np.zeros(parameters))
    return server


def combined(rule: Aggregator, rows: Array) -> Array:
    """What a rule makes of clients with one example each, handed over in two blocks."""
    for ids in (np.arange(3), np.arange(3, len(rows))):
        some = ids[ids < len(rows)]
        ones = np.ones(len(some))
        rule.add(Update(some, ones.astype(np.intp), rows[some], ones), ones)
    return rule.result()


NAMES = ("NormBounding", "NormBounding, given", "FLTrust", "FoolsGold", "SpectralFilter")


# Each against its paper, in plain NumPy, over the rounds of a run.


def norm_bounding(norm: float | None) -> Callable[..., Any]:
    def step(w: Array, ids: Array, n: Array, x: Array) -> Any:
        lengths = np.sqrt(((x - w) ** 2).sum(axis=1))
        bound = np.median(lengths) if norm is None else norm
        return w + n / n.sum() @ ((x - w) / np.maximum(1, lengths / bound)[:, None])

    return step


def foolsgold_alphas(histories: list[Array], kappa: float) -> list[float]:
    """Algorithm 1, line by line."""
    k = len(histories)
    cs = [[0.0] * k for _ in range(k)]
    for i in range(k):
        for j in range(k):
            a, b = histories[i], histories[j]
            if i != j and a.any() and b.any():
                cs[i][j] = max(0.0, float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)))
    v = [max(row) for row in cs]
    for i in range(k):
        for j in range(k):
            if v[j] > v[i]:
                cs[i][j] *= v[i] / v[j]
    alpha = [1 - max(row) for row in cs]
    alpha = [a / max(alpha) for a in alpha]
    logits = [inf if a == 1 else -inf if a == 0 else kappa * (log(a / (1 - a)) + 0.5) for a in alpha]
    return [min(1.0, max(0.0, value)) for value in logits]


def foolsgold(kappa: float, first: int) -> Callable[..., Any]:
    """`first`: the number of the first parameter that is compared."""
    history: dict[int, Any] = {}

    def step(w: Array, ids: Array, n: Array, x: Array) -> Any:
        for k, row in zip(ids, x, strict=True):
            history[k] = history.get(k, 0) + (row - w)[first:]
        alpha = foolsgold_alphas([history[k] for k in ids], kappa)
        assert 0 < np.sum(alpha) < len(ids)
        return w + np.array(alpha) @ (x - w) / len(ids)

    return step


def dnc(m: int, c: float) -> Callable[..., Any]:
    def step(w: Array, ids: Array, n: Array, x: Array) -> Any:
        centered = x - x.mean(axis=0)
        v = np.linalg.svd(centered)[2][0]
        scores = (centered @ v) ** 2
        kept = np.argsort(scores)[: len(x) - round(c * m)]
        return x[kept].mean(axis=0)

    return step


def fltrust(experiment: Experiment) -> Callable[..., Any]:
    """All examples are root examples, and the server makes one step on all of them."""
    data = experiment.load_data()
    model = experiment.make_model(data)
    assert isinstance(experiment.client, SGD)
    lr = experiment.client.lr

    def step(w: Array, ids: Array, n: Array, x: Array) -> Any:
        g0 = -lr * model.loss_and_gradient(w[None], data.x_train[None], data.y_train[None])[1][0]
        top, trust = np.zeros_like(w), 0.0
        for g in x - w:
            score = max(0.0, float(g @ g0) / float(np.linalg.norm(g) * np.linalg.norm(g0)))
            top, trust = top + score * np.linalg.norm(g0) / np.linalg.norm(g) * g, trust + score
        return w + top / trust

    return step


@pytest.mark.parametrize(
    ("server", "formula"),
    [
        (servers.NormBounding(), norm_bounding(None)),
        (servers.NormBounding(norm=0.2), norm_bounding(0.2)),
        (servers.FoolsGold(), foolsgold(1.0, 64 * 8 + 8)),
        (servers.FoolsGold(output_layer=False, confidence=0.5), foolsgold(0.5, 0)),
        (servers.SpectralFilter(num_malicious_nodes=2), dnc(2, 1.0)),
        (servers.SpectralFilter(num_malicious_nodes=2, filtering=1.5, iterations=3), dnc(2, 1.5)),
        (servers.FLTrust(root=1442), None),
    ],
    ids=lambda value: repr(value._given_options) if isinstance(value, servers.FedAvg) else "",
)
@pytest.mark.parametrize("malicious", [(), (1, 4)], ids=["honest", "two malicious"])
def test_every_defence_follows_its_paper(server: Any, formula: Any, malicious: tuple[int, ...]) -> None:
    client = Recorded(malicious=malicious)
    if formula is None:
        client = Recorded(malicious=malicious, batch_size=None)
        experiment = replace(BASE, client=client, server=server, test_fraction=0.0)
        assert len(experiment.load_data().y_train) == 1442
        formula = fltrust(experiment)
    elif malicious and isinstance(server, servers.FoolsGold):
        formula = foolsgold(server.confidence, 64 * 8 + 8 if server.output_layer else 0)  # its history is empty
    experiment = replace(BASE, client=client, server=server)
    notes, last = played(experiment)
    for (_, w, ids, n, x, _), new in zip(notes, [note[1] for note in notes[1:]] + [last], strict=True):
        expected = formula(w, ids, n, x)
        assert np.abs(expected - w).max() > 1e-5
        np.testing.assert_allclose(new, expected, rtol=1e-8, atol=1e-10)


# Identities.


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_a_wide_norm_without_noise_is_fedavg_to_the_bit(kernel: str) -> None:
    base = replace(BASE, dtype="float32", kernel=kernel)
    assert same(replace(base, server=servers.NormBounding(norm=1e300)).run(), base.run())


def test_a_norm_bounds_what_one_client_adds_and_keeps_its_direction() -> None:
    rows = np.concatenate([0.1 * RNG.normal(size=(6, 4)), [[3e8, 0, 4e8, 0]]])
    for server, norm in ((servers.NormBounding(norm=2.0), 2.0), (servers.NormBounding(), None)):
        sent(server, np.zeros(4))
        found = combined(server.aggregator(), rows)
        norm = norm or float(np.median(np.linalg.norm(rows, axis=1)))
        lengths = np.linalg.norm(rows[:6], axis=1, keepdims=True)
        honest = (rows[:6] * np.minimum(1, norm / lengths)).sum(axis=0) / 7
        np.testing.assert_allclose(found - honest, norm / 7 * np.array([0.6, 0, 0.8, 0]), atol=1e-12)


def test_noise_is_gaussian_of_each_round_and_only_on_shared_parameters() -> None:
    server, weights = servers.NormBounding(noise=0.5, seed=3), np.ones(20_000)
    first, second = (server.step(number, weights, weights) - 1 for number in (1, 2))
    for noise in (first, second):
        assert abs(noise.mean()) < 5 * 0.5 / 20_000**0.5
        assert noise.std() == pytest.approx(0.5, rel=0.03)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    assert np.array_equal(first, server.step(1, weights, weights) - 1)
    private = replace(BASE, client=clients.FedPer(), rounds=1)
    plain, noisy = (replace(private, server=servers.NormBounding(norm=1e9, noise=s)).run().weights for s in (0.0, 0.1))
    assert {name for name in plain if not np.array_equal(plain[name], noisy[name])} == {"W1", "b1"}


def test_fltrust_trusts_by_direction_only() -> None:
    g = np.array([1.0, -2.0, 2.0])

    def mean(*rows: Array) -> tuple[Array, float]:
        total = TrustedMean(np.zeros(3), g)
        count = len(rows)
        total.add(Update(np.arange(count), ONES[:count], np.array(rows), np.ones(count)), np.ones(count))
        return total.result(), total._trust

    right = np.array([2.0, 1.0, 0.0])
    np.testing.assert_allclose(mean(g)[0], g)
    assert mean(g)[1] == pytest.approx(1.0)  # the server's own update has a trust score of 1
    np.testing.assert_allclose(mean(1e30 * g)[0], g)  # the norm does not matter
    for distrusted in (-g, -1e30 * g, right, 0 * g):
        assert mean(distrusted)[1] == pytest.approx(0.0, abs=1e-15)
        np.testing.assert_allclose(mean(g, distrusted, distrusted)[0], g)
    assert np.array_equal(mean(-g, -2 * g)[0], np.zeros(3))  # nobody is trusted: unchanged
    idle = TrustedMean(np.ones(3), np.ones(3))
    idle.add(Update(np.arange(1), ONES[:1], g[None], np.ones(1)), np.ones(1))
    assert np.array_equal(idle.result(), np.ones(3))  # the server has nothing to learn


def test_foolsgold_gives_sybils_nothing_and_different_clients_all() -> None:
    history = np.concatenate([np.repeat([[1.0, 1.0, 0, 0]], 3, axis=0), np.eye(4)[2:]])
    assert foolsgold_weights(history * np.array([[1e-3], [1], [1e30], [5], [6]])).tolist() == [0, 0, 0, 1, 1]
    assert foolsgold_weights(np.repeat(RNG.normal(size=(1, 9)), 5, axis=0)).tolist() == [0] * 5
    assert foolsgold_weights(np.eye(4)).tolist() == [1] * 4
    assert foolsgold_weights(np.array([[1.0, 0], [-1.0, 0]])).tolist() == [1, 1]  # opposite
    assert foolsgold_weights(np.zeros((3, 2))).tolist() == [1] * 3  # clients that send nothing differ in nothing
    assert foolsgold_weights(RNG.normal(size=(1, 5))).tolist() == [1]


@given(st.integers(5, 15), st.integers(1, 2), st.integers(0, 2**32 - 1), st.floats(0.5, 1e30))
def test_the_filter_removes_planted_outliers(clients_: int, planted: int, seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    rows = 0.01 * rng.normal(size=(clients_, 6))
    rows[:planted] += size * np.ones(6)
    server = servers.SpectralFilter(num_malicious_nodes=2)
    sent(server, np.zeros(6))
    found = server.combine(rows, np.ones(clients_))
    assert np.abs(found).max() < 0.05


def test_outlier_scores_are_those_of_the_singular_vector() -> None:
    for shape in ((5, 90), (9, 4), (1, 3)):
        rows = RNG.normal(size=shape)
        centered = rows - rows.mean(axis=0)
        expected = (centered @ np.linalg.svd(centered)[2][0]) ** 2
        scale = np.abs(centered).max() ** 2 or 1.0
        np.testing.assert_allclose(outlier_scores(rows) * scale, expected, atol=1e-12)
    assert outlier_scores(np.full((4, 3), 7.0)).tolist() == [0] * 4


def test_an_update_that_any_iteration_removes_is_removed() -> None:
    """With random coordinates; and if all are removed the model is unchanged."""
    rows = RNG.normal(size=(9, 200))
    means = []
    for iterations in (1, 3, 500):
        server = servers.SpectralFilter(num_malicious_nodes=1, iterations=iterations, dimensions=2)
        sent(server, np.full(200, 5.0))
        means.append(server.combine(rows, np.ones(9)))
    counts = [np.linalg.lstsq(rows.T, mean, rcond=None)[0].round(9) for mean in means[:2]]
    assert (counts[0] > 0).sum() == 8
    assert set(np.flatnonzero(counts[1])) < set(np.flatnonzero(counts[0]))
    assert np.array_equal(means[2], np.full(200, 5.0))


@pytest.mark.parametrize("name", NAMES)
@given(st.permutations(range(7)), st.integers(0, 2**32 - 1))
def test_the_order_of_clients_does_not_matter(name: str, order: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(7, 4))
    one, other = (combined(made(name).aggregator(), part) for part in (rows, rows[order]))
    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


# Limits.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_equal_and_huge_rows_and_a_single_client(name: str, dtype: Any) -> None:
    normal = RNG.normal(size=(7, 4)).astype(dtype)
    huge = normal.copy()
    huge[0] = 1e30
    for rows in (np.zeros((7, 4), dtype), np.ones((7, 4), dtype), normal, huge, -huge, normal[:1]):
        server = made(name)
        server._sent_flat = np.zeros(4, dtype)
        server.num_malicious_nodes = min(2, len(rows) - 1)  # type: ignore[attr-defined]
        server._removed = server.num_malicious_nodes  # type: ignore[attr-defined]
        found = combined(server.aggregator(), rows)
        assert np.isfinite(found).all()
        assert found.dtype == dtype
        if name != "FoolsGold":  # which does not look at norms
            assert np.abs(found).max() < 10


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_numbers_are_never_averaged_silently(name: str) -> None:
    """A run excludes them before; whoever calls an aggregator on his own gets NaN or an error."""
    rows = RNG.normal(size=(7, 4))
    rows[3, 1] = np.nan
    with suppress(np.linalg.LinAlgError):
        assert np.isnan(combined(made(name).aggregator(), rows)).any()


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_defence_keeps_is_in_its_state(name: str) -> None:
    one, other, rng = made(name), made(name), np.random.default_rng(4)
    for number in range(1, 5):
        rows = rng.normal(size=(7, 4))
        for server in (one, other):
            server._round = number
        new = [server.step(number, np.zeros(4), combined(server.aggregator(), rows)) for server in (one, other)]
        np.testing.assert_array_equal(new[0], new[1])
        other = made(name)
        other.state = {key: values.copy() for key, values in one.state.items()}


# Under attack.


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_defences_withstand_vectors_of_every_magnitude(size: float) -> None:
    """Two of twelve clients send constants."""
    base = replace(TWELVE, client=Attack(constants=(size, -size / 2)))
    for server in (servers.NormBounding(), servers.FLTrust(), servers.SpectralFilter(num_malicious_nodes=2)):
        assert replace(base, server=server).run().final_accuracy > 0.85


def test_fltrust_withstands_a_malicious_majority() -> None:
    """The paper's claim; a median follows the majority."""
    base = replace(TWELVE, client=Attack(attackers=7, update_factor=-1), on_failure="exclude")
    assert replace(base, server=servers.FLTrust).run().final_accuracy > 0.85
    assert replace(base, server=servers.FedMedian).run().final_accuracy < 0.5


def test_foolsgold_withstands_sybils_where_honest_clients_differ_a_little() -> None:
    """Seven of 17 clients push the model in one direction."""

    class Sybils(clients.SGD):
        def train(self, ctx: clients.Context) -> Array:
            weights = ctx.fit()
            push = 0.1 * np.random.default_rng(1).normal(size=weights.shape[1])
            weights[ctx.partition_ids < 7] = ctx.global_weights + push
            return weights

    base = Experiment(split=Dirichlet(17, alpha=10.0), rounds=30, client=Sybils(), on_failure="exclude")
    assert replace(base, server=servers.FoolsGold(output_layer=False)).run().final_accuracy > 0.8
    assert base.run().final_accuracy < 0.75


# Root examples.


def root_of(experiment: Experiment, count: int) -> Any:
    return RootTraining(experiment, build_runtime(experiment), count)


def test_root_examples_are_drawn_from_the_clients_training_examples() -> None:
    experiment = replace(BASE, test_fraction=0.5)
    runtime, chosen = build_runtime(experiment), []
    data, federated = runtime.federated.dataset, runtime.federated
    held = federated.partition_test
    assert held is not None
    allowed = {data.x_train[k].tobytes() for k in federated.partition.indices}
    tested = {data.x_train[k].tobytes() for k in held.indices} - allowed
    for seed in range(3):
        rows = root_of(replace(experiment, seed=seed), 50)._runtime.federated.dataset
        assert len(rows.y_train) == 50
        chosen.append({row.tobytes() for row in rows.x_train})
    assert chosen[0] <= allowed
    assert not chosen[0] & tested
    assert chosen[0] != chosen[1]
    labels = root_of(replace(BASE, split=IID(3)), 1000)._runtime.federated.dataset.y_train
    assert np.bincount(labels, minlength=10) == pytest.approx(np.full(10, 100), abs=25)  # uniformly


def test_the_server_trains_as_a_client_does() -> None:
    """On all examples of a dataset: as a single client that has them, but for the order of examples."""
    experiment = Experiment(split=IID(1), client=SGD(batch_size=None, epochs=3, lr=0.3), rounds=1, dtype="float64")
    weights = np.concatenate([values.ravel() for values in experiment.run().weights.values()])
    runtime = build_runtime(experiment)
    start = runtime.model.init(generator(experiment.seed, Purpose.INIT))
    np.testing.assert_allclose(root_of(experiment, 1442).train(1, start), weights, rtol=1e-10, atol=1e-12)


def test_the_server_does_not_change_parameters_that_clients_keep() -> None:
    """Otherwise they would add to the norm that all updates are scaled to."""
    experiment = replace(BASE, client=clients.FedPer(), server=servers.FLTrust)
    model = build_runtime(experiment).model
    start = model.init(generator(experiment.seed, Purpose.INIT))
    private = private_mask(experiment.client, model)
    changed = root_of(experiment, 50).train(1, start) != start
    assert changed[~private].any()
    assert not changed[private].any()


def test_foolsgold_compares_the_last_layer_that_clients_send() -> None:
    """The output layer of FedPer's clients never arrives: nothing would be similar, and nobody lose weight."""
    model = build_runtime(BASE).model
    server = servers.FoolsGold(server_hooks=clients.ServerHooks(clients.FedPer(), model, 1, 0))
    sent(server, model.init(generator(0, Purpose.INIT)))
    np.testing.assert_array_equal(server._compared(), ~private_mask(clients.FedPer(), model))  # one of two layers


def test_fltrust_gives_the_same_bits_on_supernodes() -> None:
    split, server = TimeOrdered(Dirichlet(6, alpha=0.5), 2), servers.FLTrust(root=30)
    experiment = Experiment(split=split, client=clients.SCAFFOLD(), rounds=3, server=server)
    assert same(on_supernodes(experiment, 2), experiment.run())


def test_what_root_examples_need() -> None:
    with pytest.raises(ConfigError, match="FLTrust's root is 1443; allowed: at most 1442, the clients' training exam"):
        replace(BASE, server=servers.FLTrust(root=1443)).run()
    with pytest.raises(ConfigError, match="FLTrust has no root examples to train on; allowed: FLTrust as an Experim"):
        servers.FLTrust().aggregator()

    class Own(ClientStrategy):
        def train(self, ctx: clients.Context) -> Array:
            return np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)

    with pytest.raises(ConfigError, match="Own has no hyperparameters of SGD"):
        replace(BASE, client=Own(), server=servers.FLTrust).run()
    with pytest.raises(DivergenceError, match="training on FLTrust's root examples diverged in round 1 with SGD"):
        replace(BASE, dtype="float32", client=SGD(lr=1e30), server=servers.FLTrust, on_failure="exclude").run()


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("NormBounding", {"norm": 0}, "NormBounding's norm is 0; allowed: a finite number greater than 0"),
        ("NormBounding", {"norm": inf}, "NormBounding's norm is inf"),
        ("NormBounding", {"norm": True}, "NormBounding's norm is True"),
        ("NormBounding", {"noise": -1}, "NormBounding's noise is -1; allowed: a finite number at least 0"),
        ("NormBounding", {"noise": float("nan")}, "NormBounding's noise is nan"),
        ("FLTrust", {"root": 0}, "FLTrust's root is 0; allowed: a whole number, 1 or more"),
        ("FLTrust", {"root": 1.5}, "FLTrust's root is 1.5"),
        ("FoolsGold", {"confidence": 0}, "FoolsGold's confidence is 0; allowed: a finite number greater than 0"),
        ("FoolsGold", {"output_layer": 1}, "FoolsGold's output_layer is 1; allowed: true or false"),
        ("SpectralFilter", {"num_malicious_nodes": -1}, "SpectralFilter's num_malicious_nodes is -1"),
        ("SpectralFilter", {"filtering": 0}, "SpectralFilter's filtering is 0"),
        ("SpectralFilter", {"iterations": 0}, "SpectralFilter's iterations is 0"),
        ("SpectralFilter", {"dimensions": "all"}, "SpectralFilter's dimensions is 'all'"),
        ("SpectralFilter", {"num_malicious_nodes": 6}, "num_malicious_nodes is 6, for which a round needs 13 clients"),
        ("SpectralFilter", {"num_malicious_nodes": 4, "filtering": 3}, "filtering is 3, which removes 12 updates"),
    ],
)
def test_bad_options_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(TWELVE, server=partial(getattr(servers, name), **options)).run()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["NormBounding", "FLTrust", "FoolsGold", "SpectralFilter"])
def test_defences_are_refused_where_krum_is(name: str) -> None:
    server = getattr(servers, name)
    for field, value in (
        ("secure_aggregation", SecureAggregation()),
        ("privacy", CentralDP(clip=1.0, noise_multiplier=1.0)),
    ):
        with pytest.raises(ConfigError) as caught:
            replace(TWELVE, server=server, **{field: value}).run()  # type: ignore[arg-type]
        assert f"the server {name}" in str(caught.value)
        with pytest.raises(ConfigError, match="the server Krum has its own aggregator"):
            replace(TWELVE, server=servers.Krum, **{field: value}).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "private", [{"privacy": ExampleDP(clip=1.0, noise_multiplier=1.0)}, {"transforms": (LocalDP(1.0, 1.0),)}]
)
def test_root_examples_get_no_noise(private: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FLTrust trains on root examples, which get no noise"):
        replace(TWELVE, server=servers.FLTrust, **private).run()


def test_foolsgolds_output_layer_is_that_of_an_experiments_model() -> None:
    server = servers.FoolsGold()
    sent(server, np.zeros(4))
    with pytest.raises(ConfigError, match="FoolsGold's output_layer is True; allowed outside of an Experiment: False"):
        combined(server.aggregator(), RNG.normal(size=(4, 4)))
    model = MLP((3, 2, 2))
    server = servers.FoolsGold(server_hooks=clients.ServerHooks(SGD(), model, 1, 0))
    sent(server, np.zeros(model.num_parameters))
    combined(server.aggregator(), RNG.normal(size=(4, model.num_parameters)))
    assert server.state["history"].shape == (4, 2 * 2 + 2)


def test_what_defences_cost_without_attack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script prints a row for each; on non-IID data medians lose more than norm bounding."""
    quick = ["--clients", "11", "--malicious", "2", "--rounds", "8", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["defence_cost.py", *quick])
    defence_cost.main()
    assert "wrote defence_cost.csv, defence_cost.png" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "defence_cost.csv").set_index(["defence", "split"])["accuracy"]
    assert rows["NormBounding", "Dirichlet(0.1)"] > rows["FedMedian", "Dirichlet(0.1)"] + 0.1
    assert len(rows) == 28
    assert (tmp_path / "defence_cost.png").read_bytes().startswith(b"\x89PNG")
    for bad in (["--malicious", "6"], ["--seeds", "0"]):
        monkeypatch.setattr(sys, "argv", ["defence_cost.py", *quick, *bad])
        with pytest.raises(SystemExit) as ended:
            guard(defence_cost.main)
        assert ended.value.code == 2
        assert f"{bad[0][2:]} is {bad[1]}; allowed" in capsys.readouterr().err
