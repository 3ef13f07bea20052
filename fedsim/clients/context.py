"""The context of a client strategy's hooks: clients of a round, one row each, and their local training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.arguments import refusal
from fedsim.clients.check_hooks import check_array, check_per_client, check_state_update
from fedsim.clients.full_pass import evaluate_shards, shard_batches
from fedsim.clients.private import PRIVATE, private_mask
from fedsim.clients.sgd import SGD, Affine, overrides
from fedsim.clients.task import Task
from fedsim.errors import ConfigError
from fedsim.kernels.fit import FitJob, FitResult
from fedsim.models import Group
from fedsim.splits.partition import Indices
from fedsim.streams import keys

Array = NDArray[Any]


class Context:
    """Some clients of a round, one row each.

    Attributes
    ----------
    round : int
        From 1.
    model : Model
    partition_ids, num_examples : ndarray of int, shape (clients,)
    global_weights : ndarray, shape (parameters,)
        The weights that the server sent; read-only.
    state : dict of str to ndarray, shape (clients, ...)
        The client state (see `ClientStrategy.client_state`), which hooks may change.
    down : dict of str to ndarray
        The arrays that the server sent besides the weights; read-only.
    up : dict of str to ndarray, shape (clients, ...)
        The arrays to send to the server besides the weights; the strategy adds them.
    loss_sum : ndarray of float64, shape (clients,)
        Sum over the examples processed in all fits so far; 0 before the first fit.
    processed : ndarray of int, shape (clients,)
        Number of these examples.
    update_norm : ndarray of float64, shape (clients,), optional
        Euclidean distance of the last fit's weights from its start.
    batch : ndarray of int, shape (clients, batch), optional
        In `SGD.gradient`, the positions of the batch's examples among those of all clients.
    """

    def __init__(self, task: Task, clients: Indices, state: dict[str, Array], *, trains: bool = False) -> None:
        self._task = task
        self._fits_left = [1] if trains else []  # with ExampleNoise; shared by the contexts of rows
        self.round, self.model, self.down = task.round, task.model, task.down
        self.global_weights = task.global_weights
        self.partition_ids, self.num_examples = clients, task.partition.sizes[clients]
        self.state = state
        self.up: dict[str, Array] = {}
        self._block: tuple[Context, slice | Indices] | None = None
        self._loss_sum: NDArray[np.float64] | int = 0
        self.processed: Indices | int = 0
        self.update_norm: NDArray[np.float64] | None = None
        self._epochs: Indices | int = 0
        self.batch: Indices | None = None

    def rows(self, select: slice | Indices) -> Context:
        """Return the context of some of the rows; its state is a view for a slice, and a copy for row numbers."""
        part = copy(self)
        part.partition_ids, part.num_examples = self.partition_ids[select], self.num_examples[select]
        part.state = {name: rows[select] for name, rows in self.state.items()}
        for computed in ("start", "label_counts", "group_label_counts", "lr", "steps"):
            part.__dict__.pop(computed, None)
        part._block = self, select
        return part

    @property
    def loss_sum(self) -> NDArray[np.float64] | int:
        """Sum of the losses on the examples processed."""
        self._check_may_read("ctx.loss_sum")
        return self._loss_sum

    @loss_sum.setter
    def loss_sum(self, value: NDArray[np.float64] | int) -> None:
        self._loss_sum = value

    def training_loss(self) -> NDArray[np.float64] | None:
        """Return the mean loss that clients report, shape (clients,), NaN where a fit diverged; None before a fit."""
        return self._loss_sum / np.maximum(self.processed, 1) if np.ndim(self._loss_sum) else None

    def _once(self, name: str, compute: Callable[[], Array]) -> Array:
        """Return the result of `compute`, or rows of the result for the whole block, which is computed once."""
        if self._block is None:
            return compute()
        block, select = self._block
        rows: Array = getattr(block, name)[select]
        return rows

    @cached_property
    def start(self) -> Array:
        """The weights at the start of the round, shape (clients, parameters) or (1, parameters).

        The global weights, with each client's own private parameters if the strategy has any.
        """
        if PRIVATE not in self.state:
            return self.global_weights[None]
        start = np.repeat(self.global_weights[None], len(self.partition_ids), axis=0)
        start[:, private_mask(self._task.strategy, self.model)] = self.state[PRIVATE]
        return start

    @cached_property
    def lr(self) -> NDArray[np.float64]:
        """Each client's learning rate in this round, shape (clients,)."""
        return self._once("lr", lambda: self._per_client("learning_rate", self._sgd()))

    @cached_property
    def steps(self) -> Indices:
        """Each client's number of steps in a fit of this strategy, shape (clients,)."""
        return self._once("steps", lambda: self._per_client("local_steps", self._sgd()))

    def _sgd(self, by: SGD | None = None) -> SGD:
        """Return the given strategy, by default the round's; ConfigError unless it extends SGD."""
        strategy = by or self._task.strategy
        if not isinstance(strategy, SGD):
            raise ConfigError(f"{type(strategy).__name__} does not extend SGD; allowed: ctx.fit(by=SGD(...))")
        return strategy

    def _per_client(self, hook: str, strategy: SGD) -> Array:
        values = getattr(strategy, hook)(self)
        return check_per_client(strategy, hook, values, len(self.partition_ids), integers=hook == "local_steps")

    @cached_property
    def label_counts(self) -> Indices:
        """Each client's number of training examples of each label, shape (clients, classes)."""
        self._check_may_read("ctx.label_counts")
        task, classes = self._task, max(2, self.model.outputs)
        if task.y.dtype.kind == "f":
            raise ConfigError(f"{type(task.strategy).__name__} counts labels; the targets here are real numbers")

        def count() -> Indices:
            shards = [task.partition[int(k)] for k in self.partition_ids]
            return np.array([np.bincount(task.y[shard], minlength=classes) for shard in shards])

        return self._once("label_counts", count)

    @property
    def groups(self) -> Indices:
        """In `SGD.gradient`, the group of people of each example of the batch, shape (clients, batch), from 0."""
        assert self.batch is not None, "ctx.groups is for gradient()"
        return self._groups()[self.batch]

    @cached_property
    def group_label_counts(self) -> Indices:
        """Each client's number of training examples by group of people and label, shape (clients, groups, labels)."""
        self._check_may_read("ctx.group_label_counts")
        groups, labels = self._groups(), max(2, self.model.outputs)
        count = int(groups.max()) + 1

        def tabulate() -> Indices:
            shards = [self._task.partition[int(k)] for k in self.partition_ids]
            cells = [np.bincount(groups[s] * labels + self._task.y[s], minlength=count * labels) for s in shards]
            return np.array(cells).reshape(-1, count, labels)

        return self._once("group_label_counts", tabulate)

    def _groups(self) -> Indices:
        if self._task.groups is None:
            name = type(self._task.strategy).__name__
            raise ConfigError(f"client {name} uses groups of people, and sensitive is None; allowed: a column")
        return self._task.groups

    def fit(self, start: Array | None = None, *, by: SGD | None = None, groups: Sequence[Group] | None = None) -> Array:
        """Train on the clients' own examples.

        Parameters
        ----------
        start : ndarray, shape (clients, parameters) or (1, parameters), optional
            Default `start`.
        by : SGD, optional
            The strategy whose hyperparameters, `affine`, `gradient` and `direction` are used; default the round's.
            Each fit of a round shuffles differently.
        groups : sequence of tuple of str, optional
            The model's groups of parameters to train; the others are frozen. Default all.

        Returns
        -------
        ndarray, shape (clients, parameters)
            A new array.
        """
        strategy, sizes = self._sgd(by), self.num_examples
        if self._task.example_noise:
            self._check_private_fit(strategy)
        job = self._job(strategy, start, groups)
        hooked = job.gradient is not None or job.direction is not None
        result: FitResult = kernels.load("numpy" if hooked else self._task.kernel).fit(job)
        per_epoch = self._batches(strategy)
        epochs = job.steps // per_epoch
        processed = epochs * sizes + (job.steps - epochs * per_epoch) * job.batch_size
        if job.private:
            processed = job.private.counts.sum(axis=0)
        self._loss_sum, self.update_norm = self._loss_sum + result.loss, result.update_norm
        self.processed = self.processed + processed
        self._epochs = self._epochs + -(-job.steps // per_epoch)
        return result.weights

    def _batches(self, strategy: SGD) -> Indices:
        """Return each client's number of batches in an epoch."""
        sizes = self.num_examples
        return -(-sizes // strategy.batch_size) if strategy.batch_size else np.ones_like(sizes)

    def _job(self, strategy: SGD, start: Array | None, groups: Sequence[Group] | None) -> FitJob:
        """Return the job of a fit for the kernel."""
        task, noise = self._task, self._task.example_noise
        if strategy is task.strategy:
            lr, steps = self.lr, self.steps
        else:
            lr, steps = (self._per_client(hook, strategy) for hook in ("learning_rate", "local_steps"))
        epochs = int((-(-steps // self._batches(strategy))).max(initial=0))
        trained = tuple(groups is None or group in groups for group in task.model.groups)
        if not any(trained):
            raise ValueError(f"groups is {groups!r}; allowed: some of {task.model.groups}")
        affine = strategy.affine(self)
        if not isinstance(affine, Affine):
            raise refusal(strategy, "affine", f"affine() returned a {type(affine).__name__}; it must be an Affine")
        center, correction = affine.center, affine.correction
        batch_size = strategy.batch_size or 0
        sampled = task.seed, task.round, self.partition_ids, self.num_examples, steps, batch_size
        hooks = _StepHooks(strategy, self)
        return FitJob(
            model=task.model,
            x=task.x,
            y=task.y,
            partition=task.partition,
            clients=self.partition_ids,
            start=self.start if start is None else self._rows_of("start of fit()", start),
            steps=steps,
            shuffles=keys(
                task.seed, task.purpose, task.round, self.partition_ids, np.arange(epochs)[:, None] + self._epochs
            ),
            batch_size=batch_size,
            lr=lr,
            momentum=strategy.momentum,
            weight_decay=strategy.weight_decay,
            mu=affine.mu,
            center=self.global_weights[None] if center is None else self._rows_of("affine's center", center),
            correction=None if correction is None else self._rows_of("affine's correction", correction),
            trained=trained,
            run_on_all_workers=task.run_on_all_workers,
            gradient=hooks.gradient if overrides(strategy, "gradient") else None,
            direction=hooks.direction if overrides(strategy, "direction") else None,
            private=noise.steps(*sampled) if noise else None,
        )

    def _check_private_fit(self, strategy: SGD) -> None:
        """Raise ConfigError if the noise of a fit would not be accounted for."""
        if strategy is not self._task.strategy:
            raise self._not_private("fits another strategy")
        if overrides(strategy, "gradient"):
            raise self._not_private("has its own gradient(), which is not clipped")
        if not self._fits_left:
            raise self._not_private("fits more than once in a round, or not in train()")
        self._fits_left.pop()

    def _check_may_read(self, what: str) -> None:
        """Raise ConfigError if examples may be used with noise only."""
        if self._task.example_noise:
            raise self._not_private(f"uses {what}, which has no noise")

    def _not_private(self, reason: str) -> ConfigError:
        return ConfigError(
            f"privacy is by example, and the client {type(self._task.strategy).__name__} {reason}; allowed: a strategy "
            "that uses examples by one ctx.fit() in a round"
        )

    def _rows_of(self, what: str, values: Array) -> Array:
        """Return an array as rows of parameters, one for all clients or one for each."""
        rows = np.atleast_2d(values)
        clients, parameters = len(self.partition_ids), self.model.num_parameters
        if rows.shape not in ((1, parameters), (clients, parameters)):
            raise ConfigError(
                f"{type(self._task.strategy).__name__}'s {what} has shape {np.shape(values)}; allowed: "
                f"({parameters},), or with a row per client, ({clients}, {parameters})"
            )
        return rows

    def full_gradient(self, weights: Array) -> tuple[Array, Array]:
        """Return the mean loss over all training examples of each client, and its gradient.

        Parameters
        ----------
        weights : ndarray, shape (parameters,) or (clients, parameters)

        Returns
        -------
        loss : ndarray of float64, shape (clients,)
        grad : ndarray, shape (clients, parameters)
        """
        self._check_may_read("ctx.full_gradient()")
        loss = np.zeros(len(self.partition_ids))
        grad = np.zeros((len(loss), self.model.num_parameters), dtype=self.model.dtype)
        for rows, w, x, y in shard_batches(self._task, self._task.partition, self.partition_ids, weights):
            share = x.shape[1] / self.num_examples[rows]
            part_loss, part = self.model.loss_and_gradient(np.broadcast_to(w, (len(rows), w.shape[-1])), x, y)
            loss[rows] += part_loss * share
            grad[rows] += part * share[:, None].astype(part.dtype)
        return loss, grad

    def evaluate(self, weights: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean loss and the accuracy of weights on each client's training examples, shape (clients,)."""
        self._check_may_read("ctx.evaluate()")
        return evaluate_shards(self._task, self._task.partition, self.partition_ids, weights)


class _StepHooks:
    """A strategy's `gradient` and `direction` as functions of the rows of a block; they store changes of the state."""

    def __init__(self, strategy: SGD, context: Context) -> None:
        self._strategy, self._context = strategy, context

    def gradient(
        self, rows: slice | Indices, weights: Array, x: Array, y: Array, examples: Indices
    ) -> tuple[Array, Array]:
        """Return each client's loss on its batch and the gradient."""
        with self._part(rows, "gradient") as part:
            part.batch = examples
            result = self._strategy.gradient(weights, x, y, part)
        if not isinstance(result, tuple) or len(result) != 2:
            raise refusal(
                self._strategy, "gradient", "gradient() must return a tuple of the losses, shape (clients,), and the "
                "gradients, shape (clients, parameters)",
            )  # fmt: skip
        loss, grad = result
        check_array(self._strategy, "gradient", "gradient() returned losses", loss, weights.shape[:1])
        check_array(self._strategy, "gradient", "gradient() returned gradients", grad, weights.shape)
        return loss, grad

    def direction(self, rows: slice | Indices, grad: Array, weights: Array) -> Array:
        """Return the direction that each client's step subtracts."""
        with self._part(rows, "direction") as part:
            direction = self._strategy.direction(grad, weights, part)
        return check_array(self._strategy, "direction", "direction() returned", direction, weights.shape)

    @contextmanager
    def _part(self, rows: slice | Indices, hook: str) -> Iterator[Context]:
        part = self._context.rows(rows)
        before = dict(part.state)
        yield part
        check_state_update(self._strategy, hook, part.state, before)
        for name, values in part.state.items():
            if values is not before[name] or not isinstance(rows, slice):
                self._context.state[name][rows] = values
