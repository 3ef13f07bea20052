"""Anybody's Flower app in this process: Flower's quickstart patterns, new and old, behave as they do there."""

from __future__ import annotations

# Flower types what a record holds as any of its values.
# mypy: disable-error-code="arg-type,assignment,index,misc,union-attr"
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as OldFedAvg
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedsim import data
from fedsim.apps import app as fedsim_app
from fedsim.apps.app_folder import load_app, override_run_config, run_app
from fedsim.apps.in_process import AppGrid, run_flower
from fedsim.cli import main as cli
from fedsim.errors import ConfigError
from fedsim.flower import internals, records
from fedsim.splits import IID

NODES = 4
DIGITS = data.load("digits")
SHARDS = IID(NODES).partition(DIGITS.y_train)


def shard(context: Context) -> tuple[NDArray[Any], NDArray[Any]]:
    assert context.node_config["num-partitions"] == NODES
    rows = SHARDS[int(context.node_config["partition-id"])]
    return DIGITS.x_train[rows], DIGITS.y_train[rows]


def server(rounds: int, start: ArrayRecord, results: list[Any], score: Callable[[ArrayRecord], float]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(min_available_nodes=NODES)
        result = strategy.start(
            grid,
            start,
            num_rounds=rounds,
            train_config=ConfigRecord({"lr": 0.1}),
            evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": score(arrays)}),
        )
        results.append(result)
        context.state["done"] = MetricRecord({"rounds": rounds})

    return app


def test_the_scikit_learn_pattern() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    app = ClientApp()

    def model(arrays: ArrayRecord) -> Any:
        made = sklearn.LogisticRegression(max_iter=1, warm_start=True, solver="saga")
        made.classes_ = np.arange(10)
        made.coef_, made.intercept_ = arrays.to_numpy_ndarrays()
        return made

    @app.train()
    def train(message: Message, context: Context) -> Message:
        x, y = shard(context)
        made = model(message.content["arrays"])
        made.fit(x, y)
        content = RecordDict(
            {"arrays": ArrayRecord([made.coef_, made.intercept_]), "metrics": MetricRecord({"num-examples": len(y)})}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        x, y = shard(context)
        accuracy = float(model(message.content["arrays"]).score(x, y))
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": len(y), "accuracy": accuracy})}), reply_to=message
        )

    results: list[Any] = []
    start = ArrayRecord([np.zeros((10, 64)), np.zeros(10)])
    with pytest.warns(UserWarning, match="max_iter"):
        context = run_flower(
            server(4, start, results, lambda a: float(model(a).score(DIGITS.x_test, DIGITS.y_test))),
            app,
            NODES,
            workers=1,
        )
    assert results[0].evaluate_metrics_serverapp[4]["accuracy"] > 0.85
    assert results[0].evaluate_metrics_clientapp[4]["accuracy"] > 0.85
    assert context.state["done"]["rounds"] == 4


def test_the_pytorch_pattern_learns_as_centralised_descent_does() -> None:
    """Full-batch steps on equal shards average to the gradient of all: Flower's loop, checked against PyTorch alone."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def network() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))

    def step(net: Any, x: NDArray[Any], y: NDArray[Any], lr: float) -> None:
        optimiser = torch.optim.SGD(net.parameters(), lr=lr)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
        optimiser.step()

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        x, y = shard(context)
        net = network()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        step(net, x, y, float(message.content["config"]["lr"]))
        content = RecordDict(
            {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    results: list[Any] = []
    run_flower(server(5, ArrayRecord(network().state_dict()), results, lambda arrays: 0.0), app, NODES)
    alone = network()
    for _ in range(5):
        step(alone, DIGITS.x_train, DIGITS.y_train, 0.1)
    federated = results[0].arrays.to_torch_state_dict()
    for name, values in alone.state_dict().items():
        torch.testing.assert_close(federated[name], values, rtol=1e-4, atol=1e-5)


class Old(NumPyClient):
    """A client of Flower's older interface."""

    def __init__(self, context: Context) -> None:
        self.x, self.y = shard(context)

    def fit(self, parameters: Any, config: Any) -> Any:
        weights = parameters[0]
        scores = self.x @ weights
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(self.y)), self.y] -= 1
        return [weights - 0.5 * self.x.T @ p / len(self.y)], len(self.y), {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        accuracy = float(((self.x @ parameters[0]).argmax(axis=1) == self.y).mean())
        return 1 - accuracy, len(self.y), {"accuracy": accuracy}


def test_the_older_interface() -> None:
    from flwr.common import ndarrays_to_parameters

    histories: list[float] = []

    def server_fn(context: Context) -> ServerAppComponents:
        def mean(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
            accuracy = sum(n * m["accuracy"] for n, m in metrics) / sum(n for n, _ in metrics)
            histories.append(float(accuracy))
            return {"accuracy": accuracy}

        strategy = OldFedAvg(
            initial_parameters=ndarrays_to_parameters([np.zeros((64, 10))]), evaluate_metrics_aggregation_fn=mean
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=6))

    run_flower(ServerApp(server_fn=server_fn), ClientApp(client_fn=lambda context: Old(context).to_client()), NODES)
    assert len(histories) == 6
    assert histories[-1] > 0.8


# What a ClientApp may rely on.


def echo(**made: Any) -> ClientApp:
    app = ClientApp(**made)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        count = context.state.metric_records.get("count", MetricRecord({"n": 0}))
        context.state["count"] = MetricRecord({"n": int(count["n"]) + 1})
        message.content["config"]["touched"] = True
        said = {
            "n": context.state["count"]["n"],
            "partition": context.node_config["partition-id"],
            "run": context.run_config["word"],
        }
        return Message(RecordDict({"config": ConfigRecord(said)}), reply_to=message)

    return app


def ask(grid: Grid, content: RecordDict | None = None, **options: Any) -> list[Message]:
    content = content or RecordDict({"config": ConfigRecord()})
    messages = [Message(content, dst_node_id=n, message_type="query") for n in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, **options))


