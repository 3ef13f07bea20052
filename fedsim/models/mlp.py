"""The article's multilayer perceptron, in pure functions over parameters with a leading client axis.

One network's parameters are one flat row, ``W1, b1, W2, b2, ...`` in that order, so a cohort is an array of shape
(clients, parameters) and a strategy is arithmetic on rows. `views` gives the matrices back without copying. Every
function treats each client's row by itself: stacking clients changes no client's result.

Forward propagation is ``h = f(h W + b)`` layer by layer, the last layer linear; the loss applies the sigmoid or the
softmax, so both are computed from scores without overflow. Backpropagation is the chain rule on the same arrays;
docs/article.md derives it formula by formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice, check_integer
from fedsim.errors import ConfigError

Array = NDArray[Any]


def _relu(z: Array) -> None:
    np.maximum(z, 0, out=z)


def _relu_chain(delta: Array, h: Array) -> None:
    delta *= h > 0


def _tanh(z: Array) -> None:
    np.tanh(z, out=z)


def _tanh_chain(delta: Array, h: Array) -> None:
    delta *= 1 - h * h


def _sigmoid(z: Array) -> None:
    # 1 / (1 + exp(-z)) = (1 + tanh(z / 2)) / 2, which cannot overflow.
    z *= 0.5
    np.tanh(z, out=z)
    z += 1
    z *= 0.5


def _sigmoid_chain(delta: Array, h: Array) -> None:
    delta *= h * (1 - h)


class Activation(NamedTuple):
    """A hidden activation f: `apply` writes f(z) over z, `chain` multiplies delta by f'(z) given h = f(z)."""

    apply: Callable[[Array], None]
    chain: Callable[[Array, Array], None]


ACTIVATIONS = {
    "relu": Activation(_relu, _relu_chain),
    "tanh": Activation(_tanh, _tanh_chain),
    "sigmoid": Activation(_sigmoid, _sigmoid_chain),
}


def _targets(y: Array, scores: Array) -> Array:
    """Labels or values in the shape of the scores: integers one-hot where there are several outputs."""
    outputs = scores.shape[-1]
    if outputs > 1 and y.ndim < scores.ndim:
        onehot: Array = (y[..., None] == np.arange(outputs)).astype(scores.dtype)
        return onehot
    return y.reshape(scores.shape).astype(scores.dtype, copy=False)


def _mse(scores: Array, y: Array) -> tuple[Array, Array]:
    error = scores - _targets(y, scores)
    return np.mean(error * error, axis=-1), error * (2 / scores.shape[-1])


def _binary_cross_entropy(scores: Array, y: Array) -> tuple[Array, Array]:
    target = _targets(y, scores)
    # -[y log p + (1-y) log(1-p)] with p = sigmoid(z) is max(z, 0) - z y + log(1 + exp(-|z|)).
    loss = np.maximum(scores, 0) - scores * target + np.log1p(np.exp(-np.abs(scores)))
    p = scores.copy()
    _sigmoid(p)
    return np.mean(loss, axis=-1), (p - target) / scores.shape[-1]


def _cross_entropy(scores: Array, y: Array) -> tuple[Array, Array]:
    z = scores - scores.max(axis=-1, keepdims=True)
    label = (np.arange(y.size), y.ravel())  # one score of each example, in z seen as rows
    rows = z.reshape(-1, z.shape[-1])
    chosen = rows[label].reshape(y.shape)
    np.exp(z, out=z)
    total = z.sum(axis=-1, keepdims=True)
    z /= total
    rows[label] -= 1
    return np.log(total[..., 0]) - chosen, z


#: Loss name -> function of (scores, y) giving each example's loss and its derivative by the scores.
LOSSES: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "mse": _mse,
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
}


