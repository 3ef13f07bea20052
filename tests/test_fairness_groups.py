"""Fairness between groups of people: fairlearn's answers, the papers' identities, the same bits on all engines."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import RecordDict
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from fedsim import Experiment, compare
from fedsim.clients import SGD, ClientStrategy, Ditto, FedProx, FineTune, LocalOnly
from fedsim.clients.sensitive import COUNTS, Sensitive, possible_counts
from fedsim.clients.task import Update
from fedsim.data import Dataset, load
from fedsim.data.shared import open_shared, share
from fedsim.data.table import encode
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.replies import EVALUATION, evaluation_layout, read_reply
from fedsim.errors import ConfigError, DataError
from fedsim.fairness import GAPS, FairFed, Reweighing, count_groups, group_gaps, group_rates, group_report, metric_frame
from fedsim.fairness.fairfed import OMEGA, _GapWeightedMean, distances, opportunity_gap
from fedsim.fairness.reweighing import example_weights
from fedsim.flower import records
from fedsim.privacy import CentralDP, ExampleDP
from fedsim.secure import SecureAggregation
from fedsim.splits import IID, FeatureNoise, Natural
from fedsim.study.build import build_runtime
from fedsim.toml import read_toml

ADULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "adult"


def people(regression: bool = False) -> Dataset:
    """600 people of two towns and three small groups; the label depends on the group."""
    rng = np.random.default_rng(4)
    group = rng.choice(["a", "b", "c"], 600, p=[0.6, 0.3, 0.1])
    x = np.column_stack([rng.normal(size=(600, 4)), group == "a"])
    y = (x[:, 0] + 1.2 * (group == "a") + 0.5 * rng.normal(size=600) > 0.6).astype(int)
    town = rng.integers(0, 5, 400)
    groups, tests = {"town": town, "kind": group[:400]}, {"kind": group[400:]}
    return Dataset(
        "people", x[:400], y[:400], x[400:], y[400:], regression=regression, groups=groups, groups_test=tests
    )


BASE = Experiment(
    dataset=people(), split=Natural("town"), hidden=(4,), client=SGD(batch_size=20), rounds=3, sensitive="kind",
    fraction_evaluate=1.0, test_fraction=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def result() -> Any:
    return BASE.run()


# Measures.


def test_gaps_equal_fairlearns_on_the_pooled_test_data(result: Any) -> None:
    metrics = pytest.importorskip("fairlearn.metrics", reason="the extra fairness is not installed")
    data = result.dataset
    given = {"y_true": data.y_test, "y_pred": result.predict(), "sensitive_features": data.groups_test["kind"]}
    expected = {
        "demographic_parity": metrics.demographic_parity_difference(**given),
        "equal_opportunity": metrics.equal_opportunity_difference(**given),
        "equalised_odds": metrics.equalized_odds_difference(**given),
        "accuracy_gap": metric_frame(result).difference()["accuracy"],
    }
    last = result.groups[(result.groups["round"] == 3) & (result.groups["partition_id"] == -1)]
    found = group_gaps(last).iloc[0]
    assert found[list(GAPS)].to_dict() == pytest.approx(expected, abs=1e-12)
    assert found["left_out"] == ""
    frame, report = metric_frame(result).by_group, group_report(result)
    pd.testing.assert_frame_equal(frame, report[frame.columns], check_names=False, check_dtype=False)
    assert report["num_examples"].to_dict() == pd.Series(data.groups_test["kind"]).value_counts().to_dict()
    assert report["base_rate"]["a"] == pytest.approx(data.y_test[data.groups_test["kind"] == "a"].mean())


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2)), min_size=4, max_size=30))
def test_gaps_equal_fairlearns_wherever_every_rate_exists(rows: list[tuple[int, int, int]]) -> None:
    metrics = pytest.importorskip("fairlearn.metrics", reason="the extra fairness is not installed")
    y, predicted, group = np.array(rows).T
    sensitive = Sensitive("g", ("0", "1", "2"), 1, group, group)
    frame = pd.DataFrame(sensitive.count(predicted[None], y[None], group[None])[0], columns=list(COUNTS))
    frame = frame.assign(group=[0, 1, 2], all=0)[frame["num_examples"] > 0]
    found = group_gaps(frame, by=["all"]).iloc[0]
    complete = len(frame) > 1 and not found["left_out"]
    for name, function in zip(GAPS, ("demographic_parity", "equal_opportunity", "equalized_odds"), strict=False):
        expected = getattr(metrics, f"{function}_difference")(y, predicted, sensitive_features=group)
        if complete:
            assert found[name] == pytest.approx(expected, abs=1e-12)
    assert len(frame) > 1 or found[list(GAPS)].isna().all()


def test_a_group_without_positive_examples_has_no_rate_where_fairlearn_says_0() -> None:
    y, predicted, group = np.array([0, 1, 0, 0]), np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])
    sensitive = Sensitive("g", ("x", "y"), 1, group, group)
    counts = pd.DataFrame(sensitive.count(predicted[None], y[None], group[None])[0], columns=list(COUNTS))
    found = group_gaps(counts.assign(group=["x", "y"], all=0), by=["all"]).iloc[0]
    assert np.isnan(found["equal_opportunity"])
    assert np.isnan(found["equalised_odds"])
    assert (found["demographic_parity"], found["accuracy_gap"], found["left_out"]) == (0.5, 0.0, "y")
    metrics = pytest.importorskip("fairlearn.metrics", reason="the extra fairness is not installed")
    assert metrics.equal_opportunity_difference(y, predicted, sensitive_features=group) == 1.0
    few = group_rates(counts, min_examples=2)
    assert few["true_positive_rate"].isna().all()
    assert few["accuracy"].tolist() == [1.0, 1.0]


def test_with_different_base_rates_a_perfect_model_breaks_demographic_parity() -> None:
    """And equalised odds hold: the two cannot hold together unless the model is useless, or base rates are equal."""
    y, group = np.array([1, 1, 1, 0, 1, 0, 0, 0]), np.repeat([0, 1], 4)
    sensitive = Sensitive("g", ("x", "y"), 1, group, group)
    counts = pd.DataFrame(sensitive.count(y[None], y[None], group[None])[0], columns=list(COUNTS))
    found = group_gaps(counts.assign(group=["x", "y"], all=0), by=["all"]).iloc[0]
    assert (found["equalised_odds"], found["demographic_parity"]) == (0.0, 0.5)


def test_counts_of_clients_are_those_of_their_own_examples_and_weights() -> None:
    """LocalOnly's clients predict with their own models; the sums over groups are the accuracies in Result.clients."""
    for client in (SGD(batch_size=20), LocalOnly(batch_size=20), Ditto(batch_size=20), FineTune(batch_size=20)):
        found = replace(BASE, client=client).run()
        own = found.groups[found.groups["partition_id"] >= 0].groupby(["round", "partition_id"])[list(COUNTS)].sum()
        clients = found.clients.set_index(["round", "partition_id"]).sort_index()
        assert (own["num_examples"] == clients["num_examples"]).all()
        np.testing.assert_allclose(own["correct"] / own["num_examples"], clients["accuracy"], atol=1e-12)
        wrong = own["false_positives"] + own["false_negatives"]
        assert (own["correct"] + wrong == own["num_examples"]).all()  # with two labels
        test = found.groups[found.groups["partition_id"] == -1].groupby("round")[["correct", "num_examples"]].sum()
        assert len(test) == (0 if isinstance(client, LocalOnly) else 4)  # there is no global model
        if len(test):
            np.testing.assert_allclose(
                test["correct"] / test["num_examples"], found.history["test_accuracy"], atol=1e-12
            )
    assert count_groups(found)[list(COUNTS)].equals(
        found.groups[(found.groups["partition_id"] == -1) & (found.groups["round"] == 3)][list(COUNTS)].reset_index(
            drop=True
        )
    )


