"""Gradient inversion in closed form: training examples read from the gradient of the first layer.

The gradient of the first layer's weights is ``dW = sum over examples of x delta^T`` and that of its bias is ``db = sum
of delta``, where delta is the derivative of the loss by the layer's scores. For a single example, ``dW[:, i] / db[i]``
is the example, for every neuron i with ``db[i] != 0``: Phong, Aono, Hayashi, Wang and Moriai, "Privacy-preserving deep
learning via additively homomorphic encryption", IEEE TIFS 2018, section 3; Geiping et al. (2020), proposition 3.1.

In a batch the ratio is a mixture of examples, except at a neuron that a single example activates: Boenisch et al.,
"When the curious abandon honesty: federated learning is not private", EuroS&P 2023 (arXiv:2112.02918), section 4.

A ReLU layer gives away a small batch as a whole, because delta is 0 wherever an example does not activate a neuron, and
few combinations of the rows of ``dW`` have so many zeros: Dimitrov, Baader, Mueller
and Vechev, "SPEAR: exact gradient inversion of batches in federated learning", NeurIPS 2024 (arXiv:2403.03945).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_integer
from fedsim.data.dataset import Dataset
from fedsim.leakage.labels import label_counts
from fedsim.leakage.matching import match_gradient
from fedsim.leakage.observation import Observation
from fedsim.leakage.quality import assign, psnr
from fedsim.models import named_arrays

Array = NDArray[Any]
Floats = NDArray[np.float64]

#: Singular values, and neurons' gradients, below this share of the largest are rounding.
RANK_TOLERANCE = 1e-5
#: Entries of a direction below this share of its largest one count as 0.
ZERO_TOLERANCE = 1e-3
#: Smallest share of neurons at which the zeros of a direction agree with the activations of its example.
AGREEMENT = 0.95
#: Most examples that `separate` tries, because the share of sets that determine an example halves with each one more.
MOST_EXAMPLES = 20
#: Random sets of neurons that are tried together.
TRIALS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Inversion:
    """Training examples as an attacker reconstructs them from an update.

    Attributes
    ----------
    examples : ndarray of float64, shape (found, features)
    method : str
        Of `invert`: "ratio", "zeros of ReLU" or "optimisation"; see `single_example`, `separate`, `match_gradient`.
    """

    examples: Floats
    method: str

    def aligned(self, originals: Array) -> Floats:
        """Return the reconstruction of each original; the midpoint of the range, 0.5, where there are too few.

        Parameters
        ----------
        originals : ndarray, shape (examples, features)
        """
        rows = assign(originals, self.examples)
        with_none = np.vstack([self.examples, np.full((1, self.examples.shape[1]), 0.5)])
        return with_none[rows]  # row -1 is the midpoint

    def psnr(self, originals: Array, data_range: float = 1.0) -> Floats:
        """Return the PSNR of the reconstruction of each original in decibels, shape (examples,)."""
        return psnr(originals, self.aligned(originals), data_range)


@checked_arguments
def invert(
    observation: Observation,
    dataset: Dataset,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    starts: int = 5,
    hops: int = 30,
    seed: int = 0,
) -> Inversion:
    """Reconstruct the examples behind an update: in closed form where that is exact, else by optimisation.

    Parameters
    ----------
    observation : Observation
    dataset : Dataset
        Its test set has the attacker's own examples, from which labels are inferred.
    bounds, starts, hops, seed
        As for `match_gradient`.

    Returns
    -------
    Inversion
        Without knowledge of which reconstruction belongs to which original.
    """
    if observation.num_examples == 1 and _has_rank_one(observation):
        return Inversion(np.clip(single_example(observation)[None], *bounds), "ratio")
    separated = separate(observation, seed=seed)
    if len(separated):
        return Inversion(np.clip(separated, *bounds), "zeros of ReLU")
    labels = label_counts(observation, dataset.x_test, dataset.y_test)
    found = match_gradient(observation, labels, bounds=bounds, starts=starts, hops=hops, seed=seed)
    return Inversion(found.examples, "optimisation")


def first_layer(observation: Observation) -> tuple[Floats, Floats]:
    """Return the gradients of the first layer's weights, shape (features, neurons), and bias, shape (neurons,)."""
    gradient = observation.gradient
    return gradient["W1"], gradient["b1"]


@checked_arguments
def single_example(observation: Observation) -> Floats:
    """Return the example behind an update, shape (features,), as if there were only one.

    The least-squares solution of ``dW = x db^T``, which uses all neurons: exact for a single example, also after
    several steps and after clipping, which scales ``dW`` and ``db`` alike. For several examples it is a weighted mean.

    Parameters
    ----------
    observation : Observation
    """
    weights, bias = first_layer(observation)
    norm = float(bias @ bias)
    example: Floats = weights @ bias / norm if norm else np.zeros(len(weights))
    return example


def _has_rank_one(observation: Observation) -> bool:
    """Whether the gradient of the first layer is that of a single example, without noise."""
    values = np.linalg.svd(np.vstack(first_layer(observation)), compute_uv=False)
    return bool(values[1:].max(initial=0) <= 1e-3 * values[0])


