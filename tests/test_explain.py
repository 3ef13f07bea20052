"""Explanations: identities of gradients, attributions, prototypes and importances, and other libraries' answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.inspection import permutation_importance as sklearn_importance
from sklearn.metrics import r2_score

from fedsim import Experiment, Result, explain
from fedsim.clients import SGD
from fedsim.data import Dataset
from fedsim.data.shared import share
from fedsim.data.table import encode
from fedsim.errors import ConfigError, DataError
from fedsim.explain import importance as importance_module
from fedsim.models import MLP, Array, Model
from fedsim.report.leaks import plot_images
from fedsim.splits import IID, Natural
from fedsim.streams import Purpose, keys

ACTIVATIONS = ("relu", "tanh", "sigmoid")


class Linear(Model):
    """A softmax regression that is not an MLP and has no gradient with respect to its inputs."""

    dtype, loss, outputs = "float64", "cross_entropy", 10

    def __init__(self) -> None:
        self.inner = MLP((64, 10), dtype="float64")

    @property
    def layout(self) -> Any:
        return self.inner.layout

    @property
    def groups(self) -> Any:
        return self.inner.groups

    def init(self, rng: np.random.Generator) -> Array:
        return self.inner.init(rng)

    def scores(self, parameters: Array, x: Array) -> Array:
        return self.inner.scores(parameters, x)

    def representation(self, parameters: Array, x: Array) -> Array:
        return self.scores(parameters, x)

    def loss_and_gradient(self, *args: Any, **options: Any) -> Any:
        return self.inner.loss_and_gradient(*args, **options)


@cache
def digits(
    hidden: tuple[int, ...] = (50,), activation: str = "relu", dtype: str = "float64", rounds: int = 5
) -> Result:
    client = SGD(lr=0.1, epochs=5, weight_decay=0.003)
    experiment = Experiment(
        hidden=hidden, activation=activation, dtype=dtype, split=IID(10), client=client, rounds=rounds, kernel="numpy"
    )
    return experiment.run(workers=1)


def untrained(dataset: Dataset, **options: Any) -> Result:
    """A result after one round with a tiny learning rate, for tests that give weights of their own."""
    given: dict[str, Any] = {"hidden": (), "dtype": "float64", "split": IID(2), "client": SGD(lr=1e-9), "rounds": 1}
    return Experiment(dataset=dataset, **given | options).run(workers=1)


def gaussian(rows: int, features: int, seed: int = 0, **options: Any) -> Dataset:
    """Normal features; labels are whether the first one is positive."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * rows, features))
    y = (x[:, 0] > 0).astype(int)
    return Dataset("normal", x[:rows], y[:rows], x[rows:], y[rows:], 2, **options)


def linear_weights(result: Result, matrix: Array) -> Array:
    """A flat row of a model without hidden layers: weights, and biases of 0.3."""
    return np.append(matrix.ravel(), np.full(matrix.shape[1], 0.3))


# Gradients with respect to the input


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6), (5, 6, 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_input_gradient_equals_finite_differences(activation: str, hidden: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    model = MLP((5, *hidden, 3), activation, dtype="float64")
    rows = rng.normal(size=(2, model.num_parameters))
    x, direction = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 3))
    gradient = model.input_gradient(rows, x, direction)
    kept = direction.copy()
    step = 1e-6
    for feature in range(5):
        shift = step * (np.arange(5) == feature)
        change = model.scores(rows, x + shift) - model.scores(rows, x - shift)
        slope = (direction * change).sum(axis=-1) / (2 * step)
        np.testing.assert_allclose(gradient[..., feature], slope, rtol=1e-6, atol=1e-7)
    assert (direction == kept).all()


def test_the_saliency_of_a_linear_model_is_its_weights() -> None:
    """Simonyan et al., section 3: for a linear score the magnitude of the weights says which pixels matter."""
    result = digits(())
    maps = explain.saliency(result, target=3)
    np.testing.assert_allclose(maps, np.broadcast_to(np.abs(result.weights["W1"][:, 3]), maps.shape))
    labels = np.arange(355) % 10
    np.testing.assert_allclose(explain.score_gradient(result, target=labels), result.weights["W1"].T[labels])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(50,), (20, 20)])
