"""IFCA: several global models, each trained by the clients whose examples it fits best.

Ghosh, Chung, Yin and Ramchandran, "An efficient framework for clustered federated learning", NeurIPS 2020
(arXiv:2006.04088), algorithm 1 with model averaging.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.server_hooks import ServerContext, ServerHooks
from fedsim.clients.sgd import SGD


class IFCA(SGD):
    """SGD that starts from the global model, of `clusters` models, with the lowest loss on the client's examples.

    The first model is the one in `Result.weights`; the others have different initial weights. There is no one model for
    all clients, so that the test score is blank. The clusters depend on the initial models: if one of them is the best
    for all clients, all clients train it. As in the paper, try several seeds, or more clusters than you expect.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    clusters : int
        At least 1; 1 is SGD.
    """

    clusters: int = 2
    broadcast = ("others",)
    grouped = True
    neutral = {"clusters": 1}
    limits = {"clusters": Interval(1)}

    @property
    def one_model(self) -> bool:
        """Whether all clients are in one cluster."""
        return self.clusters == 1

    def server_state(self, weights: Array, server_hooks: ServerHooks) -> Mapping[str, Array]:
        """Draw the initial weights of the other models."""
        drawn = [server_hooks.draw_weights(k) for k in range(1, self.clusters)]
        return {"others": np.array(drawn, dtype=weights.dtype).reshape(-1, weights.size)}

    def _choose(self, ctx: Context) -> tuple[Array, Array]:
        models = np.concatenate([ctx.global_weights[None], ctx.down["others"]])
        losses = np.array([ctx.evaluate(model)[0] for model in models])
        choice = np.where(np.isfinite(losses), losses, np.inf).argmin(axis=0)
        return models[choice], choice

    def train(self, ctx: Context) -> Array:
        """Choose a model and train it."""
        start, choice = self._choose(ctx)
        ctx.up["cluster"] = np.eye(self.clusters, dtype=np.int8)[choice]
        return ctx.fit(start)

    def personalise(self, ctx: Context) -> Array:
        """Return the model of the client's cluster."""
        return self._choose(ctx)[0]

    def weigh(self, num_examples: Array, up: Mapping[str, Array]) -> Array:
        """Weight each client in the mean of its cluster only; a client that does not name one has weights of NaN."""
        cluster = up["cluster"]
        named = (cluster >= 0).all(axis=1) & (cluster.sum(axis=1) == 1)
        return np.where(named[:, None], num_examples[:, None] * cluster, np.nan)

    def server_step(self, ctx: ServerContext) -> Array:
        """Update each model that was trained."""
        old = np.concatenate([ctx.global_weights[None], ctx.state["others"]])
        mean = ctx.mean["weights"]
        new = np.where(np.isnan(mean), old, mean)
        ctx.state["others"] = new[1:].astype(old.dtype)
        return new[0]
