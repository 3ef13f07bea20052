"""One execution of an experiment: what Flower's server loop calls back, and how it survives an interruption."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsim import checkpoint, engines, mlp
from fedsim.clients import SGD
from fedsim.clients.base import ServerHalf
from fedsim.engines import flower
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.site import mean_evaluation
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.experiment import Result, history_columns
from fedsim.rundir import RunDirectory, notice
from fedsim.servers import FedAvg
from fedsim.splits import FederatedDataset
from fedsim.streams import Purpose, generator, keys

if TYPE_CHECKING:
    from fedsim.experiment import Experiment

#: Columns of `Result.clients`, in order, before the score.
CLIENTS = ("round", "partition_id", "num_examples", "loss")
#: Columns of `Result.failures`, in order.
FAILURES = ("round", "partition_id", "reason")
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
    engine: str | Callable[..., InProcessGrid],
) -> Result:
    """Run an experiment, as `Experiment.run` says."""
    with ExitStack() as stack:
        folder = stack.enter_context(RunDirectory(directory, experiment)) if directory is not None else None
        run = _Run(experiment, workers, block_size, on_round, folder, engines.choose(engine))
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
        engine: Callable[..., InProcessGrid],
    ) -> None:
        self.experiment, self.on_round, self.folder = experiment, on_round, folder
        dataset = experiment.load_data()
        federated = experiment.federate(dataset)
        self.net = experiment.network(dataset)
        client = experiment.client
        self.kernel = experiment.kernel_for(self.net, federated)
        self.half = ServerHalf(client, self.net, len(federated.partition.indices), experiment.seed)
        self.grid = engine(
            self.net,
            federated,
            client,
            experiment.seed,
            kernel=self.kernel,
            workers=workers,
            block_size=block_size,
            on_failure=experiment.on_failure,
            compress=experiment.compress,
        )
        self.weights = mlp.initialise(self.net, generator(experiment.seed, Purpose.INIT))
        self.score = "r2" if dataset.regression else "accuracy"
        self.reference = _Centralised(self, federated) if experiment.weight_divergence else None
        self.rows: list[dict[str, float]] = []
        self.client_rows: list[dict[str, NDArray[Any]]] = []
        self.failures: list[dict[str, Any]] = []
        self.arrays = flower.to_record(
            self.net, self.weights
        )  # a server strategy may keep more digits than the network
        self.strategy: Strategy
        self.started = self.saved = time.perf_counter()
        self.saving = 0.0
        self.stop = threading.Event()

    def execute(self, verbose: bool) -> Result:
        experiment = self.experiment
        sampling_seed = int(keys(experiment.seed, Purpose.FLOWER)[0])
        with ExitStack() as stack:
            stack.enter_context(flower.quiet(verbose))
            stack.enter_context(flower.seeded_sampling(sampling_seed))
            stack.enter_context(self.grid)
            if self.reference:
                stack.enter_context(self.reference.grid)
            stack.enter_context(flower.cheap_collection())  # once all is imported and compiled
            stack.enter_context(self._interruptible())
            stack.enter_context(np.errstate(all="ignore"))  # what is not finite is found by its value
            self.strategy = experiment.strategy(self.half)
            self._check_minimum()
            done = self._restore() if self.folder else 0
            self.started = self.saved = time.perf_counter()
            if done < experiment.rounds:
                try:
                    flower.Later(self.strategy, done).start(
                        self.grid,
                        self.arrays,
                        num_rounds=experiment.rounds - done,
                        evaluate_fn=lambda number, arrays: self._round_done(number + done, arrays),
                    )
                except flower.AppExitException as error:
                    raise FedsimError(f"Flower's {type(self.strategy).__name__} gave up: {error}") from error
        history = pd.DataFrame(self.rows, columns=list(history_columns(self.score)))
        parts, columns = self.client_rows, (*CLIENTS, self.score)
        clients = pd.DataFrame({c: np.concatenate([part[c] for part in parts]) if parts else [] for c in columns})
        weights = {k: v.copy() for k, v in mlp.views(self.net, self.weights).items()}
        failures = pd.DataFrame(self.failures, columns=list(FAILURES))
        return Result(experiment, history, clients, weights, self.kernel, self.score, failures)

    def _round_done(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate the global model and write the round's row; Flower calls it before round 1 and after each."""
        if server_round < len(self.rows):
            return None  # the last round before an interruption
        self.arrays, self.weights = arrays, flower.to_flat(self.net, arrays)
        loss, accuracy = self.grid.evaluate_test(self.weights)
        if not np.isfinite(loss):
            raise DivergenceError(
                f"training diverged in round {server_round}: the global model's test loss is {loss} "
                f"with {self.experiment.client}; a smaller lr usually helps"
            )
        if server_round == 0:
            self.grid.limit_loss(loss)
        traffic, evaluations = self.grid.take_round()
        now = time.perf_counter()
        values = (
            server_round,
            loss,
            accuracy,
            traffic.train_loss,
            *mean_evaluation(evaluations),
            traffic.clients,
            len(traffic.failed),
            *traffic.movements.drift(),
            self.reference.divergence(server_round, self.weights) if self.reference else float("nan"),
            traffic.bytes_up,
            traffic.bytes_down,
            now - self.started,
        )
        self.started = now
        row = dict(zip(history_columns(self.score), values, strict=True))
        self.rows.append(row)
        for part in evaluations:
            columns = (part.partition_ids, part.num_examples, part.loss, part.accuracy)
            numbers = np.full(len(part.partition_ids), server_round)
            self.client_rows.append(dict(zip((*CLIENTS, self.score), (numbers, *columns), strict=True)))
        for client, reason in sorted(traffic.failed.items()):
            self.failures.append(dict(zip(FAILURES, (server_round, client, reason), strict=True)))
        self.on_round(row)
        if self.folder:
            self._checkpoint(self.folder)
        return MetricRecord({"test_loss": loss, f"test_{self.score}": accuracy})

    def _check_minimum(self) -> None:
        """Raise ConfigError if a strategy of Flower's would wait for more clients than there are, for ever."""
        if isinstance(self.strategy, FedAvg):  # samples those there are
            return
        clients = len(self.grid.get_node_ids())
        for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            least = getattr(self.strategy, name, 0)
            if least > clients:
                strategy = type(self.strategy).__name__
                raise ConfigError(f"{strategy}'s {name} is {least}; allowed: at most {clients}, the number of clients")

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
                    "client_state": self.grid.kept(),
                    "half": self.half.state,
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
        _state_of(self.strategy)  # what no checkpoint can hold is said before any work
        saved = self.folder.load()
        if saved is None:
            return 0
        self.arrays = saved["arrays"]
        self.weights = flower.to_flat(self.net, self.arrays)
        self.rows, self.client_rows, self.failures = saved["history"], saved["clients"], saved["failures"]
        self.grid.resume(saved["client_state"])
        self.half.state = saved["half"]
        if self.reference:
            self.reference.weights = saved["centralised"]
        _give_back(self.strategy, saved["server"])
        random.setstate(saved["sampling"])
        self.grid.limit_loss(self.rows[0]["test_loss"])
        for row in self.rows:
            self.on_round(row)
        return len(self.rows) - 1


