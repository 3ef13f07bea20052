"""Every client strategy against its formula, written down a second time: one client at a time, matrix by matrix.

The reference shares nothing with fedsim but the streams that shuffle and sample: it has its own network, its own
backpropagation and its own local loop. Shards are ragged, cohorts partial, rounds several; momentum, weight decay and
a decaying learning rate are on unless a case says otherwise. Compared are the global model's loss in every round, the
training loss, each client's own model, and the final weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim import Experiment, clients
from fedsim.clients import SGD
from fedsim.clients.local_round import new_client_state, run_local_round
from fedsim.clients.moon import _cosine
from fedsim.clients.task import Task
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import MLP, named_arrays
from fedsim.splits import CountedSplit, Partition, Split, TimeOrdered
from fedsim.streams import Purpose, generator, keys, permutations

Array = NDArray[Any]

#: More than three batches of six, exactly two, one and a bit, one, and less than one.
SIZES = (23, 12, 9, 6, 4)
IN, HIDDEN, OUT = 5, 4, 3
SEED, ROUNDS, COHORT = 11, 4, 3
#: W1, b1, W2, b2, one after another.
CUTS = np.cumsum([0, IN * HIDDEN, HIDDEN, HIDDEN * OUT, OUT])
FIRST = np.arange(CUTS[-1]) < CUTS[2]
BASE: dict[str, Any] = {
    "lr": 0.3, "epochs": 2, "batch_size": 6, "momentum": 0.4, "weight_decay": 0.05, "lr_decay": 0.8
}  # fmt: skip


def _data() -> Dataset:
    """Clients whose inputs and labels differ; some clients lack a label."""
    rng = np.random.default_rng(5)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    x = rng.normal(size=(len(owner) + 40, IN))
    x[: len(owner)] += 0.5 * rng.normal(size=(len(SIZES), IN))[owner]
    y = (x @ rng.normal(size=(IN, OUT)) + rng.gumbel(size=(len(x), OUT))).argmax(axis=1)
    y[: len(owner)][(owner % 2 == 1) & (y[: len(owner)] == 2)] = 0
    return Dataset("ragged", x[:-40], y[:-40], x[-40:], y[-40:], OUT)


DATA = _data()


class Consecutive(CountedSplit):
    """Shards of SIZES, in the order of the examples."""

    def assign(self, labels: Array, rng: np.random.Generator) -> Partition:
        return Partition(np.arange(sum(SIZES)), np.concatenate([[0], np.cumsum(SIZES)]))


# The network: a hidden layer of tanh, softmax, cross-entropy.

Scores = Callable[[Array], tuple[Array, Array]]


def network(w: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return the hidden activations, the scores and the second matrix."""
    w1, b1, w2, b2 = (w[a:b] for a, b in itertools.pairwise(CUTS))
    hidden = np.tanh(x @ w1.reshape(IN, HIDDEN) + b1)
    matrix = w2.reshape(HIDDEN, OUT)
    return hidden, hidden @ matrix + b2, matrix


def loss_and_gradient(
    w: Array, x: Array, y: Array, scale: Any = 1.0, offset: Any = 0.0, by_hidden: Any = None
) -> tuple[float, Array]:
    """Return the mean cross-entropy of ``scale * scores - offset`` and its gradient.

    `by_hidden` gives a loss per example of the hidden activations and its derivative, to be added.
    """
    hidden, scores, matrix = network(w, x)
    z = scale * scores - offset
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y])
    delta = (p - np.eye(OUT)[y]) * scale / len(y)
    back = delta @ matrix.T
    if by_hidden:
        added, slope = by_hidden(hidden)
        loss, back = loss + added, back + slope / len(y)
    back = back * (1 - hidden**2)
    parts = (x.T @ back, back.sum(axis=0), hidden.T @ delta, delta.sum(axis=0))
    return float(loss.mean()), np.concatenate([part.ravel() for part in parts])


def test_the_references_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    w, x, y = rng.normal(size=CUTS[-1]), DATA.x_train[:7], DATA.y_train[:7]
    options: dict[str, Any] = {
        "scale": np.array([1, 0.3, 1]),
        "offset": np.array([0.5, 0, -1]),
        "by_hidden": lambda h: ((h**3).sum(axis=1), 3 * h**2),
    }
    for given in ({}, options):
        eye = 1e-6 * np.eye(len(w))
        slopes = [
            (loss_and_gradient(w + e, x, y, **given)[0] - loss_and_gradient(w - e, x, y, **given)[0]) for e in eye
        ]
        np.testing.assert_allclose(loss_and_gradient(w, x, y, **given)[1], np.array(slopes) / 2e-6, atol=1e-8)


