"""The checks for extenders: each mistake is found, and the message says what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import field
from itertools import count
from typing import Any

import numpy as np
import pytest

from fedsim import clients, testing
from fedsim.clients import SGD, Affine, Array, Context
from fedsim.errors import FedsimError
from fedsim.study import saving as runs
from fedsim.testing.checks import StrategyChecks


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
        (InPlace, "is read-only (test_testing.py, line 37)", "make a new array instead"),
        (Counts, "trains", "cannot assign to field 'count' (test_testing.py, line 43)"),
        (OnSelf, "gives the same bits again", "keep nothing on self"),
        (
            FlatWeights,
            "trains",
            "train() returned an array of shape (53,); it must be (clients, parameters), here (8, 53)",
        ),
        (NoArray, "trains", "ctx.up['norms'] is a list; it must be an array of shape (clients, ...)"),
        (WrongRows, "trains", "ctx.up['extra'] is of shape (3,); it must be (clients, ...), here (8, ...)"),
        (Undeclared, "trains", "the names that client_state() returns"),
        (Unsent, "trains", "broadcast names control, which server_state() does not return"),
        (ShortCorrection, "trains", "affine's correction has shape (8, 1); allowed: (53,), or with a row per client"),
        (Unannotated, "hyperparameters are annotated", "write mu: float = ..."),
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
    assert said.startswith("FlatWeights fails 1 of 4 checks (the others run once these pass)")
    assert len(said.splitlines()) == 2

    class Both(FlatWeights, Unchecked):
        pass

    first, second, third = failures(Both).splitlines()
    assert first == "Both fails 2 of 4 checks (the others run once these pass)"
    assert second.startswith("  keeps the checks of its base: lr=-1 is accepted")
    assert third.startswith("  trains: ConfigError: Both's train() returned")


def test_what_fails_is_listed_line_by_line() -> None:
    assert failures(Double) == (
        f"Double fails 1 of {len(testing.CHECKS)} checks\n"
        "  keeps the models dtype: ctx.state['v'] of a float32 model is float64: make it with dtype=ctx.model.dtype"
    )


def test_what_is_no_strategy_is_said_to_be_none() -> None:
    for thing in (int, 3, "SGD", None):
        assert failures(thing) == f"{thing!r} is not a client strategy: extend fedsim.clients.SGD or ClientStrategy"
    assert re.match(r"Unmade cannot be made without arguments \(.*'needed'\): give every", failures(Unmade))


def test_objects_are_checked_with_their_own_hyperparameters() -> None:
    names = testing.check_client_strategy(clients.FedProx(lr=0.05, proximal_mu=1.0))
    assert len(names) == len(set(names)) == len(testing.CHECKS) >= 20


# Each check by itself finds what it is there for.


def made(also: type[SGD] = SGD, **attributes: Any) -> SGD:
    """A strategy with methods and attributes of its own."""
    return type("Mistaken", (also,), attributes)()


def train(change: Callable[[SGD, Any], Any]) -> Callable[[SGD, Any], Any]:
    """Training, with something added to the weights."""

    def method(self: SGD, ctx: Any) -> Any:
        weights = ctx.fit()
        return weights + change(self, ctx)

    return method


def nan_if(condition: Callable[[SGD, Any], Any]) -> Callable[[SGD, Any], Any]:
    """Training that diverges under some condition."""
    return train(lambda self, ctx: math.nan if condition(self, ctx) else 0)


def put(place: str, name: str, value: Callable[[Any], Any]) -> Callable[[SGD, Any], Any]:
    """Training that puts something into ``ctx.up`` or ``ctx.state``."""

    def method(self: SGD, ctx: Any) -> Any:
        getattr(ctx, place)[name] = value(ctx)
        return ctx.fit()

    return method


def in_place(shared: Callable[[Any], Any]) -> Callable[[SGD, Any], Any]:
    """Training that forces its way into a shared array."""

    def method(self: SGD, ctx: Any) -> Any:
        array = shared(ctx)
        array.flags.writeable = True
        array[:] = 1
        return ctx.fit()

    return method


def mean_loss(self: SGD, weights: Any, x: Any, y: Any, ctx: Any) -> Any:
    loss, grad = ctx.model.loss_and_gradient(weights, x, y)
    return np.full_like(loss, loss.mean()), grad


def columns(ctx: Any) -> Any:
    return np.zeros((len(ctx.partition_ids), 1))


class Counted(SGD):
    """Counts the rounds of a client."""

    def client_state(self, ctx: Context) -> dict[str, Array]:
        return {"rounds": np.zeros((len(ctx.partition_ids), 1))}

    def train(self, ctx: Context) -> Array:
        ctx.state["rounds"] = ctx.state["rounds"] + 1
        return ctx.fit()


class WeighsLater(Counted):
    """Weighs clients by the others of their block, from their second round on."""

    def train(self, ctx: Context) -> Array:
        weights = super().train(ctx)
        ctx.up["rounds"] = ctx.state["rounds"]
        return weights

    def weigh(self, num_examples: Array, up: Any) -> Array:
        return np.asarray(num_examples / num_examples.sum() if up["rounds"].max() > 1 else num_examples)


class Sends(SGD):
    """Has something of the server's to send."""

    broadcast = ("control",)

    def server_state(self, weights: Array, half: Any) -> dict[str, Array]:
        return {"control": np.zeros_like(weights)}


