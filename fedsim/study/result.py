"""The result of an experiment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_path, check_real, shorten
from fedsim.clients.private import no_global_model
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import Model, flat_parameters
from fedsim.models.losses import predicted_labels
from fedsim.models.metrics import AnyMetric
from fedsim.study import scoring

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.experiment import Experiment


def history_columns(score: str, metrics: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of `Result.history` in order, for the score ``"accuracy"`` or ``"r2"`` and other metrics."""
    evaluation = "test_loss", f"test_{score}", "train_loss", "local_loss", f"local_{score}", "attack_success"
    drift = "client_drift", "gradient_diversity", "update_cosine", "weight_divergence"
    cost = "epsilon", "secure_bytes", "secure_seconds", "bytes_up", "bytes_down", "seconds"
    return ("round", *evaluation, *(f"test_{name}" for name in metrics), "clients", "failures", *drift, *cost)


def _empty() -> pd.DataFrame:
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

        - ``test_loss, test_accuracy``: of the global model on the test set; NaN if there is none, see
          `has_global_model`.
        - ``train_loss``: mean over the cohort's examples, measured before each update.
        - ``local_loss, local_accuracy``: mean over the examples of the clients that evaluated; NaN if none did.
        - ``attack_success``: share of the examples of a targeted attack that the global model labels as the attacker
          wants; NaN without one, or without a global model. See `fedsim.attacks.Attack.success_examples`.
        - ``test_macro_f1`` and so on: the metrics of `Experiment.metrics` that are numbers, of the global model on the
          test set.
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
        The final global model: ``W1, b1, W2, b2, ...``. Private parameters have their initial values.
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
        if they evaluate; a ``partition_id`` of -1 is the global model on the test set, if there is one.
    metrics : DataFrame
        The metrics of `Experiment.metrics`. One row per round, client, metric and class: ``round, partition_id, metric,
        class, predicted, value``, with ``class`` and ``predicted`` empty where a metric has no classes, as in `groups`.
        A confusion matrix has a row per true class ``class`` and predicted class ``predicted``.
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
    groups: pd.DataFrame = field(default_factory=_empty)
    metrics: pd.DataFrame = field(default_factory=_empty)

    def __repr__(self) -> str:
        score = f"test {self.score} {self.final_score:.4f}" if self.has_global_model else "no global model"
        return f"Result({self.experiment!r}: {score} after {self.rounds} rounds)"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.history.tail(1).to_html(index=False)}"

    @property
    def rounds(self) -> int:
        """The number of the last round."""
        return len(self.history) - 1

    @property
    def has_global_model(self) -> bool:
        """Whether there is a global model: not if clients have private parameters, as FedPer's, or several models."""
        return not bool(self.history["test_loss"].isna().all())  # a test loss that is not finite ends a run

    @property
    def test_scores(self) -> NDArray[np.float64]:
        """Test accuracy, or R squared for regression, by round from round 0; NaN if there is no global model."""
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
        return flat_parameters(self.model, self.weights)

    @checked_arguments
    def scores(self, x: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the final global model's scores, before any sigmoid or softmax, shape (examples, outputs).

        Parameters
        ----------
        x : ndarray, shape (examples, ...), optional
            Preprocessed as the dataset's; default its test set.

        Raises
        ------
        ConfigError
            There is no global model.
        """
        if not self.has_global_model:
            reason = no_global_model(self.experiment.client, self.model)
            raise ConfigError(
                f"there is no global model that predicts, because {reason}; Result.clients has the scores of the "
                "models with which clients predict"
            )
        examples = np.asarray(self.dataset.x_test if x is None else x)
        shape = self.dataset.x_test.shape[1:]
        fits = examples.ndim == len(shape) + 1 and (examples.shape[1:] == shape or self.experiment.model is not None)
        if examples.dtype.kind not in "biuf" or not fits:
            raise ConfigError(f"x is {shorten(x)}; allowed: an array of numbers, shape {('examples', *shape)}")
        return scoring.scores(self.model, self.flat_weights, examples)

    @checked_arguments
    def predict(self, x: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the final global model's predictions, shape (examples,): labels, or values for regression.

        Parameters
        ----------
        x : ndarray, shape (examples, ...), optional
            As for `scores`.
        """
        scores = self.scores(x)
        return scores[:, 0] if self.score == "r2" else predicted_labels(scores)

    @checked_arguments
    def measure(self, metrics: Sequence[AnyMetric] = ()) -> dict[str, Any]:
        """Return metrics of the final global model on the test set, by name.

        Parameters
        ----------
        metrics : sequence of str or callable, optional
            As for `Experiment.metrics`; default those of fedsim that are numbers.

        Returns
        -------
        dict of str to float or ndarray
            ``"recall"`` has shape (classes,), ``"confusion_matrix"`` (true classes, predicted classes).

        Raises
        ------
        ConfigError
            A metric does not fit the dataset or the model, or there is no global model.
        """
        return scoring.measure(self.scores(), self.dataset, self.model, metrics)

    def confusion_matrix(self) -> pd.DataFrame:
        """Return the number of test examples of each class (rows) that the final global model predicts as each class.

        Rows and columns have the names of the labels. Errors as for `measure`.
        """
        return scoring.confusion_matrix(self.scores(), self.dataset, self.model)

    def class_scores(self) -> pd.DataFrame:
        """Return recall and precision of each class on the test set, of the final global model.

        Returns
        -------
        DataFrame
            One row per class: ``class, test_examples, recall, precision``; NaN for a class without test examples, and
            for the precision of a class that is never predicted.

        Raises
        ------
        ConfigError
            The targets are real numbers, or there is no global model.
        """
        return scoring.class_scores(self.scores(), self.dataset)

    @checked_arguments
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

    @checked_arguments
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the result into a directory, as `Experiment.run` does: see `fedsim.study.result_files`.

        Parameters
        ----------
        directory : path
            Created if it does not exist. Earlier results are moved to a numbered folder beside it.

        Raises
        ------
        ConfigError
            The directory cannot be written, or another process is writing there, or it has an unfinished run.
        """
        from fedsim.study.directory import save_result

        save_result(self, directory)

    @classmethod
    @checked_arguments
    def load(
        cls, directory: str | os.PathLike[str], experiment: Experiment | None = None, modules: Sequence[str] = ()
    ) -> Result:
        """Return the result that `save` or a finished run has written, with the same bits.

        Parameters
        ----------
        directory : path
        experiment : Experiment, optional
            Needed if its dataset was given as arrays; by default it is read from the directory.
        modules : sequence of str
            Modules, besides those in the current folder, whose classes the configuration may name.

        Raises
        ------
        ConfigError
            The directory has no complete result, or a file is damaged.
        """
        from pathlib import Path

        from fedsim.study.result_files import read_fields

        check_path("directory", directory)
        return cls(**read_fields(Path(directory), experiment, modules))

    @checked_arguments
    def rounds_to(self, target: float) -> float:
        """Return the number of rounds until the test score reaches `target`, or NaN if it never does.

        As in the FedAvg paper, each round's score is the best so far, interpolated linearly between rounds.
        """
        check_real("target", target, high=1)
        best = np.maximum.accumulate(self.test_scores)
        above = best >= target
        if not above.any():
            return float("nan")
        k = int(above.argmax())
        if k == 0:
            return 0.0
        return float(k - 1 + (target - best[k - 1]) / (best[k] - best[k - 1]))
