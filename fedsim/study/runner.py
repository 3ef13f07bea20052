"""One execution of an experiment: what Flower's server loop calls back, and how it survives an interruption."""

from __future__ import annotations

import inspect
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsim.clients import SGD
from fedsim.clients.server_hooks import ServerHooks
from fedsim.clients.task import mean_evaluation
from fedsim.engines.client_state import ClientState
from fedsim.engines.engine import Engine, choose
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.flower import internals, records, strategies
from fedsim.models import named_arrays
from fedsim.rounds.grid import RoundGrid
from fedsim.rounds.statistics import RoundStatistics
from fedsim.rounds.validity import ValidityChecks
from fedsim.servers import FedAvg
from fedsim.streams import Purpose, generator, keys
from fedsim.study import checkpoint
from fedsim.study.build import build_runtime
from fedsim.study.directory import RunDirectory, notice
from fedsim.study.experiment import Result, history_columns
from fedsim.text import describe

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment

#: Columns of `Result.clients`, in order, before the score.
CLIENTS = ("round", "partition_id", "num_examples", "loss")
#: Columns of `Result.failures`, in order.
FAILURES = ("round", "partition_id", "reason")
#: What code raises when it is given a state of other types or shapes than it left.
UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
#: A checkpoint is written after a round if so many seconds have passed since the last, and if writing takes at most
#: this share of the time.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 5.0, 0.1


def execute(
    experiment: Experiment,
    workers: int | None,
    block_size: int | None,
    on_round: Callable[[Mapping[str, float]], None],
    verbose: bool,
    directory: str | os.PathLike[str] | None,
    engine: str | Callable[..., Engine],
) -> Result:
    """Run an experiment, as `Experiment.run` says."""
    with ExitStack() as stack:
        folder = stack.enter_context(RunDirectory(directory, experiment)) if directory is not None else None
        run = _Run(experiment, workers, block_size, on_round, folder, choose(engine))
        result = run.execute(verbose)
        if folder:
            folder.finish(result)
    return result


