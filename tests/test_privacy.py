"""Differential privacy: what it costs, what it releases, what it refuses."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from helpers import same

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

import dp_accounting as dp
from dp_accounting import pld, rdp

from fedsim import Experiment, clients, servers
from fedsim.apps import app
from fedsim.apps.in_process import AppGrid
from fedsim.cli import main as cli
from fedsim.clients.task import Update
from fedsim.engines.supernodes.engine import SuperNodeEngine
from fedsim.errors import ConfigError
from fedsim.flower import strategies
from fedsim.kernels.numpy import add_weighted
from fedsim.privacy import CentralDP, LocalDP
from fedsim.privacy.accounting import PrivacyLoss, default_delta, noise_multiplier_for
from fedsim.privacy.central import CentralMechanism
from fedsim.privacy.system_noise import system_normal
from fedsim.splits import IID, Dirichlet
from fedsim.study import config
from fedsim.study.callbacks import EarlyStopping
from fedsim.updates import Int8, TopK

# What it costs.


def test_the_published_epsilon_of_tensorflow_privacys_mnist_tutorial() -> None:
    """60,000 examples, batches of 256, noise 1.1, 60 epochs: about 3, by the bounds of its time."""
    loss = PrivacyLoss(1.1, 60_000, 256, 1e-5)
    steps = 60 * 60_000 // 256
    assert 2.5 < loss.epsilon(steps) < 3.0
    tighter = replace(loss, accountant="pld")
    assert 0.9 * loss.epsilon(steps) < tighter.epsilon(steps) < loss.epsilon(steps)


@pytest.mark.parametrize(("noise", "clients", "cohort", "rounds"), [(0.8, 100, 10, 1), (1.3, 1000, 50, 200)])
def test_epsilon_is_the_librarys_own(noise: float, clients: int, cohort: int, rounds: int) -> None:
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(cohort / clients, dp.GaussianDpEvent(noise)), rounds)
    found = PrivacyLoss(noise, clients, cohort, 1e-4).epsilon(rounds)
    assert found == pytest.approx(rdp.RdpAccountant().compose(event).get_epsilon(1e-4), rel=1e-9)
    tight = PrivacyLoss(noise, clients, cohort, 1e-4, accountant="pld").epsilon(rounds)
    exact = pld.PLDAccountant().compose(event).get_epsilon(1e-4)
    assert exact <= tight < 1.02 * exact + 1e-3 * math.sqrt(rounds)


def test_replacing_a_client_moves_the_sum_twice_as_far_as_adding_one() -> None:
    """With every client in every round, fixed sampling at 2 z is Poisson sampling at z: the Gaussian mechanism."""
    alone = PrivacyLoss(1.5, 10, 10, 1e-5).epsilon(7)
    assert PrivacyLoss(3.0, 10, 10, 1e-5, "fixed").epsilon(7) == pytest.approx(alone, rel=1e-9)
    by_hand = min(  # Renyi DP of the Gaussian mechanism, converted as Canonne, Kamath and Steinke (2020) do
        7 * a / (2 * 1.5**2) + math.log1p(-1 / a) - math.log(1e-5 * a) / (a - 1) for a in np.arange(1.1, 64, 0.1)
    )
    assert alone == pytest.approx(by_hand, rel=1e-3)


def test_epsilon_grows_with_rounds_and_cohort_and_falls_with_noise() -> None:
    base = PrivacyLoss(1.0, 500, 25, 1e-4)
    assert base.epsilon(0) == 0
    assert base.epsilon(10) < base.epsilon(11) < replace(base, cohort=26).epsilon(11)
    assert replace(base, noise_multiplier=1.1).epsilon(10) < base.epsilon(10)
    assert replace(base, delta=1e-3).epsilon(10) < base.epsilon(10)
    assert replace(base, noise_multiplier=0.0).epsilon(1) == math.inf
    assert base.rounds_within(base.epsilon(10), 100) == 10
    assert base.rounds_within(base.epsilon(1) * 0.99, 100) == 0
    assert base.rounds_within(1e9, 17) == 17


def test_the_noise_for_an_epsilon_is_the_least() -> None:
    noise = noise_multiplier_for(3.0, 200, 1000, 50, 1e-4)
    assert 2.99 < PrivacyLoss(noise, 1000, 50, 1e-4).epsilon(200) <= 3.0
    with pytest.raises(ConfigError, match="epsilon is 1e-09"):
        noise_multiplier_for(1e-9, 10**6, 10, 10, 1e-12)


def test_a_large_delta_may_cover_the_whole_loss() -> None:
    """So that epsilon is 0, which the search for the noise must not divide by."""
    assert PrivacyLoss(1e3, 10, 10, 0.5).epsilon(1) == 0
    assert PrivacyLoss(noise_multiplier_for(1e-6, 3, 10, 10, 0.3), 10, 10, 0.3).epsilon(3) <= 1e-6


def test_a_fixed_cohort_is_a_whole_number_and_the_pld_accountant_needs_poisson_sampling() -> None:
    with pytest.raises(ConfigError, match=r"cohort is 2.5; allowed: a whole number"):
        PrivacyLoss(1.0, 10, 2.5, 1e-3, "fixed")
    with pytest.raises(ConfigError, match="accountant is 'pld'"):
        PrivacyLoss(1.0, 10, 2, 1e-3, "fixed", "pld")
    with pytest.raises(ConfigError, match="CentralDP's accountant is 'pld'"):
        CentralDP(noise_multiplier=1.0, sampling="fixed", accountant="pld")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "neither noise_multiplier nor epsilon"),
        ({"noise_multiplier": -1}, "noise_multiplier is -1"),
        ({"epsilon": 0}, "epsilon is 0"),
        ({"epsilon": 1.0, "delta": 1}, "delta is 1"),
        ({"epsilon": 1.0, "clip": 0}, "clip is 0"),
        ({"epsilon": 1.0, "clip": math.nan}, "clip is nan"),
        ({"epsilon": 1.0, "sampling": "all"}, "sampling is 'all'; allowed: poisson, fixed"),
        ({"epsilon": 1.0, "target_quantile": 1.5}, "target_quantile is 1.5"),
        ({"epsilon": 1.0, "clip_lr": 0}, "clip_lr is 0"),
        ({"epsilon": 1.0, "system_noise": 1}, "system_noise is 1"),
    ],
)
def test_settings_outside_their_limits_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CentralDP(**settings)


def test_the_default_delta_is_less_than_one_over_the_clients() -> None:
    assert default_delta(1000) == pytest.approx(1000**-1.1)
    assert 0 < default_delta(1) < 1


# The mechanism.


def made(noise: float | None = 1.0, num_clients: int = 10, fraction: float = 1.0, **settings: Any) -> CentralMechanism:
    return CentralDP(noise_multiplier=noise, **settings).mechanism(num_clients, fraction, 5, seed=3)


def updates(number: int = 6, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return rng.normal(size=30), rng.normal(size=30) + scale * rng.normal(size=(number, 30))


def released(mechanism: CentralMechanism, start: np.ndarray, rows: np.ndarray, clip: float) -> np.ndarray:
    mean = mechanism.aggregator(2, start, clip, add_weighted)
    for row in range(0, len(rows), 2):
        part = np.arange(row, min(row + 2, len(rows)))
        mean.add(Update(part, part + 1, rows[part], np.zeros(len(part))), np.ones(len(part)))
    return mean.result()


def test_the_mean_of_clipped_updates_over_the_expected_cohort() -> None:
    start, rows = updates()
    expected = start.copy()
    for row in rows:
        change = row - start
        expected += change * min(1, 2.5 / np.linalg.norm(change)) / 4
    found = released(made(0.0, 40, 0.1), start, rows, clip=2.5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_client_changes_the_sum_by_at_most_the_clipping_norm() -> None:
    start, rows = updates(scale=100.0)
    mechanism = made(0.0)
    far = np.concatenate([rows, start[None] + 1e30])
    sums = [10 * released(mechanism, start, some, clip=2.0) for some in (rows, rows[1:], far)]
    assert np.linalg.norm(sums[0] - sums[1]) == pytest.approx(2.0)
    assert np.linalg.norm(sums[0] - sums[2]) == pytest.approx(2.0)


def test_noise_has_the_deviation_of_the_accountant_and_repeats_with_the_seed() -> None:
    start = np.zeros(40_000)
    rows = start[None]
    first = released(made(1.5, 20, 0.5), start, rows, clip=0.2)
    assert first.std() == pytest.approx(1.5 * 0.2 / 10, rel=0.02)
    assert abs(first.mean()) < 4 * first.std() / 200
    assert np.array_equal(first, released(made(1.5, 20, 0.5), start, rows, clip=0.2))
    other = CentralDP(noise_multiplier=1.5).mechanism(20, 0.5, 5, seed=4)
    assert not np.array_equal(first, released(other, start, rows, clip=0.2))


def test_noise_of_the_operating_system_is_normal_and_does_not_repeat() -> None:
    draws = system_normal(100_000)
    assert abs(draws.mean()) < 0.02
    assert draws.std() == pytest.approx(1, rel=0.02)
    assert (np.abs(draws) < 1.96).mean() == pytest.approx(0.95, abs=0.005)
    mechanism, start = made(1.0, system_noise=True), np.zeros(10)
    twice = [released(mechanism, start, start[None], 1.0) for _ in range(2)]
    assert not np.array_equal(twice[0], twice[1])


def test_poisson_cohorts_are_drawn_client_by_client() -> None:
    mechanism = made(1.0, 400, 0.1)
    samples = [mechanism.sample(400, number) for number in range(200)]
    sizes = np.array([len(sample) for sample in samples])
    assert sizes.mean() == pytest.approx(40, abs=1.5)
    assert sizes.var() == pytest.approx(36, rel=0.35)
    times = np.bincount(np.concatenate(samples), minlength=400)
    assert times.mean() == pytest.approx(20, abs=1)
    assert times.max() < 45
    fixed = made(1.0, 400, 0.1, sampling="fixed")
    assert {len(fixed.sample(400, number)) for number in range(20)} == {40}
    drawn = np.bincount(np.concatenate([fixed.sample(400, number) for number in range(200)]), minlength=400)
    assert drawn.max() < 45
    secret = made(1.0, 400, 0.1, system_noise=True)
    assert not np.array_equal(secret.sample(400, 1), secret.sample(400, 1))


def test_adaptive_clipping_finds_the_quantile_at_the_price_of_one_noise() -> None:
    mechanism = made(1.0, 400, 1.0, target_quantile=0.7, clip_lr=0.5)
    assert mechanism.sum_noise**-2 + (2 * mechanism.count_noise) ** -2 == pytest.approx(1.0)
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(400, 30))
    rows *= rng.uniform(1, 11, 400)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    clip, start = 0.1, np.zeros(30)
    for number in range(60):
        mean = mechanism.aggregator(number, start, clip, add_weighted)
        mean.add(Update(np.arange(400), np.ones(400, int), rows, np.zeros(400)), np.ones(400))
        mean.result()
        clip = mean.next_clip()
    assert clip == pytest.approx(8.0, abs=0.6)  # norms are uniform between 1 and 11


# In a run.

PRIVACY = CentralDP(clip=0.5, noise_multiplier=1.0)
BASE = Experiment(split=Dirichlet(40, alpha=0.3), rounds=4, fraction_train=0.3, privacy=PRIVACY)


class Reader(servers.FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, list(replies))


def test_an_experiment_with_privacy_is_written_and_read_as_text() -> None:
    experiment = replace(BASE, privacy=CentralDP(clip=0.25, epsilon=3.0, sampling="fixed"), transforms=(LocalDP(0.5),))
    assert config.experiment(tomllib.loads(config.to_toml(experiment))) == experiment
    assert str(experiment.privacy) == "CentralDP(clip=0.25, epsilon=3.0, sampling='fixed')"
    with pytest.raises(ConfigError, match="privacy is 3; allowed: a CentralDP or ExampleDP object"):
        replace(BASE, privacy=3)  # type: ignore[arg-type]


def test_without_noise_and_with_all_equal_clients_it_is_fedavg() -> None:
    plain = Experiment(split=IID(5), rounds=3, dtype="float64", dataset="article_teacher", kernel="numpy")
    private = replace(plain, privacy=CentralDP(clip=1e6, noise_multiplier=0.0))
    sizes = plain.federate(plain.load_data()).partition.sizes
    assert sizes.min() == sizes.max()
    for name, values in plain.run().weights.items():
        np.testing.assert_allclose(private.run().weights[name], values, rtol=1e-9, atol=1e-12)


def test_epsilon_is_in_the_history_and_is_the_accountants() -> None:
    history = BASE.run().history
    loss = PrivacyLoss(1.0, 40, 12, default_delta(40))
    assert list(history["epsilon"]) == [loss.epsilon(number) for number in range(5)]
    assert replace(BASE, privacy=None).run().history["epsilon"].isna().all()


def test_the_budget_ends_the_run_before_the_round_that_would_exceed_it() -> None:
    loss = PrivacyLoss(1.0, 40, 12, default_delta(40))
    budget = (loss.epsilon(2) + loss.epsilon(3)) / 2
    result = replace(BASE, privacy=replace(PRIVACY, epsilon=budget)).run()
    assert result.rounds == 2
    assert result.history["epsilon"].iloc[-1] <= budget
    assert "epsilon" in result.stop_reason
    calibrated = replace(BASE, privacy=CentralDP(clip=0.5, epsilon=2.0)).run()
    assert calibrated.rounds == 4
    assert 1.99 < calibrated.history["epsilon"].iloc[-1] <= 2.0


@pytest.mark.parametrize("privacy", [{}, {"sampling": "fixed"}, {"target_quantile": 0.5}], ids=str)
def test_the_same_bits_for_any_workers_and_blocks_and_after_an_interruption(
    privacy: dict[str, Any], tmp_path: Any
) -> None:
    experiment = replace(BASE, privacy=replace(PRIVACY, **privacy))
    whole = experiment.run()
    assert same(whole, experiment.run(workers=3, block_size=2))
    assert same(whole, experiment.run(directory=tmp_path / "whole"))


# Noise that is correlated between rounds.

EPOCHS = CentralDP(clip=0.5, noise_multiplier=2.0, sampling="epochs")


def test_epsilon_of_epochs_is_that_of_the_tree_with_restarts() -> None:
    """Of 64 rounds in an epoch, each client is in 7 nodes: Kairouz et al., theorem 4.1, alpha * 7 / (2 z^2)."""
    loss = PrivacyLoss(2.0, 640, 10, 1e-5, "epochs")
    orders = np.array(rdp.RdpAccountant().orders)
    for rounds, nodes in ((64, 7), (128, 14), (3, 2), (64 + 4, 10), (1, 1)):
        expected, _ = rdp.compute_epsilon(orders, orders * nodes / (2 * 2.0**2), 1e-5)
        assert loss.epsilon(rounds) == pytest.approx(expected)


def test_each_client_takes_part_once_in_an_epoch() -> None:
    mechanism = EPOCHS.mechanism(clients=23, fraction=0.2, rounds=12, seed=3)
    cohorts = [mechanism.sample(23, number) for number in range(1, 11)]
    for epoch in (cohorts[:5], cohorts[5:]):
        together = np.concatenate(epoch)
        assert len(set(together.tolist())) == len(together) == 20
    assert [cohort.tolist() for cohort in cohorts[:5]] != [cohort.tolist() for cohort in cohorts[5:]]


def test_the_noise_of_a_sum_grows_with_its_nodes_and_restarts() -> None:
    """The sum up to round t of an epoch has the noise of as many nodes as t has ones in base 2."""
    mechanism = EPOCHS.mechanism(clients=160, fraction=0.1, rounds=20, seed=0)
    rounds = np.array([mechanism._tree_noise(number, 20_000) for number in range(1, 21)])
    for epoch in (rounds[:10], rounds[10:]):
        for number, total in enumerate(np.cumsum(epoch, axis=0), start=1):
            assert total.var() == pytest.approx(number.bit_count(), rel=0.05)
    assert abs(np.corrcoef(rounds[0], rounds[10])[0, 1]) < 0.03  # each epoch has a tree of its own
    assert np.corrcoef(rounds[0], rounds[1])[0, 1] < -0.3  # round 2 takes back the noise of round 1


def test_epochs_give_the_same_bits_with_any_workers() -> None:
    experiment = replace(BASE, privacy=EPOCHS, split=IID(20), fraction_train=0.25, rounds=6)
    result = experiment.run()
    assert (result.history["clients"].iloc[1:] == 5).all()
    assert result.history["epsilon"].is_monotonic_increasing
    assert same(result, experiment.run(workers=2, block_size=1))
    assert not same(result, replace(experiment, privacy=replace(EPOCHS, sampling="fixed")).run())
    for changes, sentence in (({"system_noise": True}, "system_noise"), ({"target_quantile": 0.5}, "target_quantile")):
        with pytest.raises(ConfigError, match=f"CentralDP has {sentence} and sampling='epochs'"):
            replace(EPOCHS, **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"privacy": None, "transforms": (LocalDP(0.5, noise_multiplier=0.2), Int8())}, {"client": clients.FedPer()}],
    ids=["central", "local", "private layers"],
)
def test_supernodes_give_the_same_bits(changes: dict[str, Any]) -> None:
    experiment = replace(BASE, rounds=2, **changes)
    settings = {"experiment": config.to_toml(experiment)}
    with strategies.quiet(), AppGrid(app.client_app, 3, run_config=settings, workers=2) as grid:
        found = experiment.run(engine=partial(SuperNodeEngine, grid=grid, nodes=3))
    assert same(experiment.run(), found)


def test_a_cohort_without_a_client_releases_noise() -> None:
    rare = replace(BASE, split=IID(20), fraction_train=0.02, rounds=12, seed=1, privacy=replace(PRIVACY, clip=0.01))
    result = rare.run()
    empty = result.history["clients"].iloc[1:] == 0
    assert empty.any()
    assert result.failures.empty
    assert (result.history["test_loss"].diff().iloc[1:] != 0).all()  # the model moves in every round


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"server": servers.Krum}, "mean of updates.*Krum"),
        ({"server": servers.QFedAvg}, "mean of updates.*QFedAvg"),
        ({"server": servers.FedExP}, "mean of updates.*FedExP"),
        ({"server": stock.FedAvg}, "Flower's FedAvg"),
        ({"server": Reader}, "Reader has its own aggregate_train"),
        ({"client": clients.SCAFFOLD()}, "SCAFFOLD.*besides"),
        ({"client": clients.FedNova()}, "FedNova"),
        ({"client": clients.IFCA()}, "IFCA"),
        ({"min_clients": 2}, "min_clients is 2"),
        ({"server": partial(servers.FedAvg, min_train_nodes=40)}, "min_train_nodes is 40"),
        ({"server": partial(servers.FedAvg, fraction_train=0.0)}, "fraction_train is 0"),
        ({"early_stopping": EarlyStopping("train_loss", patience=1)}, "early_stopping watches train_loss"),
        ({"privacy": None, "transforms": (LocalDP(),), "client": clients.SCAFFOLD()}, "SCAFFOLD.*besides"),
        (
            {"privacy": None, "transforms": (LocalDP(),), "server": partial(servers.QFedAvg, client_learning_rate=0.1)},
            "QFedAvg weighs updates by .* training losses",
        ),
        ({"privacy": None, "transforms": (Int8(), LocalDP())}, r"Int8\(\) before LocalDP"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(BASE, **changes).run()


def test_other_servers_step_from_the_private_mean() -> None:
    for server in (servers.FedAvgM, servers.FedAdam):
        history = replace(BASE, server=server).run().history
        assert history["epsilon"].iloc[-1] > 0


def test_layers_that_no_client_sends_get_no_noise() -> None:
    """The global model's copy of them, from which new clients start, does not move."""
    start, rounds = (replace(BASE, client=clients.FedPer(), rounds=n, hidden=(8,)).run().weights for n in (1, 4))
    assert np.array_equal(start["b2"], rounds["b2"])
    assert not np.array_equal(start["b1"], rounds["b1"])


