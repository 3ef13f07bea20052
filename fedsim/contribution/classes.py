"""Influence of each client's removal on each class: the recall with all clients and without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.contribution.contributions import Floats, standard_error
from fedsim.contribution.retraining import check_clients, clients_of, fixed, names_of, repeat, retrain
from fedsim.engines.engine import Engine
from fedsim.report.intervals import t_quantile
from fedsim.splits.names import insert_names
from fedsim.study.callbacks import Callback
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ClassInfluence:
    """What each class's recall loses without each client.

    Attributes
    ----------
    clients : ndarray of int, shape (clients,)
        Partition ids of the removed clients.
    label_names : tuple of str
    with_all : ndarray of float64, shape (seeds, classes)
        Recall of the model that all clients train, the share of a class's test examples that it classifies correctly;
        NaN for a class without test examples.
    without : ndarray of float64, shape (seeds, clients, classes)
        Recall of the models that are trained without each client.
    client_names : tuple of str
        By partition id; empty if clients have numbers only.
    """

    clients: NDArray[np.intp]
    label_names: tuple[str, ...]
    with_all: Floats
    without: Floats
    client_names: tuple[str, ...] = ()

    @property
    def influence(self) -> Floats:
        """``with_all - without``, the mean over seeds, shape (clients, classes)."""
        mean: Floats = (self.with_all[:, None] - self.without).mean(axis=0)
        return mean

    @property
    def half_widths(self) -> Floats:
        """Halves of the 95 % confidence intervals over the seeds, shape (clients, classes); NaN for one seed."""
        errors = standard_error(self.with_all[:, None] - self.without)
        return errors * t_quantile(len(self.without) - 1) if len(self.without) > 1 else errors

    def to_frame(self) -> pd.DataFrame:
        """Return a row per client and class: ``client, class, recall, recall_without, influence, ci95``.

        If clients have names, ``client_name`` follows ``client``.
        """
        import pandas as pd

        count, classes = len(self.clients), len(self.label_names)
        columns = {
            "client": np.repeat(self.clients, classes),
            "class": self.label_names * count,
            "recall": np.tile(self.with_all.mean(axis=0), count),
            "recall_without": self.without.mean(axis=0).ravel(),
            "influence": self.influence.ravel(),
            "ci95": self.half_widths.ravel(),
        }
        return insert_names(pd.DataFrame(columns), self.client_names, "client")


@checked_arguments
def class_recall(result: Result) -> Floats:
    """Return the recall of each class on the test set, shape (classes,); NaN for a class without test examples.

    Raises
    ------
    ConfigError
        The targets are real numbers.
    """
    recall: Floats = result.class_scores()["recall"].to_numpy()
    return recall


@checked_arguments
def class_influence(
    experiment: Experiment,
    *,
    seeds: int = 1,
    clients: Sequence[int] | None = None,
    workers: int | None = None,
    engine: str | Callable[..., Engine] = "in-process",
    callbacks: Sequence[Callback] = (),
) -> ClassInfluence:
    """Train with all clients and without each of some clients, and compare the recall of each class.

    Parameters
    ----------
    experiment : Experiment
    seeds : int
        Number of seeds, with the same clients; see `repeat`. There are ``seeds * (clients + 1)`` trainings.
    clients : sequence of int, optional
        Partition ids of the clients to remove, one at a time; default all that have examples.
    workers, engine, callbacks
        As for `Experiment.run`.

    Raises
    ------
    ConfigError
        A value is not allowed, the targets are real numbers, or a client cannot be removed.
    """
    experiments = [fixed(repeated) for repeated in repeat(experiment, seeds)]
    data = experiments[0].load_data()
    chosen = check_clients(experiments[0], clients_of(experiments[0]) if clients is None else clients)
    recalls = []
    for repeated in experiments:
        for removed in ([], *([client] for client in chosen)):
            result = retrain(repeated, removed, workers=workers, engine=engine, callbacks=callbacks)
            recalls.append(class_recall(result))
    shaped = np.array(recalls).reshape(seeds, len(chosen) + 1, data.num_classes)
    names = names_of(experiments[0])
    return ClassInfluence(np.array(chosen), data.label_names, shaped[:, 0], shaped[:, 1:], names)
