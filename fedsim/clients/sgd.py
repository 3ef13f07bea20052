"""FedAvg's client, and the class every client strategy extends: minibatch SGD on the client's own examples.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017
(arXiv:1602.05629), algorithm 1, ClientUpdate: for each of E local epochs, shuffle, cut into batches of size B, and for
each batch ``w <- w - lr * grad(w; batch)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple, Self, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError, real, whole

Array = NDArray[Any]


@dataclass(frozen=True)
class Context:
    """What a client strategy may know besides gradient and weights.

    Attributes
    ----------
    round : int
        From 1.
    partition_ids : ndarray of int, shape (clients,)
        Which clients the rows belong to.
    num_examples : ndarray of int, shape (clients,)
    global_weights : ndarray, shape (parameters,)
        What the server sent; read-only.
    """

    round: int
    partition_ids: NDArray[np.intp]
    num_examples: NDArray[np.intp]
    global_weights: Array

    def rows(self, select: slice | NDArray[np.intp]) -> Context:
        """Return the context of some of the rows."""
        return replace(self, partition_ids=self.partition_ids[select], num_examples=self.num_examples[select])


class Affine(NamedTuple):
    """What a strategy adds to the gradient, as data: ``mu * (weights - global_weights) + correction``.

    Attributes
    ----------
    mu : float
        Strength of the pull towards the weights the server sent.
    correction : ndarray, shape (clients, parameters) or (parameters,), optional
        Must not change within a round.
    """

    mu: float = 0.0
    correction: Array | None = None


@dataclass_transform(frozen_default=True)
class ClientStrategy:
    """Makes every subclass a frozen dataclass, so that a strategy needs no decorator to declare hyperparameters."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)


class SGD(ClientStrategy):
    """Minibatch SGD; extend it and override `affine` or `direction` to make a strategy of your own.

    `affine` is for what can be said as data, and runs in the compiled kernel; `direction` is for any other NumPy.

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

    def __post_init__(self) -> None:
        name = type(self).__name__
        real(f"{name}'s lr", self.lr, 0, open_low=True)
        whole(f"{name}'s epochs", self.epochs, 1)
        if self.batch_size is not None:
            whole(f"{name}'s batch_size", self.batch_size, 1)
        real(f"{name}'s momentum", self.momentum, 0, 1, open_high=True)
        real(f"{name}'s weight_decay", self.weight_decay, 0)

    def __str__(self) -> str:
        """Return a short label: the class and whatever differs from its defaults."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})" if changed else type(self).__name__

    def affine(self, ctx: Context) -> Affine:
        """Return what a step adds to the gradient, where that can be said as data.

        Parameters
        ----------
        ctx : Context

        Returns
        -------
        Affine
        """
        return Affine()

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        """Return what a step subtracts, before momentum and before it is scaled by `lr`; by default, see `affine`.

        Parameters
        ----------
        grad : ndarray, shape (clients, parameters)
            Of the mean loss over each client's current batch, weight decay included; may be overwritten.
        weights : ndarray, shape (clients, parameters)
            Each client's current weights; read only.
        ctx : Context

        Returns
        -------
        ndarray, shape (clients, parameters)
        """
        mu, correction = self.affine(ctx)
        if mu:
            grad += mu * (weights - ctx.global_weights)
        if correction is not None:
            grad += correction
        return grad

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
