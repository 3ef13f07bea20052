"""FedALA: each client learns, weight by weight, how much of the global model to take in.

Zhang, Hua, Wang, Song, Xue, Ma and Guan, "FedALA: adaptive local aggregation for personalized federated learning",
AAAI 2023 (arXiv:2212.01197), eq. 4 to 6 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


class _Mixing(SGD):
    """Descent on mixing weights in [0, 1]: the model's weights are ``last + (global - last) * mixing``."""

    first_epochs: int = 1

    def local_steps(self, ctx: Context) -> Array:
        epochs = np.where(ctx.state["rounds"][:, 0] == 1, self.first_epochs, 1)
        steps: Array = epochs * self.steps_per_epoch(ctx)
        return steps

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        way = ctx.global_weights - ctx.state["last"]
        loss, grad = ctx.model.loss_and_gradient(ctx.state["last"] + way * weights, x, y)
        return loss, grad * way

    def direction(self, grad: Array, weights: Array, ctx: Context) -> Array:
        stepped = np.clip(weights - self.lr * grad, 0, 1)
        direction: Array = (weights - stepped) / self.lr
        return direction


class FedALA(SGD):
    """SGD that starts each round from a mixture of the client's last model and the global one.

    The mixing weights of the last `mixed_layers` are trained on the client's examples (all of them, where the paper
    samples 80 %) and kept; lower layers are taken from the global model.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    mixed_layers : int
        Number of layers (the model's groups of parameters), the paper's p, at least 1.
    mixing_lr : float
        The paper's eta, greater than 0; 1 there.
    first_epochs : int
        Passes over its examples in which a client learns its first mixing weights (the paper trains them until they
        settle), at least 1; later rounds take one.
    """

    mixed_layers: int = 1
    mixing_lr: float = 1.0
    first_epochs: int = 10
    limits = {"mixed_layers": Interval(1), "mixing_lr": Interval(0, open_low=True), "first_epochs": Interval(1)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Start with the global model as the last one, and mixing weights of 1."""
        last = np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)
        return {"last": last, "mixing": np.ones_like(last), "rounds": np.zeros((len(last), 1), np.int64)}

    def _mix(self, ctx: Context) -> tuple[Array, Array]:
        mixed = ctx.model.groups[-self.mixed_layers :]
        how = _Mixing.of(
            self, lr=self.mixing_lr, momentum=0.0, weight_decay=0.0, lr_decay=1.0, first_epochs=self.first_epochs
        )
        mixing = ctx.fit(ctx.state["mixing"], by=how, groups=mixed)
        start = np.repeat(ctx.global_weights[None], len(mixing), axis=0)
        for name in (name for group in mixed for name in group):
            place = ctx.model.layout[name][0]
            last, new = ctx.state["last"][:, place], ctx.global_weights[place]
            start[:, place] = last + (new - last) * mixing[:, place]
        return start, mixing

    def train(self, ctx: Context) -> Array:
        """Mix, train from the mixture, and store both."""
        start, ctx.state["mixing"] = self._mix(ctx)
        weights = ctx.fit(start)
        ctx.state["last"], ctx.state["rounds"] = weights.copy(), ctx.state["rounds"] + 1
        return weights

    def personalise(self, ctx: Context) -> Array:
        """Mix with the newest global model."""
        return self._mix(ctx)[0]