def test_sampling_never_costs_more_than_none() -> None:
    for noise, clients_, cohort in ((20.0, 10, 9), (0.5, 100, 50)):
        sampled = PrivacyLoss(noise, clients_, cohort, 1e-2, "fixed").epsilon(5)
        assert sampled <= PrivacyLoss(noise, clients_, clients_, 1e-2, "fixed").epsilon(5)


def test_noise_that_no_accountant_can_handle_is_refused() -> None:
    for noise in (1e-200, 1e300, math.nan, -1.0):
        with pytest.raises(ConfigError, match="noise_multiplier is"):
            PrivacyLoss(noise, 100, 10, 1e-3)
    with pytest.raises(ConfigError, match=r"noise_multiplier is 0\.02; allowed: 0, or at least 0\.1"):
        PrivacyLoss(0.02, 1000, 50, 1e-3, accountant="pld")
    assert noise_multiplier_for(1.0, 1, 1000, 1, 0.01, accountant="pld") == 0.1
    assert noise_multiplier_for(1e300, 200, 1000, 50, 1e-3) == 1e-3


# Local.


def test_arrays_besides_the_weights_are_not_sent_beside_local_noise() -> None:
    class Tells(clients.SGD):
        def train(self, ctx: clients.Context) -> Any:
            weights = ctx.fit()
            ctx.up["secret"] = weights.copy()
            return weights

    experiment = replace(BASE, privacy=None, client=Tells(), transforms=(LocalDP(0.5),))
    with pytest.raises(ConfigError, match="Tells sends secret besides the weights, which LocalDP does not protect"):
        experiment.run()


