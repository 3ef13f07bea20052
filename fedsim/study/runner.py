"""Runs an experiment: Flower's loop over the rounds, and the evaluation after each."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, MetricRecord

from fedsim.checks import to_builtin
from fedsim.clients.measures import TEST_SET
from fedsim.clients.private import no_global_model
from fedsim.clients.task import mean_evaluation
from fedsim.engines.engine import Engine, make_engine
from fedsim.engines.runtime import ClientRuntime
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.flower import internals, records, strategies
from fedsim.models import named_arrays
from fedsim.rounds.grid import RoundGrid
from fedsim.rounds.statistics import RoundStatistics
from fedsim.servers import FedAvg
from fedsim.signals import handle_signals
from fedsim.splits.names import describe_client, insert_names
from fedsim.streams import Purpose, keys
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, EarlyStopping, FinishedRound, check_callbacks
from fedsim.study.card import model_card
from fedsim.study.checkpoint import check_fits, checkpoint_error
from fedsim.study.directory import RunDirectory
from fedsim.study.example_privacy import ExampleBudget
from fedsim.study.privacy import PrivacyBudget
from fedsim.study.result import Result
from fedsim.study.run_state import CLIENTS, FAILURES, RunState
from fedsim.study.saving import Checkpoints
from fedsim.text import describe, print_notice

if TYPE_CHECKING:
    from fedsim.data import Dataset
    from fedsim.study.experiment import Experiment

#: Exceptions that a state of wrong types or shapes causes.
STATE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def run(
    experiment: Experiment,
    workers: int | None,
    block_size: int | None,
    callbacks: Sequence[Callback],
    verbose: bool,
    directory: str | os.PathLike[str] | None,
    engine: str | Callable[..., Engine],
    dataset: Dataset | None = None,
    reuse: bool = False,
) -> Result:
    """Run an experiment.

    Parameters
    ----------
    experiment, workers, block_size, callbacks, verbose, directory, engine
        As for `Experiment.run`.
    dataset : Dataset, optional
        The experiment's dataset, if it has been loaded.
    reuse : bool
        As for `RunDirectory`.
    """
    check_callbacks(callbacks)
    for callback in callbacks:
        if callback.reads_updates and experiment.secure_aggregation:
            raise ConfigError(
                f"callbacks has a {type(callback).__name__}, which reads the update of each client, and with "
                "secure_aggregation the server has their sum only; allowed: one of the two"
            )
    early = [replace(experiment.early_stopping)] if experiment.early_stopping else []  # a run of its own
    own, callbacks = callbacks, [RejectedRounds(), *early, *callbacks]
    try:
        with ExitStack() as stack:
            folder = None
            if directory is not None:
                dataset = dataset or experiment.load_data()  # whose digest is part of the run's identity
                folder = stack.enter_context(RunDirectory(directory, experiment, dataset, reuse))
                if folder.complete:
                    result = Result.load(folder.path, experiment)
                    replay(result, own)
                    return result
            runtime = build_runtime(experiment, dataset)
            _check_early_stopping(callbacks, runtime)
            grid = RoundGrid(make_engine(engine, runtime, workers, block_size), experiment.on_failure)
            result = _Run(experiment, grid, callbacks, folder).run(verbose)
            if folder:
                folder.finish(result, model_card(result, runtime.federated, runtime.model))
        for callback in callbacks:
            callback.run_finished(result)
    except BaseException as error:
        for callback in callbacks:
            callback.run_failed(error)
        raise
    return result


def replay(result: Result, callbacks: Sequence[Callback]) -> None:
    """Show a finished run to callbacks, as a resumed run of which all rounds are done."""
    rows = result.history.to_dict("records")
    for callback in callbacks:
        callback.run_started(result.experiment, rows)
    for callback in callbacks:
        callback.run_finished(result)


class _EndOfRunError(Exception):
    """Ends Flower's loop after a round."""