def test_integrated_gradients_are_complete(activation: str, hidden: tuple[int, ...]) -> None:
    """Sundararajan et al., proposition 1: attributions sum to the difference of the scores."""
    result = digits(hidden, activation, rounds=1)
    x, baseline = result.dataset.x_test[:40].astype(float), np.full(64, 0.25)
    found = explain.integrated_gradients(result, x, 7, baseline=baseline, steps=400)
    change = result.scores(x)[:, 7] - result.scores(baseline[None])[0, 7]
    np.testing.assert_allclose(found.sum(axis=1), change, atol=5e-3 if activation == "relu" else 1e-5)


def test_fifty_steps_are_complete_to_a_hundredth() -> None:
    result = digits(dtype="float32")
    found = explain.integrated_gradients(result)
    labels = result.predict()
    change = result.scores()[np.arange(355), labels] - result.scores(np.zeros((1, 64)))[0, labels]
    assert np.abs(found.sum(axis=1) - change).max() < 0.01 * np.abs(change).mean()


def test_a_feature_on_which_the_score_does_not_depend_gets_nothing() -> None:
    """Sundararajan et al.: sensitivity (b), and a feature that equals the baseline."""
    result = digits()
    weights = dict(result.weights) | {"W1": result.weights["W1"] * (np.arange(64) != 20)[:, None]}
    for method in (explain.saliency, explain.integrated_gradients):
        assert (method(result, weights=weights)[:, 20] == 0).all()
        assert (method(result)[:, 20] != 0).any()
    x = result.dataset.x_test
    assert (explain.integrated_gradients(result)[x == 0] == 0).all()


def test_models_with_one_output_explain_it() -> None:
    data = gaussian(30, 4)
    for options in ({"loss": "binary_cross_entropy"}, {"loss": "mse", "dataset": replace(data, regression=True)}):
        result = untrained(**{"dataset": data, **options})  # type: ignore[arg-type]
        weights = linear_weights(result, np.array([[1.0], [-2.0], [0.0], [3.0]]))
        assert (explain.saliency(result, weights=weights) == [1, 2, 0, 3]).all()
        np.testing.assert_allclose(
            explain.integrated_gradients(result, weights=weights, steps=1), data.x_test * [1, -2, 0, 3]
        )
        with pytest.raises(ConfigError, match="target is 1; allowed: a whole number, 0 to 0"):
            explain.saliency(result, target=1)


# Prototypes


