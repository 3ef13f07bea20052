"""Unlearning a client by retraining without it, the exact method with which approximate ones are compared.

Bourtoule et al., "Machine unlearning", IEEE S&P 2021 (arXiv:1912.03817), section III: a model has unlearned an example
if it is distributed as one that was trained without it, which retraining from the start ensures. Membership inference
by the loss (`fedsim.leakage.membership`) measures whether the client's examples still look like training examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance
from fedsim.contribution.classes import class_recall
from fedsim.contribution.contributions import Floats
from fedsim.contribution.retraining import check_clients, fixed, retrain
from fedsim.engines.engine import Engine
from fedsim.leakage.membership import MembershipInference, infer_membership
from fedsim.study.callbacks import Callback
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Unlearning:
    """The models before and after a client has been unlearned.

    Attributes
    ----------
    client : int
        Partition id.
    before, after : Result
        Of the training with the client and without it.
    membership_before, membership_after : MembershipInference or None
        The attack with the client's training examples as members and the test set as the others; None for regression.
        If the client's data differ from the test set, the attack can tell them apart without any training, and only the
        change matters.
    """

    client: int
    before: Result
    after: Result
    membership_before: MembershipInference | None
    membership_after: MembershipInference | None

    @property
    def recall(self) -> Floats:
        """The recall of each class before and after, shape (2, classes); see `class_recall`."""
        return np.array([class_recall(self.before), class_recall(self.after)])

    def to_frame(self) -> pd.DataFrame:
        """Return the rows before and after: the test score, ``membership_auc``, ``rounds``, ``seconds`` of training."""
        import pandas as pd

        attacks = self.membership_before, self.membership_after
        rows = [
            {
                f"test_{result.score}": result.final_score,
                "membership_auc": attack.auc if attack else np.nan,
                "rounds": result.rounds,
                "seconds": result.history["seconds"].sum(),
            }
            for result, attack in zip((self.before, self.after), attacks, strict=True)
        ]
        return pd.DataFrame(rows, index=["before", "after"])


@checked_arguments
def unlearn(
    trained: Experiment | Result,
    client: int,
    *,
    workers: int | None = None,
    engine: str | Callable[..., Engine] = "in-process",
    callbacks: Sequence[Callback] = (),
) -> Unlearning:
    """Retrain from the start without a client, and attack its examples before and after.

    Parameters
    ----------
    trained : Experiment or Result
        With a result there is one training, with an experiment there are two.
    client : int
        Partition id of the client to unlearn.
    workers, engine, callbacks
        As for `Experiment.run`.

    Raises
    ------
    ConfigError
        There is no such client, it is the only one, or the client strategy has no global model.
    """
    check_instance("trained", trained, Experiment | Result, "an Experiment, or the Result of one")
    run: dict[str, Any] = {"workers": workers, "engine": engine, "callbacks": callbacks}
    experiment = fixed(trained if isinstance(trained, Experiment) else trained.experiment)
    check_clients(experiment, [client])
    before = trained if isinstance(trained, Result) else experiment.run(**run)
    after = retrain(replace(experiment, kernel=before.kernel), [client], **run)
    attacks = [_attack(result, experiment, client) for result in (before, after)]
    return Unlearning(client, before, after, *attacks)


def _attack(result: Result, experiment: Experiment, client: int) -> MembershipInference | None:
    """Attack the client's training examples by their loss."""
    federated = experiment.federate(experiment.load_data())
    data, own = federated.dataset, federated.partition[client]
    if data.regression:
        return None
    x, y = np.concatenate([data.x_train[own], data.x_test]), np.concatenate([data.y_train[own], data.y_test])
    return infer_membership(result.model, result.weights, x, y, np.arange(len(y)) < len(own))
