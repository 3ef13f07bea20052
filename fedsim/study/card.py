"""Model cards: what a run trained, on what, how well it works and for whom, and what is not known of it.

Mitchell, Wu, Zaldivar, Barnes, Vasserman, Hutchinson, Spitzer, Raji and Gebru, "Model cards for model reporting", FAT*
2019 (arXiv:1810.03993), section 4. A card is Markdown; all of its figures come from the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_instance
from fedsim.clients.local_round import personalises
from fedsim.clients.sensitive import TEST_SET
from fedsim.fairness import client_fairness, group_rates
from fedsim.objects import short_repr
from fedsim.splits.measure import summary
from fedsim.splits.names import describe_client
from fedsim.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.data import Dataset
    from fedsim.models import Model
    from fedsim.splits import FederatedDataset
    from fedsim.study.result import Result

#: Largest number of classes, and of clients, that a table lists.
MAX_ROWS = 20
#: Number of clients with the lowest scores that are named.
WORST_CLIENTS = 3
#: Largest number of characters of a setting's value that is shown.
MAX_LENGTH = 300
#: Settings that other lines of a card describe.
_DESCRIBED = (
    "dataset",
    "data_dir",
    "split",
    "model",
    "hidden",
    "activation",
    "loss",
    "dtype",
    "client",
    "rounds",
    "seed",
)


def model_card(result: Result, federated: FederatedDataset, model: Model, contributions: Any = None) -> str:
    """Return the model card of a run, as `Result.card`, given the data and the model of the run."""
    experiment, title = result.experiment, federated.dataset.name
    classes = class_scores(result, federated.dataset, model) if result.score == "accuracy" else None
    parts = [
        f"# Model card: {_text(title)}",
        f"Trained by {result.rounds} rounds of federated learning on {len(federated.partition)} clients with "
        f"`{_code(experiment.client)}`, seed {experiment.seed}. Test {_score_name(result)}: {result.final_score:.3f}.",
        "## Model",
        _table(_model(result, model)),
        "## Training data",
        _table(_data(federated, experiment.split)),
        *["\n".join(f"- {_text(note)}" for note in federated.dataset.notes)][: len(federated.dataset.notes)],
        "## Training",
        _table(_training(result)),
        "## Evaluation",
        *_evaluation(result, federated, classes),
        "## Privacy",
        _privacy(result),
        "## Contributions of clients",
        *_contributions(federated.partition.sizes, contributions),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in _limits(result, federated, model, classes)),
    ]
    return "\n\n".join(parts) + "\n"


def _model(result: Result, model: Model) -> list[tuple[str, str]]:
    from importlib.metadata import version

    experiment = result.experiment
    arrays = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, (_, shape) in model.layout.items())
    kind = f"MLP with {experiment.activation} units" if experiment.model is None else type(model).__name__
    return [
        ("architecture", f"{kind}: {arrays}; {model.num_parameters:,} parameters of {model.dtype}"),
        ("loss", model.loss),
        ("software", ", ".join(f"{name} {version(name)}" for name in ("fedsim", "flwr", "numpy"))),
    ]


def _data(federated: FederatedDataset, split: Any) -> list[tuple[str, str]]:
    data, measures = federated.dataset, summary(federated)
    targets = "real-valued targets" if data.regression else f"{data.num_classes} classes"
    own = federated.partition_test
    held_out = f"; {own.sizes.sum():,} more for the clients' own evaluation" if own is not None else ""
    return [
        ("examples", f"{federated.partition.sizes.sum():,} for training{held_out}; {len(data.y_test):,} test examples"),
        ("targets", targets),
        ("split", f"`{_code(split)}`"),
        (
            "examples per client",
            f"{measures['smallest']:,.0f} to {measures['largest']:,.0f}, median {measures['median']:,.0f}",
        ),
        ("label skew", f"earth mover's distance {measures['emd']:.2f} (0: as the population, 2: nothing in common)"),
    ]


def _training(result: Result) -> list[tuple[str, str]]:
    experiment, rounds = result.experiment, result.history.iloc[1:]
    lines = [("client strategy", f"`{_code(experiment.client)}`")]
    ended = f" of {experiment.rounds}: {_text(result.stop_reason)}" if result.stop_reason else ""
    lines.append(("rounds", f"{result.rounds}{ended}"))
    lines.append(
        ("clients per round", f"{rounds['clients'].mean():.1f} aggregated, {rounds['failures'].mean():.1f} excluded")
    )
    for setting in fields(experiment):
        value = getattr(experiment, setting.name)
        if setting.name not in _DESCRIBED and value != setting.default and value is not None:
            lines.append((setting.name, f"`{_code(value)}`"))
    return lines


def _evaluation(result: Result, federated: FederatedDataset, classes: pd.DataFrame | None) -> list[str]:
    data, last = federated.dataset, result.history.iloc[-1]
    parts = [
        f"The global model has a loss of {last['test_loss']:.4f} and {_score_name(result)} of {result.final_score:.3f} "
        f"on the test set of {len(data.y_test):,} examples."
    ]
    if classes is not None:
        shown = classes.sort_values("recall", na_position="last").head(MAX_ROWS).sort_index()
        if len(shown) < len(classes):
            parts.append(f"The {MAX_ROWS} of {len(classes)} classes with the lowest recall:")
        parts.append(_frame(shown))
    if len(result.clients):
        found = client_fairness(result).iloc[-1]
        parts.append(
            f"On their own examples, {found['clients']:.0f} clients have {_score_name(result)} of {found['mean']:.3f} "
            f"on average, the worst tenth {found['worst_decile']:.3f}, the best tenth {found['best_decile']:.3f}."
            f"{_worst_clients(result, federated.client_names)}"
        )
    if result.experiment.sensitive:
        label = 1 if result.experiment.positive is None else result.experiment.positive
        column, positive = _text(result.experiment.sensitive), _text(data.label_names[label])
        parts += [f"Rates in the groups of {column} on the test set; {positive} is positive:", _frame(_groups(result))]
    return parts


def _worst_clients(result: Result, names: Sequence[str]) -> str:
    """Return the clients with the lowest scores in the last evaluated round, if clients have names."""
    last = result.clients[result.clients["round"] == result.clients["round"].max()]
    worst = last.nsmallest(WORST_CLIENTS, result.score)  # without NaN
    if not names or worst.empty:
        return ""
    rows = zip(worst["partition_id"], worst[result.score], strict=True)
    return f" Lowest: {'; '.join(f'{_text(describe_client(client, names))} {score:.3f}' for client, score in rows)}."


def _groups(result: Result) -> pd.DataFrame:
    """Return the rates of the final global model in groups of people."""
    counts = result.groups[(result.groups["round"] == result.rounds) & (result.groups["partition_id"] == TEST_SET)]
    return group_rates(counts.drop(columns=["round", "partition_id"]))


def class_scores(result: Result, data: Dataset, model: Model) -> pd.DataFrame:
    """Return recall and precision of each class on the test set.

    Returns
    -------
    DataFrame
        One row per class: ``class, test_examples, recall, precision``; NaN for a class without test examples, and for
        the precision of a class that is never predicted.
    """
    import pandas as pd

    true, predicted = data.y_test, result.predict(data.x_test, model)
    examples, found, right = (
        np.bincount(labels, minlength=data.num_classes) for labels in (true, predicted, true[true == predicted])
    )
    with np.errstate(invalid="ignore"):
        recall, precision = right / examples, right / found
    columns = {"class": data.label_names, "test_examples": examples, "recall": recall, "precision": precision}
    return pd.DataFrame(columns)


def _privacy(result: Result) -> str:
    experiment = result.experiment
    spent = f"Differential privacy: {_text(result.privacy)}." if result.privacy else "No differential privacy."
    if experiment.privacy and not getattr(experiment.privacy, "system_noise", False):
        spent += " The noise is a function of the seed, so that this holds for whoever does not know the seed."
    seen = "the sum of a round's updates only" if experiment.secure_aggregation else "each client's update"
    return f"{spent} The server sees {seen}."


def _contributions(sizes: NDArray[np.intp], contributions: Any) -> list[str]:
    import pandas as pd

    largest, tenth = np.sort(sizes)[::-1] / sizes.sum(), -(-len(sizes) // 10)
    shares = (
        f"{np.count_nonzero(sizes)} clients have training examples; the largest has {largest[0]:.1%} of them, the "
        f"largest tenth of the clients {largest[:tenth].sum():.1%}."
    )
    if contributions is None:
        return [f"{shares} What the model owes to each of them was not measured; `fedsim.contribution` does."]
    frame = contributions.to_frame() if hasattr(contributions, "to_frame") else contributions
    check_instance("contributions", frame, pd.DataFrame, "a DataFrame, or an object of fedsim.contribution")
    cut = [f"The first {MAX_ROWS} of {len(frame)} rows:"] if len(frame) > MAX_ROWS else []
    return [shares, *cut, _frame(frame.head(MAX_ROWS))]


def _limits(result: Result, federated: FederatedDataset, model: Model, classes: pd.DataFrame | None) -> list[str]:
    """Return a sentence for each limit that the result shows."""
    limits = [
        "These are the results of one seed; how much they vary by chance is not known.",
        "The test set has the distribution of the dataset, not that of any single client or of any other population.",
    ]
    if personalises(result.experiment.client, model):
        limits.append("Clients predict with models of their own, not with the global model that this card describes.")
    if classes is not None:
        limits += _class_limits(classes, federated)
    if not len(result.clients):
        limits.append("How accuracy differs between clients was not measured.")
    elif federated.partition_test is None:
        limits.append("Clients evaluated on the examples that they had trained on.")
    if result.experiment.sensitive is None:
        limits.append("How it works for different groups of people was not measured.")
    if result.experiment.attack:
        success = result.history["attack_success"].iloc[-1]
        share = "" if np.isnan(success) else f" Their attack succeeds on {success:.2f} of the targeted examples."
        limits.append(f"Some clients were malicious, by simulation.{share}")
    if len(result.failures):
        who = result.failures["partition_id"].nunique()
        limits.append(f"{len(result.failures)} updates of {who} clients were excluded.")
    if not result.privacy:
        limits.append("Nothing bounds what the model reveals of single training examples.")
    return limits


def _class_limits(classes: pd.DataFrame, federated: FederatedDataset) -> list[str]:
    limits = []
    untrained = np.flatnonzero(federated.label_counts().sum(axis=0) == 0)
    if len(untrained):
        limits.append(f"No client has training examples of {_names(classes['class'][untrained])}.")
    if classes["recall"].isna().any():
        limits.append(f"There are no test examples of {_names(classes['class'][classes['recall'].isna()])}.")
    if classes["recall"].notna().any():
        worst = classes.loc[classes["recall"].idxmin()]
        examples = f"{worst['test_examples']} test examples"
        limits.append(f"Recall is lowest, {worst['recall']:.2f}, for class {_text(worst['class'])} ({examples}).")
    return limits


def _names(names: Iterable[object]) -> str:
    known = list(names)
    more = f" and {len(known) - MAX_ROWS} more" if len(known) > MAX_ROWS else ""
    return f"class {', '.join(map(_text, known[:MAX_ROWS]))}{more}"


def _score_name(result: Result) -> str:
    return {"accuracy": "accuracy", "r2": "R squared"}[result.score]


def _text(value: object) -> str:
    """Return a text on one line in which Markdown and HTML have no meaning."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", printable(str(value)))


def _code(value: Any) -> str:
    """Return the text of a setting's value for a code span in a table."""
    text = printable(short_repr(value) if isinstance(value, partial | type) else repr(value))
    return (text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ...").replace("`", "'").replace("|", "\\|")


def _table(lines: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *[f"| {name} | {value} |" for name, value in lines]])


def _frame(frame: pd.DataFrame) -> str:
    """Return a data frame as a table; fractions have three decimals."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.3f}"
        return _text(value)

    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [[_text(name) for name in frame], ["---"] * len(frame.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
