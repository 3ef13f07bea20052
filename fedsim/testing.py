"""Checks that a client strategy, or a model, keeps the promises on which fedsim relies.

>>> from fedsim.clients import SGD, ClientStrategy
>>> class Halved(SGD):
...     def direction(self, grad, weights, ctx):
...         return grad / 2
>>> passed = check_client_strategy(Halved)
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from inspect import get_annotations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.clients import SGD, ClientStrategy
from fedsim.clients.check_hooks import check_signatures
from fedsim.clients.local_round import new_client_state, personalise, run_local_round
from fedsim.clients.private import PRIVATE, private_mask
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.sgd import numpy_hooks
from fedsim.clients.task import Task, Update
from fedsim.data import Dataset
from fedsim.errors import ConfigError, FedsimError
from fedsim.models import MLP
from fedsim.models.conformance import ModelError, check_model
from fedsim.splits import CountedSplit, Partition
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.text import describe

__all__ = ["ModelError", "StrategyError", "check_client_strategy", "check_model"]

Array = NDArray[Any]
Check = Callable[[ClientStrategy], None]

#: Ragged on purpose: more than a batch, exactly one, fewer, and a single example.
SIZES = (23, 20, 20, 13, 10, 7, 3, 1)
CHECKS: dict[str, Check] = {}


class StrategyError(FedsimError, AssertionError):
    """A client strategy breaks a promise; says which, and what to do."""


def check_client_strategy(strategy: ClientStrategy | type[ClientStrategy]) -> list[str]:
    """Try a client strategy on small clients of ragged sizes.

    Parameters
    ----------
    strategy : ClientStrategy or subclass of it
        A class is tried with its defaults.

    Returns
    -------
    list of str
        Names of the checks, all passed.

    Raises
    ------
    StrategyError
        Names every check that failed and what to fix.
    """
    if isinstance(strategy, type):
        if not issubclass(strategy, ClientStrategy):
            raise StrategyError(
                f"{strategy.__name__} is not a client strategy: let it extend fedsim.clients.SGD or ClientStrategy"
            )
        cls = strategy
        try:
            strategy = cls()
        except TypeError as error:
            raise StrategyError(
                f"{cls.__name__} cannot be made without arguments ({error}): give every hyperparameter a default, "
                "or pass an object in place of the class"
            ) from error
    if not isinstance(strategy, ClientStrategy):
        raise StrategyError(
            f"{strategy!r} is not a client strategy: let its class extend fedsim.clients.SGD or ClientStrategy"
        )
    check_signatures(strategy)
    failures, tried, wait = [], 0, ""
    for name, check in CHECKS.items():
        tried += 1
        try:
            with np.errstate(all="ignore"):
                check(strategy)
        except StrategyError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            failures.append(f"{name}: {describe(error)}{_hint(error)}")
        if failures and check is trains:
            wait = f" (the others wait for {'this one' if len(failures) == 1 else 'these'})"
            break
    if failures:
        title = f"{type(strategy).__name__} fails {len(failures)} of {tried} checks{wait}"
        raise StrategyError("\n  ".join([title, *failures]))
    return list(CHECKS)


def _hint(error: Exception) -> str:
    if "read-only" in str(error):
        return " (something fedsim shares among clients is written in place: make a new array instead)"
    if "broadcast" in str(error):
        return " (arrays have a row per client: a value per client needs [:, None] beside (clients, parameters))"
    return ""


def check(function: Check) -> Check:
    """Add a check, named after its function."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def need(fact: Any, sentence: str) -> None:
    """Raise StrategyError unless something is so."""
    if not fact:
        raise StrategyError(sentence)


# What the checks work on.


def _dataset() -> Dataset:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(sum(SIZES) + 50, 6))
    y = (x @ rng.normal(size=(6, 3))).argmax(axis=1)
    return Dataset("checks", x[:-50], y[:-50], x[-50:], y[-50:], 3)


class _Ragged(CountedSplit):
    """Shards of SIZES, in the order of the examples."""

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        return Partition(np.arange(sum(SIZES)), np.concatenate([[0], np.cumsum(SIZES)]))


def _model(dtype: str = "float64") -> MLP:
    return MLP((6, 5, 3), "tanh", dtype=dtype)


def _task(strategy: ClientStrategy, dtype: str = "float64", kernel: str = "numpy", seed: int = 0) -> Task:
    data, model = _dataset(), _model(dtype)
    weights = model.init(np.random.default_rng(3))
    x = data.x_train.astype(dtype)
    for shared in (weights, x):
        shared.flags.writeable = False
    server_hooks = ServerHooks(strategy, model, len(data.y_train), seed)
    down = server_hooks.down(weights)
    for sent in down.values():
        sent.flags.writeable = False
    partition = _Ragged(len(SIZES)).partition(data.y_train)
    return Task(model, strategy, x, data.y_train, partition, weights, 1, seed, down, kernel)


