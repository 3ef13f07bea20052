"""Server strategies against Flower's, against their formulas, and under attack."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from helpers import same
from numpy.typing import NDArray
from scipy.optimize import minimize

from fedsim import Experiment, clients, servers
from fedsim.clients.base import Update
from fedsim.engines import flower
from fedsim.errors import ConfigError
from fedsim.kernels.mean import RunningMean
from fedsim.servers.fedavg import Rule
from fedsim.splits import Dirichlet, Shards

BASE = Experiment(split=Shards(13, per_client=2), hidden=(8,), rounds=4, dtype="float64")
#: Every strategy that Flower has too, with options that show.
TWINS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.7},
    "FedAdagrad": {"eta": 0.05},
    "FedAdam": {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "FedYogi": {"eta": 0.05},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.3},
    "Krum": {"num_malicious_nodes": 2},
    "MultiKrum": {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
    "Bulyan": {"num_malicious_nodes": 2},
    "QFedAvg": {"q": 0.5, "client_learning_rate": 0.1},
}
OURS = [name for name in servers.__all__ if name not in TWINS]
RNG = np.random.default_rng(0)


def test_every_strategy_is_in_this_file() -> None:
    assert set(OURS) == {"RFA", "CenteredClipping", "FedExP"}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("split", [BASE.split, Dirichlet(13, alpha=0.5)], ids=str)
def test_ours_agrees_with_flowers(name: str, split: Any) -> None:
    ours, theirs = (
        replace(BASE, split=split, server=partial(getattr(module, name), **TWINS[name])).run()
        for module in (servers, stock)
    )
    for key, weights in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[key], weights, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", servers.__all__)
def test_same_bits_on_any_workers_and_blocks(name: str) -> None:
    experiment = replace(BASE, dtype="float32", server=partial(getattr(servers, name), **TWINS.get(name, {})))
    assert same(experiment.run(workers=1), experiment.run(workers=3, block_size=2))


def combined(rule: Rule, rows: NDArray[Any], examples: NDArray[np.intp]) -> NDArray[Any]:
    """What a rule makes of rows, handed over in two blocks."""
    for block in (slice(0, 3), slice(3, None)):
        n = len(rows[block])
        rule.add(
            Update(np.arange(n), examples[block], rows[block], np.ones(n)),
            examples[block].astype(np.float64),
        )
    return rule.value()


def sent(server: servers.FedAvg, weights: NDArray[Any]) -> None:
    server._sent = flower.record({"W1": weights})


def test_the_geometric_median_minimises_the_sum_of_distances() -> None:
    rows, examples = RNG.normal(size=(9, 3)), RNG.integers(1, 30, 9)

    def cost(point: NDArray[Any]) -> float:
        return float(examples @ np.linalg.norm(rows - point, axis=1))

    best = minimize(cost, rows.mean(axis=0), tol=1e-12).x
    for iterations, atol in ((300, 1e-4), (4, 0.1)):
        server = servers.RFA(iterations=iterations)
        sent(server, np.zeros(3))
        np.testing.assert_allclose(combined(server.rule(), rows, examples), best, atol=atol)


def test_centred_clipping_bounds_what_one_client_can_do() -> None:
    rows = np.concatenate([0.1 * RNG.normal(size=(9, 5)), np.full((1, 5), 1e9)])
    server = servers.CenteredClipping(tau=1.0)
    sent(server, np.zeros(5))
    first = combined(server.rule(), rows, np.ones(10, np.intp))
    assert np.linalg.norm(first - rows[:9].sum(axis=0) / 10) == pytest.approx(0.1, rel=1e-6)  # tau / clients
    wide = servers.CenteredClipping(tau=1e6)
    sent(wide, np.zeros(5))
    np.testing.assert_allclose(combined(wide.rule(), rows[:9], np.ones(9, np.intp)), rows[:9].mean(axis=0))


def test_fedexp_extrapolates_as_its_formula_says() -> None:
    rng = np.random.default_rng(1)
    old, rows, examples = 0.1 * rng.normal(size=4), rng.normal(size=(6, 4)), rng.integers(1, 9, 6)
    server = servers.FedExP(epsilon=0.01)
    sent(server, old)
    mean = combined(server.rule(), rows, examples)
    shares = examples / examples.sum()
    moved = shares @ rows - old
    eta = max(1, shares @ ((rows - old) ** 2).sum(axis=1) / (2 * (moved @ moved + 0.01)))
    assert eta > 1
    np.testing.assert_allclose(server.step(1, old, mean), old + eta * moved)


@pytest.mark.parametrize(
    "name", ["FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "RFA", "CenteredClipping"]
)
def test_robust_strategies_withstand_what_breaks_the_mean(name: str) -> None:
    """Two of twelve clients send weights a thousand times off."""

    class Attack(clients.SGD):
        def train(self, ctx: clients.Context) -> NDArray[Any]:
            weights = ctx.fit()
            weights[ctx.partition_ids < 2] *= -1000
            return weights

    options = {"tau": 1.0} if name == "CenteredClipping" else TWINS.get(name, {})
    base = replace(BASE, split=Dirichlet(12, alpha=100.0), rounds=15, client=Attack())
    robust = replace(base, server=partial(getattr(servers, name), **options)).run()
    assert robust.final_accuracy > 0.6
    with pytest.raises(Exception, match="diverged"):
        replace(base, server=servers.FedAvg).run()


@pytest.mark.parametrize("seed", [0, 1])
def test_qfedavg_spreads_the_loss_more_evenly(seed: int) -> None:
    """The paper's claim: at the same mean loss over clients, less variance among them."""
    base = replace(BASE, split=Dirichlet(20, alpha=0.3), rounds=150, fraction_evaluate=1.0, seed=seed)
    spread = []
    for q in (0.0, 0.5):
        clients = replace(base, server=partial(servers.QFedAvg, q=q)).run().clients
        rounds = clients.groupby("round")["loss"].agg(["mean", "std"])
        spread.append(rounds[rounds["mean"] <= 1.6]["std"].iloc[0])
    assert spread[1] < 0.9 * spread[0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("FedAvgM", {"server_momentum": 1.0}, "FedAvgM's server_momentum is 1.0"),
        ("FedAdam", {"beta_2": -0.1}, "FedAdam's beta_2 is -0.1"),
        ("FedYogi", {"eta": 0.0}, "FedYogi's eta is 0.0"),
        ("FedAdagrad", {"tau": float("nan")}, "FedAdagrad's tau is nan"),
        ("FedTrimmedAvg", {"beta": 0.5}, "FedTrimmedAvg's beta is 0.5"),
        ("Krum", {"num_malicious_nodes": -1}, "Krum's num_malicious_nodes is -1"),
        ("MultiKrum", {"num_nodes_to_select": 0}, "MultiKrum's num_nodes_to_select is 0"),
        ("RFA", {"iterations": 0}, "RFA's iterations is 0"),
        ("CenteredClipping", {"tau": "big"}, "CenteredClipping's tau is 'big'"),
        ("QFedAvg", {"q": -1}, "QFedAvg's q is -1"),
        ("FedExP", {"epsilon": -1}, "FedExP's epsilon is -1"),
        ("FedAdam", {"beta2": 0.9}, "FedAdam cannot be made"),
    ],
)
def test_bad_options_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(BASE, server=partial(getattr(servers, name), **options)).run()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bulyan_says_how_many_clients_it_needs() -> None:
    with pytest.raises(ConfigError, match="for which a round needs 19 clients; it has 13"):
        replace(BASE, server=partial(servers.Bulyan, num_malicious_nodes=4)).run()


