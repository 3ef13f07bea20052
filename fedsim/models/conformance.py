"""Checks of a model against the contract of `fedsim.models.Model`, on which client strategies and kernels rely."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.arguments import checked_arguments
from fedsim.errors import ConfigError, FedsimError
from fedsim.models.losses import is_correct
from fedsim.models.model import Array, Model

#: Dtype -> step of finite differences, and largest error relative to the norm of the gradient.
PRECISION = {"float32": (3e-3, 3e-2), "float64": (1e-6, 1e-5)}
CLIENTS = 3


class ModelError(FedsimError, AssertionError):
    """A model violates the contract of `fedsim.models.Model`."""


@checked_arguments
def check_model(model: Model, x: Array, y: Array) -> list[str]:
    """Check a model on some examples.

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
        Some checks failed; the message names them.
    """
    if not isinstance(model, Model):
        raise ModelError(f"{type(model).__name__} is not a model: let it extend fedsim.models.Model")
    batch = len(x) // CLIENTS
    x, y = (a[: CLIENTS * batch].reshape(CLIENTS, batch, *a.shape[1:]) for a in (x, y))
    rows = np.stack([model.init(np.random.default_rng(k)) for k in range(CLIENTS)])
    rows += 0.1 * np.random.default_rng(9).normal(size=rows.shape).astype(rows.dtype)  # biases other than 0
    case = _Checks(model, rows, x.astype(model.dtype), y)
    for values in (case.w, case.x):
        values.flags.writeable = False
    checks = [name for name, _ in inspect.getmembers(case, inspect.ismethod) if not name.startswith("_")]
    failures = []
    for name in checks:
        try:
            getattr(case, name)()
        except Exception as error:
            kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
            failures.append(f"{name.replace('_', ' ')}: {kind}{error}")
    if failures:
        title = f"{type(model).__name__} fails {len(failures)} of {len(checks)} checks"
        raise ModelError("\n  ".join([title, *failures]))
    return checks


def _need(fact: Any, sentence: str) -> None:
    if not fact:
        raise ModelError(sentence)


def _squares(values: Array, y: Array | None = None) -> tuple[Array, Array]:
    """Return a loss of scores, or of representations, and its derivative."""
    return 0.5 * np.sum(values * values, axis=-1), values.copy()


@dataclass(frozen=True)
class _Checks:
    """The checks, one per public method: `model` with parameters `w` of three clients, and a batch of each."""

    model: Model
    w: Array
    x: Array
    y: Array

    def layout_covers_the_row(self) -> None:
        stop = 0
        for name, (place, shape) in self.model.layout.items():
            _need(place.start == stop, f"layout[{name!r}] starts at {place.start}, not at {stop}")
            stop = place.stop
            length = stop - place.start
            _need(length == int(np.prod(shape)), f"layout[{name!r}] has {length} places for {shape}")
        _need(self.model.num_parameters == stop, f"num_parameters is {self.model.num_parameters}, not {stop}")
        _need(self.model.flops > 0, f"flops is {self.model.flops}; it must be positive")

    def groups_partition_the_parameters(self) -> None:
        groups, names = self.model.groups, list(self.model.layout)
        named = [name for group in groups for name in group]
        _need(all(isinstance(group, tuple) and group for group in groups), "a group is a tuple of at least one name")
        _need(named == names, f"groups name {named}; they must name {names}, each once and in order")

    def init_is_deterministic(self) -> None:
        first, again, other = (self.model.init(np.random.default_rng(seed)) for seed in (0, 0, 1))
        _need(first.shape == (self.model.num_parameters,), f"init() has shape {first.shape}, not (parameters,)")
        _need(np.isfinite(first).all(), "init() is not finite")
        _need(np.array_equal(first, again), "init() depends on something besides its generator")
        _need(not np.array_equal(first, other), "init() does not depend on its generator")

    def dtype_is_kept(self) -> None:
        _need(self.model.dtype in PRECISION, f"dtype is {self.model.dtype!r}; allowed: 'float32', 'float64'")
        loss, grad = self.model.loss_and_gradient(self.w, self.x, self.y)
        made = {"init()": self.model.init(np.random.default_rng(0)), "scores()": self.model.scores(self.w, self.x)}
        for what, values in (made | {"the loss": loss, "the gradient": grad}).items():
            _need(values.dtype == self.model.dtype, f"{what} is of {values.dtype}; it must be {self.model.dtype}")

    def scores_have_a_row_per_client(self) -> None:
        shape = (*self.y.shape, self.model.outputs)
        for w, x in ((self.w, self.x), (self.w[:1], self.x), (self.w, self.x[:1])):
            found = self.model.scores(w, x).shape
            _need(found == shape, f"scores() has shape {found}; it must be (clients, batch, outputs), here {shape}")

    def stacked_equals_one_by_one(self) -> None:
        def results(rows: slice) -> tuple[Array, ...]:
            w, x, y = self.w[rows], self.x[rows], self.y[rows]
            return self.model.scores(w, x), *self.model.loss_and_gradient(w, x, y)

        stacked = results(slice(None))
        for k in range(CLIENTS):
            rows = slice(k, k + 1)
            same = all(np.array_equal(one, all_[rows]) for one, all_ in zip(results(rows), stacked, strict=True))
            _need(same, "the result of a client depends on which clients are stacked with it")

    def _check_slope(self, value: Callable[[Array], tuple[Array, Array]]) -> Array:
        """Compare a gradient with central differences along three directions; return the loss."""
        step, tolerance = PRECISION[self.model.dtype]
        loss, grad = value(self.w)
        _need(loss.shape == (CLIENTS,), f"the loss has shape {loss.shape}; it must be (clients,)")
        _need(grad.shape == self.w.shape, f"the gradient has shape {grad.shape}; it must be (clients, parameters)")
        for seed in range(3):
            along = np.random.default_rng(seed).choice([-1.0, 1.0], size=grad.shape).astype(grad.dtype)
            shift = (step * along).astype(grad.dtype)
            slope = (value(self.w + shift)[0].astype(float) - value(self.w - shift)[0]) / (2 * step)
            difference = np.abs(slope - np.sum(grad.astype(float) * along, axis=1))
            error = float((difference / (np.linalg.norm(grad.astype(float), axis=1) + 1e-12)).max())
            _need(error <= tolerance, f"the gradient differs from finite differences, by {error:.2g} of its norm")
        return loss

    def gradient_is_the_slope_of_the_loss(self) -> None:
        self._check_slope(lambda w: self.model.loss_and_gradient(w, self.x, self.y))
        out = np.full_like(self.w, np.nan)
        self.model.loss_and_gradient(self.w, self.x, self.y, out)
        _need(np.isfinite(out).all(), "the gradient is not written to `out`")

    def another_loss_replaces_its_own(self) -> None:
        loss = self._check_slope(lambda w: self.model.loss_and_gradient(w, self.x, self.y, loss=_squares))
        expected = _squares(self.model.scores(self.w, self.x))[0].mean(axis=1)
        _need(np.allclose(loss, expected, rtol=1e-4), "`loss` is not used in place of the model's own")

    def a_representation_loss_is_added(self) -> None:
        try:
            h = self.model.representation(self.w, self.x)
        except ConfigError:
            return  # the model has none
        _need(h.shape[:-1] == self.y.shape, "representation() must have shape (clients, batch, width)")
        added = {"representation_loss": _squares}
        loss = self._check_slope(lambda w: self.model.loss_and_gradient(w, self.x, self.y, **added))  # type: ignore[arg-type]
        expected = self.model.loss_and_gradient(self.w, self.x, self.y)[0] + _squares(h)[0].mean(axis=1)
        _need(np.allclose(loss, expected, rtol=1e-4), "`representation_loss` is not added")

    def evaluate_agrees_with_scores(self) -> None:
        for w in (self.w, self.w[:1]):
            loss, correct = self.model.evaluate(w, self.x, self.y)
            mean, _ = self.model.loss_and_gradient(np.repeat(w, CLIENTS // len(w), axis=0), self.x, self.y)
            _need(loss.dtype == np.float64, f"evaluate() sums the loss in {loss.dtype}; it must be float64")
            same = np.allclose(loss, self.y.shape[1] * mean, rtol=1e-4)
            _need(same, "evaluate() and loss_and_gradient() return different losses")
            same = np.array_equal(correct, is_correct(self.model.scores(w, self.x), self.y).sum(axis=1))
            _need(same, "evaluate() counts other examples as correct than the largest scores")

    def can_be_pickled(self) -> None:
        copy = pickle.loads(pickle.dumps(self.model))
        same = np.array_equal(copy.scores(self.w, self.x), self.model.scores(self.w, self.x))
        _need(same, "a pickled copy returns different scores")