@dataclass(frozen=True)
class MLP:
    """A network's shape: everything about it but its weights.

    Parameters
    ----------
    sizes : tuple of int
        Inputs, each hidden layer, outputs; the article's is (100, 50, 10).
    activation : {"relu", "tanh", "sigmoid"}
        Of every hidden layer.
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
        Softmax cross-entropy; sigmoid outputs with the article's
        ``-1/n sum[y log p + (1-y) log(1-p)]``; mean squared error on linear outputs. The last two average over
        outputs as well as examples, as PyTorch's losses do.
    dtype : {"float32", "float64"}
        Of weights and arithmetic.

    Raises
    ------
    ConfigError
        For any value outside these.
    """

    sizes: tuple[int, ...]
    activation: str = "relu"
    loss: str = "cross_entropy"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if len(self.sizes) < 2:
            raise ConfigError(f"sizes is {self.sizes!r}; allowed: at least inputs and outputs")
        for size in self.sizes:
            check_integer("sizes", size, 1)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("dtype", self.dtype, ("float32", "float64"))

    @cached_property
    def layout(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Name -> (place in the flat row, shape), in order: W1, b1, W2, b2, ..."""
        places: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False), 1):
            for name, shape in ((f"W{layer}", (fan_in, fan_out)), (f"b{layer}", (fan_out,))):
                stop = start + int(np.prod(shape))
                places[name] = (slice(start, stop), shape)
                start = stop
        return places

    @cached_property
    def num_parameters(self) -> int:
        """Length of one flat row."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(self.sizes, self.sizes[1:], strict=False))


def views(net: MLP, parameters: Array) -> dict[str, Array]:
    """Return each matrix and bias as a view into flat parameters.

    Parameters
    ----------
    net : MLP
    parameters : ndarray, shape (..., net.num_parameters)

    Returns
    -------
    dict of ndarray
        ``W1`` of shape (..., inputs, hidden), ``b1`` of shape (..., hidden), and so on.
    """
    lead = parameters.shape[:-1]
    return {name: parameters[..., place].reshape(lead + shape) for name, (place, shape) in net.layout.items()}


def initialise(net: MLP, rng: np.random.Generator) -> Array:
    """Draw initial weights by activation; biases are zero.

    ReLU layers: He et al., "Delving deep into rectifiers", ICCV 2015 (arXiv:1502.01852), eq. 10, normal with
    variance 2 / inputs. Tanh, sigmoid and the linear output layer: Glorot and Bengio, "Understanding the difficulty
    of training deep feedforward neural networks", AISTATS 2010, eq. 16, uniform with variance 2 / (inputs + outputs).

    Returns
    -------
    ndarray, shape (net.num_parameters,)
    """
    flat = np.zeros(net.num_parameters, dtype=net.dtype)
    layers = len(net.sizes) - 1
    for name, matrix in views(net, flat).items():
        if name.startswith("W"):
            fan_in, fan_out = matrix.shape
            if net.activation == "relu" and name != f"W{layers}":
                matrix[:] = rng.normal(0, np.sqrt(2 / fan_in), matrix.shape)
            else:
                limit = np.sqrt(6 / (fan_in + fan_out))
                matrix[:] = rng.uniform(-limit, limit, matrix.shape)
    return flat


def _forward(net: MLP, layers: dict[str, Array], x: Array) -> list[Array]:
    """Activations of every layer, x first and the linear scores last."""
    activate = ACTIVATIONS[net.activation].apply
    depth = len(net.sizes) - 1
    h = [x]
    for layer in range(1, depth + 1):
        z = h[-1] @ layers[f"W{layer}"]
        z += layers[f"b{layer}"][..., None, :]
        if layer < depth:
            activate(z)
        h.append(z)
    return h


def scores(net: MLP, parameters: Array, x: Array) -> Array:
    """Forward propagation.

    Parameters
    ----------
    parameters : ndarray, shape (clients, parameters)
    x : ndarray, shape (clients, batch, features), or one that broadcasts to it

    Returns
    -------
    ndarray, shape (clients, batch, outputs)
        Before the softmax or sigmoid.
    """
    return _forward(net, views(net, parameters), x)[-1]


def representation(net: MLP, parameters: Array, x: Array) -> Array:
    """Return the activations of the last hidden layer, shape (clients, batch, width); x itself where there is none.

    Parameters
    ----------
    parameters : ndarray, shape (clients, parameters)
    x : ndarray, shape (clients, batch, features)
    """
    return _forward(net, views(net, parameters), x)[-2]


def gradient(
    net: MLP,
    parameters: Array,
    x: Array,
    y: Array,
    out: Array | None = None,
    loss: Callable[[Array, Array], tuple[Array, Array]] | None = None,
    representation_loss: Callable[[Array], tuple[Array, Array]] | None = None,
) -> tuple[Array, Array]:
    """Mean loss over each client's batch and its gradient, by backpropagation.

    Parameters
    ----------
    parameters : ndarray, shape (clients, parameters)
    x : ndarray, shape (clients, batch, features)
    y : ndarray, shape (clients, batch) of labels, or (clients, batch, outputs) of values
    out : ndarray, shape (clients, parameters), optional
        Where to write the gradient.
    loss : callable, optional
        In place of the network's: a function of (scores, y) like those of `LOSSES`.
    representation_loss : callable, optional
        What to add to it: a function of the last hidden layer's activations, shape (clients, batch, width), giving
        each example's loss and its derivative by them.

    Returns
    -------
    loss : ndarray, shape (clients,)
    grad : ndarray, shape (clients, parameters)
    """
    grad = np.empty_like(parameters) if out is None else out
    weights, grads = views(net, parameters), views(net, grad)
    chain = ACTIVATIONS[net.activation].chain
    h = _forward(net, weights, x)
    each, delta = (loss or LOSSES[net.loss])(h[-1], y)
    delta /= x.shape[-2]
    depth = len(net.sizes) - 1
    for layer in range(depth, 0, -1):
        np.matmul(h[layer - 1].swapaxes(-1, -2), delta, out=grads[f"W{layer}"])
        np.sum(delta, axis=-2, out=grads[f"b{layer}"])
        if layer > 1:
            delta = delta @ weights[f"W{layer}"].swapaxes(-1, -2)
            if representation_loss and layer == depth:
                added, by_representation = representation_loss(h[-2])
                each = each + added
                delta += by_representation / x.shape[-2]
            chain(delta, h[layer - 1])
    return each.mean(axis=-1), grad


def correct(net: MLP, z: Array, y: Array) -> NDArray[np.bool_]:
    """Which examples the scores `z` classify rightly: the largest score, or p > 1/2 where there is one output."""
    result: NDArray[np.bool_]
    if net.sizes[-1] == 1:
        result = (z[..., 0] > 0) == (y > 0.5)
    else:
        result = z.argmax(axis=-1) == y
    return result