# The frame: clients one after another, a dict each of what they keep, a server.


class Reference:
    """FedAvg; the others override what is different about them. `s` has the hyperparameters."""

    def __init__(self, s: Any, windows: int, rounds_per_window: int) -> None:
        self.s, self.windows, self.rounds_per_window = s, windows, rounds_per_window
        self.kept: dict[int, dict[str, Any]] = {}
        self.server: dict[str, Any] = {}
        self.loss = self.seen = 0.0
        self.round, self.evaluating = 0, False

    def shard(self, k: int) -> tuple[Array, Array]:
        """Return client k's examples of this round."""
        part = min((self.round - 1) // self.rounds_per_window, self.windows - 1)
        first = sum(SIZES[:k])
        a, b = (first + SIZES[k] * (part + end) // self.windows for end in (0, 1))
        return DATA.x_train[a:b], DATA.y_train[a:b]

    def sizes(self) -> list[int]:
        return [len(self.shard(k)[1]) for k in range(len(SIZES))]

    def lr(self) -> float:
        return float(self.s.lr * self.s.lr_decay ** (self.round - 1))

    def batches(
        self, k: int, epochs: int, first_epoch: int = 0, steps: int | None = None
    ) -> Iterator[tuple[Array, Array]]:
        """Yield client k's batches: each epoch shuffled anew, the last batch smaller."""
        x, y = self.shard(k)
        size = self.s.batch_size or len(y)
        purpose = Purpose.SHUFFLE_PERSONAL if self.evaluating else Purpose.SHUFFLE
        count = 0
        for epoch in itertools.count():
            if epoch == epochs and steps is None:
                return
            order = permutations(keys(SEED, purpose, self.round, k, first_epoch + epoch), np.array([len(y)]))[0]
            for a in range(0, len(y), size):
                if count == steps:
                    return
                count += 1
                yield x[order[a : a + size]], y[order[a : a + size]]

    def sgd(
        self,
        k: int,
        w: Array,
        *,
        epochs: int | None = None,
        first_epoch: int = 0,
        lr: float | None = None,
        momentum: float | None = None,
        decay: float | None = None,
        gradient: Any = None,
        add: Any = lambda w: 0.0,
        reshape: Any = lambda grad, w: grad,
        layers: Any = True,
    ) -> Array:
        """Return weights after the local loop, and count the loss before every step."""
        s = self.s
        lr = self.lr() if lr is None else lr
        momentum = s.momentum if momentum is None else momentum
        decay = s.weight_decay if decay is None else decay
        gradient = gradient or loss_and_gradient
        velocity = np.zeros_like(w)
        steps = s.steps if epochs is None else None
        for x, y in self.batches(k, epochs or s.epochs, first_epoch, steps):
            loss, grad = gradient(w, x, y)
            velocity = momentum * velocity + reshape(grad + decay * w + add(w), w)
            self.loss, self.seen = self.loss + loss * len(y), self.seen + len(y)
            w = w - lr * velocity * layers
        return w

    def steps(self, k: int) -> int:
        return sum(1 for _ in self.batches(k, self.s.epochs, 0, self.s.steps))

    def start(self, k: int, w: Array) -> dict[str, Any]:
        """Return what a client keeps before its first round."""
        return {}

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        """Return what a client sends; what else it sends goes into ``kept["up"]``."""
        return self.sgd(k, w)

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        """Return the new global weights, given what clients sent and their shares of the cohort's examples."""
        return sum((share[k] * v for k, v in sent.items()), np.zeros_like(w))

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        """Return the weights that a client would use."""
        return w

    def run(self, w: Array) -> tuple[Array, list[float], list[float], list[list[float]]]:
        """Return the final weights; each round's test loss and training loss; each client's loss in each round."""
        self.begin(w)
        tests, trains, owns = [], [], []
        for self.round in range(1, ROUNDS + 1):
            cohort = generator(SEED, Purpose.SAMPLE_TRAIN, self.round).choice(len(SIZES), COHORT, replace=False)
            sizes, sent = self.sizes(), {}
            total = sum(sizes[k] for k in cohort)
            share = {int(k): sizes[k] / total for k in cohort}
            mean = 0.0
            for k in share:
                self.loss = self.seen = 0.0
                kept = self.kept.setdefault(k, self.start(k, w))
                sent[k] = self.client(k, w, kept)
                mean += share[k] * self.loss / self.seen
            trains.append(mean)
            w = self.step(w, sent, share)
            tests.append(loss_and_gradient(w, DATA.x_test, DATA.y_test)[0])
            self.evaluating = True
            new = [self.kept.get(k) or self.start(k, w) for k in range(len(SIZES))]
            owns.append([loss_and_gradient(self.own(k, w, new[k]), *self.shard(k))[0] for k in range(len(SIZES))])
            self.evaluating = False
        return w, tests, trains, owns

    def begin(self, w: Array) -> None:
        """Set up what the server keeps."""

    def mean_up(self, share: dict[int, float], name: str = "up") -> Any:
        return sum(share[k] * self.kept[k][name] for k in share)


# The strategies.


class FedProxRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return self.sgd(k, w, add=lambda v: self.s.proximal_mu * (v - w))


class ClippedRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return self.sgd(k, w, reshape=lambda g, w: g * min(1, self.s.max_norm / np.linalg.norm(g)))


def effective(rho: float, steps: int) -> float:
    """Return the sum over gradients of how often each enters: gradient j is in step j, j + 1, ... with rho^i."""
    return float(sum(rho**i for j in range(steps) for i in range(steps - j)))


class ScaffoldRef(Reference):
    def begin(self, w: Array) -> None:
        self.server["c"] = np.zeros_like(w)
        self.before = np.zeros((len(SIZES), len(w)))

    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"c": np.zeros_like(w)}

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        c, own = self.server["c"], kept["c"]
        y = self.sgd(k, w, add=lambda _: c - own)
        if self.s.option == 1:
            new = loss_and_gradient(w, *self.shard(k))[1] + self.s.weight_decay * w
        else:
            new = own - c + (w - y) / (self.lr() * effective(self.s.momentum, self.steps(k)))
        kept["up"], kept["c"] = new - own, new
        return y

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        sizes = self.sizes()  # c moves by what the mean of all c_i, weighted by this round's examples, moves
        self.server["c"] = self.server["c"] + sum(sizes[k] / sum(sizes) * self.kept[k]["up"] for k in share)
        return super().step(w, sent, share)


class FedDynRef(Reference):
    def begin(self, w: Array) -> None:
        self.server["h"] = np.zeros_like(w)

    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"g": np.zeros_like(w)}

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        g, alpha = kept["g"], self.s.alpha
        new = self.sgd(k, w, add=lambda v: -g + alpha * (v - w))
        kept["g"] = g - alpha * (new - w)
        return new

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        sizes = self.sizes()
        moved = sum(sizes[k] / sum(sizes) * (sent[k] - w) for k in sent)
        self.server["h"] = self.server["h"] - self.s.alpha * moved
        return np.asarray(super().step(w, sent, share) - self.server["h"] / self.s.alpha)


class FedNovaRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        kept["a"] = effective(self.s.momentum, self.steps(k))
        return self.sgd(k, w)

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        mean = sum(share[k] * (sent[k] - w) / self.kept[k]["a"] for k in sent)
        return np.asarray(w + self.mean_up(share, "a") * mean)


class MimeLiteRef(Reference):
    def begin(self, w: Array) -> None:
        self.server["m"] = np.zeros_like(w)

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        beta, m = self.s.beta, self.server["m"]
        kept["up"] = loss_and_gradient(w, *self.shard(k))[1] + self.s.weight_decay * w
        return self.sgd(k, w, reshape=lambda g, _: (1 - beta) * g + beta * m)

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        self.server["m"] = self.s.beta * self.server["m"] + (1 - self.s.beta) * self.mean_up(share)
        return super().step(w, sent, share)


class FedLCRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        counts = np.bincount(self.shard(k)[1], minlength=OUT).astype(float)
        with np.errstate(divide="ignore"):
            offset = self.s.tau * counts**-0.25
        return self.sgd(k, w, gradient=lambda w, x, y: loss_and_gradient(w, x, y, offset=offset))


class FedRSRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        scale = np.array([1.0 if label in self.shard(k)[1] else self.s.alpha for label in range(OUT)])
        return self.sgd(k, w, gradient=lambda w, x, y: loss_and_gradient(w, x, y, scale=scale))


class FedSAMRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        def sharp(w: Array, x: Array, y: Array) -> tuple[float, Array]:
            loss, g = loss_and_gradient(w, x, y)
            return loss, loss_and_gradient(w + self.s.rho * g / np.linalg.norm(g), x, y)[1]

        return self.sgd(k, w, gradient=sharp)


class MoonRef(Reference):
    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"last": w}

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        mu, tau, last = self.s.mu, self.s.temperature, kept["last"]

        def cosine(a: Array, b: Array) -> tuple[Array, Array]:
            na, nb = (np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
            cos = (a * b).sum(axis=1, keepdims=True) / (na * nb)
            return cos[:, 0], b / (na * nb) - cos * a / na**2

        def moon(v: Array, x: Array, y: Array) -> tuple[float, Array]:
            def contrast(z: Array) -> tuple[Array, Array]:
                (near, by_near), (far, by_far) = (cosine(z, network(other, x)[0]) for other in (w, last))
                p = np.exp(near / tau) / (np.exp(near / tau) + np.exp(far / tau))
                return -mu * np.log(p), mu / tau * (1 - p)[:, None] * (by_far - by_near)

            return loss_and_gradient(v, x, y, by_hidden=contrast)

        kept["last"] = self.sgd(k, w, gradient=moon)
        return np.asarray(kept["last"])


class PrivateRef(Reference):
    """Layers that a client keeps: a mask of them."""

    mine: Any = ~FIRST

    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"mine": w}

    def local(self, k: int, w: Array) -> Array:
        return self.sgd(k, w)

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        new = self.local(k, self.own(k, w, kept))
        kept["mine"] = new
        return np.where(self.mine, w, new)

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return np.where(self.mine, kept["mine"], w)


class FedRepRef(PrivateRef):
    def local(self, k: int, w: Array) -> Array:
        head = self.sgd(k, w, epochs=self.s.head_epochs, layers=~FIRST)
        return self.sgd(k, head, first_epoch=self.s.head_epochs, layers=FIRST)


class LGRef(PrivateRef):
    mine = FIRST


class LocalRef(PrivateRef):
    mine = True


class FineTuneRef(Reference):
    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        lr = (self.s.tune_lr or self.s.lr) * self.s.lr_decay ** (self.round - 1)
        return self.sgd(k, w, epochs=self.s.tune_epochs, lr=lr)


class DittoRef(Reference):
    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"v": w}

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        new = self.sgd(k, w)
        kept["v"] = self.sgd(k, kept["v"], first_epoch=self.s.epochs, add=lambda v: self.s.lam * (v - w))
        return new

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return np.asarray(kept["v"])


class PFedMeRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        s = self.s

        def envelope(w: Array, x: Array, y: Array) -> tuple[float, Array]:
            theta = w
            for _ in range(s.inner_steps):
                theta = theta - s.personal_lr * (loss_and_gradient(theta, x, y)[1] + s.lam * (theta - w))
            return loss_and_gradient(w, x, y)[0], s.lam * (w - theta)

        return self.sgd(k, w, gradient=envelope)

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        return np.asarray((1 - self.s.beta) * w + self.s.beta * super().step(w, sent, share))

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        lr = self.s.personal_lr * self.s.lr_decay ** (self.round - 1)
        return self.sgd(k, w, lr=lr, add=lambda v: self.s.lam * (v - w))


class APFLRef(Reference):
    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"v": w, "alpha": self.s.alpha}

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return np.asarray(kept["alpha"] * kept["v"] + (1 - kept["alpha"]) * w)

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        if self.s.adaptive:
            slope = (kept["v"] - w) @ loss_and_gradient(self.own(k, w, kept), *self.shard(k))[1]
            kept["alpha"] = min(max(kept["alpha"] - self.lr() * slope, 0.0), 1.0)

        def both(w: Array, x: Array, y: Array) -> tuple[float, Array]:
            g = loss_and_gradient(self.own(k, w, kept), x, y)[1]
            kept["v"] = kept["v"] - self.lr() * kept["alpha"] * g
            return loss_and_gradient(w, x, y)

        return self.sgd(k, w, gradient=both)


