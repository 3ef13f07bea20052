"""Membership inference: which examples a model was trained on, from its confidence in their labels.

A member is an example of any client's shard. The threshold attack takes examples with a small loss for members: Yeom,
Giacomelli, Fredrikson and Jha, "Privacy risk in machine learning: analyzing the connection to overfitting", CSF 2018
(arXiv:1709.01604), section 3.2.

LiRA compares the model with shadow models, which the attacker trains with and without each example: Carlini, Chien,
Nasr, Song, Terzis and Tramer, "Membership inference attacks from first principles", IEEE S&P 2022 (arXiv:2112.03570),
algorithm 1 (online) and its offline variant. The shadow models are the clients of one cohort, each with a random half
of the pool as its shard, and one call of a kernel trains them all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, shorten
from fedsim.clients import SGD
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.leakage.shadow_models import ShadowModels, confidence, train_shadow_models
from fedsim.models import Model
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]
Floats = NDArray[np.float64]

#: Attacks: by a threshold on the loss, and LiRA with and without shadow models trained on the example.
ATTACKS = ("threshold", "lira", "lira offline")
#: Smallest standard deviation of the confidences of shadow models.
LEAST_DEVIATION = 1e-3


@dataclass(frozen=True, eq=False)
class MembershipInference:
    """The scores that an attack gives to examples, and which of them are members.

    Attributes
    ----------
    attack : str
    scores : ndarray of float64, shape (examples,)
        Larger for examples that the attack takes for members.
    members : ndarray of bool, shape (examples,)
    """

    attack: str
    scores: Floats
    members: NDArray[np.bool_]

    def roc(self) -> tuple[Floats, Floats]:
        """Return the false and true positive rates of all thresholds, from none to all examples taken for members."""
        order = np.argsort(-self.scores, kind="stable")
        last = np.append(np.diff(self.scores[order]) != 0, True)  # a threshold takes all examples with the same score
        hits = self.members[order]
        rates = [np.append(0.0, np.cumsum(kind)[last] / max(kind.sum(), 1)) for kind in (~hits, hits)]
        return rates[0], rates[1]

    @property
    def auc(self) -> float:
        """Area under the ROC curve: the probability that a member has a larger score than a non-member."""
        false, true = self.roc()
        return float(np.diff(false) @ (true[1:] + true[:-1]) / 2)

    def tpr_at(self, fpr: float) -> float:
        """Return the share of members found by the threshold with at most this share of false positives."""
        false, true = self.roc()
        return float(true[false <= fpr].max())

    def to_frame(self) -> pd.DataFrame:
        """Return a row per example: ``member, score``."""
        import pandas as pd

        return pd.DataFrame({"member": self.members, "score": self.scores})

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot the ROC curve on logarithmic axes, and write the picture to `path`."""
        from fedsim.report.leaks import plot_roc

        plot_roc([(f"{self.attack}: AUC {self.auc:.2f}", *self.roc())], path, "Membership inference")


@checked_arguments
def infer_membership(
    model: Model,
    weights: Array | Mapping[str, Array],
    x: Array,
    y: Array,
    members: NDArray[np.bool_],
    *,
    attack: str = "threshold",
    shadows: ShadowModels | None = None,
) -> MembershipInference:
    """Score examples by how likely a model was trained on them.

    Parameters
    ----------
    model : Model
    weights : ndarray, shape (parameters,), or mapping of str to ndarray
        Of the attacked model, such as `Result.weights`.
    x : ndarray, shape (examples, features)
    y : ndarray of int, shape (examples,)
    members : ndarray of bool, shape (examples,)
        The truth, to measure the attack.
    attack : {"threshold", "lira", "lira offline"}
    shadows : ShadowModels, optional
        Of the same examples, for LiRA.
    """
    check_choice("attack", attack, ATTACKS)
    members = np.asarray(members, dtype=bool)
    if members.shape != np.shape(y) or members.all() or not members.any():
        raise ConfigError("members has no members or no other examples; allowed: one value per example, of both kinds")
    if isinstance(weights, Mapping):
        weights = np.concatenate([np.ravel(weights[name]) for name in model.layout])
    observed = confidence(model, weights[None], x, y)[0]
    if not np.isfinite(observed).all():
        raise ConfigError("weights has values that are not finite, or too large; allowed: those of a trained model")
    if attack == "threshold":
        return MembershipInference(attack, observed, members)  # the loss is a falling function of the confidence
    if shadows is None or shadows.confidence.shape[1:] != observed.shape:
        raise ConfigError(f"shadows is {shorten(shadows)}; allowed for LiRA: shadow models of the same examples")
    return MembershipInference(attack, lira_scores(observed, shadows, offline=attack == "lira offline"), members)


