"""Configuration text equals Python arguments, and bad text is refused in one sentence."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import Experiment
from fedsim.apps import app
from fedsim.apps.export import export
from fedsim.apps.local import load_app, run_flower
from fedsim.clients import SGD, FedProx
from fedsim.errors import ConfigError
from fedsim.servers import FedAvg
from fedsim.splits import IID, Dirichlet, Natural, Shards
from fedsim.study import config
from fedsim.updates.compression import TopK

EXPERIMENTS = [
    Experiment(),
    Experiment(dataset="mnist", data_dir="/some where", split=Shards(100, per_client=2), hidden=(200, 200), rounds=7),
    Experiment(split=Dirichlet(20, alpha=0.1, seed=4), client=FedProx(batch_size=None, proximal_mu=0.3), hidden=()),
    Experiment(activation="tanh", loss="mse", dtype="float64", seed=2**40, on_failure="exclude", fraction_train=0.1),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_toml_round_trip(experiment: Experiment) -> None:
    assert config.experiment(tomllib.loads(config.to_toml(experiment))) == experiment


def test_toml_round_trip_of_servers() -> None:
    for server in (stock.FedAdam, partial(stock.FedAdam, eta=0.01), FedAvg):
        again = config.experiment(tomllib.loads(config.to_toml(Experiment(server=server)))).server
        if isinstance(server, partial):
            assert isinstance(again, partial)
            assert (again.func, again.keywords) == (server.func, server.keywords)
        else:
            assert again is server


def test_text_is_python() -> None:
    assert config.build("split", "Dirichlet(50, alpha=0.1)") == Dirichlet(50, alpha=0.1)
    assert config.build("client", "SGD") == SGD()
    assert config.build("client", "SGD(lr=0.5, batch_size=None)") == SGD(lr=0.5, batch_size=None)
    assert config.build("split", "fedsim.splits:IID(3)") == IID(3)
    assert config.build("server", "FedAvg") is FedAvg


def test_set_reaches_into_objects() -> None:
    changed = config.apply(
        Experiment(), ["rounds=3", "client.lr=0.5", "dataset=article", "hidden=[4, 5]", "split=IID(9)"]
    )
    expected = Experiment(rounds=3, client=SGD(lr=0.5), dataset="article", hidden=(4, 5), split=IID(9))
    assert changed == expected


def test_a_study_file() -> None:
    plan = config.plan(
        tomllib.loads('rounds = 3\n[compare]\nseeds = 2\nsplit = ["IID(5)", "Shards(5)"]\nfraction_train = [0.2, 1.0]'),
        ["rounds=4"],
    )
    assert plan.base == replace(Experiment(), rounds=4)
    assert plan.seeds == 2
    assert plan.axes == {"split": [IID(5), Shards(5)], "fraction_train": [0.2, 1.0]}


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("split", "Dirichlett(5)", "allowed: IID, Dirichlet, .* or module:Class; did you mean 'Dirichlet'"),
        ("split", "Dirichlet(5, alpha=-1)", "Dirichlet's alpha is -1; allowed: a finite number greater than 0"),
        ("split", "Dirichlet(5, alfa=1)", "did you mean 'alpha'"),
        ("split", "IID", "IID takes .*num_clients.* .missing a required argument"),
        ("split", "IID(5", "allowed: a call with plain values"),
        ("split", "IID(5)(6)", "allowed: a call with plain values"),
        ("split", "IID(open('x'))", "split names 'open'; allowed: IID"),
        ("split", "IID(3 .real)", "allowed: a call with plain values"),
        ("client", "SGD(lr=SGD())", "client names 'SGD'; it takes plain values only"),
        ("split", "IID(**{'num_clients': 3})", "allowed: a call with plain values"),
        ("split", "Split(5)", "allowed: IID"),
        ("client", "SDG", "did you mean 'SGD'"),
        ("client", "nowhere:Mine", "No module named 'nowhere'; allowed: a module in the current folder or on"),
        ("client", "fedsim.clients:SDG", "did you mean 'SGD'"),
        ("server", "FedAdm", "did you mean 'FedAdam'"),
        ("server", "FedAdam(0.1)", "options must be named"),
    ],
)
def test_bad_text_is_refused(field: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.build(field, text)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rounds", "allowed: key=value"),
        ("roundz=3", "unknown setting 'roundz'.*did you mean 'rounds'"),
        ("client.lrr=3", "allowed: client.lr, client.epochs, client.batch_size, .*; did you mean 'lr'"),
        ("hidden.x=3", "allowed: split.NAME and client.NAME"),
        ("rounds=many", "rounds is 'many'"),
    ],
)
def test_bad_assignments_are_refused(assignment: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.apply(Experiment(), [assignment])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({}, r"needs a \[compare\] table"), ({"compare": 3}, r"needs a \[compare\] table")],
)
def test_bad_studies_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.plan(settings)


def test_a_server_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no option 'etta' in text; allowed: eta, .*did you mean 'eta'"):
        config.build("server", "FedAdam(etta=1)")


def test_numpys_numbers_are_written_as_pythons() -> None:
    """So that what a script has computed can be resumed, and sent to SuperNodes."""
    experiment = Experiment(
        split=Dirichlet(5, alpha=np.float64(0.25)),
        client=SGD(lr=np.float32(0.5)),  # type: ignore[arg-type]
        server=partial(stock.FedAdam, eta=np.float64(0.125)),
        fraction_train=np.float64(0.5),
        hidden=(np.int64(4),),  # type: ignore[arg-type]
        transforms=(TopK(np.float64(0.5)),),
    )
    again = config.experiment(tomllib.loads(config.to_toml(experiment)))
    assert again.split == Dirichlet(5, alpha=0.25)
    assert again.client == SGD(lr=0.5)
    assert again.server.keywords == {"eta": 0.125}  # type: ignore[union-attr]
    assert (again.fraction_train, again.hidden, again.transforms) == (0.5, (4,), (TopK(0.5),))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_toml_round_trip_of_any_text(text: str) -> None:
    experiment = Experiment(data_dir=text, dataset=f"table({text!r}, label={text!r})", split=Natural(text or "x"))
    again = config.experiment(tomllib.loads(config.to_toml(experiment)))
    assert (again.data_dir, again.dataset, again.split) == (text, experiment.dataset, experiment.split)


@pytest.mark.parametrize("name", ["plain.csv", "a'''b.csv", 'a"""b.csv', "'''", "a\\", "\x01\x1f\x7f\r\n\t", "é😀"])
def test_an_exported_app_holds_any_text(name: str, tmp_path: Path) -> None:
    experiment = Experiment(dataset=f"table({name!r}, label='y')", data_dir=name, rounds=7)
    folder = export(experiment, tmp_path / "app", out="the experiment")
    settings = tomllib.loads((folder / "pyproject.toml").read_bytes().decode())
    run_config = settings["tool"]["flwr"]["app"]["config"]
    assert app.experiment_of(run_config) == experiment
    assert run_config["out"] == "the experiment"
    assert run_config["wait"] == 120.0
    assert load_app(folder)[2] == run_config


def test_an_apps_own_module_may_not_be_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedsim_app.py").write_text(
        "from fedsim.updates.compression import Float16\n\nclass Mine(Float16):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fedsim_app", raising=False)
    experiment = Experiment(transforms=(config.build("transforms", "fedsim_app:Mine"),))
    with pytest.raises(ConfigError, match="put it into a file of its own beside you"):
        export(experiment, tmp_path / "app")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("nodes", -1), ("nodes", 1.5), ("retries", "x"), ("wait", "long"), ("timeout", -1.0), ("wait", float("nan"))],
)
def test_bad_run_configuration_is_one_sentence(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is .*; allowed: "):
        run_flower(app.server_app, app.client_app, 1, run_config={"experiment": "rounds = 1", setting: value})


@pytest.mark.parametrize("option", ["min_train_nodes", "min_evaluate_nodes", "min_available_nodes"])
def test_a_server_of_flower_does_not_wait_for_clients_that_never_come(option: str) -> None:
    server = config.build("server", f"FedProx({option}=5)")
    with pytest.raises(ConfigError, match=f"FedProx's {option} is 5; allowed: at most 4, the number of clients"):
        Experiment(split=IID(4), server=server, rounds=1, fraction_evaluate=0.5).run()
