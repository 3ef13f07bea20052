"""Fairness between groups of people: rates in each group, and the gaps between groups.

With the label y, the prediction p, the positive label 1 and the group a, a gap is the largest difference between two
groups of

- demographic parity: the selection rate ``P(p = 1 | a)``;
- equal opportunity: the true positive rate ``P(p = 1 | y = 1, a)`` (Hardt, Price and Srebro, "Equality of opportunity
  in supervised learning", NIPS 2016, arXiv:1610.02413, definition 2.2);
- equalised odds: the true or the false positive rate, whichever differs more (the same, definition 2.1);
- accuracy: ``P(p = y | a)``.

They have the definitions of fairlearn's ``demographic_parity_difference``, ``equal_opportunity_difference`` and
``equalized_odds_difference``, and equal these wherever every rate exists. A rate over no example does not exist: it is
NaN here, and 0 in fairlearn, where a group without positive examples makes a gap as large as the other group's rate.
Rates are computed from counts, which clients can send and servers can add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_integer
from fedsim.clients.sensitive import COUNTS, Sensitive
from fedsim.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.result import Result

#: The measured gaps, in order.
GAPS = ("demographic_parity", "equal_opportunity", "equalised_odds", "accuracy_gap")
#: Rates in a group -> the counts whose sums are the numerator and the denominator.
RATES = {
    "accuracy": (("correct",), ("num_examples",)),
    "base_rate": (("true_positives", "false_negatives"), ("num_examples",)),
    "selection_rate": (("true_positives", "false_positives"), ("num_examples",)),
    "true_positive_rate": (("true_positives",), ("true_positives", "false_negatives")),
    "false_positive_rate": (("false_positives",), ("negatives",)),
}


@checked_arguments
def group_rates(counts: pd.DataFrame, min_examples: int = 1) -> pd.DataFrame:
    """Return rates in groups of people.

    Parameters
    ----------
    counts : DataFrame
        With the columns of `fedsim.clients.sensitive.COUNTS`, such as `Result.groups`; other columns are kept.
    min_examples : int
        At least 1. A rate over fewer examples is NaN.

    Returns
    -------
    DataFrame
        One row per row of `counts`: its other columns, ``num_examples``, and the rates ``accuracy``, ``base_rate`` (of
        positive labels), ``selection_rate`` (of positive predictions), ``true_positive_rate`` and
        ``false_positive_rate``.
    """
    check_integer("min_examples", min_examples, 1)
    _check_columns(counts, COUNTS)
    counts = counts.assign(negatives=counts["num_examples"] - counts["true_positives"] - counts["false_negatives"])
    rates = {}
    for name, (numerator, denominator) in RATES.items():
        over = counts[list(denominator)].sum(axis=1)
        rates[name] = counts[list(numerator)].sum(axis=1) / over.where(over >= min_examples)
    dropped = [name for name in (*COUNTS[1:], "negatives") if name in counts]
    return counts.drop(columns=dropped).assign(**rates)


@checked_arguments
def group_gaps(
    counts: pd.DataFrame, by: Sequence[str] = ("round", "partition_id"), min_examples: int = 1
) -> pd.DataFrame:
    """Return the gaps between groups of people.

    Parameters
    ----------
    counts : DataFrame
        As for `group_rates`, with a column ``group``; such as `Result.groups`, or a part of it.
    by : sequence of str
        Columns that identify a model and its examples. The counts of rows that agree in these columns and in the group
        are added up: ``by=["round"]`` on the rows of clients pools the clients' examples.
    min_examples : int
        At least 1. A rate over fewer examples does not count.

    Returns
    -------
    DataFrame
        Indexed by the columns `by`: the gaps ``demographic_parity``, ``equal_opportunity``, ``equalised_odds`` and
        ``accuracy_gap`` between the groups that have the rates, NaN if fewer than two have; and ``left_out``, the names
        of groups for which some rate is missing, separated by commas.
    """
    columns = list(by)
    _check_columns(counts, ("group", *COUNTS))
    if not columns:
        raise ConfigError("by is empty; allowed: at least one column")
    for column in columns:
        check_choice("an item of by", column, [c for c in counts.columns if c not in (*COUNTS, "group")])
    # pd.read_csv reads the group "NA" and the setting "None" as missing; their rows count as all others.
    summed = counts.groupby([*columns, "group"], sort=True, dropna=False)[list(COUNTS)].sum().reset_index()
    rates = group_rates(summed, min_examples)
    spread = rates.groupby(columns, dropna=False)[list(RATES)].agg(_spread)
    missing = rates[list(RATES)].isna().any(axis=1)
    left_out = rates["group"].map(str).where(missing).groupby([rates[column] for column in columns], dropna=False)
    return spread.assign(
        demographic_parity=spread["selection_rate"],
        equal_opportunity=spread["true_positive_rate"],
        equalised_odds=spread[["true_positive_rate", "false_positive_rate"]].max(axis=1, skipna=False),
        accuracy_gap=spread["accuracy"],
        left_out=left_out.agg(lambda names: ",".join(names.dropna())),
    )[[*GAPS, "left_out"]]


def _check_columns(counts: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise ConfigError unless a frame has all of these columns."""
    if missing := [name for name in needed if name not in counts.columns]:
        raise ConfigError(f"counts has no column {', '.join(missing)}; allowed: such as Result.groups")


