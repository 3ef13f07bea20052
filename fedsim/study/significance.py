"""Which differences between a study's variants hold: paired tests by seed, mean ranks, and the marks of its table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice, check_instance
from fedsim.errors import ConfigError
from fedsim.report.intervals import MIN_SEEDS
from fedsim.statistics import paired
from fedsim.study.callbacks import RISING
from fedsim.study.grid import TUNED

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.study import Study, Variant

Floats = NDArray[np.float64]
#: Settings of the problem, not of the method: by default, variants are compared within each of their combinations.
PROBLEM = ("dataset", "data_dir", "split", "test_fraction", "attack")
#: Columns of the history whose smaller values are better, besides those of `RISING` that do not rise.
SMALLER_IS_BETTER = (
    *("attack_success", "failures", "client_drift", "weight_divergence", "epsilon"),
    *("secure_bytes", "secure_seconds", "bytes_up", "bytes_down", "seconds"),
)
#: Tests: name -> function of the differences.
TESTS = {"t": paired.t_test, "wilcoxon": paired.wilcoxon_test}
LEVEL = 0.05


def split_axes(study: Study, axis: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the axes whose values are compared, and the others, whose combinations are the conditions.

    Raises
    ------
    ConfigError
        `axis` is not an axis of the study, or several.
    """
    known = [name for name in study.variants[0].labels if not name.startswith(TUNED)]
    if axis is None:
        compared = [name for name in known if name.partition(".")[0] not in PROBLEM] or known
    else:
        check_instance("axis", axis, str | list | tuple, f"one or several of {', '.join(known) or 'none'}")
        compared = [axis] if isinstance(axis, str) else list(axis)
        for name in compared:
            check_choice("axis", name, known)
    return compared, [name for name in known if name not in compared]


