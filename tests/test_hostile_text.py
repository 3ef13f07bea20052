"""Text is data: nothing that a configuration, an option or a message names is called, but a class of the right kind.

Every text here is tried through every entry point. A text that is refused ends in one sentence, from the command line
with exit status 2; and the trap, a folder of modules that record what is called or imported, stays empty.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim import Experiment
from fedsim.apps import app
from fedsim.apps.export import export
from fedsim.apps.in_process import AppGrid
from fedsim.cli import main as cli
from fedsim.clients import SGD
from fedsim.engines.supernodes.arrays import RESULT
from fedsim.engines.supernodes.node import received_client
from fedsim.engines.supernodes.replies import ORDER, WEIGHTS
from fedsim.errors import ConfigError, FedsimError
from fedsim.flower import records, strategies
from fedsim.flower.internals import FIRST_NODE_ID
from fedsim.modules import EVERY, Modules
from fedsim.splits import IID
from fedsim.study import config
from fedsim.study.plan import make_plan

#: A module in the current folder: allowed to be imported, and none of it may be called but strategies.
TRAP = """
from pathlib import Path
from fedsim.clients import SGD
from fedsim.servers import FedAvg

def boom(*args, **options):
    Path(__file__).with_name("SPRUNG").write_text("called")

class Loud:
    def __init__(self, *args, **options):
        boom()

class Pretends:
    __class__ = property(lambda self: type)
    __bases__ = (SGD,)
    __name__ = "Pretends"
    __call__ = boom

class Mine(SGD):
    mu: float = 0.5

class Calls(type):
    def __call__(cls, *args, **options):
        boom()

class Called(metaclass=Calls):
    pass

class Server(FedAvg):
    def __init__(self, server_hooks=None, table=None, **options):
        super().__init__(server_hooks=server_hooks, **options)

pretends, mine = Pretends(), Mine()
"""
#: A module on Python's path but elsewhere, which only the person at this machine may have imported.
ELSEWHERE = """
from pathlib import Path
from fedsim.clients import SGD
(Path(__file__).parent.parent / "SPRUNG").write_text("imported")

class Mine(SGD):
    pass
