"""What a client strategy works with: a block of a round's clients, a row each; and its server half's view.

The frame around a strategy's `train`: `run` hands it a block of clients with their state and takes back what they send
up and keep; `personalise` asks it what each client would use itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.clients.check_hooks import (
    check_array,
    check_kept,
    check_layers,
    check_per_client,
    check_personal,
    check_server_state,
    check_state,
    check_weights,
    refusal,
)
from fedsim.errors import ConfigError, DivergenceError, FedsimError
from fedsim.kernels.numpy import Fit, Spread, alone, evaluate
from fedsim.models import mlp
from fedsim.splits import Partition
from fedsim.streams import Purpose, generator, keys

if TYPE_CHECKING:
    from fedsim.clients.sgd import SGD

Array = NDArray[Any]
Indices = NDArray[np.intp]

#: Examples of a client looked at together in a pass over all of them; a constant, so that sums have one order.
PASS_ROWS = 500
#: The state under which the engine keeps a client's private layers.
PRIVATE = "private layers"


class Affine(NamedTuple):
    """What a strategy adds to the gradient, as data: ``mu * (weights - center) + correction``.

    Attributes
    ----------
    mu : float
        Strength of the pull.
    correction : ndarray, shape (clients, parameters) or (parameters,), optional
        Must not change during a fit.
    center : ndarray, shape (clients, parameters) or (parameters,), optional
        Where the pull leads; default the weights the server sent.
    """

    mu: float = 0.0
    correction: Array | None = None
    center: Array | None = None


@dataclass(frozen=True)
class Task:
    """What all clients of a round share.

    Attributes
    ----------
    net : MLP
    strategy : SGD
        The client strategy.
    x : ndarray, shape (examples, features)
        Every client's examples, of the network's dtype.
    y : ndarray, shape (examples,)
        Labels, or targets of the network's dtype.
    partition : Partition
        Which examples each client trains on.
    global_weights : ndarray, shape (parameters,)
        What the server sent; read-only.
    round, seed : int
    down : dict of str to ndarray
        What the server sent besides.
    kernel : {"numpy", "compiled"}
    purpose : Purpose
        Of the shuffling: a fit for evaluation draws other numbers than one for training.
    spread : Spread
        The threads that may share a block of clients.
    """

    net: mlp.MLP
    strategy: SGD
    x: Array
    y: Array
    partition: Partition
    global_weights: Array
    round: int
    seed: int
    down: Mapping[str, Array] = field(default_factory=dict)
    kernel: str = "numpy"
    purpose: Purpose = Purpose.SHUFFLE
    spread: Spread = alone


@dataclass(frozen=True)
class Update:
    """What some clients send back, a row each, and what they keep.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    weights : ndarray, shape (clients, parameters)
    train_loss : ndarray of float64, shape (clients,)
        Mean over the examples processed, each taken before the step it led to; NaN if anything sent is not finite.
    up, state : dict of str to ndarray, shape (clients, ...)
        Sent besides the weights; kept until the client's next round.
    encoded : dict of str to ndarray, shape (clients, ...)
        What is sent in the place of the weights, where it is compressed; the weights are what the server decodes.
    update_norm : ndarray of float64, shape (clients,), optional
        Euclidean distance of the weights from the global ones; None where it has not been computed.
    failed : dict of int to FedsimError
        Partition id -> why a client is not among the rows.
    """

    partition_ids: Indices
    num_examples: Indices
    weights: Array
    train_loss: NDArray[np.float64]
    up: Mapping[str, Array] = field(default_factory=dict)
    state: Mapping[str, Array] = field(default_factory=dict)
    encoded: Mapping[str, Array] = field(default_factory=dict)
    update_norm: NDArray[np.float64] | None = None
    failed: Mapping[int, FedsimError] = field(default_factory=dict)

    def rows(self, select: NDArray[np.bool_]) -> Update:
        """Return some of the rows."""

        def some(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: rows[select] for name, rows in value.items()}
            return value if value is None else value[select]

        return Update(**{f.name: some(getattr(self, f.name)) for f in fields(self) if f.name != "failed"})


class Context:
    """Some clients of a round, a row each.

    Attributes
    ----------
    round : int
        From 1.
    net : MLP
    partition_ids, num_examples : ndarray of int, shape (clients,)
    global_weights : ndarray, shape (parameters,)
        What the server sent; read-only.
    state : dict of str to ndarray, shape (clients, ...)
        What each client kept since its last round (see `SGD.client_state`); change it to keep something else.
    down : dict of str to ndarray
        What the server half sent besides the weights; read-only.
    up : dict of str to ndarray, shape (clients, ...)
        Put here what goes up besides the weights.
    """

    def __init__(self, task: Task, clients: Indices, state: dict[str, Array]) -> None:
        self._task = task
        self.round, self.net, self.global_weights, self.down = task.round, task.net, task.global_weights, task.down
        self.partition_ids, self.num_examples = clients, task.partition.sizes[clients]
        self.state = state
        self.up: dict[str, Array] = {}
        self._whole: tuple[Context, slice | Indices] | None = None
        self.loss: NDArray[np.float64] | int = 0  # summed over the examples of all fits so far
        self.processed: Indices | int = 0
        self.moved: NDArray[np.float64] | None = None  # how far the last fit went
        self._epochs: Indices | int = 0

    def rows(self, select: slice | Indices) -> Context:
        """Return the context of some of the rows; its state is a view of a slice of them, a copy of others."""
        part = copy(self)
        part.partition_ids, part.num_examples = self.partition_ids[select], self.num_examples[select]
        part.state = {name: rows[select] for name, rows in self.state.items()}
        for computed in ("start", "label_counts", "lr", "steps"):
            part.__dict__.pop(computed, None)
        part._whole = self, select
        return part

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` gives, or the rows of what the whole block's context has computed already."""
        if self._whole is None:
            return compute()
        whole, select = self._whole
        return getattr(whole, name)[select]

    @cached_property
    def start(self) -> Array:
        """The weights a round starts from, shape (clients, parameters) or (1, parameters).

        The global weights, with each client's own private layers where the strategy has any.
        """
        if PRIVATE not in self.state:
            return self.global_weights[None]
        start = np.repeat(self.global_weights[None], len(self.partition_ids), axis=0)
        start[:, private_mask(self._task.strategy, self.net)] = self.state[PRIVATE]
        return start

    @cached_property
    def lr(self) -> NDArray[np.float64]:
        """Each client's step size in this round, shape (clients,)."""
        lr: NDArray[np.float64] = self._once("lr", lambda: self._of("learning_rate"))
        return lr

    @cached_property
    def steps(self) -> Indices:
        """How many steps each client takes in a fit of this strategy, shape (clients,)."""
        steps: Indices = self._once("steps", lambda: self._of("local_steps"))
        return steps

    def _of(self, hook: str, strategy: SGD | None = None) -> Any:
        strategy = strategy or self._task.strategy
        values = getattr(strategy, hook)(self)
        return check_per_client(strategy, hook, values, len(self.partition_ids), whole=hook == "local_steps")

    @cached_property
    def label_counts(self) -> Indices:
        """Each client's training examples of each label, shape (clients, classes)."""
        task, classes = self._task, max(2, self.net.sizes[-1])
        if task.y.dtype.kind == "f":
            raise ConfigError(f"{type(task.strategy).__name__} counts labels; the targets here are real numbers")

        def count() -> Indices:
            shards = [task.partition[int(k)] for k in self.partition_ids]
            return np.array([np.bincount(task.y[shard], minlength=classes) for shard in shards])

        counts: Indices = self._once("label_counts", count)
        return counts

    def fit(self, start: Array | None = None, *, by: SGD | None = None, layers: Sequence[int] | None = None) -> Array:
        """Train on the clients' own examples.

        Parameters
        ----------
        start : ndarray, shape (clients, parameters) or (1, parameters), optional
            Default `start`.
        by : SGD, optional
            Whose hyperparameters, `affine`, `gradient` and `direction`; default the round's strategy. Other fits of
            a round shuffle anew.
        layers : sequence of int, optional
            Numbers of the layers to train, the first being 1; the rest stay as they are. Default all.

        Returns
        -------
        ndarray, shape (clients, parameters)
            A new array.
        """
        task, strategy = self._task, by or self._task.strategy
        trained = tuple(layers is None or layer in layers for layer in range(1, len(task.net.sizes)))
        if not any(trained):
            raise ValueError(f"layers is {layers!r}; allowed: some of 1 to {len(trained)}")
        sizes = self.num_examples
        own = strategy is task.strategy
        lr = self.lr if own else self._of("learning_rate", strategy)
        steps = self.steps if own else self._of("local_steps", strategy)
        batch = strategy.batch_size or 0
        per_epoch = -(-sizes // batch) if batch else np.ones_like(sizes)
        epochs = -(-steps // per_epoch)
        numbers = np.arange(int(epochs.max(initial=0)))[:, None]
        shuffles = keys(task.seed, task.purpose, task.round, self.partition_ids, numbers + self._epochs)
        added = strategy.affine(self)
        if not isinstance(added, Affine):
            raise refusal(strategy, "affine", f"affine() returned a {type(added).__name__}; it must be an Affine")
        hooks = _Hooks(strategy, self) if numpy_hooks(strategy) else None
        job = Fit(
            net=task.net,
            x=task.x,
            y=task.y,
            partition=task.partition,
            clients=self.partition_ids,
            start=self.start if start is None else self._rows_of("start of fit()", start),
            steps=steps,
            shuffles=shuffles,
            batch_size=batch,
            lr=lr,
            momentum=strategy.momentum,
            weight_decay=strategy.weight_decay,
            mu=added.mu,
            center=self.global_weights[None]
            if added.center is None
            else self._rows_of("affine's center", added.center),
            correction=None if added.correction is None else self._rows_of("affine's correction", added.correction),
            trained=trained,
            spread=task.spread,
            gradient=hooks.gradient if hooks and overrides(strategy, "gradient") else None,
            direction=hooks.direction if hooks and overrides(strategy, "direction") else None,
        )
        weights, loss, self.moved = kernels.load("numpy" if hooks else task.kernel).fit(job)
        full = steps // per_epoch
        self.loss = self.loss + loss
        self.processed = self.processed + full * sizes + (steps - full * per_epoch) * batch
        self._epochs = self._epochs + epochs
        result: Array = weights
        return result

    def _rows_of(self, what: str, values: Array) -> Array:
        """Return an array as rows of parameters, one for all clients or one for each; a kernel relies on it."""
        rows = np.atleast_2d(values)
        if rows.ndim != 2 or len(rows) not in (1, len(self.partition_ids)) or rows.shape[1] != self.net.num_parameters:
            name = type(self._task.strategy).__name__
            raise ConfigError(
                f"{name}'s {what} has shape {np.shape(values)}; allowed: ({self.net.num_parameters},), or with a row "
                f"per client, ({len(self.partition_ids)}, {self.net.num_parameters})"
            )
        return rows

    def gradient(self, weights: Array) -> tuple[Array, Array]:
        """Return the mean loss over all of each client's training examples and its gradient.

        Parameters
        ----------
        weights : ndarray, shape (parameters,) or (clients, parameters)

        Returns
        -------
        loss : ndarray of float64, shape (clients,)
        grad : ndarray, shape (clients, parameters)
        """
        loss = np.zeros(len(self.partition_ids))
        grad = np.zeros((len(loss), self.net.num_parameters), dtype=self.net.dtype)

        def add(rows: Indices, w: Array, x: Array, y: Array) -> None:
            share = x.shape[1] / self.num_examples[rows]
            part_loss, part = mlp.gradient(self.net, np.broadcast_to(w, (len(rows), w.shape[-1])), x, y)
            loss[rows] += part_loss * share
            grad[rows] += part * share[:, None].astype(part.dtype)

        over_shards(self._task, self._task.partition, self.partition_ids, weights, add)
        return loss, grad

    def evaluate(self, weights: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean loss and the accuracy of weights on each client's training examples, shape (clients,)."""
        return evaluate_shards(self._task, self._task.partition, self.partition_ids, weights)


class _Hooks:
    """A strategy's own `gradient` and `direction`, called by row numbers of a block; state that they change is kept."""

    def __init__(self, strategy: SGD, context: Context) -> None:
        self._strategy, self._context = strategy, context

    def gradient(self, rows: slice | Indices, weights: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Return each client's loss on its batch and the gradient."""
        with self._part(rows, "gradient") as part:
            made = self._strategy.gradient(weights, x, y, part)
        if not isinstance(made, tuple) or len(made) != 2:
            raise refusal(
                self._strategy, "gradient", "gradient() must return a tuple of the losses, shape (clients,), and the "
                "gradients, shape (clients, parameters)",
            )  # fmt: skip
        loss, grad = made
        check_array(self._strategy, "gradient", "gradient() returned losses", loss, weights.shape[:1])
        check_array(self._strategy, "gradient", "gradient() returned gradients", grad, weights.shape)
        return loss, grad

    def direction(self, rows: slice | Indices, grad: Array, weights: Array) -> Array:
        """Return what each client's step subtracts."""
        with self._part(rows, "direction") as part:
            made = self._strategy.direction(grad, weights, part)
        return check_array(self._strategy, "direction", "direction() returned", made, weights.shape)

    @contextmanager
    def _part(self, rows: slice | Indices, hook: str) -> Iterator[Context]:
        part = self._context.rows(rows)
        before = dict(part.state)
        yield part
        check_kept(self._strategy, hook, part.state, before)
        for name, values in part.state.items():
            if values is not before[name] or not isinstance(rows, slice):
                self._context.state[name][rows] = values


def overrides(strategy: SGD, *hooks: str) -> bool:
    """Whether a strategy has any of these hooks of its own."""
    cls: Any = type(strategy)
    return _overrides(cls, hooks)


@cache
def _overrides(cls: Any, hooks: tuple[str, ...]) -> bool:
    from fedsim.clients.sgd import SGD

    return any(getattr(cls, hook) is not getattr(SGD, hook) for hook in hooks)


def numpy_hooks(strategy: SGD) -> str:
    """Name what a strategy does in a step that only the NumPy kernel can run; empty if `affine` says it all."""
    if not overrides(strategy, "gradient", "direction"):
        return ""
    return next((f"{type(strategy).__name__}'s {h}()" for h in ("gradient", "direction") if overrides(strategy, h)), "")


def over_shards(
    task: Task,
    partition: Partition,
    clients: Indices,
    weights: Array,
    look: Callable[[Indices, Array, Array, Array], None],
) -> None:
    """Call ``look(rows, weights, x, y)`` until every example of the clients has been shown once.

    Clients with equally large shards are shown together, up to PASS_ROWS examples of each at a time.
    """
    weights = np.atleast_2d(weights)
    sizes = partition.sizes[clients]
    for size in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == size)
        own = weights if len(weights) == 1 else weights[rows]
        for first in range(0, size, PASS_ROWS):
            place = partition.offsets[clients[rows], None] + np.arange(first, min(first + PASS_ROWS, size))
            shards = partition.indices[place]
            look(rows, own, task.x.take(shards, axis=0), task.y.take(shards, axis=0))


def evaluate_shards(
    task: Task, partition: Partition, clients: Indices, weights: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean loss and the accuracy of weights on each client's shard of a partition.

    Parameters
    ----------
    weights : ndarray, shape (parameters,) or (clients, parameters)

    Returns
    -------
    loss, accuracy : ndarray of float64, shape (clients,)
        NaN for a client without examples.
    """
    loss, right = np.zeros(len(clients)), np.zeros(len(clients))

    def add(rows: Indices, w: Array, x: Array, y: Array) -> None:
        part_loss, part_right = evaluate(task.net, w, x, y)
        loss[rows] += part_loss
        right[rows] += part_right

    over_shards(task, partition, clients, weights, add)
    with np.errstate(invalid="ignore"):
        return loss / partition.sizes[clients], right / partition.sizes[clients]


def private_mask(strategy: SGD, net: mlp.MLP) -> NDArray[np.bool_]:
    """Return which parameters a strategy's clients keep to themselves, shape (parameters,)."""
    mask = np.zeros(net.num_parameters, dtype=bool)
    for layer in check_layers(strategy, strategy.private_layers(net), len(net.sizes) - 1):
        for name in (f"W{layer}", f"b{layer}"):
            mask[net.layout[name][0]] = True
    return mask


def keeps_state(strategy: SGD, net: mlp.MLP) -> bool:
    """Whether clients keep anything between rounds."""
    return overrides(strategy, "client_state") or bool(strategy.private_layers(net))


def new_state(task: Task, clients: Indices) -> dict[str, Array]:
    """Return the state with which clients enter their first round, a row each."""
    context = Context(task, clients, {})
    state = check_state(task.strategy, task.strategy.client_state(context), len(clients))
    mask = private_mask(task.strategy, task.net)
    if mask.any():
        state[PRIVATE] = np.repeat(task.global_weights[None, mask], len(clients), axis=0)
    return state


def run(task: Task, clients: Indices, state: dict[str, Array]) -> Update:
    """Run a round's local training of some clients.

    Parameters
    ----------
    clients : ndarray of int, shape (clients,)
        Partition ids, none of an empty client, in order of falling size.
    state : dict of str to ndarray, shape (clients, ...)
        The clients' own; may be changed.
    """
    context = Context(task, clients, state)
    strategy, rows, declared = task.strategy, len(clients), dict(state)
    weights = check_array(
        strategy, "train", "train() returned", strategy.train(context), (rows, task.net.num_parameters)
    )
    if weights.dtype.kind != "f":
        raise refusal(strategy, "train", f"train() returned an array of {weights.dtype}; it must hold floats")
    weights = weights.astype(task.net.dtype, copy=False)
    if np.ndim(context.loss):
        loss = context.loss / np.maximum(context.processed, 1)
    else:  # no fit: the loss of what the round started from
        loss = context.evaluate(context.start)[0]
    check_kept(strategy, "train", context.state, declared)
    for name, values in context.up.items():
        check_array(strategy, "train", f"ctx.up[{name!r}] is", values, (rows, ...))
    if PRIVATE in state:
        mask = private_mask(strategy, task.net)
        context.state[PRIVATE] = weights[:, mask]
        weights = np.where(mask, task.global_weights, weights)  # a new array: state may refer to what train() returned
    for sent in [*context.up.values(), *([weights] if overrides(strategy, "train") else [])]:
        loss[~np.isfinite(sent).reshape(rows, -1).all(axis=1)] = np.nan
    for values in (v for v in context.state.values() if v.dtype.kind == "f"):
        loss[np.isnan(values).reshape(rows, -1).any(axis=1)] = np.nan
    nothing_but_a_fit = not overrides(strategy, "train") and PRIVATE not in state
    moved = context.moved if nothing_but_a_fit else None
    return Update(clients, context.num_examples, weights, loss, context.up, context.state, update_norm=moved)


def personalise(task: Task, clients: Indices, state: dict[str, Array]) -> Array:
    """Return what each client would use itself, shape (clients, parameters) or (1, parameters).

    Raises
    ------
    DivergenceError
        A fit for it diverged; names the client.
    ConfigError
        The strategy returned anything but finite weights.
    """
    context = Context(task, clients, state)
    weights = task.strategy.personalise(context)
    diverged = np.flatnonzero(np.isnan(context.loss))
    if len(diverged):
        raise DivergenceError(
            f"training diverged in round {task.round} at client {clients[diverged[0]]} when {task.strategy} made the "
            "client's own model; a smaller learning rate usually helps"
        )
    return check_personal(task.strategy, weights, clients, task.net.num_parameters)


@dataclass
class ServerContext:
    """What a strategy's server half works with, once all replies of a round are in.

    Attributes
    ----------
    round : int
    global_weights : ndarray, shape (parameters,)
        What was sent; read-only.
    mean : dict of str to ndarray
        ``"weights"`` as the server strategy combined them, shape (parameters,), and the mean of everything else that
        clients sent up, each client weighted by `SGD.weigh` (its number of examples).
    state : dict of str to ndarray
        What the server half keeps between rounds; change it to keep something else.
    share : float
        The cohort's share of the examples that all clients train on in this round, in (0, 1].
    """

    round: int
    global_weights: Array
    mean: dict[str, Array]
    state: dict[str, Array]
    share: float


class ServerHalf:
    """A client strategy's server half with its state, as fedsim's server strategies carry it.

    Parameters
    ----------
    strategy : SGD
    net : MLP
    num_examples : int or callable
        Of all clients together; a function of the round's number (from 1) where clients train on other examples in
        other rounds.
    seed : int
    """

    def __init__(self, strategy: SGD, net: mlp.MLP, num_examples: int | Callable[[int], int], seed: int) -> None:
        self.strategy, self.net, self.num_examples, self.seed = strategy, net, num_examples, seed
        self.state: dict[str, Array] | None = None

    def down(self, weights: Array) -> dict[str, Array]:
        """Return what goes down besides the weights."""
        state, strategy = self._started(weights), self.strategy
        for name in strategy.broadcast:
            if name not in state:
                raise ConfigError(
                    f"{type(strategy).__name__}'s broadcast names {name}, which server_state() does not return"
                )
        return {name: state[name] for name in strategy.broadcast}

    def _started(self, weights: Array) -> dict[str, Array]:
        if self.state is None:
            self.state = check_server_state(self.strategy, "server_state", self.strategy.server_state(weights, self))
        return self.state

    def initialise(self, number: int) -> Array:
        """Draw another set of initial weights, shape (parameters,): the `number`-th, from 1."""
        return mlp.initialise(self.net, generator(self.seed, Purpose.INIT, number))

    def step(self, server_round: int, weights: Array, mean: dict[str, Array], examples: float) -> Array:
        """Return the new global weights."""
        total = self.num_examples(server_round) if callable(self.num_examples) else self.num_examples
        share = examples / total
        context = ServerContext(server_round, weights, mean, self._started(weights), share)
        made = self.strategy.server_step(context)
        self.state = check_server_state(self.strategy, "server_step", context.state)
        names = ("parameters",)
        return check_array(self.strategy, "server_step", "server_step() returned", made, weights.shape, names)

    def weigh(self, num_examples: Array, up: Mapping[str, Array]) -> Array:
        """Return each client's weight in the round's means, shape (clients,) or (clients, groups)."""
        return check_weights(self.strategy, self.strategy.weigh(num_examples, up), len(num_examples))


def has_server_half(strategy: SGD) -> bool:
    """Whether a strategy needs a server strategy that carries its server half."""
    return bool(strategy.broadcast) or overrides(strategy, "server_step", "weigh")
