"""Rounds, megabytes and seconds that a study's variants need to reach a target, as censored data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.statistics.censored import kaplan_meier

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.result import Result
    from fedsim.study.study import Study

QUANTITIES = ("rounds", "megabytes", "seconds")


def cost_to_target(result: Result, target: float) -> tuple[dict[str, float], bool]:
    """Return the rounds, megabytes and seconds of a run until it reached the target, and whether it did.

    Megabytes and seconds are interpolated within a round as `Result.rounds_to` is. If the run did not reach the target,
    they are those of the whole run.
    """
    rounds = result.rounds_to(target)
    reached = not math.isnan(rounds)
    history = result.history
    spent = (history["bytes_up"].to_numpy() + history["bytes_down"].to_numpy()) / 1e6, history["seconds"].to_numpy()
    end = rounds if reached else float(result.rounds)
    numbers = np.arange(len(history))
    used = (float(np.interp(end, numbers, np.cumsum(column))) for column in spent)
    return dict(zip(QUANTITIES, (end, *used), strict=True)), reached


def time_to_target(study: Study, target: float, quantities: Sequence[str] = QUANTITIES) -> pd.DataFrame:
    """Return a row per quantity and variant; see `Study.time_to_target`."""
    import pandas as pd

    runs = [
        [cost_to_target(r, target) for r in variant.results if not np.isnan(r.test_scores).all()]
        for variant in study.variants
    ]
    rows = []
    for quantity in quantities:
        longest = [max((cost[quantity] for cost, _ in found), default=math.nan) for found in runs]
        known = [most for most, found in zip(longest, runs, strict=True) if not all(reached for _, reached in found)]
        horizon = min(known) if known else max((most for most in longest if not math.isnan(most)), default=math.nan)
        for variant, found, most in zip(study.variants, runs, longest, strict=True):
            never = [most] * len(variant.diverged) if found else []
            times = [cost[quantity] for cost, _ in found] + never
            estimate = kaplan_meier(times, [reached for _, reached in found] + [False] * len(never), horizon)
            row = {"quantity": quantity, "target": target, "seeds": len(times), **estimate._asdict()}
            rows.append({**variant.labels, **row, "horizon": horizon})
    return pd.DataFrame(rows)


def median_rounds(study: Study, target: float) -> list[str]:
    """Return each variant's median number of rounds to the target as text, "> 30" if most runs of 30 miss it.

    A run that diverged counts as one that never reaches it.
    """
    cells = []
    for row in time_to_target(study, target, ["rounds"]).itertuples():
        median = f"> {round(row.later_than, 1):g}" if math.isnan(row.median) else f"{row.median:.1f}"
        share = "" if row.reached == row.seeds else f" ({row.reached} of {row.seeds} seeds)"
        cells.append(median + share if row.seeds else "")
    return cells