def test_local_noise_is_each_clients_own_and_averages_out() -> None:
    experiment = replace(BASE, privacy=None, transforms=(LocalDP(0.5, noise_multiplier=0.2),))
    history = experiment.run().history
    assert history["epsilon"].iloc[-1] == LocalDP(0.5, noise_multiplier=0.2).loss(default_delta(40)).epsilon(4)
    with pytest.raises(ConfigError, match="TopK"):
        replace(experiment, transforms=(TopK(0.1), LocalDP()))


def test_a_result_has_the_delta_and_noise_of_its_epsilon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = replace(BASE, privacy=CentralDP(epsilon=3.0), rounds=2)
    result = made.run()
    noise = noise_multiplier_for(3.0, 2, 40, 40 * made.fraction_train, default_delta(40))
    assert result.privacy == f"epsilon 3 with delta {default_delta(40):.3g} and noise multiplier {noise:.4g}"
    assert replace(made, privacy=None).run().privacy == ""
    file = tmp_path / "e.toml"
    file.write_text(config.to_toml(made))
    with pytest.raises(SystemExit):
        cli.main(["run", str(file)])
    assert f"differential privacy: {result.privacy}\n" in capsys.readouterr().out


def test_local_system_noise_does_not_repeat() -> None:
    experiment = replace(
        BASE, privacy=None, transforms=(LocalDP(0.1, noise_multiplier=1.0, system_noise=True),), rounds=1
    )
    one, other = experiment.run(), experiment.run()
    assert not np.allclose(one.weights["W1"], other.weights["W1"])
    assert one.history["epsilon"].equals(other.history["epsilon"])
    with pytest.raises(ConfigError, match="system_noise is 3; allowed: true or false"):
        LocalDP(system_noise=3)  # type: ignore[arg-type]
