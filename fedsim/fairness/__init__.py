"""Fairness: measures between clients and between groups of people."""

from fedsim.fairness.clients import client_fairness, fairness_measures

__all__ = ["client_fairness", "fairness_measures"]