class PerFedAvgRef(Reference):
    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        def after(w: Array, x: Array, y: Array) -> tuple[float, Array]:
            half = (len(y) + 1) // 2
            loss, g = loss_and_gradient(w, x[:half], y[:half])
            x, y = (x[half:], y[half:]) if len(y) > 1 else (x, y)
            return loss, loss_and_gradient(w - self.s.inner_lr * g, x, y)[1]

        return self.sgd(k, w, gradient=after)

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        lr = self.s.inner_lr * self.s.lr_decay ** (self.round - 1)
        return self.sgd(k, w, epochs=self.s.tune_epochs, lr=lr, momentum=0.0)


class FedALARef(Reference):
    """The last layer is mixed; the first comes from the server."""

    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"last": w, "mix": np.ones_like(w), "rounds": 0}

    def mixed(self, k: int, w: Array, kept: dict[str, Any]) -> tuple[Array, Array, int]:
        last, mix = kept["last"], kept["mix"]
        epochs = self.s.first_epochs if kept["rounds"] == 1 else 1
        for x, y in self.batches(k, epochs):
            loss, g = loss_and_gradient(last + (w - last) * mix, x, y)
            self.loss, self.seen = self.loss + loss * len(y), self.seen + len(y)
            stepped = np.clip(mix - self.s.mixing_lr * g * (w - last), 0, 1)
            mix = np.where(FIRST, mix, stepped)
        return np.where(FIRST, w, last + (w - last) * mix), mix, epochs

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        start, kept["mix"], epochs = self.mixed(k, w, kept)
        kept["last"] = self.sgd(k, start, first_epoch=epochs)
        kept["rounds"] += 1
        return np.asarray(kept["last"])

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return self.mixed(k, w, kept)[0]


