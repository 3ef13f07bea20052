"""Random configurations: each runs to finite numbers, or is refused in one sentence.

Settings and ``--set`` values are drawn from the grammar of the real ones, then spoilt here and there: wrong types, huge
numbers, NaN, odd text, nested calls, nothing, lists. Whatever comes of it, there is no other exception, no warning, no
word on standard error, and no hang. The tests try a few hundred; more, with the distinct failures at the end, by::

    python tests/test_fuzz_config.py 10000
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedsim import Experiment
from fedsim.errors import FedsimError
from fedsim.servers.options import declared_type, options_of
from fedsim.study import config
from fedsim.toml import read_toml

#: Seconds after which a case counts as a hang.
HANG = 60
#: Work that is allowed but not worth waiting for: more than so many of what is repeated, or parameters.
MOST_WORK, MOST_PARAMETERS = 20, 200_000
#: Larger numbers of repetitions must be refused.
ENDLESS = 2**31
#: Settings that say how often something is repeated.
REPEATED = ("epochs", "steps", "iterations", "windows", "updates", "models", "clusters", "num_models")

# What is drawn.

ODD_TEXTS = st.sampled_from(
    ["", " ", "x", "None", "é😀", "\n", "'", '"""', "\\", "\x7f", "label", "nan", "(", "IID(3)", "x" * 300]
)
ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 3, 7, 100, 2**31, 2**63, 10**23, 0.0, -0.0, 0.5, 1.0, 1.5, -2.5, 1e-320, 1e-8, 1e8, 1e300]
) | st.floats(allow_nan=True, allow_infinity=True)
HUGE = st.sampled_from([2**31, 2**63, 2**64, 10**23, 1e300, -1, 0, float("nan"), float("inf")])
ODD = st.one_of(
    HUGE,
    HUGE,
    ODD_NUMBERS,
    ODD_TEXTS,
    st.booleans(),
    st.lists(st.sampled_from([0, 1, 2, -1, 0.5, "x", True, []]), max_size=3),
    st.dictionaries(st.sampled_from(["a", ""]), st.integers(0, 2), max_size=1),
)


class Call(str):
    """Text that stands for a call, written without quotes among arguments."""


def written(value: Any) -> str:
    """An argument as Python would write it; numbers that have no literal as ones that overflow to them."""
    if isinstance(value, Call):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return {"inf": "1e999", "-inf": "-1e999", "nan": "nan"}[str(value)]
    return repr(value)


def one_in(times: int) -> st.SearchStrategy[bool]:
    """Rarely true; small numbers are drawn more often than others."""
    return st.sampled_from([False] * times + [True])


def some(names: Iterable[str]) -> st.SearchStrategy[list[str]]:
    """A few of some names."""
    return st.lists(st.sampled_from(sorted(names)), max_size=3, unique=True) if names else st.just([])


@st.composite
def calls(draw: st.DrawFn, field: str, depth: int = 0) -> Call:
    """A call of one of a field's classes, most arguments sound."""
    names = config.known_classes(field)[1]
    if field == "split":
        weights = [n for n in names if n not in ("FlowerDatasets", "Natural")]
        name = draw(st.sampled_from(["IID", "Dirichlet", *weights]))
    else:
        name = draw(st.sampled_from(sorted(names)))
    cls = names[name]
    if field == "server":
        declared = {option: declared_type(parameter) for option, parameter in options_of(cls).items()}
        options = {o: kind for o, kind in declared.items() if kind.removesuffix(" | None") in ("int", "float", "bool")}
        known = {option: sound_option(option, kind) for option, kind in options.items()}
        chosen = draw(some(known))
    else:
        known = {f.name: sound(cls, f, depth) for f in fields(cls) if f.init}
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        chosen = needed + [n for n in draw(some(known)) if n not in needed]
    arguments = []
    for option in dict.fromkeys(chosen):
        spoilt = draw(one_in(5))
        value = draw(ODD | st.none() | st.just(Call("IID(3)")) if spoilt else known[option])
        arguments.append(f"{option}={written(value)}")
    if draw(one_in(30)):
        arguments.append(draw(st.sampled_from(["nothing=1", "3", "**{}", "*[]", "lr", "seed=", "x=IID", "f()"])))
    text = f"{name}({', '.join(arguments)})"
    if draw(one_in(40)):
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(ODD_TEXTS) + text[cut:]
    return Call(text)


