"""MOON: a contrastive loss between the representations of the current, the global and the client's last model.

Li, He and Song, "Model-contrastive federated learning", CVPR 2021 (arXiv:2103.16257), eq. 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.sgd import SGD


def _cosine(z: Array, other: Array) -> tuple[Array, Array]:
    """Return each example's cosine similarity and its derivative by `z`; both are 0 if a vector is 0 (dead ReLUs)."""
    tiny = np.sqrt(np.finfo(z.dtype).tiny)
    norm = np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), tiny)
    unit, target = z / norm, other / np.maximum(np.linalg.norm(other, axis=-1, keepdims=True), tiny)
    similarity = np.sum(unit * target, axis=-1, keepdims=True)
    return similarity[..., 0], (target - similarity * unit) / norm * (norm > tiny)


class MOON(SGD):
    """SGD on ``loss + mu * -log softmax(similarity to the global model, against that to the client's last)``.

    Representations are the model's, for the MLP the activations of its last hidden layer (the paper puts a projection
    head on a convolutional network); similarity is the cosine.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD.
    mu : float
        Weight of the contrastive loss, at least 0; 0 is SGD. The paper tunes it among 0.1, 1, 5 and 10.
    temperature : float
        Greater than 0; the paper's is 0.5.
    """

    mu: float = 1.0
    temperature: float = 0.5
    neutral = {"mu": 0.0}
    limits = {"mu": Interval(0), "temperature": Interval(0, open_low=True)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Initialise the last model with the global one, for which the contrastive loss has no gradient."""
        return {"last": np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)}

    def gradient(self, weights: Array, x: Array, y: Array, ctx: Context) -> tuple[Array, Array]:
        """Add the contrastive loss."""
        z_global = ctx.model.representation(ctx.global_weights[None], x)
        z_last = ctx.model.representation(ctx.state["last"], x)

        def contrast(z: Array) -> tuple[Array, Array]:
            near, by_near = _cosine(z, z_global)
            far, by_far = _cosine(z, z_last)
            margin = (near - far) / self.temperature
            wrong = 0.5 * (1 - np.tanh(margin / 2))  # 1 - softmax, without overflow
            by_z = (self.mu / self.temperature) * wrong[..., None] * (by_far - by_near)
            return self.mu * np.logaddexp(0, -margin), by_z

        return ctx.model.loss_and_gradient(weights, x, y, representation_loss=contrast)

    def train(self, ctx: Context) -> Array:
        """Train, and store the weights for the contrastive loss of the next round."""
        weights = ctx.fit()
        ctx.state["last"] = weights.copy()
        return weights
