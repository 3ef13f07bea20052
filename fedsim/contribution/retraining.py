"""Retraining without some of the clients, and the game of coalitions whose models are trained.

Nothing but the removal of clients changes: the initial weights, the shuffles of the others, the rounds in which they
are sampled and the kernel are the same (see `fedsim.splits.Without`), so that differences have little noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_integer, shorten, to_builtin_sequence
from fedsim.clients.private import no_global_model
from fedsim.contribution.coalitions import CoalitionGame, Members
from fedsim.contribution.contributions import Floats
from fedsim.engines.engine import Engine
from fedsim.errors import ConfigError
from fedsim.splits import Without
from fedsim.study.callbacks import Callback
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

#: Utilities: test accuracy, or R squared for regression; and minus the test loss.
UTILITIES = ("score", "loss")


@checked_arguments
def repeat(experiment: Experiment, seeds: int) -> list[Experiment]:
    """Return the experiment with several seeds and the same clients: the split has the first seed in all of them.

    The malicious clients of an attack are those of the first seed, too. With `Experiment.test_fraction`, each seed
    holds out other examples of a client.

    Parameters
    ----------
    experiment : Experiment
    seeds : int
        Number of seeds, ``experiment.seed`` and those that follow it.
    """
    check_integer("seeds", seeds, 1, 10_000)
    split = experiment.split
    if split.seed is None:
        split = replace(split, seed=experiment.seed)
    attack = experiment.attack
    if attack is not None:
        num_clients = len(experiment.federate(experiment.load_data()).partition)
        attack = replace(attack, clients=tuple(attack.malicious(num_clients, experiment.seed).tolist()))
    return [replace(experiment, split=split, attack=attack, seed=experiment.seed + k) for k in range(seeds)]


class Retraining(CoalitionGame):
    """The game in which a coalition's utility is that of the model that its clients train alone.

    A coalition without clients has the untrained model. Clients that have no examples do not play.

    Parameters
    ----------
    experiment : Experiment
        Its client strategy has a global model, whose utility is measured.
    utility : {"score", "loss"}
        Test accuracy, or R squared for regression, after the last round; or minus the test loss.
    workers, engine, callbacks
        As for `Experiment.run`; callbacks are called in each training.

    Raises
    ------
    ConfigError
        A value is not allowed.
    """

    def __init__(
        self,
        experiment: Experiment,
        utility: str = "score",
        *,
        workers: int | None = None,
        engine: str | Callable[..., Engine] = "in-process",
        callbacks: Sequence[Callback] = (),
    ) -> None:
        check_choice("utility", utility, UTILITIES)
        self.utility = utility
        self._run = {"workers": workers, "engine": engine, "callbacks": callbacks}
        self.experiment = fixed(experiment)
        super().__init__(clients_of(self.experiment), experiment.seed)
        self.client_names = names_of(self.experiment)
        self._untrained: float | None = None

    def evaluate(self, members: Members) -> Floats:
        """Train a model for each coalition that is not empty."""
        utilities = np.empty(len(members))
        for place in np.argsort(-members.sum(axis=1), kind="stable"):  # nobody comes last
            utilities[place] = self._train(members[place])
        return utilities

    def _train(self, members: NDArray[np.bool_]) -> float:
        if not members.any():
            if self._untrained is None:
                self._train(np.ones(len(members), dtype=bool))
            assert self._untrained is not None
            return self._untrained
        result = retrain(self.experiment, self.clients[~members], **self._run)
        self._untrained, trained = (utility_of(result, self.utility, row) for row in (0, -1))
        return trained


def utility_of(result: Result, utility: str, row: int = -1) -> float:
    """Return the utility of the global model after a round, by default the last; see `UTILITIES`."""
    return float(result.test_scores[row]) if utility == "score" else -float(result.history["test_loss"].iloc[row])


def retrain(experiment: Experiment, clients: Sequence[int] | NDArray[np.intp], **run: Any) -> Result:
    """Train the experiment's model without some of its clients.

    Parameters
    ----------
    experiment : Experiment
        See `fixed`.
    clients : sequence of int
        Partition ids of the clients to remove.
    **run
        As for `Experiment.run`.
    """
    if not len(clients):
        return experiment.run(**run)
    return replace(experiment, split=Without(experiment.split, clients=tuple(clients))).run(**run)


def fixed(experiment: Experiment) -> Experiment:
    """Return the experiment with its data loaded, and with the kernel chosen that trains all clients.

    Raises
    ------
    ConfigError
        The client strategy has no global model.
    """
    data = experiment.load_data()
    model = experiment.make_model(data)
    if reason := no_global_model(experiment.client, model):
        raise ConfigError(f"contributions are to the global model, and there is none, because {reason}")
    kernel = experiment.kernel_for(model, experiment.federate(data))
    return replace(experiment, dataset=data, kernel=kernel)


def clients_of(experiment: Experiment) -> NDArray[np.intp]:
    """Return the partition ids of the clients that have examples."""
    return np.flatnonzero(experiment.federate(experiment.load_data()).partition.sizes)


def names_of(experiment: Experiment) -> tuple[str, ...]:
    """Return the names of the clients by partition id; empty if clients have numbers only."""
    return experiment.federate(experiment.load_data()).client_names


def check_clients(experiment: Experiment, clients: Any) -> list[int]:
    """Return partition ids; ConfigError unless each is of a client that has examples, and occurs once."""
    known = clients_of(experiment)
    chosen = to_builtin_sequence(clients)
    if not isinstance(chosen, list | tuple) or not chosen or len(set(map(repr, chosen))) < len(chosen):
        raise ConfigError(f"clients is {shorten(clients)}; allowed: a list of at least one partition id, each once")
    for client in chosen:
        check_integer("clients", client, 0, int(known.max()))
        if client not in known:
            raise ConfigError(f"clients has {client}, which has no examples; allowed: {shorten(known.tolist())}")
    if len(known) == 1:
        raise ConfigError(f"clients has {chosen[0]}, the only client with examples; allowed: one of several clients")
    return list(chosen)
