"""Configuration text equals Python arguments, and bad text is refused in one sentence."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.serverapp.strategy import Strategy
from hypothesis import given
from hypothesis import strategies as st

from fedsim import Experiment, clients, data, servers
from fedsim.apps import app
from fedsim.apps.app_folder import load_app
from fedsim.apps.export import export
from fedsim.apps.in_process import run_flower
from fedsim.clients import SGD, ClientStrategy, FedProx, FedSGD
from fedsim.engines.supernodes.node import received_client
from fedsim.errors import ConfigError
from fedsim.models import MLP
from fedsim.modules import Modules
from fedsim.objects import classes_of, to_text
from fedsim.servers import FedAvg
from fedsim.servers.options import check_options, declared_type, options_of
from fedsim.splits import IID, Dirichlet, LogNormal, Natural, Pooled, Shards
from fedsim.study import baselines, config
from fedsim.study.plan import make_plan, table_plan
from fedsim.updates.compression import Int8, TopK


def client_text(client: SGD) -> str:
    """The text in which a message names a client strategy."""
    return to_text(client, classes_of(clients, ClientStrategy))


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
    assert config.build("client", " SGD (lr=0.5) ") == SGD(lr=0.5)
    assert config.build("split", "IID(3, sizes=LogNormal(0.5))") == IID(3, sizes=LogNormal(0.5))
    assert config.build("server", "FedAdam") is servers.FedAdam  # not Flower's of this name
    assert config.build("server", "FedProx") is stock.FedProx
    assert config.build("server", "FedAvg(min_train_nodes=2)").keywords == {"min_train_nodes": 2}


def test_set_reaches_into_objects() -> None:
    changed = config.apply(
        Experiment(), ["rounds=3", "client.lr=0.5", "dataset=article", "hidden=[4, 5]", "split=IID(9)"]
    )
    expected = Experiment(rounds=3, client=SGD(lr=0.5), dataset="article", hidden=(4, 5), split=IID(9))
    assert changed == expected


def test_a_study_file() -> None:
    plan = make_plan(
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
        ("client", "nowhere:Mine", "No module named 'nowhere'"),
        ("client", "fedsim.clients:SDG", "did you mean 'SGD'"),
        ("server", "FedAdm", "did you mean 'FedAdam'"),
        ("server", "FedAdam(0.1)", r"server is 'FedAdam\(0.1\)'; its options must be named"),
        ("server", "Strategy", "server is 'Strategy'; allowed: .*FedAvg"),
        ("server", "QFedAvg(client_learning_rate='x')", "QFedAvg's client_learning_rate is 'x'; allowed: a finite"),
        ("server", "QFedAvg(q=None)", "QFedAvg's q is None; allowed: a finite number"),
        (
            "server",
            "FedAvg(fraction_evaluate=-0.1)",
            "FedAvg's fraction_evaluate is -0.1; allowed: .*at least 0",
        ),
        ("server", "Krum(num_malicious_nodes=1.0)", "Krum's num_malicious_nodes is 1.0; allowed: a whole number"),
        (
            "transforms",
            "Int9",
            "transforms is 'Int9'; allowed: Float16, Int8, RandomMask, TopK, Clip, LocalDP or module:Class",
        ),
        ("client", "fedsim.clients", "client is 'fedsim.clients'; allowed: APFL"),
        ("client", "fedsim.clients:1", "client names 'fedsim.clients:1'; allowed: module:Class"),
        ("client", "fedsim.clients:SGD.x", "client names 'fedsim.clients:SGD.x'; allowed: module:Class"),
        ("client", "fedsim.clients:IID", "client names 'IID', which 'fedsim.clients' does not have$"),
        (
            "client",
            "fedsim.splits:IID",
            "client is 'fedsim.splits:IID'; allowed: a concrete subclass of ClientStrategy",
        ),
        ("split", "fedsim.splits:CountedSplit", "allowed: a concrete subclass of Split"),
        ("client", "no_package.inner:Mine", "No module named 'no_package'"),
    ],
)
def test_bad_text_is_refused(field: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.build(field, text)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rounds", "allowed: KEY=VALUE"),
        ("roundz=3", "setting is 'roundz'.*did you mean 'rounds'"),
        ("client.lrr=3", "allowed: client.lr, client.epochs, client.batch_size, .*; did you mean 'lr'"),
        ("hidden.x=3", "allowed: split.NAME and client.NAME"),
        ("rounds=many", "rounds is 'many'"),
        ("rounds", "--set is 'rounds'; allowed: KEY=VALUE"),
        ("nothing.x=3", "--set is 'nothing.x=3'; allowed: split.NAME and client.NAME"),
        ("server.eta=3", r"--set is 'server.eta=3'; allowed: server.seed, .*as in 'server=FedAdam"),
        ("client.lr=-1", "SGD's lr is -1; allowed: a finite number greater than 0"),
        ("split.num_clients=" + "[" * 5_000, "--set 'split.num_clients' is .*; allowed: a value in TOML"),
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
        make_plan(settings)


def test_a_server_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no option 'etta'; allowed: eta, .*did you mean 'eta'"):
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
    assert app.read_experiment(run_config) == experiment
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
    with pytest.raises(ConfigError, match="put it into its own file"):
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


def test_a_key_may_have_blanks_and_a_later_change_stands_on_an_earlier_one() -> None:
    changed = config.apply(Experiment(), [" rounds = 3", "client=FedProx", "client.proximal_mu = 0.5", "split.seed=4"])
    assert changed == Experiment(rounds=3, client=FedProx(proximal_mu=0.5), split=IID(50, seed=4))
    assert config.apply(Experiment(), ['transforms=["Int8", "TopK(0.5)"]']).transforms == (Int8(), TopK(0.5))


def test_what_is_chosen_takes_the_place_of_a_studys_own() -> None:
    """What a study does not say is one seed and no baseline; what is chosen needs no table."""
    settings = tomllib.loads(
        '[compare]\nsplit = ["IID(5)"]\nclient = ["SGD"]\nseeds = [3, 4]\nbaselines = ["centralised"]'
    )
    plan = make_plan(settings, (), {"split": ["IID(6)", "IID(7)"]})
    assert plan.axes == {"split": [IID(6), IID(7)], "client": [SGD()]}
    assert (plan.seeds, plan.baselines) == ([3, 4], ["centralised"])
    assert make_plan(settings, (), {"seeds": 7}).seeds == 7
    plan = make_plan({"rounds": 3}, (), {"client": ["FedProx"]})
    assert (plan.base, plan.axes) == (Experiment(rounds=3), {"client": [FedProx()]})
    assert (plan.seeds, plan.baselines) == (1, ())
    assert "compare" in settings  # as it was


def test_a_setting_that_an_experiment_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"setting is 'roundz'; allowed: dataset, .*; did you mean 'rounds'\?"):
        config.experiment({"roundz": 3})
    with pytest.raises(ConfigError, match=r"a \[compare\] table makes this a study.* run it with fedsim compare"):
        config.experiment({"compare": {}})


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"seed = \xff")
    with pytest.raises(ConfigError, match=r"'.*a.toml' cannot be read: 'utf-8' codec can't decode"):
        config.read(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('dataset = "é😀"', encoding="utf-8")
    assert config.read(str(tmp_path / "a.toml")) == {"dataset": "é😀"}
    (tmp_path / "a.toml").write_text("a = ")
    with pytest.raises(ConfigError, match=r"^'.*a.toml' is not TOML: "):
        config.read(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"'none.toml' cannot be read: No such file or directory"):
        config.read("none.toml")


def write_table(place: Path, rows: int, clients: int, regression: bool = False) -> str:
    lines = [f"{k},c{k % clients},d{k % 2},{k / 7 if regression else k % 2}" for k in range(rows)]
    place.write_text("\n".join(["a,c,d,y", *lines]) + "\n")
    return f"table({str(place)!r}, label='y'"


def test_a_table_makes_a_study_of_its_clients_against_as_many_others(tmp_path: Path) -> None:
    """As docs/data.md says: its clients, IID and Dirichlet(0.1); 30 rounds; a fifth of each client for its own test."""
    text = write_table(tmp_path / "t.csv", 600, 60) + ", client_column=['c', 'd'])"
    plan = table_plan(text, None, ["seed=5"], {"seeds": 2})
    assert plan.base == Experiment(
        dataset=text,
        split=Natural("c"),
        client=SGD(lr=0.05),
        rounds=30,
        fraction_train=50 / 60,  # about fifty clients in a round
        fraction_evaluate=1.0,
        test_fraction=0.2,
        seed=5,
    )
    assert plan.axes == {"split": [Natural("c"), Natural("d"), IID(60), Dirichlet(60, alpha=0.1)]}
    assert plan.seeds == 2
    assert table_plan(text).seeds == 3
    assert table_plan(text, None, (), {"split": ["IID(3)"]}).axes == {"split": [IID(3)]}


def test_a_table_without_clients_is_shared_by_ten_or_fewer(tmp_path: Path) -> None:
    plan = table_plan(write_table(tmp_path / "t.csv", 100, 2, regression=True) + ", regression=True)")
    assert plan.base.split == IID(10)
    assert (plan.base.loss, plan.base.fraction_train) == ("mse", 1.0)
    assert plan.axes == {"split": [IID(10), Dirichlet(10, alpha=0.1)]}
    few = table_plan(write_table(tmp_path / "few.csv", 15, 2) + ")")  # 12 of them for training
    assert few.base.split == IID(6)
    assert few.base.loss == "cross_entropy"
    many = table_plan(write_table(tmp_path / "many.csv", 2000, 750) + ", client_column='c')")
    assert many.base.split == Natural("c")
    held = len(Natural("c").federate(data.load(str(many.base.dataset))).partition)
    assert 500 < held <= 750
    assert many.axes["split"][1:] == [IID(held), Dirichlet(held, alpha=0.1)]
    assert many.base.fraction_train == 0.1


def test_an_experiment_on_arrays_or_with_a_model_of_ones_own_has_no_text() -> None:
    with pytest.raises(ConfigError, match="an experiment with a model of your own has no TOML form"):
        config.to_toml(Experiment(model=lambda _: MLP((64, 10))))
    with pytest.raises(ConfigError, match="an experiment on arrays of your own has no TOML form"):
        config.to_toml(Experiment(dataset=Experiment().load_data()))


def test_what_a_file_says_is_all_that_differs_from_nothing(tmp_path: Path) -> None:
    """A setting of None is left out; a path is text; the whole of an object is written."""
    settings = tomllib.loads(
        config.to_toml(Experiment(data_dir=tmp_path, split=IID(3), transforms=(Int8(), TopK(0.5))))
    )
    assert settings["data_dir"] == str(tmp_path)
    assert settings["split"] == "IID(num_clients=3)"
    assert settings["transforms"] == ["Int8()", "TopK(fraction=0.5, error_feedback=True)"]
    assert settings["hidden"] == [32]
    assert "server" not in settings
    assert "data_dir" not in config.to_toml(Experiment())


OWN = """
from fedsim import clients, servers
from fedsim.splits import CountedSplit