def test_prototypes_of_the_first_layer_have_a_closed_form() -> None:
    result = digits()
    x = result.dataset.x_test.astype(float)
    mean, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
    w = result.weights["W1"].T
    assert (explain.input_weights(result) == w).all()
    length = np.sqrt(np.einsum("uf,fg,ug->u", w, covariance, w))[:, None]
    for radius in (0.5, 3.0):
        expected = np.clip(mean + radius * w @ covariance / length, x.min(axis=0), x.max(axis=0))
        np.testing.assert_allclose(explain.prototypes(result, radius=radius), expected, atol=1e-6)
    plain = mean + 2 * w / np.linalg.norm(w, axis=1, keepdims=True) * np.sqrt(x.var(axis=0).mean())
    found = explain.prototypes(result, radius=2, norm="euclidean")
    np.testing.assert_allclose(found, np.clip(plain, x.min(axis=0), x.max(axis=0)), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_input_in_the_ball_excites_a_unit_more(seed: int) -> None:
    """With hidden layers too, if the activations are so small that they are nearly linear."""
    rng = np.random.default_rng(seed)
    result = small()
    model = result.model
    weights = 0.05 * rng.normal(size=model.num_parameters)
    x = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    found = explain.class_prototypes(result, x=x, radius=0.3, weights=weights)
    root = np.linalg.cholesky(np.cov(x.T, bias=True))
    inside = rng.normal(size=(300, 4))
    inside *= 0.3 / np.linalg.norm(inside, axis=1, keepdims=True)
    others = model.scores(weights[None], (x.mean(axis=0) + inside @ root.T)[None])[0]
    reached = np.diag(model.scores(weights[None], found[None])[0])
    assert (reached >= others.max(axis=0) - 1e-6).all()
    distance = np.linalg.norm(np.linalg.solve(root, (found - x.mean(axis=0)).T), axis=0)
    assert (distance <= 0.3 + 1e-6).all()


@cache
def small() -> Result:
    return untrained(gaussian(30, 4), hidden=(6,), activation="tanh")


def test_class_prototypes_are_classified_as_their_class() -> None:
    result = digits((50, 20))
    found = explain.class_prototypes(result)
    assert (result.predict(found) == np.arange(10)).all()
    assert (explain.prototypes(result, 3) == found).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_prototypes_of_deeper_layers_excite_their_unit_more_than_any_test_image() -> None:
    result = digits((50, 20), "tanh")
    model, row = result.model, result.flat_weights
    found = explain.prototypes(result, 2, radius=6)
    reached = np.diag(model.representation(row[None], found[None])[0])
    images = model.representation(row[None], result.dataset.x_test[None].astype(float))[0]
    assert (reached > np.quantile(images, 0.99, axis=0)).all()
    best = explain.most_exciting(result, 2, 3)
    assert (images[best[:, 0], np.arange(20)] == images.max(axis=0)).all()
    assert best.shape == (20, 3)


# Importance


class Estimator:
    """A result as an estimator of scikit-learn."""

    def __init__(self, result: Result) -> None:
        self.result = result

    def fit(self) -> None: ...


def score_of(estimator: Estimator, x: Array, y: Array) -> float:
    predicted = estimator.result.predict(x)
    return float(r2_score(y, predicted) if estimator.result.score == "r2" else np.mean(predicted == y))


def scikit_learns_importance(result: Result, repeats: int) -> Any:
    x, y = result.dataset.x_test, result.dataset.y_test
    return sklearn_importance(Estimator(result), x, y, scoring=score_of, n_repeats=repeats, random_state=0)


def test_permutation_importance_agrees_with_scikit_learn() -> None:
    result = digits(())
    found = explain.permutation_importance(result, repeats=20)
    known = scikit_learns_importance(result, 20)
    error = np.hypot(found.values.std(axis=0), known.importances_std) / np.sqrt(20)
    assert (np.abs(found.mean - known.importances_mean * 355 / 354) <= 4.5 * error + 1e-12).all()
    assert found.names[2] == "2"
    assert found.values.shape == (20, 64)


def test_the_importance_of_r_squared_agrees_with_scikit_learn() -> None:
    data = gaussian(100, 3)
    rng = np.random.default_rng(2)
    y = [x @ [2.0, -1.0, 0.0] + 0.3 * rng.normal(size=len(x)) for x in (data.x_train, data.x_test)]
    data = Dataset("plane", data.x_train, y[0], data.x_test, y[1], regression=True, feature_names=("a", "b", "c"))
    result = Experiment(
        dataset=data, hidden=(), loss="mse", dtype="float64", split=IID(4), client=SGD(lr=0.05), rounds=20
    ).run(workers=1)
    found = explain.permutation_importance(result, repeats=30)
    known = scikit_learns_importance(result, 30)
    np.testing.assert_allclose(found.mean, known.importances_mean, rtol=0.1, atol=0.01)
    frame = found.to_frame()
    assert frame["column"].tolist() == ["a", "b", "c"]
    assert (frame["smallest"] <= frame["importance"]).all()
    assert frame["ci95"].notna().all()
    clients = explain.client_importance(result, repeats=30)
    pooled = explain.permutation_importance(result, data.x_train, data.y_train, repeats=30)
    np.testing.assert_allclose(clients.mean, pooled.mean, rtol=0.1, atol=0.02)
    assert clients.score == "r2"


def test_repetitions_estimate_the_mean_over_all_pairs() -> None:
    """Fisher et al., section 3: each example with each other example's value."""
    data = gaussian(4, 3, seed=3)
    result = untrained(data)
    weights = linear_weights(result, np.random.default_rng(4).normal(size=(3, 2)))
    x, y = data.x_test, data.y_test

    def correct(rows: Array) -> Array:
        return result.model.scores(weights[None], rows[None])[0].argmax(axis=1)

    base = (correct(x) == y).mean()
    for feature in range(3):
        pairs = []
        for one, other in permutations(range(4), 2):
            row = x[one].copy()
            row[feature] = x[other, feature]
            pairs.append(correct(row[None])[0] == y[one])
        found = explain.permutation_importance(result, columns={"x": [feature]}, repeats=4000, weights=weights)
        assert abs(found.mean[0] - (base - np.mean(pairs))) < 4 * found.values.std() / np.sqrt(4000) + 1e-12


@given(st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_no_example_keeps_its_own_value(size: int, seed: int) -> None:
    found = importance_module._cycles(keys(seed, Purpose.IMPORTANCE, 0, 0, np.arange(3)), size)
    assert (np.sort(found, axis=1) == np.arange(size)).all()
    assert size == 1 or (found != np.arange(size)).all()


def test_columns_are_permuted_together() -> None:
    """One-hot columns: permuted one by one they would make examples of two categories, or of none."""
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], 300)
    frame = pd.DataFrame(
        {"colour": colour, "noise": rng.normal(size=300), "label": np.where(colour == "red", "y", "n")}
    )
    data = encode(frame, "colours", "label")
    assert data.feature_names == ("noise", "colour: blue", "colour: green", "colour: red")
    assert data.feature_columns == ("noise", "colour", "colour", "colour")
    result = untrained(data)
    weights = linear_weights(result, np.array([[0, 0], [3, 0], [3, 0], [0, 3.0]]))
    found = explain.permutation_importance(result, weights=weights, repeats=200)
    assert found.names == ("noise", "colour")
    red = (data.y_test == 1).mean()
    assert found.mean[0] == 0
    assert found.mean[1] == pytest.approx(2 * red * (1 - red) * 60 / 59, abs=0.01)