def test_many_labels_need_a_positive_one() -> None:
    digits = load("digits")
    part = {"even": digits.y_train % 2}, {"even": digits.y_test % 2}
    data = replace(digits, groups=part[0], groups_test=part[1])
    with pytest.raises(ConfigError, match="positive is None, and digits has 10 labels; allowed: one of them, 0 to 9"):
        Experiment(dataset=data, sensitive="even").run()
    found = Experiment(dataset=data, sensitive="even", positive=3, rounds=1, split=IID(3)).run()
    report = group_report(found)
    assert report["base_rate"].to_dict() == {
        "0": 0.0,
        "1": pytest.approx((digits.y_test[digits.y_test % 2 == 1] == 3).mean()),
    }
    assert np.isnan(report["true_positive_rate"]["0"])


# The same on every engine, and after an interruption.


@pytest.mark.parametrize("changes", [{}, {"client": Reweighing(batch_size=20)}, {"server": FairFed(beta=2.0)}])
def test_same_bits_with_any_workers_blocks_and_resumed(changes: dict[str, Any], tmp_path: Path) -> None:
    from stored_results import interrupted

    experiment = replace(BASE, **changes)
    one = experiment.run(workers=1)
    for other in (experiment.run(workers=2, block_size=1), experiment.run(block_size=3), interrupted(experiment)):
        assert same(one, other)
        assert one.groups.equals(other.groups)
    experiment.run(directory=tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "groups.csv")
    pd.testing.assert_frame_equal(written, one.groups, check_dtype=False)