"""
#: Callables that are no strategy of any kind.
CALLABLES = [
    "os:system('touch SPRUNG')",
    "os:path",
    "os:environ",
    "subprocess:Popen(['touch', 'SPRUNG'])",
    "subprocess:run('touch SPRUNG', shell=True)",
    "builtins:exec(\"open('SPRUNG', 'w')\")",
    "builtins:eval(\"open('SPRUNG', 'w')\")",
    "builtins:open('SPRUNG', 'w')",
    "builtins:type('X', (), {})",
    "builtins:object",
    "pathlib:Path('SPRUNG')",
    "functools:partial(print)",
    "shutil:rmtree('.')",
    "fedsim.cli.main:main(['strategies'])",
    "fedsim.cli.guard:Parser()",
    "fedsim.apps.deployment:Deployment(1)",
    "fedsim.apps.export:export",
    "fedsim.data:table('SPRUNG', 'y')",
    "fedsim.testing:check_client_strategy",
    "fedsim.study.directory:RunDirectory('SPRUNG')",
    "fedsim.splits:CountedSplit(3)",
    "fedsim.splits:LogNormal()",
    "flwr.serverapp.strategy:Strategy",
    "flwr.serverapp.strategy:Result()",
    "trap:boom()",
    "trap:boom",
    "trap:Loud(1)",
    "trap:Called",
    "trap:pretends()",
    "trap:mine()",
    "trap:__loader__",
]
#: Texts of no form that is allowed, or that are too much for Python's own parser.
MALFORMED = [
    "",
    "(",
    ":x",
    ".x:x",
    "..x:x()",
    "x:",
    "a:b:c",
    "a b:c",
    "os.:system",
    "os:system.x",
    "os:system\x00",
    "nowhere_at_all:X()",
    "__import__('os').system('touch SPRUNG')",
    "(lambda: 0)()",
    "NAME(__import__('os'))",
    "NAME(open('SPRUNG', 'w'))",
    "NAME(trap:boom())",
    "NAME(*[1])",
    "NAME(**{'lr': 1})",
    "NAME()()",
    "NAME().__class__",
    "NAME() or 1",
    "NAME([x for x in (1, 2)])",
    "NAME(x := 1)",
    "NAME(f'{1}')",
    "NAME(b'x')",
    "NAME(...)",
    "NAME({[]: 1})",
    "NAME('\ud800')",
    "NAME(1\n)\nimport os",
    "NAME(" + "[" * 5_000,
    "NAME(" + "(" * 100_000,
    "NAME(" + "-" * 100_000 + "1)",
    "NAME(" + "1+" * 50_000 + "1)",
    "NAME(" + "9" * 5_000 + ")",
    "NAME(0x" + "F" * 5_000 + ")",
    "NAME(x=" + "9" * 5_000 + ")",
    "N" * 100_000,
]
FIELDS = {"client": "SGD", "split": "IID", "server": "FedAvg", "transforms": "TopK"}
TEXTS = [(field, text.replace("NAME", name)) for field, name in FIELDS.items() for text in [*CALLABLES, *MALFORMED]]
#: A message cannot hold half a character.
IN_MESSAGES = [*CALLABLES, *(text for text in MALFORMED if "\ud800" not in text)]
#: A sound text, of a module that only some may import.
FOREIGN = "elsewhere_mine:Mine(lr=0.2)"


def value(field: str, text: str) -> str | list[str]:
    return [text] if field == "transforms" else text


def through_build(field: str, text: str) -> None:
    config.build(field, text)


def through_a_file(field: str, text: str) -> None:
    config.experiment({field: value(field, text)})


def through_a_study(field: str, text: str) -> None:
    make_plan({"compare": {field: [value(field, text)]}})


def through_set(field: str, text: str) -> None:
    config.apply(Experiment(), [f"{field}={json.dumps(value(field, text), ensure_ascii=False)}"])


def through_a_run_configuration(field: str, text: str) -> None:
    app.read_experiment({"experiment": tomli_w.dumps({field: value(field, text)})})


def through_an_apps_run_configuration(field: str, text: str) -> None:
    app.read_experiment({"experiment": tomli_w.dumps({field: value(field, text)})}, folder=Path.cwd())


ENTRIES: list[Callable[[str, str], None]] = [
    through_build,
    through_a_file,
    through_a_study,
    through_set,
    through_a_run_configuration,
    through_an_apps_run_configuration,
]


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules that say when they are called."""
    (tmp_path / "trap.py").write_text(TRAP)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "elsewhere_mine.py").write_text(ELSEWHERE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    for name in ("trap", "elsewhere_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def untouched(folder: Path) -> bool:
    return not list(folder.rglob("SPRUNG*"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_what_is_no_strategy_is_never_called(entry: Callable[[str, str], None], trap: Path) -> None:
    for field, text in TEXTS:
        with pytest.raises(FedsimError) as refused:
            entry(field, text)
        sentence = str(refused.value)
        assert "\n" not in sentence, text
        assert len(sentence) < 1_000, text
        assert untouched(trap), text


@pytest.mark.parametrize("text", [*IN_MESSAGES, FOREIGN, "trap:Mine", "FedAvg", "IID(3)"])
def test_a_message_names_fedsims_strategies_only(text: str, trap: Path) -> None:
    reason = told(text.replace("NAME", "SGD")).error.reason or ""
    assert reason.startswith("ConfigError: client ")
    assert "\n" not in reason
    assert untouched(trap)


def told(text: str) -> Message:
    """What a SuperNode answers that is told to train with the client strategy of a text."""
    settings = {"experiment": 'split = "IID(4)"'}
    with strategies.quiet(), AppGrid(app.client_app, 1, run_config=settings) as grid:
        parameters = app._build_runtime(settings["experiment"], None, None).model.num_parameters
        order: Any = {"round": 1, "client": text, "clients": [0, 1], "loss-limit": 1e9, "purpose": 5}
        weights = {"weights": np.zeros(parameters, dtype=np.float32)}
        content = RecordDict({WEIGHTS: records.record(weights), ORDER: ConfigRecord(order)})
        [reply] = grid.send_and_receive([Message(content, dst_node_id=FIRST_NODE_ID, message_type="train")])
    return reply


def test_a_message_names_fedsims_strategies_or_the_experiments_own(trap: Path) -> None:
    assert told("FedProx(proximal_mu=0.5)").content.array_records[RESULT]["partition_ids"].numpy().tolist() == [0, 1]
    mine = type(config.build("client", "trap:Mine"))
    assert received_client("trap:Mine(mu=2.0)", mine).mu == 2.0  # type: ignore[attr-defined]
    assert received_client("SGD(lr=0.25)", mine) == SGD(lr=0.25)


# Which modules a text may import.


def test_a_file_imports_what_is_in_the_current_folder_or_what_the_person_names(trap: Path) -> None:
    assert config.experiment({"client": "trap:Mine(mu=2.0)"}).client.mu == 2.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"'elsewhere_mine', which is not in .* allow it by --module elsewhere_mine"):
        config.experiment({"client": FOREIGN})
    for read in (config.experiment, make_plan):
        for settings in ({"client": FOREIGN}, {"transforms": [FOREIGN]}):
            with pytest.raises(ConfigError, match="allow it by --module elsewhere_mine"):
                read(settings if read is config.experiment else {"compare": {k: [v] for k, v in settings.items()}})
    assert untouched(trap)
    allowed = config.experiment({"client": FOREIGN}, Modules.here(["elsewhere_mine"]))
    assert SGD.of(allowed.client).lr == 0.2
    assert not untouched(trap)


def test_a_package_in_the_current_folder_is_allowed_with_what_is_in_it(trap: Path) -> None:
    (trap / "package").mkdir()
    (trap / "package" / "__init__.py").touch()
    (trap / "package" / "inner.py").write_text("from trap import Mine\n")
    assert Modules.here().allow("package")
    assert type(config.experiment({"client": "package.inner:Mine"}).client).__name__ == "Mine"
    assert not Modules.here().allow("package.other")
    assert not Modules.here().allow("elsewhere")  # a folder, but no package
    assert not Modules.here(["pack"]).allow("packing")


def test_the_person_at_this_machine_may_name_any_module(trap: Path) -> None:
    assert config.build("client", FOREIGN).lr == 0.2
    assert config.apply(Experiment(), [f"client={FOREIGN}"]).client == config.build("client", FOREIGN)
    chosen = {"client": [FOREIGN]}
    assert make_plan({}, (), chosen).axes["client"][0].lr == 0.2
    assert EVERY.allow("anything.at.all")


def test_an_app_imports_its_own_modules_only(trap: Path) -> None:
    folder = export(Experiment(client=config.build("client", "trap:Mine"), split=IID(4)), trap / "app")
    named = {"experiment": 'client = "trap:Mine(mu=3.0)"'}
    assert app.read_experiment(named, folder=folder).client.mu == 3.0  # type: ignore[attr-defined]
    for settings, place in (({"experiment": f'client = "{FOREIGN}"'}, folder), (named, None), (named, trap / "none")):
        with pytest.raises(ConfigError, match=r"client names the module '\w+'"):
            app.read_experiment(settings, folder=place)
    assert untouched(trap)


def test_a_server_of_ones_own_takes_literals_but_nothing_internal(trap: Path) -> None:
    assert config.build("server", "trap:Server(table=[1], min_train_nodes=2)").keywords == {
        "table": [1],
        "min_train_nodes": 2,
    }
    for option in ("server_hooks=1", "weighted_by_key='x'", "min_train_nodes=0.5", "fraction_train=2.0"):
        with pytest.raises(ConfigError, match="Server"):
            config.build("server", f"trap:Server({option})")


def test_a_module_that_cannot_be_imported_is_one_sentence(trap: Path) -> None:
    (trap / "broken_a.py").write_text("x = 1\ny = undefined\n")
    (trap / "broken_b.py").write_text("def f(:\n")
    (trap / "broken_c.py").write_text("raise SystemExit(0)\n")
    (trap / "broken_d.py").write_text(
        "from fedsim.clients import SGD\n\nclass Mine(SGD):\n    def __post_init__(self):\n        1 / 0\n"
    )
    sentences = {
        "broken_a:X": r"NameError: name 'undefined' is not defined \(broken_a.py, line 2\)",
        "broken_b:X": r"SyntaxError: invalid syntax \(broken_b.py, line 1\)",
        "broken_c:X": r"SystemExit: 0 \(broken_c.py, line 1\)",
        "broken_d:Mine": r"Mine failed with ZeroDivisionError: division by zero \(broken_d.py, line 5\)",
    }
    for text, sentence in sentences.items():
        with pytest.raises(ConfigError, match=sentence):
            config.build("client", text)


# The command line: one sentence, exit status 2.


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    said = capsys.readouterr()
    assert left.value.code == 2, (arguments, said)
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert said.out == ""
    return said.err


ON_THE_COMMAND_LINE = [text for text in IN_MESSAGES if "\x00" not in text]


@pytest.mark.parametrize("text", ON_THE_COMMAND_LINE, ids=range(len(ON_THE_COMMAND_LINE)))
def test_the_command_line_refuses(text: str, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trap / "plain.toml").write_text("rounds = 1\n")
    for field, name in FIELDS.items():
        mine = text.replace("NAME", name)
        settings = tomli_w.dumps({field: value(field, mine)})
        (trap / "hostile.toml").write_text(settings)
        (trap / "study.toml").write_text(tomli_w.dumps({"compare": {field: [value(field, mine)]}}))
        (trap / "run").mkdir(exist_ok=True)
        (trap / "run" / "experiment.toml").write_text(settings)
        (trap / "run" / "checkpoint.npz").touch()
        refused(capsys, "run", "hostile.toml")
        refused(capsys, "compare", "study.toml")
        refused(capsys, "resume", "run")
        refused(capsys, "export", "hostile.toml", "app")
        refused(capsys, "deploy", "local", "hostile.toml")
        refused(capsys, "run", "plain.toml", "--set", f"{field}={json.dumps(value(field, mine))}")
        if field in ("client", "split"):
            refused(capsys, "run", "plain.toml", f"--{field}={mine}")
            refused(capsys, "compare", "plain.toml", f"--{field}={mine}")
    refused(capsys, "check", text.replace("NAME", "SGD"))
    refused(capsys, "splits", text.replace("NAME", "IID"))
    refused(capsys, "splits", "IID(4)", f"--dataset={text.replace('NAME', 'digits')}")
    refused(capsys, "run", "plain.toml", "--set", f"dataset={json.dumps(text.replace('NAME', 'digits'))}")
    assert untouched(trap)


def test_a_directory_of_somebody_else_runs_nothing_of_theirs(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trap / "theirs").mkdir()
    (trap / "theirs" / "elsewhere_theirs.py").write_text(ELSEWHERE)
    (trap / "theirs" / "checkpoint.npz").touch()
    for text in ("elsewhere_theirs:Mine()", FOREIGN):
        (trap / "theirs" / "experiment.toml").write_text(f'client = "{text}"\n')
        assert "client names the module 'elsewhere_" in refused(capsys, "resume", "theirs")
    assert untouched(trap)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5_000,
        "x = " + "[" * 5_000,
        "rounds = " + "9" * 5_000,
        "rounds = 0x" + "F" * 5_000,
        "rounds = 2020-01-01",
        "rounds = 07:00:00",
        'dataset = "digits',
        'dataset = "\\ud800"',
        "compare = 3",
        "compare = [1]",
        "seed = {}",
        "data_dir = -1",
        "data_dir = []",
        "'' = 1",
        "client = {}",
        "transforms = 'TopK()'",
        "transforms = [[]]",
        f"{'x' * 100_000} = 1",
    ],
)
def test_hostile_toml_is_one_sentence(text: str, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trap / "hostile.toml").write_text(text)
    refused(capsys, "run", "hostile.toml")
    refused(capsys, "compare", "hostile.toml", "--client", "SGD")
    with pytest.raises(FedsimError) as sentence:
        app.read_experiment({"experiment": text})
    assert "\n" not in str(sentence.value)


@pytest.mark.parametrize(
    "assignment",
    [
        "=",
        "=3",
        ".=3",
        "client.=3",
        "client.lr=[[1]]",
        "client.lr=" + "[" * 5_000,
        "client.lr=" + "9" * 5_000,
        "client.lr=0x" + "F" * 5_000,
        "client.lr=nan",
        "client.lr={}",
        "client.__class__=3",
        "client.lr.x=3",
        "split.seed=1e999",
        "split.seed=2020-01-01",
        "server.server_hooks=3",
        "server=FedAvg(server_hooks=1)",
        "server=FedAvg(state={})",
        "server=FedAvg(train_metrics_aggr_fn=1)",
        "server=FedMedian(fraction_evaluate=1e308)",
        "server=FedProx(min_available_nodes=None)",
        "server=FedProx(fraction_train=True)",
        "server=FedAvgM(fraction_train=1e30)",
        "server=MultiKrum(seed=1e999)",
        "server=FedAvg(weighted_by_key='x')",
        "rounds=3\nseed=4",
        "dataset=table('a', label=open('SPRUNG', 'w'))",
        "dataset=hub(os:system)",
        "dataset=synthetic(" + "(" * 5_000,
        "\udcff=1",
        "data_dir=\udcff",
        "dataset=\udcff",
    ],
)
def test_hostile_assignments_are_one_sentence(assignment: str, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trap / "plain.toml").write_text("rounds = 1\n")
    refused(capsys, "run", "plain.toml", "--set", assignment)
    refused(capsys, "export", "plain.toml", "app", "--set", assignment)
    assert untouched(trap)
