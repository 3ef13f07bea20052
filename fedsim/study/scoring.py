"""A model's scores, and their metrics on the test set of a dataset; `Result` has methods for its final global model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.clients.metrics import Metrics
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.models import Array, Model
from fedsim.models import metrics as definitions
from fedsim.models.losses import predicted_labels

if TYPE_CHECKING:
    import pandas as pd


#: Number of examples that pass through the model together.
SCORED_ROWS = 10_000


def scores(model: Model, parameters: Array, x: Array) -> Array:
    """Return the scores of examples, shape (examples, outputs), with a flat row of parameters."""
    starts = range(0, max(len(x), 1), SCORED_ROWS)
    parts = [x[start : start + SCORED_ROWS].astype(model.dtype) for start in starts]
    return np.concatenate([model.scores(parameters[None], part[None])[0] for part in parts])


def measure(
    scores: Array, data: Dataset, model: Model, metrics: Sequence[definitions.AnyMetric] = ()
) -> dict[str, Any]:
    """Return metrics, as `Result.measure`, of the scores of `model`, shape (examples, outputs)."""
    chosen = definitions.check_metrics(metrics) or definitions.default_metrics(data.regression)
    found = Metrics(chosen, data, model)
    y = data.y_test.astype(model.dtype) if data.regression else data.y_test
    return found.named(found.measure(y[None], scores[None])[0])


def confusion_matrix(scores: Array, data: Dataset, model: Model) -> pd.DataFrame:
    """Return the confusion matrix, as `Result.confusion_matrix`."""
    import pandas as pd

    counts = measure(scores, data, model, ["confusion_matrix"])["confusion_matrix"].astype(int)
    names = list(data.label_names)
    return pd.DataFrame(counts, pd.Index(names, name="true"), pd.Index(names, name="predicted"))


def class_scores(scores: Array, data: Dataset) -> pd.DataFrame:
    """Return recall and precision of each class, as `Result.class_scores`."""
    import pandas as pd

    if data.regression:
        raise ConfigError(f"{data.name} has real-valued targets; allowed: a dataset with classes, which have a recall")
    found = definitions.class_scores(data.y_test, predicted_labels(scores), data.num_classes)
    columns = {"test_examples": found.num_examples, "recall": found.recall, "precision": found.precision}
    return pd.DataFrame({"class": data.label_names, **columns})