def sound(cls: type, field: Any, depth: int) -> st.SearchStrategy[Any]:
    """Values that a field of a client strategy, split or transform takes, most likely."""
    name, default = field.name, field.default
    if name in ("split", "other"):
        return calls("split", depth + 1) if depth < 2 else st.just(Call("IID(4)"))
    if name == "num_clients":
        return st.integers(1, 8)
    if name == "sizes":
        return st.sampled_from(
            [None, Call("LogNormal(1.0)"), Call("PowerLaw"), Call("DirichletSizes(alpha=0.5)"), [3, 4, 5]]
        )
    if name == "batch_size":
        return st.none() | st.integers(1, 40)
    if name == "seed":
        return st.none() | st.integers(0, 2**64)
    if name == "by":
        return st.sampled_from([None, "label", "group"])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int) or name in ("steps", "per_client", "labels_per_client"):
        return st.integers(1, 3)
    if isinstance(default, float):
        return st.floats(0, 1) | st.just(default)
    if isinstance(default, tuple):
        return st.lists(st.integers(0, 360), min_size=1, max_size=3)
    return st.floats(0, 1) | st.integers(1, 3)


def sound_option(name: str, kind: str) -> st.SearchStrategy[Any]:
    if name.startswith(("min_", "num_")):
        return st.integers(0, 3)
    if kind.startswith("int"):
        return st.integers(1, 3)
    return st.floats(0, 1)


TABLE = "table('tiny.csv', label={label!r}, client_column='group', drop={drop!r})"
DATASETS = [
    TABLE.format(label="y", drop=["target"]),
    TABLE.format(label="target", drop=["y"]),
    TABLE.format(label="two", drop=[]),
    "digits",
]
#: Options of a table: sound values, and whatever else.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "label": st.sampled_from(["y", "two", "target", "kind"]),
    "client_column": st.sampled_from(["group", "kind", ["group", "kind"]]),
    "drop": st.lists(st.sampled_from(["a", "b", "y"]), max_size=2),
    "categorical": st.lists(st.sampled_from(["c", "two"]), max_size=1),
    "test_fraction": st.floats(0.05, 0.6),
    "regression": st.sampled_from([None, True, False]),
    "max_categories": st.integers(2, 9),
}


@st.composite
def tables(draw: st.DrawFn) -> str:
    """The text of a dataset that is a table."""
    chosen = draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=3, unique=True))
    values = {name: draw(ODD if draw(one_in(5)) else OPTIONS[name]) for name in dict.fromkeys(["label", *chosen])}
    return f"table('tiny.csv', {', '.join(f'{name}={written(value)}' for name, value in values.items())})"


SOUND: dict[str, st.SearchStrategy[Any]] = {
    "split": calls("split"),
    "hidden": st.lists(st.integers(1, 9), max_size=3),
    "activation": st.sampled_from(["relu", "tanh", "sigmoid"]),
    "loss": st.sampled_from(["cross_entropy", "binary_cross_entropy", "mse"]),
    "dtype": st.sampled_from(["float32", "float64"]),
    "client": calls("client"),
    "server": calls("server"),
    "fraction_train": st.floats(0.01, 1),
    "fraction_evaluate": st.floats(0, 1),
    "test_fraction": st.floats(0, 0.9),
    "rounds": st.integers(1, 3),
    "seed": st.integers(0, 2**63),
    "on_failure": st.sampled_from(["raise", "exclude"]),
    "kernel": st.sampled_from(["auto", "numpy", "compiled"]),
    "weight_divergence": st.booleans(),
    "min_clients": st.integers(1, 3),
    "transforms": st.lists(calls("transforms"), max_size=2),
}


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    """Settings, and what ``--set`` is given."""
    chosen = draw(st.lists(st.sampled_from(list(SOUND)), max_size=6, unique=True))
    made: dict[str, Any] = {"dataset": draw(st.sampled_from(DATASETS) | tables()), "split": "IID(4)"}
    made |= {name: draw(ODD if draw(one_in(19)) else SOUND[name]) for name in chosen}
    if draw(one_in(30)):
        made[draw(st.sampled_from(["dataset", "data_dir", "nothing", ""]))] = draw(ODD)
    assignments = []
    for _ in range(draw(st.integers(0, 2))):
        key = draw(
            st.sampled_from(
                [*SOUND, "client.lr", "client.epochs", "client.steps", "split.seed", "split.alpha", "split.split"]
            )
        )
        value = draw(SOUND.get(key, ODD) if draw(st.booleans()) else ODD)
        quoted = draw(st.booleans())
        plain = isinstance(value, str) and not quoted
        assignments.append(f"{key}={value if plain else tomli_w.dumps({'x': value})[4:].rstrip()}")
    return made, assignments


