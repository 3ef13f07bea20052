"""Tables of splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedsim.splits import FederatedDataset
from fedsim.splits.measure import skew, summary
from fedsim.splits.names import MAX_LENGTH
from fedsim.text import cut, printable

if TYPE_CHECKING:
    import pandas as pd

#: Columns of `splits_table`: name in `fedsim.splits.measure.summary` -> heading, decimals.
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


def splits_table(splits: Mapping[str, FederatedDataset]) -> pd.DataFrame:
    """Return a row per split: its sizes, and the means over clients of the measures of `skew`, as text."""
    import pandas as pd

    frame = pd.DataFrame({label: summary(federated) for label, federated in splits.items()}).T
    shown = {heading: [f"{value:,.{digits}f}" for value in frame[name]] for name, (heading, digits) in HEADINGS.items()}
    return pd.DataFrame(shown, index=frame.index)


def shards_table(federated: FederatedDataset) -> pd.DataFrame:
    """Return a row per client: its number of examples of each label and in total, and its distance to the population.

    The last three columns are ``examples, EMD, features``, also where a label has one of these names. The index is the
    client's number, and its name if clients have names.
    """
    import pandas as pd

    labels, names = federated.dataset.label_names, federated.client_names
    counts = pd.DataFrame(federated.label_counts(), columns=list(map(printable, labels)))
    distances = skew(federated).set_index("client")[["emd", "feature_distance"]].reindex(counts.index).round(2)
    distances.columns = pd.Index([HEADINGS[name][0] for name in distances])
    table = pd.concat([counts, pd.Series(federated.partition.sizes, name="examples"), distances], axis=1)
    if not names:
        return table.rename_axis("client")
    index = [(client, cut(name, MAX_LENGTH)) for client, name in enumerate(names)]
    return table.set_axis(pd.MultiIndex.from_tuples(index, names=["client", "name"]))