class FedProx(clients.SGD):
    nu: float = 0.5


class Server(servers.FedAvgM):
    def __init__(self, server_hooks, strategy, weighted_by_key, arrayrecord_key, configrecord_key, train_loss_key,
                 table: int,
                 server_momentum: int = 0, flag: bool = False, other=None, *args, **options):
        super().__init__(**options)


class Closed(servers.FedAvgM):
    def __init__(self, rate: "float", server_momentum: "int | None" = None):
        super().__init__()


class Abstract(CountedSplit):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of one's own classes."""
    (tmp_path / "own_config.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_config", raising=False)
    return tmp_path


def test_a_class_of_ones_own_named_like_fedsims_is_written_with_its_module(own: Path) -> None:
    mine = config.build("client", "own_config:FedProx(nu=0.25)")
    text = client_text(mine)
    assert text.startswith("own_config:FedProx(lr=0.1, ")
    assert received_client(text, type(mine)) == mine
    assert type(received_client("FedProx()", type(mine))) is FedProx
    assert config.experiment({"client": text}).client == mine
    assert client_text(SGD(steps=3, batch_size=None)) == (
        "SGD(lr=0.1, epochs=1, batch_size=None, momentum=0.0, weight_decay=0.0, lr_decay=1.0, lr_decay_every=1, "
        "steps=3)"
    )