def test_a_column_that_is_constant_within_clients_has_no_importance_there() -> None:
    """What differs between clients only is not seen without pooling, and is seen on pooled examples."""
    hospital = np.repeat([0, 1], 40)
    x = np.column_stack([np.where(hospital == 1, 1.0, -1.0), np.random.default_rng(0).normal(size=80)])
    data = Dataset("hospitals", x, hospital, x, hospital, groups={"hospital": hospital})
    result = untrained(data, split=Natural("hospital"))
    weights = linear_weights(result, np.array([[-1.0, 1.0], [0, 0]]))
    assert explain.client_importance(result, weights=weights).mean.tolist() == [0, 0]
    assert explain.permutation_importance(result, weights=weights).mean[0] == pytest.approx(40 / 79, abs=0.1)


def test_clients_agree_with_the_pooled_examples_if_their_data_are_iid() -> None:
    result = digits(())
    data = result.dataset
    clients = explain.client_importance(result)
    pooled = explain.permutation_importance(result, data.x_train, data.y_train)
    assert np.corrcoef(clients.mean, pooled.mean)[0, 1] > 0.97
    assert clients.values.shape == (10, 64)
    assert clients.num_examples.sum() == len(data.y_train)
    np.testing.assert_allclose(clients.mean, (clients.num_examples @ clients.values) / clients.num_examples.sum())
    assert np.isnan(clients.half_widths).all()


def test_a_client_with_one_example_cannot_measure_importance() -> None:
    data = gaussian(60, 3, groups={"client": np.minimum(np.arange(60), 31)})
    result = Experiment(dataset=data, split=Natural("client"), rounds=1).run()
    found = explain.client_importance(result)
    assert found.num_examples.tolist() == [0] * 31 + [29]
    assert found.mean == pytest.approx(found.values[-1])
    alone = replace(result.experiment, split=IID(60)).run()
    with pytest.raises(ConfigError, match="no client has two examples"):
        explain.client_importance(alone)


def test_each_client_may_have_its_own_weights_and_test_examples() -> None:
    result = untrained(gaussian(40, 2), split=IID(2), test_fraction=0.5)
    useful, useless = (linear_weights(result, np.array(w, float)) for w in ([[-9, 9], [0, 0]], [[0, 0], [0, 0]]))
    found = explain.client_importance(result, weights=np.stack([useful, useless]))
    assert found.num_examples.tolist() == [10, 10]
    assert found.values[0, 0] > 0.2
    assert (found.values[1] == 0).all()


def test_importance_does_not_depend_on_blocks_and_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = digits(())
    whole = explain.permutation_importance(result, repeats=3)
    monkeypatch.setattr(importance_module, "BLOCK", 1)
    assert (explain.permutation_importance(result, repeats=3).values == whole.values).all()
    assert (explain.permutation_importance(result, repeats=4).values[:3] == whole.values).all()
    assert (explain.permutation_importance(result, repeats=3, seed=1).values != whole.values).any()


