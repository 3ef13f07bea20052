"""Differential privacy: central, local and by example, and the accounting of what it costs."""

from fedsim.privacy.central import CentralDP
from fedsim.privacy.examples import ExampleDP
from fedsim.privacy.local import Clip, LocalDP

__all__ = ["CentralDP", "Clip", "ExampleDP", "LocalDP"]
