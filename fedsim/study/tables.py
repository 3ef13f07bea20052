"""The tables of a study: its summary as numbers and as text, and the files into which they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedsim.checks import check_choice, check_real
from fedsim.models.metrics import metric_title, scalar_metrics
from fedsim.report.intervals import bootstrap_interval, half_width, with_interval
from fedsim.study import significance, time_to_target
from fedsim.study.result_files import FAIRNESS, GROUPS, METRICS

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.study import Study, Variant

#: How the intervals of means are calculated.
INTERVALS = ("t", "bootstrap")


def summary(study: Study, target: float | None = None, interval: str = "t") -> pd.DataFrame:
    """Return one row per variant, as numbers; see `Study.summary`."""
    import pandas as pd

    check_choice("interval", interval, INTERVALS)
    goal, score = study.target if target is None else check_real("target", target, high=1), study.score
    times = dict(iter(time_to_target.time_to_target(study, goal).groupby("quantity")))
    rows = []
    for number, variant in enumerate(study.variants):
        final = [r.final_score for r in variant.results]
        local = [float(r.history[f"local_{score}"].iloc[-1]) for r in variant.results]
        success = [float(r.history["attack_success"].iloc[-1]) for r in variant.results]
        sent = [float((r.history["bytes_up"] + r.history["bytes_down"]).sum()) for r in variant.results]
        rows.append(
            {
                **variant.labels,
                "seeds": len(final),
                **_mean(f"final_{score}", final, interval),
                f"best_{score}": float(np.mean([r.test_scores.max() for r in variant.results])),
                **_mean(f"local_{score}", local, interval),
                **_mean("attack_success", success, interval),
                **_final_metrics(variant, metric_names(study), interval),
                "final_loss": float(np.mean([r.history["test_loss"].iloc[-1] for r in variant.results])),
                "target": goal,
                **{f"{name}_to_target": times[name]["median"].iloc[number] for name in time_to_target.QUANTITIES},
                "reached": times["rounds"]["reached"].iloc[number],
                "megabytes_sent": float(np.mean(sent)) / 1e6,
                "epsilon": float(np.mean([r.history["epsilon"].iloc[-1] for r in variant.results])),
            }
        )
    return pd.DataFrame(rows)


def table(study: Study, target: float | None = None, interval: str = "t") -> pd.DataFrame:
    """Return the summary as text; see `Study.table`."""
    import pandas as pd

    found = summary(study, target, interval)
    shown = {axis: found[axis] for axis in study.variants[0].labels}
    name = {"accuracy": "accuracy", "r2": "R2"}[study.score]
    if study.has_global_model:
        shown[f"final {name}"] = _with_interval(found, f"final_{study.score}")
    if any(marks := significance.against_best(study)):
        shown["against best"] = marks
    for metric in metric_names(study):
        if found[f"final_{metric}"].notna().any():
            shown[f"final {metric_title(metric)}"] = _with_interval(found, f"final_{metric}")
    if study.evaluated:
        shown[f"local {name}"] = _with_interval(found, f"local_{study.score}")
    if found["attack_success"].notna().any():
        shown["attack success"] = _with_interval(found, "attack_success")
    if study.has_global_model:
        shown[f"best {name}"] = ["" if np.isnan(m) else f"{m:.3f}" for m in found[f"best_{study.score}"]]
        goal = float(found["target"].iloc[0])
        shown[f"rounds to {goal:.2f}"] = time_to_target.median_rounds(study, goal)
    shown["MB sent"] = [f"{m:.1f}" for m in found["megabytes_sent"]]
    if found["epsilon"].notna().any():
        shown["epsilon"] = ["" if np.isnan(e) else f"{e:.2f}" for e in found["epsilon"]]
    frame = pd.DataFrame(shown)
    return frame.set_index(list(study.variants[0].labels)) if study.variants[0].labels else frame


def metric_names(study: Study) -> list[str]:
    """Return the metrics of `Experiment.metrics` that are numbers, of all variants."""
    found = (r.experiment.metrics for v in study.variants for r in v.results)
    return list(dict.fromkeys(name for metrics in found for name in scalar_metrics(metrics)))


def _final_metrics(variant: Variant, names: list[str], interval: str) -> dict[str, float]:
    """Return each metric of the global models after the last round: the mean and its interval over seeds."""
    found: dict[str, float] = {}
    for name in names:
        values = [float(r.history.get(f"test_{name}", math.nan * r.test_scores)[r.rounds]) for r in variant.results]
        found |= _mean(f"final_{name}", values, interval)
    return found


def _mean(name: str, values: list[float], interval: str) -> dict[str, float]:
    """Return columns of the summary: the mean and its interval."""
    mean = {name: float(np.mean(values))}
    if interval == "t":
        return mean | {f"{name}_ci95": half_width(values)}
    return mean | dict(zip((f"{name}_low", f"{name}_high"), bootstrap_interval(values), strict=True))


def _with_interval(found: pd.DataFrame, name: str) -> list[str]:
    if f"{name}_ci95" in found:
        return list(map(with_interval, found[name], found[f"{name}_ci95"]))
    limits = [
        "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        for low, high in zip(found[f"{name}_low"], found[f"{name}_high"], strict=True)
    ]
    return [with_interval(mean, np.nan) + limit for mean, limit in zip(found[name], limits, strict=True)]


def _fairness(study: Study) -> pd.DataFrame:
    from fedsim.fairness import client_fairness

    return client_fairness(study)


def _always(study: Study) -> bool:
    return True


#: The tables of a study's folder: file name -> whether a study has it, and the function that makes it.
TABLES: dict[str, tuple[Callable[[Study], bool], Callable[[Study], pd.DataFrame]]] = {
    "rounds.csv": (_always, lambda study: study.rounds()),
    "clients.csv": (_always, lambda study: study.clients()),
    "summary.csv": (_always, lambda study: study.summary()),
    "tests.csv": (lambda study: study.tested, lambda study: study.test()),
    "ranks.csv": (lambda study: study.ranked, lambda study: study.ranks()),
    FAIRNESS: (lambda study: study.evaluated, _fairness),
    GROUPS: (lambda study: study.counted_groups, lambda study: study.groups()),
    METRICS: (lambda study: study.has_metrics, lambda study: study.metrics()),
}
