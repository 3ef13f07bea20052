"""What a strategy's own methods return: a mistake is one sentence with the method's place; state stays sound."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim import Experiment, clients
from fedsim.clients import SGD
from fedsim.clients.context import Context
from fedsim.clients.full_pass import evaluate_shards
from fedsim.clients.local_round import has_client_state, new_client_state, run_local_round
from fedsim.clients.server_hooks import ServerHooks, needs_server_hooks
from fedsim.clients.sgd import numpy_hooks
from fedsim.clients.task import Task, Update
from fedsim.errors import ConfigError, DivergenceError
from fedsim.models import MLP
from fedsim.splits import IID, Partition
from fedsim.streams import Purpose, generator
from fedsim.testing import check_client_strategy

Array = NDArray[Any]
BASE = Experiment(split=IID(4), hidden=(5,), rounds=2, fraction_evaluate=1.0, dtype="float64", kernel="numpy")
#: Of BASE's network: 64 inputs, 5 hidden units, 10 outputs.
PARAMETERS = 65 * 5 + 6 * 10
RNG = np.random.default_rng(0)


def returning(hook: str, values: Any, also: type[SGD] = SGD) -> SGD:
    """Return a strategy of which one method returns something."""

    def method(self: SGD, *args: Any) -> Any:
        return values(*args) if callable(values) else values

    made = type("Mistaken", (also,), {hook: method})
    return made()


class Kept(SGD):
    """A client that counts its rounds, and a server that counts them too."""

    def client_state(self, ctx: Any) -> Any:
        return {"rounds": np.zeros((len(ctx.partition_ids), 2))}

    def server_state(self, weights: Any, server_hooks: Any) -> Any:
        return {"rounds": np.zeros(1)}


def in_train(**changes: Any) -> Any:
    def train(ctx: Any) -> Any:
        for name, value in changes.items():
            ctx.state[name] = value
        return ctx.fit()

    return train


def drops_state(ctx: Any) -> Any:
    weights = ctx.fit()
    ctx.state = None
    return weights


def in_server_step(value: Any) -> Any:
    def server_step(ctx: Any) -> Any:
        ctx.state["rounds"] = value
        return ctx.mean["weights"]

    return server_step


NAN = float("nan")
MISTAKES: list[tuple[str, Any, type[SGD], str]] = [
    ("train", lambda c: c.fit().astype(int), SGD, "train() returned an array of int64; it must contain floats"),
    ("local_steps", 0, SGD, "local_steps() returned 0; allowed: a whole number of at least 1, or an array"),
    ("local_steps", 1.5, SGD, "local_steps() returned 1.5; allowed: a whole number of at least 1"),
    ("local_steps", lambda c: np.full(len(c.partition_ids), -2), SGD, "local_steps() returned array([-2"),
    ("local_steps", None, SGD, "local_steps() returned None"),
    ("local_steps", lambda c: np.ones(3), SGD, "one for each client, shape (4,)"),
    ("local_steps", 10**30, SGD, "local_steps() returned 1000000000000000000000000000000; allowed"),
    ("local_steps", NAN, SGD, "local_steps() returned nan"),
    ("local_steps", True, SGD, "local_steps() returned True"),
    ("local_steps", float("inf"), SGD, "local_steps() returned inf"),
    ("learning_rate", NAN, SGD, "learning_rate() returned nan; allowed: a finite number of at least 0"),
    ("learning_rate", float("inf"), SGD, "learning_rate() returned inf"),
    (
        "learning_rate",
        np.full((4, 30), -1.0),
        SGD,
        "learning_rate() returned array([[-1., " + "-1., " * 12 + "-1.,...; allowed",
    ),
    ("learning_rate", -0.1, SGD, "learning_rate() returned -0.1"),
    ("learning_rate", lambda c: np.ones((4, 1)), SGD, "learning_rate() returned array([[1.]"),
    ("learning_rate", "fast", SGD, "learning_rate() returned 'fast'"),
    ("train", None, SGD, "train() returned a NoneType; it must be an array of shape (clients, parameters)"),
    ("train", lambda c: c.fit()[:, :-1], SGD, f"train() returned an array of shape (4, {PARAMETERS - 1}); it must be"),
    ("affine", 1.0, SGD, "affine() returned a float; it must be an Affine"),
    ("gradient", lambda w, *_: w, SGD, "gradient() must return a tuple of the losses"),
    ("gradient", lambda w, *_: [w[:, 0], w], SGD, "shape (clients,), and the gradients, shape (clients, parameters)"),
    ("gradient", lambda w, *_: (w[:, 0], w, w), SGD, "gradient() must return a tuple of the losses"),
    ("gradient", lambda w, *_: (w[:, 0].astype(str), w), SGD, "losses an array of <U32; it must contain numbers"),
    ("gradient", lambda w, *_: (0.0, w), SGD, "gradient() returned losses a float; it must be an array"),
    ("gradient", lambda w, *_: (w[:, 0], w[:1]), SGD, "gradient() returned gradients of shape (1,"),
    (
        "direction",
        lambda g, *_: g[:, :1],
        SGD,
        "direction() returned an array of shape (4, 1); it must be (clients, parameters)",
    ),
    (
        "direction",
        lambda g, *_: g[..., None],
        SGD,
        f"array of shape (4, {PARAMETERS}, 1); it must be (clients, parameters), here (4, {PARAMETERS})",
    ),
    ("client_state", 3, SGD, "client_state() returned a int; it must be a dict of arrays"),
    ("client_state", {"a": 1.0}, SGD, "client_state()['a'] is a float; it must be an array of shape (clients, ...)"),
    ("client_state", {"a": np.zeros(9)}, SGD, "client_state()['a'] is of shape (9,); it must be (clients, ...)"),
    ("client_state", lambda c: {"a": np.full(len(c.partition_ids), NAN)}, SGD, "client_state()['a'] contains NaN"),
    ("train", drops_state, SGD, "ctx.state is a NoneType after train(); it must"),
    (
        "train",
        in_train(rounds=np.zeros(4)),
        Kept,
        "ctx.state['rounds'] is of shape (4,); it must be (clients, ...), here (4, 2)",
    ),
    (
        "train",
        in_train(other=np.zeros(4)),
        Kept,
        "ctx.state has the names ['rounds', 'other'] after train(); allowed: ['rounds'], the names that",
    ),
    ("train", in_train(other=np.zeros(4)), SGD, "ctx.state has the names ['other'] after train(); allowed: []"),
    ("train", in_train(rounds=np.zeros((4, 2), complex)), Kept, "ctx.state['rounds'] is an array of complex128"),
    (
        "train",
        lambda c: (c.state.clear(), c.fit())[1],
        Kept,
        "ctx.state has the names [] after train(); allowed: ['rounds']",
    ),
    (
        "direction",
        lambda g, w, c: (c.state.update(x=g), g)[1],
        Kept,
        "ctx.state has the names ['rounds', 'x'] after direction()",
    ),
    ("personalise", None, SGD, "personalise() returned a NoneType; it must be an array"),
    (
        "personalise",
        np.zeros(7),
        SGD,
        "personalise() returned an array of shape (1, 7); it must be (clients, parameters), here",
    ),
    ("personalise", np.zeros((3, PARAMETERS)), SGD, f"personalise() returned an array of shape (3, {PARAMETERS})"),
    ("personalise", np.zeros((1, PARAMETERS + 1)), SGD, "personalise() returned an array of shape (1,"),
    (
        "personalise",
        np.array(1.0),
        SGD,
        f"array of shape (); it must be (clients, parameters), here (4, {PARAMETERS})",
    ),
    ("personalise", lambda c: c.start + NAN, SGD, "personalise() returned weights that are not finite ("),
    (
        "personalise",
        lambda c: np.where(c.partition_ids[:, None] == 2, NAN, c.start),
        SGD,
        "personalise() returned weights that are not finite for client 2 (",
    ),
    ("server_step", None, SGD, "server_step() returned a NoneType; it must be an array of shape (parameters,)"),
    ("server_step", lambda c: c.mean["weights"][:-1], SGD, "server_step() returned an array of shape ("),
    ("server_step", lambda c: c.mean["weights"][None], SGD, f"it must be (parameters,), here ({PARAMETERS},)"),
    ("server_step", in_server_step("many"), Kept, "state['rounds'] is a str after server_step(); it must be an array"),
    ("server_state", [], SGD, "state is a list after server_state(); it must be a dict of arrays"),
    ("server_state", {"a": None}, SGD, "state['a'] is a NoneType after server_state(); it must be an array of numbers"),
    ("server_state", {"a": 1j}, SGD, "state['a'] is a complex after server_state()"),
    ("weigh", 1.0, SGD, "weigh() returned a float; it must be an array of shape (clients,)"),
    ("weigh", lambda n, up: n[:-1], SGD, "weigh() returned an array of shape (3,); it must be (clients,), here (4,)"),
    ("weigh", lambda n, up: np.ones((3, 2)), SGD, "shape (3, 2); it must be (clients, groups), here (4, 2)"),
    ("weigh", lambda n, up: -n, SGD, "weigh() returned array([-"),
    ("weigh", lambda n, up: n * np.inf, SGD, "weigh() returned array([inf"),
    ("weigh", lambda n, up: n * NAN, SGD, "allowed: finite numbers of at least 0"),
    ("private_groups", [3], SGD, "private_groups() returned [3]; allowed: some of the model's groups, (('W1', 'b1')"),
    ("private_groups", 1, SGD, "private_groups() returned 1; allowed"),
]


@pytest.mark.parametrize(("hook", "values", "also", "said"), MISTAKES, ids=[f"{m[0]}: {m[3]}" for m in MISTAKES])
def test_a_mistake_in_a_hook_is_one_sentence_with_its_place(hook: str, values: Any, also: type[SGD], said: str) -> None:
    strategy = returning(hook, values, also)
    if hook == "server_state":
        strategy = replace(returning(hook, values, clients.SCAFFOLD))  # whose server hooks are called
    with pytest.raises(ConfigError) as caught:
        replace(BASE, client=strategy).run()
    message = str(caught.value)
    assert message.startswith("Mistaken's ")
    assert said in message
    line = inspect.unwrap(getattr(type(strategy), hook)).__code__.co_firstlineno
    assert message.endswith(f"({__file__}:{line})")
    assert "\n" not in message


def test_the_place_of_a_mistake_is_where_the_method_is_written() -> None:
    """Behind a decorator; a method that is no function of Python's has none."""

    def decorated(method: Any) -> Any:
        @functools.wraps(method)
        def wrapper(*args: Any) -> Any:
            return method(*args)

        return wrapper

    def train(self: Any, ctx: Any) -> Any:
        return None

    class Object:
        def __call__(self, ctx: Any) -> Any:
            return None

    for method, place in ((decorated(train), f" ({__file__}:{train.__code__.co_firstlineno})"), (Object(), "")):
        made: Any = type("Mistaken", (SGD,), {"train": method})
        with pytest.raises(ConfigError) as caught:
            replace(BASE, client=made()).run()
        assert str(caught.value).endswith(f"it must be an array of shape (clients, parameters){place}")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda s, c: c.fit(np.zeros(3)), "Mistaken's start of fit() has shape (3,)"),
        (lambda s, c: c.fit(np.zeros((3, PARAMETERS))), f"start of fit() has shape (3, {PARAMETERS})"),
        (lambda s, c: c.fit(np.zeros((1, PARAMETERS, 1))), f"start of fit() has shape (1, {PARAMETERS}, 1)"),
        (
            lambda s, c: c.fit(by=returning("affine", clients.Affine(1.0, center=np.zeros(3)))),
            "Mistaken's affine's center has shape (3,)",
        ),
    ],
)
def test_weights_given_to_a_fit_have_a_row_for_all_or_one_for_each(train: Any, said: str) -> None:
    """A kernel relies on it."""
    made: Any = type("Mistaken", (SGD,), {"train": train})
    allowed = f"; allowed: ({PARAMETERS},), or with a row per client, (4, {PARAMETERS})"
    with pytest.raises(ConfigError, match=re.escape(said + allowed)):
        replace(BASE, client=made()).run()