def test_the_options_of_a_server_are_its_own_and_those_it_hands_on(own: Path) -> None:
    bases = options_of(servers.FedAvgM)
    assert {"server_momentum", "seed", "fraction_train", "min_available_nodes"} <= set(bases)
    assert not {"self", "options", "flower_options"} & set(bases)
    mine = options_of(config.build("server", "own_config:Server"))
    assert set(mine) >= {"table", "flag", "other", *bases}
    assert (mine["server_momentum"].annotation, bases["server_momentum"].annotation) == (int, "float")
    closed = config.build("server", "own_config:Closed")
    assert list(options_of(closed)) == ["rate", "server_momentum"]
    made = config.build("server", "own_config:Closed(server_momentum=None, rate=2)")
    assert made.keywords == {"server_momentum": None, "rate": 2}
    for text, sentence in (
        ("Server(flag=1)", "Server's flag is 1; allowed: true or false"),
        ("Server(table=None)", "Server's table is None; allowed: a whole number"),
        ("Closed(server_momentum=0.5)", "Closed's server_momentum is 0.5; allowed: a whole number"),
        ("Closed(seed=1)", "server Closed has no option 'seed'; allowed: rate, server_momentum"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            config.build("server", f"own_config:{text}")
    assert config.build("server", "own_config:Server(flag=True)").keywords == {"flag": True}


def test_the_options_of_a_function_that_makes_a_server_are_its_own_and_what_every_run_gives() -> None:
    least = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")

    def closed(rate: float, *, flag: bool = False) -> Any: ...

    def opened(rate: float, /, power: float | None = None, *rest: int, **options: Any) -> Any: ...

    assert list(options_of(closed)) == ["rate", "flag"]
    assert set(options_of(opened)) == {"power", "fraction_train", "fraction_evaluate", "seed", *least}
    assert check_options(opened, {"power": None, "seed": 2**63, "min_train_nodes": 0}) == {
        "power": None, "seed": 2**63, "min_train_nodes": 0,
    }  # fmt: skip
    assert type(check_options(closed, {"rate": np.float32(0.5)})["rate"]) is float
    refused: list[tuple[dict[str, Any], str]] = [
        ({"power": "x"}, "opened's power is 'x'; allowed: a number"),
        ({"fraction_train": 1.5}, "opened's fraction_train is 1.5"),
        ({"fraction_evaluate": -0.5}, "opened's fraction_evaluate is -0.5"),
        ({"seed": -1}, "opened's seed is -1"),
    ]
    assert check_options(opened, {"other": 1}) == {"other": 1}  # it may hand on anything
    with pytest.raises(
        ConfigError, match="server closed has no option 'rat'; allowed: rate, flag; did you mean 'rate'"
    ):
        check_options(closed, {"rat": 1.0})
    for wrong, said in refused:
        with pytest.raises(ConfigError, match=re.escape(said)):
            check_options(opened, wrong)
    with pytest.raises(ConfigError, match="server mine has no option 'x'; allowed: none"):
        check_options(lambda: None, {"x": 1}, "mine")


@pytest.mark.parametrize("option", ["weighted_by_key", "arrayrecord_key", "configrecord_key", "train_loss_key"])
def test_what_replies_consist_of_has_one_name(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} is 'x'; allowed: no value"):
        Experiment(server=partial(partial(stock.FedAvg), **{option: "x"}))


def test_options_are_of_the_types_that_a_server_declares() -> None:
    def make(
        text: str = "a",
        number: int = 1,
        flag: bool = True,
        rate: float = 1.0,
        call: Callable[[], int] = int,
        inner: Strategy | None = None,
        maybe: str | None = "a",
        untyped: Any = 0,
    ) -> Any: ...

    sound: list[dict[str, Any]] = [
        {"text": "b", "number": 2, "flag": False, "rate": 0, "untyped": object(), "call": len, "inner": FedAvg()},
        {"maybe": None, "inner": None, "untyped": None, "call": FedAvg},
    ]
    for options in sound:
        assert check_options(make, options) == options
    for option, value in [
        ("number", 1.5), ("number", None), ("flag", 1), ("rate", "x"), ("rate", None),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"make's {option} is {value!r}; allowed: "):
            check_options(make, {option: value})
    wrapper = stock.DifferentialPrivacyServerSideFixedClipping
    for cls, option, value in [
        (stock.FedAvg, "weighted_by_key", 3), (stock.FedAvg, "weighted_by_key", None),
        (stock.FedAvg, "train_metrics_aggr_fn", 3), (wrapper, "strategy", 3), (wrapper, "clipping_norm", "x"),
        (wrapper, "num_sampled_clients", 1.5),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"{cls.__name__}'s {option} is {value!r}; allowed: "):
            check_options(cls, {option: value})


def test_values_of_a_study_file_are_pythons_arguments() -> None:
    assert config.value_of("hidden", [4, 5]) == (4, 5)
    assert config.value_of("transforms", ("Int8", TopK(0.5))) == (Int8(), TopK(0.5))
    plan = make_plan({"compare": {"hidden": [[4], [8, 8]], "transforms": [["Int8"], []]}})
    assert plan.axes == {"hidden": [(4,), (8, 8)], "transforms": [(Int8(),), ()]}


class Fussy(SGD):
    """A user's own, whose constructor fails."""

    def __post_init__(self) -> None:
        if self.lr == 0.5:
            raise KeyError("gone")


def test_what_a_constructor_raises_on_a_changed_value_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^--set: 'client.lr=0.5' failed with KeyError: 'gone'"):
        config.apply(Experiment(client=Fussy()), ["client.lr=0.5"])


def test_a_table_of_two_rows_has_one_client(tmp_path: Path) -> None:
    plan = table_plan(write_table(tmp_path / "t.csv", 3, 2) + ")")
    assert len(plan.base.load_data().x_train) < 4
    assert plan.base.split == IID(1)
    assert table_plan("table('t.csv', label='y')", tmp_path).base.split == IID(1)  # found in the folder of data


def test_the_declared_type_of_an_option_is_read_in_every_notation() -> None:
    declared = {"float | None": "float | None", "'float'": "float", int: "int", inspect.Parameter.empty: ""}
    for annotation, name in declared.items():
        option = inspect.Parameter("rate", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
        assert declared_type(option) == name


def test_an_allowed_module_adds_no_folder_to_search_and_the_current_one_comes_first(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "elsewhere").mkdir()
    (own / "elsewhere/own_config.py").write_text("raise AssertionError('not this one')\n")
    (own / "elsewhere/own_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(own / "elsewhere")
    before = list(sys.path)
    with pytest.raises(ConfigError, match="No module named 'no_such_dependency'") as refused:
        config.experiment({"client": "own_installed:Mine"}, Modules.here(["own_installed"]))
    assert "allowed" not in str(refused.value)  # the module itself was found
    assert config.experiment({"client": "fedsim.clients:SGD", "server": "flwr.serverapp.strategy:FedAdam"})
    assert sys.path == before
    for _ in range(2):
        assert type(config.build("client", "own_config:FedProx")).__module__ == "own_config"
    assert sys.path == [str(own), *before]
    with pytest.raises(
        ConfigError, match=r"client names the module 'os', which is not in '.*'; if you trust it, allow"
    ):
        config.experiment({"client": "os:path"})
    with pytest.raises(ConfigError, match="client names the module 'os'; allowed here: classes of fedsim and Flower"):
        config.experiment({"client": "os:path"}, Modules())
    with pytest.raises(ConfigError, match="'own_config:Abstract'; allowed: a concrete subclass of Split"):
        config.build("split", "own_config:Abstract(3)")


def test_the_baselines_keep_the_training_and_leave_the_federation() -> None:
    """All examples in one place, by plain SGD; or one step of every client in a round, with momentum on the server."""
    federated = Experiment(
        split=Dirichlet(9, alpha=0.3),
        client=FedProx(lr=0.3, epochs=4, batch_size=7, momentum=0.5, weight_decay=0.01, proximal_mu=2.0),
        server=servers.FedAdam,
        fraction_train=0.5,
        min_clients=2,
        transforms=(Int8(),),
        seed=6,
    )
    common: dict[str, Any] = {"lr": 0.3, "epochs": 4, "batch_size": 7, "weight_decay": 0.01}
    assert baselines.BASELINES["centralised"](federated) == Experiment(
        split=Pooled(Dirichlet(9, alpha=0.3)), client=SGD(**common, momentum=0.5), seed=6
    )
    parallel = baselines.BASELINES["data-parallel"](federated)
    assert parallel.client == FedSGD(**common, momentum=0.0, steps=1)
    assert isinstance(parallel.server, partial)
    assert (parallel.server.func, parallel.server.keywords) == (servers.FedAvgM, {"server_momentum": 0.5})
    assert (parallel.fraction_train, parallel.split, parallel.seed) == (1.0, federated.split, 6)
    assert baselines.data_parallel(Experiment()).server is FedAvg


def test_none_switches_a_setting_off_in_a_file() -> None:
    """A study compares runs with and without protection: ``privacy = ["none", "CentralDP(...)"]``."""
    settings = {"privacy": "none", "secure_aggregation": "none", "early_stopping": "none"}
    assert config.experiment(settings) == Experiment()