class _Run:
    def __init__(
        self,
        experiment: Experiment,
        workers: int | None,
        block_size: int | None,
        on_round: Callable[[Mapping[str, float]], None],
        folder: RunDirectory | None,
        engine: Callable[..., Engine],
    ) -> None:
        self.experiment, self.on_round, self.folder = experiment, on_round, folder
        runtime = build_runtime(experiment)
        federated, client = runtime.federated, experiment.client
        self.model, self.kernel = runtime.model, runtime.kernel_name
        self.server_hooks = ServerHooks(
            client, self.model, lambda number: len(federated.at(number).indices), experiment.seed
        )
        self.grid = RoundGrid(engine(runtime, workers=workers, block_size=block_size), experiment.on_failure)
        self.weights = self.model.init(generator(experiment.seed, Purpose.INIT))
        self.score = "r2" if federated.dataset.regression else "accuracy"
        self.reference = _Centralised(runtime, self.weights) if experiment.weight_divergence else None
        self.rows: list[dict[str, float]] = []
        self.client_rows: list[dict[str, NDArray[Any]]] = []
        self.failures: list[dict[str, Any]] = []
        self.arrays = records.to_record(
            self.model, self.weights
        )  # a server strategy may keep more digits than the network
        self.strategy: Strategy
        self.started = self.saved = time.perf_counter()
        self.saving = 0.0
        self.rejected = 0
        self.stop = threading.Event()

    def execute(self, verbose: bool) -> Result:
        experiment = self.experiment
        sampling_seed = int(keys(experiment.seed, Purpose.FLOWER)[0])
        with ExitStack() as stack:
            stack.enter_context(strategies.quiet(verbose))
            stack.enter_context(strategies.seeded_sampling(sampling_seed))
            stack.enter_context(self.grid)
            if self.reference:
                stack.enter_context(self.reference.engine)
            stack.enter_context(strategies.cheap_collection())  # once all is imported and compiled
            stack.enter_context(self._interruptible())
            stack.enter_context(np.errstate(all="ignore"))  # what is not finite is found by its value
            self.strategy = experiment.strategy(self.server_hooks, len(self.grid.get_node_ids()))
            if isinstance(self.strategy, FedAvg):
                self.strategy.check_clients(len(self.grid.get_node_ids()))
                self.strategy.streams = True  # nobody else sees its replies
            done = self._restore() if self.folder else 0
            self.started = self.saved = time.perf_counter()
            if done < experiment.rounds:
                try:
                    strategies.ResumedStrategy(self.strategy, done).start(
                        self.grid,
                        self.arrays,
                        num_rounds=experiment.rounds - done,
                        evaluate_fn=lambda number, arrays: self._round_done(number + done, arrays),
                    )
                except internals.AppExitException as error:
                    raise FedsimError(f"Flower's {type(self.strategy).__name__} gave up: {error}") from error
                except UNFIT as error:
                    if _raised_by_flower(error):
                        name = type(self.strategy).__name__
                        raise FedsimError(f"Flower's {name} gave up: {describe(error)}") from error
                    if isinstance(error, FedsimError) or not self.folder or not done or len(self.rows) > done + 1:
                        raise
                    # The first round after a resumption fails: what was resumed is not what the strategies left.
                    raise checkpoint.unusable(
                        self.folder.checkpoint, f"does not fit this experiment: {error}"
                    ) from error
        if self.rejected > 1:
            notice(
                f"{self.rejected} of {experiment.rounds} rounds of {experiment.client} (seed {experiment.seed}) "
                "had too few updates and changed nothing"
            )
        history = pd.DataFrame(self.rows, columns=list(history_columns(self.score)))
        parts, columns = self.client_rows, (*CLIENTS, self.score)
        clients = pd.DataFrame({c: np.concatenate([part[c] for part in parts]) if parts else [] for c in columns})
        weights = {k: v.copy() for k, v in named_arrays(self.model, self.weights).items()}
        failures = pd.DataFrame(self.failures, columns=list(FAILURES))
        return Result(experiment, history, clients, weights, self.kernel, self.score, failures)

    def _round_done(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate the global model and write the round's row; Flower calls it before round 1 and after each."""
        if server_round < len(self.rows):
            return None  # the last round before an interruption
        self.arrays, self.weights = arrays, records.to_flat(self.model, arrays)
        loss, accuracy = self.grid.evaluate_test(self.weights)
        statistics, evaluations = self.grid.take_statistics()
        if not np.isfinite(loss):
            raise DivergenceError(
                f"training diverged in round {server_round}: the global model's test loss is {loss} "
                f"with {self.experiment.client}{_largest(statistics)}; a smaller lr usually helps"
            )
        if server_round == 0:
            self.grid.checks.limit_loss(loss)
        if statistics.rejected is not None:
            self._say_rejected(server_round, *statistics.rejected)
        now = time.perf_counter()
        values = (
            server_round,
            loss,
            accuracy,
            statistics.train_loss,
            *mean_evaluation(evaluations),
            statistics.clients,
            len(statistics.failed),
            *statistics.drift(),
            self.reference.divergence(server_round, self.weights) if self.reference else float("nan"),
            statistics.bytes_up,
            statistics.bytes_down,
            now - self.started,
        )
        self.started = now
        plain = (value.item() if isinstance(value, np.generic) else value for value in values)
        row = dict(zip(history_columns(self.score), plain, strict=True))
        self.rows.append(row)
        for part in evaluations:
            columns = (part.partition_ids, part.num_examples, part.loss, part.accuracy)
            numbers = np.full(len(part.partition_ids), server_round)
            self.client_rows.append(dict(zip((*CLIENTS, self.score), (numbers, *columns), strict=True)))
        for client, reason in sorted(statistics.failed.items()):
            self.failures.append(dict(zip(FAILURES, (server_round, client, reason), strict=True)))
        self.on_round(row)
        if self.folder:
            self.folder.check()
            self._checkpoint(self.folder)
        return MetricRecord({"test_loss": loss, f"test_{self.score}": accuracy})

    def _say_rejected(self, server_round: int, updates: int, least: int) -> None:
        """Say, the first time, that a round has changed nothing."""
        experiment = self.experiment
        if not self.rejected:
            notice(
                f"round {server_round} of {experiment.client} (seed {experiment.seed}) had {updates} updates, "
                f"fewer than min_clients = {least}: the model stays as it was; failures.csv or Result.failures says why"
            )
        self.rejected += 1

    # Interruption.

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """With a directory to resume from, let the first Ctrl-C end the run after the current round."""
        if not self.folder or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, before)
            self.stop.set()
            notice("stopping after this round; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _checkpoint(self, folder: RunDirectory) -> None:
        """Write a checkpoint if it is time; end the run if Ctrl-C was pressed."""
        now = time.perf_counter()
        due = max(CHECKPOINT_SECONDS, self.saving / CHECKPOINT_SHARE)
        if self.stop.is_set() or now - self.saved >= due:
            folder.save(
                {
                    "arrays": self.arrays,
                    "history": self.rows,
                    "clients": self.client_rows,
                    "failures": self.failures,
                    "client_state": self.grid.engine.client_state.state_dict(),
                    "server_hooks": self.server_hooks.state,
                    "centralised": self.reference.weights if self.reference else None,
                    "server": _state_of(self.strategy),
                    "sampling": random.getstate(),
                }
            )
            self.saved = time.perf_counter()
            self.saving = self.saved - now
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.started = time.perf_counter()

    def _restore(self) -> int:
        """Take up the directory's checkpoint, if there is one; return how many rounds are done."""
        assert self.folder
        for name, value in _state_of(self.strategy).items():  # what no checkpoint can hold is said before any work
            checkpoint.pack(value, {}, f"server {type(self.strategy).__name__}'s {name}")
        saved = self.folder.load()
        if saved is None:
            return 0
        try:
            self._take_up(saved)
        except FedsimError as error:
            if isinstance(error, ConfigError):
                raise checkpoint.unusable(self.folder.checkpoint, f"does not fit this experiment: {error}") from None
            raise
        except UNFIT as error:
            raise checkpoint.unusable(self.folder.checkpoint, f"does not fit this experiment: {error}") from error
        notice(f"going on after round {len(self.rows) - 1}, which {self.folder.checkpoint} holds")
        for row in self.rows:
            self.on_round(row)
        return len(self.rows) - 1

    def _take_up(self, saved: Mapping[str, Any]) -> None:
        """Take up what `_checkpoint` wrote; anything else raises."""
        _need(type(saved["arrays"]) is ArrayRecord, "arrays")
        self.arrays = saved["arrays"]
        self.weights = records.to_flat(self.model, self.arrays)
        self.rows = _rows(saved["history"], history_columns(self.score), float)
        _need(0 < len(self.rows) <= self.experiment.rounds + 1, "history")
        _need([row["round"] for row in self.rows] == list(range(len(self.rows))), "history")
        columns = (*CLIENTS, self.score)
        self.client_rows = _rows(saved["clients"], columns, np.ndarray)
        for part in self.client_rows:
            _need({values.shape for values in part.values()} == {(len(part["round"]),)}, "clients")
        self.failures = _rows(saved["failures"], FAILURES, (int, str))
        _need(all(type(row["reason"]) is str for row in self.failures), "failures")
        self._take_up_clients(saved["client_state"])
        state = saved["server_hooks"]
        _need(
            state is None or (isinstance(state, dict) and all(isinstance(v, np.ndarray) for v in state.values())),
            "server_hooks",
        )
        if state is not None:
            fresh = self.server_hooks.strategy.server_state(self.weights, self.server_hooks)
            for name in self.server_hooks.strategy.broadcast:
                same = state[name].shape == np.shape(fresh[name]) and state[name].dtype == fresh[name].dtype
                _need(same, "server_hooks")
        self.server_hooks.state = state
        if self.reference:
            central = saved["centralised"]
            _need(isinstance(central, np.ndarray) and central.shape == self.weights.shape, "centralised")
            _need(central.dtype == self.weights.dtype, "centralised")
            self.reference.weights = central
        _load_state(self.strategy, saved["server"])
        random.setstate(saved["sampling"])
        self.grid.checks.limit_loss(self.rows[0]["test_loss"])

    def _take_up_clients(self, state: Any) -> None:
        """Take up client state, after comparing it with what a client begins with."""
        if state is not None:
            _need(isinstance(state, dict) and all(isinstance(v, np.ndarray) for v in state.values()), "client_state")
            runtime, held = self.grid.runtime, state["clients"]
            _need(held.ndim == 1 and held.dtype.kind == "i" and bool((np.diff(held) > 0).all()), "client_state")
            _need(all(len(rows) == len(held) for rows in state.values()), "client_state")
            if len(held):
                _need(held[0] >= 0 and held[-1] < len(runtime.partition), "client_state")
                new = runtime.load_state(runtime.task(self.weights, 1), ClientState(len(runtime.partition)), held[:1])
                shapes = {f"state {name}": rows.shape[1:] for name, rows in new.items()}
                found = {name: rows.shape[1:] for name, rows in state.items() if name != "clients"}
                _need(found == shapes, "client_state")
        self.grid.engine.client_state.load_state_dict(state)


def _need(fits: bool, name: str) -> None:
    """Raise ConfigError unless a part of a checkpoint fits."""
    if not fits:
        raise ConfigError(f"its {name} has other types or shapes")


def _rows(value: Any, columns: Sequence[str], kind: type | tuple[type, ...]) -> list[dict[str, Any]]:
    """Return a list of rows, or raise if they have other columns or values of another kind."""
    _need(isinstance(value, list) and all(isinstance(row, dict) for row in value), "rows")
    allowed = (int, float) if kind is float else kind
    for row in value:
        _need(tuple(row) == tuple(columns), "rows")
        _need(all(isinstance(v, allowed) and not isinstance(v, bool) for v in row.values()), "rows")
    return value  # type: ignore[no-any-return]


def _raised_by_flower(error: BaseException) -> bool:
    """Whether the code that raised an error is Flower's own."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith("flwr.")


def _largest(statistics: RoundStatistics) -> str:
    """Name the client whose update was the largest of a round."""
    if not statistics.clients:
        return ""
    client, length = statistics.largest_update
    return f"; the largest update was client {client}'s, of length {length:.3g}"


class _Centralised:
    """Training on all examples in one place, round by round, to measure the global weights against."""

    def __init__(self, clients: ClientRuntime, weights: NDArray[Any]) -> None:
        pooled, client = clients.federated.pooled(), SGD.of(clients.client)
        self._runtime = ClientRuntime(clients.model, pooled, client, clients.seed, clients.kernel_name)
        self.engine = ThreadEngine(self._runtime, workers=1)
        self.weights = weights

    def divergence(self, server_round: int, weights: NDArray[Any]) -> float:
        """Train for the round, and return ``|w - w_central| / |w_central|``."""
        if server_round:
            task = self._runtime.task(self.weights, server_round)
            [update] = self.engine.train(task, np.zeros(1, dtype=np.intp))
            update = ValidityChecks(self._runtime.model.dtype).keep_valid(task, update, {})
            self.weights = update.weights[0]
        away = np.subtract(weights, self.weights, dtype=np.float64)
        return float(np.linalg.norm(away) / np.linalg.norm(self.weights.astype(np.float64)))


def _state_of(strategy: Strategy) -> dict[str, Any]:
    """Return what a server strategy keeps between rounds, for a checkpoint.

    Of fedsim's own classes that is ``state``. Of any other class, subclasses of fedsim's among them, it is all
    attributes but functions and fedsim's internal ones, and the same of strategies that it wraps.
    """
    internal: set[str] = set()
    if isinstance(strategy, FedAvg):
        if type(strategy).__module__.startswith("fedsim."):
            return {"state": strategy.state}
        internal = {name for name in vars(FedAvg()) if name.startswith("_")}
    state: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if name in internal or type(value).__module__.startswith("fedsim."):
            continue
        if isinstance(value, Strategy):
            state[name] = _state_of(value)
        elif not _is_function(value):
            state[name] = value
    return state


def _is_function(value: Any) -> bool:
    """Whether a value is code: a function, a method, a class, a partial or compiled one; not an object with a state."""
    return inspect.isroutine(value) or isinstance(value, type | partial | np.ufunc) or hasattr(value, "__wrapped__")


def _load_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a fresh strategy what `_state_of` returned; raise ConfigError where that cannot be what it was."""
    fresh = _state_of(strategy)
    for name, value in state.items():
        inner = getattr(strategy, name, None)
        if isinstance(inner, Strategy):
            _load_state(inner, value)
            continue
        _need(not hasattr(type(strategy), name) or name in fresh, "server")
        known = fresh.get(name)
        _need(known is None or value is None or _sort(known) == _sort(value), "server")
        setattr(strategy, name, value)


def _sort(value: Any) -> str:
    """Return what kind of value this is, for comparison: a number may become another type of number."""
    return "number" if isinstance(value, bool | int | float | np.number) else type(value).__name__
