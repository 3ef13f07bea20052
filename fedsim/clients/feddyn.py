"""FedDyn: a dynamic regulariser that makes the clients' optima agree with the global one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama, "Federated learning based on dynamic regularization",
ICLR 2021 (arXiv:2111.04263), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.server_hooks import ServerContext, ServerHooks
from fedsim.clients.sgd import SGD, Affine


class FedDyn(SGD):
    """SGD on ``F_k(w) - <g_k, w> + alpha/2 ||w - w_t||^2``, with g_k the client's gradient at its last weights.

    The paper's objective is the uniform mean of the clients' losses. Here it is the mean weighted by examples, and so
    are the mean of the weights and h; alpha is the same for all clients. The authors' code uses uniform means and
    divides alpha by the client's number of examples relative to the mean. Both have the same fixed points (the
    stationary points of the weighted mean), and with equally large shards both are the same algorithm.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    alpha : float
        Strength of the regulariser, greater than 0; the paper takes 0.01 to 0.1. It must be weak enough for the local
        problem to be nearly solved in a round, or the server's correction, divided by alpha, overshoots.
    """

    alpha: float = 0.1
    limits = {"alpha": Interval(0, open_low=True)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Initialise g_k with 0."""
        return {"gradient": np.zeros((len(ctx.partition_ids), ctx.global_weights.size), ctx.model.dtype)}

    def server_state(self, weights: Array, server_hooks: ServerHooks) -> Mapping[str, Array]:
        """Initialise h with 0."""
        return {"h": np.zeros_like(weights)}

    def affine(self, ctx: Context) -> Affine:
        """Subtract g_k and add the proximal term (line 7)."""
        return Affine(self.alpha, -ctx.state["gradient"])

    def train(self, ctx: Context) -> Array:
        """Train, and update g_k by the optimality condition (line 8)."""
        weights = ctx.fit()
        ctx.state["gradient"] = ctx.state["gradient"] - self.alpha * (weights - ctx.global_weights)
        return weights

    def server_step(self, ctx: ServerContext) -> Array:
        """Update h, the mean of all g_k, and correct the mean of the weights by it (lines 10 and 11)."""
        change = ctx.mean["weights"] - ctx.global_weights
        ctx.state["h"] = ctx.state["h"] - self.alpha * ctx.share * change
        return ctx.mean["weights"] - ctx.state["h"] / self.alpha