def conditions(study: Study, axes: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Return the numbers of the variants in each condition: combination of labels of `axes` -> variants."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number, variant in enumerate(study.variants):
        found.setdefault(tuple(variant.labels[name] for name in axes), []).append(number)
    return found


def titled(axis: str, label: str) -> str:
    """Return a label, with the last part of the axis' name if it is a plain value, as in ``lr=0.1``."""
    is_name = label[:1].isalpha() and label not in ("True", "False", "None", "nan", "inf")
    return label if is_name else f"{axis.removeprefix(TUNED).rpartition('.')[2]}={label}"


def level(variant: Variant, axes: Sequence[str]) -> str:
    """Return the label of a variant on an axis, or those on several axes in one line, as in ``SGD, lr=0.1``."""
    if len(axes) == 1:
        return variant.labels[axes[0]]
    return ", ".join(titled(name, variant.labels[name]) for name in axes)


def values_by_seed(study: Study, metric: str | None) -> tuple[str, Floats]:
    """Return the metric's name, and its values in the last round, shape (variants, seeds).

    NaN stands for runs that are missing or have no value, and for all runs of a variant with the same seed twice.

    Raises
    ------
    ConfigError
        `metric` is not a column of the history.
    """
    metric = f"test_{study.score}" if metric is None else metric
    columns = study.variants[0].results[0].history.columns
    check_choice("metric", metric, [name for name in columns if name != "round"])
    rows = [{r.experiment.seed: float(r.history[metric].iloc[-1]) for r in v.results} for v in study.variants]
    rows = [row if len(row) == len(v.results) else {} for row, v in zip(rows, study.variants, strict=True)]
    seeds = sorted({seed for row in rows for seed in row})
    values = np.array([[row.get(seed, np.nan) for seed in seeds] for row in rows])
    return metric, np.round(values, 12)  # rounding errors are no differences


def _pairs(
    study: Study, axis: str | Sequence[str] | None, reference: str | None
) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Return the compared axes, the other axes, and the pairs of variants to test, shape (pairs, 2)."""
    compared, others = split_axes(study, axis)
    levels = [level(variant, compared) for variant in study.variants]
    groups = conditions(study, others).values()
    if reference is None:
        pairs = [pair for group in groups for pair in combinations(group, 2)]
    else:
        check_choice("reference", reference, dict.fromkeys(levels))
        bases = [(group, [k for k in group if levels[k] == reference]) for group in groups]
        pairs = [(k, base) for group, found in bases for base in found for k in group if k != base]
    return compared, others, np.array(pairs, dtype=np.int64).reshape(-1, 2)


def paired_tests(
    study: Study,
    metric: str | None = None,
    axis: str | Sequence[str] | None = None,
    reference: str | None = None,
    method: str = "t",
) -> pd.DataFrame:
    """Return a row per pair of variants; see `Study.test`."""
    import pandas as pd

    check_choice("method", method, TESTS)
    compared, others, pairs = _pairs(study, axis, reference)
    metric, values = values_by_seed(study, metric)
    a, b = values[pairs[:, 0]], values[pairs[:, 1]]
    found = TESTS[method](a - b)
    corrected = paired.holm(found.p)
    with np.errstate(invalid="ignore"):
        means = [np.sum(side, axis=1, where=~np.isnan(a - b)) / found.seeds for side in (a, b)]
    first, second = ([study.variants[k] for k in column] for column in pairs.T)
    frame = pd.DataFrame(
        {
            **{name: [variant.labels[name] for variant in first] for name in others},
            "variant": [level(variant, compared) for variant in first],
            "against": [level(variant, compared) for variant in second],
            "metric": metric,
            "test": method,
            "mean": means[0],
            "mean_against": means[1],
            **found._asdict(),
            "p_holm": corrected,
            "holds": pd.array(corrected < LEVEL, dtype="boolean"),
        }
    )
    frame.loc[np.isnan(corrected), "holds"] = pd.NA
    return frame.assign(note=_notes_of_tests(a, b, found, method))


def _notes_of_tests(a: Floats, b: Floats, found: paired.PairedStatistics, method: str) -> list[str]:
    """Say of each pair why a number is missing, or what the test cannot show."""
    unpaired = np.count_nonzero(np.isnan(a) != np.isnan(b), axis=1)
    least = paired.smallest_wilcoxon_p(a - b) if method == "wilcoxon" else np.zeros(len(a))
    tested = ~np.isnan(found.p)
    number = np.count_nonzero(tested)
    powerless = (least >= LEVEL) | (number * np.min(least, where=tested, initial=1.0) >= LEVEL)
    notes = []
    for k, seeds in enumerate(found.seeds):
        note = ""
        if seeds == 0:
            note = "no seed has a value in both"
        elif seeds < MIN_SEEDS:
            note = f"{_seeds(seeds)}: a test needs at least {MIN_SEEDS}"
        elif found.difference_low[k] == found.difference_high[k] == 0:
            note = "equal in every seed"
        elif not tested[k]:
            note = "the same difference in every seed: the t test needs variance"
        elif powerless[k]:
            note = f"cannot reach 5 %: p is at least {least[k]:.2g}, before the correction for {number} tests"
        left = f"{_seeds(unpaired[k])} without a pair left out" if unpaired[k] else ""
        notes.append("; ".join(filter(None, (note, left))))
    return notes


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def against_best(study: Study) -> list[str]:
    """Return for each variant how its final score compares with the best of its condition; "" without a test.

    The best is the variant with the largest mean. "worse" holds at 5 % in the paired t tests between all variants of a
    condition, corrected by Holm's method over all conditions; otherwise the order is "unclear".
    """
    _, others, pairs = _pairs(study, None, None)
    tests = paired_tests(study)
    rows = {(int(i), int(k)): row for row, (i, k) in enumerate(pairs)}
    means = [float(np.mean([r.final_score for r in v.results])) for v in study.variants]
    marks = [""] * len(means)
    for group in conditions(study, others).values():
        best, *rest = sorted((k for k in group if not np.isnan(means[k])), key=lambda k: -means[k]) or [-1]
        for k in rest:
            test = tests.iloc[rows[min(k, best), max(k, best)]]
            marks[k] = _mark(test, test["difference"] if k < best else -test["difference"])
        if any(marks[k] for k in rest):
            marks[best] = "best"
    return marks


def _mark(test: Any, difference: float) -> str:
    """Return the result of a test in a word, with p."""
    if test["seeds"] < MIN_SEEDS:
        return ""
    if np.isnan(test["p"]):
        return "unclear"
    if test["difference_low"] == test["difference_high"] == 0:
        return "equal"
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    return f"{('worse' if difference < 0 else 'better') if test['holds'] else 'unclear'} ({p})"


def notes(study: Study) -> list[str]:
    """Return lines that explain a study's table."""
    seeds = max(len(v.results) for v in study.variants)
    if seeds >= MIN_SEEDS:
        means = "Means over seeds with 95 % intervals."
    else:
        means = f"{_seeds(seeds)}: no intervals and no tests, which need at least {MIN_SEEDS} seeds."
    rounds = " Rounds are medians; a seed that missed the target counts as longer (Kaplan-Meier)."
    lines = [means + (rounds if study.has_global_model else "")]
    if any(against_best(study)):
        others = split_axes(study, None)[1]
        same = f" with the same {' and '.join(others)}" if others else ""
        lines.append(
            f"Against best: paired t tests of all pairs{same}, by seed, with Holm's correction. "
            "Worse: p < 0.05; unclear: these seeds do not show a difference."
        )
    if study.ranked:
        ranks = mean_ranks(study)
        shown = ", ".join(f"{row.variant} {row.mean_rank:.1f}" for row in ranks.itertuples())
        first = ranks.iloc[0]
        lines.append(
            f"Mean ranks over {first['conditions']} conditions: {shown}; Friedman's p = {first['p']:.2g}. "
            f"Ranks {first['critical_difference']:.1f} or more behind the best are worse at 5 % (Nemenyi)."
        )
    return lines


def scores_by_condition(
    study: Study, axis: str | Sequence[str] | None = None, metric: str | None = None
) -> tuple[str, pd.DataFrame]:
    """Return the metric's name and its means over seeds: a row per condition that has all, a column per level.

    Conditions with a single variant, such as baselines, and levels without any value are left out.
    """
    import pandas as pd

    compared, others = split_axes(study, axis)
    metric, _ = values_by_seed(study, metric)
    means = [float(np.mean([r.history[metric].iloc[-1] for r in v.results])) for v in study.variants]
    groups = [group for group in conditions(study, others).values() if len(group) > 1]
    table = pd.DataFrame([{level(study.variants[k], compared): means[k] for k in group} for group in groups])
    return metric, table.dropna(axis="columns", how="all").dropna()


def mean_ranks(study: Study, axis: str | Sequence[str] | None = None, metric: str | None = None) -> pd.DataFrame:
    """Return a row per level of an axis with its mean rank over the conditions; see `Study.ranks`."""
    import pandas as pd

    from fedsim.statistics.ranks import rank_levels

    metric, complete = scores_by_condition(study, axis, metric)
    if min(complete.shape) < 2:
        raise ConfigError(
            f"ranks need 2 values of {', '.join(split_axes(study, axis)[0]) or 'an axis'} and 2 conditions, "
            f"combinations of the other axes; the study has {complete.shape[1]} and {complete.shape[0]} with all scores"
        )
    rises = RISING.get(metric, metric not in SMALLER_IS_BETTER)
    found = rank_levels(complete.to_numpy() * (1 if rises else -1))
    behind = found.mean_ranks - found.mean_ranks.min()
    frame = pd.DataFrame(
        {
            "variant": complete.columns,
            "metric": metric,
            "conditions": len(complete),
            "mean_rank": found.mean_ranks,
            "behind_best": behind,
            "critical_difference": found.critical_difference,
            "worse_than_best": behind >= found.critical_difference,
            "friedman": found.statistic,
            "p": found.p,
        }
    )
    return frame.sort_values("mean_rank", kind="stable", ignore_index=True)
