"""Fairness: measures between clients and between groups of people."""

from fedsim.fairness.fairfed import FairFed
from fedsim.fairness.groups import GAPS, count_groups, group_gaps, group_rates, group_report, metric_frame
from fedsim.fairness.reweighing import Reweighing

__all__ = [
    "GAPS",
    "FairFed",
    "Reweighing",
    "count_groups",
    "group_gaps",
    "group_rates",
    "group_report",
    "metric_frame",
]
