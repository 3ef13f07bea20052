"""The contract of models: the MLP and a model written by hand pass its checks, and train under every strategy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

from fedsim import Experiment, clients, kernels
from fedsim.clients import SGD, Array, ClientStrategy, Context
from fedsim.data import Dataset
from fedsim.errors import ConfigError, DataError
from fedsim.models import MLP, Model, flat_parameters, make_layout, named_arrays
from fedsim.models.conformance import ModelError
from fedsim.models.losses import LOSSES, cross_entropy, score
from fedsim.servers import QFedAvg
from fedsim.splits import IID, FeatureNoise, FeatureScale, Rotation
from fedsim.study import config
from fedsim.testing import check_client_strategy, check_model


@dataclass(frozen=True)
class Logistic(Model):
    """Multinomial logistic regression on examples of any shape."""

    inputs: int
    outputs: int
    dtype: str = "float64"
    loss: str = "cross_entropy"
    groups = (("W",), ("b",))

    @property
    def layout(self) -> Any:
        return make_layout({"W": (self.inputs, self.outputs), "b": (self.outputs,)})

    def init(self, rng: np.random.Generator) -> Array:
        return rng.normal(0, 0.1, self.num_parameters).astype(self.dtype)

    def scores(self, parameters: Array, x: Array) -> Array:
        arrays = named_arrays(self, parameters)
        scores: Array = x.reshape(*x.shape[:2], -1) @ arrays["W"] + arrays["b"][:, None]
        return scores

    representation = scores

    def loss_and_gradient(
        self,
        parameters: Array,
        x: Array,
        y: Array,
        out: Any = None,
        *,
        loss: Any = None,
        representation_loss: Any = None,
    ) -> tuple[Array, Array]:
        z = self.scores(parameters, x)
        each, delta = (loss or cross_entropy)(z, y)
        if representation_loss:
            added, by_scores = representation_loss(z)
            each, delta = each + added, delta + by_scores
        grad = np.empty_like(parameters) if out is None else out
        arrays = named_arrays(self, grad)
        arrays["W"][:] = x.reshape(*x.shape[:2], -1).swapaxes(1, 2) @ delta / x.shape[1]
        arrays["b"][:] = delta.mean(axis=1)
        return each.mean(axis=1), grad


RNG = np.random.default_rng(4)
X = RNG.normal(size=(150, 4, 3))
Y = np.einsum("nij,ijc->nc", X, RNG.normal(size=(4, 3, 3))).argmax(axis=1)
IMAGES = Dataset("images", X[:100], Y[:100], X[100:], Y[100:], 3)


def logistic(dataset: Dataset) -> Model:
    return Logistic(dataset.x_train[0].size, dataset.num_classes)


BASE = Experiment(dataset=IMAGES, split=IID(5), model=logistic, rounds=4, fraction_evaluate=1.0)
OFFERED = [getattr(clients, name) for name in clients.__all__]
STRATEGIES = [cls for cls in OFFERED if isinstance(cls, type) and issubclass(cls, SGD)]


# The contract.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_the_mlp_is_a_model(hidden: tuple[int, ...], loss: str, dtype: str) -> None:
    for outputs in (1, 3) if loss != "cross_entropy" else (3,):
        model = MLP((12, *hidden, outputs), "tanh", loss, dtype)
        assert len(check_model(model, X.reshape(len(X), -1), Y % max(outputs, 2))) == 11


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_written_by_hand_is_a_model(dtype: str) -> None:
    check_model(Logistic(12, 3, dtype), X, Y)


class WrongGradient(Logistic):
    def loss_and_gradient(self, *args: Any, **options: Any) -> tuple[Array, Array]:
        loss, grad = super().loss_and_gradient(*args, **options)
        grad *= 1.01
        return loss, grad


class AcrossClients(Logistic):
    def scores(self, parameters: Array, x: Array) -> Array:
        scores = super().scores(parameters, x)
        scores /= np.abs(scores).max()
        return scores


class IgnoresOut(Logistic):
    def loss_and_gradient(self, parameters: Array, x: Array, y: Array, out: Any = None, **more: Any) -> Any:
        return super().loss_and_gradient(parameters, x, y, **more)


class IgnoresLoss(Logistic):
    def loss_and_gradient(self, *args: Any, loss: Any = None, **options: Any) -> tuple[Array, Array]:
        return super().loss_and_gradient(*args, **options)


class IgnoresRepresentation(Logistic):
    def loss_and_gradient(self, *args: Any, representation_loss: Any = None, **options: Any) -> tuple[Array, Array]:
        return super().loss_and_gradient(*args, **options)


class OneGroup(Logistic):
    groups = (("W",),)  # type: ignore[assignment]


class Gap(Logistic):
    @property
    def layout(self) -> Any:
        return {"W": (slice(0, 36), (12, 3)), "b": (slice(37, 40), (3,))}


class Unseeded(Logistic):
    def init(self, rng: np.random.Generator) -> Array:
        return super().init(np.random.default_rng())


class Doubles(Logistic):
    def scores(self, parameters: Array, x: Array) -> Array:
        return super().scores(parameters, x).astype(np.float64)


class MeanLoss(Logistic):
    def evaluate(self, parameters: Array, x: Array, y: Array) -> Any:
        loss, correct = super().evaluate(parameters, x, y)
        return loss / y.shape[1], correct


class Miscounts(Logistic):
    def evaluate(self, parameters: Array, x: Array, y: Array) -> Any:
        loss, correct = super().evaluate(parameters, x, y)
        return loss, np.minimum(correct + 1, y.shape[1])


class Unpicklable(Logistic):
    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle it")


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (WrongGradient, "gradient is the slope of the loss: the gradient differs from finite differences"),
        (AcrossClients, "stacked equals one by one: the result of a client depends on"),
        (IgnoresOut, "the gradient is not written to `out`"),
        (IgnoresLoss, "another loss replaces its own: `loss` is not used"),
        (IgnoresRepresentation, "a representation loss is added: `representation_loss` is not added"),
        (OneGroup, "groups partition the parameters: groups name ['W']; they must name ['W', 'b']"),
        (Gap, "layout covers the row: layout['b'] starts at 37, not at 36"),
        (Unseeded, "init is deterministic: init() depends on something besides its generator"),
        (Doubles, "dtype is kept: scores() is of float64; it must be float32"),
        (MeanLoss, "evaluate agrees with scores: evaluate() and loss_and_gradient() return different losses"),
        (Miscounts, "evaluate agrees with scores: evaluate() counts other examples"),
        (Unpicklable, "can be pickled: TypeError: cannot pickle it"),
    ],
)
def test_a_broken_promise_is_found(broken: type[Logistic], check: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(broken(12, 3, "float32" if broken is Doubles else "float64"), X, Y)
    assert str(caught.value).startswith(f"{broken.__name__} fails ")
    assert check in str(caught.value)


def test_what_is_no_model_is_said_to_be_none() -> None:
    with pytest.raises(ModelError, match="int is not a model"):
        check_model(3, X, Y)  # type: ignore[arg-type]


# Another model than the MLP in a run.


@pytest.mark.parametrize("cls", STRATEGIES, ids=lambda cls: cls.__name__)
def test_every_strategy_trains_a_model_written_by_hand(cls: type[SGD]) -> None:
    """Without any refusal; every client's own loss falls, which is that of the global model unless it personalises."""
    result = replace(BASE, client=cls(), rounds=8).run()
    assert list(result.weights) == ["W", "b"]
    assert result.weights["W"].shape == (12, 3)
    assert result.kernel == "numpy"
    first, last = result.history["local_loss"].iloc[[1, -1]]
    assert last < first