# What is asked of it.


def too_long(experiment: Experiment) -> bool:
    """Whether it would run longer than anybody waits: nothing is wrong with it."""
    server = experiment.server
    options = dict(server.keywords) if isinstance(server, partial) else {}
    repeated = [value for name, value in options.items() if name in REPEATED]
    parts: list[Any] = [experiment.client, experiment.split]
    while parts:
        part = parts.pop()
        for field in fields(part):
            value = getattr(part, field.name)
            if is_dataclass(value):
                parts.append(value)
            elif any(word in field.name for word in REPEATED) and isinstance(value, int):
                repeated.append(value)
    widths = [60, *experiment.hidden, 10]
    parameters = sum(a * b for a, b in itertools.pairwise(widths))
    return any(MOST_WORK < value < ENDLESS for value in repeated) or MOST_PARAMETERS < parameters < ENDLESS


@contextlib.contextmanager
def quiet_and_in_time() -> Iterator[None]:
    """Turn warnings and a hang into exceptions, and words on standard error too."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end after {HANG} s")

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    notices = re.compile("fedsim: (compiling the|round 1 of .* the model is unchanged|[0-9]+ of .* changed nothing)")
    unexpected = [line for line in said.getvalue().splitlines() if not notices.match(line)]
    assert not unexpected, unexpected


def try_case(made: dict[str, Any], assignments: list[str]) -> str:
    """Make the experiment and run a round of it; return what came of it."""
    refusal = None
    with quiet_and_in_time():
        try:
            experiment = config.experiment(read_toml("the case", tomli_w.dumps(made)))
            experiment = config.apply(experiment, assignments)
            if too_long(experiment):
                return "long"
            result = replace(experiment, rounds=1).run(workers=1)
        except (FedsimError, OSError, MemoryError) as error:  # the command line makes one sentence of each
            refusal = str(error)
    if refusal is not None:
        assert len(refusal.splitlines()) == 1, refusal
        return "refused"
    assert all(np.isfinite(values).all() for values in result.weights.values()), "weights are not finite"
    for column in ("test_loss", f"test_{result.score}"):
        assert np.isfinite(result.history[column]).all(), f"{column} is not finite"
    return "ran"


def write_table(folder: Path) -> None:
    """Sixty rows with labels, a target, a group, a missing value."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 4))
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["kind"] = rng.choice(["u", "v"], 60)
    frame["group"] = rng.choice(["p", "q", "r"], 60)
    frame["y"] = np.array(["l", "m", "n"])[(x[:, :3]).argmax(axis=1)]
    frame["two"] = (x[:, 0] > 0).astype(int)
    frame["target"] = x @ np.array([1.0, 2.0, 0.0, -1.0])
    frame.loc[3, "a"] = np.nan
    frame.to_csv(folder / "tiny.csv", index=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("fuzz")
        write_table(place)
        patch.chdir(place)
        Experiment(dataset=DATASETS[0], rounds=1, split=config.build("split", "IID(3)")).run()  # imports warn, not runs
        yield place


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_a_random_configuration_runs_or_is_refused(folder: Path, case: tuple[dict[str, Any], list[str]]) -> None:
    try_case(*case)


def main(examples: int) -> None:
    """Try many cases and print the distinct failures, each with the shortest case."""
    outcomes: dict[str, int] = {}
    failures: dict[str, tuple[int, str]] = {}

    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases())
    def run(case: tuple[dict[str, Any], list[str]]) -> None:
        try:
            outcome = try_case(*case)
        except Exception as error:
            frame = [f for f in traceback.extract_tb(error.__traceback__) if "fedsim" in f.filename][-1]
            what = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:200]}"
            key = f"{type(error).__name__} {frame.filename}:{frame.lineno}"
            shown = tomli_w.dumps(case[0]) + f"# --set {case[1]}"
            if key not in failures or len(shown) < failures[key][0]:
                failures[key] = len(shown), f"{what}\n{shown}"
            outcome = "failed"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        write_table(Path(place))
        Experiment(dataset=DATASETS[0], rounds=1, split=config.build("split", "IID(3)")).run()
        run()
    for _, text in failures.values():
        print(text, end="\n\n")
    print(outcomes)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
