"""Prototypes: the inputs that hidden units and classes respond to most.

Activation maximisation: Erhan, Bengio, Courville and Vincent, "Visualizing higher-layer features of a deep network",
technical report 1341, University of Montreal, 2009. Of the inputs of bounded norm, it finds the one with the largest
activation. The norm here is the Mahalanobis norm of the data: a direction in which the examples vary little costs more,
so that the result looks like the data, and not like the noise of weights that the data never touches.

The steps are those of Frank and Wolfe, "An algorithm for quadratic programming", Naval Research Logistics Quarterly
1956, which need no learning rate and are exact after one step for the units of the first layer, whose inputs are linear
in x.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_integer, check_real
from fedsim.errors import ConfigError
from fedsim.explain.attributions import input_gradient
from fedsim.explain.subject import Subject, Weights, one_blas_thread
from fedsim.models import MLP, Array
from fedsim.study.result import Result

#: Norms of `prototypes`.
NORMS = ("mahalanobis", "euclidean")


@checked_arguments
def input_weights(result: Result, *, weights: Weights | None = None) -> Array:
    """Return the input weights of each unit in the first layer of an MLP, shape (units, features).

    Parameters
    ----------
    result : Result
    weights : ndarray, shape (parameters,), or mapping of str to ndarray, optional
        Default the final global weights.
    """
    subject = _first_layers(Subject.of(result, weights), 1)
    place, shape = subject.model.layout["W1"]
    return subject.row[0, place].reshape(shape).T


@checked_arguments
def prototypes(
    result: Result,
    layer: int = 1,
    *,
    radius: float = 3.0,
    norm: str = "mahalanobis",
    x: Array | None = None,
    steps: int = 50,
    weights: Weights | None = None,
) -> Array:
    """Return the input that each unit in a layer of an MLP responds to most, shape (units, features).

    What is maximised is the sum that enters the unit's activation function, which has the same maximum as the
    activation and a gradient where a ReLU unit is off. In the first layer the result is
    ``mean + radius * C w / sqrt(w' C w)`` for a unit with input weights w and examples with covariance C, clipped.

    Parameters
    ----------
    result : Result
    layer : int
        From 1, the first hidden layer, to the layer of outputs, whose units are the classes.
    radius : float
        Largest distance of a prototype from the mean of the examples, in standard deviations.
    norm : {"mahalanobis", "euclidean"}
        Of that distance. ``"euclidean"`` takes the mean standard deviation in all directions; in the first layer the
        prototype is then the picture of the input weights.
    x : ndarray, shape (examples, features), optional
        Examples that give the mean, the covariance and the range to which prototypes are clipped; default the test set.
    steps : int
        Steps of optimisation, of which the best result is returned.
    weights : ndarray, shape (parameters,), or mapping of str to ndarray, optional
        Default the final global weights.

    Raises
    ------
    ConfigError
        The model is not an MLP, or an argument has another value.
    """
    with one_blas_thread():
        return _maximise(_first_layers(Subject.of(result, weights), layer), radius, norm, x, steps)


@checked_arguments
def class_prototypes(
    result: Result,
    *,
    radius: float = 3.0,
    norm: str = "mahalanobis",
    x: Array | None = None,
    steps: int = 50,
    weights: Weights | None = None,
) -> Array:
    """Return the input with the largest score for each class, before any softmax, shape (classes, ...).

    Simonyan, Vedaldi and Zisserman, 2014 (arXiv:1312.6034), section 2, with the norm of `prototypes`, whose parameters
    these are. It works for any model with a method ``input_gradient``.
    """
    with one_blas_thread():
        return _maximise(Subject.of(result, weights), radius, norm, x, steps)


@checked_arguments
def most_exciting(
    result: Result, layer: int = 1, count: int = 5, *, x: Array | None = None, weights: Weights | None = None
) -> Array:
    """Return the positions of the examples that excite each unit most, in falling order, shape (units, count).

    Parameters
    ----------
    result, layer, weights
        As for `prototypes`.
    count : int
        At most the number of examples.
    x : ndarray, shape (examples, features), optional
        Default the test set.
    """
    subject = _first_layers(Subject.of(result, weights), layer)
    examples = subject.examples(x)
    check_integer("count", count, 1, len(examples))
    with one_blas_thread():
        return np.argsort(-subject.scores(examples), axis=0, kind="stable")[:count].T


def _first_layers(subject: Subject, layer: int) -> Subject:
    """Return the network of the first layers, whose scores are the sums that enter the activations of the last one."""
    model = subject.model
    if not isinstance(model, MLP):
        raise ConfigError(f"model is {type(model).__name__}, whose units are not known; allowed: MLP")
    check_integer("layer", layer, 1, len(model.sizes) - 1)
    part = replace(model, sizes=model.sizes[: layer + 1])
    return subject._replace(model=part, row=subject.row[:, : part.num_parameters])


def _maximise(subject: Subject, radius: Any, norm: Any, x: Any, steps: Any) -> Array:
    """Return the input in the ball that maximises each score, clipped to the range of the examples."""
    check_real("radius", radius, 0, open_low=True)
    check_choice("norm", norm, NORMS)
    check_integer("steps", steps, 1)
    examples = subject.examples(x)
    rows = examples.reshape(len(examples), -1).astype(np.float64)
    mean, low, high = rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)
    root = _root_of_covariance(rows - mean, norm)
    units = subject.model.outputs
    place = np.zeros((units, root.shape[1]))  # in standard deviations from the mean
    best, best_score = np.tile(mean, (units, 1)), np.full(units, -np.inf)
    direction = np.eye(units, dtype=subject.model.dtype)
    for step in range(steps + 1):
        points = np.clip(mean + place @ root.T, low, high)
        inputs = points.reshape(units, *examples.shape[1:]).astype(subject.model.dtype)
        reached = np.diag(subject.scores(inputs))
        better = reached > best_score
        best[better], best_score[better] = points[better], reached[better]
        gradient = input_gradient(subject.model, subject.row, inputs[None], direction[None])[0]
        ascent = gradient.reshape(units, -1).astype(np.float64) @ root
        length = np.linalg.norm(ascent, axis=1, keepdims=True)
        vertex = radius * ascent / np.where(length > 0, length, 1)
        place += 2 / (step + 2) * (vertex - place)
    return best.reshape(units, *examples.shape[1:])


def _root_of_covariance(centred: Array, norm: str) -> Array:
    """Return a matrix A, shape (features, directions), with ``A A'`` the covariance, or the mean variance times 1."""
    if norm == "euclidean":
        return np.eye(centred.shape[1]) * np.sqrt(np.square(centred).mean())
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return vectors * np.sqrt(np.maximum(values, 0))
