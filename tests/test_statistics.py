"""Statistics of repeated experiments: each number against SciPy, a published example, or a calculation by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedsim.report.intervals import bootstrap_interval, half_width
from fedsim.statistics.censored import kaplan_meier
from fedsim.statistics.paired import effect_sizes, holm, smallest_wilcoxon_p, t_test, wilcoxon_test
from fedsim.statistics.ranks import rank_levels

NAN = math.nan
#: The trial of Freireich et al. (Blood 1963): weeks of remission under 6-mercaptopurine, and whether the patient
#: relapsed; and weeks under placebo, where all relapsed.
MERCAPTOPURINE = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
RELAPSED = [True] * 9 + [False] * 12
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def samples(pairs: int, seeds: int, shift: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, 1.0, (pairs, seeds))


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_the_paired_t_test_is_scipys(seeds: int) -> None:
    a, b = samples(20, seeds, 0.7), samples(20, seeds, seed=1)
    expected: Any = stats.ttest_rel(a, b, axis=1)
    interval = expected.confidence_interval(0.95)
    found = t_test(a - b)
    for mine, theirs in zip(
        (found.seeds, found.difference, found.difference_low, found.difference_high, found.statistic, found.p),
        (np.full(20, seeds), (a - b).mean(axis=1), interval.low, interval.high, expected.statistic, expected.pvalue),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10)


def test_missing_seeds_are_left_out_of_their_row_only() -> None:
    d = samples(3, 6, 0.5)
    d[1, [0, 4]] = NAN
    found = t_test(d)
    assert found.seeds.tolist() == [6, 4, 6]
    for row in range(3):
        known = d[row][~np.isnan(d[row])]
        assert found.p[row] == pytest.approx(stats.ttest_1samp(known, 0).pvalue)
    alone = wilcoxon_test(d[1:2, [1, 2, 3, 5]])
    assert wilcoxon_test(d).p[1] == alone.p[0]


def test_the_effect_size_is_the_mean_in_standard_deviations_without_its_bias() -> None:
    """Hedges' correction by its usual approximation, and the limits where the noncentral t distribution says."""
    d = samples(50, 6, 0.8)
    found = t_test(d)
    raw = d.mean(axis=1) / d.std(axis=1, ddof=1)
    np.testing.assert_allclose(found.effect_size, raw * (1 - 3 / (4 * 5 - 1)), rtol=2e-3)
    for t, low, high in zip(found.statistic, found.effect_size_low, found.effect_size_high, strict=True):
        assert stats.nct.sf(t, 5, low * math.sqrt(6)) == pytest.approx(0.025, abs=1e-6)
        assert stats.nct.cdf(t, 5, high * math.sqrt(6)) == pytest.approx(0.025, abs=1e-6)
    assert all(np.isnan(part).all() for part in effect_sizes(np.array([NAN]), np.array([4])))


def test_the_effect_size_is_unbiased_and_its_interval_and_that_of_the_mean_cover_the_truth() -> None:
    """20,000 samples of five differences with the mean 0.8 standard deviations."""
    found = t_test(samples(20_000, 5, 0.8))
    assert found.effect_size.mean() == pytest.approx(0.8, abs=0.02)
    for low, high in ((found.difference_low, found.difference_high), (found.effect_size_low, found.effect_size_high)):
        assert np.mean((low <= 0.8) & (high >= 0.8)) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("seeds", [3, 6, 13])
def test_wilcoxons_test_is_scipys(seeds: int) -> None:
    d = samples(5, seeds, 0.5)
    found = wilcoxon_test(d)
    for row in range(5):
        expected = stats.wilcoxon(d[row], method="exact")
        assert (found.statistic[row], found.p[row]) == (expected.statistic, expected.pvalue)
    assert (found.p >= smallest_wilcoxon_p(d)).all()
    assert found.difference == pytest.approx(d.mean(axis=1))


def test_wilcoxons_p_is_exact_with_ties_and_zeros() -> None:
    """Against all assignments of signs, counted here; differences of accuracies on few examples are often tied."""
    d = np.array([0.9 - 0.8, 0.5 - 0.4, -0.1, 0.2, 0.3, 0.2, 0.0])  # 0.1 three times, to rounding
    ranks = np.array([2, 2, 2, 4.5, 6, 4.5])
    observed = abs(ranks @ [1, 1, -1, 1, 1, 1])
    extreme = [abs(ranks @ signs) >= observed for signs in itertools.product([-1, 1], repeat=6)]
    assert wilcoxon_test([d]).p[0] == pytest.approx(np.mean(extreme))
    assert smallest_wilcoxon_p([d])[0] == 2 / 64


