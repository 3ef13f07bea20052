"""An exported app is complete and Flower's own: its files, its run configuration, and the classes that it needs."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import pytest
from flwr.cli.config_utils import load_and_validate

import fedsim
from fedsim import Experiment
from fedsim.apps.export import export
from fedsim.errors import ConfigError
from fedsim.splits import IID
from fedsim.study import config

ROOT = Path(__file__).resolve().parents[1]
BASE = Experiment(split=IID(4), rounds=2)


def run_configuration(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return settings


def test_an_app_is_valid_for_flower_and_says_how_to_run_it(tmp_path: Path) -> None:
    """Into an empty folder too; nothing but the app is in it."""
    (tmp_path / "app").mkdir()
    assert export(replace(BASE, server=stock.FedMedian), str(tmp_path / "app")) == tmp_path / "app"
    assert {file.name for file in (tmp_path / "app").iterdir()} == {"pyproject.toml", "fedsim_app.py", "README.md"}
    found, _ = load_and_validate(tmp_path / "app" / "pyproject.toml")
    assert found["project"] == {"name": "fedsim-app", "version": fedsim.__version__, "dependencies": []}
    assert found["tool"]["flwr"]["app"]["publisher"] == "fedsim"
    assert "    flwr run .\n" in (tmp_path / "app" / "README.md").read_text()


def test_the_defaults_are_those_of_the_documentation_and_of_the_checkouts_own_app(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| `?([^|`]*?)`? \|", text[text.index("| key | default |") :], re.MULTILINE)
    documented = {key: tomllib.loads(f"value = {value}")["value"] for key, value in table}
    assert set(documented) >= {"nodes", "wait", "timeout", "retries", "out", "supervised"}
    for folder in (export(BASE, tmp_path / "app"), ROOT):
        settings = run_configuration(folder)
        del settings["experiment"]
        assert settings == documented
        assert {type(settings[key]) for key in ("wait", "timeout")} == {float}, "Flower takes no other type for it"
    changed = run_configuration(export(BASE, tmp_path / "other", retries=2, wait=1.5))
    assert (changed["retries"], changed["wait"], changed["nodes"]) == (2, 1.5, 0)


OWN = """
from fedsim.clients import SGD
from fedsim.servers import FedAvg
from fedsim.splits import IID

class Client(SGD):
    pass

class Split(IID):
    pass

class Server(FedAvg):
    pass
"""


@pytest.mark.parametrize(
    ("field", "text"), [("split", "{}:Split(4)"), ("server", "{}:Server(min_train_nodes=2)"), ("server", "{}:Server")]
)
def test_a_split_or_a_server_of_ones_own_comes_along(
    field: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{field}_{len(text)}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    folder = export(replace(BASE, **{field: config.build(field, text.format(name))}), tmp_path / "app")
    assert {file.name for file in folder.iterdir()} == {"pyproject.toml", "fedsim_app.py", "README.md", f"{name}.py"}
    assert (folder / f"{name}.py").read_text() == OWN


def test_what_cannot_be_exported_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    packed = replace(BASE, client=config.build("client", "own_package.parts:Client"))
    with pytest.raises(ConfigError, match=r"^Client is of the module 'own_package.parts'; to export it, put it into"):
        export(packed, tmp_path / "app")
    monkeypatch.setattr(type(packed.client), "__module__", "__main__")
    with pytest.raises(ConfigError, match="put it into its own file"):
        export(packed, tmp_path / "app")
    with pytest.raises(ConfigError):
        export(replace(BASE, dataset=BASE.load_data()), tmp_path / "app")
    assert not (tmp_path / "app").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"/file' exists and is not empty; give another folder"):
        export(BASE, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