class Short(SGD):
    def direction(self, grad: Any, weights: Any) -> Any:  # type: ignore[override]
        return grad


class Long(SGD):
    def personalise(self, ctx: Any, more: Any) -> Any:  # type: ignore[override]
        return ctx.fit()


class Renamed(SGD):
    def direction(self, g: Any, *others: Any, scale: float = 1.0) -> Any:
        return g * scale


def test_methods_that_take_other_arguments_are_refused_before_the_run() -> None:
    short = "Short's direction() takes (self, grad, weights); allowed: (self, grad, weights, ctx) ("
    with pytest.raises(ConfigError, match=re.escape(short)):
        replace(BASE, client=Short())
    with pytest.raises(ConfigError, match=re.escape(short)):
        check_client_strategy(Short)
    with pytest.raises(ConfigError, match=re.escape("personalise() takes (self, ctx, more); allowed: (self, ctx) (")):
        replace(BASE, client=Long())
    renamed, plain = (replace(BASE, client=strategy, kernel="numpy").run() for strategy in (Renamed(), SGD()))
    np.testing.assert_array_equal(renamed.weights["W1"], plain.weights["W1"])  # other names and defaults are fine


def test_what_is_allowed_is_used() -> None:
    """Whole numbers as floats, NumPy's scalars, arrays of one value, zero learning rates, rows as a flat array."""
    plain = replace(BASE, client=SGD(steps=7, lr=0.1)).run()
    steps: list[Any] = [7.0, np.int8(7), np.array([7]), np.full(4, 7.0)]
    rates: list[Any] = [np.float32(0.1), np.array(0.1), np.full(4, 0.1)]
    ours = [returning("local_steps", v) for v in steps] + [
        replace(returning("learning_rate", v), steps=7) for v in rates
    ]
    for strategy in ours:
        found = replace(BASE, client=strategy).run()
        np.testing.assert_allclose(found.weights["W1"], plain.weights["W1"], rtol=1e-6)
    still = replace(BASE, client=returning("learning_rate", 0)).run()
    assert still.history["test_loss"].nunique() == 1
    one = replace(BASE, client=returning("personalise", lambda c: c.global_weights)).run()
    assert one.clients.equals(replace(BASE, client=SGD()).run().clients)


