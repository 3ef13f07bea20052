"""Fairness: measures between clients and between groups of people."""

from fedsim.fairness.clients import client_fairness, fairness_measures
from fedsim.fairness.fairfed import FairFed
from fedsim.fairness.groups import GAPS, count_groups, group_gaps, group_rates, group_report, metric_frame
from fedsim.fairness.reweighing import Reweighing

__all__ = [
    "GAPS",
    "FairFed",
    "Reweighing",
    "client_fairness",
    "count_groups",
    "fairness_measures",
    "group_gaps",
    "group_rates",
    "group_report",
    "metric_frame",
]
