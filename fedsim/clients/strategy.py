"""The base class of client strategies: the hooks of a client's round and of the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

from fedsim.arguments import CheckedInit
from fedsim.checks import Interval, check_fields
from fedsim.errors import ConfigError
from fedsim.models import Array, Group, Model
from fedsim.objects import short_repr

if TYPE_CHECKING:
    from fedsim.clients.context import Context
    from fedsim.clients.server_hooks import ServerContext, ServerHooks


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class ClientStrategy(CheckedInit, ABC):
    """A client's local algorithm; extend `SGD` for a variant of SGD, and this class for any other algorithm.

    Every subclass becomes a frozen dataclass, so annotated class attributes are its hyperparameters. `train` must be
    defined; every other hook has a default. docs/extend.md describes the hooks one by one.
    """

    #: Names of the server state that is sent to clients with the weights.
    broadcast: ClassVar[tuple[str, ...]] = ()
    #: Whether `weigh` returns one column per group of clients, for a separate mean of each group.
    grouped: ClassVar[bool] = False
    #: Hyperparameters with which the global model equals SGD's, or None; checked by `fedsim.testing`.
    neutral: ClassVar[Mapping[str, Any] | None] = None
    #: Allowed values of numeric hyperparameters, in addition to those of the base class.
    limits: ClassVar[Mapping[str, Interval]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        """Return a short label: the class and the hyperparameters that differ from their defaults."""
        return short_repr(self).removesuffix("()")

    # A client's round.

    @abstractmethod
    def train(self, ctx: Context) -> Array:
        """Train in one round.

        Parameters
        ----------
        ctx : Context

        Returns
        -------
        ndarray, shape (clients, parameters)
            The weights to send to the server.
        """

    def examples_per_round(self, num_examples: Array) -> Array:
        """Return the number of examples on which each client trains in a round, including repetitions.

        An estimate of the cost, for the choice of the kernel and of the blocks. Default: every example once.

        Parameters
        ----------
        num_examples : ndarray, shape (clients,)
        """
        return num_examples

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Return the client state before a client's first round, as arrays by name with a row per client."""
        return {}

    def private_groups(self, model: Model) -> Sequence[Group]:
        """Return the ``model.groups`` that are private: neither sent to the server nor received from it."""
        return ()

    def personalise(self, ctx: Context) -> Array:
        """Return the weights with which each client predicts, shape (clients, parameters) or (1, parameters).

        Called when clients evaluate; ``ctx.global_weights`` is the newest global model.
        """
        return ctx.start

    # The server's part.

    @property
    def one_model(self) -> bool:
        """Whether the global model is for all clients; if it is not, scores of the global model are blank."""
        return True

    def server_state(self, weights: Array, server_hooks: ServerHooks) -> Mapping[str, Array]:
        """Return the server state before the first round, given the initial global weights."""
        return {}

    def weigh(self, num_examples: Array, up: Mapping[str, Array]) -> Array:
        """Return each client's weight in the round's means, shape (clients,), or (clients, groups) if `grouped`."""
        return num_examples

    def server_step(self, ctx: ServerContext) -> Array:
        """Return the combined weights, shape (parameters,), from which the server strategy makes the global ones."""
        return ctx.mean["weights"]

    def configured(self, config: Mapping[str, Any]) -> Self:
        """Return a copy with the hyperparameters that the server sent, whose names may have dashes for underscores.

        Raises
        ------
        ConfigError
            The server sends a ``proximal-mu``, as Flower's FedProx does, and this client strategy has no proximal term.
        """
        known = {f.name for f in fields(self)}
        sent = {key.replace("-", "_"): value for key, value in config.items()}
        if sent.get("proximal_mu") and "proximal_mu" not in known:
            value, name = sent["proximal_mu"], type(self).__name__
            raise ConfigError(f"the server sends proximal-mu = {value}, which {name} lacks; use clients.FedProx")
        changes = {key: value for key, value in sent.items() if key in known}
        return replace(self, **changes) if changes else self