def test_state_keeps_its_declared_type() -> None:
    """What a client keeps does not depend on when others of its block took part first."""

    class Widens(SGD):
        def client_state(self, ctx: Any) -> Any:
            return {"v": np.zeros((len(ctx.partition_ids), 1), np.float32)}

        def train(self, ctx: Any) -> Array:
            ctx.state["v"] = ctx.state["v"].astype(np.float64) + 0.1
            seen.add(str(ctx.state["v"].dtype))
            return np.asarray(ctx.fit() + ctx.state["v"])

    class Truncates(Widens):
        def client_state(self, ctx: Any) -> Any:
            return {"v": np.zeros((len(ctx.partition_ids), 1), np.int64)}

    seen: set[str] = set()
    base = replace(BASE, split=IID(9), fraction_train=0.5, rounds=4, client=Widens())
    whole, apart = (base.run(block_size=size).weights["W1"] for size in (9, 1))
    np.testing.assert_array_equal(whole, apart)
    with pytest.raises(ConfigError, match=r"is of float64 after train.*it must be int64"):
        replace(base, client=Truncates()).run()


NET = MLP((6, 5, 3), "tanh", dtype="float64")
X, Y = RNG.normal(size=(40, 6)), RNG.integers(0, 3, 40)
START = NET.init(RNG)
HELD = Partition(np.arange(40), np.array([0, 25, 40]))
IDS = np.arange(2)


