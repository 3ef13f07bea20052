"""Tables of splits, for reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedsim.splits import FederatedDataset
from fedsim.splits.measure import skew, summary

if TYPE_CHECKING:
    import pandas as pd

#: What a column of `splits_table` is called: `fedsim.splits.measure.summary`'s name -> heading, decimals.
HEADINGS = {
    "clients": ("clients", 0),
    "smallest": ("smallest", 0),
    "median": ("median", 0),
    "largest": ("largest", 0),
    "gini": ("Gini", 2),
    "labels": ("labels", 1),
    "effective_labels": ("effective", 1),
    "total_variation": ("TV", 2),
    "emd": ("EMD", 2),
    "jensen_shannon": ("JS", 2),
    "feature_distance": ("features", 2),
}


def splits_table(held: Mapping[str, FederatedDataset]) -> pd.DataFrame:
    """Return how non-IID splits are: a row per split, its sizes and means over clients of `skew`'s measures."""
    import pandas as pd

    rows = {label: summary(federated) for label, federated in held.items()}
    frame = pd.DataFrame(rows).T
    shown = {heading: [f"{value:,.{digits}f}" for value in frame[name]] for name, (heading, digits) in HEADINGS.items()}
    return pd.DataFrame(shown, index=frame.index)


def shards_table(held: FederatedDataset) -> pd.DataFrame:
    """Return a row per client: its examples of each label, and how far it is from the population."""
    import pandas as pd

    frame = pd.DataFrame(held.label_counts(), columns=list(held.dataset.label_names))
    frame.index.name = "client"
    measured = skew(held).set_index("client")
    frame["examples"] = held.partition.sizes
    for name in ("emd", "feature_distance"):
        frame[HEADINGS[name][0]] = measured[name].reindex(frame.index).round(2)
    return frame