def test_another_process_counts_the_same() -> None:
    """What Ray sends to its actors: the runtime, pickled, and the task."""
    runtime = build_runtime(replace(BASE, server=FairFed()))
    other = pickle.loads(pickle.dumps(runtime))
    weights, clients = runtime.model.init(np.random.default_rng(0)), np.arange(5)
    own, theirs = (r.train(r.task(weights, 1), clients, lambda some: {}) for r in (runtime, other))
    assert own.up["group_counts"].shape == (5, 3, 5)
    assert np.array_equal(own.up["group_counts"], theirs.up["group_counts"])
    own_scores, their_scores = (r.evaluate(r.task(weights, 1), clients, lambda some: {}) for r in (runtime, other))
    assert np.array_equal(own_scores.measured["groups"], their_scores.measured["groups"])
    assert own_scores.measured["groups"].shape == (5, 3, 5)


@pytest.mark.parametrize("change", [None, (0, 0, 1), (1, 2, -1), (2, 1, 7)])
def test_a_supernodes_counts_must_be_those_of_the_clients_examples(change: tuple[int, int, int] | None) -> None:
    runtime = build_runtime(BASE)
    task, clients = runtime.task(runtime.model.init(np.random.default_rng(0)), 1), np.array([4, 1, 2])
    scores = runtime.evaluate(task, clients, lambda some: {})
    layout = evaluation_layout(runtime)
    columns = {name: getattr(scores, name).copy() for name in EVALUATION}
    columns["groups"] = scores.measured["groups"].copy()
    if change:
        row, group, more = change
        columns["groups"][row, group, 0] += more
    content = RecordDict({RESULT: records.record(columns)})
    rows, failed = read_reply("evaluate", runtime, task, clients, content, layout)
    if change is None:
        assert not failed
        assert np.array_equal(np.array([rows[int(c)]["groups"] for c in clients]), scores.measured["groups"])
    else:
        assert failed == {int(clients[change[0]]): "its SuperNode sent impossible counts in groups"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 9), min_size=5, max_size=5), min_size=2, max_size=2))
def test_impossible_counts_are_refused(rows: list[list[int]]) -> None:
    counts = np.array(rows)
    n, correct, tp, fp, fn = counts.T
    possible = bool((counts >= 0).all() and (tp <= correct).all() and (correct + fp + fn <= n).all())
    assert possible_counts(counts, int(n.sum())) == possible
    assert not possible_counts(counts, int(n.sum()) + 1)


# Reweighing.


def test_weights_make_group_and_label_independent() -> None:
    counts = np.array([[[30, 10], [5, 55]], [[4, 0], [6, 10]]])
    weighted = (example_weights(counts) * counts)[0]
    expected = weighted.sum(axis=1, keepdims=True) * weighted.sum(axis=0, keepdims=True) / weighted.sum()
    np.testing.assert_allclose(weighted, expected)
    assert weighted.sum() == pytest.approx(100)
    assert example_weights(counts)[1, 0, 1] == 0.0


def test_reweighing_is_weighted_logistic_regression() -> None:
    """One client, trained to convergence, has scikit-learn's solution for Kamiran and Calders's weights."""
    data = people()
    one = Experiment(
        dataset=data, split=IID(1), hidden=(), loss="binary_cross_entropy", dtype="float64", sensitive="kind", rounds=1,
        client=Reweighing(lr=1.0, batch_size=None, epochs=1200, weight_decay=0.01),
    )  # fmt: skip
    weights = one.run().weights
    codes = np.unique(data.groups["kind"], return_inverse=True)[1]
    counts = np.zeros((1, 3, 2), dtype=int)
    np.add.at(counts[0], (codes, data.y_train), 1)
    factors = example_weights(counts)[0, codes, data.y_train]
    # scikit-learn does not penalise the intercept: a column of ones is penalised as fedsim's bias is.
    x = np.column_stack([data.x_train, np.ones(400)])
    twin = LogisticRegression(C=1 / (0.01 * 400), fit_intercept=False, tol=1e-10, max_iter=1000)
    twin.fit(x, data.y_train, sample_weight=factors)
    found = np.append(weights["W1"].ravel(), weights["b1"])
    np.testing.assert_allclose(found, twin.coef_[0], atol=1e-4)