def test_private_groups_leave_what_train_returned_alone() -> None:
    """State that refers to the returned array is the trained model, in all of its layers."""

    class Remembers(clients.FedPer):
        def client_state(self, ctx: Any) -> Any:
            return {"last": np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)}

        def train(self, ctx: Any) -> Array:
            weights = ctx.fit()
            ctx.state["last"] = ctx.up["sent"] = weights
            copies.append(weights.copy())
            return np.asarray(weights)

    copies: list[Array] = []
    task = Task(NET, Remembers(), X, Y, HELD, START, 1, 0)
    update = run_local_round(task, IDS, new_client_state(task, IDS))
    np.testing.assert_array_equal(update.state["last"], copies[0])
    np.testing.assert_array_equal(update.up["sent"], copies[0])
    head = np.zeros(NET.num_parameters, bool)
    head[5 * 7 :] = True
    np.testing.assert_array_equal(update.weights[:, head], np.broadcast_to(START[head], (2, 18)))
    np.testing.assert_array_equal(update.weights[:, ~head], copies[0][:, ~head])
    np.testing.assert_array_equal(update.state["private parameters"], copies[0][:, head])


@pytest.mark.parametrize("base", [SGD, clients.FedPer])
def test_a_round_needs_no_fit(base: type[SGD]) -> None:
    """One step along the gradient of all examples is FedSGD; the training loss is that of the round's start."""

    class OneStep(base):  # type: ignore[misc, valid-type]
        def train(self, ctx: Any) -> Array:
            return np.asarray(ctx.start - self.lr * ctx.full_gradient(ctx.start)[1])

    ours, fedsgd = (replace(BASE, client=c).run() for c in (OneStep(), base(batch_size=None)))
    np.testing.assert_allclose(ours.history["test_loss"], fedsgd.history["test_loss"], rtol=1e-10)
    np.testing.assert_allclose(ours.history["train_loss"], fedsgd.history["train_loss"], rtol=1e-10)
    np.testing.assert_allclose(ours.clients["loss"], fedsgd.clients["loss"], rtol=1e-10)


