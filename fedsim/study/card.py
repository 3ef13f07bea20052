"""Model cards: what a run trained, on what, how well it works and for whom, and what is not known of it.

Mitchell, Wu, Zaldivar, Barnes, Vasserman, Hutchinson, Spitzer, Raji and Gebru, "Model cards for model reporting", FAT*
2019 (arXiv:1810.03993), section 4. A card is Markdown; all of its figures come from the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_instance
from fedsim.clients.local_round import personalises
from fedsim.clients.measures import TEST_SET
from fedsim.clients.metrics import has_class_scores
from fedsim.clients.private import private_groups, private_mask
from fedsim.clients.sensitive import COUNTS
from fedsim.fairness import group_rates
from fedsim.fairness.clients import final_measures
from fedsim.models import flat_parameters
from fedsim.models.metrics import default_metrics, metric_name, metric_title
from fedsim.objects import short_repr
from fedsim.report.markdown import frame_table, markdown_text, settings_table
from fedsim.splits.measure import summary
from fedsim.splits.names import describe_client
from fedsim.study import scoring
from fedsim.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.data import Dataset
    from fedsim.models import Array, Model
    from fedsim.splits import FederatedDataset
    from fedsim.study.result import Result

#: Largest number of classes, and of clients, that a table lists.
MAX_ROWS = 20
#: Largest number of classes of a confusion matrix.
MAX_MATRIX = 10
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
    "metrics",
)


def model_card(result: Result, federated: FederatedDataset, model: Model, contributions: Any = None) -> str:
    """Return the model card of a run, as `Result.card`, given the data and the model of the run."""
    experiment, title = result.experiment, federated.dataset.name
    data, classes = federated.dataset, None
    scores = None
    if result.has_global_model:
        scores = scoring.scores(model, flat_parameters(model, result.weights), data.x_test)
        classes = None if data.regression else scoring.class_scores(scores, data)
    parts = [
        f"# Model card: {markdown_text(title)}",
        f"Trained by {result.rounds} rounds of federated learning on {len(federated.partition)} clients with "
        f"`{_code(experiment.client)}`, seed {experiment.seed}. {_headline(result)}",
        "## Model",
        settings_table(_model(result, model)),
        "## Training data",
        settings_table(_data(federated, experiment.split)),
        *["\n".join(f"- {markdown_text(note)}" for note in federated.dataset.notes)][: len(federated.dataset.notes)],
        "## Training",
        settings_table(_training(result)),
        "## Evaluation",
        *_evaluation(result, federated, model, scores, classes),
        "## Privacy",
        _privacy(result, model),
        "## Contributions of clients",
        *_contributions(federated.partition.sizes, contributions),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in _limits(result, federated, model, classes)),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(result: Result) -> str:
    """Return the final score: of the global model or, without one, of the clients' own models."""
    if result.has_global_model:
        return f"Test {_score_name(result)}: {result.final_score:.3f}."
    local = result.history[f"local_{result.score}"].dropna()
    known = f" Their mean {_score_name(result)} on their own examples: {local.iloc[-1]:.3f}." if len(local) else ""
    return f"There is no global model: each client predicts with a model of its own.{known}"


