"""The settings that all kinds of differential privacy of a run have."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.arguments import CheckedInit
from fedsim.checks import Interval, check_fields
from fedsim.errors import ConfigError
from fedsim.objects import short_repr
from fedsim.privacy.accounting import check_accounting


@dataclass(frozen=True)
class Privacy(CheckedInit):
    """The base class of `CentralDP` and `ExampleDP`, which describe these settings.

    Raises
    ------
    ConfigError
        A value that is not allowed, or neither noise_multiplier nor epsilon.
    """

    clip: float = 1.0
    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    sampling: str = "poisson"
    accountant: str = "rdp"

    limits = {
        "clip": Interval(0, 1e6, open_low=True),
        "noise_multiplier": Interval(0, 1e6),
        "epsilon": Interval(0, open_low=True),
        "delta": Interval(0, 1, open_low=True, open_high=True),
    }

    def __post_init__(self) -> None:
        check_fields(self)
        name = type(self).__name__
        if self.noise_multiplier is None and self.epsilon is None:
            raise ConfigError(f"{name} has neither noise_multiplier nor epsilon; allowed: one of them, or both")
        check_accounting(f"{name}'s ", self.sampling, self.accountant)

    def __str__(self) -> str:
        """Return a short label: the settings that differ from their defaults."""
        return short_repr(self)
