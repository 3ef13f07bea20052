"""Real-valued targets: mean squared error, R squared, both kernels, and what asks for labels refuses them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from fedsim import Experiment, compare
from fedsim.clients import SCAFFOLD, SGD, Context, FedLC
from fedsim.data import Dataset
from fedsim.errors import ConfigError, DataError
from fedsim.models import named_arrays
from fedsim.splits import IID, Dirichlet, LabelNoise, LabelPermutation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(900, 5)).astype(np.float32)
Y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * RNG.normal(size=900)
DATASET = Dataset("curves", X[:700], Y[:700], X[700:], Y[700:], regression=True)
BASE = Experiment(
    dataset=DATASET,
    split=Dirichlet(10, alpha=0.5),
    hidden=(24,),
    activation="tanh",
    loss="mse",
    client=SGD(lr=0.1, epochs=3),
    rounds=20,
    fraction_evaluate=1.0,
)


def test_r_squared_is_scikit_learns() -> None:
    result = replace(BASE, split=IID(10)).run()
    model = BASE.make_model(DATASET)
    flat = np.concatenate([w.ravel() for w in result.weights.values()])
    predicted = model.scores(flat[None], X[None, 700:])[0, :, 0]
    assert result.score == "r2"
    assert result.final_score == pytest.approx(r2_score(Y[700:], predicted), abs=1e-5)
    assert result.final_score > 0.5
    last = result.history.iloc[-1]
    assert last["test_loss"] == pytest.approx(((predicted - Y[700:]) ** 2).mean(), rel=1e-4)
    assert last["local_r2"] == pytest.approx(1 - last["local_loss"] / Y[700:].var(), rel=1e-6)
    assert list(result.clients.columns) == ["round", "partition_id", "num_examples", "loss", "r2"]
    assert "test_accuracy" not in result.history


@pytest.mark.xdist_group("regression")  # a kernel is compiled once
@pytest.mark.parametrize("client", [SGD(lr=0.05, momentum=0.5, epochs=2), SCAFFOLD(lr=0.05)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_kernels_agree(client: SGD, dtype: str) -> None:
    runs = [replace(BASE, client=client, dtype=dtype, rounds=3, kernel=k).run() for k in ("numpy", "compiled")]
    for name in runs[0].weights:
        tolerance = 1e-3 if dtype == "float32" else 1e-10
        np.testing.assert_allclose(runs[0].weights[name], runs[1].weights[name], atol=tolerance)


def test_a_full_step_is_the_gradient_of_the_mean_squared_error() -> None:
    experiment = replace(
        BASE, split=IID(1), hidden=(), client=SGD(lr=0.1, epochs=1, batch_size=None), rounds=1, dtype="float64"
    )
    from fedsim.streams import Purpose, generator

    model = experiment.make_model(DATASET)
    start = named_arrays(model, model.init(generator(0, Purpose.INIT)))
    error = X[:700] @ start["W1"][:, 0] + start["b1"][0] - Y[:700]
    expected = start["W1"][:, 0] - 0.1 * 2 * X[:700].astype(float).T @ error / 700
    np.testing.assert_allclose(experiment.run().weights["W1"][:, 0], expected, rtol=1e-9)


def test_a_study_names_what_it_measures(tmp_path: Any) -> None:
    study = compare(replace(BASE, rounds=3), split=[IID(5), Dirichlet(5, alpha=0.1)], seeds=2)
    assert "final R2" in study.table()
    assert "local R2" in study.table()
    assert "final_r2" in study.summary()
    study.plot(tmp_path / "a.png")
    study.plot(tmp_path / "b.png", "local")
    study.plot_score_by_skew(tmp_path / "c.png")
    with pytest.raises(ConfigError, match="mixes labels and real-valued targets"):
        compare(replace(BASE, rounds=1), dataset=[DATASET, Dataset("d", X, Y > 0, X, Y > 0)])


class Counting(SGD):
    """Looks at labels."""

    def train(self, ctx: Context) -> NDArray[Any]:
        assert ctx.label_counts.any()
        return ctx.fit()


def test_labels_cannot_be_asked_for() -> None:
    for experiment, sentence in [
        (
            replace(BASE, loss="cross_entropy"),
            "loss is 'cross_entropy', and curves has real-valued targets; allowed: mse",
        ),
        (replace(BASE, client=FedLC()), "loss with FedLC, which changes the softmax, is 'mse'"),
        (replace(BASE, client=Counting()), "Counting counts labels; the targets here are real numbers"),
        (replace(BASE, split=LabelNoise(IID(5))), "LabelNoise changes labels; curves has real-valued targets"),
        (replace(BASE, split=LabelPermutation(IID(5))), "LabelPermutation changes labels"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            experiment.run()


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array(["a", "b"]), np.zeros((2, 1)), np.zeros(0)])
def test_bad_targets_are_refused(bad: Any) -> None:
    x = np.zeros((2, 1))
    with pytest.raises(DataError, match="y_train must be finite numbers"):
        Dataset("bad", x, bad, x, np.zeros(2), regression=True)


def test_targets_that_do_not_vary_have_no_r_squared() -> None:
    flat = Dataset("flat", X, np.ones(900), X, np.ones(900), regression=True)
    history = replace(BASE, dataset=flat, rounds=1).run().history
    assert history["test_r2"].isna().all()
    assert history["test_loss"].notna().all()


def test_truth_values_are_targets() -> None:
    x, y = np.zeros((3, 2)), np.array([True, False, True])
    made = Dataset("flags", x, y, x, y, regression=True)
    assert made.y_train.tolist() == [1.0, 0.0, 1.0]
