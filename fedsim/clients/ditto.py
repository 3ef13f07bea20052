"""Ditto: in addition to the global model, a personal model that is regularised towards it.

Li, Hu, Beirami and Smith, "Ditto: fair and robust federated learning through personalization", ICML 2021
(arXiv:2012.04221), eq. 2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.checks import Interval
from fedsim.clients.context import Array, Context
from fedsim.clients.fedprox import FedProx
from fedsim.clients.sgd import SGD


class Ditto(SGD):
    """SGD on the global model and on a private personal model with the loss ``F_k(v) + lam/2 ||v - w_t||^2``.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD, for both models.
    lam : float
        Strength of the regularisation, at least 0; with 0 the personal model is independent of the global one.
        The paper tunes it among 0.05, 0.1, 0.2, 0.5, 1 and 2.
    """

    lam: float = 0.1
    neutral = {}
    limits = {"lam": Interval(0)}

    def client_state(self, ctx: Context) -> Mapping[str, Array]:
        """Initialise the personal model with the global one."""
        return {"personal": np.repeat(ctx.global_weights[None], len(ctx.partition_ids), axis=0)}

    def train(self, ctx: Context) -> Array:
        """Train both models."""
        weights = ctx.fit()
        ctx.state["personal"] = ctx.fit(ctx.state["personal"], by=FedProx.of(self, proximal_mu=self.lam))
        return weights

    def personalise(self, ctx: Context) -> Array:
        """Return the personal model."""
        return ctx.state["personal"]