@checked_arguments
def lira_scores(observed: Floats, shadows: ShadowModels, *, offline: bool = False) -> Floats:
    """Return the log likelihood ratio of each example, or for the offline attack the log odds of its confidence.

    Both hypotheses are normal distributions of the confidence, with the mean over the shadow models of each example.
    The variance is the mean of that of all examples if there are fewer than 64 models on either side.

    Parameters
    ----------
    observed : ndarray, shape (examples,)
        Confidence of the attacked model.
    shadows : ShadowModels
    offline : bool
        Use only the models that were not trained on the example, as if all shadow models were trained before.
    """
    inside = _normal(shadows.confidence, shadows.trained_on)
    outside = _normal(shadows.confidence, ~shadows.trained_on)
    z_out = (observed - outside[0]) / outside[1]
    if offline:
        return z_out  # a rising function of the probability that a model without the example is less confident
    z_in = (observed - inside[0]) / inside[1]
    ratio: Floats = np.square(z_out) / 2 - np.square(z_in) / 2 + np.log(outside[1] / inside[1])
    return ratio


def _normal(values: Floats, among: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return each column's mean and standard deviation over the rows that are among the chosen ones."""
    count = among.sum(axis=0)
    mean = np.where(among, values, 0).sum(axis=0) / count
    squares = np.where(among, np.square(values - mean), 0).sum(axis=0)
    variance = (
        squares / np.maximum(count - 1, 1) if count.min() >= 64 else np.full(len(mean), squares.sum() / count.sum())
    )
    return mean, np.maximum(np.sqrt(variance), LEAST_DEVIATION)


def members_and_others(experiment: Experiment, data: Dataset) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return a pool to attack: x, y and which are members, for an experiment that trains on a part of the examples.

    Members are the examples of all clients' shards; the others are the remaining training examples, and the test set if
    there are none.
    """
    indices = np.unique(experiment.federate(data).partition.indices)
    members = np.zeros(len(data.y_train), dtype=bool)
    members[indices] = True
    if not members.all():
        return data.x_train, data.y_train, members
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    return x, y, np.arange(len(y)) < len(data.y_train)


def like_federated(experiment: Experiment, rounds: int, examples: int) -> SGD:
    """Return how one client trains so that its model resembles the global model of an experiment.

    The mean of a cohort's steps is about one step on all of their batches together, so a batch has the examples of the
    cohort's batches, and an epoch of a round is an epoch of the one client.

    Parameters
    ----------
    experiment : Experiment
        Its client strategy extends SGD.
    rounds : int
    examples : int
        Number of examples of the one client.
    """
    client = SGD.of(experiment.client)
    clients = len(experiment.federate(experiment.load_data()).partition)
    cohort = max(1, round(experiment.fraction_train * clients))
    batch = None if client.batch_size is None else client.batch_size * cohort
    epochs = max(1, round(client.epochs * rounds * experiment.fraction_train))
    return SGD.of(client, batch_size=batch if batch and batch < examples else None, epochs=epochs, steps=None)


@checked_arguments
def attack_result(
    result: Result, *, models: int = 64, client: SGD | None = None, seed: int = 0, workers: int | None = None
) -> dict[str, MembershipInference]:
    """Attack the global model of an experiment with all attacks of `ATTACKS`.

    Parameters
    ----------
    result : Result
    models : int
        Number of shadow models.
    client : SGD, optional
        How shadow models are trained; see `like_federated`, the default.
    seed, workers
        As for `train_shadow_models`.

    Returns
    -------
    dict of str to MembershipInference
    """
    experiment = result.experiment
    data = experiment.load_data()
    model = experiment.make_model(data)
    x, y, members = members_and_others(experiment, data)
    if client is None:
        client = like_federated(experiment, result.rounds, len(y) // 2)
    shadows = train_shadow_models(model, x, y, client, models=models, seed=seed, workers=workers)
    return {
        attack: infer_membership(model, result.weights, x, y, members, attack=attack, shadows=shadows)
        for attack in ATTACKS
    }
