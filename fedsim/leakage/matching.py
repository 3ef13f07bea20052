"""Gradient inversion by optimisation: examples whose gradient points in the direction of the observed one.

Zhu, Liu and Han, "Deep leakage from gradients", NeurIPS 2019 (arXiv:1906.08935): matching gradients, by L-BFGS.
Geiping, Bauermeister, Droege and Moeller, "Inverting gradients: how easy is it to break privacy in federated
learning?", NeurIPS 2020 (arXiv:2003.14053), equation 4: the distance is one minus the cosine, which clipping does not
change, plus the total variation of the images; pixels stay in their range.

The derivative of the distance by the examples needs second derivatives of the loss. With v the derivative of the
distance by the gradient, it is the change of the loss's derivative by the examples when the weights move along v:
Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994, here written out for the MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_integer, check_real, shorten
from fedsim.errors import ConfigError
from fedsim.leakage.observation import Observation
from fedsim.models import MLP, named_arrays
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.losses import LOSSES

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Match:
    """Examples found by optimisation.

    Attributes
    ----------
    examples : ndarray of float64, shape (examples, features)
    labels : ndarray of int, shape (examples,)
    distance : float
        One minus the cosine of their gradient with the observed one, plus the smoothness term.
    """

    examples: Floats
    labels: NDArray[np.intp]
    distance: float


@checked_arguments
def match_gradient(
    observation: Observation,
    labels: Array,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    image_shape: tuple[int, int] | None = None,
    smoothness: float = 1e-4,
    starts: int = 5,
    hops: int = 30,
    seed: int = 0,
) -> Match:
    """Find examples whose gradient has the direction of the observed update.

    L-BFGS from several random starts, then hops: the best candidates so far, with one example drawn anew or all of them
    disturbed, are optimised again. The kinks of ReLU end single runs early.

    Parameters
    ----------
    observation : Observation
    labels : ndarray of int, shape (examples,)
        As `fedsim.leakage.labels.label_counts` infers them.
    bounds : tuple of float
        Smallest and largest value of a feature.
    image_shape : tuple of int, optional
        Height and width of images, for `smoothness`; default a square, if the number of features is a square number.
    smoothness : float
        Weight of the `total_variation` of an image, at least 0.
    starts, hops : int
        Numbers of optimisations.
    seed : int
        Of the random numbers.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    check_integer("starts", starts, 1)
    check_integer("hops", hops)
    check_real("smoothness", smoothness, 0)
    low, high = bounds
    if not low < high:
        raise ConfigError(f"bounds is {shorten(bounds)}; allowed: a smaller and a larger number")
    labels = _check_labels(labels, max(2, observation.model.outputs))
    image_shape = _check_shape(image_shape, observation.model.sizes[0])
    matched = GradientMatch(observation.model, observation.weights, -observation.update, labels)
    shape = len(labels), observation.model.sizes[0]

    def objective(flat: Any) -> tuple[float, Any]:
        x = flat.reshape(shape)
        value, slope = matched.distance(x)
        if image_shape:
            variation, its_slope = total_variation(x.reshape(len(x), *image_shape))
            value += smoothness * variation / len(x)
            slope = slope + smoothness / len(x) * its_slope.reshape(shape)
        return value, slope.ravel()

    def optimise(x: Floats) -> tuple[float, Floats]:
        limits = [(low, high)] * x.size
        options = {"maxiter": 300, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-10}
        found: Any = minimize(objective, x.ravel(), jac=True, method="L-BFGS-B", bounds=limits, options=options)  # type: ignore[call-overload]
        return float(found.fun), found.x.reshape(shape)

    rng = np.random.default_rng(seed)
    with threadpool_limits(1, "blas"):  # more threads would sum in another order, and are slower for small arrays
        value, best = min((optimise(rng.uniform(low, high, shape)) for _ in range(starts)), key=lambda found: found[0])
        for hop in range(hops):
            start = best.copy()
            if hop % 3 == 0:
                start[rng.integers(len(labels))] = rng.uniform(low, high, shape[1])
            else:
                start += (high - low) * (0.1, 0.02)[hop % 3 - 1] * rng.standard_normal(shape)
            found, x = optimise(np.clip(start, low, high))
            if found < value:
                value, best = found, x
    return Match(best, labels, value)


def _check_labels(labels: Array, outputs: int) -> NDArray[np.intp]:
    values = np.asarray(labels)
    whole = values.ndim == 1 and len(values) > 0 and values.dtype.kind in "iu"
    if not whole or not ((values >= 0) & (values < outputs)).all():
        raise ConfigError(f"labels is {shorten(labels)}; allowed: at least one label from 0 to {outputs - 1}")
    return values.astype(np.intp)


def _check_shape(shape: tuple[int, int] | None, features: int) -> tuple[int, int] | None:
    """Return the shape of images, by default a square; None if the features are no square number."""
    side = math.isqrt(features)
    if shape is None:
        return (side, side) if side * side == features else None
    if math.prod(shape) != features:
        raise ConfigError(f"image_shape is {shape}; allowed: a height and a width with {features} pixels")
    return shape