def test_logistic_regression_is_the_mlp_without_hidden_layers() -> None:
    """The same numbers, whoever wrote the gradient and whatever the examples' shape."""

    class Same(Logistic):
        def init(self, rng: np.random.Generator) -> Array:
            return MLP((12, 3), dtype="float64").init(rng)

    flat = replace(IMAGES, x_train=IMAGES.x_train.reshape(100, 12), x_test=IMAGES.x_test.reshape(50, 12))
    mlp = replace(BASE, dataset=flat, model=None, hidden=(), dtype="float64", kernel="numpy").run()
    ours = replace(BASE, model=lambda dataset: Same(12, 3)).run()
    np.testing.assert_allclose(ours.weights["W"], mlp.weights["W1"], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(ours.history["test_loss"], mlp.history["test_loss"], rtol=1e-12)


def test_private_groups_are_not_counted_as_traffic() -> None:
    """W is an array of 36 float64 behind 128 bytes of NumPy's header, b one of 3."""
    shared, whole = (replace(BASE, client=cls(), rounds=1).run().history for cls in (clients.FedPer, SGD))
    assert shared["bytes_up"].iloc[-1] == 5 * (128 + 36 * 8)
    assert whole["bytes_up"].iloc[-1] == 5 * (128 + 36 * 8 + 128 + 3 * 8)


def test_a_model_may_be_the_mlp() -> None:
    """Then the compiled kernel runs it, too."""
    flat = replace(IMAGES, x_train=IMAGES.x_train.reshape(100, 12), x_test=IMAGES.x_test.reshape(50, 12))
    base = replace(BASE, dataset=flat, kernel="compiled", model=lambda dataset: MLP((12, 7, 3), "tanh"))
    plain = replace(base, model=None, hidden=(7,), activation="tanh")
    assert np.array_equal(base.run().weights["W1"], plain.run().weights["W1"])


def test_the_compiled_kernel_refuses_other_models_and_auto_avoids_it() -> None:
    with pytest.raises(ConfigError, match="trains the MLP only, and the model is a Logistic; allowed: 'auto'"):
        replace(BASE, kernel="compiled").run()
    assert kernels.choose("auto", "", Logistic(10_000, 100), 1e9) == "numpy"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": 3}, "model is 3; allowed: a function of a Dataset that returns a Model"),
        ({"hidden": (5,)}, "hidden and model are both given"),
        ({"dtype": "float64"}, "dtype and model are both given"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(BASE, **changes)


def test_what_the_function_returns_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"model returned 3; allowed: a fedsim\.models\.Model"):
        replace(BASE, model=lambda dataset: 3).run()  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="model makes 2,147,483,650 parameters"):
        replace(BASE, model=lambda dataset: Logistic(2**30, 2)).make_model(IMAGES)


