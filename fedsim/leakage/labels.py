"""Label inference: the label distribution of a client, from its update of the last layer.

The gradient of the last layer is the mean over a client's examples of ``h (p - onehot(label))^T`` and ``p -
onehot(label)``, so it is a mixture of the gradients of the classes, with the client's label distribution as weights.
The attacker knows the model and has examples of each class, such as a test set, computes the gradient of each class,
and solves for the weights: least squares with weights of at least 0 and a sum of at most 1, because clipping shortens
updates, and gradients shrink during several steps. Wainakh et al., "User-level label leakage from gradients in
federated learning", PoPETs 2022 (arXiv:2105.09369), infers labels from the same quantities one by one.

In several local steps, the examples of a smaller last batch count for more than the others, also for the attacker.

For a single example, its label is where the bias's gradient is negative: Zhao, Mopuri and Bilen, "iDLG: improved deep
leakage from gradients", 2020 (arXiv:2001.02610).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_integer
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.leakage.observation import Observation
from fedsim.models import MLP
from fedsim.models.losses import LOSSES
from fedsim.splits.names import insert_names

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelInference:
    """The label distributions of clients, as inferred and as they are.

    Attributes
    ----------
    clients : ndarray of int, shape (clients,)
    inferred, true : ndarray of float64, shape (clients, classes)
    prior : ndarray of float64, shape (classes,)
        Label distribution of the attacker's own examples, the guess without an update.
    client_names : tuple of str
        By partition id; empty if clients have numbers only.
    """

    clients: NDArray[np.intp]
    inferred: Floats
    true: Floats
    prior: Floats
    client_names: tuple[str, ...] = ()

    @property
    def error(self) -> Floats:
        """Total variation between the inferred and the true distribution of each client, shape (clients,)."""
        error: Floats = np.abs(self.inferred - self.true).sum(axis=1) / 2
        return error

    @property
    def error_of_prior(self) -> Floats:
        """Total variation between the attacker's guess without an update and the true distributions."""
        error: Floats = np.abs(self.prior - self.true).sum(axis=1) / 2
        return error

    @property
    def top_label(self) -> float:
        """Share of the clients whose most frequent label is inferred."""
        best = self.true.max(axis=1)
        return float(np.mean(self.true[np.arange(len(best)), self.inferred.argmax(axis=1)] == best))

    def to_frame(self) -> pd.DataFrame:
        """Return a row per client and label: ``client, label, inferred, true``; with names, also ``client_name``."""
        import pandas as pd

        clients, classes = self.true.shape
        columns = {
            "client": np.repeat(self.clients, classes),
            "label": np.tile(np.arange(classes), clients),
            "inferred": self.inferred.ravel(),
            "true": self.true.ravel(),
        }
        return insert_names(pd.DataFrame(columns), self.client_names, "client")

    def plot(self, path: str | os.PathLike[str], title: str = "Label inference") -> None:
        """Plot the inferred against the true distributions, and write the picture to `path`."""
        from fedsim.report.leaks import plot_labels

        plot_labels([(title, self.true, self.inferred)], path)


@checked_arguments
def infer_labels(observations: Sequence[Observation], dataset: Dataset, *, path_points: int = 5) -> LabelInference:
    """Infer the label distribution behind each update.

    Parameters
    ----------
    observations : sequence of Observation
    dataset : Dataset
        Its test set has the attacker's own examples, at least one of each class; its training labels are the truth.
    path_points : int
        Number of points between the weights before and after the update at which gradients of classes are computed,
        which change during several steps.

    Raises
    ------
    ConfigError
        The labels are real-valued, or the test set lacks a class.
    """
    check_integer("path_points", path_points, 1)
    if dataset.regression:
        raise ConfigError(f"{dataset.name} has real-valued targets; allowed: labels")
    classes = dataset.num_classes
    counts = np.bincount(dataset.y_test, minlength=classes)
    if not counts.all():
        raise ConfigError(
            f"{dataset.name}'s test set has no example of label {int(counts.argmin())}, which the attacker needs; "
            "allowed: at least one example of each label"
        )
    inferred = [label_distribution(o, dataset.x_test, dataset.y_test, path_points) for o in observations]
    true = [np.bincount(dataset.y_train[o.indices], minlength=classes) / len(o.indices) for o in observations]
    clients = np.array([o.clients[0] for o in observations], dtype=np.intp)
    names = observations[0].client_names if observations else ()
    return LabelInference(clients, np.array(inferred), np.array(true), counts / counts.sum(), names)


def label_distribution(observation: Observation, x: Array, y: Array, path_points: int = 5) -> Floats:
    """Return the inferred label distribution behind an update, shape (classes,).

    Parameters
    ----------
    observation : Observation
    x : ndarray, shape (examples, features)
    y : ndarray of int, shape (examples,)
        The attacker's own examples, at least one of each class.
    path_points : int
        As for `infer_labels`.
    """
    from scipy.optimize import nnls

    model = observation.model
    classes = max(2, model.outputs)
    shares = (np.arange(path_points) + 0.5) / path_points
    points = (observation.weights + share * observation.update for share in shares)
    columns = np.mean([_class_gradients(model, w, x, y, classes) for w in points], axis=0)
    layer = len(model.sizes) - 1
    last = np.concatenate([observation.gradient[f"{kind}{layer}"].ravel() for kind in ("W", "b")])
    if not np.isfinite(columns).all():
        return np.full(classes, 1 / classes)
    found, _ = nnls(columns, last)
    heavy = 1e3 * float(np.abs(columns).max())
    if not 0 < found.sum() <= 1:
        found, _ = nnls(np.vstack([columns, np.full(classes, heavy)]), np.append(last, heavy))
    distribution: Floats = found / found.sum()
    return distribution


def _class_gradients(model: MLP, weights: Array, x: Array, y: Array, classes: int) -> Floats:
    """Return the mean gradient of the last layer over the examples of each class, shape (parameters, classes)."""
    parameters = weights[None].astype(model.dtype)
    h = x if len(model.sizes) == 2 else model.representation(parameters, x[None].astype(model.dtype))[0]
    scores = model.scores(parameters, x[None].astype(model.dtype))[0].astype(np.float64)
    _, delta = LOSSES[model.loss](scores, y)
    made = []
    for label in range(classes):
        rows = y == label
        products = h[rows].T.astype(np.float64) @ delta[rows] / rows.sum()
        made.append(np.concatenate([products.ravel(), delta[rows].mean(axis=0)]))
    return np.array(made).T


def label_counts(observation: Observation, x: Array, y: Array) -> NDArray[np.intp]:
    """Return the labels behind an update, shape (num_examples,), ascending; parameters as for `label_distribution`.

    The inferred distribution in whole examples, by largest remainders; for a single example the sign of the gradient.
    """
    model, number = observation.model, observation.num_examples
    if number == 1 and model.outputs > 1:
        return np.array([observation.gradient[f"b{len(model.sizes) - 1}"].argmin()], dtype=np.intp)
    share = number * label_distribution(observation, x, y)
    counts = np.floor(share).astype(np.intp)
    order = np.argsort(counts - share, kind="stable")
    counts[order[: number - counts.sum()]] += 1
    return np.repeat(np.arange(len(counts)), counts)
