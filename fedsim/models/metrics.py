"""Metrics of predictions besides the loss and the accuracy, computed by scikit-learn where it has them.

Metrics of probabilities use those of the model: the softmax of the scores for ``cross_entropy``; their sigmoid for a
single output and for ``binary_cross_entropy``; for ``mse`` the scores themselves, negative ones as 0. With several
outputs, the last two are divided by their sum, as in scikit-learn's ``OneVsRestClassifier``. A metric that is not
defined is NaN.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_instance, shorten, suggest, to_builtin
from fedsim.errors import ConfigError
from fedsim.models.losses import predicted_labels
from fedsim.text import describe

Array = NDArray[Any]
Floats = NDArray[np.float64]
#: A metric: a name in `METRICS`, or a function of labels or targets, shape (examples,), and of the model's scores
#: before any sigmoid or softmax, shape (examples, outputs), which returns a number.
AnyMetric = str | Callable[[Array, Array], float]

#: Number of bins of the calibration error.
BINS = 15
#: Names that a user's metric cannot have, because the history has columns ``test_loss`` and so on.
RESERVED = ("loss", "accuracy", "r2")


@dataclass(frozen=True)
class Predictions:
    """A model's scores of some examples.

    Parameters
    ----------
    y : ndarray, shape (examples,)
        Labels, or targets for regression.
    scores : ndarray, shape (examples, outputs)
        Before any sigmoid or softmax.
    loss : str
        Name of the model's loss.
    num_classes : int
        1 for regression.
    """

    y: Array
    scores: Array
    loss: str
    num_classes: int

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """The predicted labels, shape (examples,)."""
        return predicted_labels(self.scores)

    @cached_property
    def by_class(self) -> ClassScores:
        """The scores of each class; see `class_scores`."""
        return class_scores(self.y, self.labels, self.num_classes)

    @cached_property
    def probabilities(self) -> Floats:
        """The probabilities of the classes, shape (examples, classes); rows sum to 1."""
        from scipy.special import expit, softmax

        scores = self.scores.astype(np.float64)
        if scores.shape[1] == 1:
            return np.hstack([expit(-scores), expit(scores)])
        if self.loss == "cross_entropy":
            return np.asarray(softmax(scores, axis=1))
        shares = expit(scores) if self.loss == "binary_cross_entropy" else np.maximum(scores, 0)
        total = shares.sum(axis=1, keepdims=True)
        return np.divide(shares, total, out=np.full_like(shares, 1 / shares.shape[1]), where=total > 0)


class ClassScores(NamedTuple):
    """Scores of each class, of shape (classes,).

    Attributes
    ----------
    recall, precision, f1 : ndarray of float64
        NaN where not defined: recall for a class without examples, precision for a class that is never predicted, and
        F1 for a class of which both is true.
    num_examples : ndarray of int
    """

    recall: Floats
    precision: Floats
    f1: Floats
    num_examples: NDArray[np.intp]


def class_scores(y: Array, predicted: Array, num_classes: int) -> ClassScores:
    """Return the scores of each class from labels and predicted labels, each of shape (examples,)."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = np.arange(num_classes)
    precision, recall, f1, count = precision_recall_fscore_support(y, predicted, labels=classes, zero_division=np.nan)
    return ClassScores(recall, precision, f1, count)


def _macro_f1(p: Predictions) -> float:
    return float(np.nanmean(p.by_class.f1))  # of the classes that occur, as in scikit-learn


def _auc(p: Predictions) -> float:
    from sklearn.metrics import roc_auc_score

    if len(np.unique(p.y)) < p.num_classes:
        return math.nan
    if p.num_classes == 2:
        return roc_auc_score(p.y, p.probabilities[:, 1])
    return roc_auc_score(p.y, p.probabilities, multi_class="ovr")


def _log_loss(p: Predictions) -> float:
    from sklearn.metrics import log_loss

    return log_loss(p.y, p.probabilities, labels=np.arange(p.num_classes))


def _calibration_error(p: Predictions) -> float:
    """Return the expected calibration error with 15 bins of equal width.

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017 (arXiv:1706.04599), eq. 3:
    ``sum_m |B_m| / n |acc(B_m) - conf(B_m)|``, where bin m has the examples whose predicted label has a probability in
    ``((m - 1) / 15, m / 15]``.
    """
    confidence = p.probabilities[np.arange(len(p.y)), p.labels]
    bins = np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(bins, (p.labels == p.y) - confidence)).sum() / len(p.y))


def _brier_score(p: Predictions) -> float:
    """Return the mean squared distance of the probabilities from the one-hot labels; for two classes half of it.

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78(1), 1950. With two
    classes it is scikit-learn's ``brier_score_loss``, whose older versions have no other.
    """
    distances = np.square(p.probabilities - np.eye(p.num_classes)[p.y]).sum(axis=1)
    return float(distances.mean()) / (2 if p.num_classes == 2 else 1)


def _recall(p: Predictions) -> Floats:
    return p.by_class.recall


def _confusion_matrix(p: Predictions) -> Floats:
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(p.y, p.labels, labels=np.arange(p.num_classes)).astype(np.float64)


