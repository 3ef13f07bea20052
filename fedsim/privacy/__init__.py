"""Differential privacy: central and local mechanisms, and the accounting of what they cost."""

from fedsim.privacy.central import CentralDP
from fedsim.privacy.local import Clip, LocalDP

__all__ = ["CentralDP", "Clip", "LocalDP"]
