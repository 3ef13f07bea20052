"""Activations of hidden layers, computed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relu(z: Array) -> None:
    """Replace z by max(z, 0)."""
    np.maximum(z, 0, out=z)


def _relu_backward(delta: Array, h: Array) -> None:
    delta *= h > 0


def tanh(z: Array) -> None:
    """Replace z by tanh(z)."""
    np.tanh(z, out=z)


def _tanh_backward(delta: Array, h: Array) -> None:
    delta *= 1 - h * h


def sigmoid(z: Array) -> None:
    """Replace z by 1 / (1 + exp(-z)), computed as (1 + tanh(z / 2)) / 2, which cannot overflow."""
    z *= 0.5
    np.tanh(z, out=z)
    z += 1
    z *= 0.5


def _sigmoid_backward(delta: Array, h: Array) -> None:
    delta *= h * (1 - h)


class Activation(NamedTuple):
    """An activation f: `apply` replaces z by f(z); `backward` multiplies delta by f'(z), given h = f(z)."""

    apply: Callable[[Array], None]
    backward: Callable[[Array, Array], None]


ACTIVATIONS = {
    "relu": Activation(relu, _relu_backward),
    "tanh": Activation(tanh, _tanh_backward),
    "sigmoid": Activation(sigmoid, _sigmoid_backward),
}