def test_reweighing_narrows_demographic_parity(result: Any) -> None:
    fair = replace(BASE, client=Reweighing(batch_size=20, lr=0.2), rounds=15).run()
    plain = replace(BASE, client=SGD(batch_size=20, lr=0.2), rounds=15).run()
    gaps = [group_gaps(r.groups[r.groups["partition_id"] == -1], by=["round"]).iloc[-1] for r in (plain, fair)]
    assert gaps[1]["demographic_parity"] < gaps[0]["demographic_parity"] - 0.05


# FairFed.


def test_fairfed_follows_its_formula() -> None:
    """Two clients and two groups by hand: gaps 0.5 and -0.5, the pooled gap 0, so that nobody is far from it."""
    # num_examples, correct, true positives, false positives, false negatives
    even = np.array([[[4, 4, 2, 0, 0], [4, 3, 1, 0, 1]], [[4, 3, 1, 0, 1], [4, 4, 2, 0, 0]]])
    np.testing.assert_allclose(opportunity_gap(even), [0.5, -0.5])
    np.testing.assert_allclose(distances(even), [0.5, 0.5])
    alone = np.array([[[4, 4, 2, 0, 0], [4, 3, 1, 0, 1]], [[4, 2, 0, 2, 0], [0, 0, 0, 0, 0]]])
    assert np.isnan(opportunity_gap(alone)[1])
    # The second client has no gap: the difference of its accuracy, 2/4, from that of all, 9/12.
    np.testing.assert_allclose(distances(alone), [0.0, 0.25])


def test_fairfed_takes_weight_from_the_client_that_is_far_from_the_global_gap() -> None:
    """Distances 0 and 1/4, as above: omega is 8/12 + beta / 8 and 4/12 - beta / 8."""
    counts = np.array([[[4, 4, 2, 0, 0], [4, 3, 1, 0, 1]], [[4, 2, 0, 2, 0], [0, 0, 0, 0, 0]]])
    rows, state = np.array([[0.0], [1.0]]), {}  # type: ignore[var-annotated]
    update = Update(np.arange(2), np.array([8, 4]), rows, np.ones(2), {"group_counts": counts})
    for rounds in (1, 2):
        aggregator = _GapWeightedMean(0.5, state, None)
        aggregator.add(update, np.ones(2))
        assert aggregator.result() == pytest.approx(4 / 12 - rounds * 0.5 / 8)
    assert state[OMEGA] == pytest.approx([8 / 12 + 1 / 8, 4 / 12 - 1 / 8])


def test_fairfed_with_beta_0_is_fedavg_and_weights_add_up_to_one() -> None:
    plain, zero = BASE.run(), replace(BASE, server=FairFed(beta=0.0)).run()
    for name, values in plain.weights.items():
        np.testing.assert_allclose(zero.weights[name], values, rtol=1e-5, atol=1e-6)
    sampled = replace(BASE, fraction_train=0.6, rounds=4)  # cohorts of different sizes
    plain, zero = sampled.run(), replace(sampled, server=FairFed(beta=0.0)).run()
    for name, values in plain.weights.items():
        np.testing.assert_allclose(zero.weights[name], values, rtol=1e-5, atol=1e-6)
    from fedsim.servers.fedavg import FedAvg

    states = []

    class Watched(FairFed):
        def step(self, server_round: int, weights: Any, combined: Any) -> Any:
            states.append(self.state[OMEGA].copy())
            return FedAvg.step(self, server_round, weights, combined)

    replace(BASE, server=Watched(beta=1.0)).run()
    assert len(states) == 3
    for omega in states:
        assert omega.sum() == pytest.approx(1.0)
    assert not np.allclose(states[0], states[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitive": None}, "sensitive is None; allowed with the server FairFed: a column of groups of people"),
        (
            {"privacy": ExampleDP(clip=1.0, noise_multiplier=1.0)},
            "the server FairFed receives counts in groups of people",
        ),
        (
            {"privacy": CentralDP(clip=1.0, noise_multiplier=1.0)},
            "the server FairFed receives counts in groups of people",
        ),
        ({"secure_aggregation": SecureAggregation()}, "secure_aggregation needs a mean of updates"),
    ],
)
def test_fairfed_is_refused_where_counts_would_leak(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BASE, server=FairFed(), **changes).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitive": "town"}, "sensitive for people is 'town'; allowed: kind"),
        ({"sensitive": "knd"}, "did you mean 'kind'"),
        ({"sensitive": "kind", "positive": 2}, "positive is 2; allowed: a whole number, 0 to 1"),
        ({"sensitive": "kind", "dataset": people(regression=True), "loss": "mse"}, "has real-valued targets"),
        ({"sensitive": 3}, "sensitive is 3; allowed: the name of a column"),
        ({"positive": True}, "positive is True"),
        ({"positive": float("nan")}, "positive is nan"),
        ({"sensitive": None, "client": Reweighing()}, "client Reweighing uses groups of people, and sensitive is None"),
        ({"client": Reweighing(), "privacy": ExampleDP(clip=1.0, epsilon=8.0)}, "its own gradient"),
    ],
)
def test_wrong_settings_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **changes).run()


