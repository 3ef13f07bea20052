"""The contributions of clients to a model, with their error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance
from fedsim.errors import ConfigError
from fedsim.report.intervals import t_quantile
from fedsim.splits.names import insert_names

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each client has contributed to the utility of the model.

    Attributes
    ----------
    method : str
    clients : ndarray of int, shape (clients,)
        Partition ids of the clients that have examples.
    values : ndarray of float64, shape (clients,)
        In the unit of the utility; negative for a client without which the model is better.
    standard_errors : ndarray of float64, shape (clients,)
        Of the mean over permutations, or over seeds if these are combined; NaN for one seed without sampling.
    degrees_of_freedom : int
        Number of permutations, or of seeds, minus 1.
    everybody, nobody : float
        Utility of the model that all clients train, and of the untrained model.
    evaluations : int
        Number of coalitions whose utility was needed. Each takes a training if coalitions are retrained.
    client_names : tuple of str
        By partition id; empty if clients have numbers only.
    """

    method: str
    clients: NDArray[np.intp]
    values: Floats
    standard_errors: Floats
    degrees_of_freedom: int
    everybody: float
    nobody: float
    evaluations: int
    client_names: tuple[str, ...] = ()

    @property
    def half_widths(self) -> Floats:
        """Halves of the 95 % confidence intervals (Student's t), shape (clients,); NaN where there is no error."""
        if self.degrees_of_freedom < 1:
            return np.full(len(self.values), np.nan)
        return self.standard_errors * t_quantile(self.degrees_of_freedom)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per client: ``method, client, value, standard_error, ci95`` (half of the interval).

        If clients have names, ``client_name`` follows ``client``.
        """
        import pandas as pd

        columns: dict[str, Any] = {"method": self.method, "client": self.clients, "value": self.values}
        frame = pd.DataFrame(columns | {"standard_error": self.standard_errors, "ci95": self.half_widths})
        return insert_names(frame, self.client_names, "client")


@checked_arguments
def combine(parts: Sequence[Contributions]) -> Contributions:
    """Return the mean of the contributions of several seeds, with the standard error over the seeds.

    Parameters
    ----------
    parts : sequence of Contributions
        By the same method, of the same clients. A single one is returned unchanged.

    Raises
    ------
    ConfigError
        There are none, or they are of several methods or of other clients.
    """
    for part in parts:
        check_instance("an item of parts", part, Contributions, "what a method of fedsim.contribution returns")
    if not parts or any(part.method != parts[0].method for part in parts):
        raise ConfigError("parts has no contributions, or those of several methods; allowed: those of one method")
    if any(not np.array_equal(part.clients, parts[0].clients) for part in parts):
        raise ConfigError("parts has contributions of different clients; allowed: one seed of the split for all parts")
    if len(parts) == 1:
        return parts[0]
    values = np.array([part.values for part in parts])
    return Contributions(
        parts[0].method,
        parts[0].clients,
        values.mean(axis=0),
        standard_error(values),
        len(parts) - 1,
        float(np.mean([part.everybody for part in parts])),
        float(np.mean([part.nobody for part in parts])),
        sum(part.evaluations for part in parts),
        parts[0].client_names,
    )


def standard_error(samples: Floats) -> Floats:
    """Return the standard error of the mean over the first axis; NaN for a single sample."""
    if len(samples) < 2:
        return np.full(samples.shape[1:], np.nan)
    error: Floats = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return error
