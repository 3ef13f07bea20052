"""FedSGD: one gradient per client and round, so that federated training is data-parallel SGD.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017
(arXiv:1602.05629), section 2: ``w <- w - lr * sum_k n_k / n * g_k`` with g_k the gradient on client k's examples.
"""

from __future__ import annotations

from fedsim.clients.sgd import SGD


class FedSGD(SGD):
    """One step per round on the whole shard, or with `batch_size` on a random batch of it.

    The mean of the weights after one step is a step along the mean gradient: if all clients take part, this is
    full-batch gradient descent on all data, or with `batch_size` synchronous data-parallel minibatch SGD.

    Parameters
    ----------
    lr, epochs, batch_size, momentum, weight_decay, lr_decay, lr_decay_every, steps
        As for SGD, but ``batch_size`` None and ``steps`` 1 by default.
    """

    batch_size: int | None = None
    steps: int | None = 1
    neutral = {"batch_size": 10, "steps": None}
