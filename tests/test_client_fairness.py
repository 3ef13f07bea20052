"""Fairness between clients: the measures against their definitions, and the strategies' claims in small."""

from __future__ import annotations

import contextlib
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from fedsim import Experiment, clients, compare, servers
from fedsim.clients.task import Update
from fedsim.errors import ConfigError
from fedsim.fairness import client_fairness, fairness_measures
from fedsim.fairness.clients import MEASURES
from fedsim.flower import records
from fedsim.privacy import CentralDP, LocalDP
from fedsim.secure import SecureAggregation
from fedsim.servers.agnostic import project_to_simplex
from fedsim.servers.fedmgda import min_norm_weights
from fedsim.splits import IID, Dirichlet, Rotation

Array = NDArray[Any]

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)
#: Four of twenty clients hold their digits upside down; a linear model cannot serve all clients well.
ROTATED = Experiment(
    split=Rotation(IID(20), degrees=(0,) * 16 + (180,) * 4),
    hidden=(),
    rounds=60,
    fraction_evaluate=1.0,
    test_fraction=0.25,
)


# Measures.


@given(SCORES)
def test_measures_follow_their_definitions(scores: list[float]) -> None:
    """Gini and the variance by double loops over pairs of clients, Jain's index and the deciles by their sums."""
    found, count = fairness_measures(scores), len(scores)
    pairs = [(a, b) for a in scores for b in scores]
    assert found["variance"] == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / (2 * count**2), abs=1e-12)
    assert found["std"] == pytest.approx(math.sqrt(found["variance"]))
    number = -(-count // 10)
    assert found["worst_decile"] == pytest.approx(sum(sorted(scores)[:number]) / number)
    assert found["best_decile"] == pytest.approx(sum(sorted(scores)[-number:]) / number)
    assert found["worst"] == min(scores)
    assume(sum(scores) > 1e-9)
    assert found["gini"] == pytest.approx(sum(abs(a - b) for a, b in pairs) / (2 * count * sum(scores)), abs=1e-9)
    relative = [a / max(scores) for a in scores]
    assert found["jain"] == pytest.approx(sum(relative) ** 2 / (count * sum(a * a for a in relative)))


@given(SCORES, st.permutations(range(5)))
def test_measures_know_their_bounds_and_one_anothers_identities(scores: list[float], order: list[int]) -> None:
    found, count = fairness_measures(scores), len(scores)
    assert found["worst"] <= found["worst_decile"] <= found["mean"] + 1e-12
    assert found["mean"] <= found["best_decile"] + 1e-12
    if sum(scores) > 1e-6:
        # Jain's index is a function of the coefficient of variation, 1 / (1 + c^2).
        variation = found["std"] / found["mean"]
        assert found["jain"] == pytest.approx(1 / (1 + variation**2), abs=1e-9)
        assert 1 / count - 1e-9 <= found["jain"] <= 1 + 1e-9
        assert -1e-9 <= found["gini"] <= 1 - 1 / count + 1e-9
    moved = fairness_measures([scores[k % count] for k in order])
    assert moved == fairness_measures(sorted(scores[k % count] for k in order))


def test_ends_of_the_measures() -> None:
    equal, one = fairness_measures([0.3] * 8), fairness_measures([0.0] * 7 + [1.0])
    assert (equal["jain"], equal["gini"], equal["std"]) == pytest.approx((1, 0, 0), abs=1e-12)
    assert (one["jain"], one["gini"]) == pytest.approx((1 / 8, 1 - 1 / 8))
    assert fairness_measures([0.25, 0.5, 0.75, 1.0])["worst_decile"] == 0.25  # one of four clients
    eleven = fairness_measures(np.arange(11) / 10)
    assert (eleven["worst_decile"], eleven["best_decile"]) == pytest.approx((0.05, 0.95))  # two of eleven


def test_measures_contradict_one_another_as_the_page_on_trust_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "trust.md").read_text()
    [code] = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "fairness_measures" in code]
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "trust", "exec"), names)
    for line in printed.getvalue().splitlines():
        assert f"    {line}".rstrip() in page
    found = names["measures"]
    one, groups, equal = (found.loc[name] for name in found.index[:3])
    assert one["std"] < groups["std"]
    assert one["gini"] < groups["gini"]
    assert one["jain"] > groups["jain"]
    assert one["worst_decile"] < groups["worst_decile"]  # which all others contradict
    assert equal["jain"] == pytest.approx(1)
    assert equal["best_decile"] < groups["best_decile"]  # nobody is better off
    accuracies, errors = (found.loc[name] for name in found.index[3:])
    assert errors["gini"] > 10 * accuracies["gini"]
    assert errors["variance"] == pytest.approx(accuracies["variance"])


