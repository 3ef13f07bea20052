"""GTG-Shapley: contributions from the updates of a single run, without retraining.

Liu, Chen, Yu, Liu and Cui, "GTG-Shapley: efficient and accurate participant contribution evaluation in federated
learning", ACM TIST 13(4), 2022 (arXiv:2109.02053). In each round the model of a coalition is reconstructed as the mean
of its clients' updates, and the round's Shapley values are those of its utility on the test set. Contributions are the
sums over the rounds. A round that hardly changes the utility is skipped (between-round truncation), and so is the rest
of a permutation whose utility has nearly reached that of the whole cohort (within-round truncation). Permutations are
guided: each client of the cohort comes first equally often. Unlike in the authors' code, values are not rescaled, and
the number of permutations is fixed, so that standard errors can be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_integer, check_real
from fedsim.contribution.coalitions import CoalitionGame, Members, marginal_contributions
from fedsim.contribution.contributions import Contributions, Floats, standard_error
from fedsim.contribution.retraining import UTILITIES, clients_of, fixed, names_of
from fedsim.data import Dataset
from fedsim.engines.engine import Engine
from fedsim.errors import ConfigError
from fedsim.models import Model, flat_parameters
from fedsim.models.losses import score
from fedsim.streams import Purpose, generator
from fedsim.study.callbacks import Callback, ClientUpdates, FinishedRound
from fedsim.study.experiment import Experiment

Array = NDArray[Any]

#: Scores that are computed at a time: coalitions x examples x outputs of the widest layer.
SCORES = 2**22
#: Largest distance of the new global model from the mean of the updates: shares of the change, and of the weights.
MEAN_TOLERANCE = 1e-4, 1e-6


class ReconstructedRound(CoalitionGame):
    """The game of a round: a coalition's model is the mean of its clients' weights, that of nobody the old model.

    Parameters
    ----------
    model : Model
    data : Dataset
        Coalitions are evaluated on its test set.
    weights : ndarray, shape (parameters,)
        The global model before the round.
    updates : ClientUpdates
    utility : {"score", "loss"}
    """

    def __init__(self, model: Model, data: Dataset, weights: Array, updates: ClientUpdates, utility: str) -> None:
        super().__init__(updates.partition_ids)
        self._model, self._utility, self._before = model, utility, weights
        self._rows = updates.weights.astype(np.float64)
        self._examples = updates.num_examples.astype(np.float64)
        self._x = data.x_test[None].astype(model.dtype, copy=False)
        self._y = data.y_test.astype(model.dtype) if data.regression else data.y_test
        self._variance = data.test_variance

    def mean(self, members: Members) -> Array:
        """Return the models of coalitions, shape (coalitions, parameters)."""
        shares = members * self._examples
        total = shares.sum(axis=1, keepdims=True)
        made = (shares / np.maximum(total, 1)) @ self._rows
        return np.where(total > 0, made, self._before).astype(self._model.dtype)

    def evaluate(self, members: Members) -> Floats:
        """Evaluate the reconstructed models on the test set."""
        count = len(self._y)
        widest = max([self._model.outputs, *(shape[-1] for _, shape in self._model.layout.values())])
        step = max(1, SCORES // (count * widest))
        utilities = np.empty(len(members))
        for start in range(0, len(members), step):
            part = slice(start, start + step)
            models = self.mean(members[part])
            labels = np.broadcast_to(self._y, (len(models), count))
            loss, correct = self._model.evaluate(models, self._x, labels)
            loss, accuracy = loss / count, correct / count
            utilities[part] = -loss if self._utility == "loss" else score(loss, accuracy, self._variance)
        return utilities


class GTGShapley(Callback):
    """Estimates the contributions of clients from the updates of a run, which it observes as a callback.

    Parameters
    ----------
    utility : {"score", "loss"}
        As for `Retraining`.
    cycles : int
        Each client of the cohort comes first in so many permutations of a round, at least 2.
    tolerance : float
        Within-round truncation, at least 0: the rest of a permutation contributes 0 once the utility is closer than
        this to that of the whole cohort.
    round_tolerance : float
        Between-round truncation, at least 0: a round that changes the utility by at most this contributes 0.

    Raises
    ------
    ConfigError
        A value is not allowed. During the run: the new global model is not the mean of the updates, because of the
        server strategy, of the client strategy's own weights, or of noise.
    """

    reads_updates = True

    def __init__(
        self, utility: str = "score", *, cycles: int = 20, tolerance: float = 0.001, round_tolerance: float = 0.001
    ) -> None:
        check_choice("utility", utility, UTILITIES)
        self.utility = utility
        self.cycles = check_integer("cycles", cycles, 2, 10_000)
        self.tolerance = check_real("tolerance", tolerance, 0)
        self.round_tolerance = check_real("round_tolerance", round_tolerance, 0)
        self._extremes: list[float] = []

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Prepare for the first round; refuse a resumed run, whose earlier updates are not known."""
        if history:
            raise ConfigError(
                "GTGShapley observes a resumed run, whose earlier updates are not known; allowed: a run from its start"
            )
        self._experiment = fixed(experiment)
        self._data = self._experiment.load_data()
        self._model = self._experiment.make_model(self._data)
        self._clients = clients_of(self._experiment)
        self._values, self._variances = np.zeros(len(self._clients)), np.zeros(len(self._clients))
        self._evaluations = 0
        self._extremes = []
        self._weights: Array = np.empty(0)

    def round_finished(self, finished: FinishedRound) -> None:
        """Add the contributions of a round."""
        weights = flat_parameters(self._model, finished.weights)
        name = "r2" if self._data.regression else "accuracy"
        utility = finished.metrics[f"test_{name}"] if self.utility == "score" else -finished.metrics["test_loss"]
        if finished.number and len(finished.updates.partition_ids):
            game = ReconstructedRound(self._model, self._data, self._weights, finished.updates, self.utility)
            self._check_mean(game, weights, finished.number)
            if abs(utility - self._extremes[-1]) > self.round_tolerance:
                self._add(game, finished.number)
        self._weights = weights
        self._extremes = [*self._extremes[:1], utility]

    def _add(self, game: ReconstructedRound, number: int) -> None:
        count = len(game.clients)
        rng = generator(self._experiment.seed, Purpose.CONTRIBUTION, number)
        orders = rng.permuted(np.tile(np.arange(count), (self.cycles * count, 1)), axis=1)
        first = np.tile(np.arange(count), self.cycles)
        rows = np.arange(len(orders))
        orders[rows, (orders == first[:, None]).argmax(axis=1)] = orders[:, 0]
        orders[:, 0] = first
        marginal = marginal_contributions(game, orders, self.tolerance).reshape(self.cycles, count, count).mean(axis=1)
        places = np.searchsorted(self._clients, game.clients)
        self._values[places] += marginal.mean(axis=0)
        self._variances[places] += standard_error(marginal) ** 2
        self._evaluations += len(game.requested)

    def _check_mean(self, game: ReconstructedRound, weights: Array, number: int) -> None:
        """Raise ConfigError unless the new global model is the mean of the updates."""
        made = game.mean(np.ones((1, len(game.clients)), dtype=bool))[0]
        of_change, of_weights = MEAN_TOLERANCE
        allowed = of_change * np.linalg.norm(weights - self._weights) + of_weights * np.linalg.norm(weights)
        if not np.linalg.norm(made - weights) <= allowed:
            server, client = self._experiment.server, type(self._experiment.client).__name__
            name = getattr(server, "__name__", None) or getattr(getattr(server, "func", None), "__name__", "FedAvg")
            raise ConfigError(
                f"GTGShapley makes models of coalitions as means of their updates, and in round {number} the server "
                f"{name} with the client {client} has made another model; allowed: FedAvg without noise, or "
                "monte_carlo_shapley, which trains the coalitions"
            )

    def contributions(self) -> Contributions:
        """Return the contributions in the rounds so far; ConfigError if there was no run."""
        if not self._extremes:
            raise ConfigError("GTGShapley has observed no run; allowed: give it to Experiment.run as a callback first")
        errors, nobody, everybody = np.sqrt(self._variances), self._extremes[0], self._extremes[-1]
        degrees, count = self.cycles - 1, self._evaluations
        values, names = self._values.copy(), names_of(self._experiment)
        return Contributions("GTG-Shapley", self._clients, values, errors, degrees, everybody, nobody, count, names)


@checked_arguments
def gtg_shapley(
    experiment: Experiment,
    utility: str = "score",
    *,
    cycles: int = 20,
    tolerance: float = 0.001,
    round_tolerance: float = 0.001,
    workers: int | None = None,
    engine: str | Callable[..., Engine] = "in-process",
    callbacks: Sequence[Callback] = (),
) -> Contributions:
    """Run an experiment once and estimate the contributions of its clients from their updates.

    Parameters
    ----------
    experiment : Experiment
    utility, cycles, tolerance, round_tolerance
        As for `GTGShapley`.
    workers, engine, callbacks
        As for `Experiment.run`.
    """
    estimate = GTGShapley(utility, cycles=cycles, tolerance=tolerance, round_tolerance=round_tolerance)
    experiment.run(workers=workers, engine=engine, callbacks=[*callbacks, estimate])
    return estimate.contributions()
