"""The result of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_real, shorten
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import Model
from fedsim.models.losses import predicted_labels

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.experiment import Experiment


#: Number of examples that `Result.scores` passes through the model together.
SCORED_ROWS = 10_000


def history_columns(score: str) -> tuple[str, ...]:
    """Return the columns of `Result.history` in order, for the score ``"accuracy"`` or ``"r2"``."""
    evaluation = "test_loss", f"test_{score}", "train_loss", "local_loss", f"local_{score}", "attack_success"
    drift = "client_drift", "gradient_diversity", "update_cosine", "weight_divergence"
    cost = "epsilon", "secure_bytes", "secure_seconds", "bytes_up", "bytes_down", "seconds"
    return ("round", *evaluation, "clients", "failures", *drift, *cost)


def _no_groups() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame()


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The result of an experiment.

    Attributes
    ----------
    experiment : Experiment
    history : DataFrame
        One row per round; round 0 is the untrained model.

        - ``test_loss, test_accuracy``: of the global model on the test set.
        - ``train_loss``: mean over the cohort's examples, measured before each update.
        - ``local_loss, local_accuracy``: mean over the examples of the clients that evaluated; NaN if none did.
        - ``attack_success``: share of the examples of a targeted attack that the global model labels as the attacker
          wants; NaN without one. See `fedsim.attacks.Attack.success_examples`.
        - ``clients, failures``: numbers of aggregated and of excluded clients.
        - ``client_drift, gradient_diversity, update_cosine``: see `fedsim.rounds.statistics.Drift`.
        - ``weight_divergence``: from centralised training; NaN unless `Experiment.weight_divergence` is set.
        - ``epsilon``: privacy loss so far; NaN without differential privacy.
        - ``secure_bytes, secure_seconds``: of the exchange of keys and shares and of removing masks; NaN without secure
          aggregation. The bytes are part of those below.
        - ``bytes_up, bytes_down``: size of the serialised arrays of all clients.
        - ``seconds``: wall-clock time of the round.

        For regression, ``test_r2`` and ``local_r2`` replace the accuracies: ``1 - loss / variance of the test
        targets``.
    clients : DataFrame
        One row per client and evaluated round: ``round, partition_id, num_examples, loss, accuracy`` of the weights
        with which the client predicts, on its own examples; empty unless ``fraction_evaluate`` is positive.
    weights : dict of ndarray
        The final global model: ``W1, b1, W2, b2, ...``.
    kernel : {"numpy", "compiled"}
        The kernel that trained the clients.
    score : {"accuracy", "r2"}
        The measured score: accuracy, or R squared for regression.
    failures : DataFrame
        One row per client that was excluded from a round: ``round, partition_id, reason``.
    stop_reason : str
        Why a callback ended the run before its last round; empty otherwise.
    privacy : str
        Epsilon of the run, with its delta and noise multiplier; empty without differential privacy.
    groups : DataFrame
        Counts in groups of people, if `Experiment.sensitive` is set, for `fedsim.fairness.group_gaps`. One row per
        round, client and group: ``round, partition_id, group, num_examples, correct, true_positives, false_positives,
        false_negatives``. Clients count the predictions of the weights with which they predict, on their own examples,
        if they evaluate; a ``partition_id`` of -1 is the global model on the test set.
    """

    experiment: Experiment
    history: pd.DataFrame
    clients: pd.DataFrame
    weights: dict[str, NDArray[Any]]
    kernel: str
    score: str
    failures: pd.DataFrame
    stop_reason: str = ""
    privacy: str = ""
    groups: pd.DataFrame = field(default_factory=_no_groups)

    def __repr__(self) -> str:
        return f"Result({self.experiment!r}: test {self.score} {self.final_score:.4f} after {self.rounds} rounds)"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.history.tail(1).to_html(index=False)}"

    @property
    def rounds(self) -> int:
        """The number of the last round."""
        return len(self.history) - 1

    @property
    def test_scores(self) -> NDArray[np.float64]:
        """Test accuracy, or R squared for regression, by round from round 0."""
        scores: NDArray[np.float64] = self.history[f"test_{self.score}"].to_numpy(dtype=float)
        return scores

    @property
    def final_score(self) -> float:
        """Test accuracy, or R squared for regression, after the last round."""
        return float(self.test_scores[-1])

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last round.

        Raises
        ------
        ConfigError
            For regression; `final_score` is R squared there.
        """
        if self.score != "accuracy":
            raise ConfigError("final_accuracy is for labels, and the targets here are real numbers; use final_score")
        return self.final_score

    @cached_property
    def dataset(self) -> Dataset:
        """The experiment's dataset, before the split."""
        return self.experiment.load_data()

    @cached_property
    def model(self) -> Model:
        """The experiment's model, whose parameters are `flat_weights`."""
        return self.experiment.make_model(self.dataset)

    @property
    def flat_weights(self) -> NDArray[Any]:
        """The final global model as a flat row, shape (parameters,)."""
        return np.concatenate([array.ravel() for array in self.weights.values()])

    def scores(self, x: NDArray[Any] | None = None, model: Model | None = None) -> NDArray[Any]:
        """Return the final global model's scores, before any sigmoid or softmax, shape (examples, outputs).

        Parameters
        ----------
        x : ndarray, shape (examples, ...), optional
            Preprocessed as the dataset's; default its test set.
        model : Model, optional
            Default `model`.
        """
        model = model or self.model
        examples, weights = np.asarray(self.dataset.x_test if x is None else x), self.flat_weights[None]
        shape = self.dataset.x_test.shape[1:]
        fits = examples.ndim == len(shape) + 1 and (examples.shape[1:] == shape or self.experiment.model is not None)
        if examples.dtype.kind not in "biuf" or not fits:
            raise ConfigError(f"x is {shorten(x)}; allowed: an array of numbers, shape {('examples', *shape)}")
        parts = [
            examples[k : k + SCORED_ROWS].astype(model.dtype) for k in range(0, max(len(examples), 1), SCORED_ROWS)
        ]
        return np.concatenate([model.scores(weights, part[None])[0] for part in parts])

    def predict(self, x: NDArray[Any] | None = None, model: Model | None = None) -> NDArray[Any]:
        """Return the final global model's predictions, shape (examples,): labels, or values for regression.

        Parameters
        ----------
        x : ndarray, shape (examples, ...), optional
            As for `scores`.
        model : Model, optional
            Default `model`.
        """
        scores = self.scores(x, model)
        return scores[:, 0] if self.score == "r2" else predicted_labels(scores)

    def card(self, contributions: Any = None) -> str:
        """Return a model card in Markdown: data, training, evaluation, privacy, known limits; see `fedsim.study.card`.

        Parameters
        ----------
        contributions : DataFrame or object with a method to_frame, optional
            Values of the clients to show, such as what the functions of `fedsim.contribution` return.

        Raises
        ------
        ConfigError
            `contributions` is something else.
        """
        from fedsim.study.card import model_card

        return model_card(self, self.experiment.federate(self.dataset), self.model, contributions)

    def rounds_to(self, target: float) -> float:
        """Return the number of rounds until the test score reaches `target`, or NaN if it never does.

        As in the FedAvg paper, each round's score is the best so far, interpolated linearly between rounds.
        """
        check_real("target", target)
        best = np.maximum.accumulate(self.test_scores)
        above = best >= target
        if not above.any():
            return float("nan")
        k = int(above.argmax())
        if k == 0:
            return 0.0
        return float(k - 1 + (target - best[k - 1]) / (best[k] - best[k - 1]))
