"""Differential privacy of examples in a run: its noise, what is refused before it, and its accountant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fedsim.clients import SGD
from fedsim.clients.example_noise import ExampleNoise, accounted_steps
from fedsim.clients.local_round import new_client_state, personalise, personalises, run_local_round
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.sgd import overrides
from fedsim.clients.task import Task
from fedsim.engines.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.models import Array
from fedsim.privacy import ExampleDP, LocalDP
from fedsim.privacy.accounting import default_delta
from fedsim.privacy.examples import ExampleAccountant, ExampleLosses
from fedsim.splits import FederatedDataset, Partition
from fedsim.splits.partition import Indices
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment


def example_noise(experiment: Experiment, federated: FederatedDataset) -> ExampleNoise | None:
    """Return the noise of an experiment with `ExampleDP`, for other experiments None.

    Raises
    ------
    ConfigError
        What is sent would not be private, or not accounted for.
    """
    if not isinstance(experiment.privacy, ExampleDP):
        return None
    client = _checked_client(experiment)
    indices = federated.partition.indices
    if len(np.unique(indices)) < len(indices):
        raise ConfigError(
            f"privacy is by example, and {experiment.split} gives an example to several clients; allowed: a split that "
            "gives each example to one client"
        )
    windows = np.array([federated.window(number) for number in range(1, experiment.rounds + 1)])
    sizes = _sizes_by_window(experiment, federated)
    steps = [int((windows == window).sum()) * accounted_steps(client, own) for window, own in sizes.items()]
    delta = _delta(experiment.privacy, federated)
    return experiment.privacy.noise(np.concatenate([*sizes.values()]), np.concatenate(steps), client.batch_size, delta)


def example_accountant(experiment: Experiment, runtime: ClientRuntime) -> ExampleAccountant | None:
    """Return the accountant of an experiment with `ExampleDP`, for other experiments None."""
    noise, settings = runtime.example_noise, experiment.privacy
    if noise is None or not isinstance(settings, ExampleDP):
        return None
    batch_size = _checked_client(experiment).batch_size
    delta = _delta(settings, runtime.federated)
    losses = ExampleLosses(settings, noise.noise_multiplier, batch_size, delta)
    return ExampleAccountant(losses, _sizes_by_window(experiment, runtime.federated))


def record_steps(
    accountant: ExampleAccountant, runtime: ClientRuntime, trained: Iterable[tuple[Task, Indices]]
) -> None:
    """Add the steps of the clients that trained in a round."""
    for task, clients in trained:
        strategy = task.strategy
        assert isinstance(strategy, SGD)
        steps = accounted_steps(strategy, task.partition.sizes[clients])
        accountant.record(runtime.federated.window(task.round), clients, steps, strategy.batch_size)


def _sizes_by_window(experiment: Experiment, federated: FederatedDataset) -> dict[int, Indices]:
    last = federated.window(experiment.rounds)
    rounds = (1 + window * federated.rounds_per_window for window in range(last))
    return {federated.window(number): federated.at(number).sizes for number in rounds}


def _delta(settings: ExampleDP, federated: FederatedDataset) -> float:
    return default_delta(len(federated.partition.indices)) if settings.delta is None else settings.delta


def _checked_client(experiment: Experiment) -> SGD:
    """Return the client strategy; raise ConfigError unless its steps are those of DP-SGD, and are accounted for."""
    client, name = experiment.client, type(experiment.client).__name__
    if not isinstance(client, SGD):
        raise ConfigError(f"privacy is by example, and the client {name} does not extend SGD; allowed: one that does")
    reasons = {
        "gradient": "which is not clipped by example",
        "local_steps": "which the accountant does not know",
        "steps_per_epoch": "which the accountant does not know",
    }
    for hook, reason in reasons.items():
        if overrides(client, hook):
            raise ConfigError(
                f"privacy is by example, and the client {name} has its own {hook}(), {reason}; allowed: a strategy "
                "without, such as SGD or FedProx"
            )
    if any(isinstance(transform, LocalDP) for transform in experiment.transforms):
        raise ConfigError("privacy is ExampleDP and transforms has LocalDP; allowed: one of them")
    return client


def check_uses_of_examples(runtime: ClientRuntime, weights: Array) -> None:
    """Raise ConfigError if a strategy uses examples other than by one private fit, by a round on a single example.

    Parameters
    ----------
    runtime : ClientRuntime
    weights : ndarray, shape (parameters,)
        The initial weights.
    """
    strategy, partition = runtime.client, runtime.partition
    assert isinstance(strategy, SGD)
    hooks = ServerHooks(strategy, runtime.model, 1, runtime.seed)
    down = hooks.down(weights) if strategy.broadcast else {}
    task = replace(
        runtime.task(weights, 1, replace(strategy, epochs=1, steps=None), down),
        partition=Partition(partition.indices[:1], np.array([0, 1])),
        kernel="numpy",
    )
    client = np.array([0])
    with np.errstate(all="ignore"):
        try:
            update = run_local_round(task, client, new_client_state(task, client))
            if personalises(strategy, runtime.model):
                personalise(task, client, dict(update.state))
        except ConfigError:
            raise
        except Exception:  # a mistake in a strategy is reported with the client and the round
            return


class ExampleBudget(Callback):
    """Ends a run before a round that could exceed its privacy budget for some client.

    Parameters
    ----------
    accountant : ExampleAccountant
    runtime : ClientRuntime
    epsilon : float
        The budget.
    """

    def __init__(self, accountant: ExampleAccountant, runtime: ClientRuntime, epsilon: float) -> None:
        self._accountant, self._runtime, self._epsilon = accountant, runtime, epsilon

    def round_finished(self, finished: FinishedRound) -> None:
        """Stop if another round could exceed the budget."""
        strategy, window = self._runtime.client, self._runtime.federated.window(finished.number + 1)
        assert isinstance(strategy, SGD)
        if self._accountant.epsilon(lambda sizes: accounted_steps(strategy, sizes), window) > self._epsilon:
            finished.stop(f"another round could exceed the privacy budget, epsilon {self._epsilon:g}")
