"""Attributions: how much each feature of an example contributes to the score of a class.

Saliency: Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks: visualising image classification models
and saliency maps", ICLR workshop 2014 (arXiv:1312.6034), section 3.

Integrated gradients: Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017
(arXiv:1703.01365), equations 1 and 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.arguments import checked_arguments
from fedsim.checks import check_integer
from fedsim.errors import ConfigError
from fedsim.explain.subject import Subject, Weights, check_examples, one_blas_thread
from fedsim.models import Array, Model
from fedsim.study.result import Result


@checked_arguments
def input_gradient(model: Model, parameters: Array, x: Array, direction: Array) -> Array:
    """Return the gradient of each example's ``direction @ scores`` with respect to the example.

    The model's own method ``input_gradient`` is called with the other arguments, as `MLP` has.

    Parameters
    ----------
    model : Model
    parameters : ndarray, shape (clients, parameters)
    x : ndarray, shape (clients, batch, ...)
    direction : ndarray, shape (clients, batch, outputs)

    Returns
    -------
    ndarray, shape (clients, batch, ...)

    Raises
    ------
    ConfigError
        The model has no such method.
    """
    own = getattr(model, "input_gradient", None)
    if own is None:
        name = type(model).__name__
        raise ConfigError(f"model is {name}, which has no method input_gradient; allowed: MLP, or a model that has it")
    gradient: Array = own(parameters, x, direction)
    return gradient


@checked_arguments
def score_gradient(
    result: Result, x: Array | None = None, target: Any = None, *, weights: Weights | None = None
) -> Array:
    """Return the gradient of each example's score with respect to the example.

    Parameters
    ----------
    result : Result
    x : ndarray, shape (examples, ...), optional
        Preprocessed as the dataset's; default its test set.
    target : int or ndarray of int, shape (examples,), optional
        The output whose score is explained; default the predicted label. A model with one output has only output 0:
        the score of label 1, or the value for regression.
    weights : ndarray, shape (parameters,), or mapping of str to ndarray, optional
        Weights of the model, such as a client's; default the final global ones.

    Returns
    -------
    ndarray, shape (examples, ...)

    Raises
    ------
    ConfigError
        An argument has another shape or is not finite, or the model has no method ``input_gradient``.
    """
    subject = Subject.of(result, weights)
    examples = subject.examples(x)
    with one_blas_thread():
        return input_gradient(subject.model, subject.row, examples[None], subject.directions(examples, target)[None])[0]


@checked_arguments
def saliency(result: Result, x: Array | None = None, target: Any = None, *, weights: Weights | None = None) -> Array:
    """Return saliency maps: the absolute gradient of each example's score, before any softmax.

    It says to which features the score is most sensitive at this example, not which features led to it. Parameters,
    result and errors are those of `score_gradient`.
    """
    return np.abs(score_gradient(result, x, target, weights=weights))


@checked_arguments
def integrated_gradients(
    result: Result,
    x: Array | None = None,
    target: Any = None,
    *,
    baseline: Any = None,
    steps: int = 50,
    weights: Weights | None = None,
) -> Array:
    """Return integrated gradients: attributions that sum to the difference of scores between example and baseline.

    The gradient is averaged along the straight line from the baseline to the example, by the midpoint rule, and
    multiplied by their difference. The sum is exact up to the error of that rule; more steps make it smaller.

    Parameters
    ----------
    result, x, target, weights
        As for `score_gradient`.
    baseline : ndarray, shape (...) of an example or (examples, ...), optional
        An input that stands for the absence of features; default zeros: white paper for digits, the mean of each column
        for tables that `fedsim.data.table` has standardised.
    steps : int
        Number of gradients per example.

    Returns
    -------
    ndarray of float64, shape (examples, ...)
        Positive where a feature raises the score.

    Raises
    ------
    ConfigError
        As for `score_gradient`.
    """
    check_integer("steps", steps, 1)
    subject = Subject.of(result, weights)
    examples = subject.examples(x)
    start = baseline_of(examples, baseline).astype(examples.dtype)
    total = np.zeros(examples.shape)
    with one_blas_thread():
        direction = subject.directions(examples, target)[None]
        for step in range(steps):
            point = start + examples.dtype.type((step + 0.5) / steps) * (examples - start)
            total += input_gradient(subject.model, subject.row, point[None], direction)[0]
    return total / steps * (examples.astype(np.float64) - start)


def baseline_of(examples: Array, baseline: Any) -> Array:
    """Return the baseline of each example, default zeros; one example is used for all."""
    if baseline is None:
        return np.zeros_like(examples)
    if np.ndim(baseline) < examples.ndim:
        baseline = [baseline]
    found = check_examples(baseline, examples.shape[1:], "baseline")
    if len(found) not in (1, len(examples)):
        raise ConfigError(f"baseline has {len(found)} examples; allowed: 1, or as many as x, {len(examples)}")
    return np.broadcast_to(found, examples.shape)