@dataclass
class _Run:
    """One run of an experiment."""

    experiment: Experiment
    grid: RoundGrid
    callbacks: Sequence[Callback]
    folder: RunDirectory | None
    stop_reason: str = ""

    @property
    def _client_names(self) -> Sequence[str]:
        """The names of clients by partition id; empty if clients have numbers only."""
        return self.grid.runtime.federated.client_names

    @property
    def _reads_updates(self) -> bool:
        """Whether a callback reads the updates of a round."""
        return any(callback.reads_updates for callback in self.callbacks)

    def run(self, verbose: bool) -> Result:
        experiment = self.experiment
        with ExitStack() as stack:
            stack.enter_context(strategies.one_thread())
            stack.enter_context(strategies.quiet(verbose))
            stack.enter_context(strategies.seeded_sampling(int(keys(experiment.seed, Purpose.FLOWER)[0])))
            stack.enter_context(self.grid)
            state = self.state = RunState(experiment, self.grid)
            if state.centralised:
                stack.enter_context(state.centralised.engine)
            stack.enter_context(strategies.freeze_gc())  # once all is imported and compiled
            stack.enter_context(np.errstate(all="ignore"))  # values that are not finite are checked for
            if isinstance(state.strategy, FedAvg):
                state.strategy.check_clients(len(self.grid.get_node_ids()))
                state.strategy.streams = not self._reads_updates  # no other code reads its replies
            if self.folder:
                state.check_can_be_saved()
                self._restore(self.folder)
                checkpoints = Checkpoints(self.folder, state)
                stack.enter_context(handle_signals([signal.SIGINT], checkpoints.interrupt))
                self.callbacks = [*self.callbacks, checkpoints]
            budget = experiment.privacy.epsilon if experiment.privacy else None
            if state.privacy_loss and budget is not None:
                self.callbacks = [PrivacyBudget(state.privacy_loss, budget), *self.callbacks]
            if state.example_accountant and budget is not None:
                examples = ExampleBudget(state.example_accountant, self.grid.runtime, budget)
                self.callbacks = [examples, *self.callbacks]
            for callback in self.callbacks:
                callback.run_started(experiment, state.rows)
            self._round_started = time.perf_counter()
            done = max(len(state.rows) - 1, 0)
            if done < experiment.rounds and not self.stop_reason:
                self._run_rounds(done)
        return self._result()

    def _restore(self, folder: RunDirectory) -> None:
        """Load the directory's checkpoint, if there is one."""
        saved = folder.load()
        if saved is None:
            return
        initial = self.state.initial_arrays()
        try:
            self.state.load_state_dict(saved, initial)
            check_fits(isinstance(saved["stop_reason"], str), "stop_reason")
            self.stop_reason = saved["stop_reason"]
        except STATE_ERRORS as error:
            raise checkpoint_error(folder.checkpoint, f"does not fit this experiment: {error}") from error
        print_notice(f"resuming after round {len(self.state.rows) - 1} from {folder.checkpoint}")

    def _run_rounds(self, done: int) -> None:
        """Run the remaining rounds in Flower's loop."""
        state = self.state
        name = type(state.strategy).__name__
        try:
            strategies.ResumedStrategy(state.strategy, done).start(
                self.grid,
                state.arrays,
                num_rounds=self.experiment.rounds - done,
                evaluate_fn=lambda number, arrays: self._round_done(number + done, arrays),
            )
        except _EndOfRunError:
            pass
        except internals.AppExitException as error:
            raise FedsimError(f"Flower's {name} failed: {error}") from error
        except STATE_ERRORS as error:
            if _raised_by_flower(error):
                raise FedsimError(f"Flower's {name} failed: {describe(error)}") from error
            if isinstance(error, FedsimError) or not self.folder or not done or len(state.rows) > done + 1:
                raise
            # If the first round after resuming fails, the checkpoint is not what the strategies have saved.
            raise checkpoint_error(self.folder.checkpoint, f"does not fit this experiment: {error}") from error

    def _round_done(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate the global model, add the round's rows and call the callbacks; also called before round 1."""
        state = self.state
        if server_round < len(state.rows):
            return None  # the last round before an interruption
        state.arrays, state.weights = arrays, records.to_flat(state.model, arrays)
        loss, accuracy = self.grid.evaluate_test(state.weights)
        statistics = self.grid.take_statistics()
        state.record_steps(statistics)
        if not np.isfinite(loss):
            cause, advice = self._describe_largest(statistics), self.grid.checks.advice(server_round)
            raise DivergenceError(
                f"training diverged in round {server_round}: the global model's test loss is {loss} "
                f"with {self.experiment.client}{cause}; {advice}"
            )
        if server_round == 0:
            state.untrained_loss = loss
            self.grid.checks.limit_loss(loss)
        if not state.has_global_model:
            loss = accuracy = float("nan")
        divergence = state.centralised.divergence(server_round, state.weights) if state.centralised else float("nan")
        measured = self.grid.measure_test(state.weights) if state.has_global_model else {}
        now = time.perf_counter()
        values = (
            server_round,
            loss,
            accuracy,
            statistics.train_loss,
            *mean_evaluation(statistics.evaluations),
            state.attack_success(),
            *state.test_metrics(measured),
            statistics.clients,
            len(statistics.failed),
            *statistics.drift(),
            divergence,
            state.epsilon(server_round),
            statistics.secure_bytes,
            statistics.secure_seconds,
            statistics.bytes_up,
            statistics.bytes_down,
            now - self._round_started,
        )
        row = dict(zip(state.columns, to_builtin(values), strict=True))
        state.rows.append(row)
        state.record_measures(server_round, np.array([TEST_SET]), measured)
        self._record_clients(server_round, statistics)
        updates = statistics.updates if self._reads_updates else None
        finished = FinishedRound(
            server_round, row, statistics.failed, statistics.rejected, self._weights, _updates=updates
        )
        for callback in self.callbacks:
            callback.round_finished(finished)
        if finished.stop_reason:
            self.stop_reason = finished.stop_reason
            raise _EndOfRunError
        self._round_started = time.perf_counter()
        return MetricRecord({"test_loss": loss, f"test_{state.score}": accuracy})

    def _record_clients(self, server_round: int, statistics: RoundStatistics) -> None:
        """Add the rows of the clients that evaluated, and of those that failed."""
        state = self.state
        for part in statistics.evaluations:
            columns = (part.partition_ids, part.num_examples, part.loss, part.accuracy)
            numbers = np.full(len(part.partition_ids), server_round)
            state.client_rows.append(dict(zip((*CLIENTS, state.score), (numbers, *columns), strict=True)))
            state.record_measures(server_round, part.partition_ids, part.measured)
        for client, reason in sorted(statistics.failed.items()):
            state.failures.append(dict(zip(FAILURES, (server_round, client, reason), strict=True)))

    def _describe_largest(self, statistics: RoundStatistics) -> str:
        """Describe the largest update of a round."""
        if not statistics.clients or np.isnan(statistics.largest_update[1]):
            return ""
        client, length = statistics.largest_update
        return f"; the largest update was {describe_client(client, self._client_names)}'s, of length {length:.3g}"

    def _weights(self) -> dict[str, Any]:
        return {name: values.copy() for name, values in named_arrays(self.state.model, self.state.weights).items()}

    def _result(self) -> Result:
        state = self.state
        history = pd.DataFrame(state.rows, columns=list(state.columns))
        parts, columns = state.client_rows, (*CLIENTS, state.score)
        clients = pd.DataFrame({c: np.concatenate([part[c] for part in parts]) if parts else [] for c in columns})
        failures = pd.DataFrame(state.failures, columns=list(FAILURES))
        kernel = self.grid.runtime.kernel_name
        reason = self.stop_reason if len(state.rows) <= self.experiment.rounds else ""
        tables = clients, failures, state.frame_of("groups"), state.frame_of("metrics")
        clients, failures, groups, metrics = (insert_names(table, self._client_names) for table in tables)
        return Result(
            self.experiment, history, clients, self._weights(), kernel, state.score, failures, reason,
            state.describe_privacy(), groups, metrics,
        )  # fmt: skip


class RejectedRounds(Callback):
    """Prints a notice at the first rejected round, and the number of rejected rounds at the end."""

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Reset the counter."""
        self._name = f"{experiment.client} (seed {experiment.seed})"
        self._rounds, self._rejected = experiment.rounds, 0

    def round_finished(self, finished: FinishedRound) -> None:
        """Print a notice for the first rejected round, unless the split has removed all clients that were sampled."""
        updates, least = finished.rejected or (0, 0)
        if updates or (least and finished.failures):
            if not self._rejected:
                reasons = [f"; {reason}" for _, reason in sorted(finished.failures.items())]
                few = f"fewer than min_clients = {least}" if updates < least else "whose sum could not be recovered"
                print_notice(
                    f"round {finished.number} of {self._name} had {updates} updates, {few}: "
                    f"the model is unchanged{''.join(reasons[:1])}; Result.failures has all reasons"
                )
            self._rejected += 1

    def run_finished(self, result: Result) -> None:
        """Print how many rounds were rejected."""
        if self._rejected > 1:
            print_notice(f"{self._rejected} of {self._rounds} rounds of {self._name} were rejected and changed nothing")


def _check_early_stopping(callbacks: Sequence[Callback], runtime: ClientRuntime) -> None:
    """Raise ConfigError if early stopping needs the test score of a global model and there is none."""
    if not (reason := no_global_model(runtime.client, runtime.model)):
        return
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.metric.startswith("test_"):
            local = "local_accuracy" if runtime.variance is None else "local_r2"
            raise ConfigError(
                f"EarlyStopping's metric is {callback.metric!r}, and there is no global model to test, because "
                f"{reason}; allowed: {local}, local_loss, train_loss"
            )


def _raised_by_flower(error: BaseException) -> bool:
    """Return whether Flower's own code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith("flwr.")