def test_fewer_than_three_seeds_have_a_difference_and_nothing_else() -> None:
    for test in (t_test, wilcoxon_test):
        found = test([[0.1, 0.2, NAN], [0.4, NAN, NAN], [NAN, NAN, NAN]])
        assert found.seeds.tolist() == [2, 1, 0]
        np.testing.assert_allclose(found.difference, [0.15, 0.4, NAN])
        for part in found[2:]:
            assert np.isnan(part).all()


def test_differences_without_variance() -> None:
    """Zero is no difference; another constant has no t, and rounding errors are no variance."""
    d = [[0.0] * 4, [0.25] * 4, [0.9 - 0.8, 0.5 - 0.4, 0.3 - 0.2, 0.1]]
    found = t_test(d)
    np.testing.assert_array_equal(found.p, [1.0, NAN, NAN])
    np.testing.assert_array_equal(found.difference_low, [0.0, NAN, NAN])
    np.testing.assert_array_equal(found.difference_high, [0.0, NAN, NAN])
    assert np.isnan(found.effect_size).all()
    assert np.isnan(found.statistic).all()
    assert wilcoxon_test(d).p.tolist() == [1.0, 2 / 16, 2 / 16]  # signs are known without variance


def test_holms_correction() -> None:
    """Holm's own procedure by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.9."""
    np.testing.assert_allclose(holm([0.03, 0.01, NAN, 0.9, 0.02]), [0.06, 0.04, NAN, 0.9, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    assert np.isnan(holm([NAN, NAN])).all()


@pytest.mark.parametrize(("test", "size"), [(t_test, 0.05), (wilcoxon_test, 25 * 2 / 1024)])
def test_type_one_error(test: Any, size: float) -> None:
    """1,000 studies of three equal variants and ten seeds; the exact size of Wilcoxon's test is that of T <= 8.

    One pair is rejected in about 5 % of the studies. With Holm's correction any of the three is in at most 5 %.
    """
    a = np.random.default_rng(1).normal(size=(1000, 3, 10)) + np.random.default_rng(2).normal(size=(1000, 1, 10))
    pairs = list(itertools.combinations(range(3), 2))
    p = test(np.concatenate([a[:, i] - a[:, k] for i, k in pairs])).p.reshape(3, 1000)
    error = math.sqrt(0.05 * 0.95 / 1000)
    assert np.mean(p[0] < 0.05) == pytest.approx(size, abs=3 * error)
    any_rejected = np.mean([(holm(column) < 0.05).any() for column in p.T])
    assert any_rejected <= 0.05 + 2 * error
    assert np.mean((p < 0.05).any(axis=0)) > 0.08  # what the correction is for


def test_the_t_interval_covers_the_mean_and_the_bootstrap_only_with_enough_values() -> None:
    def coverage(interval: Any, values: NDArray[np.float64]) -> float:
        limits = np.array([interval(list(row)) for row in values])
        return float(np.mean((limits[:, 0] <= 0) & (limits[:, 1] >= 0)))

    def students(values: list[float]) -> tuple[float, float]:
        mean, half = np.mean(values), half_width(values)
        return float(mean - half), float(mean + half)

    assert coverage(students, samples(4000, 3)) == pytest.approx(0.95, abs=0.012)
    assert 0.88 < coverage(bootstrap_interval, samples(200, 20)) < 0.99
    assert coverage(bootstrap_interval, samples(200, 4)) < 0.9


def test_the_bootstrap_interval_is_scipys_and_deterministic() -> None:
    values = [0.91, 0.93, 0.85, 0.9, 0.95]
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=0).confidence_interval
    assert bootstrap_interval(values) == (expected.low, expected.high) == bootstrap_interval(values)
    assert bootstrap_interval([0.5] * 4) == (0.5, 0.5)
    assert bootstrap_interval([0.3, 0.1 + 0.2, 0.3]) == (0.3, 0.1 + 0.2)  # equal to rounding
    for few in ([0.5, 0.6], [0.5, 0.6, NAN]):
        assert np.isnan(bootstrap_interval(few)).all()


def test_kaplan_meier_of_the_leukaemia_trial() -> None:
    """The published medians are 23 and 8 weeks; the interval is SAS's on the log-log scale, 13 without upper limit."""
    found = kaplan_meier(MERCAPTOPURINE, RELAPSED, 35)
    assert (found.reached, found.median, found.low, found.high) == (9, 23, 13, math.inf)
    assert found.restricted_mean == pytest.approx(23.287, abs=1e-3)
    placebo = kaplan_meier(PLACEBO, [True] * 21, 35)
    assert (placebo.reached, placebo.median, placebo.low, placebo.high) == (21, 8, 4, 11)
    assert placebo.restricted_mean == pytest.approx(np.mean(PLACEBO))


def test_kaplan_meier_by_hand() -> None:
    """Events at 2, 4 and 5, one run ends at 3 before: the curve is 3/4, then 3/4 x 1/2, then 0."""
    found = kaplan_meier([2, 3, 4, 5], [True, False, True, True], 10)
    assert (found.reached, found.median) == (3, 4)
    assert found.restricted_mean == pytest.approx(2 + 0.75 * 2 + 0.375 * 1)
    assert kaplan_meier([2, 3, 4, 5], [True, False, True, True], 3).restricted_mean == pytest.approx(2 + 0.75)


def test_runs_that_end_before_the_event_count_as_longer() -> None:
    """Leaving them out would give 10, and taking their end as the event 15 and 20."""
    assert math.isnan(kaplan_meier([10, 20, 20], [True, False, False], 20).median)
    assert kaplan_meier([10, 12, 20], [True, True, False], 20).median == 12
    assert kaplan_meier([10, 20, 20], [True, False, False], 20).restricted_mean == pytest.approx(50 / 3)
    never = kaplan_meier([20, 20, 20], [False] * 3, 20)
    assert never.reached == 0
    assert np.isnan([never.median, never.low]).all()
    assert (never.high, never.restricted_mean) == (math.inf, 20)


def test_without_censoring_the_median_is_that_of_the_sample() -> None:
    for values in ([4.0], [4.0, 9.0], [3.0, 8.0, 8.0], [1.0, 2.0, 5.0, 6.0], [7.0] * 4, [0.0, 0.0, 3.0]):
        found = kaplan_meier(values, [True] * len(values), 100)
        assert found.median == np.median(values)
        assert found.restricted_mean == pytest.approx(np.mean(values))
    for missed in (
        2,
        3,
    ):  # a run that missed the event never makes the median earlier: that of (10, 12, x, y) is unknown
        found = kaplan_meier([10, 12, *[20] * missed], [True, True, *[False] * missed], 20)
        assert np.isnan(found.median)
        assert found.later_than == (12 if missed == 2 else 20)
    assert np.isnan(kaplan_meier([], [], NAN)[1:]).all()


def test_the_interval_of_the_median_covers_it() -> None:
    """Exponential times with the median ln 2; a third of the runs ends before."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        times, ends = rng.exponential(size=25), rng.exponential(2, size=25)
        found = kaplan_meier(np.minimum(times, ends), times <= ends, 1)
        hits.append(found.low <= math.log(2) <= found.high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_friedmans_statistic_is_scipys_and_p_counts_all_orders() -> None:
    scores = samples(4, 3)
    scores[0] = [0.5, 0.5, 0.1]  # a tie
    found = rank_levels(scores)
    assert found.statistic == pytest.approx(stats.friedmanchisquare(*scores.T).statistic)
    ranks = stats.rankdata(-scores, axis=1)
    assert found.mean_ranks == pytest.approx(ranks.mean(axis=0))
    spreads = [
        np.sum((np.sum(rows, axis=0) - 8) ** 2)
        for rows in itertools.product(*(list(itertools.permutations(row)) for row in ranks))
    ]
    observed = np.sum((ranks.sum(axis=0) - 8) ** 2)
    assert found.p == pytest.approx(np.mean(np.array(spreads) >= observed - 1e-9))


def test_two_conditions_that_agree_show_nothing() -> None:
    """p is 1/6, where Iman and Davenport's F is infinite; of three levels in three conditions it is 1/36."""
    assert rank_levels([[3, 2, 1], [9, 8, 7]]).p == pytest.approx(1 / 6)
    assert rank_levels([[3, 2, 1]] * 3).p == pytest.approx(1 / 36)
    tied = rank_levels([[0.1 + 0.2, 0.3], [1.0, 1.0]])
    assert (tied.mean_ranks.tolist(), tied.p) == ([1.5, 1.5], 1.0)
    assert math.isnan(tied.statistic)


@pytest.mark.parametrize(("levels", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsars_table(levels: int, q: float) -> None:
    found = rank_levels(samples(14, levels)).critical_difference
    assert found == pytest.approx(q * math.sqrt(levels * (levels + 1) / (6 * 14)), rel=3e-4)


def test_ranks_of_equal_levels_are_rejected_in_one_of_twenty_studies() -> None:
    p = [rank_levels(samples(3, 3, seed=k)).p for k in range(300)]  # 216 orders: exact
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 300))


def test_effect_sizes_of_almost_equal_differences() -> None:
    """Limits are proportional to a large t, to 0.1 %; scipy's function is inexact there, and does not end for 1e6."""
    for seeds in (3, 5, 10):
        count = np.full(8, seeds)
        t = np.array([299.0, 301.0, 1e4, 1e6, 1e12, -301.0, -1e6, 1e3])
        _, low, high = effect_sizes(t, count)
        np.testing.assert_allclose(low / t, np.where(t > 0, low[0] / t[0], high[0] / t[0]), rtol=1e-3)
        np.testing.assert_allclose(high / t, np.where(t > 0, high[0] / t[0], low[0] / t[0]), rtol=1e-3)
        assert (low < high).all()