def test_a_client_whose_own_model_is_nan_has_failed() -> None:
    """Also if what it sends is finite: it keeps the state it had."""

    class Breaks(clients.Ditto):
        def train(self, ctx: Any) -> Array:
            weights = super().train(ctx)
            ctx.state["personal"][(ctx.partition_ids == 2) & (ctx.round == 2)] = np.nan
            return weights

    with pytest.raises(DivergenceError, match="round 2 at client 2"):
        replace(BASE, client=Breaks()).run()
    result = replace(BASE, client=Breaks(), on_failure="exclude").run()
    assert result.failures["partition_id"].tolist() == [2]
    assert np.isfinite(result.clients["loss"]).all()


def test_a_client_whose_own_fit_diverges_is_named() -> None:
    with pytest.raises(DivergenceError, match=r"round 1 at client \d when FineTune.*made the client's own model"):
        replace(BASE, client=clients.FineTune(tune_lr=1e200)).run()


def test_the_share_is_of_the_rounds_examples() -> None:
    shares: list[float] = []

    class Spy(SGD):
        def server_step(self, ctx: clients.ServerContext) -> Array:
            shares.append(ctx.share)
            return ctx.mean["weights"]

    hooks = ServerHooks(Spy(), NET, lambda number: {1: 40, 2: 10}[number], 0)
    hooks.step(1, START, {"weights": START}, 10)
    hooks.step(2, START, {"weights": START}, 10)
    ServerHooks(Spy(), NET, 20, 0).step(7, START, {"weights": START}, 10)
    assert shares == [0.25, 1.0, 0.5]


