"""The network against finite differences, scikit-learn and PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.models import MLP, named_arrays
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.losses import LOSSES, is_correct
from fedsim.models.model import Array

RNG = np.random.default_rng


def random_rows(model: MLP, clients: int, seed: int = 0) -> Array:
    """Weights and biases that are all nonzero."""
    rows: Array = RNG(seed).normal(0, 0.5, (clients, model.num_parameters)).astype(model.dtype)
    return rows


@pytest.mark.parametrize(
    ("sizes", "loss"),
    [
        (sizes, loss)
        for sizes in [(4, 3), (4, 5, 3), (4, 5, 6, 3), (3, 4, 1)]
        for loss in LOSSES
        if sizes[-1] > 1 or loss != "cross_entropy"  # a softmax over one output is constant
    ],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_equals_finite_differences(sizes: tuple[int, ...], activation: str, loss: str) -> None:
    model = MLP(sizes, activation, loss, "float64")
    w = random_rows(model, 2)
    x = RNG(1).normal(size=(2, 7, sizes[0]))
    y = RNG(2).integers(0, max(2, sizes[-1]), (2, 7))
    _, grad = model.loss_and_gradient(w, x, y)
    step = 1e-6
    numeric = np.empty_like(grad)
    for p in range(model.num_parameters):
        shift = np.zeros(model.num_parameters)
        shift[p] = step
        up, _ = model.loss_and_gradient(w + shift, x, y)
        down, _ = model.loss_and_gradient(w - shift, x, y)
        numeric[:, p] = (up - down) / (2 * step)
    np.testing.assert_allclose(grad, numeric, rtol=1e-5, atol=1e-8)


def test_gradient_of_values_as_targets_equals_finite_differences() -> None:
    model = MLP((3, 4, 2), "tanh", "mse", "float64")
    w, x = random_rows(model, 1), RNG(1).normal(size=(1, 5, 3))
    y = RNG(2).normal(size=(1, 5, 2))
    loss, grad = model.loss_and_gradient(w, x, y)
    np.testing.assert_allclose(loss, np.mean((model.scores(w, x) - y) ** 2))
    shift = np.zeros(model.num_parameters)
    shift[3] = 1e-6
    numeric = (model.loss_and_gradient(w + shift, x, y)[0] - model.loss_and_gradient(w - shift, x, y)[0]) / 2e-6
    np.testing.assert_allclose(grad[:, 3], numeric, rtol=1e-6)


def test_gradient_with_losses_of_ones_own_equals_finite_differences() -> None:
    """Of the scores, and added to it of the last hidden layer, as MOON does; both are means over the batch."""
    model = MLP((3, 4, 5, 2), "tanh", dtype="float64")
    w, x, y = random_rows(model, 2), RNG(1).normal(size=(2, 6, 3)), RNG(2).integers(0, 2, (2, 6))

    def cubes(z: Array, y: Array) -> tuple[Array, Array]:
        return (z**3).sum(axis=-1) * y, 3 * z**2 * y[..., None]

    def squares(h: Array) -> tuple[Array, Array]:
        return (h**2).sum(axis=-1), 2 * h

    def value(w: Array) -> Array:
        mean: Array = (cubes(model.scores(w, x), y)[0] + squares(model.representation(w, x))[0]).mean(axis=1)
        return mean

    loss, grad = model.loss_and_gradient(w, x, y, loss=cubes, representation_loss=squares)
    np.testing.assert_allclose(loss, value(w))
    steps = 1e-6 * np.eye(model.num_parameters)
    numeric = np.transpose([(value(w + step) - value(w - step)) / 2e-6 for step in steps])
    np.testing.assert_allclose(grad, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_survive_enormous_scores(loss: str) -> None:
    scores = np.array([[[1e4, -1e4, 0.0]]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, delta = LOSSES[loss](scores, np.array([[1]]))
    assert np.isfinite(value).all()
    assert np.isfinite(delta).all()


def test_the_articles_cross_entropy_formula() -> None:
    """-1/n sum[y log p + (1-y) log(1-p)], p a sigmoid, written as the article writes it."""
    z, y = RNG(0).normal(size=(1, 8, 1)), RNG(1).integers(0, 2, (1, 8))
    p = 1 / (1 + np.exp(-z[0, :, 0]))
    formula = -np.mean(y[0] * np.log(p) + (1 - y[0]) * np.log(1 - p))
    assert LOSSES["binary_cross_entropy"](z, y)[0].mean() == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("classes", [2, 3])
def test_training_equals_scikit_learn_step_for_step(activation: str, classes: int) -> None:
    """From the same weights on the same full batches, 20 steps of SGD; two classes are one sigmoid output."""
    neural = pytest.importorskip("sklearn.neural_network")
    x = RNG(0).normal(size=(30, 5))
    y = RNG(1).integers(0, classes, 30)
    outputs, loss = (1, "binary_cross_entropy") if classes == 2 else (classes, "cross_entropy")
    model = MLP((5, 6, outputs), activation, loss, "float64")
    peer = neural.MLPClassifier(
        (6,),
        activation="logistic" if activation == "sigmoid" else activation,
        solver="sgd",
        alpha=0,
        batch_size=30,
        learning_rate_init=0.3,
        momentum=0,
        nesterovs_momentum=False,
        shuffle=False,
        max_iter=1,
        tol=0,
        warm_start=True,
    )
    ours = model.init(RNG(2))[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        peer.partial_fit(x, y, classes=np.arange(classes))
        layers = named_arrays(model, ours[0])
        peer.coefs_ = [layers["W1"].copy(), layers["W2"].copy()]
        peer.intercepts_ = [layers["b1"].copy(), layers["b2"].copy()]
        peer._optimizer.params = peer.coefs_ + peer.intercepts_
        peer._optimizer.velocities = [np.zeros_like(p) for p in peer._optimizer.params]
        for _ in range(20):
            peer.partial_fit(x, y, classes=np.arange(classes))
            _, grad = model.loss_and_gradient(ours, x[None], y[None])
            ours -= 0.3 * grad
            layers = named_arrays(model, ours[0])
            np.testing.assert_allclose(layers["W1"], peer.coefs_[0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(layers["b2"], peer.intercepts_[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_equals_pytorch_step_for_step(activation: str, loss: str) -> None:
    """Three layers, ten minibatch steps, every parameter after every step."""
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fedsim[torch]'")
    model = MLP((5, 7, 6, 4), activation, loss, "float64")
    ours = model.init(RNG(0))[None]
    theirs = {k: torch.tensor(v.copy(), requires_grad=True) for k, v in named_arrays(model, ours[0]).items()}
    nonlinear = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]
    onehot = torch.nn.functional.one_hot
    criterion = {
        "mse": lambda z, y: torch.nn.functional.mse_loss(z, onehot(y, 4).double()),
        "binary_cross_entropy": lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(
            z, onehot(y, 4).double()
        ),
        "cross_entropy": torch.nn.functional.cross_entropy,
    }[loss]
    for step in range(10):
        x, y = RNG(step).normal(size=(9, 5)), RNG(100 + step).integers(0, 4, 9)
        h = torch.tensor(x)
        for layer in (1, 2, 3):
            h = h @ theirs[f"W{layer}"] + theirs[f"b{layer}"]
            h = nonlinear(h) if layer < 3 else h
        value = criterion(h, torch.tensor(y))
        value.backward()
        our_value, grad = model.loss_and_gradient(ours, x[None], y[None])
        assert our_value[0] == pytest.approx(value.item(), rel=1e-12)
        ours -= 0.5 * grad
        with torch.no_grad():
            for name, tensor in theirs.items():
                tensor -= 0.5 * tensor.grad
                tensor.grad = None
                np.testing.assert_allclose(named_arrays(model, ours[0])[name], tensor.numpy(), rtol=1e-10, atol=1e-13)


def test_layout_is_w1_b1_w2_b2_without_gaps() -> None:
    model = MLP((100, 50, 10))
    assert list(model.layout) == ["W1", "b1", "W2", "b2"]
    assert model.num_parameters == 100 * 50 + 50 + 50 * 10 + 10
    flat = np.arange(model.num_parameters)
    joined = np.concatenate([v.ravel() for v in named_arrays(model, flat).values()])
    assert np.array_equal(joined, flat)
    assert np.shares_memory(named_arrays(model, flat)["W2"], flat)


def test_the_fedavg_papers_2nn_has_199210_parameters() -> None:
    assert MLP((784, 200, 200, 10)).num_parameters == 199_210


@pytest.mark.parametrize(("activation", "variance"), [("relu", 2 / 400), ("tanh", 2 / 900), ("sigmoid", 2 / 900)])
def test_initial_weights_have_the_papers_variance(activation: str, variance: float) -> None:
    layers = named_arrays(model := MLP((400, 500, 10), activation), model.init(RNG(0)))
    assert layers["W1"].var() == pytest.approx(variance, rel=0.02)
    assert layers["W1"].mean() == pytest.approx(0, abs=1e-3)
    assert not layers["b1"].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(400, 300, 200), (400, 200)])
def test_the_output_layer_is_drawn_as_a_linear_one(activation: str, sizes: tuple[int, ...]) -> None:
    """Uniform with variance 2 / (inputs + outputs), whatever the hidden activation: it has none."""
    model = MLP(sizes, activation)
    layers, last = named_arrays(model, model.init(RNG(0))), len(sizes) - 1
    limit = np.sqrt(6 / (sizes[-2] + sizes[-1]))
    assert layers[f"W{last}"].var() == pytest.approx(limit**2 / 3, rel=0.02)
    assert 0.999 * limit < np.abs(layers[f"W{last}"]).max() <= limit
    assert not layers[f"b{last}"].any()


def test_which_examples_are_right() -> None:
    """The largest score, or with one output a probability above 1/2, which is a raw score above 0."""
    z = np.array([[-0.3], [0.3], [-0.7], [0.7], [-0.3], [0.3]])
    assert is_correct(z, np.array([0, 1, 0, 1, 1, 0])).tolist() == [True] * 4 + [False] * 2
    z = np.array([[0.1, 0.3, 0.2], [-1.0, -2.0, -3.0], [0.1, 0.2, 0.3]])
    assert is_correct(z, np.array([1, 0, 1])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"activation": "rellu"}, "activation is 'rellu'.*did you mean 'relu'"),
        ({"loss": "crossentropy"}, "loss is 'crossentropy'.*did you mean"),
        ({"dtype": "float16"}, "dtype is 'float16'; allowed: float32, float64"),
        ({"sizes": (3,)}, "sizes"),
        ({"sizes": (3, 0)}, "sizes is 0"),
        ({"sizes": (3, 2.5)}, "sizes is 2.5"),
    ],
)
def test_bad_networks_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        MLP(**{"sizes": (3, 2), **change})