ALL = np.arange(len(SIZES))


def _rounds(task: Task, clients: NDArray[np.intp] = ALL, rounds: int = 2) -> Update:
    """Run a few rounds of the client side alone, from the same global weights."""
    state = new_client_state(task, clients)
    for number in range(1, rounds + 1):
        update = run_local_round(replace(task, round=number), clients, state)
        state = dict(update.state)
    return update


def _experiment(strategy: ClientStrategy, **changes: Any) -> Any:
    from fedsim.study.experiment import Experiment

    settings: dict[str, Any] = {
        "dataset": _dataset(),
        "split": _Ragged(len(SIZES)),
        "hidden": (5,),
        "activation": "tanh",
        "dtype": "float64",
        "client": strategy,
        "rounds": 4,
        "fraction_train": 0.75,
        "fraction_evaluate": 1.0,
        "kernel": "numpy",
    }
    return Experiment(**settings | changes)


def _same(a: Any, b: Any) -> bool:
    weights = all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights)
    return weights and bool(a.clients.equals(b.clients))


def _equal_rows(a: Update, b: Update, rows: Any) -> str:
    """Name what differs between some rows of one update and another; empty if nothing does."""
    whole: dict[str, Array] = {"the weights": a.weights, "the loss": a.train_loss}
    part: dict[str, Array] = {"the weights": b.weights, "the loss": b.train_loss}
    for prefix, left, right in (("ctx.up", a.up, b.up), ("ctx.state", a.state, b.state)):
        whole |= {f"{prefix}[{name!r}]": values for name, values in left.items()}
        part |= {f"{prefix}[{name!r}]": values for name, values in right.items()}
    if set(whole) != set(part):
        return " and ".join(sorted(set(whole) ^ set(part)))
    return next((name for name in whole if not np.array_equal(whole[name][rows], part[name])), "")


# The checks.


@check
def is_a_frozen_dataclass(strategy: ClientStrategy) -> None:
    """Hyperparameters are declared, so that they show in labels and files."""
    need(is_dataclass(strategy), "declare hyperparameters as annotated class attributes, as in mu: float = 0.1")
    own = {name for cls in type(strategy).__mro__ for name in get_annotations(cls)}
    defaults = {f.name: f.default for f in fields(strategy)}
    loose = [
        name
        for name, value in vars(type(strategy)).items()
        if value is not defaults.get(name, value)  # an inherited hyperparameter, which keeps its base's default
        or (isinstance(value, int | float) and not name.startswith("_") and name not in own)
    ]
    need(
        not loose,
        f"{', '.join(loose)} has no annotation, so it cannot be set: write {(loose or ['x'])[0]}: float = ...",
    )


@check
def can_be_written_as_text(strategy: ClientStrategy) -> None:
    """Fit into a configuration file."""
    values = {f.name: getattr(strategy, f.name) for f in fields(strategy)}
    plain = (bool, int, float, str, type(None), tuple, list)
    odd = [name for name, value in values.items() if not isinstance(value, plain)]
    need(not odd, f"hyperparameter {', '.join(odd)} is not a number or text, so no configuration file can hold it")


@check
def keeps_the_checks_of_its_base(strategy: ClientStrategy) -> None:
    """Bad hyperparameters are refused."""
    if not isinstance(strategy, SGD):
        return
    try:
        replace(strategy, lr=-1.0)
    except ConfigError:
        return
    raise StrategyError("lr=-1 is accepted: call super().__post_init__() in your __post_init__()")


@check
def trains(strategy: ClientStrategy) -> None:
    """All clients, whatever their size, come back with finite numbers."""
    update = _rounds(_task(strategy))
    need(np.isfinite(update.train_loss).all(), "the loss, the weights or ctx.up of some client are not finite")
    for name, values in update.state.items():
        need(np.isfinite(values).all(), f"ctx.state[{name!r}] is not finite")


@check
def learns(strategy: ClientStrategy) -> None:
    """Clients' loss falls over rounds."""
    losses = _experiment(strategy, rounds=15, fraction_train=1.0).run().history["train_loss"].to_numpy()[1:]
    need(
        losses[-3:].min() < losses[0],
        f"the training loss does not fall in 15 rounds ({losses[0]:.3g}, {losses[-1]:.3g})",
    )


