"""Differential privacy in a run: what is refused before it, its privacy loss, and the budget that ends it."""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy

from fedsim.clients.server_hooks import needs_server_hooks
from fedsim.errors import ConfigError
from fedsim.privacy import LocalDP
from fedsim.privacy.accounting import PrivacyLoss, default_delta
from fedsim.servers import FedAvg
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment


def add_privacy(experiment: Experiment, strategy: Strategy, clients: int) -> None:
    """Give a server strategy the mechanism of an experiment with central differential privacy.

    Raises
    ------
    ConfigError
        The server does not take a mean, the client strategy sends arrays that get no noise, or rounds may be rejected.
    """
    if experiment.privacy is None:
        return
    server, client = type(strategy).__name__, type(experiment.client).__name__
    if not isinstance(strategy, FedAvg) or type(strategy).aggregator is not FedAvg.aggregator:
        raise ConfigError(
            f"privacy needs a mean of clipped updates, and the server {server} combines updates in another way; "
            "allowed: FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi"
        )
    if type(strategy).aggregate_train is not FedAvg.aggregate_train:
        raise ConfigError(
            f"privacy needs updates that nothing else reads, and the server {server} overrides aggregate_train(); "
            "allowed: a server that overrides step() only"
        )
    if needs_server_hooks(experiment.client):
        raise ConfigError(
            f"privacy protects the mean of the weights, and the client {client} has weights in the mean, or arrays "
            "besides the model, that get no noise; allowed: a client strategy without server hooks"
        )
    if strategy.min_clients > 1:
        raise ConfigError(
            f"min_clients is {strategy.min_clients}; allowed with privacy: 1, because whether a round is rejected "
            "would depend on the clients"
        )
    strategy.privacy = experiment.privacy.mechanism(
        clients, strategy.fraction_train, experiment.rounds, experiment.seed
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
