"""The checks of `fedsim.testing.check_client_strategy`, and the data, task and experiment that they run on."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass, fields, replace
from functools import cached_property
from inspect import get_annotations
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.clients import SGD, ClientStrategy
from fedsim.clients.local_round import new_client_state, personalise, run_local_round
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.sgd import numpy_hooks
from fedsim.clients.task import Task, Update
from fedsim.data import Dataset
from fedsim.errors import ConfigError, FedsimError
from fedsim.models import MLP
from fedsim.splits import CountedSplit, Partition
from fedsim.study import saving
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.study.experiment import Experiment
from fedsim.study.result import Result

Array = NDArray[Any]

#: Examples of each client: several batches of 10, exactly one or two, less than one, and a single example.
SIZES = (23, 20, 20, 13, 10, 7, 3, 1)
CLIENTS = np.arange(len(SIZES))
MODEL = MLP((6, 5, 3), "tanh", dtype="float64")


class StrategyError(FedsimError, AssertionError):
    """A client strategy fails a check; the message says which, and what to fix."""


def require(fact: Any, message: str) -> None:
    """Raise StrategyError unless a fact holds."""
    if not fact:
        raise StrategyError(message)


def _dataset() -> Dataset:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(sum(SIZES) + 50, 6))
    y = (x @ rng.normal(size=(6, 3))).argmax(axis=1)
    return Dataset("checks", x[:-50], y[:-50], x[-50:], y[-50:], 3)


class _FixedSizes(CountedSplit):
    """Shards of SIZES, in the order of the examples."""

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        return Partition(np.arange(sum(SIZES)), np.concatenate([[0], np.cumsum(SIZES)]))


SPLIT = _FixedSizes(len(SIZES))


def _task(strategy: ClientStrategy, dtype: str = "float64", kernel: str = "numpy") -> Task:
    data, model = _dataset(), replace(MODEL, dtype=dtype)
    weights = model.init(np.random.default_rng(3))
    x = data.x_train.astype(dtype)
    down = ServerHooks(strategy, model, len(data.y_train), seed=0).down(weights)
    for shared in (weights, x, *down.values()):
        shared.flags.writeable = False
    return Task(model, strategy, x, data.y_train, SPLIT.partition(data.y_train), weights, 1, 0, down, kernel)


def _train(task: Task, clients: NDArray[np.intp] = CLIENTS) -> Update:
    """Train clients in two rounds that start from the same global weights; return the second update."""
    first = run_local_round(task, clients, new_client_state(task, clients))
    return run_local_round(replace(task, round=2), clients, dict(first.state))


def _same(a: Result, b: Result) -> bool:
    weights = all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights)
    return weights and bool(a.clients.equals(b.clients))


def _difference(update: Update, rows: slice, part: Update) -> str:
    """Name what differs between rows of an update and another update; empty if nothing does."""
    expected, found = (
        {"the weights": u.weights, "the loss": u.train_loss}
        | {f"ctx.up[{name!r}]": values for name, values in u.up.items()}
        | {f"ctx.state[{name!r}]": values for name, values in u.state.items()}
        for u in (update, part)
    )
    if expected.keys() != found.keys():
        return " and ".join(sorted(expected.keys() ^ found.keys()))
    return next((name for name in found if not np.array_equal(expected[name][rows], found[name])), "")


class _KilledError(Exception):
    pass


class _KillInRound3(Callback):
    """Ends a run as if its process had been killed."""

    def round_finished(self, finished: FinishedRound) -> None:
        if finished.number == 3:
            raise _KilledError


@dataclass(frozen=True)
class StrategyChecks:
    """Checks of a client strategy, one per public method, in the order in which they run."""

    strategy: ClientStrategy

    @cached_property
    def _update(self) -> Update:
        return _train(_task(self.strategy))

    @cached_property
    def _experiment(self) -> Experiment:
        return Experiment(
            dataset=_dataset(),
            split=SPLIT,
            hidden=(5,),
            activation="tanh",
            dtype="float64",
            client=self.strategy,
            rounds=4,
            fraction_train=0.75,
            fraction_evaluate=1.0,
            kernel="numpy",
        )

    @cached_property
    def _result(self) -> Result:
        return self._experiment.run(workers=1)

    def hyperparameters_are_annotated(self) -> None:
        """Check that all are fields of the dataclass, which labels and files show."""
        cls = type(self.strategy)
        annotated = {name for base in cls.__mro__ for name in get_annotations(base)}
        defaults = {f.name: f.default for f in fields(self.strategy)}
        loose = [
            name
            for name, value in vars(cls).items()
            if value is not defaults.get(name, value)  # replaces the default of an inherited hyperparameter
            or (isinstance(value, int | float) and not name.startswith("_") and name not in annotated)
        ]
        example = (loose or [""])[0]
        require(not loose, f"{', '.join(loose)} has no annotation, so it cannot be set: write {example}: float = ...")

    def can_be_written_as_text(self) -> None:
        """Check that a configuration file can hold the hyperparameters."""
        plain = (bool, int, float, str, type(None), tuple, list)
        names = [f.name for f in fields(self.strategy) if not isinstance(getattr(self.strategy, f.name), plain)]
        require(not names, f"{', '.join(names)} is not a number or text, so no configuration file can hold it")

    def keeps_the_checks_of_its_base(self) -> None:
        """Check that a negative learning rate is refused, as by SGD."""
        if not isinstance(self.strategy, SGD):
            return
        try:
            replace(self.strategy, lr=-1.0)
        except ConfigError:
            return
        raise StrategyError("lr=-1 is accepted: call super().__post_init__() in your __post_init__()")

    def trains(self) -> None:
        """Check that clients of every size train to finite numbers, on which the next checks rely."""
        finite = np.isfinite(self._update.train_loss).all()
        require(finite, "the loss, the weights or ctx.up of some client are not finite")
        for name, values in self._update.state.items():
            require(np.isfinite(values).all(), f"ctx.state[{name!r}] is not finite")

    def learns(self) -> None:
        """Check that the training loss falls."""
        history = replace(self._experiment, rounds=15, fraction_train=1.0).run().history
        loss = history["train_loss"].to_numpy()[1:]
        falls = loss[-3:].min() < loss[0]
        require(falls, f"the training loss does not fall in 15 rounds ({loss[0]:.3g}, {loss[-1]:.3g})")

    def works_with_one_batch_per_shard(self) -> None:
        """Check full batches."""
        if isinstance(self.strategy, SGD):
            update = _train(_task(replace(self.strategy, batch_size=None)))
            require(np.isfinite(update.train_loss).all(), "with batch_size=None the result is not finite")

    def works_with_batches_of_one(self) -> None:
        """Check batches of one example, with small steps."""
        if isinstance(self.strategy, SGD):
            update = _train(_task(replace(self.strategy, batch_size=1, lr=min(self.strategy.lr, 0.05))))
            require(np.isfinite(update.train_loss).all(), "with batch_size=1 the result is not finite")

    def works_on_one_client(self) -> None:
        """Check a cohort of one client with one example."""
        update = _train(_task(self.strategy), CLIENTS[-1:])
        require(np.isfinite(update.train_loss).all(), "with a single client of one example the result is not finite")

    def stacked_equals_one_by_one(self) -> None:
        """Check that a client's bits do not depend on the other clients of its block."""
        for rows in (slice(0, 1), slice(2, 5), slice(7, 8)):
            differs = _difference(self._update, rows, _train(_task(self.strategy), CLIENTS[rows]))
            advice = "work row by row (axis=1, keepdims=True) and never combine rows"
            require(not differs, f"{differs} of a client depends on which clients share its block: {advice}")

    def gives_the_same_bits_with_any_workers(self) -> None:
        """Check that neither threads nor the size of blocks change a result."""
        for workers, block in ((3, 1), (2, 3)):
            result = self._experiment.run(workers=workers, block_size=block)
            require(_same(self._result, result), "the result depends on workers or blocks")

    def gives_the_same_bits_again(self) -> None:
        """Check that randomness comes from the seed only, and that runs do not share state."""
        same = _same(self._result, self._experiment.run())
        require(
            same, "two runs with one seed differ: keep nothing on self, and draw random numbers from fedsim.streams"
        )

    def depends_on_the_seed(self) -> None:
        """Check that another seed gives another result."""
        other = replace(self._experiment, seed=1).run()
        require(not _same(self._result, other), "runs with different seeds are the same")

    def state_survives_resume(self) -> None:
        """Check that an interrupted and resumed run has the bits of an uninterrupted one."""
        every_round = mock.patch.multiple(saving, CHECKPOINT_SECONDS=0.0, CHECKPOINT_SHARE=1e9)
        with every_round, tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(_KilledError):
                self._experiment.run(directory=folder, callbacks=[_KillInRound3()])
            with contextlib.redirect_stderr(io.StringIO()):  # a resumed run prints a notice
                resumed = self._experiment.run(directory=folder)
        advice = "keep what lasts in ctx.state (clients, or server_step on the server), not on self or in globals"
        require(_same(self._result, resumed), f"a resumed run differs from an uninterrupted one: {advice}")

    def leaves_shared_arrays_alone(self) -> None:
        """Check that shared arrays are not changed in place, not even if they are made writeable."""
        task = _task(self.strategy)
        shared = (task.global_weights, task.x, task.y, *task.down.values())
        before = [values.copy() for values in shared]
        _train(task)
        unchanged = all(map(np.array_equal, before, shared))
        require(unchanged, "global weights, examples or ctx.down are changed in place: make new arrays")

    def keeps_the_models_dtype(self) -> None:
        """Check that client state of a float32 model is not in float64, which takes twice the memory and time."""
        for name, values in _train(_task(self.strategy, "float32")).state.items():
            what = f"ctx.state[{name!r}] of a float32 model is float64"
            doubled = values.dtype == np.float64 and values.size >= len(SIZES) * MODEL.num_parameters
            require(not doubled, f"{what}: make it with dtype=ctx.model.dtype")

    def personalise_has_weights_for_every_client(self) -> None:
        """Check that clients can evaluate before and after training, without a change of their state."""
        task = _task(self.strategy)
        for state in (new_client_state(task, CLIENTS), dict(self._update.state)):
            before = {name: values.copy() for name, values in state.items()}
            personalise(task, CLIENTS, state)
            for name, values in before.items():
                require(np.array_equal(values, state[name]), f"personalise() changes ctx.state[{name!r}] in place")

    def server_hooks_keep_the_model_finite(self) -> None:
        """Check the weights at the end of a run."""
        finite = all(np.isfinite(values).all() for values in self._result.weights.values())
        require(finite, "the new global weights are not finite")

    def ordinary_messages_give_the_same_bits(self) -> None:
        """Check that a Flower message for each client gives the bits of a round in blocks."""
        from flwr.app import ConfigRecord

        from fedsim.flower import records, strategies
        from fedsim.rounds.grid import make_grid
        from fedsim.servers import FedAvg

        found = []
        for as_messages in (False, True):
            arrays: Any = records.to_record(MODEL, MODEL.init(np.random.default_rng(0)))
            server = FedAvg(seed=3, server_hooks=ServerHooks(self.strategy, MODEL, sum(SIZES), 3))
            server.streams = not as_messages
            with make_grid(MODEL, SPLIT.federate(_dataset()), self.strategy) as grid, strategies.quiet():
                for number in (1, 2):
                    messages = server.configure_train(number, arrays, ConfigRecord(), grid)
                    replies: Any = grid.send_and_receive(list(messages) if as_messages else messages)
                    arrays, _ = server.aggregate_train(number, list(replies) if as_messages else replies)
            found.append(records.to_flat(MODEL, arrays))
        require(np.array_equal(found[0], found[1]), "a round through Flower's messages differs from one in blocks")

    def both_kernels_agree(self) -> None:
        """Check that the compiled kernel, if it runs the strategy, agrees with the NumPy kernel to rounding."""
        if numpy_hooks(self.strategy) or kernels.missing():
            return
        task = _task(self.strategy, kernel="compiled")
        expected = self._update.weights
        largest = np.abs(expected - task.global_weights).max() + 1e-9
        agree = np.abs(expected - _train(task).weights).max() <= 1e-8 * largest
        require(
            agree, "the compiled kernel gives another result: affine() must not depend on what changes during a fit"
        )

    def neutral_hyperparameters_give_sgd(self) -> None:
        """Check that the hyperparameters in `neutral` make the strategy SGD."""
        neutral = self.strategy.neutral
        if neutral is None or not isinstance(self.strategy, SGD):
            return
        given = {f.name: getattr(self.strategy, f.name) for f in fields(SGD)}
        sgd = SGD(**given | {name: value for name, value in neutral.items() if name in given})
        base = replace(self._experiment, fraction_evaluate=0.0)
        ours, expected = (replace(base, client=c).run().weights for c in (replace(self.strategy, **neutral), sgd))
        worst = max(np.abs(ours[name] - expected[name]).max() for name in expected)
        require(worst <= 1e-10, f"with {dict(neutral)} the global model differs from SGD's, by {worst:.2g}")
