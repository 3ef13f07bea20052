"""Whether attributions say anything about the model: a deletion test, and a comparison of maps by rank.

Deletion: Samek, Binder, Montavon, Lapuschkin and Müller, "Evaluating the visualization of what a deep neural network
has learned", IEEE TNNLS 2017 (arXiv:1509.06321), section III.

The rank correlation with maps of a randomised model is a sanity check: Adebayo, Gilmer, Muelly, Goodfellow, Hardt and
Kim, "Sanity checks for saliency maps", NeurIPS 2018 (arXiv:1810.03292). Attributions that do not change if the weights
are random say nothing about what the model has learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance, check_real
from fedsim.errors import ConfigError
from fedsim.explain.attributions import baseline_of
from fedsim.explain.subject import Subject, Weights, check_examples, one_blas_thread
from fedsim.models import Array
from fedsim.models.losses import predicted_labels
from fedsim.study.result import Result

#: Shares of features that `deletion_curve` removes.
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


@checked_arguments
def deletion_curve(
    result: Result,
    attributions: Array,
    x: Array | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    baseline: Any = None,
    weights: Weights | None = None,
) -> NDArray[np.float64]:
    """Return the share of predictions that stay the same while the most important features are removed.

    It falls fast if the attributions are faithful; compare it with the curve of random numbers as attributions.

    Parameters
    ----------
    result : Result
        Of classification.
    attributions : ndarray, shape (examples, ...)
        The features with the largest values are removed first; of equal values, the first one.
    x : ndarray, shape (examples, ...), optional
        The examples; default the test set.
    fractions : sequence of float
        Shares of the features to remove, from 0 to 1.
    baseline : ndarray, optional
        What replaces a removed feature, as for `integrated_gradients`; default 0.
    weights : ndarray, shape (parameters,), or mapping of str to ndarray, optional
        Default the final global weights.

    Returns
    -------
    ndarray of float64, shape (fractions,)

    Raises
    ------
    ConfigError
        The targets are real numbers, or an argument is not allowed.
    """
    if result.score != "accuracy":
        raise ConfigError("deletion_curve is for labels, and the targets here are real numbers")
    check_instance("fractions", fractions, Sequence | np.ndarray, "a list of numbers from 0 to 1")
    shares = [check_real("fractions", share, 0, 1) for share in fractions]
    subject = Subject.of(result, weights)
    examples = subject.examples(x)
    values = check_examples(attributions, examples.shape[1:], "attributions")
    if len(values) != len(examples):
        raise ConfigError(f"attributions has {len(values)} rows; allowed: one for each of {len(examples)} examples")
    rows = examples.reshape(len(examples), -1)
    fill = baseline_of(examples, baseline).reshape(rows.shape)
    order = np.argsort(-values.reshape(rows.shape), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    kept = []
    with one_blas_thread():
        predicted = predicted_labels(subject.scores(examples))
        for share in shares:
            left = np.where(rank < round(share * rows.shape[1]), fill, rows)
            kept.append(np.mean(predicted_labels(subject.scores(left.reshape(examples.shape))) == predicted))
    return np.array(kept)


@checked_arguments
def rank_correlation(first: Array, second: Array) -> NDArray[np.float64]:
    """Return Spearman's rank correlation of two attributions of each example, shape (examples,).

    Equal values have their mean rank. It is NaN where all values of an attribution are equal.

    Parameters
    ----------
    first, second : ndarray, shape (examples, ...)

    Examples
    --------
    >>> import numpy as np
    >>> rank_correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 4.0, 9.0]]))
    array([1.])
    """
    from scipy.stats import rankdata

    one = check_examples(first, np.shape(first)[1:], "first")
    other = check_examples(second, one.shape[1:], "second")
    if len(one) != len(other) or one.ndim < 2:
        raise ConfigError(
            f"second has shape {other.shape}; allowed: that of first, {one.shape}, with a row per example"
        )
    ranks = [rankdata(part.reshape(len(part), -1), axis=1) for part in (one, other)]
    a, b = (part - part.mean(axis=1, keepdims=True) for part in ranks)
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)
