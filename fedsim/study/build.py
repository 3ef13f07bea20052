"""The client runtime and the server strategy that an experiment describes."""

from __future__ import annotations

from functools import partial
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsim.arguments import check_methods
from fedsim.attacks.attackers import poison
from fedsim.checks import shorten
from fedsim.clients.server_hooks import ServerHooks, needs_server_hooks
from fedsim.data import Dataset
from fedsim.engines.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.privacy import CentralDP, LocalDP
from fedsim.servers.fedavg import FedAvg
from fedsim.servers.options import MIN_NODES, options_of
from fedsim.study.example_privacy import example_noise
from fedsim.study.experiment import Experiment
from fedsim.text import one_line, user_line


def build_runtime(experiment: Experiment, dataset: Dataset | None = None) -> ClientRuntime:
    """Load an experiment's data, unless they are given, split them and return the runtime that trains its clients.

    Raises
    ------
    DataError, ConfigError
        The dataset cannot be found, or does not fit the experiment's split, loss or kernel.
    """
    if experiment.attack and experiment.attack.start > experiment.rounds:
        name, start = type(experiment.attack).__name__, experiment.attack.start
        raise ConfigError(f"{name}'s start is {start}; allowed: 1 to {experiment.rounds}, the rounds of the experiment")
    dataset = dataset or experiment.load_data()
    federated = experiment.federate(dataset)
    if experiment.attack:
        federated = poison(experiment.attack, federated, experiment.seed)
    model = experiment.make_model(dataset)
    kernel = experiment.kernel_for(model, federated)
    return ClientRuntime(
        model,
        federated,
        experiment.client,
        experiment.seed,
        kernel,
        experiment.transforms,
        example_noise(experiment, federated),
        experiment.secure_aggregation,
        experiment.privacy.clip if isinstance(experiment.privacy, CentralDP) else None,
        experiment.attack,
        None if experiment.sensitive is None else (experiment.sensitive, experiment.positive),
        experiment.metrics,
        _sends_group_counts(experiment),
    )


def _sends_group_counts(experiment: Experiment) -> bool:
    """Return whether the server strategy needs counts in groups of people; ConfigError if it cannot have them."""
    make: Any = experiment.server
    cls = make.func if isinstance(make, partial) else make
    if not getattr(cls, "needs_group_counts", False):
        return False
    if experiment.sensitive is None:
        raise ConfigError(f"sensitive is None; allowed with the server {cls.__name__}: a column of groups of people")
    if experiment.privacy or any(isinstance(transform, LocalDP) for transform in experiment.transforms):
        raise ConfigError(
            f"the server {cls.__name__} receives counts in groups of people, which get no noise; allowed with "
            "differential privacy: another server"
        )
    return True


def make_strategy(
    experiment: Experiment, server_hooks: ServerHooks | None = None, num_clients: int | None = None
) -> Strategy:
    """Return a new server strategy, which calls the server hooks of the client strategy if it supports them.

    Parameters
    ----------
    experiment : Experiment
    server_hooks : ServerHooks, optional
    num_clients : int, optional
        Number of clients that there are; a strategy that waits for more is refused.

    Raises
    ------
    ConfigError
        The strategy cannot be made, or does not support the server hooks or groups that the client strategy needs.
    """
    make: Any = experiment.server or FedAvg  # an experiment stores a class or a partial, never an object
    cls = make.func if isinstance(make, partial) else make
    name, client = getattr(cls, "__name__", repr(cls)), type(experiment.client).__name__
    settings: dict[str, Any] = {
        "fraction_train": experiment.fraction_train,
        "fraction_evaluate": experiment.fraction_evaluate,
        "seed": experiment.seed,
        **dict.fromkeys(MIN_NODES, 1),
    }
    if isinstance(cls, type) and issubclass(cls, FedAvg):
        settings |= {"server_hooks": server_hooks, "min_clients": experiment.min_clients}
        if experiment.client.grouped:
            cls.check_groups(client)
    elif experiment.min_clients > 1:
        raise ConfigError(f"min_clients is {experiment.min_clients}; allowed with the server {name}: 1")
    elif server_hooks and needs_server_hooks(experiment.client):
        raise ConfigError(
            f"the server {name} does not call the server hooks of {client}; allowed: one of fedsim.servers"
        )
    own = make.keywords if isinstance(make, partial) else {}
    accepted = options_of(cls)
    settings = {k: v for k, v in settings.items() if k in accepted and k not in own}
    try:
        made: Strategy = make(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"server {name} cannot be made: {one_line(error)}{user_line(error)}") from None
    if not isinstance(made, Strategy):
        raise ConfigError(f"server {name} returned {shorten(made)}; allowed: a Flower Strategy")
    check_methods(made)
    for option in MIN_NODES:
        least = getattr(made, option, 0)
        if num_clients is not None and least > num_clients:
            raise ConfigError(f"{name}'s {option} is {least}; allowed: at most {num_clients}, the number of clients")
    return made