def test_a_server_half_needs_a_server_that_carries_it() -> None:
    with pytest.raises(ConfigError, match="SCAFFOLD has a server half, which the server FedAdam does not carry"):
        replace(BASE, client=clients.SCAFFOLD(), server=stock.FedAdam).run()
    with pytest.raises(ConfigError, match="averages in groups needs a server that averages"):
        replace(BASE, client=clients.IFCA(), server=servers.FedMedian).run()


def test_fedadam_carries_scaffolds_server_half() -> None:
    """In round 1 all control variates are zero, so that SCAFFOLD is SGD; from round 2 on they are not."""
    for rounds in (1, 2):
        base = replace(BASE, server=servers.FedAdam, rounds=rounds)
        plain, ours = (replace(base, client=c).run().weights["W1"] for c in (clients.SGD(), clients.SCAFFOLD()))
        assert np.allclose(plain, ours, rtol=1e-12, atol=1e-14) == (rounds == 1)


def test_grouped_means_are_means_of_the_groups() -> None:
    rows, factors = RNG.normal(size=(6, 4)), np.array([[2, 0], [0, 3], [1, 0], [0, 0], [0, 1], [5, 0]])
    mean = RunningMean()
    mean.add(rows[:2], factors[:2])
    mean.add(rows[2:], factors[2:])
    np.testing.assert_allclose(mean.value(), (factors.T @ rows) / factors.sum(axis=0)[:, None])
    empty = RunningMean()
    empty.add(rows, np.eye(2)[np.zeros(6, int)])
    assert np.isnan(empty.value()[1]).all()
    scalars = RunningMean()
    scalars.add(np.array([1, 2, 4]), np.array([1.0, 1, 2]))
    assert scalars.value() == pytest.approx(11 / 4)