def test_undefined_measures_are_nan() -> None:
    nothing = fairness_measures([0.0, 0.0])
    negative = fairness_measures([-0.5, 0.5])
    for found in (nothing, negative):
        assert math.isnan(found["jain"])
        assert math.isnan(found["gini"])
        assert found["mean"] == 0.0
    assert negative["worst_decile"] == -0.5
    for odd in (math.nan, math.inf):
        assert all(math.isnan(value) for value in fairness_measures([0.5, odd]).values())
    tiny = fairness_measures([1e-200, 1e-200])  # whose squares are 0
    assert tiny["jain"] == pytest.approx(1)


@pytest.mark.parametrize("scores", [[], [[0.5]], 0.5, ["0.5"], [True], [[1], [1, 2]], None, [1j]])
def test_scores_that_are_no_numbers_are_refused(scores: Any) -> None:
    with pytest.raises(ConfigError, match=r"scores is .*; allowed: a one-dimensional array of numbers, at least one"):
        fairness_measures(scores)


def test_of_a_run_there_is_a_row_per_evaluated_round() -> None:
    result = replace(ROTATED, rounds=2, fraction_evaluate=0.5).run()
    frame = client_fairness(result)
    assert frame["round"].tolist() == sorted(set(result.clients["round"]))
    assert frame.columns.tolist() == ["round", "clients", *MEASURES]
    assert (frame["clients"] == 10).all()
    last = result.clients[result.clients["round"] == 2]["accuracy"]
    assert frame.iloc[-1][list(MEASURES)].to_dict() == fairness_measures(last)


def test_of_a_study_there_is_a_row_per_variant() -> None:
    study = compare(replace(ROTATED, rounds=2), client=[clients.SGD(), clients.LocalOnly()], seeds=3)
    frame = client_fairness(study)
    assert frame["client"].tolist() == ["SGD", "LocalOnly"]
    assert frame["seeds"].tolist() == [3, 3]
    assert frame["clients"].tolist() == [20, 20]
    three = [client_fairness(result).iloc[-1]["worst_decile"] for result in study.variants[1].results]
    assert frame["worst_decile"][1] == pytest.approx(np.mean(three))
    assert frame["worst_decile_ci95"][1] == pytest.approx(4.3027 * np.std(three, ddof=1) / np.sqrt(3), rel=1e-4)


def test_without_evaluations_there_are_no_measures() -> None:
    with pytest.raises(ConfigError, match="no client evaluated on its own examples; set fraction_evaluate"):
        client_fairness(replace(ROTATED, rounds=1, fraction_evaluate=0.0).run())


# Strategies.


def sent(server: servers.FedAvg, weights: Array) -> None:
    server._sent, server._sent_flat = records.record({"W1": weights}), None


def played(server: servers.FedAvg, ids: Array, rows: Array, losses: Array, sizes: Array | None = None) -> Array:
    """Return the new weights of a round that starts at 0."""
    old = np.zeros(rows.shape[1])
    sent(server, old)
    aggregator = server.aggregator()
    sizes = np.ones(len(rows), int) if sizes is None else sizes
    aggregator.add(Update(ids, sizes, rows, losses), sizes.astype(float))
    return server.step(1, old, aggregator.result())


def test_term_without_tilt_is_fedavg() -> None:
    base = replace(ROTATED, split=Dirichlet(8, alpha=0.3), rounds=3, fraction_train=0.7)
    assert same(replace(base, server=partial(servers.TERM, t=0.0)).run(), base.run())