def test_a_model_that_is_not_an_mlp() -> None:
    result = Experiment(model=lambda data: Linear(), split=IID(2), rounds=2).run(workers=1)
    found = explain.permutation_importance(result, repeats=2)
    known = explain.permutation_importance(untrained(result.dataset), repeats=2, weights=result.weights)
    assert (found.values == known.values).all()
    with pytest.raises(ConfigError, match="model is Linear, which has no method input_gradient; allowed: MLP"):
        explain.saliency(result)
    with pytest.raises(ConfigError, match="model is Linear, whose units are not known; allowed: MLP"):
        explain.prototypes(result)


# Shapley values

EXACT = pytest.param("exact", marks=pytest.mark.slow)  # shap compiles it for some seconds


@pytest.mark.parametrize("algorithm", [EXACT, "kernel", "permutation"])
def test_shapley_values_of_a_linear_model(algorithm: str) -> None:
    """Lundberg and Lee, corollary 1: weights times the difference from the background's mean; and efficiency."""
    pytest.importorskip("shap")
    data = gaussian(30, 4, feature_names=("a", "b", "c", "d"))
    result = untrained(data, loss="binary_cross_entropy")
    w = np.array([1.0, -2.0, 0.0, 3.0])
    weights = linear_weights(result, w[:, None])
    background = data.x_train[:7]
    np.random.seed(5)  # noqa: NPY002
    found = explain.shap_values(result, data.x_test[:3], background=background, algorithm=algorithm, weights=weights)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002
    np.testing.assert_allclose(found.values, w * (data.x_test[:3] - background.mean(axis=0)), atol=1e-9)
    assert list(found.feature_names) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("algorithm", [EXACT, "permutation"])
def test_shapley_values_are_efficient(algorithm: str) -> None:
    pytest.importorskip("shap")
    result = small()
    weights = np.random.default_rng(0).normal(size=result.model.num_parameters)
    x = result.dataset.x_test[:3]
    options: dict[str, Any] = {"background": x, "algorithm": algorithm, "weights": weights}
    found, again = (explain.shap_values(result, x, **options) for _ in range(2))
    scores = result.model.scores(weights[None], x[None])[0]
    np.testing.assert_allclose(found.values.sum(axis=1) + found.base_values, scores, atol=1e-9)
    np.testing.assert_allclose(found.base_values, np.tile(scores.mean(axis=0), (3, 1)), atol=1e-9)
    assert (found.values == again.values).all()


def test_without_shap_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(ConfigError, match=r"shap_values needs the extra 'explain'.*pip install 'fedsim\[explain\]'"):
        explain.shap_values(small())


# Fidelity


def test_deleting_attributed_pixels_changes_predictions_faster_than_deleting_random_ones() -> None:
    result = digits()
    shares = [0, 0.1, 0.2, 1]
    integrated = explain.deletion_curve(result, explain.integrated_gradients(result), fractions=shares)
    random = explain.deletion_curve(result, np.random.default_rng(0).random((355, 64)), fractions=shares)
    assert integrated[0] == random[0] == 1
    assert integrated[3] == random[3]
    assert integrated[1] < random[1] - 0.3
    assert integrated[2] < random[2] - 0.5


def test_features_against_the_prediction_are_deleted_last() -> None:
    """The order is that of the signed values, so a constant changes nothing."""
    result = small()
    maps = explain.integrated_gradients(result, steps=5)
    curve = explain.deletion_curve(result, maps)
    assert np.array_equal(explain.deletion_curve(result, maps - 2 * np.abs(maps).max()), curve)
    assert not np.array_equal(explain.deletion_curve(result, np.abs(maps)), curve)


def test_attributions_of_a_model_with_random_weights_differ() -> None:
    """The sanity check of Adebayo et al.: a map that survives randomisation is not of the model."""
    result = digits()
    weights = result.model.init(np.random.default_rng(1))
    labels = result.predict()
    for method in (explain.saliency, explain.integrated_gradients):
        maps = method(result, target=labels)
        assert explain.rank_correlation(maps, maps).mean() == pytest.approx(1)
        assert abs(np.mean(explain.rank_correlation(maps, method(result, target=labels, weights=weights)))) < 0.2


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (6, 9)), rng.normal(size=(6, 9))
    known = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(explain.rank_correlation(a, b), known)
    assert np.isnan(explain.rank_correlation(np.zeros((1, 3)), np.ones((1, 3)))).all()


# Names of features


