"""The article's multilayer perceptron.

Forward propagation is ``h = f(h W + b)`` layer by layer, the last layer linear; the loss applies the sigmoid or the
softmax. Backpropagation is the chain rule on the same arrays; docs/article.md derives it formula by formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from fedsim.arguments import CheckedInit
from fedsim.checks import check_choice, check_instance, check_integer, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.clipping import clip_factors
from fedsim.models.losses import LOSSES, Loss
from fedsim.models.model import Array, Group, Layout, Model, make_layout, named_arrays


@dataclass(frozen=True)
class MLP(CheckedInit, Model):
    """A multilayer perceptron.

    Parameters
    ----------
    sizes : tuple of int
        Number of inputs, width of each hidden layer, number of outputs; the article's is (100, 50, 10).
    activation : {"relu", "tanh", "sigmoid"}
        Activation of the hidden layers.
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
        Softmax cross-entropy; the article's cross-entropy of sigmoid outputs,
        ``-1/n sum[y log p + (1-y) log(1-p)]``; mean squared error of linear outputs. The last two are averaged over
        outputs as well as examples, like PyTorch's losses.
    dtype : {"float32", "float64"}
        Type of weights and arithmetic.

    Raises
    ------
    ConfigError
        A parameter has another value.
    """

    sizes: tuple[int, ...]
    activation: str = "relu"
    loss: str = "cross_entropy"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = to_builtin_sequence(self.sizes)
        check_instance("sizes", sizes, tuple | list, "a list of layer widths, with inputs and outputs")
        object.__setattr__(self, "sizes", tuple(sizes))
        if len(self.sizes) < 2:
            raise ConfigError(f"sizes is {self.sizes!r}; allowed: at least inputs and outputs")
        for size in self.sizes:
            check_integer("sizes", size, 1)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("dtype", self.dtype, ("float32", "float64"))

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of outputs."""
        return self.sizes[-1]

    @property
    def groups(self) -> tuple[Group, ...]:
        """One group per layer: ``(("W1", "b1"), ("W2", "b2"), ...)``."""
        return tuple((f"W{layer}", f"b{layer}") for layer in range(1, len(self.sizes)))

    @cached_property
    def layout(self) -> Layout:
        """W1, b1, W2, b2, ... in this order; ``W1`` has shape (inputs, hidden)."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(self.sizes), 1):
            shapes |= {f"W{layer}": (fan_in, fan_out), f"b{layer}": (fan_out,)}
        return make_layout(shapes)

    def init(self, rng: np.random.Generator) -> Array:
        """Draw initial weights; biases are 0.

        The weights of ReLU layers are normal with variance 2 / inputs: He et al., "Delving deep into rectifiers", ICCV
        2015 (arXiv:1502.01852), eq. 10. Those of tanh and sigmoid layers and of the linear output layer are uniform
        with variance 2 / (inputs + outputs): Glorot and Bengio, "Understanding the difficulty of training deep
        feedforward neural networks", AISTATS 2010, eq. 16.
        """
        flat = np.zeros(self.num_parameters, dtype=self.dtype)
        layers = len(self.sizes) - 1
        for name, matrix in named_arrays(self, flat).items():
            if name.startswith("W"):
                fan_in, fan_out = matrix.shape
                if self.activation == "relu" and name != f"W{layers}":
                    matrix[:] = rng.normal(0, np.sqrt(2 / fan_in), matrix.shape)
                else:
                    limit = np.sqrt(6 / (fan_in + fan_out))
                    matrix[:] = rng.uniform(-limit, limit, matrix.shape)
        return flat

    def _forward(self, weights: dict[str, Array], x: Array) -> list[Array]:
        """Return the activations of all layers, from the input x to the linear scores."""
        activate = ACTIVATIONS[self.activation].apply
        depth = len(self.sizes) - 1
        h = [x]
        for layer in range(1, depth + 1):
            z = h[-1] @ weights[f"W{layer}"]
            z += weights[f"b{layer}"][..., None, :]
            if layer < depth:
                activate(z)
            h.append(z)
        return h

    def scores(self, parameters: Array, x: Array) -> Array:
        """Return the linear outputs, shape (clients, batch, outputs), by forward propagation; see `Model.scores`."""
        return self._forward(named_arrays(self, parameters), x)[-1]

    def representation(self, parameters: Array, x: Array) -> Array:
        """Return the activations of the last hidden layer, shape (clients, batch, width).

        Raises
        ------
        ConfigError
            There is no hidden layer.
        """
        if len(self.sizes) < 3:
            raise ConfigError("hidden is (), so the MLP has no hidden representation; allowed: at least one layer")
        return self._forward(named_arrays(self, parameters), x)[-2]

    def loss_and_gradient(
        self,
        parameters: Array,
        x: Array,
        y: Array,
        out: Array | None = None,
        *,
        loss: Loss | None = None,
        representation_loss: Callable[[Array], tuple[Array, Array]] | None = None,
    ) -> tuple[Array, Array]:
        """Return the mean loss over each client's batch and its gradient, by backpropagation.

        Parameters and results as for `Model.loss_and_gradient`, with x of shape (clients, batch, features).
        """
        grad = np.empty_like(parameters) if out is None else out
        weights, grads = named_arrays(self, parameters), named_arrays(self, grad)
        backward = ACTIVATIONS[self.activation].backward
        h = self._forward(weights, x)
        losses, delta = (loss or LOSSES[self.loss])(h[-1], y)
        delta /= x.shape[-2]
        depth = len(self.sizes) - 1
        for layer in range(depth, 0, -1):
            np.matmul(h[layer - 1].swapaxes(-1, -2), delta, out=grads[f"W{layer}"])
            np.sum(delta, axis=-2, out=grads[f"b{layer}"])
            if layer > 1:
                delta = delta @ weights[f"W{layer}"].swapaxes(-1, -2)
                if representation_loss and layer == depth:
                    added, derivative = representation_loss(h[-2])
                    losses = losses + added
                    delta += derivative / x.shape[-2]
                backward(delta, h[layer - 1])
        return losses.mean(axis=-1), grad

    def input_gradient(self, parameters: Array, x: Array, direction: Array) -> Array:
        """Return the gradient of each example's ``direction @ scores`` with respect to the example, by backpropagation.

        Parameters
        ----------
        parameters : ndarray, shape (clients, parameters)
        x : ndarray, shape (clients, batch, features)
        direction : ndarray, shape (clients, batch, outputs)
            Weights of the scores: one-hot for the score of one output.

        Returns
        -------
        ndarray, shape (clients, batch, features)
        """
        weights = named_arrays(self, parameters)
        h, delta = self._forward(weights, x), direction
        for layer in range(len(self.sizes) - 1, 0, -1):
            delta = delta @ weights[f"W{layer}"].swapaxes(-1, -2)
            if layer > 1:
                ACTIVATIONS[self.activation].backward(delta, h[layer - 1])
        return delta

    def clipped_gradient(
        self, parameters: Array, x: Array, y: Array, clip: float, groups: Sequence[Group] | None = None
    ) -> tuple[Array, Array]:
        """Return the sum of the losses and of the clipped gradients of each client's batch; see `clipped_gradient`.

        The gradient of a layer's weights and biases on one example is the outer product of the layer's input a, with a
        1 for the bias, and its delta d, so its squared norm is ``(|a|^2 + 1) |d|^2``. Goodfellow, "Efficient
        per-example gradient computations", 2015 (arXiv:1510.01799).
        """
        grad = np.zeros_like(parameters)
        weights, grads = named_arrays(self, parameters), named_arrays(self, grad)
        backward = ACTIVATIONS[self.activation].backward
        h = self._forward(weights, x)
        losses, delta = LOSSES[self.loss](h[-1], y)
        depth = len(self.sizes) - 1
        deltas = {depth: delta}
        for layer in range(depth, 1, -1):
            delta = delta @ weights[f"W{layer}"].swapaxes(-1, -2)
            backward(delta, h[layer - 1])
            deltas[layer - 1] = delta
        trained = [k for k, group in enumerate(self.groups, 1) if groups is None or group in groups]
        squares = sum((_squares(h[k - 1]) + 1) * _squares(deltas[k]) for k in trained)
        factors = clip_factors(np.sqrt(squares), clip).astype(self.dtype)[..., None]
        for k in trained:
            delta = deltas[k] * factors
            np.matmul(h[k - 1].swapaxes(-1, -2), delta, out=grads[f"W{k}"])
            np.sum(delta, axis=-2, out=grads[f"b{k}"])
        return losses.sum(axis=-1, dtype=np.float64), grad


def _squares(rows: Array) -> Array:
    """Return the squared norm of each row, in float64, whose range is large enough."""
    squares: Array = np.einsum("...j,...j->...", rows, rows, dtype=np.float64)
    return squares