def test_term_tends_to_the_client_with_the_highest_loss_and_does_not_overflow() -> None:
    rows, losses = np.eye(3), np.array([0.5, 2.0, 1.0])
    for tilt, client in ((1e6, 1), (-1e6, 0)):
        np.testing.assert_array_equal(played(servers.TERM(t=tilt), np.arange(3), rows, losses), rows[client])
    halfway = played(servers.TERM(t=1.0), np.arange(3), rows, losses)
    np.testing.assert_allclose(halfway, np.exp(losses) / np.exp(losses).sum())  # softmax of the losses


def test_an_agnostic_mixture_that_does_not_learn_is_the_uniform_mean() -> None:
    server = servers.AgnosticFL(mixture_learning_rate=0.0)
    rows, sizes = np.random.default_rng(1).normal(size=(6, 4)), np.arange(1, 7)
    for _ in range(3):
        new = played(server, np.arange(6), rows, np.arange(6.0), sizes)
        np.testing.assert_allclose(new, rows.mean(axis=0))
    np.testing.assert_array_equal(server.state["mixture"], np.ones(6))


def test_an_agnostic_mixture_goes_to_the_worst_client_and_comes_back() -> None:
    """Of two clients, the one with the higher loss gets all the weight, until the other has the higher loss."""
    server = servers.AgnosticFL(mixture_learning_rate=0.5)
    rows = np.eye(2)
    for _ in range(3):
        played(server, np.array([3, 8]), rows, np.array([1.0, 3.0]))
    np.testing.assert_array_equal(server.state["clients"], [3, 8])
    np.testing.assert_allclose(server.state["mixture"], [0, 2], atol=1e-12)
    np.testing.assert_allclose(played(server, np.array([3, 8]), rows, np.array([3.0, 1.0])), [0, 1])
    np.testing.assert_allclose(server.state["mixture"], [0.5, 1.5])
    alone = servers.AgnosticFL()
    alone.state = {"clients": np.array([3, 8]), "mixture": np.array([0.0, 2.0])}
    np.testing.assert_array_equal(played(alone, np.array([3]), rows[:1], np.ones(1)), [0, 0])  # no weight: no change


def test_an_agnostic_mixture_tells_node_ids_of_64_bits_apart() -> None:
    server = servers.AgnosticFL(mixture_learning_rate=0.5)
    ids = [np.array([2**63 + 1], np.uint64), np.array([7]), np.array([2**63 + 2], np.uint64)]
    sent(server, np.zeros(1))
    aggregator = server.aggregator()
    for number, client in enumerate(ids):
        aggregator.add(Update(client, np.ones(1, int), np.ones((1, 1)), np.array([float(number)])), np.ones(1))
    server.step(1, np.zeros(1), aggregator.result())
    np.testing.assert_array_equal(server.state["clients"], np.array([7, 2**63 + 1, 2**63 + 2], np.uint64))
    np.testing.assert_allclose(server.state["mixture"], [1.0, 0.5, 1.5])


def test_the_step_of_a_sampled_cohort_has_the_direction_of_the_gradient_in_expectation() -> None:
    """Over all cohorts of two of five clients, where no weight becomes 0."""
    losses, steps = np.array([0.3, 1.1, 0.7, 2.0, 0.9]), []
    for cohort in combinations(range(5), 2):
        server = servers.AgnosticFL(mixture_learning_rate=0.01)
        server.state = {"clients": np.arange(5), "mixture": np.ones(5)}
        ids = np.array(cohort)
        played(server, ids, np.ones((2, 1)), losses[ids])
        steps.append(server.state["mixture"] - 1)
    mean = np.mean(steps, axis=0)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), (d := losses - losses.mean()) / np.linalg.norm(d))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0.1, 10))
def test_a_projection_is_the_closest_point_of_the_simplex(values: list[float], total: float) -> None:
    """By the conditions of Karush, Kuhn and Tucker: one multiplier for positive elements, none larger at the others."""
    point = project_to_simplex(np.array(values), total)
    assert point.min() >= 0
    assert point.sum() == pytest.approx(total)
    multipliers = np.array(values) - point
    positive = multipliers[point > 1e-9]
    np.testing.assert_allclose(positive, positive[0], atol=1e-9)
    assert (multipliers <= positive[0] + 1e-9).all()


