"""Shadow models: models that an attacker trains with and without each example, to know how confident they are.

They are the clients of one cohort, each with a random half of the pool as its shard, so one call of a kernel trains
them all; see `fedsim.leakage.membership`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance, check_integer
from fedsim.clients import SGD
from fedsim.clients.sgd import numpy_hooks
from fedsim.data.dataset import Dataset
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ConfigError, DivergenceError
from fedsim.models import Model
from fedsim.models.losses import LOSSES
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose, generator

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShadowModels:
    """Models trained on random halves of a pool of examples, and their confidence in each example.

    Attributes
    ----------
    confidence : ndarray of float64, shape (models, examples)
        See `confidence`.
    trained_on : ndarray of bool, shape (models, examples)
        Which models were trained on which example.
    """

    confidence: Floats
    trained_on: NDArray[np.bool_]


def confidence(model: Model, weights: Array, x: Array, y: Array) -> Floats:
    """Return the logit of the probability that models give to labels, ``log(p / (1 - p))``, shape (models, examples).

    For softmax cross-entropy and binary cross-entropy; for other losses minus the loss. LiRA uses the logit because its
    distribution over shadow models is about normal.

    Parameters
    ----------
    model : Model
    weights : ndarray, shape (models, parameters)
    x : ndarray, shape (examples, ...)
    y : ndarray of int, shape (examples,)
    """
    made = []
    for row in weights:
        scores = model.scores(row[None], x[None].astype(model.dtype, copy=False))[0].astype(np.float64)
        if model.loss == "cross_entropy":
            # log(p / (1 - p)) is the label's score minus the log of the summed exponentials of the others.
            own = scores[np.arange(len(y)), y]
            others = scores.copy()
            others[np.arange(len(y)), y] = -np.inf
            most = others.max(axis=1)
            made.append(own - most - np.log(np.exp(others - most[:, None]).sum(axis=1)))
        else:
            loss, _ = LOSSES[model.loss](scores, y)
            if model.loss == "binary_cross_entropy":
                loss = np.maximum(loss, 1e-12)
                loss = loss + np.log(-np.expm1(-loss))  # log(exp(loss) - 1), of which the exponential overflows
            made.append(-loss)
    return np.array(made)


@checked_arguments
def train_shadow_models(
    model: Model, x: Array, y: Array, client: SGD, *, models: int = 64, seed: int = 0, workers: int | None = None
) -> ShadowModels:
    """Train models on random halves of a pool; each example is in the half of every second model.

    Parameters
    ----------
    model : Model
    x : ndarray, shape (examples, features)
    y : ndarray of int, shape (examples,)
        The pool: members, as far as the attacker can tell, and other examples of the same distribution.
    client : SGD
        How each model is trained, from the same initial weights.
    models : int
        An even number, at least 2.
    seed : int
    workers : int, optional
        Threads.

    Raises
    ------
    ConfigError
        A value is not allowed.
    DivergenceError
        A model diverged.
    """
    check_integer("models", models, 2)
    if models % 2:
        raise ConfigError(f"models is {models}; allowed: an even number")
    check_instance("client", client, SGD, "SGD or a strategy that extends it")
    if len(x) < 2 or len(x) != len(y):
        raise ConfigError(f"the pool has {len(x)} examples and {len(y)} labels; allowed: as many, at least two")
    trained_on = random_halves(models, len(x), generator(seed, Purpose.SHADOW))
    shadow, example = np.nonzero(trained_on)
    partition = Partition.from_sizes(example, np.bincount(shadow, minlength=models))
    pool = Dataset("pool", x, y, x[:1], y[:1], max(2, model.outputs))
    work = float(client.examples_per_round(partition.sizes).sum())
    kernel = kernels.choose("auto", numpy_hooks(client), model, work)
    runtime = ClientRuntime(model, FederatedDataset(pool, partition), client, seed, kernel)
    start = model.init(generator(seed, Purpose.SHADOW, 1))
    found = np.empty((models, len(x)))
    with ThreadEngine(runtime, workers=workers) as engine:
        for update in engine.train(runtime.task(start, 1), np.arange(models)):
            for error in update.failed.values():
                raise error
            found[update.partition_ids] = confidence(model, update.weights, pool.x_train, pool.y_train)
    if not np.isfinite(found).all():
        raise DivergenceError(f"training of shadow models diverged with {client}; a smaller lr usually helps")
    return ShadowModels(found, trained_on)


def random_halves(models: int, examples: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of random halves, shape (models, examples), in which each example is in half of the rows."""
    order = rng.random((models // 2, examples)).argsort(axis=1)
    mask = np.zeros((models, examples), dtype=bool)
    np.put_along_axis(mask[::2], order[:, : examples // 2], True, axis=1)
    mask[1::2] = ~mask[::2]
    return mask
