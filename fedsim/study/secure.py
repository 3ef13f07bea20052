"""What secure aggregation cannot be combined with, refused before the run."""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy

from fedsim.clients.private import private_mask
from fedsim.clients.sgd import overrides
from fedsim.errors import ConfigError
from fedsim.models import Model
from fedsim.privacy import CentralDP
from fedsim.privacy.accounting import default_delta
from fedsim.secure.quantise import scale_of
from fedsim.secure.settings import MIN_CLIENTS, SecureAggregation
from fedsim.servers import FedAvg
from fedsim.study.experiment import Experiment
from fedsim.study.privacy import check_takes_mean
from fedsim.updates.transform import UpdateTransform


def check_secure_aggregation(experiment: Experiment, strategy: Strategy, model: Model, clients: int) -> None:
    """Raise ConfigError if the server would need more than the sum of a round's updates.

    Parameters
    ----------
    experiment : Experiment
    strategy : Strategy
        The server strategy.
    model : Model
    clients : int
        Registered.
    """
    secure = experiment.secure_aggregation
    if secure is None:
        return
    check_takes_mean("secure_aggregation", strategy)
    assert isinstance(strategy, FedAvg)
    attack, client = experiment.attack, experiment.client
    if attack and attack.sees != "own":
        raise ConfigError(
            f"attack is {attack}, which needs the updates of several clients, and secure_aggregation shows the server, "
            "where such attacks are computed, their sum only; allowed: an attack for which a client needs its own "
            "update only, such as SignFlip() or ModelReplacement(boost=10.0)"
        )
    if client.grouped or overrides(client, "weigh"):
        raise ConfigError(
            f"secure_aggregation weighs updates by examples, and the client {type(client).__name__} has its own "
            "weigh(); allowed: a client strategy without weigh()"
        )
    for transform in experiment.transforms:
        if type(transform).on_server is not UpdateTransform.on_server:
            raise ConfigError(
                f"transforms has {transform}, which the server decodes one by one, and secure_aggregation shows it a "
                "sum; allowed: transforms that change values on the client only, such as Clip and LocalDP"
            )
    if isinstance(experiment.privacy, CentralDP) and experiment.privacy.target_quantile is not None:
        raise ConfigError(
            "privacy has target_quantile, for which the server counts updates by their norms; allowed with "
            "secure_aggregation: a fixed clip"
        )
    cohort = strategy.cohort_size(clients)
    if cohort < MIN_CLIENTS:
        raise ConfigError(
            f"secure_aggregation needs {MIN_CLIENTS} clients in a round, and {cohort} of {clients} are sampled; "
            "allowed: a larger fraction_train, or more clients"
        )
    if isinstance(experiment.privacy, CentralDP):
        _check_cohorts(experiment.privacy, secure, strategy.fraction_train, clients, experiment.rounds)
        largest = clients if experiment.privacy.sampling == "poisson" else cohort
        coordinates = int((~private_mask(client, model)).sum())
        # Clients clip further by the norm that rounding can add, which must leave something.
        most = float(f"{experiment.privacy.clip / 2 * scale_of(1.0, largest) / max(coordinates, 1) ** 0.5:.3g}")
        if secure.max_abs > most:
            raise ConfigError(
                f"secure_aggregation's max_abs is {secure.max_abs:g}, with which rounding changes an update by more "
                f"than half of privacy's clip of {experiment.privacy.clip:g}; allowed: at most {most:g}"
            )


def _check_cohorts(privacy: CentralDP, secure: SecureAggregation, fraction: float, clients: int, rounds: int) -> None:
    """Raise ConfigError if rounds could release noise only, which one client more or less could decide."""
    if secure.dropout:
        raise ConfigError(
            f"secure_aggregation's dropout is {secure.dropout:g}; allowed with CentralDP: 0, because rounds that are "
            "rejected are not accounted for"
        )
    if privacy.sampling != "poisson":
        return
    from scipy.special import bdtr

    delta = default_delta(clients) if privacy.delta is None else privacy.delta
    too_few = rounds * float(bdtr(MIN_CLIENTS, clients, fraction))
    if too_few > delta / 10:
        raise ConfigError(
            f"CentralDP samples fewer than {MIN_CLIENTS} clients in a round with a probability of {too_few:.2g}, which "
            "is not accounted for; allowed with secure_aggregation: sampling='fixed', more clients, or a larger "
            "fraction_train"
        )