def test_a_projection_of_large_values_does_not_lose_its_sum() -> None:
    """Losses of a regression can be so large that 1 is less than their rounding."""
    np.testing.assert_array_equal(project_to_simplex(np.array([3e20, 1e20, -4e20]), 3.0), [3, 0, 0])
    np.testing.assert_array_equal(project_to_simplex(np.array([1e20, 1e20]), 2.0), [1, 1])


def test_the_shortest_mean_of_two_directions_is_known() -> None:
    """Of two unit vectors the middle; within epsilon of other weights, the allowed ones that are closest to it."""
    gram = np.array([[1.0, 0.3], [0.3, 1.0]])
    np.testing.assert_allclose(min_norm_weights(gram, np.array([0.9, 0.1]), 1.0), [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(min_norm_weights(gram, np.array([0.9, 0.1]), 0.2), [0.7, 0.3], atol=1e-6)
    np.testing.assert_array_equal(min_norm_weights(gram, np.array([0.9, 0.1]), 0.0), [0.9, 0.1])
    opposite = played(servers.FedMGDA(epsilon=1.0), np.arange(2), np.array([[4.0, 0.0], [-1.0, 0.0]]), np.ones(2))
    np.testing.assert_allclose(opposite, 0, atol=1e-6)  # no direction is good for both


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 20), st.sampled_from([0.02, 0.1, 0.5, 1.0]), st.integers(0, 10**6))
def test_a_common_descent_direction_is_one(count: int, features: int, epsilon: float, seed: int) -> None:
    """The weights are allowed; no exchange of weight between two clients shortens the mean; with any weights allowed,
    the direction has a positive inner product with each client's, or is 0.
    """
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, features))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    shares = rng.dirichlet(np.ones(count))
    gram = rows @ rows.T
    found = min_norm_weights(gram, shares, epsilon)
    assert found.sum() == pytest.approx(1)
    assert (np.abs(found - shares) <= epsilon + 1e-6).all()
    assert found.min() >= 0
    length = found @ gram @ found
    for a, b in combinations(range(count), 2):
        change = np.zeros(count)
        change[[a, b]] = 1, -1
        low = max(-found[a], shares[a] - epsilon - found[a], found[b] - min(1, shares[b] + epsilon))
        high = min(min(1, shares[a] + epsilon) - found[a], found[b], found[b] - shares[b] + epsilon)
        if high - low > 1e-6:
            best = minimize_scalar(
                lambda s, change=change: (found + s * change) @ gram @ (found + s * change), bounds=(low, high)
            )
            assert best.fun >= length - 1e-5
    if epsilon == 1.0:
        assert ((found @ rows) @ rows.T >= length - 1e-5).all()


def test_fedmgda_with_fedavgs_weights_and_equally_long_updates_is_fedavg() -> None:
    rows = np.random.default_rng(2).normal(size=(5, 7))
    rows *= 3 / np.linalg.norm(rows, axis=1, keepdims=True)
    sizes = np.array([4, 1, 2, 7, 3])
    new = played(servers.FedMGDA(epsilon=0.0), np.arange(5), rows, np.ones(5), sizes)
    np.testing.assert_allclose(new, sizes @ rows / sizes.sum())


def test_fedmgda_bounds_what_one_client_can_do() -> None:
    """A client that multiplies its update by a million has no more influence on the direction."""
    rows = np.random.default_rng(3).normal(size=(5, 7))
    step = partial(servers.FedMGDA, epsilon=0.1, server_learning_rate=1.0)
    honest = played(step(), np.arange(5), rows, np.ones(5))
    rows[2] *= 1e6
    np.testing.assert_allclose(played(step(), np.arange(5), rows, np.ones(5)), honest, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "AgnosticFL",
            {"mixture_learning_rate": -1},
            "mixture_learning_rate is -1; allowed: a finite number at least 0",
        ),
        ("TERM", {"t": math.nan}, "TERM's t is nan; allowed: a finite number"),
        ("TERM", {"t": 1e7}, r"TERM's t is 10000000.0; allowed: a finite number at least -1e\+06 and at most 1e\+06"),
        ("TERM", {"t": True}, "TERM's t is True; allowed: a finite number"),
        ("FedMGDA", {"epsilon": 1.5}, "FedMGDA's epsilon is 1.5; allowed: a finite number at least 0 and at most 1"),
        (
            "FedMGDA",
            {"server_learning_rate": 0.0},
            "server_learning_rate is 0.0; allowed: a finite number greater",
        ),
    ],
)
def test_bad_options_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(ROTATED, server=partial(getattr(servers, name), **options)).run()


