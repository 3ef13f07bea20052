"""Which differences of a study hold: the tests, the ranks and the table, on studies of known scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedsim import Experiment
from fedsim.errors import ConfigError
from fedsim.statistics.paired import holm, t_test
from fedsim.study.result import Result
from fedsim.study.study import Study, Variant
from fedsim.study.tables import TABLES

NAN = math.nan
EMPTY = pd.DataFrame()
EXPERIMENTS = [Experiment(seed=seed) for seed in range(10)]
FOUR = {
    "A": [0.90, 0.91, 0.92, 0.90, 0.93],
    "B": [0.89, 0.91, 0.90, 0.91, 0.92],
    "C": [0.70, 0.80, 0.72, 0.69, 0.79],
    "D": [0.90, 0.91, 0.92, 0.90, 0.93],
}


def result(scores: Sequence[float], seed: int = 0, **columns: Any) -> Result:
    """Return a result with these test accuracies by round, 2 MB and half a second per round but the first."""
    history = pd.DataFrame({"round": range(len(scores)), "test_accuracy": scores, "test_loss": 1 - np.array(scores)})
    history = history.assign(local_accuracy=NAN, attack_success=NAN, epsilon=NAN)
    history = history.assign(bytes_up=1e6 * (history["round"] > 0), bytes_down=1e6 * (history["round"] > 0))
    history = history.assign(seconds=0.5 * (history["round"] > 0), **columns)
    return Result(EXPERIMENTS[seed], history, EMPTY, {}, "numpy", "accuracy", EMPTY)


def study(scores: Mapping[Any, Sequence[float]], axes: Sequence[str] = ("client",)) -> Study:
    """Return a study from the labels of each variant (or its label) and the final score of each seed."""
    labels = [key if isinstance(key, tuple) else (key,) for key in scores]
    runs = [tuple(result([0 * s + 0.1, s], seed) for seed, s in enumerate(values)) for values in scores.values()]
    return Study(
        tuple(Variant(dict(zip(axes, names, strict=True)), row) for names, row in zip(labels, runs, strict=True))
    )


def test_every_pair_is_tested_by_seed() -> None:
    found = study(FOUR).test()
    assert list(zip(found["variant"], found["against"], strict=True)) == list(itertools.combinations("ABCD", 2))
    assert found[["metric", "seeds", "test"]].drop_duplicates().to_numpy().tolist() == [["test_accuracy", 5, "t"]]
    row = found.iloc[1]
    expected: Any = stats.ttest_rel(FOUR["A"], FOUR["C"])
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row["statistic"] == pytest.approx(expected.statistic)
    interval = expected.confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert (row["mean"], row["mean_against"]) == pytest.approx((0.912, 0.74))
    assert row["difference"] == pytest.approx(0.172)
    np.testing.assert_allclose(found["p_holm"], holm(found["p"]))
    assert found["holds"].tolist() == [False, True, False, True, False, True]
    assert found["note"].tolist() == ["", "", "equal in every seed", "", "", ""]


def test_all_variants_against_a_reference() -> None:
    found = study(FOUR).test(reference="B", method="wilcoxon")
    assert found["variant"].tolist() == ["A", "C", "D"]
    assert set(found["against"]) == {"B"}
    assert found["p"].tolist() == [stats.wilcoxon(np.subtract(FOUR[v], FOUR["B"]).round(9)).pvalue for v in "ACD"]
    assert found["note"].tolist() == [
        f"cannot reach 5 %: p is at least {p}, before the correction for 3 tests" for p in ("0.12", "0.062", "0.12")
    ]


def test_six_seeds_reach_five_percent_by_wilcoxons_test_in_one_comparison_only() -> None:
    six = {name: [0.1 * k + 0.01 * seed * k for seed in range(6)] for k, name in enumerate("ABC")}
    alone = study({name: six[name] for name in "AB"}).test(method="wilcoxon").iloc[0]
    assert alone["p_holm"] == 2 / 64
    assert alone["holds"]
    assert alone["note"] == ""
    found = study(six).test(method="wilcoxon")
    assert not found["holds"].any()
    assert set(found["note"]) == {"cannot reach 5 %: p is at least 0.031, before the correction for 3 tests"}


def grid() -> Study:
    rng = np.random.default_rng(0)
    base = {"SGD": 0.5, "FedProx": 0.6, "SCAFFOLD": 0.8}
    scores = {
        (split, client): list(level + shift + rng.normal(0, 0.01, 4))
        for split, shift in (("IID", 0.1), ("Shards", 0.0), ("Dirichlet", -0.1))
        for client, level in base.items()
    }
    return study(scores, ("split", "client"))


def test_methods_are_compared_within_each_split() -> None:
    made = grid()
    found = made.test()
    assert list(found.columns[:3]) == ["split", "variant", "against"]
    assert found["split"].value_counts().to_dict() == {"IID": 3, "Shards": 3, "Dirichlet": 3}
    assert set(found["variant"]) | set(found["against"]) == {"SGD", "FedProx", "SCAFFOLD"}
    np.testing.assert_allclose(found["p_holm"], holm(found["p"]))  # over all conditions
    assert made.test(axis="client").equals(found)
    splits = made.test(axis="split", reference="IID")
    assert splits["client"].tolist() == ["SGD"] * 2 + ["FedProx"] * 2 + ["SCAFFOLD"] * 2
    assert len(made.test(axis=["split", "client"])) == 9 * 8 / 2
    against = made.table()["against best"]
    assert against.xs("SCAFFOLD", level="client").tolist() == ["best"] * 3
    assert against.drop("SCAFFOLD", level="client").str.startswith("worse (p ").all()
    assert made.notes[1].startswith(
        "Against best: paired t tests of all pairs with the same split, by seed, with Holm's"
    )


def test_settings_of_the_problem_are_conditions() -> None:
    for axis in ("dataset", "split", "split.alpha", "test_fraction", "attack"):
        scores = {(value, client): FOUR[client] for value in ("0.1", "0.2") for client in "AB"}
        found = study(scores, (axis, "client")).test()
        assert list(found[axis]) == ["0.1", "0.2"]
        assert list(found["variant"]) == ["A", "A"]


def test_a_baseline_is_a_condition_of_its_own_in_a_grid() -> None:
    made = grid()
    baseline = Variant({"split": "centralised", "client": "-"}, made.variants[0].results)
    both = Study((*made.variants, baseline))
    assert both.test().equals(made.test())
    assert both.table()["against best"].iloc[-1] == ""
    assert both.ranks().equals(made.ranks())


def test_the_table_says_which_differences_hold() -> None:
    made = study(FOUR)
    p = made.test().set_index(["variant", "against"])["p_holm"]
    assert made.table()["against best"].tolist() == [
        "best",
        f"unclear (p = {p['A', 'B']:.3f})",
        f"worse (p = {p['A', 'C']:.3f})",
        "equal",
    ]
    far = study({"A": [0.9, 0.9, 0.91, 0.9], "B": [0.1, 0.1001, 0.1101, 0.1]})
    assert far.table()["against best"].tolist() == ["best", "worse (p < 0.001)"]
    assert "against best" not in study({"A": FOUR["A"]}).table()


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed"), (2, "2 seeds")])
def test_fewer_than_three_seeds_are_said(seeds: int, words: str, tmp_path: Path) -> None:
    made = study({name: values[:seeds] for name, values in FOUR.items()})
    found = made.test()
    assert found["difference"].tolist()[1] == pytest.approx(np.mean(FOUR["A"][:seeds]) - np.mean(FOUR["C"][:seeds]))
    columns = ["difference_low", "difference_high", "effect_size", "effect_size_low", "statistic", "p", "p_holm"]
    assert found[[*columns, "holds"]].isna().all(axis=None)
    assert set(found["note"]) == {f"{words}: a test needs at least 3"}
    table = made.table()
    assert "against best" not in table
    assert not table["final accuracy"].str.contains("±").any()
    assert made.notes == [
        f"{words}: no intervals and no tests, which need at least 3 seeds. "
        "Rounds are medians; a seed that missed the target counts as longer (Kaplan-Meier)."
    ]
    assert not made.tested
    assert "tests.csv" not in made.files


def test_seeds_are_paired_by_number() -> None:
    """A has seeds 0 to 4, B 4 to 1: three pairs are not enough without a seed that only one has."""
    a = tuple(result([0.1, score], seed) for seed, score in enumerate(FOUR["A"]))
    b = tuple(result([0.1, FOUR["C"][seed]], seed) for seed in (4, 3, 2, 1))
    row = Study((Variant({"client": "A"}, a), Variant({"client": "B"}, b))).test().iloc[0]
    assert row["seeds"] == 4
    assert row["p"] == pytest.approx(stats.ttest_rel(FOUR["A"][1:], FOUR["C"][1:]).pvalue)
    assert row["mean"] == pytest.approx(np.mean(FOUR["A"][1:]))
    assert row["note"] == "1 seed without a pair left out"
    apart = Study((Variant({"client": "A"}, a[:2]), Variant({"client": "B"}, b[:2]))).test().iloc[0]
    assert apart["note"] == "no seed has a value in both; 4 seeds without a pair left out"
    twice = Study((Variant({"client": "A"}, (*a, a[0])), Variant({"client": "B"}, b))).test().iloc[0]
    assert np.isnan(twice["p"])


def test_a_variant_without_a_score_is_blank_and_not_compared() -> None:
    """As strategies without a global model have none."""
    made = study({**FOUR, "LocalOnly": [NAN] * 5})
    found = made.test()
    blank = found["against"] == "LocalOnly"
    assert set(found.loc[blank, "note"]) == {"no seed has a value in both; 5 seeds without a pair left out"}
    assert found.loc[blank, "p_holm"].isna().all()
    assert found[~blank].equals(study(FOUR).test().set_axis(found.index[~blank]))
    table = made.table(0.5)
    assert table.loc["LocalOnly", ["final accuracy", "against best", "rounds to 0.50"]].tolist() == ["", "", ""]
    assert table["against best"].tolist()[:4] == study(FOUR).table()["against best"].tolist()


def test_the_same_difference_in_every_seed_has_no_t_test() -> None:
    made = study({"A": [0.5, 0.625, 0.75], "B": [0.25, 0.375, 0.5]})
    row = made.test().iloc[0]
    assert row["note"] == "the same difference in every seed: the t test needs variance"
    assert row["difference"] == 0.25
    assert made.test()["holds"].isna().all()
    assert made.table()["against best"].tolist() == ["best", "unclear"]


def test_rounding_errors_are_no_differences() -> None:
    made = study({"A": [0.3, 0.6, 0.7, 0.8], "B": [0.1 + 0.2, 0.6, 0.8 - 0.1, 0.8]})
    assert made.test()["note"].tolist() == ["equal in every seed"]
    assert made.test()["p"].tolist() == [1.0]
    assert sorted(made.table()["against best"]) == ["best", "equal"]


def test_any_column_of_the_history_can_be_tested() -> None:
    made = study(FOUR)
    np.testing.assert_allclose(made.test("test_loss")["difference"], -made.test()["difference"], atol=1e-15)
    with pytest.raises(ConfigError, match=r"metric is 'test_los'; allowed: test_accuracy, .*did you mean 'test_loss'"):
        made.test("test_los")
    for arguments, sentence in (
        ({"axis": "split"}, "axis is 'split'; allowed: client"),
        ({"axis": 3}, "axis is 3; allowed: one or several of client"),
        ({"reference": "E"}, "reference is 'E'; allowed: A, B, C, D"),
        ({"method": "z"}, "method is 'z'; allowed: t, wilcoxon"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            made.test(**arguments)
    with pytest.raises(ConfigError, match="interval is 'z'; allowed: t, bootstrap"):
        made.summary(interval="z")


def test_one_variant_has_no_pairs() -> None:
    made = study({"A": FOUR["A"]})
    assert made.test().empty
    assert list(made.test().columns) == list(study(FOUR).test().columns)
    assert len(made.notes) == 1


def test_ranks_over_conditions() -> None:
    """By hand: SCAFFOLD is first and SGD last in each of three splits."""
    found = grid().ranks()
    assert found["variant"].tolist() == ["SCAFFOLD", "FedProx", "SGD"]
    assert found["mean_rank"].tolist() == [1, 2, 3]
    assert set(found["conditions"]) == {3}
    assert found["friedman"].iloc[0] == pytest.approx(6)
    assert found["p"].iloc[0] == pytest.approx(1 / 36)
    assert found["critical_difference"].iloc[0] == pytest.approx(2.3437 * math.sqrt(12 / 18), rel=1e-4)
    assert found["worse_than_best"].tolist() == [False, False, True]
    losses = grid().ranks(metric="test_loss")
    assert losses["mean_rank"].tolist() == [1, 2, 3]
    assert losses["variant"].tolist() == ["SCAFFOLD", "FedProx", "SGD"]
    assert grid().notes[2] == (
        "Mean ranks over 3 conditions: SCAFFOLD 1.0, FedProx 2.0, SGD 3.0; Friedman's p = 0.028. "
        "Ranks 1.9 or more behind the best are worse at 5 % (Nemenyi)."
    )
    for cost in (
        "test_brier_score",
        "test_mae",
        "weight_divergence",
        "client_drift",
        "epsilon",
        "failures",
        "secure_bytes",
        "seconds",
    ):
        for variant in (costly := grid()).variants:
            for run in variant.results:
                run.history[cost] = run.history["test_loss"]
        assert costly.ranks(metric=cost)["variant"].tolist() == ["SCAFFOLD", "FedProx", "SGD"]
    assert grid().files[-1] == "ranks.csv"
    assert grid().ranks("split")["variant"].tolist() == ["IID", "Shards", "Dirichlet"]


def test_ranks_need_conditions_with_all_scores() -> None:
    made = grid()
    local = [
        Variant({"split": split, "client": "LocalOnly"}, (result([0.1, NAN]),))
        for split in ("IID", "Shards", "Dirichlet")
    ]
    assert Study((*made.variants, *local)).ranks().equals(made.ranks())
    assert set(Study(made.variants[:-1]).ranks()["conditions"]) == {2}
    with pytest.raises(ConfigError, match=r"ranks need 2 values of client and 2 conditions.*; the study has 4 and 1 "):
        study(FOUR).ranks()
    with pytest.raises(ConfigError, match="ranks need"):
        study({"A": FOUR["A"]}).ranks()


def test_seeds_that_miss_the_target_count_as_longer() -> None:
    """Rounds to 0.5 by hand: 1 and 2 of four seeds; one ends early after 2 rounds, one after 3."""
    curves = [[0.0, 0.5, 0.6, 0.7], [0.0, 0.2, 0.5, 0.5], [0.0, 0.1, 0.2], [0.0, 0.1, 0.2, 0.3]]
    slow = Variant({"client": "slow"}, tuple(result(curve, k) for k, curve in enumerate(curves)))
    fast = Variant({"client": "fast"}, tuple(result([0.0, 0.5 + k / 10], k) for k in range(4)))
    never = Variant({"client": "never"}, (result([0.0, 0.1, 0.2, 0.3]),))
    made = Study((slow, fast, never))
    found = made.time_to_target(0.5).set_index(["client", "quantity"])
    assert found["reached"].unstack()["rounds"].to_dict() == {"slow": 2, "fast": 4, "never": 0}
    rounds, megabytes, seconds = (found.loc["slow", name] for name in ("rounds", "megabytes", "seconds"))
    assert np.isnan([rounds["median"], megabytes["median"], seconds["median"]]).all()  # no more than half reach it
    assert (rounds["later_than"], megabytes["later_than"], seconds["later_than"]) == (2, 4, 1)
    assert (rounds["horizon"], megabytes["horizon"]) == (3, 6)  # fast ends after a round, when all have reached it
    assert np.isnan(found.loc[("never", "rounds"), "median"])
    times = [0.5 / (0.5 + k / 10) for k in range(4)]
    assert found.loc[("fast", "rounds"), "median"] == pytest.approx(np.median(times))
    assert found.loc[("fast", "megabytes"), "median"] == pytest.approx(2 * np.median(times))
    assert found.loc[("fast", "rounds"), "restricted_mean"] == pytest.approx(np.mean(times))
    cells = made.table(0.5)["rounds to 0.50"].tolist()
    assert cells == ["> 2 (2 of 4 seeds)", f"{np.median(times):.1f}", "> 3 (0 of 1 seeds)"]
    summary = made.summary(0.5)
    assert summary["reached"].tolist() == [2, 4, 0]
    assert np.isnan(summary["megabytes_to_target"][0])


def test_runs_that_diverged_count_as_never_reaching_the_target() -> None:
    """Two of five seeds: the median of 1, 2, 3 and two that never come is 3; of three such seeds it is not known."""
    runs = tuple(result([0.0] * k + [0.5] + [0.5] * (4 - k), k) for k in (1, 2, 3))
    for diverged, median, cell in (((3, 4), 3.0, "3.0 (3 of 5 seeds)"), ((3, 4, 5), NAN, "> 3 (3 of 6 seeds)")):
        made = Study((Variant({}, runs, diverged),))
        found = made.time_to_target(0.5).set_index("quantity").loc["rounds"]
        assert (found["seeds"], found["reached"]) == (3 + len(diverged), 3)
        np.testing.assert_equal(found["median"], median)
        assert made.table(0.5)["rounds to 0.50"].tolist() == [cell]


def test_a_tuned_setting_is_no_axis_of_the_tests() -> None:
    """Methods are compared within each split, whatever learning rate was chosen for them."""
    made, plain = grid(), grid()
    tuned = Study(
        tuple(
            Variant({**v.labels, "tuned client.lr": str(number % 4 / 10)}, v.results)
            for number, v in enumerate(made.variants)
        )
    )
    pd.testing.assert_frame_equal(tuned.test(), plain.test())
    pd.testing.assert_frame_equal(tuned.test(axis="client", reference="SGD"), plain.test(reference="SGD"))
    pd.testing.assert_frame_equal(tuned.ranks(), plain.ranks())
    assert tuned.table()["against best"].tolist() == plain.table()["against best"].tolist()
    assert tuned.variants[1].title.endswith("lr=0.1")
    with pytest.raises(ConfigError, match=r"axis is .tuned client\.lr.; allowed: split, client"):
        tuned.test(axis="tuned client.lr")


def test_the_bootstrap_interval_is_shown_by_its_limits() -> None:
    made = study(FOUR)
    summary = made.summary(interval="bootstrap")
    assert "final_accuracy_ci95" not in summary
    assert ((summary["final_accuracy_low"] < summary["final_accuracy"]) & (summary["local_accuracy_low"].isna())).all()
    low, high = summary[["final_accuracy_low", "final_accuracy_high"]].iloc[0]
    assert made.table(interval="bootstrap")["final accuracy"].iloc[0] == f"0.912 [{low:.3f}, {high:.3f}]"


def test_the_tests_are_written_beside_the_summary(tmp_path: Path) -> None:
    made = study(FOUR)
    assert made.files == ["rounds.csv", "clients.csv", "summary.csv", "tests.csv"]
    assert set(made.files) < set(TABLES)
    made.to_csv(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(made.files)
    written = pd.read_csv(tmp_path / "tests.csv")
    assert written["p_holm"].tolist() == made.test()["p_holm"].tolist()
    assert written["holds"].tolist() == made.test()["holds"].tolist()


def test_notes_stand_below_the_table_in_a_notebook() -> None:
    html = study(FOUR)._repr_html_()
    assert html.index("</table>") < html.index("<p>Means over seeds with 95 % intervals.")
    assert "worse: p &lt; 0.05".lower() in html.lower()


def test_type_one_error_of_studies_without_differences() -> None:
    """1,000 studies of three equal variants and five seeds, each a split of one study.

    A pair is significant in about 5 % of them, and with Holm's correction any pair is in at most 5 %.
    """
    rng = np.random.default_rng(3)
    scores = 0.8 + rng.normal(0, 0.02, (1000, 3, 5)) + rng.normal(0, 0.05, (1000, 1, 5))
    frame = pd.DataFrame({"test_accuracy": scores.ravel()})
    histories = (frame.iloc[k : k + 1] for k in range(len(frame)))
    variants = [
        Variant(
            {"split": str(number), "client": name},
            tuple(Result(e, next(histories), EMPTY, {}, "numpy", "accuracy", EMPTY) for e in EXPERIMENTS[:5]),
        )
        for number in range(1000)
        for name in "ABC"
    ]
    p = Study(tuple(variants)).test()["p"].to_numpy().reshape(1000, 3)
    error = math.sqrt(0.05 * 0.95 / 1000)
    for column in p.T:
        assert np.mean(column < 0.05) == pytest.approx(0.05, abs=3 * error)
    assert np.mean([(holm(row) < 0.05).any() for row in p]) <= 0.05 + 3 * error


def test_pairing_by_seed_finds_what_the_intervals_of_the_means_hide() -> None:
    """The seeds differ more than the variants: the intervals overlap, and the difference holds."""
    seeds = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    difference = np.array([0.05, 0.051, 0.049, 0.05, 0.052])
    made = study({"A": list(seeds + difference), "B": list(seeds)})
    summary = made.summary()
    assert summary["final_accuracy_ci95"].min() > 3 * summary["final_accuracy"].diff().abs()[1]
    assert made.test()["holds"].all()
    assert made.test()["p"][0] == pytest.approx(t_test([difference]).p[0])