def test_contexts_are_a_nodes_own_and_last() -> None:
    content = RecordDict({"config": ConfigRecord()})
    with AppGrid(echo(), 3, run_config={"word": "hello"}) as grid:
        ask(grid, content)
        replies = ask(grid, content)
    said = [reply.content["config"] for reply in replies]
    assert [s["n"] for s in said] == [2, 2, 2]
    assert [s["partition"] for s in said] == [0, 1, 2]
    assert said[0]["run"] == "hello"
    assert not content["config"], "what clients write into a message stays theirs"
    assert [r.metadata.reply_to_message_id for r in replies] == ["4", "5", "6"]


def test_mods_run_as_flower_runs_them() -> None:
    order: list[str] = []

    def mod(name: str) -> Any:
        def run(message: Message, context: Context, call_next: Any) -> Message:
            order.append(f"{name} in")
            reply: Message = call_next(message, context)
            order.append(f"{name} out")
            return reply

        return run

    with AppGrid(echo(mods=[mod("a"), mod("b")]), 1, run_config={"word": ""}) as grid:
        ask(grid)
    assert order == ["a in", "b in", "b out", "a out"]


def test_flowers_own_mods_run(tmp_path: Path) -> None:
    from flwr.clientapp.mod import fixedclipping_mod

    app = ClientApp(mods=[fixedclipping_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = [a + 100 for a in message.content["arrays"].to_numpy_ndarrays()]
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping

    results: list[Any] = []
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
        strategy = DifferentialPrivacyClientSideFixedClipping(inner, 0.0, 1.0, 2)
        results.append(strategy.start(grid, ArrayRecord([np.zeros(4)]), num_rounds=1))

    run_flower(made, app, 2)
    np.testing.assert_allclose(np.linalg.norm(results[0].arrays.to_numpy_ndarrays()[0]), 1, rtol=1e-6)


def test_an_exception_is_an_error_reply_and_a_missing_function_too() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("on purpose")
        return Message(RecordDict(), reply_to=message)

    with AppGrid(app, 2) as grid:
        replies = ask(grid)
        assert [reply.has_error() for reply in replies] == [False, True]
        assert replies[1].error.reason == "RuntimeError: on purpose"
        [other] = grid.send_and_receive([Message(RecordDict(), dst_node_id=2, message_type="train")])
        assert "No train function registered" in str(other.error.reason)


def test_messages_are_pushed_and_pulled_and_waited_for_no_longer_than_asked() -> None:
    release = threading.Event()
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            release.wait(30)
        return Message(RecordDict(), reply_to=message)

    with AppGrid(app, 2, workers=2) as grid:
        replies = ask(grid, timeout=0.5)
        assert [r.metadata.src_node_id for r in replies] == [3]
        ids = list(grid.push_messages([Message(RecordDict(), dst_node_id=3, message_type="query")]))
        until = time.monotonic() + 10
        found: list[Message] = []
        while not found and time.monotonic() < until:
            found = list(grid.pull_messages(ids))
        assert [r.metadata.reply_to_message_id for r in found] == ids
        assert not list(grid.pull_messages(ids))
        release.set()


def test_a_node_handles_one_message_after_another_and_nodes_work_at_the_same_time() -> None:
    """Replies are in the order of the messages, whichever is ready first."""
    both = threading.Barrier(2, timeout=30)
    busy, most = [0, 0], [0, 0]
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        assert context.node_id == message.metadata.dst_node_id == node + 2
        busy[node] += 1
        most[node] = max(most[node], busy[node])
        if message.content:
            both.wait()
        time.sleep(0.1 * (1 - node))
        busy[node] -= 1
        return Message(RecordDict(), reply_to=message)

    content = RecordDict({"config": ConfigRecord()})
    with AppGrid(app, 2, workers=2) as grid:
        replies = ask(grid, content)
        assert not any(reply.has_error() for reply in replies)
        assert [reply.metadata.src_node_id for reply in replies] == [2, 3]
        assert [reply.metadata.message_id for reply in replies] == ["1-reply", "2-reply"]
        replies = list(
            grid.send_and_receive([Message(RecordDict(), dst_node_id=2, message_type="query") for _ in range(3)])
        )
        assert [reply.metadata.reply_to_message_id for reply in replies] == ["3", "4", "5"]
    assert most == [1, 1]


def test_one_worker_handles_one_message_at_a_time_and_leaving_drops_those_that_wait() -> None:
    started, seen = threading.Event(), []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        started.set()
        time.sleep(0.2)
        seen.append(context.node_id)
        return Message(RecordDict(), reply_to=message)

    with AppGrid(app, 3, workers=1) as grid:
        ids = grid.push_messages([Message(RecordDict(), dst_node_id=n, message_type="query") for n in (4, 2, 3)])
        assert list(grid.pull_messages([*ids, "unknown"])) == []
        assert started.wait(30)
    assert seen == [4]


def test_only_nodes_there_are_get_messages() -> None:
    with AppGrid(echo(), 2) as grid:
        assert list(grid.get_node_ids()) == [2, 3]
        for node in (1, 4):
            with pytest.raises(ValueError, match=r"unknown node; nodes are 2\.\.3"):
                grid.send_and_receive([Message(RecordDict(), dst_node_id=node, message_type="query")])


def test_what_is_sent_and_what_comes_back_is_the_receivers_own() -> None:
    """Whatever either does to its records, and to the run configuration, afterwards."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        content = message.content
        content["config"]["list"].append(9)
        content["metrics"]["numbers"].append(0.5)
        content["arrays"]["plain"].data = b"changed"
        content["arrays"]["plain"].shape = (7,)
        content["arrays"]["more"] = Array(np.ones(1))
        context.run_config["word"] = str(context.run_config["word"]) + "!"
        kept = context.state.config_records.setdefault("kept", ConfigRecord({"calls": 0}))
        kept["calls"] = int(kept["calls"]) + 1
        kept["run"] = context.run_config["word"]
        return Message(RecordDict({"kept": kept}), reply_to=message)

    plain, lazy = Array(np.arange(3.0)), internals.Array(np.arange(2.0))
    before = plain.data
    content = RecordDict(
        {
            "config": ConfigRecord({"list": [1, 2], "word": "w"}),
            "metrics": MetricRecord({"numbers": [0.25]}),
            "arrays": ArrayRecord({"plain": plain, "lazy": lazy}),
        }
    )
    run_config = {"word": "hello"}
    with AppGrid(app, 2, run_config=run_config) as grid:
        first, second = ask(grid, content), ask(grid, content)
    assert content["config"] == ConfigRecord({"list": [1, 2], "word": "w"})
    assert content["metrics"] == MetricRecord({"numbers": [0.25]})
    assert list(content["arrays"]) == ["plain", "lazy"]
    assert (plain.data, plain.shape, run_config) == (before, (3,), {"word": "hello"})
    for replies, calls, word in ((first, 1, "hello!"), (second, 2, "hello!!")):
        assert [dict(reply.content["kept"].items()) for reply in replies] == [{"calls": calls, "run": word}] * 2


def test_what_arrives_is_what_was_sent() -> None:
    received: list[RecordDict] = []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        received.append(message.content)
        return Message(message.content, reply_to=message)

    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    content = RecordDict(
        {
            "c": ConfigRecord({"b": b"\x00", "t": True, "s": "s", "l": ["a"]}),
            "m": MetricRecord({"n": 3, "x": [0.5]}),
            "a": ArrayRecord({"plain": Array(values)}),
            "lazy": records.record({"values": values}),
        }
    )
    with AppGrid(app, 1) as grid:
        [reply] = ask(grid, content)
    assert received == [content]
    assert reply.content == content
    assert received[0]["a"]["plain"] == Array(values)
    assert np.shares_memory(received[0]["lazy"]["values"].__dict__["values"], values), "arrays are not copied"


@pytest.mark.parametrize("verbose", [False, True])
def test_a_server_finds_its_context_and_flowers_log_is_held_unless_asked_for(verbose: bool) -> None:
    found: list[Any] = []
    logger = logging.getLogger("flwr")
    before = logger.level
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        found.extend([context.node_id, dict(context.run_config), dict(context.node_config), logger.level])
        context.run_config["word"] = "changed"
        [reply] = ask(grid)
        found.append(reply.content["config"]["run"])
        found.append(reply.content["config"]["partition"])

    run_config = {"word": "hello"}
    run_flower(app, echo(), 1, run_config=run_config, node_configs=[{"partition-id": 7}], workers=1, verbose=verbose)
    level = before if verbose else max(before, logging.ERROR)
    assert found == [1, {"word": "hello"}, {}, level, "hello", 7]
    assert run_config == {"word": "hello"}
    assert logger.level == before


def test_a_server_that_raises_raises() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        run_flower(app, echo(), 1)


# From a folder.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "little"\nversion = "1"\n[tool.flwr.app]\npublisher = "me"\n'
        '[tool.flwr.app.components]\nserverapp = "little_app:server"\nclientapp = "little_app:client"\n'
        "[tool.flwr.app.config]\nrounds = 2\nmodel.width = 3\n"
    )
    (tmp_path / "little_app.py").write_text(
        "from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict\n"
        "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
        "from flwr.serverapp.strategy import FedAvg\nimport numpy as np\n"
        "client, server = ClientApp(), ServerApp()\n\n\n"
        "@client.train()\ndef train(message, context):\n"
        "    arrays = [a + 1 for a in message.content['arrays'].to_numpy_ndarrays()]\n"
        "    record = RecordDict({'a': ArrayRecord(arrays), 'm': MetricRecord({'num-examples': 1})})\n"
        "    return Message(record, reply_to=message)\n\n\n"
        "@server.main()\ndef main(grid, context):\n"
        "    start = ArrayRecord([np.zeros(context.run_config['model.width'])])\n"
        "    strategy = FedAvg(fraction_evaluate=0.0)\n"
        "    result = strategy.start(grid, start, num_rounds=context.run_config['rounds'])\n"
        "    print('ended at', result.arrays.to_numpy_ndarrays()[0], 'on', len(list(grid.get_node_ids())))\n"
    )
    return tmp_path


def test_an_app_runs_from_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["flower", str(folder), "--nodes", "3", "--run-config", "rounds=5"]
    with pytest.raises(SystemExit) as left:
        cli.main(command)
    assert left.value.code == 0
    assert "ended at [5. 5. 5.] on 3" in capsys.readouterr().out


def test_an_app_says_its_supernodes_and_its_run_configuration_is_flat(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten SuperNodes are Flower's own default; what the caller says comes first."""
    file = folder / "pyproject.toml"
    text = file.read_text()
    assert load_app(folder)[2:] == ({"rounds": 2, "model.width": 3}, None)
    assert 0 < run_app(folder, assignments=["rounds=1", "model.width=1"], workers=1) < 60
    assert "ended at [1.] on 10" in capsys.readouterr().out
    file.write_text(
        text + "a.b.c = 'deep'\n[tool.flwr.federations]\ndefault = 'mine'\nmine.options.num-supernodes = 7\n"
        "other.options.num-supernodes = 8\n"
    )
    assert load_app(folder)[2:] == ({"rounds": 2, "model.width": 3, "a.b.c": "deep"}, 7)
    run_app(folder, verbose=True)
    assert "ended at [2. 2. 2.] on 7" in capsys.readouterr().out
    run_app(folder, 3)
    assert "on 3" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="workers is 0"):
        run_app(folder, workers=0)
    for odd in ("default = 'none'", "mine = 3\ndefault = 'mine'", "mine.x = 1\ndefault = 'mine'"):
        file.write_text(text + f"[tool.flwr.federations]\n{odd}\n")
        assert load_app(folder)[3] is None


def test_run_configuration_is_changed_in_a_copy() -> None:
    config = {"rounds": 1, "model.width": 2, "word": "a"}
    changed = override_run_config(config, ["rounds=5", "word=b=c", "model.width=[1, 2]", "rounds=6"])
    assert changed == {"rounds": 6, "model.width": [1, 2], "word": "b=c"}
    assert config == {"rounds": 1, "model.width": 2, "word": "a"}
    with pytest.raises(ConfigError, match=r"--run-config is 'rounds'; allowed: KEY=VALUE"):
        override_run_config(config, ["rounds"])
    with pytest.raises(ConfigError, match=r"--run-config is 'x'; allowed: none$"):
        override_run_config({}, ["x=1"])
    with pytest.raises(ConfigError, match=r"^--run-config 'rounds' is "):
        override_run_config(config, ["rounds=" + "[" * 5_000])


def test_two_apps_whose_modules_have_one_name_are_two_apps(tmp_path: Path) -> None:
    """Also a module that the app's own imports; modules that lie elsewhere stay as they are."""
    made = []
    for number in range(2):
        place = tmp_path / f"{number}"
        (place / "twin_app").mkdir(parents=True)
        (place / "pyproject.toml").write_text(
            "[tool.flwr.app.components]\nserverapp = 'twin_app.server'\nclientapp = 'fedsim.apps.app:client_app'\n"
        )
        (place / "twin_app" / "__init__.py").write_text("")
        (place / "twin_app" / "task.py").write_text(f"number = {number}\n")
        (place / "twin_app" / "server.py").write_text(
            "from flwr.serverapp import ServerApp\nfrom twin_app.task import number\napp = ServerApp()\n"
            "app.number = number\n"
        )
        server_app, client_app, run_config, _ = load_app(place)
        made.append(server_app.number)  # type: ignore[attr-defined]
        assert client_app is fedsim_app.client_app
        assert run_config == {}
        assert load_app(place)[0] is server_app
    assert made == [0, 1]
    assert sys.modules["fedsim.apps.app"] is fedsim_app


def test_what_is_no_app_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load_app(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"--run-config is 'round'; allowed: rounds, model.width; did"):
        override_run_config({"rounds": 1, "model.width": 2}, ["round=3"])
    for text in ("[project]\nname = 'x'\n", "tool = 3", "[tool.flwr.app.components]\nserverapp = 'a:b'\n"):
        (folder / "pyproject.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"has no serverapp and clientapp"):
            load_app(folder)
    for text in ("a = = 3", "a = " + "[" * 5_000, "\udcff"):
        (folder / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ConfigError, match=r"pyproject.toml' cannot be read: "):
            load_app(folder)
    (folder / "leaving.py").write_text("raise SystemExit(0)\n")
    text = "[tool.flwr.app.components]\nserverapp = '{}'\nclientapp = 'little_app:client'\n"
    for path, sentence in (
        ("no_such:app", "cannot be imported: ModuleNotFoundError"),
        ("leaving:app", r"cannot be imported: SystemExit: 0 \(leaving.py, line 1\)"),
        ("little_app", "'little_app' is NoneType; allowed: a ServerApp"),
        ("little_app:client", "is ClientApp; allowed: a ServerApp"),
        ("json:loads", "is function; allowed: a ServerApp"),
    ):
        (folder / "pyproject.toml").write_text(text.format(path))
        with pytest.raises(ConfigError, match=sentence):
            load_app(folder)
    with pytest.raises(ConfigError, match="num_supernodes is 0"):
        AppGrid(echo(), 0)
    with pytest.raises(ConfigError, match="workers is 0; allowed: a whole number, 1 or more"):
        AppGrid(echo(), 1, workers=0)
    with pytest.raises(ConfigError, match="node_configs has 1 entries; allowed: 2, one each"):
        AppGrid(echo(), 2, node_configs=[{}])
