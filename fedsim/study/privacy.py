"""Differential privacy in a run: what is refused before it, its privacy loss, and the budget that ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from fedsim.clients.private import private_mask
from fedsim.clients.server_hooks import needs_server_hooks
from fedsim.errors import ConfigError
from fedsim.models import Model
from fedsim.privacy import CentralDP, Clip, ExampleDP, LocalDP
from fedsim.privacy.accounting import PrivacyLoss, default_delta
from fedsim.servers import TERM, AgnosticFL, FedAvg, FLTrust, QFedAvg
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment

#: Methods of a server strategy that sample the cohort and combine its updates.
MEAN_METHODS = ("aggregator", "aggregate_train", "configure_train", "_sample", "_aggregation", "_new_weights")
#: Server strategies whose weights in the mean depend on the clients' training losses.
LOSS_WEIGHTED = (AgnosticFL, QFedAvg, TERM, stock.QFedAvg)


def add_privacy(experiment: Experiment, strategy: Strategy, model: Model, clients: int) -> PrivacyLoss | None:
    """Give a server strategy the mechanism of an experiment with central differential privacy.

    Returns
    -------
    PrivacyLoss or None
        Of the run under central DP, or of a client under local DP; None without either, also for `ExampleDP`, of which
        `fedsim.study.example_privacy` keeps account.

    Raises
    ------
    ConfigError
        The server samples or combines updates in its own way or by training losses, the client strategy sends arrays
        that get no noise, or the number of rounds or of updates would depend on the clients in ways that are not
        accounted for.
    """
    local = next((transform for transform in experiment.transforms if isinstance(transform, LocalDP)), None)
    if experiment.privacy is None and local is None:
        return None
    _check_stopping(experiment)
    if isinstance(strategy, LOSS_WEIGHTED) and not isinstance(experiment.privacy, CentralDP):
        raise ConfigError(
            f"the server {type(strategy).__name__} weighs updates by the clients' training losses, which get no noise; "
            "allowed with privacy: another server"
        )
    if isinstance(strategy, FLTrust):
        raise ConfigError(
            "the server FLTrust trains on root examples, which get no noise; allowed with privacy: another server"
        )
    if isinstance(experiment.privacy, ExampleDP):
        return None
    client = type(experiment.client).__name__
    if needs_server_hooks(experiment.client):
        raise ConfigError(
            f"differential privacy of clients adds noise to the model's updates only, and the client {client} has "
            "weights of its own, arrays besides the model, or a server step of its own; allowed: a client strategy "
            "without server hooks, such as SGD or FedProx"
        )
    _check_transforms(experiment)
    if experiment.privacy is None:
        assert local is not None
        return local.loss(default_delta(clients))
    check_takes_mean("CentralDP", strategy)
    assert isinstance(strategy, FedAvg)
    for option in ("min_clients", "min_train_nodes"):
        if (value := getattr(strategy, option)) > 1:
            raise ConfigError(f"{option} is {value}; allowed with privacy: 1, because the cohort is accounted for")
    if not strategy.fraction_train:
        raise ConfigError("fraction_train is 0; allowed with privacy: more than 0")
    shared = ~private_mask(experiment.client, model)
    strategy.privacy = experiment.privacy.mechanism(
        clients, strategy.fraction_train, experiment.rounds, experiment.seed, shared
    )
    return strategy.privacy.loss


def check_takes_mean(field: str, strategy: Strategy) -> None:
    """Raise ConfigError unless a server strategy samples clients, and combines their updates, as FedAvg does."""
    server = type(strategy).__name__
    if not isinstance(strategy, FedAvg):
        raise ConfigError(f"{field} needs a server of fedsim.servers, and the server is Flower's {server}")
    changed = [name for name in MEAN_METHODS if getattr(type(strategy), name) is not getattr(FedAvg, name)]
    if changed:
        raise ConfigError(
            f"{field} needs a mean of updates, and the server {server} has its own {changed[0]}(); allowed: FedAvg, "
            "FedAvgM, FedAdam, FedAdagrad, FedYogi, or a server that overrides step() only"
        )


def _check_stopping(experiment: Experiment) -> None:
    """Raise ConfigError if the number of rounds depends on the clients' data."""
    stopping = experiment.early_stopping
    if stopping and not stopping.metric.startswith("test_"):
        raise ConfigError(
            f"early_stopping watches {stopping.metric}, which depends on the clients' data and gets no noise; allowed "
            "with privacy: a metric of the test set"
        )


def _check_transforms(experiment: Experiment) -> None:
    """Raise ConfigError if a transform before LocalDP would send values without noise."""
    transforms = list(experiment.transforms)
    local = [k for k, transform in enumerate(transforms) if transform.is_private]
    for transform in transforms[: local[-1]] if local else ():
        if not isinstance(transform, Clip):
            raise ConfigError(
                f"transforms has {transform} before LocalDP, which sends values without noise; "
                f"allowed: {type(transform).__name__} after LocalDP"
            )


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

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Compute how many rounds the budget allows."""
        self._rounds = self._loss.rounds_within(self._epsilon, experiment.rounds + 1)

    def round_finished(self, finished: FinishedRound) -> None:
        """Stop if the budget allows no other round."""
        if finished.number >= self._rounds:
            finished.stop(f"another round would exceed the privacy budget, epsilon {self._epsilon:g}")
