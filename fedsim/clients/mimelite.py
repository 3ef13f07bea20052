"""MimeLite: clients apply the server's momentum, constant during a round, in their own steps.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the centralized barrier for cross-device federated
learning", NeurIPS 2021 (arXiv:2008.03606), algorithm 1, MimeLite with SGD with momentum as the base algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.server_hooks import ServerContext, ServerHooks
from fedsim.clients.sgd import SGD, Affine


class MimeLite(SGD):
    """Steps along ``(1 - beta) * gradient + beta * m`` with m the server's average of past full gradients.

    Weight decay is part of the loss, so both gradients include it.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD; ``momentum`` is a second, local momentum, which is 0 at the start of each round.
    beta : float
        At least 0 and less than 1; 0 is SGD.
    """

    beta: float = 0.9
    broadcast = ("m",)
    neutral = {"beta": 0.0}
    limits = {"beta": Interval(0, 1, open_high=True)}

    def server_state(self, weights: Array, server_hooks: ServerHooks) -> Mapping[str, Array]:
        """Initialise m with 0."""
        return {"m": np.zeros_like(weights)}

    def learning_rate(self, ctx: Context) -> float | Array:
        """Multiply by 1 - beta, which scales the gradient and the term of `affine`."""
        return super().learning_rate(ctx) * (1 - self.beta)

    def affine(self, ctx: Context) -> Affine:
        """Add m with the factor that `learning_rate` scales to beta."""
        return Affine(correction=self.beta / (1 - self.beta) * ctx.down["m"])

    def train(self, ctx: Context) -> Array:
        """Train, and send the gradient of all examples at the global weights."""
        ctx.up["gradient"] = ctx.full_gradient(ctx.global_weights)[1] + self.weight_decay * ctx.global_weights
        return ctx.fit()

    def server_step(self, ctx: ServerContext) -> Array:
        """Average the gradients into m."""
        ctx.state["m"] = self.beta * ctx.state["m"] + (1 - self.beta) * ctx.mean["gradient"]
        return ctx.mean["weights"]