# What hooks see and change, on clients of ragged sizes; their last batches come in groups.

SIZES = np.array([13, 10, 10, 4, 3])
RAGGED = Partition(np.arange(40), np.concatenate([[0], np.cumsum(SIZES)]))
ALL = np.arange(5)


def test_a_hook_sees_the_rows_of_its_clients() -> None:
    """Step sizes, steps, labels, private layers and state; what it changes is kept, in place or not."""

    class Looks(clients.FedPer):
        def client_state(self, ctx: Any) -> Any:
            return {"count": np.zeros(len(ctx.partition_ids), np.int64), "sum": np.zeros((len(ctx.partition_ids), 1))}

        def learning_rate(self, ctx: Any) -> Any:
            return 0.1 * (1 + ctx.partition_ids)

        def local_steps(self, ctx: Any) -> Any:
            return 2 + ctx.partition_ids

        def gradient(self, weights: Any, x: Any, y: Any, ctx: Any) -> Any:
            self.look(weights, ctx)
            ctx.state["count"] += 1
            return np.ones(len(weights)), np.zeros_like(weights)

        def direction(self, grad: Any, weights: Any, ctx: Any) -> Any:
            self.look(weights, ctx)
            ctx.state["sum"] = ctx.state["sum"] + 0.5
            return grad

        def look(self, weights: Any, ctx: Any) -> None:
            who = ctx.partition_ids
            np.testing.assert_array_equal(ctx.num_examples, SIZES[who])
            np.testing.assert_array_equal(ctx.lr, 0.1 * (1 + who))
            np.testing.assert_array_equal(ctx.steps, 2 + who)
            np.testing.assert_array_equal(ctx.label_counts, labels[who])
            np.testing.assert_array_equal(ctx.start[:, head], np.repeat(own[who, None], 18, axis=1))
            np.testing.assert_array_equal(ctx.start[:, ~head], np.repeat(START[None, ~head], len(who), axis=0))
            np.testing.assert_array_equal(weights, ctx.start)
            groups.add(tuple(who))

    labels = np.array([np.bincount(Y[RAGGED[k]], minlength=3) for k in range(5)])
    head = np.arange(NET.num_parameters) >= 5 * 7
    own = 0.5 + np.arange(5)
    groups: set[tuple[int, ...]] = set()
    task = Task(NET, Looks(batch_size=4), X, Y, RAGGED, START, 3, 0)
    state = new_client_state(task, ALL)
    state["private parameters"] = np.repeat(own[:, None], 18, axis=1)
    update = run_local_round(task, ALL, state)
    assert {(1, 2), (0, 1, 2)} <= groups
    assert update.state["count"].tolist() == [2, 3, 4, 5, 6]
    assert update.state["sum"][:, 0].tolist() == [1, 1.5, 2, 2.5, 3]
    assert update.train_loss.tolist() == [1] * 5  # a mean over the examples processed, also in a part of an epoch
    np.testing.assert_array_equal(update.state["private parameters"], state["private parameters"])


def test_every_fit_of_a_round_shuffles_anew() -> None:
    orders: list[list[float]] = []

    class Thrice(SGD):
        def gradient(self, weights: Any, x: Any, y: Any, ctx: Any) -> Any:
            orders[-1].extend(x[0, :, 0])
            return np.ones(len(weights)), np.zeros_like(weights)

        def train(self, ctx: Any) -> Array:
            for _ in range(3):
                orders.append([])
                weights = ctx.fit()
            return np.asarray(weights)

    run_local_round(Task(NET, Thrice(batch_size=4), X, Y, RAGGED, START, 1, 0), ALL[:1], {})
    assert [sorted(order) for order in orders] == [sorted(X[:13, 0])] * 3
    assert len(set(map(tuple, orders))) == 3


