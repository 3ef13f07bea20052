"""Differential privacy in a run: what is refused before it, its privacy loss, and the budget that ends it."""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy

from fedsim.clients.server_hooks import needs_server_hooks
from fedsim.errors import ConfigError
from fedsim.privacy import Clip, LocalDP
from fedsim.privacy.accounting import PrivacyLoss, default_delta
from fedsim.servers import FedAvg
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment

#: Methods of a server strategy that determine who is sampled and what is done with the updates.
PRIVATE_STEPS = ("aggregator", "aggregate_train", "configure_train", "_sample", "_aggregation", "_new_weights")


def add_privacy(experiment: Experiment, strategy: Strategy, clients: int) -> None:
    """Give a server strategy the mechanism of an experiment with central differential privacy.

    Raises
    ------
    ConfigError
        The server samples or combines updates in its own way, the client strategy sends arrays that get no noise, or
        the number of rounds or of updates would depend on the clients in ways that are not accounted for.
    """
    if experiment.privacy is None and not any(isinstance(t, LocalDP) for t in experiment.transforms):
        return
    client = type(experiment.client).__name__
    if needs_server_hooks(experiment.client):
        raise ConfigError(
            f"privacy protects the weights, and the client {client} has weights in the mean, or arrays besides the "
            "model, that get no noise; allowed: a client strategy without server hooks"
        )
    _check_transforms(experiment)
    stopping = experiment.early_stopping
    if stopping and not stopping.metric.startswith("test_"):
        raise ConfigError(
            f"early_stopping watches {stopping.metric}, which depends on the clients' data and gets no noise; allowed "
            "with privacy: a metric of the test set"
        )
    if experiment.privacy is None:
        return
    server = type(strategy).__name__
    if not isinstance(strategy, FedAvg):
        raise ConfigError(f"privacy needs a server of fedsim.servers, and the server is Flower's {server}")
    changed = [name for name in PRIVATE_STEPS if getattr(type(strategy), name) is not getattr(FedAvg, name)]
    if changed:
        raise ConfigError(
            f"privacy needs a mean of clipped updates, and the server {server} has its own {changed[0]}(); allowed: "
            "FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi, or a server that overrides step() only"
        )
    for option in ("min_clients", "min_train_nodes"):
        if (value := getattr(strategy, option)) > 1:
            raise ConfigError(f"{option} is {value}; allowed with privacy: 1, because the cohort is accounted for")
    if not strategy.fraction_train:
        raise ConfigError("fraction_train is 0; allowed with privacy: more than 0")
    strategy.privacy = experiment.privacy.mechanism(
        clients, strategy.fraction_train, experiment.rounds, experiment.seed
    )


def _check_transforms(experiment: Experiment) -> None:
    """Raise ConfigError if a transform before LocalDP would send values without noise."""
    transforms = list(experiment.transforms)
    local = [k for k, transform in enumerate(transforms) if isinstance(transform, LocalDP)]
    for transform in transforms[: local[-1]] if local else ():
        if not isinstance(transform, Clip):
            raise ConfigError(
                f"transforms has {transform} before LocalDP, which sends what it knows of the values without noise; "
                f"allowed: {type(transform).__name__} after LocalDP"
            )


def privacy_loss(experiment: Experiment, strategy: Strategy, clients: int) -> PrivacyLoss | None:
    """Return the privacy loss of a run: of central DP, or of a client under local DP; None without either."""
    if isinstance(strategy, FedAvg) and strategy.privacy:
        return strategy.privacy.loss
    local = next((t for t in experiment.transforms if isinstance(t, LocalDP)), None)
    return local.loss(default_delta(clients)) if local else None


class PrivacyBudget(Callback):
    """Ends a run before the round that would exceed its privacy budget.

    Parameters
    ----------
    loss : PrivacyLoss
    epsilon : float
        The budget.
    """

    def __init__(self, loss: PrivacyLoss, epsilon: float) -> None:
        self._loss, self._epsilon = loss, epsilon

    def round_finished(self, finished: FinishedRound) -> None:
        """Stop if another round costs too much."""
        if self._loss.epsilon(finished.number + 1) > self._epsilon:
            finished.stop(f"another round would exceed the privacy budget, epsilon {self._epsilon:g}")
