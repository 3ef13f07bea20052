"""Fairness: measures between clients and between groups of people."""