def test_fits_of_some_groups_name_groups() -> None:
    context = Context(Task(NET, SGD(), X, Y, HELD, START, 1, 0), IDS, {})
    assert context.update_norm is None  # before the first fit
    for groups in ([], [("W3", "b3")], ["W1"]):
        with pytest.raises(ValueError, match=re.escape(f"groups is {groups!r}; allowed: some of {NET.groups}")):
            context.fit(groups=groups)  # type: ignore[arg-type]


def test_step_sizes_are_the_contexts_own() -> None:
    """Changing them changes nothing that the strategy has returned."""
    rates = np.array([0.1, 0.2])
    context = Context(Task(NET, returning("learning_rate", rates), X, Y, HELD, START, 1, 0), IDS, {})
    context.lr[:] = 7
    assert rates.tolist() == [0.1, 0.2]
    context = Context(Task(NET, SGD(), X, Y, HELD, START, 1, 0), IDS, {})
    context.steps[:] += 1
    assert context.steps.tolist() == [4, 3]


def test_a_network_of_one_output_has_two_labels() -> None:
    """Also for a client that lacks one."""
    net = MLP((6, 1), loss="binary_cross_entropy", dtype="float64")
    task = Task(net, SGD(), X, np.arange(40) % 2 * (np.arange(40) < 25), HELD, net.init(RNG), 1, 0)
    assert Context(task, IDS, {}).label_counts.tolist() == [[13, 12], [15, 0]]


@pytest.mark.parametrize(
    ("place", "value", "fails"),
    [
        ("weights", np.inf, True),
        ("up", np.inf, True),
        ("up", NAN, True),
        ("state", NAN, True),
        ("state", np.inf, False),  # such as a best loss so far
    ],
)
def test_a_client_that_sends_what_is_not_finite_has_failed(place: str, value: float, fails: bool) -> None:
    class Breaks(SGD):
        def client_state(self, ctx: Any) -> Any:
            return {"number": np.zeros(2, np.int64), "state": np.zeros((2, 3, 2))}

        def train(self, ctx: Any) -> Array:
            weights = ctx.fit()
            ctx.up["up"], ctx.up["whole"] = np.zeros((2, 3)), np.ones(2, np.int64)
            place_of = {"weights": weights, "up": ctx.up["up"], "state": ctx.state["state"]}
            place_of[place][1].flat[-1] = value
            return np.asarray(weights)

    task = Task(NET, Breaks(), X, Y, HELD, START, 1, 0)
    update = run_local_round(task, IDS, new_client_state(task, IDS))
    assert np.isnan(update.train_loss).tolist() == [False, fails]


def test_how_far_clients_moved_is_of_what_they_send() -> None:
    class Doubles(SGD):
        def train(self, ctx: Any) -> Array:
            return np.asarray(2 * ctx.fit())

    for kernel in ("numpy", "compiled"):
        for strategy in (SGD(), Doubles(), clients.FedPer()):
            task = Task(NET, strategy, X, Y, HELD, START, 1, 0, kernel=kernel)
            update = run_local_round(task, IDS, new_client_state(task, IDS))
            far = np.linalg.norm(update.weights - START, axis=1)
            assert (update.update_norm is None) == (type(strategy) is not SGD)
            np.testing.assert_allclose(far if update.update_norm is None else update.update_norm, far, rtol=1e-12)