class _Centralised:
    """Training on all examples in one place, round by round, to measure the global weights against."""

    def __init__(self, run: _Run, federated: FederatedDataset) -> None:
        experiment = run.experiment
        client = SGD.of(experiment.client)
        self.grid = InProcessGrid(run.net, federated.pooled(), client, experiment.seed, kernel=run.kernel, workers=1)
        self.weights = run.weights

    def divergence(self, server_round: int, weights: NDArray[Any]) -> float:
        """Train for the round, and return ``|w - w_central| / |w_central|``."""
        if server_round:
            [update] = self.grid.train(self.grid.site.task(self.weights, server_round), np.zeros(1, dtype=np.intp))
            self.weights = update.weights[0]
        away = np.subtract(weights, self.weights, dtype=np.float64)
        return float(np.linalg.norm(away) / np.linalg.norm(self.weights.astype(np.float64)))


def _state_of(strategy: Strategy) -> dict[str, Any]:
    """Return what a server strategy keeps between rounds, as values that a checkpoint can hold.

    Of fedsim's own that is ``state``; of any other all attributes that are not functions, and those of strategies that
    it wraps. ConfigError names what cannot be held.
    """
    if isinstance(strategy, FedAvg):
        return {"state": strategy.state}
    state: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            state[name] = _state_of(value)
        elif not callable(value):
            checkpoint.pack(value, {}, f"server {type(strategy).__name__}'s {name}")
            state[name] = value
    return state


def _give_back(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a fresh strategy what `_state_of` returned."""
    for name, value in state.items():
        inner = getattr(strategy, name, None)
        if isinstance(inner, Strategy):
            _give_back(inner, value)
        else:
            setattr(strategy, name, value)
