"""The checks for extenders: each mistake is found, and the message says what to do."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import numpy as np
import pytest

from fedsim import clients, testing
from fedsim.clients import SGD, Affine, Array, Context
from fedsim.errors import FedsimError


def failures(strategy: Any) -> str:
    with pytest.raises(testing.StrategyError) as caught:
        testing.check_client_strategy(strategy)
    assert isinstance(caught.value, FedsimError)
    return str(caught.value)


class AcrossRows(SGD):
    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        direction: Array = grad / np.linalg.norm(grad)  # of all clients together
        return direction


class InPlace(SGD):
    def train(self, ctx: Context) -> Array:
        ctx.global_weights[:] = 0
        return ctx.fit()


class Counts(SGD):
    def train(self, ctx: Context) -> Array:
        self.count = 1
        return ctx.fit()


class OnSelf(SGD):
    def train(self, ctx: Context) -> Array:
        calls = getattr(type(self), "calls", 0)
        type(self).calls = calls + 1  # type: ignore[attr-defined]
        return ctx.fit() + 1e-3 * calls


class FlatWeights(SGD):
    def train(self, ctx: Context) -> Array:
        mean: Array = ctx.fit().mean(axis=0)
        return mean


class NoArray(SGD):
    def train(self, ctx: Context) -> Array:
        ctx.up["norms"] = [1.0] * len(ctx.partition_ids)  # type: ignore[assignment]
        return ctx.fit()


class WrongRows(SGD):
    def train(self, ctx: Context) -> Array:
        ctx.up["extra"] = np.zeros(3)
        return ctx.fit()


class Undeclared(SGD):
    def train(self, ctx: Context) -> Array:
        ctx.state["surprise"] = np.zeros(len(ctx.partition_ids))
        return ctx.fit()


class Unsent(SGD):
    broadcast = ("control",)

    def affine(self, ctx: Context) -> Affine:
        return Affine(correction=ctx.down["control"])


class ShortCorrection(SGD):
    def affine(self, ctx: Context) -> Affine:
        return Affine(correction=np.ones((len(ctx.partition_ids), 1)))


class Unannotated(SGD):
    mu = 0.1


class Unchecked(SGD):
    mu: float = 0.1

    def __post_init__(self) -> None:
        pass


class Ascends(SGD):
    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        return -grad


class Double(SGD):
    def client_state(self, ctx: Context) -> dict[str, Array]:
        return {"v": np.zeros((len(ctx.partition_ids), ctx.global_weights.size))}


class NotNeutral(SGD):
    mu: float = 0.1
    neutral = {"mu": 0.0}  # noqa: RUF012

    def affine(self, ctx: Context) -> Affine:
        return Affine(mu=self.mu + 0.01)


class Overflows(SGD):
    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        return grad / 0.0


class MissingAxis(SGD):
    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        return grad * ctx.num_examples


class StateInEvaluation(SGD):
    def client_state(self, ctx: Context) -> dict[str, Array]:
        return {"seen": np.zeros((len(ctx.partition_ids), 1))}

    def personalise(self, ctx: Context) -> Array:
        ctx.state["seen"] += 1
        return ctx.start


class SecondRound(SGD):
    """Has no numbers from a client's second round on; what a client keeps is in a new dict."""

    def client_state(self, ctx: Context) -> dict[str, Array]:
        return {"rounds": np.zeros((len(ctx.partition_ids), 1))}

    def train(self, ctx: Context) -> Array:
        rounds = ctx.state["rounds"]
        ctx.state = {"rounds": rounds + 1}
        return np.where(rounds > 0, np.nan, ctx.fit())


class Unmade(SGD):
    needed: float = field(kw_only=True)


@pytest.mark.parametrize(
    ("strategy", "check", "advice"),
    [
        (AcrossRows, "stacked equals one by one", "axis=1, keepdims=True"),
        (InPlace, "is read-only (test_testing.py, line 31)", "make a new array instead"),
        (Counts, "trains", "cannot assign to field 'count' (test_testing.py, line 37)"),
        (OnSelf, "gives the same bits again", "keep nothing on self"),
        (
            FlatWeights,
            "trains",
            "train() returned an array of shape (53,); it must be (clients, parameters), here (8, 53)",
        ),
        (NoArray, "trains", "ctx.up['norms'] is a list; it must be an array of shape (clients, ...)"),
        (WrongRows, "trains", "ctx.up['extra'] is of shape (3,); it must be (clients, ...), here (8, ...)"),
        (Undeclared, "trains", "return it from client_state()"),
        (Unsent, "trains", "broadcast names control, which server_state() does not return"),
        (ShortCorrection, "trains", "affine's correction has shape (8, 1); allowed: (53,), or with a row per client"),
        (Unannotated, "is a frozen dataclass", "write mu: float = ..."),
        (Unchecked, "keeps the checks of its base", "call super().__post_init__()"),
        (Ascends, "learns", "does not fall"),
        (Double, "keeps the models dtype", "make it with dtype=ctx.model.dtype"),
        (NotNeutral, "neutral hyperparameters give sgd", "differs from SGD's"),
        (Overflows, "trains", "not finite"),
        (MissingAxis, "trains", "needs [:, None]"),
        (StateInEvaluation, "personalise has weights for every client", "in place"),
        (SecondRound, "trains", "not finite"),
        (Unmade, "cannot be made without arguments", "give every hyperparameter a default"),
    ],
)
def test_a_mistake_is_found_and_explained(strategy: type[SGD], check: str, advice: str) -> None:
    said = failures(strategy)
    assert check in said
    assert advice in said
    assert strategy.__name__ in said


def test_the_first_thing_to_fix_stands_alone() -> None:
    """A strategy that does not train at all would fail everything else too."""
    said = failures(FlatWeights)
    assert said.startswith("FlatWeights fails 1 of 4 checks (the others wait for this one)")
    assert len(said.splitlines()) == 2


def test_what_is_no_strategy_is_said_to_be_none() -> None:
    for thing in (int, 3, "SGD", None):
        assert "is not a client strategy" in failures(thing)


def test_objects_are_checked_with_their_own_hyperparameters() -> None:
    names = testing.check_client_strategy(clients.FedProx(lr=0.05, proximal_mu=1.0))
    assert len(names) == len(set(names)) == len(testing.CHECKS) >= 20
