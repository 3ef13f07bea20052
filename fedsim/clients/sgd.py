"""FedAvg's client, the base of most client strategies: minibatch SGD on the client's own examples.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017
(arXiv:1602.05629), algorithm 1, ClientUpdate: for each of E local epochs, shuffle, cut into batches of size B, and for
each batch ``w <- w - lr * grad(w; batch)``.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.strategy import ClientStrategy
from fedsim.errors import ConfigError
from fedsim.models import Array

if TYPE_CHECKING:
    from fedsim.clients.context import Context


class Affine(NamedTuple):
    """The term that a strategy adds to the gradient, given as data: ``mu * (weights - center) + correction``.

    Attributes
    ----------
    mu : float
        Strength of the pull towards the center.
    correction : ndarray, shape (clients, parameters) or (parameters,), optional
        Constant during a fit.
    center : ndarray, shape (clients, parameters) or (parameters,), optional
        Default: the global weights.
    """

    mu: float = 0.0
    correction: Array | None = None
    center: Array | None = None


class SGD(ClientStrategy):
    """Minibatch SGD on the client's own examples.

    Subclasses may override the hooks of a step and those of a round.

    Parameters
    ----------
    lr : float
        Learning rate, greater than 0.
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
        Greater than 0 and at most 1: the learning rate is ``lr * lr_decay ** ((round - 1) // lr_decay_every)``. For
        another schedule override `learning_rate`.
    lr_decay_every : int
        Rounds, at least 1.
    steps : int, optional
        Steps per round, at least 1, instead of ``epochs``.

    Raises
    ------
    ConfigError
        A hyperparameter has another value.
    """

    lr: float = 0.1
    epochs: int = 1
    batch_size: int | None = 10
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    lr_decay_every: int = 1
    steps: int | None = None
    limits = {
        "lr": Interval(0, open_low=True),
        "epochs": Interval(1),
        "batch_size": Interval(1),
        "momentum": Interval(0, 1, open_high=True),
        "weight_decay": Interval(0),
        "lr_decay": Interval(0, 1, open_low=True),
        "lr_decay_every": Interval(1),
        "steps": Interval(1),
    }

    @classmethod
    def of(cls, other: ClientStrategy, **changes: Any) -> Self:
        """Return a strategy of this class with the SGD hyperparameters of another strategy, except for `changes`.

        Raises
        ------
        ConfigError
            The other strategy does not extend SGD.
        """
        if not isinstance(other, SGD):
            raise ConfigError(f"{type(other).__name__} has no hyperparameters of SGD; allowed here: a subclass of SGD")
        return cls(**{f.name: getattr(other, f.name) for f in fields(SGD)} | changes)

    # One step.

    def affine(self, ctx: Context) -> Affine:
        """Return the term that every step adds to the gradient, as data that every kernel can use.

        Called once per fit; except for the form of `Affine`, it must not depend on the current weights.

        Parameters
        ----------
        ctx : Context

        Returns
        -------
        Affine
        """
        return Affine()

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Return the loss on each client's current batch and its gradient; override this method to change the loss.

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
        return ctx.model.loss_and_gradient(weights, x, y)

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        """Return the direction that a step subtracts, before momentum and before scaling by the learning rate.

        Parameters
        ----------
        grad : ndarray, shape (clients, parameters)
            Gradient on each client's current batch, with weight decay and the term of `affine`; may be overwritten.
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
        """Run one fit."""
        return ctx.fit()

    def examples_per_round(self, num_examples: Array) -> Array:
        """Return the number of examples in the epochs or steps of a round; see `ClientStrategy`."""
        if self.steps is None:
            return self.epochs * num_examples
        return self.steps * np.minimum(num_examples, self.batch_size or np.inf)

    def learning_rate(self, ctx: Context) -> float | Array:
        """Return the learning rate of this round, or each client's own, shape (clients,)."""
        return self.lr * self.lr_decay ** ((ctx.round - 1) // self.lr_decay_every)

    def local_steps(self, ctx: Context) -> int | Array:
        """Return the number of steps of a fit, or each client's own, shape (clients,); at least 1."""
        if self.steps is not None:
            return self.steps
        return self.epochs * self.steps_per_epoch(ctx)

    def steps_per_epoch(self, ctx: Context) -> Array:
        """Return the number of batches in each client's shard, shape (clients,)."""
        return -(-ctx.num_examples // (self.batch_size or ctx.num_examples))

    def effective_steps(self, ctx: Context) -> Array:
        """Return the sum of the weights of a round's gradients in its update, shape (clients,).

        Without momentum this is the number of steps, with momentum FedNova's ``||a||_1`` (Wang et al.,
        arXiv:2007.07481, section 4.1): ``(weights received - weights sent) / (lr * effective_steps)`` is the weighted
        mean of the gradients.
        """
        rho, steps = self.momentum, ctx.steps
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


def overrides(strategy: ClientStrategy, *hooks: str) -> bool:
    """Return whether a strategy overrides any of these hooks of `SGD` and `ClientStrategy`."""
    own, bases = type(strategy), (ClientStrategy, SGD)
    return any(getattr(own, hook, None) not in [getattr(base, hook, None) for base in bases] for hook in hooks)


def numpy_hooks(strategy: ClientStrategy) -> str:
    """Name the hook of a step that only the NumPy kernel can call; empty if the strategy overrides none."""
    return next((f"{type(strategy).__name__}'s {h}()" for h in ("gradient", "direction") if overrides(strategy, h)), "")
