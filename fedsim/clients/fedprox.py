"""FedProx's client: SGD on the loss plus a proximal term, which pulls the weights towards the global ones.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated optimization in heterogeneous networks", MLSys 2020
(arXiv:1812.06127), eq. 2: ``h(w; w_t) = F_k(w) + mu/2 ||w - w_t||^2``.
"""

from __future__ import annotations

from fedsim.checks import Interval
from fedsim.clients.context import Context
from fedsim.clients.sgd import SGD, Affine


class FedProx(SGD):
    """SGD with a proximal term.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay
        As for SGD.
    proximal_mu : float
        Strength of the proximal term, at least 0; with 0 this is SGD. The name is that of Flower's FedProx.
    """

    proximal_mu: float = 0.01
    neutral = {"proximal_mu": 0.0}
    limits = {"proximal_mu": Interval(0)}

    def affine(self, ctx: Context) -> Affine:
        """Return the proximal term."""
        return Affine(mu=self.proximal_mu)