class IFCARef(Reference):
    def begin(self, w: Array) -> None:
        rngs = [generator(SEED, Purpose.INIT, number) for number in range(1, self.s.clusters)]
        self.others = [np.concatenate([_glorot(rng, IN, HIDDEN), _glorot(rng, HIDDEN, OUT)]) for rng in rngs]

    def best(self, k: int, w: Array) -> int:
        losses = [loss_and_gradient(model, *self.shard(k))[0] for model in (w, *self.others)]
        return int(np.argmin(losses))

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        kept["choice"] = self.best(k, w)
        return self.sgd(k, self.own(k, w, kept))

    def step(self, w: Array, sent: dict[int, Array], share: dict[int, float]) -> Array:
        models = [w, *self.others]
        for j in range(len(models)):
            members = [k for k in sent if self.kept[k]["choice"] == j]
            if members:
                models[j] = np.asarray(sum(share[k] * sent[k] for k in members) / sum(share[k] for k in members))
        self.others = models[1:]
        return models[0]

    def own(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        return np.asarray((w, *self.others)[self.best(k, w)])


def _glorot(rng: np.random.Generator, fan_in: int, fan_out: int) -> Array:
    limit = np.sqrt(6 / (fan_in + fan_out))
    return np.concatenate([rng.uniform(-limit, limit, (fan_in, fan_out)).ravel(), np.zeros(fan_out)])


CASES: list[tuple[SGD, type[Reference]]] = [
    (clients.SGD(**BASE), Reference),
    (clients.SGD(**BASE | {"steps": 3}), Reference),
    (clients.FedSGD(**BASE | {"batch_size": 6, "steps": 1}), Reference),
    (clients.FedSGD(lr=0.3), Reference),
    (clients.FedProx(**BASE, proximal_mu=0.7), FedProxRef),
    (clients.ClippedSGD(**BASE, max_norm=0.5), ClippedRef),
    (clients.SCAFFOLD(**BASE), ScaffoldRef),
    (clients.SCAFFOLD(**BASE, option=1), ScaffoldRef),
    (clients.SCAFFOLD(**BASE | {"steps": 4}), ScaffoldRef),
    (clients.FedDyn(**BASE, alpha=0.6), FedDynRef),
    (clients.FedNova(**BASE), FedNovaRef),
    (clients.FedNova(**BASE | {"momentum": 0.0}), FedNovaRef),
    (clients.MimeLite(**BASE, beta=0.7), MimeLiteRef),
    (clients.MimeLite(**BASE | {"momentum": 0.0}, beta=0.9), MimeLiteRef),
    (clients.FedLC(**BASE, tau=0.8), FedLCRef),
    (clients.FedRS(**BASE, alpha=0.3), FedRSRef),
    (clients.FedSAM(**BASE, rho=0.2), FedSAMRef),
    (clients.MOON(**BASE, mu=0.9, temperature=0.4), MoonRef),
    (clients.LocalOnly(**BASE), LocalRef),
    (clients.FedPer(**BASE), PrivateRef),
    (clients.FedRep(**BASE, head_epochs=3), FedRepRef),
    (clients.FedRep(**BASE | {"steps": 4}, head_epochs=2), FedRepRef),
    (clients.LGFedAvg(**BASE), LGRef),
    (clients.FineTune(**BASE, tune_epochs=3, tune_lr=0.15), FineTuneRef),
    (clients.FineTune(**BASE | {"steps": 3}, tune_epochs=2), FineTuneRef),
    (clients.Ditto(**BASE, lam=0.8), DittoRef),
    (clients.PFedMe(**BASE | {"lr": 0.02}, lam=4.0, personal_lr=0.1, inner_steps=3, beta=0.6), PFedMeRef),
    (clients.APFL(**BASE, alpha=0.4), APFLRef),
    (clients.APFL(**BASE, alpha=0.4, adaptive=True), APFLRef),
    (clients.PerFedAvg(**BASE, inner_lr=0.1, tune_epochs=2), PerFedAvgRef),
    (clients.PerFedAvg(**BASE | {"steps": 3}, inner_lr=0.1, tune_epochs=1), PerFedAvgRef),
    (clients.FedALA(**BASE, mixing_lr=2.0, first_epochs=4), FedALARef),
    (clients.IFCA(**BASE, clusters=3), IFCARef),
    (clients.IFCA(**BASE, clusters=7), IFCARef),  # more than train in a round
]
#: What these do in a step the compiled kernel runs, too.
COMPILED = {
    "SGD", "FedSGD", "FedProx", "SCAFFOLD", "FedDyn", "FedNova", "MimeLite", "LocalOnly", "FedPer", "FedRep",
    "LGFedAvg", "FineTune", "Ditto", "IFCA",
}  # fmt: skip


def compare(strategy: SGD, reference: type[Reference], kernel: str, windows: int = 1, **options: Any) -> None:
    split: Split = Consecutive(len(SIZES))
    if windows > 1:
        split = TimeOrdered(split, windows=windows, rounds_per_window=2)
    experiment = Experiment(
        dataset=DATA, split=split, hidden=(HIDDEN,), activation="tanh", dtype="float64", client=strategy, seed=SEED,
        rounds=ROUNDS, fraction_train=COHORT / len(SIZES), fraction_evaluate=1.0, kernel=kernel,
    )  # fmt: skip
    result = experiment.run(**options)
    rng = generator(SEED, Purpose.INIT)
    start = np.concatenate([_glorot(rng, IN, HIDDEN), _glorot(rng, HIDDEN, OUT)])
    weights, tests, trains, owns = reference(strategy, windows, 2).run(start)
    close: Any = {"rtol": 1e-9, "atol": 1e-11} if kernel == "numpy" else {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(result.history["train_loss"][1:], trains, err_msg="training loss", **close)
    if result.has_global_model:
        np.testing.assert_allclose(result.history["test_loss"][1:], tests, err_msg="test loss", **close)
    found = result.clients.sort_values(["round", "partition_id"])["loss"].to_numpy().reshape(ROUNDS, len(SIZES))
    np.testing.assert_allclose(found, owns, err_msg="clients' own loss", **close)
    flat = np.concatenate([result.weights[name].ravel() for name in ("W1", "b1", "W2", "b2")])
    np.testing.assert_allclose(flat, weights, err_msg="final weights", **close)


@pytest.mark.parametrize(
    ("strategy", "reference"), CASES, ids=lambda value: str(value) if isinstance(value, SGD) else ""
)
def test_a_strategy_is_its_formula(strategy: SGD, reference: type[Reference]) -> None:
    compare(strategy, reference, "numpy")


@pytest.mark.parametrize(
    ("strategy", "reference"),
    [case for case in CASES if type(case[0]).__name__ in COMPILED],
    ids=lambda value: str(value) if isinstance(value, SGD) else "",
)
def test_the_compiled_kernel_runs_the_same_formula(strategy: SGD, reference: type[Reference]) -> None:
    compare(strategy, reference, "compiled")


@pytest.mark.parametrize(
    ("strategy", "reference"),
    [
        (clients.SCAFFOLD(**BASE), ScaffoldRef),
        (clients.FedDyn(**BASE, alpha=0.6), FedDynRef),
        (clients.MimeLite(**BASE), MimeLiteRef),
        (clients.Ditto(**BASE), DittoRef),
    ],
    ids=lambda value: str(value) if isinstance(value, SGD) else "",
)
def test_over_time_the_share_is_of_the_examples_in_the_rounds_window(strategy: SGD, reference: type[Reference]) -> None:
    compare(strategy, reference, "numpy", windows=2)


class Anchored(SGD):
    """A strategy of a user's own, with all terms of `Affine`: a pull to the mean of all its models, and a constant."""

    one_for_all: bool = False

    def client_state(self, ctx: clients.Context) -> dict[str, Array]:
        return {"center": np.zeros((len(ctx.partition_ids), ctx.global_weights.size))}

    def affine(self, ctx: clients.Context) -> clients.Affine:
        if self.one_for_all:
            return clients.Affine(
                0.6, np.linspace(-0.1, 0.1, ctx.global_weights.size), np.full_like(ctx.global_weights, 0.2)
            )
        return clients.Affine(0.6, 0.1 * ctx.state["center"], ctx.state["center"])

    def train(self, ctx: clients.Context) -> Array:
        weights = ctx.fit()
        ctx.state["center"] = (ctx.state["center"] + weights) / 2
        return weights


class AnchoredRef(Reference):
    def start(self, k: int, w: Array) -> dict[str, Any]:
        return {"center": np.zeros_like(w)}

    def client(self, k: int, w: Array, kept: dict[str, Any]) -> Array:
        center, constant = kept["center"], 0.1 * kept["center"]
        if self.s.one_for_all:
            center, constant = np.full_like(w, 0.2), np.linspace(-0.1, 0.1, len(w))
        new = self.sgd(k, w, add=lambda v: 0.6 * (v - center) + constant)
        kept["center"] = (kept["center"] + new) / 2
        return new


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
@pytest.mark.parametrize("one_for_all", [False, True])
def test_a_users_affine_has_its_own_center_and_correction(kernel: str, one_for_all: bool) -> None:
    compare(Anchored(**BASE, one_for_all=one_for_all), AnchoredRef, kernel)


def test_every_strategy_has_a_formula_here() -> None:
    offered = {name for name in clients.__all__ if isinstance(c := getattr(clients, name), type) and issubclass(c, SGD)}
    assert {type(strategy).__name__ for strategy, _ in CASES} == offered


@pytest.mark.parametrize(
    ("strategy", "reference"), CASES, ids=lambda value: str(value) if isinstance(value, SGD) else ""
)
def test_full_batches_make_one_step_per_epoch(strategy: SGD, reference: type[Reference]) -> None:
    compare(replace(strategy, batch_size=None), reference, "numpy")


def test_passes_over_all_examples_lose_none() -> None:
    """Gradient, loss and accuracy of shards that take several passes, and end in the middle of one."""
    rng = np.random.default_rng(2)
    sizes = (1203, 1203, 1000, 700, 500, 499, 1)
    x, y = rng.normal(size=(sum(sizes), IN)), rng.integers(0, OUT, sum(sizes))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = rng.normal(size=(len(sizes), CUTS[-1]))
    model = MLP((IN, HIDDEN, OUT), "tanh", dtype="float64")
    task = Task(model, SGD(), x, y, Partition(np.arange(len(y)), offsets), rows[0], 1, 0)
    context = clients.Context(task, np.arange(len(sizes)), {})
    for weights in (rows, rows[0]):
        (loss, grad), (evaluated, accuracy) = context.full_gradient(weights), context.evaluate(weights)
        for k, (a, b) in enumerate(itertools.pairwise(offsets)):
            w = weights[k] if weights.ndim == 2 else weights
            expected, slope = loss_and_gradient(w, x[a:b], y[a:b])
            np.testing.assert_allclose(grad[k], slope, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose([loss[k], evaluated[k]], expected, rtol=1e-12)
            assert accuracy[k] == np.mean(network(w, x[a:b])[1].argmax(axis=1) == y[a:b])


def test_a_dead_representation_has_no_similarity_and_no_slope() -> None:
    """As where all hidden units are ReLUs below zero; it is alike to nothing, in either place."""
    live, dead = np.array([[[3.0, 4.0]]]), np.zeros((1, 1, 2))
    for z, other in ((dead, live), (dead, dead)):
        similarity, slope = _cosine(z, other)
        assert similarity.tolist() == [[0]]
        assert slope.tolist() == [[[0, 0]]]
    assert _cosine(live, dead)[0].tolist() == [[0]]
    assert _cosine(live, 7 * live)[0] == pytest.approx(1)


@pytest.mark.parametrize(("mixed_layers", "mixed"), [(1, {2}), (2, {1, 2}), (9, {1, 2})])
def test_fedala_mixes_its_last_layers(mixed_layers: int, mixed: set[int]) -> None:
    """More than there are is all of them; the others begin a round as the server sent them."""
    net = MLP((IN, HIDDEN, OUT), "tanh", dtype="float64")
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(2, CUTS[-1]))
    held = Partition(np.arange(23), np.array([0, 23]))
    strategy = clients.FedALA(mixed_layers=mixed_layers, mixing_lr=5.0, lr=1e-300)
    task = Task(net, strategy, DATA.x_train, DATA.y_train, held, weights[0], 1, 0)
    first = run_local_round(task, np.array([0]), new_client_state(task, np.array([0])))
    update = run_local_round(replace(task, global_weights=weights[1], round=2), np.array([0]), dict(first.state))
    mixing, begun = (named_arrays(net, rows[0]) for rows in (update.state["mixing"], update.weights))
    sent = named_arrays(net, weights[1])
    assert {k for k in (1, 2) if (mixing[f"W{k}"] < 1).any()} == mixed
    assert {k for k in (1, 2) if not np.allclose(begun[f"W{k}"], sent[f"W{k}"])} == mixed


@pytest.mark.parametrize(
    ("cls", "allowed", "refused"),
    [
        (SGD, {"momentum": 0, "weight_decay": 0, "lr_decay": 1, "epochs": 1, "batch_size": 1}, {"lr": 0}),
        (SGD, {}, {"epochs": 0}),
        (SGD, {}, {"batch_size": 0}),
        (SGD, {"momentum": 0.99}, {"momentum": 1.0}),
        (SGD, {}, {"weight_decay": -0.1}),
        (SGD, {}, {"lr_decay": 1.1}),
        (clients.APFL, {"alpha": 0}, {"alpha": -0.1}),
        (clients.APFL, {"alpha": 1, "adaptive": True}, {"adaptive": 1}),
        (clients.ClippedSGD, {"max_norm": 1e-9}, {"max_norm": 0}),
        (clients.Ditto, {"lam": 0}, {"lam": float("inf")}),
        (clients.FedALA, {"mixed_layers": 1}, {"mixed_layers": 0}),
        (clients.FedALA, {"first_epochs": 1}, {"first_epochs": 0}),
        (clients.FedLC, {"tau": 0}, {"tau": float("inf")}),
        (clients.FedPer, {"personal_layers": 1}, {"personal_layers": 0}),
        (clients.FedRep, {"head_epochs": 1}, {"personal_layers": 0}),
        (clients.LGFedAvg, {"global_layers": 1}, {"global_layers": 0}),
        (clients.FedProx, {"proximal_mu": 0}, {"proximal_mu": -0.1}),
        (clients.FedRS, {"alpha": 0}, {"alpha": -0.1}),
        (clients.FedRS, {"alpha": 1}, {"alpha": 1.1}),
        (clients.FedSAM, {"rho": 0}, {"rho": -0.1}),
        (clients.FineTune, {"tune_epochs": 1, "tune_lr": 1e-9}, {"tune_epochs": 1.5}),
        (clients.IFCA, {"clusters": 1}, {"clusters": 1.5}),
        (clients.MimeLite, {"beta": 0}, {"beta": -0.1}),
        (clients.MOON, {"mu": 0}, {"mu": -0.1}),
        (clients.PFedMe, {"inner_steps": 1}, {"lam": 0}),
        (clients.PFedMe, {}, {"beta": 0}),
        (clients.PFedMe, {}, {"personal_lr": 0}),
        (clients.PerFedAvg, {"tune_epochs": 1}, {"tune_epochs": 0}),
        (clients.SCAFFOLD, {"option": 1}, {"option": 0}),
        (clients.SCAFFOLD, {"option": 2}, {"option": 3}),
    ],
)
def test_ends_of_ranges(cls: type[SGD], allowed: dict[str, Any], refused: dict[str, Any]) -> None:
    cls(**allowed)
    [(option, value)] = refused.items()
    with pytest.raises(ConfigError, match=f"^{cls.__name__}'s {option} is {value}; allowed: "):
        cls(**refused)