class GradientMatch:
    """The distance between the gradient of candidate examples and an observed gradient, and its derivative.

    Parameters
    ----------
    model : MLP
    weights : ndarray, shape (parameters,)
    target : ndarray, shape (parameters,)
        The observed gradient, up to a positive factor.
    labels : ndarray of int, shape (examples,)
        The candidates' labels.
    """

    def __init__(self, model: MLP, weights: Array, target: Array, labels: NDArray[np.intp]) -> None:
        self.model, self.labels = model, labels
        self._weights = named_arrays(model, weights.astype(np.float64))
        norm = float(np.linalg.norm(target))
        self._target = target.astype(np.float64) / (norm or 1.0)

    def distance(self, x: Floats) -> tuple[float, Floats]:
        """Return one minus the cosine of the gradients, and its derivative by the candidates x, of the shape of x."""
        h, deltas = self._backpropagate(x)
        gradient = np.empty(self.model.num_parameters)
        for layer, (name, values) in enumerate(named_arrays(self.model, gradient).items()):
            delta = deltas[layer // 2]
            values[...] = h[layer // 2].T @ delta if name.startswith("W") else delta.sum(axis=0)
        norm = float(np.linalg.norm(gradient))
        if not norm:
            return 1.0, np.zeros_like(x)
        cosine = float(self._target @ gradient) / norm
        along = (cosine * gradient / norm - self._target) / norm
        return 1 - cosine, self._change_along(along, h, deltas)

    def _backpropagate(self, x: Floats) -> tuple[list[Floats], list[Floats]]:
        """Return the activations of all layers, and the derivatives of the summed loss by the scores of each layer."""
        depth, weights = len(self.model.sizes) - 1, self._weights
        activation = ACTIVATIONS[self.model.activation]
        h = [x]
        for layer in range(1, depth + 1):
            z = h[-1] @ weights[f"W{layer}"] + weights[f"b{layer}"]
            if layer < depth:
                activation.apply(z)
            h.append(z)
        _, delta = LOSSES[self.model.loss](h[-1], self.labels)
        deltas = [delta]
        for layer in range(depth, 1, -1):
            delta = delta @ weights[f"W{layer}"].T
            activation.backward(delta, h[layer - 1])
            deltas.insert(0, delta)
        return h, deltas

    def _change_along(self, along: Floats, h: list[Floats], deltas: list[Floats]) -> Floats:
        """Return the change of the loss's derivative by the examples when the weights move along a direction."""
        depth, weights, moves = len(self.model.sizes) - 1, self._weights, named_arrays(self.model, along)
        slopes = [_slopes(self.model.activation, values) for values in h[1:-1]]
        change, changes = np.zeros_like(h[0]), []
        for layer in range(1, depth + 1):  # of the scores of each layer
            scores = h[layer - 1] @ moves[f"W{layer}"] + moves[f"b{layer}"] + change @ weights[f"W{layer}"]
            changes.append(scores)
            if layer < depth:
                change = slopes[layer - 1][0] * scores
        change = _loss_curvature(self.model, h[-1], changes[-1])
        for layer in range(depth, 1, -1):  # of the derivatives by the scores
            first, second = slopes[layer - 2]
            below = deltas[layer - 1] @ weights[f"W{layer}"].T
            change = change @ weights[f"W{layer}"].T + deltas[layer - 1] @ moves[f"W{layer}"].T
            change = first * change + second * changes[layer - 2] * below
        moved: Floats = change @ weights["W1"].T + deltas[0] @ moves["W1"].T
        return moved


def _slopes(activation: str, h: Floats) -> tuple[Floats, Floats]:
    """Return the first and second derivative of an activation, given its values."""
    if activation == "relu":
        return (h > 0).astype(np.float64), np.zeros_like(h)
    if activation == "tanh":
        return 1 - h * h, -2 * h * (1 - h * h)
    return h * (1 - h), h * (1 - h) * (1 - 2 * h)


def _loss_curvature(model: MLP, scores: Floats, change: Floats) -> Floats:
    """Return the change of the loss's derivative by the scores, given the change of the scores."""
    if model.loss == "mse":
        return change * (2 / model.outputs)
    if model.loss == "binary_cross_entropy":
        p = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
        return p * (1 - p) * change / model.outputs
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    curved: Floats = p * (change - (p * change).sum(axis=1, keepdims=True))
    return curved


def total_variation(images: Floats) -> tuple[float, Floats]:
    """Return the mean squared difference of neighbouring pixels, summed over images, and its derivative.

    Parameters
    ----------
    images : ndarray, shape (images, height, width)
    """
    down, right = np.diff(images, axis=1), np.diff(images, axis=2)
    pixels = images.shape[1] * images.shape[2]
    slope = np.zeros_like(images)
    slope[:, 1:] += down
    slope[:, :-1] -= down
    slope[:, :, 1:] += right
    slope[:, :, :-1] -= right
    value = (np.square(down).sum() + np.square(right).sum()) / pixels
    return float(value), 2 * slope / pixels
