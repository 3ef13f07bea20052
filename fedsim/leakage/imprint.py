"""An active attack: global weights from which the update of any number of clients shows single examples.

Fowl, Geiping, Czaja, Goldblum and Goldstein, "Robbing the fed: directly obtaining private data in federated learning
with modified models", ICLR 2022 (arXiv:2110.13057), section 4.

All neurons of the first layer compute the mean of the features, each with another threshold as its bias, and have the
same weights in the second layer. An example adds the same ``delta x`` to ``dW[:, i]`` of each neuron whose threshold it
exceeds, so the difference of neighbouring neurons holds the examples between their thresholds, often a single one. The
attack is linear in the examples, so secure aggregation does not prevent it: it needs a server that does not follow the
protocol, and clients that make one step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.checks import shorten
from fedsim.errors import ConfigError
from fedsim.leakage.observation import Observation
from fedsim.models import MLP, Model, named_arrays

Array = NDArray[Any]
Floats = NDArray[np.float64]

#: Differences of bias gradients below this share of the largest bias gradient are rounding.
TOLERANCE = 1e-4


@checked_arguments
def imprint_weights(model: Model, x: Array, seed: int = 0) -> Array:
    """Return global weights that imprint examples on the update, shape (parameters,).

    Parameters
    ----------
    model : Model
        An MLP with one hidden ReLU layer.
    x : ndarray, shape (examples, features)
        The attacker's own examples, for thresholds between which about equally many examples lie.
    seed : int
        Of the weights of the second layer.

    Raises
    ------
    ConfigError
        The model is another one.
    """
    if not isinstance(model, MLP) or model.activation != "relu" or len(model.sizes) != 3:
        raise ConfigError(f"model is {shorten(model)}; allowed: an MLP with one hidden ReLU layer")
    features, neurons, outputs = model.sizes
    weights = np.zeros(model.num_parameters, dtype=model.dtype)
    named = named_arrays(model, weights)
    means = x.mean(axis=1, dtype=np.float64)
    named["W1"][:] = 1 / features
    named["b1"][:] = -np.quantile(means, np.arange(neurons) / neurons)
    # Small, so that no score is certain: then every example has a derivative.
    scale = 1 / (neurons * max(float(np.ptp(means)), 1e-12))
    named["W2"][:] = scale * np.random.default_rng(seed).standard_normal(outputs)
    return weights


@checked_arguments
def read_imprint(observation: Observation) -> Floats:
    """Return the examples that an update made from `imprint_weights` shows, shape (found, features).

    The ratios of the differences of neighbouring neurons' gradients whose mean lies between the neurons' thresholds:
    all single examples, and some mixtures.

    Parameters
    ----------
    observation : Observation
        Of one step.
    """
    start, gradient = named_arrays(observation.model, observation.weights.astype(np.float64)), observation.gradient
    thresholds = np.append(-start["b1"], np.inf)
    weights = -np.diff(gradient["W1"], axis=1, append=0.0)
    bias = -np.diff(gradient["b1"], append=0.0)
    filled = np.abs(bias) > TOLERANCE * np.abs(gradient["b1"]).max(initial=0.0)
    examples: Floats = (weights[:, filled] / bias[filled]).T
    means = examples.mean(axis=1)
    between = (means >= thresholds[:-1][filled] - 1e-3) & (means <= thresholds[1:][filled] + 1e-3)
    found: Floats = examples[between]
    return found