def test_some_rows_of_an_update() -> None:
    ids, rows = np.array([4, 2, 7]), np.arange(6.0).reshape(3, 2)
    whole = Update(
        ids, ids + 1, rows, rows[:, 0], {"u": rows + 1}, {"s": rows + 2}, {"e": rows + 3}, failed={9: ConfigError("x")}
    )
    part = whole.rows(np.array([True, False, True]))
    assert (part.partition_ids.tolist(), part.num_examples.tolist()) == ([4, 7], [5, 8])
    assert (part.weights.tolist(), part.train_loss.tolist()) == ([[0, 1], [4, 5]], [0, 4])
    assert part.up["u"].tolist() == [[1, 2], [5, 6]]
    assert part.state["s"].tolist() == [[2, 3], [6, 7]]
    assert part.encoded["e"].tolist() == [[3, 4], [7, 8]]
    assert part.update_norm is None
    assert part.failed == {}
    assert replace(whole, update_norm=rows[:, 1]).rows(ids == 2).update_norm.tolist() == [3]  # type: ignore[union-attr]


def test_a_client_without_examples_has_no_score() -> None:
    """And takes nothing from the others."""
    task = Task(NET, SGD(), X, Y, HELD, START, 1, 0)
    with_empty = Partition(np.arange(40), np.array([0, 25, 25, 40]))
    for weights in (START, np.stack([START, 2 * START, 3 * START])):
        loss, accuracy = evaluate_shards(task, with_empty, np.arange(3), weights)
        own = weights if weights.ndim == 1 else weights[[0, 2]]
        for found, expected in zip((loss, accuracy), evaluate_shards(task, HELD, IDS, own), strict=True):
            np.testing.assert_array_equal(found, [expected[0], np.nan, expected[1]])


def test_server_hooks_start_once_and_sends_what_it_names() -> None:
    class Half(SGD):
        broadcast = ("sent",)

        def server_state(self, weights: Array, server_hooks: Any) -> Any:
            starts.append(weights)
            return {"sent": weights + 1, "kept": [1, 2]}

        def server_step(self, ctx: Any) -> Any:
            assert (ctx.round, ctx.global_weights[0], ctx.state["kept"].tolist()) == (5, START[0], [1, 2])
            ctx.state = {"sent": ctx.mean["weights"] * 0}
            return ctx.mean["weights"]

        def weigh(self, num_examples: Array, up: Any) -> Array:
            return np.asarray(num_examples * up["w"])

    starts: list[Array] = []
    half = ServerHooks(Half(), NET, 40, 6)
    assert list(half.down(START)) == ["sent"]
    np.testing.assert_array_equal(half.down(START)["sent"], START + 1)
    np.testing.assert_array_equal(half.step(5, START, {"weights": START * 2}, 10), START * 2)
    assert not half.down(START)["sent"].any()
    assert len(starts) == 1
    assert half.weigh(np.array([2, 3]), {"w": np.array([10, 1])}).tolist() == [20, 3]
    for number in (1, 2):
        drawn = NET.init(generator(6, Purpose.INIT, number))
        np.testing.assert_array_equal(half.draw_weights(number), drawn)
    with pytest.raises(ConfigError, match=r"^Mistaken's broadcast names b, which server_state\(\) does not return$"):
        ServerHooks(type("Mistaken", (Half,), {"broadcast": ("sent", "b")})(), NET, 40, 0).down(START)


def test_what_a_strategy_overrides_decides_where_it_runs() -> None:
    """In the NumPy kernel if it has a step of its own, with a server half if it needs one, and with state."""
    for hook, kernel, half, state in [
        ("gradient", "Mistaken's gradient()", False, False),
        ("direction", "Mistaken's direction()", False, False),
        ("affine", "", False, False),
        ("server_step", "", True, False),
        ("weigh", "", True, False),
        ("client_state", "", False, True),
        ("train", "", False, False),
    ]:
        strategy = returning(hook, None)
        assert numpy_hooks(strategy) == kernel
        assert needs_server_hooks(strategy) is half
        assert has_client_state(strategy, NET) is state
    sends: Any = type("Mistaken", (SGD,), {"broadcast": ("a",)})
    assert needs_server_hooks(sends())
    assert has_client_state(clients.FedPer(), NET)
    assert numpy_hooks(returning("direction", None, clients.FedSAM)) == "Mistaken's gradient()"
