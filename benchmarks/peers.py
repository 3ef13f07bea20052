"""The peers of fedsim: an optimised NumPy client, in a plain loop and in Flower's Ray simulation."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.jobs import Job
from fedsim.data import Dataset
from fedsim.errors import FedsimError
from fedsim.flower import strategies
from fedsim.models import named_arrays
from fedsim.splits import Partition


def train(job: Job, layers: list[NDArray[Any]], x: NDArray[Any], y: NDArray[Any], rng: np.random.Generator) -> float:
    """Train one client with NumPy, written with care: matrix products, updates in place, no needless copies.

    Parameters
    ----------
    layers : list of ndarray
        ``W1, b1, W2, b2, ...``; changed in place.

    Returns
    -------
    float
        Mean loss.
    """
    lr, size = np.float32(job.strategy.lr), job.batch or len(y)
    weights, biases, total = layers[::2], layers[1::2], 0.0
    last = len(weights) - 1
    for _ in range(job.epochs):
        order = rng.permutation(len(y))
        for begin in range(0, len(y), size):
            batch = order[begin : begin + size]
            labels, rows = y[batch], np.arange(len(batch))
            h = [x[batch]]
            for k in range(last + 1):
                z = h[k] @ weights[k]
                z += biases[k]
                if k < last:
                    np.maximum(z, 0, out=z)
                h.append(z)
            delta = h[-1]
            delta -= delta.max(axis=1, keepdims=True)
            chosen = delta[rows, labels]
            np.exp(delta, out=delta)
            sums = delta.sum(axis=1, keepdims=True)
            total += float((np.log(sums[:, 0]) - chosen).sum())
            delta /= sums
            delta[rows, labels] -= 1
            delta *= lr / len(batch)
            for k in range(last, -1, -1):
                back = delta @ weights[k].T if k else None
                weights[k] -= h[k].T @ delta
                biases[k] -= delta.sum(axis=0)
                if back is not None:
                    back *= h[k] > 0
                    delta = back
    return total / (len(y) * job.epochs)


@contextmanager
def loop_rounds(job: Job) -> Iterator[Callable[[], None]]:
    """Yield a function that trains one cohort client by client on one thread and averages the weights."""
    dataset, partition = shards(job)
    start = [v.copy() for v in named_arrays(job.model, job.model.init(np.random.default_rng(2))).values()]
    rng = np.random.default_rng(3)

    def step() -> None:
        sums = [np.zeros(v.shape) for v in start]
        for client in rng.choice(job.registered, job.cohort, replace=False):
            layers = [v.copy() for v in start]
            train(job, layers, dataset.x_train[partition[client]], dataset.y_train[partition[client]], rng)
            for total, values in zip(sums, layers, strict=True):
                total += values
        start[:] = [(total / job.cohort).astype(np.float32) for total in sums]

    with threadpool_limits(1, "blas"):
        step()
        yield step


@cache
def shards(job: Job) -> tuple[Dataset, Partition]:
    """Return the data and its partition, made once per process."""
    dataset = job.data()
    return dataset, job.partition(dataset)


def client_app(job: Job) -> ClientApp:
    """Return a Flower client that trains on its shard."""
    app = ClientApp()

    @app.train()
    def handle(message: Message, context: Context) -> Message:
        dataset, partition = shards(job)
        client = int(context.node_config["partition-id"])
        layers = message.content.array_records["arrays"].to_numpy_ndarrays()
        rng = np.random.default_rng((client, int(message.content.config_records["config"]["server-round"])))  # type: ignore[arg-type]
        with threadpool_limits(1, "blas"):
            rows = partition[client]
            loss = train(job, layers, dataset.x_train[rows], dataset.y_train[rows], rng)
        arrays = ArrayRecord({name: Array(v) for name, v in zip(job.model.layout, layers, strict=True)})
        metrics = MetricRecord({"num-examples": len(rows), "train_loss": loss})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


@contextmanager
def ray_rounds(job: Job) -> Iterator[Callable[[], None]]:
    """Yield a function that runs one round of Flower's Ray simulation; the first round has been run.

    A round consists of the steps of Flower's FedAvg: sample, send, wait for the replies, aggregate. The simulation runs
    in its own process, so that its threads do not slow the peers that it takes turns with.

    Raises
    ------
    FedsimError
        Ray is not installed.
    RuntimeError
        The simulation failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise FedsimError("this benchmark needs Ray: pip install '.[bench]'")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_simulate, args=(job, theirs))
    process.start()
    theirs.close()

    def step() -> None:
        try:
            ours.send("round")
            ours.recv()
        except (EOFError, OSError):
            raise RuntimeError("Flower's Ray simulation failed; see its output above") from None

    try:
        step()
        yield step
    finally:
        ours.close()
        process.join()


def _simulate(job: Job, orders: Connection) -> None:
    """Run a Ray simulation whose server runs a round for each message, until the connection is closed."""
    from flwr.simulation import run_simulation

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=job.cohort / job.registered,
            min_train_nodes=job.cohort,
            min_available_nodes=job.registered,
        )
        start = named_arrays(job.model, job.model.init(np.random.default_rng(2)))
        arrays = ArrayRecord({name: Array(values) for name, values in start.items()})
        number = 0
        with contextlib.suppress(EOFError):
            while orders.recv():
                number += 1
                messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
                replies = list(grid.send_and_receive(messages))
                mean, _ = strategy.aggregate_train(number, replies)
                if mean is None or any(reply.has_error() for reply in replies):
                    raise RuntimeError("a client of the Ray simulation failed")
                arrays = mean
                orders.send("done")

    with strategies.quiet():
        resources: dict[str, Any] = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, client_app(job), job.registered, backend_config=resources)