@pytest.mark.parametrize("name", ["TERM", "AgnosticFL"])
def test_training_losses_are_not_read_under_privacy_or_secure_aggregation(name: str) -> None:
    base = replace(ROTATED, server=getattr(servers, name))
    with pytest.raises(ConfigError, match=f"the server {name} weighs updates by the clients' training losses"):
        replace(base, transforms=(LocalDP(),)).run()
    with pytest.raises(ConfigError, match=f"CentralDP needs a mean of updates, and the server {name} has its own"):
        replace(base, privacy=CentralDP(noise_multiplier=1.0)).run()
    with pytest.raises(ConfigError, match=f"secure_aggregation needs a mean of updates, and the server {name} has its"):
        replace(base, secure_aggregation=SecureAggregation()).run()


@pytest.mark.parametrize(
    "server",
    [partial(servers.TERM, t=3.0), partial(servers.AgnosticFL, mixture_learning_rate=0.1)],
    ids=["TERM", "AgnosticFL"],
)
def test_fair_strategies_raise_the_worst_decile_and_lower_the_variance(server: Any) -> None:
    """The papers' claim, against FedAvg, at little cost in the mean, where a minority's data differ."""
    base = replace(ROTATED, client=clients.SGD(epochs=5))
    found = [client_fairness(replace(base, server=s).run()).iloc[-1] for s in (servers.FedAvg, server)]
    assert found[1]["worst_decile"] > found[0]["worst_decile"] + 0.05
    assert found[1]["variance"] < 0.7 * found[0]["variance"]
    assert found[1]["mean"] > found[0]["mean"] - 0.02


@pytest.mark.parametrize("name", ["TERM", "AgnosticFL", "FedMGDA"])
def test_interrupted_runs_end_with_the_same_bits(name: str) -> None:
    from stored_results import interrupted

    experiment = replace(ROTATED, rounds=4, fraction_train=0.5, server=getattr(servers, name))
    assert same(interrupted(experiment), experiment.run())


@pytest.mark.slow
def test_the_script_prints_a_table_and_writes_a_picture(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "experiments" / "trust" / "fairness_clients.py"
    small = ["--clients", "5", "--rounds", "1", "--seeds", "2"]
    command = [sys.executable, str(script), *small, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote fairness_clients.csv, fairness_clients.png" in done.stdout
    table = pd.read_csv(tmp_path / "fairness_clients.csv")
    assert table["worst_decile"].between(0, table["mean"]).all()
    assert len(table) == len(done.stdout.splitlines()) - 4
    assert (tmp_path / "fairness_clients.png").read_bytes().startswith(b"\x89PNG")
    refused = subprocess.run([*command, "--clients", "4"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--clients is 4; allowed: a whole number, 5 or more" in refused.stderr


def test_measures_of_an_earlier_run_do_not_stay_beside_new_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are moved with the other files of the earlier run, also by a run in which no client evaluates."""
    from test_cli import here

    monkeypatch.chdir(tmp_path)
    Path("e.toml").write_text('split = "IID(4)"\nhidden = []\nrounds = 2\n')
    out, _ = here(capsys, "run", "e.toml", "--set", "fraction_evaluate=1.0", "--out", "out")
    assert out.endswith("SHA256SUMS, fairness.csv to out\n")
    assert pd.read_csv("out/fairness.csv")["round"].tolist() == [1, 2]
    out, _ = here(capsys, "run", "e.toml", "--out", "out")
    assert out.endswith("SHA256SUMS to out\n")
    assert not Path("out/fairness.csv").exists()
    assert Path("out.1/fairness.csv").exists()