@check
def works_with_one_batch_per_shard(strategy: ClientStrategy) -> None:
    """Full batches."""
    if not isinstance(strategy, SGD):
        return
    update = _rounds(_task(replace(strategy, batch_size=None)))
    need(np.isfinite(update.train_loss).all(), "with batch_size=None the result is not finite")


@check
def works_with_batches_of_one(strategy: ClientStrategy) -> None:
    """Take batches of one."""
    if not isinstance(strategy, SGD):
        return
    update = _rounds(_task(replace(strategy, batch_size=1, lr=min(strategy.lr, 0.05))))
    need(np.isfinite(update.train_loss).all(), "with batch_size=1 the result is not finite")


@check
def works_on_one_client(strategy: ClientStrategy) -> None:
    """Be a cohort of one, with a single example."""
    update = _rounds(_task(strategy), ALL[-1:])
    need(np.isfinite(update.train_loss).all(), "a single client with one example does not come back finite")


@check
def stacked_equals_one_by_one(strategy: ClientStrategy) -> None:
    """Give a client the same bits, whoever shares its block."""
    task = _task(strategy)
    whole = _rounds(task)
    for rows in (slice(0, 1), slice(2, 5), slice(7, 8)):
        differs = _equal_rows(whole, _rounds(task, ALL[rows]), rows)
        need(
            not differs,
            f"{differs} of a client depends on which clients share its block: work row by row "
            "(axis=1, keepdims=True) and never combine rows",
        )


@check
def gives_the_same_bits_with_any_workers(strategy: ClientStrategy) -> None:
    """Threads and blocks do not matter."""
    experiment = _experiment(strategy)
    alone = experiment.run(workers=1)
    for workers, block in ((3, 1), (2, 3)):
        need(_same(alone, experiment.run(workers=workers, block_size=block)), "the result depends on workers or blocks")


@check
def gives_the_same_bits_again(strategy: ClientStrategy) -> None:
    """Nothing random but by seed, nothing kept in the object."""
    experiment = _experiment(strategy)
    need(
        _same(experiment.run(), experiment.run()),
        "two runs with one seed differ: keep nothing on self, and draw random numbers from fedsim.streams",
    )


@check
def depends_on_the_seed(strategy: ClientStrategy) -> None:
    """Another seed is another run."""
    first, second = _experiment(strategy).run(), _experiment(strategy, seed=1).run()
    need(not _same(first, second), "runs with different seeds are the same")


@check
def state_survives_resume(strategy: ClientStrategy) -> None:
    """Go on to the same bits after an interruption."""
    experiment = _experiment(strategy)

    from fedsim.study import saving

    before = saving.CHECKPOINT_SECONDS, saving.CHECKPOINT_SHARE
    saving.CHECKPOINT_SECONDS, saving.CHECKPOINT_SHARE = 0.0, 1e9  # a checkpoint after every round
    try:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(_StopError):
                experiment.run(directory=folder, callbacks=[_Stop()])
            with contextlib.redirect_stderr(io.StringIO()):  # which would say where it goes on
                resumed = experiment.run(directory=folder)
    finally:
        saving.CHECKPOINT_SECONDS, saving.CHECKPOINT_SHARE = before
    need(
        _same(experiment.run(), resumed),
        "a resumed run differs from an uninterrupted one: keep what lasts in ctx.state (clients) or ctx.state of "
        "server_step (server), not on self or in globals",
    )


class _StopError(Exception):
    pass


class _Stop(Callback):
    """Ends a run in round 3 as if it had been killed."""

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == 3:
            raise _StopError


@check
def leaves_shared_arrays_alone(strategy: ClientStrategy) -> None:
    """Global weights, examples and what the server sent are not changed."""
    task = _task(strategy)
    before = [a.copy() for a in (task.global_weights, task.x, task.y, *task.down.values())]
    _rounds(task)
    for old, new in zip(before, (task.global_weights, task.x, task.y, *task.down.values()), strict=True):
        need(np.array_equal(old, new), "global weights, examples or ctx.down are changed in place: make new arrays")


@check
def keeps_the_models_dtype(strategy: ClientStrategy) -> None:
    """Float32 stays float32, which is server_hooks the memory and the time."""
    update = _rounds(_task(strategy, "float32"))
    need(update.weights.dtype == np.float32, "weights of a float32 model come back as another type")
    for name, values in update.state.items():
        doubled = values.dtype == np.float64 and values.size >= len(SIZES) * _model().num_parameters
        need(not doubled, f"ctx.state[{name!r}] of a float32 model is float64: make it with dtype=ctx.model.dtype")


