"""The documentation: its code runs, its configuration files are accepted, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from fedsim import Experiment, compare, data
from fedsim.report.catalogue import client_entries, server_entries
from fedsim.report.tables import splits_table
from fedsim.splits import IID, Shards, Split
from fedsim.study import config
from fedsim.study.plan import make_plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_readmes_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for code in fenced(page, "python"):
        exec(compile(code, str(page), "exec"), names)
    ones = np.ones((2, 3))
    context = type("Context", (), {"global_weights": np.zeros(3)})
    assert (names["MyFedProx"](mu=0.5).direction(ones, ones, context) == 1.5).all()
    assert (tmp_path / "iid_vs_noniid.png").stat().st_size > 10_000


def test_configuration_files_on_the_configuration_page_are_accepted() -> None:
    run, study = fenced(ROOT / "docs/configuration.md", "toml")
    assert config.experiment(tomllib.loads(run)).fraction_train == 0.2
    assert len(make_plan(tomllib.loads(study)).axes["split"]) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text(page)):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_chinese_readme_shows_the_same_results_and_commands() -> None:
    english, chinese = (re.findall(r"^    (?! ).*", text(page), re.MULTILINE) for page in PAGES[:2])
    assert [line for line in english if "ctx" not in line] == [line for line in chinese if "ctx" not in line]
    assert len(english) > 10


def test_the_guide_shows_the_strategies_of_its_script() -> None:
    """Each class on the page is the scripts', word for word; the scripts are run by other tests."""
    script = "".join(text(ROOT / f"experiments/{name}.py") for name in ("extend_client_strategy", "extend_round"))
    shown = [code for code in fenced(ROOT / "docs/extend.md", "python") if code.startswith(("class ", "@dataclass"))]
    assert len(shown) == len(re.findall("^class ", script, re.MULTILINE))
    for code in shown:
        assert code in script


def test_every_strategy_is_on_the_strategies_page() -> None:
    page = text(ROOT / "docs/strategies.md")
    for name in [*(e.name for e in client_entries()), *(e.name for e in server_entries())]:
        assert f"`{name}`" in page
    counts = f"{len(list(client_entries()))} client and {len(list(server_entries()))} server strategies"
    assert counts in text(ROOT / "README.md")


def test_every_split_and_dataset_is_on_its_page() -> None:
    page = text(ROOT / "docs/splits.md")
    families = [name for name, cls in config.known_classes("split")[1].items() if issubclass(cls, Split)]
    for name in families:
        assert f"| `{name}(" in page
    for law in (name for name in config.known_classes("split")[1] if name not in families):
        assert f"`{law}(" in page
    for readme in PAGES[:2]:
        assert re.search(rf"{len(families)} (splits|种划分)", text(readme))
    for dataset in data.DATASETS:
        assert f"`{dataset}" in text(ROOT / "docs/data.md")


def test_the_table_on_the_splits_page_is_what_is_printed() -> None:
    page = text(ROOT / "docs/splits.md")
    command, printed = re.search(r"^    fedsim splits (.*) --kind.*\n\n((?:    .*\n)+)", page, re.MULTILINE).groups()  # type: ignore[union-attr]
    digits = data.load("digits")
    held = {str(s): s.federate(digits) for s in (config.build("split", t) for t in shlex.split(command))}
    lines = splits_table(held).to_string().splitlines()
    assert [line.strip() for line in printed.splitlines()[1:]] == [line.strip() for line in lines]


@pytest.mark.parametrize("name", ["splits", "data", "configuration"])
def test_code_on_the_pages_runs(name: str) -> None:
    for code in fenced(ROOT / f"docs/{name}.md", "python"):
        names: dict[str, Any] = {}
        exec(compile(code, name, "exec"), names)
        if "RoundRobin" in names:
            assert names["RoundRobin"](3).federate(data.load("digits")).partition.sizes.tolist() == [481, 481, 480]
        else:
            assert len(names["result"].history) == 3


def test_the_statistics_page_shows_what_its_code_computes() -> None:
    names: dict[str, Any] = {}
    for code in fenced(ROOT / "docs/statistics.md", "python"):
        exec(compile(code, "statistics", "exec"), names)
    row = " | ".join(f"{effect:.2f}" for effect in names["smallest"].values())
    assert f"| smallest difference | {row} |" in text(ROOT / "docs/statistics.md")
    assert names["tests"]["split"].tolist() == ["IID", "Dirichlet(0.1)"]
    assert not names["tests"]["p_holm"].isna().any()


def test_the_attack_on_the_privacy_page_finds_the_example() -> None:
    [code] = fenced(ROOT / "docs/privacy.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "privacy", "exec"), names)
    assert names["found"].psnr(names["data"].x_train[names["seen"].indices])[0] > 100


@pytest.mark.parametrize("name", ["drift_mnist", "personalised", "fedavg_table1", "insteval"])
def test_study_files_are_accepted(name: str) -> None:
    plan = make_plan(config.read(ROOT / f"experiments/{name}.toml"))
    assert plan.axes


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_readmes_table_has_the_columns_that_are_printed(page: Path) -> None:
    base = Experiment(rounds=1, fraction_evaluate=1.0)  # as experiments/iid_vs_noniid.py evaluates
    study = compare(base, split=[IID(5), Shards(5, per_client=2)], seeds=3)
    printed = study.table(0.9).to_string().splitlines()[0].split()
    assert " ".join(printed) in " ".join(text(page).split())
