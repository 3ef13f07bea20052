"""Shapley values of features, by the package shap (extra ``explain``).

Lundberg and Lee, "A unified approach to interpreting model predictions", NeurIPS 2017 (arXiv:1705.07874). The values of
an example sum to the difference between its score and the mean score of the background examples (efficiency).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_integer, check_seed
from fedsim.errors import ConfigError, missing_extra
from fedsim.explain.subject import Subject, Weights, one_blas_thread
from fedsim.models import Array
from fedsim.streams import Purpose, generator
from fedsim.study.result import Result

#: Explainers of shap.
ALGORITHMS = ("permutation", "kernel", "exact")
#: Largest number of features of the exact explainer, which evaluates all of their subsets.
MOST_EXACT = 15
#: Number of examples of the default background.
BACKGROUND = 100


@checked_arguments
def shap_values(
    result: Result,
    x: Array | None = None,
    *,
    background: Array | None = None,
    algorithm: str = "permutation",
    permutations: int = 10,
    seed: int = 0,
    weights: Weights | None = None,
) -> Any:
    """Return the Shapley values of the scores of examples, before any sigmoid or softmax.

    A feature that is absent has the value of a background example, whatever the values of the other features. So the
    values depend on the background and, for correlated features, on examples that do not exist.

    Parameters
    ----------
    result : Result
    x : ndarray, shape (examples, features), optional
        Preprocessed as the dataset's; default its test set.
    background : ndarray, shape (any, features), optional
        Default the first 100 examples of the test set.
    algorithm : {"permutation", "kernel", "exact"}
        Explainer of shap. ``"exact"`` evaluates all subsets of at most 15 features; the others are estimates.
    permutations : int
        Number of permutations of the features for each example, for ``"permutation"``; each is used in both directions.
    seed : int
    weights : ndarray, shape (parameters,), or mapping of str to ndarray, optional
        Default the final global weights.

    Returns
    -------
    shap.Explanation
        What shap's plots take: ``values`` of shape (examples, features, outputs), or (examples, features) for a model
        with one output, ``base_values``, ``data`` and ``feature_names``.

    Raises
    ------
    ConfigError
        An argument is not allowed, or the extra is not installed.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    check_integer("permutations", permutations, 1)
    check_seed("seed", seed)
    subject = Subject.of(result, weights)
    examples = subject.examples(x)
    if examples.ndim > 2:
        raise ConfigError(f"x has shape {examples.shape}; allowed for shap_values: (examples, features)")
    features = examples.shape[1]
    if algorithm == "exact" and features > MOST_EXACT:
        raise ConfigError(f"algorithm is 'exact' for {features} features; allowed: at most {MOST_EXACT}")
    others = subject.examples(subject.dataset.x_test[:BACKGROUND] if background is None else background, "background")
    try:
        import shap
    except ImportError:
        raise missing_extra("shap_values", "explain") from None

    def scores(rows: Any) -> Array:
        found = subject.scores(rows).astype(np.float64)
        return found[:, 0] if found.shape[1] == 1 else found

    names = list(subject.dataset.feature_names) or None
    with _seeded(seed), one_blas_thread():
        if algorithm == "kernel":
            return shap.KernelExplainer(scores, others, feature_names=names)(examples, l1_reg=False, silent=True)
        masker = shap.maskers.Independent(others, max_samples=len(others))
        if algorithm == "exact":
            return shap.ExactExplainer(scores, masker, feature_names=names)(examples, silent=True)
        explainer = shap.PermutationExplainer(scores, masker, feature_names=names, seed=np.random.randint(2**31))  # noqa: NPY002
        return explainer(examples, max_evals=permutations * (2 * features + 1), silent=True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which shap draws from, and restore its state afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(generator(seed, Purpose.IMPORTANCE).integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
