"""SCAFFOLD: control variates that correct each client's drift.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: stochastic controlled averaging for federated learning",
ICML 2020 (arXiv:1910.06378), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.server_hooks import ServerContext, ServerHooks
from fedsim.clients.sgd import SGD, Affine


class SCAFFOLD(SGD):
    """SGD on ``gradient - c_i + c``, with c_i the client's own control variate and c the server's.

    The paper's global learning rate is that of the server strategy (1 with FedAvg; FedAvgM has
    ``server_learning_rate``). With unequal shards c is the mean of the c_i weighted by examples, like the objective.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    option : {1, 2}
        How a client updates its c_i (the paper's line 12): 1, the gradient of all its examples at the global weights,
        which takes an additional pass; 2, the mean of the gradients of its steps.
    """

    option: int = 2
    broadcast = ("control",)
    limits = {"option": Interval(1, 2)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Initialise c_i with 0."""
        return {"control": np.zeros((len(ctx.partition_ids), ctx.global_weights.size), ctx.model.dtype)}

    def server_state(self, weights: Array, server_hooks: ServerHooks) -> Mapping[str, Array]:
        """Initialise c with 0."""
        return {"control": np.zeros_like(weights)}

    def affine(self, ctx: Context) -> Affine:
        """Add c - c_i (line 10)."""
        return Affine(correction=ctx.down["control"] - ctx.state["control"])

    def train(self, ctx: Context) -> Array:
        """Train, and update c_i (lines 12 and 13)."""
        weights, old = ctx.fit(), ctx.state["control"]
        if self.option == 1:
            new = ctx.full_gradient(ctx.global_weights)[1] + self.weight_decay * ctx.global_weights
        else:
            path = (ctx.lr * self.effective_steps(ctx))[:, None].astype(weights.dtype)
            new = old - ctx.down["control"] + (ctx.global_weights - weights) / path
        ctx.up["control"], ctx.state["control"] = new - old, new
        return weights

    def server_step(self, ctx: ServerContext) -> Array:
        """Move c by the cohort's share of the mean change (line 17)."""
        ctx.state["control"] = ctx.state["control"] + ctx.share * ctx.mean["control"]
        return ctx.mean["weights"]
