"""Differential privacy of examples: DP-SGD in each client, which clips examples' gradients and adds noise to their sum.

Abadi et al., "Deep learning with differential privacy", CCS 2016 (arXiv:1607.00133), algorithm 1; in the clients of
federated learning: Liu, Hu, Wu and Smith, "On privacy and personalization in cross-silo federated learning", NeurIPS
2022 (arXiv:2206.07902).

Nobody is trusted but the client itself: what it sends is computed from noisy gradients. The privacy loss of an example
is that of the steps of its client, which depends on the client's number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.checks import check_choice
from fedsim.clients.example_noise import ExampleNoise
from fedsim.errors import ConfigError
from fedsim.privacy.accounting import PrivacyLoss, smallest_noise
from fedsim.privacy.settings import Privacy
from fedsim.splits.partition import Indices


@dataclass(frozen=True)
class ExampleDP(Privacy):
    """Differential privacy of examples by DP-SGD.

    In each step, a client draws its batch anew from all of its examples, clips the gradient of each, adds Gaussian
    noise to their sum, and divides it by the expected size of the batch.

    Parameters
    ----------
    clip : float
        Clipping norm of an example's gradient over all trained parameters, greater than 0.
    noise_multiplier : float, optional
        Standard deviation of the noise on the sum of a batch's gradients, in clipping norms, at least 0. Default: what
        makes all rounds of the experiment together cost `epsilon` for a client that takes part in each.
    epsilon : float, optional
        Privacy budget, greater than 0: the run ends before a round that could exceed it for some client.
    delta : float, optional
        Default ``examples ** -1.1``, given the number of examples of all clients.
    sampling : {"poisson", "fixed"}
        Each example is in a batch with probability ``batch_size / examples``, independently of the others; or batches
        have `batch_size` examples, which the accountant can amplify less.
    accountant : {"rdp", "pld"}
        See `fedsim.privacy.accounting.PrivacyLoss`.
    system_noise : bool
        Draw the 64-bit keys of batches and noise from the operating system's generator, in each client's process, so
        that a run does not repeat. By default they follow from the seed: for simulation only.

    Raises
    ------
    ConfigError
        A value outside these, or neither noise_multiplier nor epsilon.
    """

    system_noise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ExampleDP's sampling", self.sampling, ("poisson", "fixed"))

    def noise(self, sizes: Indices, steps: Indices, batch_size: int | None, delta: float) -> ExampleNoise:
        """Return the noise of a run.

        Parameters
        ----------
        sizes, steps : ndarray of int, shape (clients,)
            Numbers of examples, and of steps in the whole run, of clients that take part in every round.
        batch_size : int or None
            None for the whole shard.
        delta : float

        Raises
        ------
        ConfigError
            dp-accounting is not installed, or no noise is enough for `epsilon`.
        """
        multiplier = self.noise_multiplier
        if multiplier is None:
            assert self.epsilon is not None

            def cost(noise_multiplier: float) -> float:
                losses = ExampleLosses(self, noise_multiplier, batch_size, delta)
                return losses.largest_epsilon(sizes, steps)

            multiplier = smallest_noise(cost, self.epsilon, f"{int(steps.max())} steps", delta, self.accountant)
        return ExampleNoise(self.clip, multiplier, self.sampling, self.system_noise)


class ExampleLosses:
    """The privacy losses of clients by their numbers of examples.

    Parameters
    ----------
    settings : ExampleDP
    noise_multiplier : float
    batch_size : int or None
    delta : float
    """

    def __init__(self, settings: ExampleDP, noise_multiplier: float, batch_size: int | None, delta: float) -> None:
        self.batch_size, self._settings = batch_size, settings
        self._noise_multiplier, self._delta = noise_multiplier, delta
        self._losses: dict[int, PrivacyLoss] = {}
        self.of(1)  # checks the settings

    def of(self, size: int) -> PrivacyLoss:
        """Return the privacy loss of the steps of a client with so many examples."""
        if size not in self._losses:
            batch, how = min(self.batch_size or size, size), (self._settings.sampling, self._settings.accountant)
            self._losses[size] = PrivacyLoss(self._noise_multiplier, size, batch, self._delta, *how)
        return self._losses[size]

    def largest_epsilon(self, sizes: Indices, steps: Indices) -> float:
        """Return the largest epsilon of clients, given their numbers of examples and of steps.

        Epsilon rises with the number of steps, and falls with the number of examples.
        """
        largest, most, last = 0.0, 0, int(steps.max(initial=0))
        for size in np.unique(sizes[steps > 0]):
            own = int(steps[sizes == size].max())
            if own <= most:
                continue  # a client with fewer examples has taken as many steps
            loss, most = self.of(int(size)), own
            if loss.epsilon(last) <= largest:
                break  # nor can a client with more examples exceed it
            largest = max(largest, loss.epsilon(own))
        return largest


class ExampleAccountant:
    """The privacy loss of a run by example: the largest of all clients, from the steps that they have taken.

    Parameters
    ----------
    losses : ExampleLosses
    sizes : mapping of int to ndarray of int, shape (clients,)
        The clients' numbers of examples in each window of the data; an example is in one window.
    """

    def __init__(self, losses: ExampleLosses, sizes: Mapping[int, Indices]) -> None:
        self.losses, self._sizes = losses, dict(sizes)
        self.steps = {window: np.zeros_like(own) for window, own in sizes.items()}

    def record(self, window: int, clients: Indices, steps: Indices, batch_size: int | None) -> None:
        """Add the steps of clients in a round."""
        if batch_size != self.losses.batch_size:
            raise ConfigError(
                f"the server sends batch-size = {batch_size}; allowed with ExampleDP: the client's "
                f"{self.losses.batch_size}, which is accounted for"
            )
        np.add.at(self.steps[window], clients, steps)

    def epsilon(self, more: Callable[[Indices], Indices] | None = None, window: int = 0) -> float:
        """Return epsilon, if given after more steps of all clients in a window, a function of their sizes."""
        found = []
        for number, steps in self.steps.items():
            sizes = self._sizes[number]
            if more and number == window:
                steps = np.where(sizes > 0, steps + more(sizes), 0)
            found.append(self.losses.largest_epsilon(sizes, steps))
        return max(found)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps for a checkpoint."""
        return {str(window): steps for window, steps in self.steps.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the steps; raise ValueError if they do not fit."""
        for window, steps in self.steps.items():
            loaded = state[str(window)]
            if loaded.shape != steps.shape or loaded.dtype.kind != "i" or (loaded < 0).any():
                raise ValueError("its steps are not those of the clients")
            self.steps[window] = loaded.astype(steps.dtype)
