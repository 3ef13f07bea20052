"""FedAvg's client, and the class every client strategy extends: minibatch SGD on the client's own examples.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017
(arXiv:1602.05629), algorithm 1, ClientUpdate: for each of E local epochs, shuffle, cut into batches of size B, and for
each batch ``w <- w - lr * grad(w; batch)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, Self, dataclass_transform

from numpy.typing import NDArray

from fedsim.checks import check_flag, check_integer, check_real, convert_fields
from fedsim.clients.base import Affine, Context, ServerContext, ServerHalf
from fedsim.errors import ConfigError
from fedsim.models import mlp

Array = NDArray[Any]


@dataclass_transform(frozen_default=True)
class ClientStrategy:
    """Makes every subclass a frozen dataclass, so that a strategy needs no decorator to declare hyperparameters."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)


class SGD(ClientStrategy):
    """Minibatch SGD; extend it and override any of its methods to make a strategy of your own.

    docs/extend.md goes through them one by one.

    Parameters
    ----------
    lr : float
        Step size, greater than 0.
    epochs : int
        Passes over the client's examples per round (the paper's E), at least 1.
    batch_size : int or None
        Examples per step (the paper's B), at least 1; the last batch of an epoch may be smaller. None is the
        client's whole shard (the paper's B = infinity).
    momentum : float
        At least 0 and less than 1: ``v = momentum * v + direction``, ``w -= lr * v``, with v = 0 when a round starts
        (the form of PyTorch's SGD).
    weight_decay : float
        At least 0: the gradient is of the loss plus ``weight_decay / 2 * ||w||^2``, biases included.
    lr_decay : float
        Greater than 0 and at most 1: the step size is ``lr * lr_decay ** ((round - 1) // lr_decay_every)``, so with
        ``lr_decay_every`` 1 exponential and otherwise in steps. For another schedule override `learning_rate`.
    lr_decay_every : int
        Rounds, at least 1.
    steps : int, optional
        Steps per round in place of ``epochs``, at least 1: some papers count local work so. Default: ``epochs``.

    Raises
    ------
    ConfigError
        For any value outside these.
    """

    lr: float = 0.1
    epochs: int = 1
    batch_size: int | None = 10
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    lr_decay_every: int = 1
    steps: int | None = None

    #: Names of the server half's state that are sent down with the weights.
    broadcast: ClassVar[tuple[str, ...]] = ()
    #: Whether `weigh` returns a column per group, so that each group of clients has a mean of its own.
    grouped: ClassVar[bool] = False
    #: Hyperparameters with which the global model is SGD's; None where there are none. `fedsim.testing` checks it.
    neutral: ClassVar[Mapping[str, Any] | None] = None

    def __post_init__(self) -> None:
        convert_fields(self)
        name = type(self).__name__
        for field in fields(self):
            if field.type in (bool, "bool"):
                check_flag(f"{name}'s {field.name}", getattr(self, field.name))
        check_real(f"{name}'s lr", self.lr, 0, open_low=True)
        check_integer(f"{name}'s epochs", self.epochs, 1)
        if self.batch_size is not None:
            check_integer(f"{name}'s batch_size", self.batch_size, 1)
        check_real(f"{name}'s momentum", self.momentum, 0, 1, open_high=True)
        check_real(f"{name}'s weight_decay", self.weight_decay, 0)
        check_real(f"{name}'s lr_decay", self.lr_decay, 0, 1, open_low=True)
        check_integer(f"{name}'s lr_decay_every", self.lr_decay_every, 1)
        if self.steps is not None:
            check_integer(f"{name}'s steps", self.steps, 1)

    @classmethod
    def of(cls, other: SGD, **changes: Any) -> Self:
        """Return a strategy of this class with another's SGD hyperparameters, but for `changes`."""
        return cls(**{f.name: getattr(other, f.name) for f in fields(SGD)} | changes)

    def __str__(self) -> str:
        """Return a short label: the class and whatever differs from its defaults."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})" if changed else type(self).__name__

    # One step.

    def affine(self, ctx: Context) -> Affine:
        """Return what every step adds to the gradient, where that can be said as data; any kernel runs it.

        Asked once per fit, so it must not depend on the current weights but through `Affine`.

        Parameters
        ----------
        ctx : Context

        Returns
        -------
        Affine
        """
        return Affine()

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Return the loss on each client's current batch and its gradient; override it to change the loss.

        Parameters
        ----------
        weights : ndarray, shape (clients, parameters)
            Each client's current weights; read only.
        x : ndarray, shape (clients, batch, features)
        y : ndarray, shape (clients, batch)
        ctx : Context

        Returns
        -------
        loss : ndarray, shape (clients,)
        grad : ndarray, shape (clients, parameters)
            Without weight decay, which is added afterwards.
        """
        return mlp.gradient(ctx.net, weights, x, y)

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        """Return what a step subtracts, before momentum and before it is scaled by the step size.

        Parameters
        ----------
        grad : ndarray, shape (clients, parameters)
            Of each client's current batch, with weight decay and what `affine` adds; may be overwritten.
        weights : ndarray, shape (clients, parameters)
            Each client's current weights; read only.
        ctx : Context

        Returns
        -------
        ndarray, shape (clients, parameters)
        """
        return grad

    # One round.

    def train(self, ctx: Context) -> Array:
        """Train in one round: what comes before the fit is its start, what comes after it its end.

        Parameters
        ----------
        ctx : Context

        Returns
        -------
        ndarray, shape (clients, parameters)
            The weights to send up.
        """
        return ctx.fit()

    def learning_rate(self, ctx: Context) -> float | Array:
        """Return the step size of this round, or each client's own, shape (clients,)."""
        return self.lr * self.lr_decay ** ((ctx.round - 1) // self.lr_decay_every)

    def local_steps(self, ctx: Context) -> int | Array:
        """Return how many steps to take in a fit, or each client's own number, shape (clients,); at least 1."""
        if self.steps is not None:
            return self.steps
        return self.epochs * self.steps_per_epoch(ctx)

    def steps_per_epoch(self, ctx: Context) -> Array:
        """Return how many batches each client's shard makes, shape (clients,)."""
        batches: Array = -(-ctx.num_examples // (self.batch_size or ctx.num_examples))
        return batches

    def effective_steps(self, ctx: Context) -> Array:
        """Return the sum of the weights with which a round's gradients enter its update, shape (clients,).

        Without momentum the number of steps; with it FedNova's ``||a||_1`` (Wang et al., arXiv:2007.07481, section
        4.1): ``(weights sent - weights received) / (lr * effective_steps)`` is minus their weighted mean.
        """
        rho, steps = self.momentum, ctx.steps
        effective: Array = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        return effective

    # What a client keeps, and uses itself.

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Return what clients enter their first round with in `ctx.state`: name -> array with a row per client."""
        return {}

    def private_layers(self, net: mlp.MLP) -> Sequence[int]:
        """Return the numbers of the layers, from 1, that clients keep: neither sent up nor taken from the server."""
        return ()

    def personalise(self, ctx: Context) -> Array:
        """Return the weights with which each client would predict, shape (clients, parameters) or (1, parameters).

        Asked when clients evaluate; `ctx.state` is what they kept, `ctx.global_weights` the newest global model.
        """
        return ctx.start

    # The server half.

    def server_state(self, weights: Array, half: ServerHalf) -> Mapping[str, Array]:
        """Return the server half's state before the first round, given the initial global weights."""
        return {}

    def weigh(self, num_examples: Array, up: Mapping[str, Array]) -> Array:
        """Return each client's weight in the round's means, shape (clients,), or (clients, groups) for a mean each."""
        return num_examples

    def server_step(self, ctx: ServerContext) -> Array:
        """Return the round's outcome, shape (parameters,), which the server strategy makes the new global weights."""
        return ctx.mean["weights"]

    def configured(self, config: Mapping[str, Any]) -> Self:
        """Apply what the server sent: a key that names a hyperparameter (dashes for underscores) replaces it.

        Raises
        ------
        ConfigError
            The server's strategy relies on a proximal term (``proximal-mu``, as Flower's FedProx sends) that this
            client strategy does not have.
        """
        known = {f.name for f in fields(self)}
        sent = {key.replace("-", "_"): value for key, value in config.items()}
        if sent.get("proximal_mu") and "proximal_mu" not in known:
            raise ConfigError(
                f"the server sends proximal-mu = {sent['proximal_mu']} but the client strategy "
                f"{type(self).__name__} has no proximal_mu; use clients.FedProx"
            )
        changes = {key: value for key, value in sent.items() if key in known}
        return replace(self, **changes) if changes else self


def needs_softmax(strategy: SGD, net: mlp.MLP) -> None:
    """Raise ConfigError unless the network's loss is the softmax cross-entropy."""
    if net.loss != "cross_entropy":
        raise ConfigError(
            f"{type(strategy).__name__} changes the softmax, and loss is {net.loss!r}; allowed: cross_entropy"
        )


def count_layers(field: str, value: int, net: mlp.MLP) -> int:
    """Return how many layers a network has; raise ConfigError unless `value` of them leave at least one other."""
    depth = len(net.sizes) - 1
    check_integer(field, value, 1, depth - 1)
    return depth
