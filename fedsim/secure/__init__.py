"""Secure aggregation: the server learns the sum of a round's updates, and no single one."""

from fedsim.secure.settings import SecureAggregation

__all__ = ["SecureAggregation"]
