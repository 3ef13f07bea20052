"""Fairness between clients: how evenly a model serves them, measured on their scores.

Worst and best decile and variance as in Li, Sanjabi, Beirami and Smith, "Fair resource allocation in federated
learning", ICLR 2020 (arXiv:1905.10497), table 1; Jain, Chiu and Hawe, "A quantitative measure of fairness and
discrimination for resource allocation in shared computer systems", DEC-TR-301, 1984; Gini's coefficient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import shorten
from fedsim.errors import ConfigError
from fedsim.report.intervals import half_width
from fedsim.splits.measure import gini
from fedsim.splits.names import CLIENT_NAME

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.result import Result
    from fedsim.study.study import Study

#: The measures, in order.
MEASURES = ("mean", "variance", "std", "worst", "worst_decile", "best_decile", "jain", "gini")


@checked_arguments
def fairness_measures(scores: ArrayLike) -> dict[str, float]:
    """Return the measures of fairness of clients' scores, each of which counts every client once.

    Parameters
    ----------
    scores : array_like, shape (clients,)
        For example each client's accuracy on its own test examples.

    Returns
    -------
    dict of str to float
        All are NaN if a score is not finite.

        - ``mean``.
        - ``variance, std``: of the population, with divisor K for K clients; 0 if all scores are equal.
        - ``worst``: the lowest score.
        - ``worst_decile, best_decile``: the mean of the lowest and of the highest tenth of the scores, ``ceil(K / 10)``
          of them; with up to 10 clients that is one score.
        - ``jain``: Jain's index, ``(sum x)^2 / (K sum x^2)``; 1 if all scores are equal, 1 / K if all but one are 0.
        - ``gini``: Gini's coefficient, the mean absolute difference of two scores divided by twice the mean; 0 if all
          scores are equal, 1 - 1 / K if all but one are 0.

        Jain's index and Gini's coefficient are measures of amounts: they are NaN if a score is negative, as R squared
        can be, or if all scores are 0.

    Raises
    ------
    ConfigError
        The scores are not a one-dimensional array of numbers, or there are none.

    Examples
    --------
    >>> found = fairness_measures([0.5, 0.9, 1.0])
    >>> {name: round(found[name], 3) for name in ("mean", "worst_decile", "jain", "gini")}
    {'mean': 0.8, 'worst_decile': 0.5, 'jain': 0.932, 'gini': 0.139}
    """
    values = _checked(scores)
    if not np.isfinite(values).all():
        return dict.fromkeys(MEASURES, math.nan)
    ordered = np.sort(values)
    tenth = math.ceil(len(ordered) / 10)
    has_shares = ordered[0] >= 0 and ordered[-1] > 0
    relative = ordered / ordered[-1] if has_shares else ordered  # squares of very small scores would be 0
    found = {
        "mean": ordered.mean(),
        "variance": ordered.var(),
        "std": ordered.std(),
        "worst": ordered[0],
        "worst_decile": ordered[:tenth].mean(),
        "best_decile": ordered[-tenth:].mean(),
        "jain": relative.sum() ** 2 / (len(relative) * (relative @ relative)) if has_shares else math.nan,
        "gini": gini(relative) if has_shares else math.nan,
    }
    return {name: float(found[name]) for name in MEASURES}


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    allowed = "allowed: a one-dimensional array of numbers, at least one"
    try:
        values = np.asarray(scores)
    except (TypeError, ValueError):
        raise ConfigError(f"scores is {shorten(scores)}; {allowed}") from None
    if values.dtype.kind not in "iuf" or values.ndim != 1 or not len(values):
        raise ConfigError(f"scores is {shorten(scores)}; {allowed}")
    return values.astype(np.float64)


@checked_arguments
def client_fairness(results: Result | Study) -> pd.DataFrame:
    """Return measures of fairness between the clients of a run by round, or of a study's variants.

    The scores are those of `Result.clients`, of the clients that evaluated in the round: accuracies, or R squared for
    regression, on their own examples, by the weights with which they predict. A client counts once, whatever its number
    of examples; `Result.history` has the mean weighted by examples, ``local_accuracy``.

    Parameters
    ----------
    results : Result or Study

    Returns
    -------
    DataFrame
        For a result, one row per evaluated round: ``round, clients`` (number of those that evaluated), the measures of
        `fairness_measures` and, if clients have names, ``worst_client`` (the name of one with the lowest score). For a
        study, one row per variant: the axes' columns, ``seeds``, ``clients`` (the mean number of those that evaluated;
        centralised training is one client), and for each measure its mean over the seeds in the last evaluated round,
        and the half width of its 95 % interval (``..._ci95``); NaN for a variant in which no client evaluated.

    Raises
    ------
    ConfigError
        No client evaluated.
    """
    import pandas as pd

    variants = getattr(results, "variants", None)
    runs: list[Any] = [results] if variants is None else [result for v in variants for result in v.results]
    if all(run.clients.empty for run in runs):
        raise ConfigError("no client evaluated on its own examples; set fraction_evaluate")
    if variants is None:
        return _by_round(runs[0])
    rows = []
    for variant in variants:
        last = [final_measures(result) for result in variant.results]
        row: dict[str, Any] = {**variant.labels, "seeds": len(last)}
        row["clients"] = float(np.mean([found["clients"] for found in last]))
        for name in MEASURES:
            values = [found[name] for found in last]
            row |= {name: float(np.mean(values)), f"{name}_ci95": half_width(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def _by_round(result: Result) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for number, clients in result.clients.groupby("round"):
        scores = clients[result.score].to_numpy(dtype=float)
        row = {"round": number, "clients": len(scores), **fairness_measures(scores)}
        if CLIENT_NAME in clients:
            row["worst_client"] = clients[CLIENT_NAME].iloc[scores.argmin()]
        rows.append(row)
    return pd.DataFrame(rows)


def final_measures(result: Result) -> dict[str, float]:
    """Return the measures of the last evaluated round."""
    clients = result.clients
    if clients.empty:
        return {"clients": 0} | dict.fromkeys(MEASURES, math.nan)
    scores = clients.loc[clients["round"] == clients["round"].max(), result.score].to_numpy(float)
    return {"clients": len(scores), **fairness_measures(scores)}
