"""One experiment: a configuration and a seed, run through a Flower server, giving a Result."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data, kernels, mlp
from fedsim.clients import SGD
from fedsim.clients.base import ServerHalf, has_server_half, numpy_hooks
from fedsim.errors import ConfigError, DivergenceError, FedsimError, one_of, real, whole
from fedsim.splits import IID, Partition, Split
from fedsim.streams import Purpose, generator, keys

if TYPE_CHECKING:
    import pandas as pd
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.serverapp.strategy import Strategy

    from fedsim.engines.in_process import Evaluation

#: Columns of `Result.history`, in order.
HISTORY = (
    "round",
    "test_loss",
    "test_accuracy",
    "train_loss",
    "local_loss",
    "local_accuracy",
    "clients",
    "failures",
    "bytes_up",
    "bytes_down",
    "seconds",
)


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment found.

    Attributes
    ----------
    experiment : Experiment
    history : DataFrame
        One row per round, round 0 being the untrained model: ``round, test_loss, test_accuracy, train_loss`` (mean
        over the cohort's examples as they were trained on), ``local_loss, local_accuracy`` (mean over the examples
        of the clients that evaluated; NaN if none did), ``clients`` (aggregated), ``failures`` (left out),
        ``bytes_up, bytes_down`` (serialised arrays, all clients together), ``seconds`` (wall clock of the round).
    clients : DataFrame
        One row per client and evaluated round: ``round, partition_id, num_examples, loss, accuracy`` of the weights
        that the client would use, on its own examples; empty unless ``fraction_evaluate`` is positive.
    weights : dict of ndarray
        Final global model: ``W1, b1, W2, b2, ...``.
    kernel : {"numpy", "compiled"}
        What trained the clients.
    """

    experiment: Experiment
    history: pd.DataFrame
    clients: pd.DataFrame
    weights: dict[str, NDArray[Any]]
    kernel: str

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last round."""
        return float(self.history["test_accuracy"].iloc[-1])

    def rounds_to(self, target: float) -> float:
        """Return after how many rounds test accuracy passes `target`, or NaN if it never does.

        As the FedAvg paper counts: each round's accuracy is the best so far, interpolated linearly between rounds.
        """
        best = np.maximum.accumulate(self.history["test_accuracy"].to_numpy(dtype=float))
        above = np.flatnonzero(best >= target)
        if not len(above):
            return float("nan")
        k = int(above[0])
        if k == 0:
            return 0.0
        return float(k - 1 + (target - best[k - 1]) / (best[k] - best[k - 1]))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One federated-learning run, fully described.

    Parameters
    ----------
    dataset : str or Dataset
        A name that `fedsim.data.load` knows, or your own arrays.
    data_dir : path, optional
        Where data files are kept; default ``$FEDSIM_DATA``, else downloads into the user's cache.
    split : Split
        How training examples are divided among clients.
    hidden : tuple of int
        Width of each hidden layer; () is a linear model.
    activation : {"relu", "tanh", "sigmoid"}
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
    dtype : {"float32", "float64"}
    client : SGD
        The client strategy.
    server : callable
        A Flower ``Strategy`` class, or ``functools.partial`` of one with its own options. It is called with
        ``fraction_train``, ``fraction_evaluate``, minimum node counts of 1 and, if it takes one, ``seed``. Default:
        fedsim's FedAvg.
    fraction_train : float
        Share of clients trained in each round (the FedAvg paper's C), greater than 0 and at most 1; at least one.
    fraction_evaluate : float
        Share of clients that evaluate after each round on their own examples, 0 to 1: the new global model, or what
        a personalised strategy makes of it.
    test_fraction : float
        Share of each client's examples that are kept from training for its own evaluation, at least 0 and less than
        1; a client keeps at least one for training. With 0 it evaluates on its training examples.
    rounds : int
        At least 1.
    seed : int
        Of weights, split, sampling and shuffling.
    on_failure : {"raise", "exclude"}
        What a client whose training diverges does: ends the run with DivergenceError, or is left out of the round
        and counted in ``history.failures``.
    kernel : {"auto", "numpy", "compiled"}
        What trains the clients; the two agree to rounding. auto is compiled where the configuration makes a large
        job; see `fedsim.kernels.choose`.

    Raises
    ------
    ConfigError
        For any value outside these.
    """

    dataset: str | data.Dataset = "digits"
    data_dir: str | os.PathLike[str] | None = None
    split: Split = field(default_factory=lambda: IID(50))
    hidden: tuple[int, ...] = (32,)
    activation: str = "relu"
    loss: str = "cross_entropy"
    dtype: str = "float32"
    client: SGD = field(default_factory=SGD)
    server: Callable[..., Strategy] | None = None
    fraction_train: float = 1.0
    fraction_evaluate: float = 0.0
    test_fraction: float = 0.0
    rounds: int = 20
    seed: int = 0
    on_failure: str = "raise"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str):
            one_of("dataset", self.dataset, data.DATASETS)
        elif not isinstance(self.dataset, data.Dataset):
            raise ConfigError(f"dataset is {self.dataset!r}; allowed: a name or a fedsim.data.Dataset")
        for name, kind in (("split", Split), ("client", SGD)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: a fedsim {kind.__name__} object")
        if not isinstance(self.hidden, tuple | list):
            raise ConfigError(f"hidden is {self.hidden!r}; allowed: a list of layer widths")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for width in self.hidden:
            whole("hidden", width, 1)
        mlp.MLP((1, *self.hidden, 1), self.activation, self.loss, self.dtype)
        if self.server is not None and not callable(self.server):
            raise ConfigError(f"server is {self.server!r}; allowed: a Flower Strategy class or a partial of one")
        real("fraction_train", self.fraction_train, 0, 1, open_low=True)
        real("fraction_evaluate", self.fraction_evaluate, 0, 1)
        real("test_fraction", self.test_fraction, 0, 1, open_high=True)
        whole("rounds", self.rounds, 1)
        whole("seed", self.seed, 0)
        one_of("on_failure", self.on_failure, ("raise", "exclude"))
        one_of("kernel", self.kernel, kernels.KERNELS)

    def run(
        self,
        *,
        workers: int | None = None,
        block_size: int | None = None,
        on_round: Callable[[Mapping[str, float]], None] | None = None,
        verbose: bool = False,
    ) -> Result:
        """Run it; the same experiment gives the same bits, whatever the arguments here.

        Parameters
        ----------
        workers : int, optional
            Threads; default one per available core with the compiled kernel, one with the NumPy kernel.
        block_size : int, optional
            Clients trained together; default by the size of the model.
        on_round : callable, optional
            Called with each row of the history as it is known.
        verbose : bool
            Show Flower's log.

        Raises
        ------
        DivergenceError
            A client's training (unless excluded) or the global model left the finite numbers or blew up.
        DataError
            The dataset cannot be found or is not fit to train on.
        """
        return _Run(self, workers, block_size, on_round or (lambda row: None)).execute(verbose)

    def load_data(self) -> data.Dataset:
        """Return the dataset."""
        return data.load(self.dataset, self.data_dir) if isinstance(self.dataset, str) else self.dataset

    def partitions(self, dataset: data.Dataset) -> tuple[Partition, Partition | None]:
        """Return which examples clients train on, and which they evaluate on if not on those."""
        partition = self.split.partition(dataset.y_train, self.seed)
        if not self.test_fraction:
            return partition, None
        return partition.divide(self.test_fraction, self.seed)

    def network(self, dataset: data.Dataset) -> mlp.MLP:
        """Return the network for a dataset; binary cross-entropy on two classes has one output."""
        single = self.loss == "binary_cross_entropy" and dataset.num_classes == 2
        outputs = 1 if single else dataset.num_classes
        return mlp.MLP((dataset.x_train.shape[1], *self.hidden, outputs), self.activation, self.loss, self.dtype)

    def strategy(self, half: ServerHalf | None = None) -> Strategy:
        """Return a fresh server strategy, which carries the client strategy's server half if it can.

        Raises
        ------
        ConfigError
            It cannot be made, or cannot carry a server half that the client strategy needs.
        """
        from fedsim.servers import FedAvg

        make: Callable[..., Strategy] = self.server or FedAvg
        cls = make.func if isinstance(make, partial) else make
        name = getattr(cls, "__name__", repr(cls))
        settings: dict[str, Any] = {
            "fraction_train": self.fraction_train,
            "fraction_evaluate": self.fraction_evaluate,
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1,
            "min_available_nodes": 1,
            "seed": self.seed,
        }
        if isinstance(cls, type) and issubclass(cls, FedAvg):
            settings["half"] = half
        elif half and has_server_half(self.client):
            raise ConfigError(
                f"client {type(self.client).__name__} has a server half, which the server {name} does not carry; "
                "allowed: a server of fedsim.servers or a subclass of one"
            )
        try:
            accepted = dict(inspect.signature(make).parameters)
        except ValueError:  # a partial with an option that its class does not take
            accepted = {}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        own = make.keywords if isinstance(make, partial) else {}
        settings = {k: v for k, v in settings.items() if (takes_any or k in accepted) and k not in own}
        try:
            return make(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"server {name} cannot be made: {error}") from None


class _Run:
    """One execution of an experiment: what Flower's server loop calls back."""

    def __init__(
        self,
        experiment: Experiment,
        workers: int | None,
        block_size: int | None,
        on_round: Callable[[Mapping[str, float]], None],
    ) -> None:
        from fedsim.engines.in_process import InProcessGrid

        self.experiment = experiment
        self.on_round = on_round
        dataset = experiment.load_data()
        self.net = experiment.network(dataset)
        trained_on = len(dataset.y_train) * experiment.fraction_train * experiment.rounds * experiment.client.epochs
        self.kernel = kernels.choose(experiment.kernel, numpy_hooks(experiment.client), self.net, trained_on)
        self.half = ServerHalf(experiment.client, self.net, len(dataset.y_train), experiment.seed)
        partition, partition_test = experiment.partitions(dataset)
        self.grid = InProcessGrid(
            self.net,
            dataset,
            partition,
            experiment.client,
            experiment.seed,
            kernel=self.kernel,
            workers=workers,
            block_size=block_size,
            on_failure=experiment.on_failure,
            partition_test=partition_test,
        )
        self.rows: list[dict[str, float]] = []
        self.client_rows: list[dict[str, NDArray[Any]]] = []
        self.started = time.perf_counter()

    def execute(self, verbose: bool) -> Result:
        import pandas as pd

        from fedsim.engines import flower

        experiment = self.experiment
        initial = mlp.initialise(self.net, generator(experiment.seed, Purpose.INIT))
        self.weights = initial
        self.started = time.perf_counter()
        sampling_seed = int(keys(experiment.seed, Purpose.FLOWER)[0])
        with flower.quiet(verbose), flower.seeded_sampling(sampling_seed), self.grid:
            strategy = experiment.strategy(self.half)
            try:
                strategy.start(
                    self.grid,
                    flower.to_record(self.net, initial),
                    num_rounds=experiment.rounds,
                    evaluate_fn=self._round_done,
                )
            except flower.AppExitException as error:
                raise FedsimError(f"Flower's {type(strategy).__name__} gave up: {error}") from error
        history = pd.DataFrame(self.rows, columns=list(HISTORY))
        columns = ("round", "partition_id", "num_examples", "loss", "accuracy")
        clients = pd.DataFrame(
            {c: np.concatenate([part[c] for part in self.client_rows]) if self.client_rows else [] for c in columns}
        )
        weights = {k: v.copy() for k, v in mlp.views(self.net, self.weights).items()}
        return Result(experiment, history, clients, weights, self.kernel)

    def _round_done(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model and write the round's row; Flower calls it before round 1 and after each."""
        from flwr.app import MetricRecord

        from fedsim.engines import flower

        self.weights = flower.to_flat(self.net, arrays)
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
            *_local(evaluations),
            traffic.clients,
            len(traffic.failed),
            traffic.bytes_up,
            traffic.bytes_down,
            now - self.started,
        )
        self.started = now
        row = dict(zip(HISTORY, values, strict=True))
        self.rows.append(row)
        for part in evaluations:
            self.client_rows.append(
                {
                    "round": np.full(len(part.partition_ids), server_round),
                    "partition_id": part.partition_ids,
                    "num_examples": part.num_examples,
                    "loss": part.loss,
                    "accuracy": part.accuracy,
                }
            )
        self.on_round(row)
        return MetricRecord({"test_loss": loss, "test_accuracy": accuracy})


def _local(evaluations: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the mean loss and accuracy over the evaluated examples, or NaN."""
    if not evaluations:
        return float("nan"), float("nan")
    examples = np.concatenate([part.num_examples for part in evaluations])
    loss, accuracy = (np.concatenate([getattr(part, name) for part in evaluations]) for name in ("loss", "accuracy"))
    return float(np.average(loss, weights=examples)), float(np.average(accuracy, weights=examples))
