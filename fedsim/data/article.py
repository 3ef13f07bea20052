"""The article's synthetic data: 1,000 random examples of 100 numbers in 10 classes.

The article draws inputs from N(0, 1) and labels at random, so its labels say nothing about its inputs: a network can
memorise the training set, but its expected test accuracy is 10 %. The teacher variant labels the same inputs with a
random network of the article's shape (100-50-10), so that there is something to learn.
"""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.models import MLP
from fedsim.streams import Purpose, generator

_TRAIN, _TEST, _FEATURES, _CLASSES = 1_000, 1_000, 100, 10


def load() -> Dataset:
    """Return the article's data, with random labels, and 1,000 test examples drawn in the same way."""
    rng = generator(0, Purpose.DATA, 0)
    x = rng.standard_normal((_TRAIN + _TEST, _FEATURES)).astype(np.float32)
    y = rng.integers(0, _CLASSES, _TRAIN + _TEST)
    return Dataset("article", x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:], _CLASSES)


def load_teacher() -> Dataset:
    """Return the article's inputs, labelled with the class to which a random 100-50-10 network assigns them."""
    noise = load()
    model = MLP((_FEATURES, 50, _CLASSES))
    teacher = model.init(generator(0, Purpose.DATA, 1))[None]
    x_train, x_test = noise.x_train, noise.x_test
    y_train, y_test = (model.scores(teacher, x[None])[0].argmax(axis=1) for x in (x_train, x_test))
    return Dataset("article_teacher", x_train, y_train, x_test, y_test, _CLASSES)