def test_feature_names_are_those_of_the_tables_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": np.where(np.arange(60) % 7 == 0, np.nan, rng.normal(size=60)),
            "job": rng.choice(["a", "b", "c", "d", "e"], 60, p=[0.4, 0.3, 0.1, 0.1, 0.1]),
            "age is missing": rng.normal(size=60),
            "y": np.arange(60) % 2,
        }
    )
    data = encode(frame, "people", "y", max_categories=3)
    expected = ("age", "age is missing", "age is missing'", "job: a", "job: b", "job: (other)")
    assert data.feature_names == expected
    assert data.feature_columns == ("age", "age is missing", "age", "job", "job", "job")
    assert len(expected) == data.x_train.shape[1]
    assert set(np.unique(data.x_train[:, 3:])) == {0.0, 1.0}
    shared = share(data, tmp_path / "shared")
    assert (shared.feature_names, shared.feature_columns) == (data.feature_names, data.feature_columns)
    changed = IID(3).federate(data).replace_examples(y=data.y_train).dataset
    assert changed.feature_names == expected


@pytest.mark.parametrize(
    ("names", "columns", "sentence"),
    [
        (("a",), (), "feature_names has 1 items; allowed: a text for each feature"),
        (("a", 1), (), "feature_names has 2 items"),
        (("a", "a"), (), "feature_names has a name twice"),
        (("a", "b"), ("a", "a", "a"), "feature_columns has 3 items"),
    ],
)
def test_odd_feature_names_are_refused(names: Any, columns: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        gaussian(4, 2, feature_names=names, feature_columns=columns)


# Refusals and pictures


RAGGED: Any = [[1, 2], [3]]
ODD: list[tuple[Callable[[Result], Any], str]] = [
    (
        lambda r: explain.saliency(r, np.zeros((2, 3))),
        r"x has shape \(2, 3\).*numbers of shape \(examples, 4\)",
    ),
    (lambda r: explain.saliency(r, np.zeros((0, 4))), "at least one example"),
    (lambda r: explain.saliency(r, np.zeros(4)), r"x has shape \(4,\)"),
    (lambda r: explain.saliency(r, RAGGED), "x has shape"),
    (lambda r: explain.saliency(r, np.full((1, 4), np.nan)), "x has values that are NaN or infinite"),
    (lambda r: explain.saliency(r, target=2), "target is 2; allowed: a whole number, 0 to 1"),
    (lambda r: explain.saliency(r, target=True), "target is True"),
    (lambda r: explain.saliency(r, target=[0, 1]), "target is .* or one for each of 30 examples"),
    (lambda r: explain.saliency(r, weights=np.zeros(3)), "allowed: a row of 44 numbers"),
    (lambda r: explain.saliency(r, weights=np.zeros((2, 44))), r"weights has shape \(2, 44\); allowed: \(44,\)"),
    (lambda r: explain.saliency(r, weights=np.full(44, np.inf)), "weights has values that are NaN or infinite"),
    (lambda r: explain.saliency(r, weights={"W1": np.zeros((4, 6))}), "weights has no array 'b1'"),
    (lambda r: explain.saliency(r, weights=r.weights | {"W1": r.weights["W1"].T}), "weights has W1 of shape"),
    (lambda r: explain.saliency("digits"), "result is 'digits'; allowed: the Result of an experiment"),  # type: ignore[arg-type]
    (lambda r: explain.permutation_importance(r, np.zeros((1, 4)), np.zeros(1)), "x has 1 example; allowed: at least"),
    (lambda r: explain.integrated_gradients(r, steps=0), "steps is 0; allowed: a whole number, 1 or more"),
    (lambda r: explain.integrated_gradients(r, baseline=np.zeros(3)), "baseline has shape"),
    (lambda r: explain.integrated_gradients(r, baseline=np.zeros((2, 4))), "baseline has 2 examples; allowed: 1, or"),
    (lambda r: explain.prototypes(r, 3), "layer is 3; allowed: a whole number, 1 to 2"),
    (lambda r: explain.prototypes(r, norm="l1"), "norm is 'l1'; allowed: mahalanobis, euclidean"),
    (lambda r: explain.prototypes(r, radius=0), "radius is 0; allowed: a finite number greater than 0"),
    (lambda r: explain.prototypes(r, steps=True), "steps is True"),
    (lambda r: explain.most_exciting(r, count=31), "count is 31; allowed: a whole number, 1 to 30"),
    (lambda r: explain.permutation_importance(r, np.zeros((2, 4))), "x and y are not given together"),
    (
        lambda r: explain.permutation_importance(r, np.zeros((2, 4)), np.zeros(1)),
        "y has 1 labels; allowed: one for each of 2",
    ),
    (
        lambda r: explain.permutation_importance(r, np.zeros((2, 4)), np.array([0, 2])),
        "allowed: whole numbers from 0 to 1",
    ),
    (lambda r: explain.permutation_importance(r, columns={}), "columns is empty"),
    (lambda r: explain.permutation_importance(r, columns=RAGGED), "columns is .*allowed: a mapping"),
    (lambda r: explain.permutation_importance(r, columns={"a": [4]}), r"columns\['a'\] is 4; allowed: .*0 to 3"),
    (lambda r: explain.permutation_importance(r, columns={"a": [1, 1]}), "at least one position, each once"),
    (lambda r: explain.permutation_importance(r, repeats=0), "repeats is 0"),
    (lambda r: explain.client_importance(r, seed=-1), "seed is -1"),
    (lambda r: explain.client_importance(r, weights=np.zeros((3, 44))), "one row, or one for each of 2 clients"),
    (lambda r: explain.shap_values(r, algorithm="tree"), "algorithm is 'tree'; allowed: permutation, kernel, exact"),
    (lambda r: explain.shap_values(r, background=np.zeros((0, 4))), "background has shape"),
    (lambda r: explain.shap_values(r, permutations=0), "permutations is 0"),
    (lambda r: explain.deletion_curve(r, np.zeros((3, 4))), "attributions has 3 rows; allowed: one for each of 30"),
    (lambda r: explain.deletion_curve(r, np.zeros((30, 4)), fractions=[2]), "fractions is 2"),
    (lambda r: explain.rank_correlation(np.zeros((3, 4)), np.zeros((2, 4))), "second has shape"),
]


@pytest.mark.parametrize(("call", "sentence"), ODD)
def test_odd_input_is_refused(call: Callable[[Result], Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        call(small())


def test_the_exact_explainer_and_the_deletion_curve_say_what_they_need() -> None:
    with pytest.raises(ConfigError, match="algorithm is 'exact' for 64 features; allowed: at most 15"):
        explain.shap_values(digits(()), algorithm="exact")
    regression = untrained(replace(gaussian(30, 4), regression=True), loss="mse")
    with pytest.raises(ConfigError, match="deletion_curve is for labels"):
        explain.deletion_curve(regression, np.zeros((30, 4)))


def test_pictures(tmp_path: Path) -> None:
    signed = np.array([[-1.0, 0.5, 0, 0]])
    plot_images([("units", signed, ["unit 3"]), ("zeros", np.zeros((1, 4)), None)], tmp_path / "a.png", "title")
    explain.permutation_importance(digits(()), repeats=2).plot(tmp_path / "b.png", 5)
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in "ab")


def test_the_code_on_the_trust_page_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "trust.md").read_text(encoding="utf-8")
    section = page.split("## What the model has learned")[1].split("\n## ")[0]
    [code] = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, "trust", "exec"), names)
    assert names["units"].shape == (50, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pictures", "options"),
    [
        ("explain_digits", ["prototypes", "saliency"], ["--epochs", "1"]),
        ("explain_table", ["explain_table"], ["--clients", "3", "--repeats", "2"]),
    ],
)
def test_the_scripts_print_a_table_and_write_pictures(
    name: str, pictures: list[str], options: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("shap")
    script = Path(__file__).parents[1] / "experiments" / "trust" / f"{name}.py"
    command = [sys.executable, str(script), "--rounds", "2", "--seeds", "2", *options, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"wrote {name}.csv, {', '.join(f'{picture}.png' for picture in pictures)}" in done.stdout
    assert all((tmp_path / f"{picture}.png").stat().st_size > 10_000 for picture in pictures)
    assert len(pd.read_csv(tmp_path / f"{name}.csv")) >= 4


def test_a_bad_option_of_a_script_is_one_sentence(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "experiments" / "trust" / "explain_digits.py"
    command = [sys.executable, str(script), "--seeds", "0", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--seeds is 0; allowed: a whole number, 1 or more" in done.stderr