@checked_arguments
def neuron_ratios(observation: Observation, least: float = 1e-4) -> Floats:
    """Return ``dW[:, i] / db[i]`` for each neuron i, shape (neurons, features): mixtures, and some single examples.

    Parameters
    ----------
    observation : Observation
    least : float
        Neurons are left out whose ``|db|`` is at most this share of the largest one.
    """
    weights, bias = first_layer(observation)
    active = np.abs(bias) > least * np.abs(bias).max(initial=0.0)
    ratios: Floats = (weights[:, active] / bias[active]).T
    return ratios


@checked_arguments
def separate(observation: Observation, *, trials: int = 100_000, seed: int = 0) -> Floats:
    """Return the examples of a batch, shape (examples, features), separated by the zeros of a ReLU layer.

    The row space of the gradient ``[dW; db]`` holds, for each example, a direction that is 0 at all neurons that the
    example does not activate. Random sets of neurons, one fewer than there are examples, determine a direction each;
    the directions with the most zeros are the examples'. The result is accepted if each example activates the neurons
    at which its direction is not 0, and is then exact up to rounding. Otherwise it has no rows: if the gradient has
    full rank, because of noise or of too many examples, or if the neurons that one example activates include those of
    another.

    Parameters
    ----------
    observation : Observation
        Of a model with ReLU.
    trials : int
        Largest number of random sets.
    seed : int
        Of the random sets.
    """
    check_integer("trials", trials, 1)
    weights, bias = first_layer(observation)
    nothing = np.empty((0, len(weights)))
    stacked = np.vstack([weights, bias])
    sizes = np.linalg.norm(stacked, axis=0)
    if observation.model.activation != "relu" or not np.isfinite(sizes).all() or not sizes.any():
        return nothing
    _, values, rows = np.linalg.svd(stacked, full_matrices=False)
    rank = int((values > RANK_TOLERANCE * values[0]).sum())
    live = sizes > RANK_TOLERANCE * sizes.max()
    if rank > MOST_EXAMPLES or rank >= min(stacked.shape) or live.sum() <= rank:
        return nothing
    start = named_arrays(observation.model, observation.weights.astype(np.float64))
    stacked, rows, rng = stacked[:, live], rows[:rank, live], np.random.default_rng(seed)
    pool = rows[:0]
    for _ in range(0, trials, TRIALS_AT_ONCE):
        pool = _most_zeros(np.vstack([pool, _sparse_directions(rows, rng)]), 8 * rank)
        chosen = _independent(pool, rank)
        if len(chosen) < rank:
            continue
        examples = stacked @ np.linalg.pinv(chosen)
        scales = examples[-1]
        if (np.abs(scales) <= 1e-9 * np.abs(scales).max()).any():
            continue
        found: Floats = (examples[:-1] / scales).T
        active = (found @ start["W1"] + start["b1"])[:, live] > 0
        if (active != _zeros(chosen)).mean(axis=1).min() >= AGREEMENT:
            return found
    return nothing


def _zeros(directions: Floats) -> NDArray[np.bool_]:
    sizes = np.abs(directions)
    zeros: NDArray[np.bool_] = sizes <= ZERO_TOLERANCE * sizes.max(axis=1, keepdims=True, initial=0)
    return zeros


def _sparse_directions(rows: Floats, rng: np.random.Generator) -> Floats:
    """Return combinations of orthonormal rows that are 0 at some random sets of neurons, those with most zeros."""
    rank, neurons = rows.shape
    if rank == 1:
        return rows
    sets = rng.random((TRIALS_AT_ONCE, neurons)).argpartition(rank - 2, axis=1)[:, : rank - 1]
    systems = np.empty((len(sets), rank, rank))
    systems[:, :-1] = rows.T[sets]
    systems[:, -1] = rng.standard_normal(rank)  # a random equation, so that the combination is not 0
    systems += 1e-12 * np.eye(rank)  # neurons with proportional columns make a system singular
    right = np.zeros((rank, 1))
    right[-1] = 1
    combinations = np.linalg.solve(systems, right)[..., 0]
    combinations /= np.linalg.norm(combinations, axis=1, keepdims=True)
    best = _most_zeros(combinations @ rows, 16 * rank)
    # All zeros of a direction determine it more precisely than the set that found it.
    exact = [np.linalg.svd(rows[:, zeros])[0][:, -1] for zeros in _zeros(best)]
    return np.array(exact).reshape(-1, rank) @ rows


def _most_zeros(directions: Floats, most: int) -> Floats:
    """Return directions with different zeros, those with the most zeros first."""
    zeros = _zeros(directions)
    _, first = np.unique(np.packbits(zeros, axis=1), axis=0, return_index=True)
    order = np.argsort(-zeros[first].sum(axis=1), kind="stable")
    return directions[first[order[:most]]]


def _independent(directions: Floats, rank: int) -> Floats:
    """Return the first `rank` of the directions that are linearly independent, with norm 1, or fewer."""
    chosen = directions[:0]
    for direction in directions:
        grown = np.vstack([chosen, direction / np.linalg.norm(direction)])
        if np.linalg.svd(grown, compute_uv=False)[-1] > ZERO_TOLERANCE:
            chosen = grown
        if len(chosen) == rank:
            break
    return chosen