class ForgetsNothing(SGD):
    """Keeps outside of its state how many clients have trained since round 1."""

    def train(self, ctx: Context) -> Array:
        if ctx.round == 1:
            LOG.clear()
        else:
            LOG.append((ctx.round, len(ctx.partition_ids)))
        return ctx.fit() + 1e-3 * sum(n for number, n in LOG if number < ctx.round)


class Unwritable(SGD):
    how: Any = math.sqrt


class Ignored(SGD):
    lr = 0.05
    batch_size = None


class Named(SGD):
    mu: float = 0.5
    how: str = "well"
    pair: tuple[int, int] = (1, 2)
    grouped = True
    _scale = 0.5


class Halved(SGD):
    neutral = {"epochs": 2, "lr": 0.05}  # noqa: RUF012


LOG: list[tuple[int, int]] = []
NUMBERS = count(1)
FOUND: list[tuple[str, SGD, str]] = [
    ("can be written as text", Unwritable(), "how is not a number or text, so no configuration file"),
    (
        "hyperparameters are annotated",
        Ignored(),
        "lr, batch_size has no annotation, so it cannot be set: write lr: float = ...",
    ),
    ("trains", made(train=nan_if(lambda s, c: c.round == 2)), "the loss, the weights or ctx.up of some client are not"),
    (
        "trains",
        made(Counted, train=put("state", "rounds", lambda c: columns(c) + np.inf)),
        "ctx.state['rounds'] is not finite",
    ),
    ("trains", made(Sends, train=lambda s, c: (c.down["control"].fill(1), c.fit())[1]), "read-only"),
    ("trains", made(train=lambda s, c: (c.global_weights.fill(1), c.fit())[1]), "read-only"),
    (
        "learns",
        made(train=lambda s, c: np.repeat(c.start, len(c.partition_ids), axis=0)),
        "in 15 rounds (0.966, 0.966)",
    ),
    (
        "works with one batch per shard",
        made(train=nan_if(lambda s, c: s.batch_size is None)),
        "with batch_size=None the result is not finite",
    ),
    (
        "works with batches of one",
        made(train=nan_if(lambda s, c: s.batch_size == 1)),
        "with batch_size=1 the result is not finite",
    ),
    (
        "works on one client",
        made(train=nan_if(lambda s, c: c.num_examples.tolist() == [1])),
        "with a single client of one example the result is not finite",
    ),
    ("stacked equals one by one", made(gradient=mean_loss), "the loss of a client depends on which clients share"),
    (
        "stacked equals one by one",
        made(train=train(lambda s, c: 1e-9 * len(c.partition_ids))),
        "the weights of a client depends",
    ),
    (
        "stacked equals one by one",
        made(train=put("up", "n", lambda c: columns(c) + len(c.partition_ids))),
        "ctx.up['n'] of a client",
    ),
    (
        "stacked equals one by one",
        made(Counted, train=put("state", "rounds", lambda c: columns(c) + len(c.partition_ids))),
        "ctx.state['rounds'] of a client",
    ),
    (
        "stacked equals one by one",
        made(train=lambda s, c: (c.up.update({"x": columns(c)} if len(c.partition_ids) > 1 else {}), c.fit())[1]),
        "ctx.up['x'] of a client",
    ),
    (
        "gives the same bits with any workers",
        made(train=train(lambda s, c: 1e-6 * (len(c.partition_ids) == 1))),
        "the result depends on workers or blocks",
    ),
    (
        "gives the same bits with any workers",
        made(train=train(lambda s, c: 1e-6 * (len(c.partition_ids) == 3))),
        "depends on workers or blocks",
    ),
    (
        "gives the same bits again",
        made(train=train(lambda s, c: 1e-6 * next(NUMBERS)), personalise=lambda s, c: c.start * 0),
        "two runs with one seed differ",
    ),
    (
        "gives the same bits again",
        made(personalise=lambda s, c: c.start + 1e-3 * next(NUMBERS)),
        "two runs with one seed differ",
    ),
    (
        "depends on the seed",
        made(train=lambda s, c: np.zeros((len(c.partition_ids), c.global_weights.size))),
        "runs with different seeds are the same",
    ),
    ("state survives resume", ForgetsNothing(), "a resumed run differs from an uninterrupted one"),
    ("leaves shared arrays alone", made(train=in_place(lambda c: c.global_weights)), "are changed in place"),
    ("leaves shared arrays alone", made(train=in_place(lambda c: c._task.x)), "are changed in place"),
    ("leaves shared arrays alone", made(train=in_place(lambda c: c._task.y)), "are changed in place"),
    ("leaves shared arrays alone", made(Sends, train=in_place(lambda c: c.down["control"])), "are changed in place"),
    (
        "personalise has weights for every client",
        made(Counted, personalise=lambda s, c: c.start / c.state["rounds"]),
        "weights that are not finite for client 0",
    ),
    (
        "personalise has weights for every client",
        made(Counted, personalise=lambda s, c: c.start / (2 - c.state["rounds"])),
        "weights that are not finite for client 0",
    ),
    ("server hooks keep the model finite", made(broadcast=("a", "b")), "names a, which server_state() does not"),
    (
        "server hooks keep the model finite",
        made(server_step=lambda s, c: c.mean["weights"] * (math.nan if c.round == 2 else 1)),
        "round 2",
    ),
    (
        "ordinary messages give the same bits",
        made(weigh=lambda s, n, up: n / n.sum()),
        "a round through Flower's messages differs from one in blocks",
    ),
    ("ordinary messages give the same bits", WeighsLater(), "differs from one in blocks"),
    (
        "both kernels agree",
        made(affine=lambda s, c: Affine(1e-5 * (c._task.kernel == "compiled"), center=c.global_weights + 1)),
        "the compiled kernel gives another result",
    ),
    ("neutral hyperparameters give sgd", made(NotNeutral, neutral={"mu": 0.05}), "with {'mu': 0.05} the global model"),
]