def test_it_has_no_text_form(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="a model of your own has no TOML form"):
        config.to_toml(replace(BASE, dataset="digits"))
    with pytest.raises(ConfigError, match="directory cannot be given with a model of your own"):
        BASE.run(directory=tmp_path)
    with pytest.raises(ConfigError, match="model is 'logistic'; allowed: a function"):
        config.experiment({"model": "logistic"})


# Examples of more than one dimension.


def test_the_mlp_takes_flat_features_only() -> None:
    with pytest.raises(ConfigError, match=r"images has examples of shape \(4, 3\), and the MLP takes features in one"):
        replace(BASE, model=None).run()


def test_shapes_and_numbers_are_checked_in_any_dimension() -> None:
    with pytest.raises(DataError, match=r"x_train has examples of shape \(4, 3\) but x_test of shape \(3, 4\)"):
        replace(IMAGES, x_test=IMAGES.x_test.reshape(50, 3, 4))
    bad = X[:100].copy()
    bad[7, 2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 values that are NaN or infinite, the first at row 7, position \(2, 1\)"):
        replace(IMAGES, x_train=bad)


@pytest.mark.parametrize("split", [FeatureNoise(IID(5)), FeatureScale(IID(5))])
def test_splits_that_change_features_take_any_shape(split: Any) -> None:
    flat = replace(IMAGES, x_train=IMAGES.x_train.reshape(100, 12), x_test=IMAGES.x_test.reshape(50, 12))
    deep, wide = (split.federate(dataset).dataset.x_train for dataset in (IMAGES, flat))
    assert deep.shape == (100, 4, 3)
    assert np.array_equal(deep.reshape(100, 12), wide)


def test_rotation_takes_flat_images_only() -> None:
    with pytest.raises(ConfigError, match=r"Rotation needs flat square images; images has examples of shape \(4, 3\)"):
        Rotation(IID(5)).federate(IMAGES)


# Client strategies that are not SGD.


class OneStep(ClientStrategy):
    """One step along the gradient of all examples."""

    rate: float = 0.1

    def train(self, ctx: Context) -> Array:
        return ctx.start - self.rate * ctx.full_gradient(ctx.start)[1]


class Fits(ClientStrategy):
    def train(self, ctx: Context) -> Array:
        return ctx.fit()


class FitsBySGD(ClientStrategy):
    def train(self, ctx: Context) -> Array:
        return ctx.fit(by=SGD(lr=0.2, epochs=2))


def test_a_strategy_of_the_root_class_passes_the_checks_and_is_fedsgd() -> None:
    check_client_strategy(OneStep)
    ours, fedsgd = (replace(BASE, client=client).run() for client in (OneStep(), clients.FedSGD(lr=0.1)))
    np.testing.assert_allclose(ours.weights["W"], fedsgd.weights["W"], rtol=1e-12)


def test_a_strategy_of_the_root_class_may_fit_by_sgd() -> None:
    ours, sgd = (replace(BASE, client=client).run() for client in (FitsBySGD(), SGD(lr=0.2, epochs=2)))
    assert np.array_equal(ours.weights["W"], sgd.weights["W"])
    with pytest.raises(ConfigError, match=r"Fits does not extend SGD; allowed: ctx.fit\(by=SGD\(...\)\)"):
        replace(BASE, client=Fits()).run()


def test_train_must_be_defined() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ClientStrategy()  # type: ignore[abstract]


def test_what_needs_sgds_hyperparameters_says_so() -> None:
    with pytest.raises(ConfigError, match="OneStep has no hyperparameters of SGD"):
        replace(BASE, client=OneStep(), weight_divergence=True).run()
    with pytest.raises(ConfigError, match="client_learning_rate is missing"):
        replace(BASE, client=OneStep(), server=QFedAvg).run()


def test_flat_parameters_are_the_inverse_of_named_arrays() -> None:
    model = MLP((3, 4, 2))
    flat = model.init(np.random.default_rng(0))
    arrays = named_arrays(model, flat)
    assert np.array_equal(flat_parameters(model, arrays), flat)
    assert np.array_equal(flat_parameters(model, dict(reversed(arrays.items()))), flat)  # in the order of the layout


def test_the_score_is_the_accuracy_or_r_squared() -> None:
    y = np.array([1.0, 2.0, 4.0, 5.0])
    predicted = np.array([1.5, 1.0, 4.0, 6.0])
    assert score(((predicted - y) ** 2).mean(), 0.0, y.var()) == pytest.approx(r2_score(y, predicted))
    assert score(1.0, 0.25, None) == 0.25
    assert np.isnan(score(1.0, 0.25, 0.0))