@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf"), True, "1"])
def test_beta_is_a_number_of_at_least_0(beta: Any) -> None:
    with pytest.raises(ConfigError, match="beta"):
        replace(BASE, server=FairFed(beta=beta)).run()


def test_strategies_can_be_written_as_text() -> None:
    from fedsim.study import config

    made: ClientStrategy = config.build("client", "fedsim.fairness:Reweighing(lr=0.2)")
    assert made == Reweighing(lr=0.2)
    assert Reweighing.of(FedProx(lr=0.3)).lr == 0.3
    text = config.to_toml(replace(BASE, dataset="digits", sensitive="sex", positive=1, server=FairFed(beta=0.5)))
    again = config.experiment(read_toml("file", text))
    assert (again.sensitive, again.positive) == ("sex", 1)


# Data.


def test_groups_follow_their_examples_through_splits_and_shared_files(tmp_path: Path) -> None:
    data = people()
    noisy = FeatureNoise(Natural("town"), high=0.0).federate(data, 0).dataset
    order = Natural("town").federate(data, 0).partition.indices
    assert noisy.groups["kind"].tolist() == data.groups["kind"][order].tolist()
    assert noisy.groups_test["kind"].tolist() == data.groups_test["kind"].tolist()
    share(data, tmp_path / "data")
    opened = open_shared(tmp_path / "data")
    for mapping in ("groups", "groups_test"):
        found, given_groups = getattr(opened, mapping), getattr(data, mapping)
        assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in given_groups.items()}
    with pytest.raises(DataError, match=r"group 'kind' of test examples has shape \(400,\); allowed: \(200,\)"):
        replace(data, groups_test={"kind": data.groups["kind"]})


def test_a_study_keeps_the_counts_of_its_runs(tmp_path: Path) -> None:
    study = compare(replace(BASE, rounds=1), seeds=2, client=[SGD(), SGD(lr=0.5)], directory=tmp_path)
    written = pd.read_csv(tmp_path / "groups.csv")
    assert written.equals(study.groups())
    gaps = group_gaps(written, by=["client", "seed", "round", "partition_id"])
    for variant in study.variants:
        for result in variant.results:
            own = gaps.loc[variant.labels["client"], result.experiment.seed]
            pd.testing.assert_frame_equal(own, group_gaps(result.groups))


def test_a_group_and_a_setting_that_read_csv_takes_for_missing_are_counted(result: Any, tmp_path: Path) -> None:
    counts = result.groups.assign(attack=None)
    expected = group_gaps(counts.assign(attack="none"), by=["attack", "round"])
    name = counts["group"].iloc[0]
    counts["group"] = counts["group"].replace({name: "NA"})
    counts.to_csv(tmp_path / "groups.csv", index=False)
    found = group_gaps(pd.read_csv(tmp_path / "groups.csv"), by=["attack", "round"])
    assert np.array_equal(found[list(GAPS)], expected[list(GAPS)], equal_nan=True)
    with pytest.raises(ConfigError, match="by is empty"):
        group_gaps(result.groups, by=[])


def test_a_tables_group_columns_are_groups_and_features_on_both_parts() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"sex": rng.choice(["f", "m"], 50), "age": rng.normal(size=50), "y": rng.choice(["n", "p"], 50)}
    )
    frame.loc[3, "sex"] = None
    data = encode(frame, "t", "y", group_columns="sex")
    assert sorted({*data.groups["sex"], *data.groups_test["sex"]}) == ["(missing)", "f", "m"]
    assert (len(data.groups["sex"]), len(data.groups_test["sex"])) == (len(data.y_train), len(data.y_test))
    assert data.x_train.shape[1] == 1 + 3
    assert encode(frame, "t", "y", group_columns=["sex"], drop=["sex"]).x_train.shape[1] == 1
    with pytest.raises(ConfigError, match="group_columns is 'sx'"):
        encode(frame, "t", "y", group_columns=["sx"])