def alone(check: str, strategy: SGD) -> str:
    """What one check says; empty if it passes."""
    try:
        with np.errstate(all="ignore"):
            getattr(StrategyChecks(strategy), check.replace(" ", "_"))()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("check", "strategy", "said"), FOUND, ids=[f"{f[0]}: {f[2]}" for f in FOUND])
def test_each_check_finds_what_it_is_for(check: str, strategy: SGD, said: str) -> None:
    assert said in alone(check, strategy)
    assert not alone(check, SGD())


def test_what_is_sound_passes() -> None:
    """Constants, fields of text, small states in float64, and neutral values of SGD's own hyperparameters."""
    large = nan_if(lambda s, c: s.batch_size == 1 and s.lr > 0.05)
    for check, strategy in [
        ("hyperparameters are annotated", Named()),
        ("can be written as text", Named()),
        ("keeps the models dtype", Counted()),
        ("works with batches of one", made(train=large)),  # whose steps are small
        ("neutral hyperparameters give sgd", Halved()),
    ]:
        assert not alone(check, strategy)


def test_losses_that_rise_are_shown() -> None:
    first, last = map(float, re.findall(r"[\d.]+(?=[,)])", alone("learns", Ascends())))
    assert math.log(3) - 0.5 < first < last


def test_checks_leave_no_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 3.5)
    monkeypatch.setattr(runs, "CHECKPOINT_SHARE", 0.25)
    assert not alone("state survives resume", Counted())
    assert (runs.CHECKPOINT_SECONDS, runs.CHECKPOINT_SHARE) == (3.5, 0.25)
    assert capsys.readouterr() == ("", "")
