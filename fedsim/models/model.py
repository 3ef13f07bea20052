"""The contract of models: functions of flat parameters with a leading client axis.

The parameters of one model are one flat row, so a cohort is an array of shape (clients, parameters) and a client
strategy is arithmetic on rows. Methods treat rows independently: a client's result does not depend on the other rows.
`fedsim.testing.check_model` checks an implementation.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsim.models.losses import LOSSES, Loss, is_correct

Array = NDArray[Any]
#: Names of arrays that are trained, frozen or private together.
Group = tuple[str, ...]
#: Name of an array -> its slice of the flat row and its shape, in the order of the row.
Layout = Mapping[str, tuple[slice, tuple[int, ...]]]


def make_layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Return the layout of named arrays that follow one another in the flat row.

    Parameters
    ----------
    shapes : mapping of str to tuple of int

    Examples
    --------
    >>> make_layout({"W": (3, 2), "b": (2,)})
    {'W': (slice(0, 6, None), (3, 2)), 'b': (slice(6, 8, None), (2,))}
    """
    layout, start = {}, 0
    for name, shape in shapes.items():
        layout[name] = slice(start, start + math.prod(shape)), shape
        start += math.prod(shape)
    return layout


@runtime_checkable
class Model(Protocol):
    """A model. A class that extends this protocol inherits `num_parameters`, `flops` and `evaluate`.

    Attributes
    ----------
    dtype : {"float32", "float64"}
        Type of parameters and arithmetic.
    loss : str
        Name of the loss. Client strategies that change the softmax need ``"cross_entropy"``.
    outputs : int
        Number of scores per example.
    """

    dtype: str
    loss: str
    outputs: int

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The named arrays of the parameters: name -> (slice of the flat row, shape), in order; see `make_layout`."""

    @property
    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """The names in `layout` in groups, from input to output, which strategies can freeze or make private."""

    @property
    def num_parameters(self) -> int:
        """Length of the flat row."""
        return sum(math.prod(shape) for _, shape in self.layout.values())

    @property
    def flops(self) -> int:
        """Floating-point operations of `scores` per example; a gradient is assumed to cost three times as many."""
        return 2 * self.num_parameters

    @abstractmethod
    def init(self, rng: np.random.Generator) -> Array:
        """Return initial parameters, shape (parameters,), which depend on `rng` only."""

    @abstractmethod
    def scores(self, parameters: Array, x: Array) -> Array:
        """Return the scores of examples, before any sigmoid or softmax.

        Parameters
        ----------
        parameters : ndarray, shape (clients, parameters)
        x : ndarray, shape (clients, batch, ...)
            Either argument may have a single row for all clients.

        Returns
        -------
        ndarray, shape (clients, batch, outputs)
        """

    @abstractmethod
    def representation(self, parameters: Array, x: Array) -> Array:
        """Return the features from which the model computes its scores, or the scores if it has no such features.

        Parameters
        ----------
        parameters, x : ndarray
            As for `scores`.

        Returns
        -------
        ndarray, shape (clients, batch, width)

        Raises
        ------
        ConfigError
            The model has no representation that depends on parameters; MOON needs one.
        """

    @abstractmethod
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
        """Return the mean loss over each client's batch and its gradient.

        Parameters
        ----------
        parameters : ndarray, shape (clients, parameters)
        x : ndarray, shape (clients, batch, ...)
        y : ndarray, shape (clients, batch) of labels or values, or (clients, batch, outputs) of values
        out : ndarray, shape (clients, parameters), optional
            Array to write the gradient to.
        loss : callable, optional
            Used instead of the model's own loss; see `fedsim.models.losses.Loss`.
        representation_loss : callable, optional
            Added to the loss: a function of the `representation` that returns each example's loss and its derivative
            with respect to the representation.

        Returns
        -------
        loss : ndarray, shape (clients,)
        grad : ndarray, shape (clients, parameters)
        """

    def evaluate(self, parameters: Array, x: Array, y: Array) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Evaluate models on equally large sets of examples.

        Parameters
        ----------
        parameters : ndarray, shape (sets, parameters), or (1, parameters) for one model on all sets
        x : ndarray, shape (sets, examples, ...)
        y : ndarray, shape (sets, examples)

        Returns
        -------
        loss : ndarray of float64, shape (sets,)
            Sum over the examples.
        correct : ndarray of int, shape (sets,)
            Number of examples classified correctly.
        """
        z = self.scores(parameters, x)
        loss, _ = LOSSES[self.loss](z, y)
        return loss.sum(axis=1, dtype=np.float64), is_correct(z, y).sum(axis=1)


def named_arrays(model: Model, parameters: Array) -> dict[str, Array]:
    """Return the named arrays of a model as views of flat parameters.

    Parameters
    ----------
    model : Model
    parameters : ndarray, shape (..., parameters)

    Returns
    -------
    dict of ndarray
        For the MLP ``W1`` of shape (..., inputs, hidden), ``b1`` of shape (..., hidden), and so on.
    """
    lead = parameters.shape[:-1]
    return {name: parameters[..., place].reshape(lead + shape) for name, (place, shape) in model.layout.items()}


def flat_parameters(model: Model, arrays: Mapping[str, Array]) -> Array:
    """Return the flat parameters of named arrays, shape (parameters,); the inverse of `named_arrays` for one model."""
    return np.concatenate([np.ravel(arrays[name]) for name in model.layout])