@check
def state_has_the_same_names_every_round(strategy: ClientStrategy) -> None:
    """Keep what client_state declares."""
    task = _task(strategy)
    first, last = new_client_state(task, ALL), _rounds(task).state
    odd = set(first) ^ set(last)
    need(not odd, f"{', '.join(sorted(odd))} is in ctx.state in some rounds only: return it from client_state()")
    for name, values in last.items():
        need(values.shape == first[name].shape, f"ctx.state[{name!r}] changes its shape")
        need(values.dtype == first[name].dtype, f"ctx.state[{name!r}] changes its type to {values.dtype}")


@check
def private_parameters_stay_private(strategy: ClientStrategy) -> None:
    """Private parameters are not sent."""
    task = _task(strategy)
    mask = private_mask(strategy, task.model)
    update = _rounds(task)
    need((update.weights[:, mask] == task.global_weights[mask]).all(), "private parameters are sent")
    need(not mask.any() or PRIVATE in update.state, "private parameters are not in the client state")


@check
def personalise_has_weights_for_every_client(strategy: ClientStrategy) -> None:
    """Local evaluation works, also for clients that have never trained, and changes nothing."""
    task = _task(strategy)
    for state in (new_client_state(task, ALL), dict(_rounds(task).state)):
        before = {name: values.copy() for name, values in state.items()}
        weights = personalise(task, ALL, state)
        need(np.isfinite(weights).all(), "personalise() returns weights that are not finite")
        for name, values in before.items():
            need(np.array_equal(values, state[name]), f"personalise() changes ctx.state[{name!r}] in place")


@check
def the_server_state_has_what_is_sent(strategy: ClientStrategy) -> None:
    """Every name in `broadcast` is in the server's state; server_step returns weights."""
    model = _model()
    weights = model.init(np.random.default_rng(3))
    server_hooks = ServerHooks(strategy, model, sum(SIZES), 0)
    state = strategy.server_state(weights, server_hooks)
    missing = [name for name in strategy.broadcast if name not in state]
    need(not missing, f"broadcast names {', '.join(missing)}, which server_state() does not return")
    result = _experiment(strategy, rounds=2).run()
    need(all(np.isfinite(v).all() for v in result.weights.values()), "the new global weights are not finite")


@check
def ordinary_messages_give_the_same_bits(strategy: ClientStrategy) -> None:
    """Send through Flower's messages what goes through blocks."""
    from flwr.app import ConfigRecord

    from fedsim.flower import records, strategies
    from fedsim.rounds.grid import make_grid
    from fedsim.servers import FedAvg

    data, model = _dataset(), _model()
    start = records.to_record(model, model.init(np.random.default_rng(0)))
    found = []
    for as_messages in (False, True):
        server = FedAvg(seed=3, server_hooks=ServerHooks(strategy, model, sum(SIZES), 3))
        server.streams = not as_messages
        with make_grid(model, _Ragged(len(SIZES)).federate(data), strategy) as grid, strategies.quiet():
            arrays: Any = start
            for number in (1, 2):
                messages = server.configure_train(number, arrays, ConfigRecord(), grid)
                replies: Any = grid.send_and_receive(list(messages) if as_messages else messages)
                arrays, _ = server.aggregate_train(number, list(replies) if as_messages else replies)
        found.append(records.to_flat(model, arrays))
    need(np.array_equal(found[0], found[1]), "a round through Flower's messages differs from one in blocks")


@check
def both_kernels_agree(strategy: ClientStrategy) -> None:
    """Run what `affine` says compiled, with the same result to rounding."""
    if numpy_hooks(strategy) or kernels.missing():
        return
    slow, fast = (_rounds(_task(strategy, kernel=kernel)) for kernel in ("numpy", "compiled"))
    largest = np.abs(slow.weights - _task(strategy).global_weights).max() + 1e-9
    need(
        np.abs(slow.weights - fast.weights).max() <= 1e-8 * largest,
        "the compiled kernel gives another result: affine() must not depend on anything that changes during a fit",
    )


@check
def neutral_hyperparameters_give_sgd(strategy: ClientStrategy) -> None:
    """Where `neutral` is declared."""
    if strategy.neutral is None or not isinstance(strategy, SGD):
        return
    given = {f.name: getattr(strategy, f.name) for f in fields(SGD)}
    plain = SGD(**given | {k: v for k, v in strategy.neutral.items() if k in given})
    neutral = replace(strategy, **strategy.neutral)
    settings = {"fraction_evaluate": 0.0}
    ours, sgd = (_experiment(client, **settings).run() for client in (neutral, plain))
    worst = max(np.abs(ours.weights[k] - sgd.weights[k]).max() for k in sgd.weights)
    need(worst <= 1e-10, f"with {dict(strategy.neutral)} the global model differs from SGD's, by {worst:.2g}")