def _spread(rates: pd.Series) -> float:
    known = rates.dropna()
    return float(known.max() - known.min()) if len(known) > 1 else float("nan")


@checked_arguments
def group_report(
    result: Result, column: str | None = None, positive: int | None = None, min_examples: int = 1
) -> pd.DataFrame:
    """Return the rates of the final global model in groups of people of the test set.

    Parameters
    ----------
    result : Result
    column : str, optional
        A column of `Dataset.groups_test`; default the experiment's ``sensitive``. It need not have been set in the run.
    positive : int, optional
        The label that counts as positive; default the experiment's.
    min_examples : int
        As for `group_rates`.

    Returns
    -------
    DataFrame
        One row per group that occurs, sorted by name: ``num_examples`` and the rates of `group_rates`.

    Raises
    ------
    ConfigError
        There is no such column or label.
    """
    return group_rates(count_groups(result, column, positive), min_examples).set_index("group")


@checked_arguments
def count_groups(result: Result, column: str | None = None, positive: int | None = None) -> pd.DataFrame:
    """Return the counts from which `group_report` computes rates, as `group_gaps` takes them.

    Parameters and errors as for `group_report`.
    """
    import pandas as pd

    sensitive = _sensitive(result, column, positive)
    arrays = result.predict(), result.dataset.y_test, sensitive.test
    counts = sensitive.count(*(values[None] for values in arrays))[0]
    frame = pd.DataFrame(counts, columns=list(COUNTS))
    frame.insert(0, "group", sensitive.names)
    return frame[frame["num_examples"] > 0].reset_index(drop=True)


@checked_arguments
def metric_frame(result: Result, column: str | None = None, positive: int | None = None) -> Any:
    """Return fairlearn's ``MetricFrame`` of the final global model on the test set, for fairlearn's other functions.

    It has the metrics ``accuracy``, ``selection_rate``, ``true_positive_rate`` and ``false_positive_rate``; predictions
    and labels are 1 for the positive label and 0 for the others, also for the accuracy.

    Parameters
    ----------
    result, column, positive
        As for `group_report`.

    Raises
    ------
    ConfigError
        The extra ``fairness`` is not installed, or there is no such column or label.
    """
    try:
        from fairlearn import metrics
    except ImportError:
        raise missing_extra("fairlearn's MetricFrame", "fairness") from None
    from sklearn.metrics import accuracy_score

    sensitive = _sensitive(result, column, positive)
    names = ("selection_rate", "true_positive_rate", "false_positive_rate")
    return metrics.MetricFrame(
        metrics={"accuracy": accuracy_score, **{name: getattr(metrics, name) for name in names}},
        y_true=_is_positive(result.dataset.y_test, sensitive),
        y_pred=_is_positive(result.predict(), sensitive),
        sensitive_features={sensitive.column: np.array(sensitive.names)[sensitive.test]},
    )


def _is_positive(labels: NDArray[Any], sensitive: Sensitive) -> NDArray[np.intp]:
    return (labels == sensitive.positive).astype(np.intp)


def _sensitive(result: Result, column: str | None, positive: int | None) -> Sensitive:
    """Return the column of a result's dataset."""
    chosen = result.experiment.sensitive if column is None else column
    if chosen is None:
        raise ConfigError("column is None, and the experiment's sensitive too; allowed: a column of groups of people")
    label = result.experiment.positive if positive is None else positive
    return Sensitive.of(result.dataset, chosen, label)
