"""The server hooks of a client strategy, and their state between rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsim.clients.check_hooks import check_array, check_server_state, check_weights
from fedsim.clients.sgd import overrides
from fedsim.clients.strategy import ClientStrategy
from fedsim.errors import ConfigError
from fedsim.models import Array, Model
from fedsim.streams import Purpose, generator


@dataclass
class ServerContext:
    """The context of a client strategy's `server_step`.

    Attributes
    ----------
    round : int
    global_weights : ndarray, shape (parameters,)
        The weights at the start of the round; read-only.
    mean : dict of str to ndarray
        ``"weights"``, as combined by the server strategy, shape (parameters,), and the means of the other arrays that
        clients sent, weighted by `ClientStrategy.weigh` (by default the number of examples).
    state : dict of str to ndarray
        The server state, which `server_step` may change.
    share : float
        The cohort's share of the examples that all clients train on in this round, in (0, 1].
    """

    round: int
    global_weights: Array
    mean: dict[str, Array]
    state: dict[str, Array]
    share: float


class ServerHooks:
    """The server hooks of a client strategy, with the server state; fedsim's server strategies call them.

    Parameters
    ----------
    strategy : ClientStrategy
    model : Model
    num_examples : int or callable
        Number of training examples of all clients together; a function of the round, from 1, if it differs between
        rounds.
    seed : int
    """

    def __init__(
        self, strategy: ClientStrategy, model: Model, num_examples: int | Callable[[int], int], seed: int
    ) -> None:
        self.strategy, self.model, self.num_examples, self.seed = strategy, model, num_examples, seed
        self.state: dict[str, Array] | None = None

    def down(self, weights: Array) -> dict[str, Array]:
        """Return the arrays that are sent to clients besides the weights."""
        state, strategy = self._current_state(weights), self.strategy
        for name in (name for name in strategy.broadcast if name not in state):
            cls = type(strategy).__name__
            raise ConfigError(f"{cls}'s broadcast names {name}, which server_state() does not return")
        return {name: state[name] for name in strategy.broadcast}

    def _current_state(self, weights: Array) -> dict[str, Array]:
        if self.state is None:
            self.state = check_server_state(self.strategy, "server_state", self.strategy.server_state(weights, self))
        return self.state

    def draw_weights(self, number: int) -> Array:
        """Return the `number`-th additional set of initial weights, counted from 1, shape (parameters,)."""
        return self.model.init(generator(self.seed, Purpose.INIT, number))

    def total_examples(self, server_round: int) -> int:
        """Return the number of examples that all clients together train on in a round."""
        return self.num_examples(server_round) if callable(self.num_examples) else self.num_examples

    def step(self, server_round: int, weights: Array, mean: dict[str, Array], examples: float) -> Array:
        """Return the new global weights."""
        share = examples / self.total_examples(server_round)
        context = ServerContext(server_round, weights, mean, self._current_state(weights), share)
        combined, hook = self.strategy.server_step(context), "server_step"
        self.state = check_server_state(self.strategy, hook, context.state)
        return check_array(self.strategy, hook, "server_step() returned", combined, weights.shape, ("parameters",))

    def weigh(self, num_examples: Array, up: Mapping[str, Array]) -> Array:
        """Return each client's weight in the round's means, shape (clients,) or (clients, groups)."""
        return check_weights(self.strategy, self.strategy.weigh(num_examples, up), len(num_examples))


def needs_server_hooks(strategy: ClientStrategy) -> bool:
    """Return whether a client strategy needs a server strategy that calls its server hooks."""
    return bool(strategy.broadcast) or overrides(strategy, "server_step", "weigh")