def _model(result: Result, model: Model) -> list[tuple[str, str]]:
    from importlib.metadata import version

    experiment = result.experiment
    arrays = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, (_, shape) in model.layout.items())
    kind = f"MLP with {experiment.activation} units" if experiment.model is None else type(model).__name__
    private = ", ".join(name for group in private_groups(experiment.client, model) for name in group)
    return [
        ("architecture", f"{kind}: {arrays}; {model.num_parameters:,} parameters of {model.dtype}"),
        *([("private parameters", f"{private}: each client has its own")] if private else []),
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
    ended = f" of {experiment.rounds}: {markdown_text(result.stop_reason)}" if result.stop_reason else ""
    lines.append(("rounds", f"{result.rounds}{ended}"))
    lines.append(
        ("clients per round", f"{rounds['clients'].mean():.1f} aggregated, {rounds['failures'].mean():.1f} excluded")
    )
    for setting in fields(experiment):
        value = getattr(experiment, setting.name)
        if setting.name not in _DESCRIBED and value != setting.default and value is not None:
            lines.append((setting.name, f"`{_code(value)}`"))
    if experiment.metrics:
        lines.append(("metrics", f"{markdown_text(', '.join(map(metric_name, experiment.metrics)))}"))
    return lines


def _evaluation(
    result: Result, federated: FederatedDataset, model: Model, scores: Array | None, classes: pd.DataFrame | None
) -> list[str]:
    data = federated.dataset
    parts = [] if scores is None else _global_model(result, data, model, scores)
    if classes is not None:
        shown = classes.sort_values("recall", na_position="last").head(MAX_ROWS).sort_index()
        if len(shown) < len(classes):
            parts.append(f"The {MAX_ROWS} of {len(classes)} classes with the lowest recall:")
        parts.append(frame_table(shown))
    if len(result.clients):
        found = final_measures(result)
        parts.append(
            f"On their own examples, {found['clients']:.0f} clients have {_score_name(result)} of {found['mean']:.3f} "
            f"on average, the worst tenth {found['worst_decile']:.3f}, the best tenth {found['best_decile']:.3f}."
            f"{_worst_clients(result, federated.client_names)}"
        )
    elif not result.has_global_model:
        parts.append("The clients' models were not evaluated.")
    if result.experiment.sensitive and (result.has_global_model or len(result.clients)):
        label = 1 if result.experiment.positive is None else result.experiment.positive
        column, positive = markdown_text(result.experiment.sensitive), markdown_text(data.label_names[label])
        where = "on the test set" if result.has_global_model else "on the clients' own examples"
        parts += [f"Rates in the groups of {column} {where}; {positive} is positive:", frame_table(_groups(result))]
    return parts


def _global_model(result: Result, data: Dataset, model: Model, scores: Array) -> list[str]:
    """Return the measures of the final global model on the test set."""
    import pandas as pd

    parts = [
        f"The global model has a loss of {result.history['test_loss'].iloc[-1]:.4f} and {_score_name(result)} of "
        f"{result.final_score:.3f} on the test set of {len(data.y_test):,} examples."
    ]
    if has_class_scores(data, model):
        own = [metric for metric in result.experiment.metrics if not isinstance(metric, str)]
        found = scoring.measure(scores, data, model, (*default_metrics(data.regression), *own))
        metrics = {"metric": map(metric_title, found), "value": found.values()}
        parts.append(frame_table(pd.DataFrame(metrics)))
        if not data.regression and data.num_classes <= MAX_MATRIX:
            matrix = scoring.confusion_matrix(scores, data, model)
            matrix.insert(0, "class", matrix.index)
            parts += ["Number of test examples of each class by predicted class:", frame_table(matrix)]
    return parts


def _worst_clients(result: Result, names: Sequence[str]) -> str:
    """Return the clients with the lowest scores in the last evaluated round, if clients have names."""
    last = result.clients[result.clients["round"] == result.clients["round"].max()]
    worst = last.nsmallest(WORST_CLIENTS, result.score)  # without NaN
    if not names or worst.empty:
        return ""
    rows = zip(worst["partition_id"], worst[result.score], strict=True)
    shown = [f"{markdown_text(describe_client(client, names))} {score:.3f}" for client, score in rows]
    return f" Lowest: {'; '.join(shown)}."


def _groups(result: Result) -> pd.DataFrame:
    """Return the rates in groups of people: of the final global model or, without one, of the clients together."""
    groups = result.groups
    if result.has_global_model:
        rows = groups[(groups["round"] == result.rounds) & (groups["partition_id"] == TEST_SET)]
    else:
        rows = groups[groups["round"] == groups["round"].max()]
    return group_rates(rows.groupby("group", as_index=False)[list(COUNTS)].sum())


def _privacy(result: Result, model: Model) -> str:
    experiment = result.experiment
    spent = f"Differential privacy: {markdown_text(result.privacy)}." if result.privacy else "No differential privacy."
    if experiment.privacy and not getattr(experiment.privacy, "system_noise", False):
        spent += " The noise is a function of the seed, so that this holds for whoever does not know the seed."
    seen = "the sum of a round's updates only" if experiment.secure_aggregation else "each client's update"
    if private_mask(experiment.client, model).all():
        seen = "no parameters of the clients"
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
    return [shares, *cut, frame_table(frame.head(MAX_ROWS))]


def _limits(result: Result, federated: FederatedDataset, model: Model, classes: pd.DataFrame | None) -> list[str]:
    """Return a sentence for each limit that the result shows."""
    limits = [
        "These are the results of one seed; how much they vary by chance is not known.",
        "The test set has the distribution of the dataset, not that of any single client or of any other population.",
    ]
    if not result.has_global_model:
        limits.append("Each client predicts with a model of its own, which was not evaluated on the test set.")
    elif personalises(result.experiment.client, model):
        limits.append("Clients predict with models of their own, not with the global model that this card describes.")
    if not federated.dataset.regression:
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


def _class_limits(classes: pd.DataFrame | None, federated: FederatedDataset) -> list[str]:
    limits, names = [], np.array(federated.dataset.label_names, dtype=object)
    untrained = federated.label_counts().sum(axis=0) == 0
    if untrained.any():
        limits.append(f"No client has training examples of {_names(names[untrained])}.")
    untested = np.bincount(federated.dataset.y_test, minlength=len(names)) == 0
    if untested.any():
        limits.append(f"There are no test examples of {_names(names[untested])}.")
    if classes is not None and classes["recall"].notna().any():
        worst = classes.loc[classes["recall"].idxmin()]
        name, examples = markdown_text(worst["class"]), f"{worst['test_examples']} test examples"
        limits.append(f"Recall is lowest, {worst['recall']:.2f}, for class {name} ({examples}).")
    return limits


def _names(names: Iterable[object]) -> str:
    known = list(names)
    more = f" and {len(known) - MAX_ROWS} more" if len(known) > MAX_ROWS else ""
    return f"class {', '.join(map(markdown_text, known[:MAX_ROWS]))}{more}"


def _score_name(result: Result) -> str:
    return {"accuracy": "accuracy", "r2": "R squared"}[result.score]


def _code(value: Any) -> str:
    """Return the text of a setting's value for a code span in a table."""
    text = printable(short_repr(value) if isinstance(value, partial | type) else repr(value))
    return (text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ...").replace("`", "'").replace("|", "\\|")