def small_adult(folder: Path) -> Path:
    """Files in Adult's form, of a few invented people."""
    rng = np.random.default_rng(1)

    def rows(count: int, end: str) -> str:
        made = []
        for k in range(count):
            sex, race = rng.choice(["Male", "Female"]), rng.choice(["White", "Black"])
            work, age = rng.choice(["Private", "State-gov", "?"]), int(rng.integers(18, 80))
            rich = ">50K" if age + 20 * (sex == "Male") + rng.normal(0, 15) > 65 else "<=50K"
            made.append(
                f"{age}, {work}, {1000 + k}, HS-grad, {k % 16}, Divorced, Sales, Wife, {race}, {sex}, 0, {k % 3}, "
                f"{20 + k % 40}, Cuba, {rich}{end}"
            )
        return "\n".join(made) + "\n\n"

    folder.mkdir()
    (folder / "adult.data").write_text(rows(300, ""))
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + rows(120, "."))
    return folder


def test_adult_is_read_in_its_published_form(tmp_path: Path) -> None:
    folder = small_adult(tmp_path / "adult")
    data = load("adult", folder)
    assert (data.x_train.shape[0], data.x_test.shape[0], data.label_names) == (300, 120, ("<=50K", ">50K"))
    assert set(data.groups_test["sex"]) == {"Male", "Female"}
    assert "(missing)" in data.groups["workclass"]
    assert any(note.startswith("workclass") and "missing" in note for note in data.notes)
    without = load("adult(drop=['fnlwgt', 'sex', 'race'])", folder)
    assert without.x_train.shape[1] == data.x_train.shape[1] - 4
    assert set(without.groups) == set(data.groups)
    (folder / "adult.test").write_text("|1x3\n" + "1, " * 14 + "perhaps.\n")
    with pytest.raises(DataError, match="has the income 'perhaps'; allowed: <=50K and >50K"):
        load("adult", folder)
    (folder / "adult.test").unlink()
    with pytest.raises(DataError, match=r"contains neither adult.test.gz nor adult.test"):
        load("adult", folder)


@pytest.mark.skipif(not ADULT.is_dir(), reason="Adult's files are not beside this checkout (../shared/data/adult)")
def test_the_genuine_adult_has_the_published_numbers() -> None:
    data = load("adult", ADULT)
    assert (len(data.y_train), len(data.y_test)) == (32561, 16281)  # adult.names
    assert data.y_train.mean() == pytest.approx(0.2408, abs=1e-4)  # adult.names: 24.08 % above 50K
    assert int((data.groups["sex"] == "Female").sum()) == 10771
    assert dict(zip(*np.unique(data.groups_test["race"], return_counts=True), strict=True))["Black"] == 1561
    assert len(Natural("workclass").federate(data, 0).partition) == 9


# The experiment.


SCRIPT = Path(__file__).parents[1] / "experiments" / "trust" / "fairness_groups.py"


def run_script(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options, "--out", str(folder / "out")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_script_shows_its_findings_in_small(tmp_path: Path) -> None:
    """Noise hurts the group with few examples more than the others."""
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    folder = small_adult(tmp_path / "adult")
    given_options = [
        "--part",
        "gaps",
        "digits",
        "--rounds",
        "6",
        "--seeds",
        "1",
        "--epsilon",
        "2",
        "--min-examples",
        "2",
    ]
    done = run_script(tmp_path, *given_options, "--data-dir", str(folder))
    assert done.returncode == 0, done.stderr
    noise = pd.read_csv(tmp_path / "out" / "fairness_digits.csv")
    digits = noise.groupby(["epsilon", "group"])["accuracy"].mean().unstack()
    lost = digits.loc["no privacy"] - digits.loc["2"]
    assert lost["eights"] > lost["other digits"] + 0.2
    gaps = pd.read_csv(tmp_path / "out" / "fairness_gaps.csv")
    assert gaps["variant"].nunique() == 11
    for name in ("fairness_gaps.png", "fairness_digits.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_the_script_says_which_files_it_lacks(tmp_path: Path) -> None:
    done = run_script(tmp_path, "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "contains neither adult.data.gz nor adult.data" in done.stderr
    assert len(done.stderr.splitlines()) == 1