def _mae(p: Predictions) -> float:
    from sklearn.metrics import mean_absolute_error

    return mean_absolute_error(p.y, p.scores[:, 0].astype(np.float64))


def _rmse(p: Predictions) -> float:
    from sklearn.metrics import root_mean_squared_error

    return root_mean_squared_error(p.y, p.scores[:, 0].astype(np.float64))


@dataclass(frozen=True)
class Metric:
    """A metric that fedsim offers; its values are at least 0.

    Attributes
    ----------
    title : str
    compute : callable
        Function of `Predictions` of at least one example, whose scores are finite.
    axes : int
        Number of axes of its value, each with an item per class; 0 for a number.
    high : float
        Upper bound.
    regression : bool
        Whether it is for real-valued targets, and not for labels.
    rises : bool
        Whether a larger value is better.
    """

    title: str
    compute: Callable[[Predictions], Any]
    axes: int = 0
    high: float = math.inf
    regression: bool = False
    rises: bool = False


METRICS: dict[str, Metric] = {
    "macro_f1": Metric("macro F1", _macro_f1, high=1, rises=True),
    "auc": Metric("AUC", _auc, high=1, rises=True),
    "log_loss": Metric("log loss", _log_loss),
    "calibration_error": Metric("expected calibration error", _calibration_error, high=1),
    "brier_score": Metric("Brier score", _brier_score, high=2),
    "recall": Metric("recall", _recall, axes=1, high=1),
    "confusion_matrix": Metric("confusion matrix", _confusion_matrix, axes=2),
    "mae": Metric("mean absolute error", _mae, regression=True),
    "rmse": Metric("root mean squared error", _rmse, regression=True),
}


def check_metrics(metrics: Any) -> tuple[AnyMetric, ...]:
    """Return metrics as a tuple; ConfigError unless each is a name in `METRICS` or a function, with different names."""
    allowed = f"{', '.join(METRICS)}, or a function of (y, scores)"
    check_instance("metrics", metrics, tuple | list, f"a list of {allowed}")
    for metric in metrics:
        own = callable(metric) and isinstance(getattr(metric, "__name__", None), str)
        if not own and (not isinstance(metric, str) or metric not in METRICS):
            raise ConfigError(f"metrics has {shorten(metric)}; allowed: {allowed}{suggest(metric, METRICS)}")
        if own:
            _check_signature(metric)
        if own and metric.__name__ in (*RESERVED, *METRICS):
            raise ConfigError(f"metrics has a function with the name {metric.__name__!r}; allowed: another name")
    names = [metric_name(metric) for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"metrics has {name!r} {names.count(name)} times; allowed: once")
    return tuple(metrics)


def _check_signature(function: Callable[..., Any]) -> None:
    """Raise ConfigError unless a function takes two arguments; a text may name any function of a user's module."""
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        name = getattr(function, "__name__", "")
        raise ConfigError(f"metrics has {name}, which does not take (y, scores); allowed: a function of both") from None


def metric_name(metric: AnyMetric) -> str:
    """Return the name of a metric, for a function its own."""
    return metric if isinstance(metric, str) else metric.__name__


def metric_title(name: str) -> str:
    """Return the name of a metric in tables; for a user's function its name."""
    return METRICS[name].title if name in METRICS else name


def scalar_metrics(metrics: Sequence[AnyMetric]) -> tuple[str, ...]:
    """Return the names of the metrics whose value is a number."""
    return tuple(metric_name(m) for m in metrics if not isinstance(m, str) or not METRICS[m].axes)


def default_metrics(regression: bool) -> tuple[str, ...]:
    """Return the metrics in `METRICS` that are numbers, for labels or for real-valued targets."""
    return tuple(name for name, metric in METRICS.items() if metric.regression == regression and not metric.axes)


def shape_of(metric: AnyMetric, num_classes: int) -> tuple[int, ...]:
    """Return the shape of a metric's value."""
    return (num_classes,) * METRICS[metric].axes if isinstance(metric, str) else ()


def compute(metric: AnyMetric, predictions: Predictions) -> Floats:
    """Return the value of a metric, of shape `shape_of`; NaN without examples and for scores that are not finite.

    Raises
    ------
    ConfigError
        A user's function failed, or returned something else than a number.
    """
    undefined = np.full(shape_of(metric, predictions.num_classes), np.nan)
    if not len(predictions.y):
        return undefined
    if not isinstance(metric, str):
        return np.array(_call(metric, predictions))
    if not np.isfinite(predictions.scores).all():
        return undefined
    from sklearn import config_context

    with config_context(skip_parameter_validation=True, assume_finite=True):  # half of the time of small sets
        return np.asarray(METRICS[metric].compute(predictions), dtype=np.float64)


def _call(function: Callable[[Array, Array], float], predictions: Predictions) -> float:
    arguments = [values.view() for values in (predictions.y, predictions.scores)]
    for values in arguments:
        values.flags.writeable = False
    try:
        value = to_builtin(function(*arguments))
    except Exception as error:
        raise ConfigError(f"metric {function.__name__} failed: {describe(error)}") from error
    if type(value) not in (int, float):
        raise ConfigError(f"metric {function.__name__} returned {shorten(value)}; allowed: a number")
    return float(value)
