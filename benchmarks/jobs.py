"""The timed jobs: rounds of local training and aggregation, on synthetic data in the shapes of real data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord

from fedsim.clients import SGD
from fedsim.clients.example_noise import ExampleNoise
from fedsim.data import Dataset
from fedsim.flower import records, strategies
from fedsim.models import MLP
from fedsim.rounds.grid import make_grid
from fedsim.servers import FedAvg
from fedsim.splits import FederatedDataset, Partition


@dataclass(frozen=True)
class Job:
    """One kind of round.

    Parameters
    ----------
    sizes : tuple of int
        Widths of the network's layers.
    registered, cohort : int
        Number of registered clients, and of clients trained in a round.
    examples : int
        Per client.
    batch : int or None
        Batch size; None is the whole shard.
    epochs : int
    distinct : int
        Largest number of different examples; clients share them if there are more clients, so that a million fit.
    """

    sizes: tuple[int, ...]
    registered: int
    cohort: int
    examples: int
    batch: int | None = 10
    epochs: int = 1
    distinct: int = 60_000

    @property
    def flops(self) -> float:
        """Floating-point operations of a round, forward and backward, without the gradient of the inputs."""
        weights = [fan_in * fan_out for fan_in, fan_out in zip(self.sizes, self.sizes[1:], strict=False)]
        return 2.0 * (3 * sum(weights) - weights[0]) * self.examples * self.epochs * self.cohort

    @property
    def model(self) -> MLP:
        """The network."""
        return MLP(self.sizes)

    @property
    def strategy(self) -> SGD:
        """The client strategy."""
        return SGD(lr=0.01, epochs=self.epochs, batch_size=self.batch)

    def data(self) -> Dataset:
        """Return the examples on which all peers train."""
        rng = np.random.default_rng(0)
        count = min(self.registered * self.examples, self.distinct)
        x = rng.normal(size=(count + 1, self.sizes[0])).astype(np.float32)
        y = rng.integers(0, self.sizes[-1], count + 1)
        return Dataset("made up", x[:count], y[:count], x[count:], y[count:], self.sizes[-1])

    def partition(self, dataset: Dataset) -> Partition:
        """Return the examples of each client, at random places in memory."""
        order = np.random.default_rng(1).permutation(len(dataset.y_train))
        places = np.arange(self.registered * self.examples) % len(order)
        return Partition(order[places], np.arange(self.registered + 1) * self.examples)


#: The article's network: 100 clients with 100 examples, all in every round.
ARTICLE = Job((100, 50, 10), registered=100, cohort=100, examples=100)
#: The FedAvg paper's 2NN on MNIST: 100 clients with 600 examples, a tenth of them in every round.
TWO_NN = Job((784, 200, 200, 10), registered=100, cohort=10, examples=600)


@contextmanager
def fedsim_rounds(
    job: Job, workers: int | None = None, example_noise: ExampleNoise | None = None
) -> Iterator[Callable[[], None]]:
    """Yield a function that samples, trains and aggregates one more round; the first round has been run."""
    dataset, model = job.data(), job.model
    federated = FederatedDataset(dataset, job.partition(dataset))
    grid = make_grid(model, federated, job.strategy, kernel="compiled", workers=workers, example_noise=example_noise)
    strategy = FedAvg(fraction_train=job.cohort / job.registered, min_train_nodes=job.cohort)
    strategy.streams = True  # as in a run
    arrays = records.to_record(model, model.init(np.random.default_rng(2)))
    numbers = itertools.count(1)

    def step() -> None:
        nonlocal arrays
        number = next(numbers)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        mean, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert mean is not None
        arrays = mean
        grid.take_statistics()

    with grid, strategies.quiet():
        step()
        with strategies.freeze_gc():  # as in a run
            yield step
