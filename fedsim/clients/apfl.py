"""APFL: each client uses a mixture of a local model and the global one, with a weight that it can learn.

Deng, Kamani and Mahdavi, "Adaptive personalized federated learning", 2020 (arXiv:2003.13461), algorithm 1 and eq. 5.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


class APFL(SGD):
    """SGD on the global model and, in the same steps, on a local model, with the loss of their mixture.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD; momentum and weight decay apply to the global model only.
    alpha : float
        Initial weight of the local model in the mixture, 0 to 1; with 0 this is SGD.
    adaptive : bool
        Whether each client learns its own alpha: before it trains, it takes one step of gradient descent on the loss of
        its mixture with the new global model over all its examples.
    """

    alpha: float = 0.5
    adaptive: bool = False
    neutral = {"alpha": 0.0}
    limits = {"alpha": Interval(0, 1)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Initialise the local model with the global one."""
        clients = len(ctx.partition_ids)
        alpha = np.full((clients, 1), self.alpha, dtype=ctx.model.dtype)
        return {"local": np.repeat(ctx.global_weights[None], clients, axis=0), "alpha": alpha}

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Update the local model (line 7); return the loss and gradient of the global model."""
        local, alpha = ctx.state["local"], ctx.state["alpha"]
        lr = ctx.lr[:, None].astype(weights.dtype)
        _, grad = ctx.model.loss_and_gradient(alpha * local + (1 - alpha) * weights, x, y)
        ctx.state["local"] = local - lr * alpha * grad
        return ctx.model.loss_and_gradient(weights, x, y)

    def train(self, ctx: Context) -> Array:
        """Update alpha (eq. 5), then train both models."""
        if self.adaptive:
            alpha, difference = ctx.state["alpha"], ctx.state["local"] - ctx.global_weights
            _, grad = ctx.full_gradient(self.personalise(ctx))
            slope = np.sum(difference * grad, axis=1, keepdims=True)
            ctx.state["alpha"] = np.clip(alpha - ctx.lr[:, None].astype(alpha.dtype) * slope, 0, 1)
        return ctx.fit()

    def personalise(self, ctx: Context) -> Array:
        """Return the mixture of both models."""
        alpha = ctx.state["alpha"]
        return alpha * ctx.state["local"] + (1 - alpha) * ctx.global_weights
