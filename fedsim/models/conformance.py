"""Checks that a model keeps the promises of `fedsim.models.Model`, on which client strategies and kernels rely."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError, FedsimError
from fedsim.models.losses import is_correct
from fedsim.models.model import Model, named_arrays

Array = NDArray[Any]
#: Step of finite differences and relative error that is allowed, by dtype.
STEP = {"float32": 3e-3, "float64": 1e-6}
TOLERANCE = {"float32": 3e-2, "float64": 1e-5}
CLIENTS = 3


class ModelError(FedsimError, AssertionError):
    """A model breaks a promise; says which."""


@dataclass(frozen=True)
class _Case:
    """A model, and what it is tried on: parameters of three clients and a batch of each."""

    model: Model
    parameters: Array
    x: Array
    y: Array


def check_model(model: Model, x: Array, y: Array) -> list[str]:
    """Try a model on examples.

    Parameters
    ----------
    model : Model
    x : ndarray, shape (examples, ...)
        At least six examples.
    y : ndarray, shape (examples,)
        Labels, or targets for regression.

    Returns
    -------
    list of str
        Names of the checks, all passed.

    Raises
    ------
    ModelError
        Names every check that failed.
    """
    if not isinstance(model, Model):
        raise ModelError(f"{type(model).__name__} is not a model: let it extend fedsim.models.Model")
    batch = len(x) // CLIENTS
    checks = {function.__name__.strip("_").replace("_", " "): function for function in CHECKS}
    failures = []
    try:
        rows = np.stack([model.init(np.random.default_rng(k)) for k in range(CLIENTS)])
        rows += 0.1 * np.random.default_rng(9).normal(size=rows.shape).astype(rows.dtype)  # biases are not 0
        x = x[: CLIENTS * batch].astype(model.dtype).reshape(CLIENTS, batch, *x.shape[1:])
        case = _Case(model, rows, x, y[: CLIENTS * batch].reshape(CLIENTS, batch))
        for values in (case.parameters, case.x, case.y):
            values.flags.writeable = False
    except Exception as error:
        raise ModelError(f"{type(model).__name__} makes no parameters: {type(error).__name__}: {error}") from error
    for name, check in checks.items():
        try:
            check(case)
        except ModelError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        title = f"{type(model).__name__} fails {len(failures)} of {len(checks)} checks"
        raise ModelError("\n  ".join([title, *failures]))
    return list(checks)


def _need(fact: Any, sentence: str) -> None:
    if not fact:
        raise ModelError(sentence)


def _layout_covers_the_row(case: _Case) -> None:
    model, stop = case.model, 0
    for name, (place, shape) in model.layout.items():
        _need(place.start == stop, f"layout[{name!r}] starts at {place.start}, not at {stop}, where the last one ends")
        stop = place.stop
        _need(
            stop - place.start == int(np.prod(shape)), f"layout[{name!r}] has {stop - place.start} places for {shape}"
        )
    _need(model.num_parameters == stop, f"num_parameters is {model.num_parameters}; layout has {stop} places")
    _need(model.flops > 0, f"flops is {model.flops}; it must be positive")


def _groups_partition_the_parameters(case: _Case) -> None:
    model = case.model
    names = [name for group in model.groups for name in group]
    _need(all(isinstance(group, tuple) and group for group in model.groups), "a group is a tuple of at least one name")
    _need(names == list(model.layout), f"groups name {names}; they must name {list(model.layout)}, each once, in order")


def _init_is_deterministic(case: _Case) -> None:
    first, again, other = (case.model.init(np.random.default_rng(seed)) for seed in (0, 0, 1))
    _need(first.shape == (case.model.num_parameters,), f"init() has shape {first.shape}; it must be (parameters,)")
    _need(np.isfinite(first).all(), "init() is not finite")
    _need(np.array_equal(first, again), "init() depends on something besides its generator")
    _need(not np.array_equal(first, other), "init() does not depend on its generator")


def _dtype_is_kept(case: _Case) -> None:
    model = case.model
    _need(model.dtype in STEP, f"dtype is {model.dtype!r}; it must be 'float32' or 'float64'")
    loss, grad = model.loss_and_gradient(case.parameters, case.x, case.y)
    made = {"init()": model.init(np.random.default_rng(0)), "scores()": model.scores(case.parameters, case.x)}
    for what, values in (made | {"the loss": loss, "the gradient": grad}).items():
        _need(values.dtype == model.dtype, f"{what} is of {values.dtype}; it must be {model.dtype}")


def _scores_have_their_shape(case: _Case) -> None:
    shape = (*case.y.shape, case.model.outputs)
    for parameters, x in ((case.parameters, case.x), (case.parameters[:1], case.x), (case.parameters, case.x[:1])):
        found = case.model.scores(parameters, x).shape
        _need(found == shape, f"scores() has shape {found}; it must be (clients, batch, outputs), here {shape}")


def _stacked_equals_one_by_one(case: _Case) -> None:
    """Give a client the same bits whoever is stacked with it."""
    model, whole = case.model, case.model.loss_and_gradient(case.parameters, case.x, case.y)
    scores = model.scores(case.parameters, case.x)
    for k in range(CLIENTS):
        row = slice(k, k + 1)
        loss, grad = model.loss_and_gradient(case.parameters[row], case.x[row], case.y[row])
        _need(np.array_equal(model.scores(case.parameters[row], case.x[row]), scores[row]), _ACROSS)
        _need(np.array_equal(loss, whole[0][row]) and np.array_equal(grad, whole[1][row]), _ACROSS)


_ACROSS = "the result of a client depends on which clients are stacked with it"


def _slopes_agree(case: _Case, value: Callable[[Array], Array], grad: Array) -> None:
    """Compare a gradient with central differences along three directions."""
    step, tolerance = STEP[case.model.dtype], TOLERANCE[case.model.dtype]
    _need(
        grad.shape == case.parameters.shape, f"the gradient has shape {grad.shape}; it must be that of the parameters"
    )
    for seed in range(3):
        along = np.random.default_rng(seed).choice([-1.0, 1.0], size=grad.shape).astype(grad.dtype)
        shift = (step * along).astype(grad.dtype)
        up, down = value(case.parameters + shift), value(case.parameters - shift)
        slope = (up.astype(float) - down) / (2 * step)
        expected = np.sum(grad.astype(float) * along, axis=1)
        error = np.abs(slope - expected) / (np.linalg.norm(grad.astype(float), axis=1) + 1e-12)
        _need(
            error.max() <= tolerance, f"the gradient differs from finite differences, by {error.max():.2g} of its norm"
        )


def _gradient_is_the_slope_of_the_loss(case: _Case) -> None:
    model, out = case.model, np.full_like(case.parameters, np.nan)
    loss, grad = model.loss_and_gradient(case.parameters, case.x, case.y)
    _need(loss.shape == (CLIENTS,), f"the loss has shape {loss.shape}; it must be (clients,)")
    _slopes_agree(case, lambda w: model.loss_and_gradient(w, case.x, case.y)[0], grad)
    model.loss_and_gradient(case.parameters, case.x, case.y, out)
    _need(np.array_equal(out, grad), "the gradient is not written to `out`")


def _another_loss_takes_the_place_of_its_own(case: _Case) -> None:
    def squares(scores: Array, y: Array) -> tuple[Array, Array]:
        return 0.5 * np.sum(scores * scores, axis=-1), scores.copy()

    model = case.model
    loss, grad = model.loss_and_gradient(case.parameters, case.x, case.y, loss=squares)
    expected = squares(model.scores(case.parameters, case.x), case.y)[0].mean(axis=1)
    _need(np.allclose(loss, expected, rtol=1e-5), "`loss` is not used in place of the model's own")
    _slopes_agree(case, lambda w: model.loss_and_gradient(w, case.x, case.y, loss=squares)[0], grad)


def _a_representation_loss_is_added(case: _Case) -> None:
    def squares(h: Array) -> tuple[Array, Array]:
        return 0.5 * np.sum(h * h, axis=-1), h.copy()

    model = case.model
    try:
        h = model.representation(case.parameters, case.x)
    except ConfigError:
        return  # it has none, and says so
    _need(h.shape[:2] == case.y.shape and h.ndim == 3, "representation() must have shape (clients, batch, width)")
    loss, grad = model.loss_and_gradient(case.parameters, case.x, case.y, representation_loss=squares)
    own = model.loss_and_gradient(case.parameters, case.x, case.y)[0]
    _need(np.allclose(loss, own + squares(h)[0].mean(axis=1), rtol=1e-4), "`representation_loss` is not added")
    value = lambda w: model.loss_and_gradient(w, case.x, case.y, representation_loss=squares)[0]  # noqa: E731
    _slopes_agree(case, value, grad)


def _evaluate_agrees_with_scores(case: _Case) -> None:
    model = case.model
    for parameters in (case.parameters, case.parameters[:1]):
        loss, correct = model.evaluate(parameters, case.x, case.y)
        rows = np.repeat(parameters, CLIENTS // len(parameters), axis=0)
        mean, _ = model.loss_and_gradient(rows, case.x, case.y)
        _need(loss.dtype == np.float64, f"evaluate() sums the loss in {loss.dtype}; it must be float64")
        _need(
            np.allclose(loss, case.y.shape[1] * mean, rtol=1e-4), "evaluate() has another loss than loss_and_gradient()"
        )
        expected = is_correct(model.scores(parameters, case.x), case.y).sum(axis=1)
        _need(np.array_equal(correct, expected), "evaluate() counts other examples as correct than scores() say")


def _arrays_are_views(case: _Case) -> None:
    flat = case.parameters.copy()
    for values in named_arrays(case.model, flat).values():
        values[...] = 0
    _need(not flat.any(), "the arrays of `layout` are not all of the parameters")


def _can_be_pickled(case: _Case) -> None:
    """Reach other processes, as on Ray."""
    copy = pickle.loads(pickle.dumps(case.model))
    ours, other = (model.scores(case.parameters, case.x) for model in (case.model, copy))
    _need(np.array_equal(ours, other), "a pickled copy has other scores")


CHECKS: tuple[Callable[[_Case], None], ...] = (
    _layout_covers_the_row,
    _groups_partition_the_parameters,
    _arrays_are_views,
    _init_is_deterministic,
    _dtype_is_kept,
    _scores_have_their_shape,
    _stacked_equals_one_by_one,
    _gradient_is_the_slope_of_the_loss,
    _another_loss_takes_the_place_of_its_own,
    _a_representation_loss_is_added,
    _evaluate_agrees_with_scores,
    _can_be_pickled,
)
