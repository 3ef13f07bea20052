"""Attacks on training: what their papers say of them, and that they change malicious clients only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from test_supernodes import on_supernodes

from fedsim import Experiment, attacks, clients, compare, splits
from fedsim.attacks import (
    Attack,
    AttackContext,
    Backdoor,
    FreeRider,
    GaussianAttack,
    InnerProduct,
    LabelFlip,
    LittleIsEnough,
    MinMax,
    MinSum,
    ModelReplacement,
    SignFlip,
)
from fedsim.attacks.attackers import poison
from fedsim.attacks.backdoor import trigger_mask
from fedsim.attacks.little_is_enough import largest_z
from fedsim.attacks.min_max import PERTURBATIONS
from fedsim.data import Dataset
from fedsim.engines.supernodes.fingerprint import fingerprint
from fedsim.errors import ConfigError, DivergenceError
from fedsim.objects import classes_of
from fedsim.privacy import Clip, LocalDP
from fedsim.secure import SecureAggregation
from fedsim.splits import IID, Dirichlet, TimeOrdered
from fedsim.study import config
from fedsim.study.baselines import centralised
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.updates import Int8, TopK
from fedsim.updates.transform import Pipeline

BASE = Experiment(split=IID(10), rounds=2, hidden=(8,), kernel="numpy", seed=3)
EVERY = [cls() for cls in classes_of(attacks, Attack).values()]
ROWS = arrays(np.float64, (5, 4), elements=st.floats(-10, 10, width=16))


def context(known: NDArray[np.float64], malicious: int, cohort: int = 10, examples: int = 100) -> AttackContext:
    ids = np.arange(malicious)
    return AttackContext(0, 1, ids, np.full(malicious, 5), np.zeros(known.shape[1]), known, cohort, examples)


def updates_of(experiment: Experiment) -> dict[int, NDArray[Any]]:
    """Return the update of each client in the first round, as the server gets it."""
    from fedsim.leakage.observation import observe

    return {int(o.clients[0]): o.update for o in observe(experiment, view="updates")}


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_min_max_and_min_sum_are_the_longest_that_their_conditions_allow(rows: NDArray[np.float64]) -> None:
    """Shejwalkar and Houmansadr, eq. 5 and 6: the condition holds, and no longer for a slightly longer change."""
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    for name in PERTURBATIONS:
        for cls in (MinMax, MinSum):
            sent = cls(perturbation=name).corrupt(rows[:2], context(rows, 2))
            assert np.array_equal(sent[0], sent[1])
            step = sent[0] - rows.mean(axis=0)
            if not np.linalg.norm(step) > 1e-3:
                continue
            bounds, norms = [], []
            for point in (sent[0] - 1e-6 * step, sent[0] + 1e-3 * step):
                own = np.linalg.norm(rows - point, axis=1)
                norms.append(own.max() if cls is MinMax else (own**2).sum())
                bounds.append(distances.max() if cls is MinMax else (distances**2).sum(axis=1).max())
            assert norms[0] <= bounds[0] * (1 + 1e-9)
            assert norms[1] > bounds[1]


def test_a_little_is_enough_uses_the_papers_z() -> None:
    """Baruch et al., section 4.1: of 50 workers with 24 corrupted two supporters are needed, z = ndtri(24 / 26)."""
    assert largest_z(50, 24) == pytest.approx(1.4260768722)
    assert largest_z(50, 12) == pytest.approx(0.3360381436)
    assert largest_z(50, 1) == 0.0  # fewer than half of the honest workers would be closer to the mean
    assert largest_z(10, 8) == 0.0
    assert largest_z(10, 10) == 0.0
    rows = np.random.default_rng(0).normal(size=(6, 30))
    sent = LittleIsEnough(z=1.5).corrupt(rows, context(rows[:0], 6))
    np.testing.assert_allclose(sent, np.tile(rows.mean(axis=0) - 1.5 * rows.std(axis=0), (6, 1)))
    one = rows[:1]
    np.testing.assert_array_equal(LittleIsEnough(z=1.5).corrupt(one, context(one[:0], 1)), one)


def test_inner_product_manipulation_reverses_the_mean() -> None:
    """Xie et al.: with epsilon above the ratio of honest to malicious clients, the mean has a negative product."""
    honest = np.random.default_rng(1).normal(size=(8, 30)) + 1
    for epsilon, sign in ((3.9, 1), (4.1, -1)):
        sent = InnerProduct(epsilon=epsilon).corrupt(honest[:2], context(honest, 2))
        assert np.sign(np.concatenate([honest, sent]).mean(axis=0) @ honest.mean(axis=0)) == sign


def test_two_model_replacements_make_the_mean_their_own() -> None:
    """Bagdasaryan et al., eq. 3: if honest updates cancel, the new model is the attackers'."""
    rows = np.random.default_rng(2).normal(size=(2, 30))
    sent = ModelReplacement().corrupt(rows, context(rows[:0], 2, examples=50))
    np.testing.assert_allclose(5 * sent.sum(axis=0) / 50, rows.mean(axis=0))
    uneven = replace(context(rows[:0], 2, examples=50), num_examples=np.array([3, 17]))
    sent = ModelReplacement().corrupt(rows, uneven)
    mean = np.average(rows, axis=0, weights=uneven.num_examples)
    np.testing.assert_allclose(uneven.num_examples @ sent / 50, mean)
    np.testing.assert_allclose(ModelReplacement(boost=3.0).corrupt(rows, context(rows[:0], 2)), 3 * rows)


def test_noise_has_its_deviation_and_a_free_riders_decays() -> None:
    rows = np.full((2, 4000), 0.5)
    noise = GaussianAttack(deviation=10.0).corrupt(rows, context(rows[:0], 2))
    assert noise.std() == pytest.approx(5.0, rel=0.03)
    assert not np.array_equal(noise[0], noise[1])
    assert not FreeRider().corrupt(rows, context(rows[:0], 2)).any()
    rider, late = FreeRider(noise=2.0, decay=0.5), replace(context(rows[:0], 2), round=16)
    assert rider.corrupt(rows, late).std() == pytest.approx(2.0 / 4, rel=0.03)


@pytest.mark.parametrize("attack", EVERY, ids=lambda attack: type(attack).__name__)
def test_honest_clients_send_what_they_send_without_the_attack(attack: Attack) -> None:
    """Of ten clients two are malicious; the others' updates keep their bits, theirs change."""
    attack = replace(attack, z=1.0) if isinstance(attack, LittleIsEnough) else attack
    plain, attacked = updates_of(BASE), updates_of(replace(BASE, attack=attack))
    changed = [k for k in plain if not np.array_equal(plain[k], attacked[k])]
    assert changed == attack.malicious(10, BASE.seed).tolist() == SignFlip().malicious(10, BASE.seed).tolist()


def test_no_malicious_clients_and_no_attack_give_the_same_bits() -> None:
    plain = BASE.run()
    never: list[Attack] = [SignFlip(fraction=0.0), MinMax(fraction=0.0), LabelFlip(fraction=0.0)]
    for attack in never:
        assert same(plain, replace(BASE, attack=attack).run())
    late: list[Attack] = [SignFlip(start=2), LabelFlip(start=2), MinMax(start=2)]
    for attack in late:
        loss = replace(BASE, attack=attack).run().history["test_loss"]
        assert loss[:2].equals(plain.history["test_loss"][:2])
        assert loss[2] != plain.history["test_loss"][2]


def test_the_malicious_clients_are_a_property_of_the_seed() -> None:
    few, many = SignFlip(fraction=0.1).malicious(50, 7), LabelFlip(fraction=0.4).malicious(50, 7)
    assert (len(few), len(many)) == (5, 20)
    assert set(few) <= set(many)
    assert len(SignFlip(fraction=0.001).malicious(50, 7)) == 1
    assert SignFlip(clients=(4, 2)).malicious(5, 0).tolist() == [2, 4]
    assert SignFlip().malicious(50, 8).tolist() != SignFlip().malicious(50, 7).tolist()


@pytest.mark.parametrize("attack", [SignFlip(), GaussianAttack(), MinMax(), LabelFlip(), ModelReplacement()], ids=str)
def test_workers_blocks_and_supernodes_do_not_change_bits(attack: Attack) -> None:
    """Also with compression, whose random numbers and error feedback belong to clients."""
    experiment = replace(BASE, attack=attack, transforms=(TopK(0.3), Int8()), rounds=2, fraction_evaluate=1.0)
    plain = experiment.run()
    assert same(plain, experiment.run(workers=2, block_size=3))
    assert same(plain, on_supernodes(experiment, 2))


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Stop(Callback):
        def round_finished(self, finished: FinishedRound) -> None:
            if finished.number == 1:
                raise KeyboardInterrupt

    experiment = replace(BASE, attack=Backdoor(start=2), rounds=3)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(directory=tmp_path, callbacks=[Stop()])
    assert same(experiment.run(directory=tmp_path), experiment.run())


def test_malicious_clients_do_not_clip_and_their_updates_are_encoded() -> None:
    """Clip and LocalDP are up to the client; eight bits are not. Colluding updates are encoded at the server."""
    for attack in (SignFlip(scale=50.0, clients=(1,)), InnerProduct(epsilon=50.0, clients=(1,))):
        sent = updates_of(replace(BASE, attack=attack, transforms=(Clip(0.1), Int8())))
        lengths = {k: np.linalg.norm(change) for k, change in sent.items()}
        assert lengths.pop(1) > 1
        assert max(lengths.values()) < 0.11
        levels = sent[1] / np.abs(sent[1]).max() * 127
        assert np.abs(levels - np.rint(levels)).max() < 0.01
    plain = updates_of(BASE)
    noisy = updates_of(replace(BASE, attack=SignFlip(clients=(1,)), transforms=(LocalDP(1.0),)))
    np.testing.assert_allclose(noisy[1], -plain[1], atol=1e-6)
    assert np.linalg.norm(noisy[2] - plain[2]) > 1


def test_the_pipeline_lets_only_malicious_clients_skip_what_the_server_cannot_check() -> None:
    pipeline = Pipeline([Clip(1.0), TopK(0.5, error_feedback=False)], np.ones(4, np.bool_), "float64")
    rows = np.array([[3.0, 4.0, 0.0, 0.0]] * 2)
    sent = pipeline.encode(rows, 0, 1, np.arange(2), np.array([False, True]))
    np.testing.assert_allclose(sent["values"], [[0.6, 0.8], [3.0, 4.0]])


def test_only_the_training_examples_of_malicious_clients_change() -> None:
    """Not their evaluation examples, and not examples that an honest client has too."""
    federated = splits.Shared(IID(6), fraction=0.2).federate(BASE.load_data(), 0).with_tests(0.2, 0)
    made = poison(LabelFlip(clients=(1, 4)), federated, 0)
    assert made.poisoned is not None
    data, poisoned = made.dataset, made.poisoned
    for k in range(6):
        before, after = federated.partition[k], poisoned[k]
        assert np.array_equal(data.x_train[after], federated.dataset.x_train[before])
        expected = federated.dataset.y_train[before]
        assert np.array_equal(data.y_train[after], 9 - expected if k in (1, 4) else expected)
    size = len(federated.dataset.x_train)
    assert np.array_equal(data.x_train[:size], federated.dataset.x_train)
    assert np.array_equal(data.y_train[:size], federated.dataset.y_train)
    assert made.partition_test is federated.partition_test
    assert fingerprint(made)["held"] != fingerprint(poison(LabelFlip(clients=(1, 3)), federated, 0))["held"]


def test_windows_of_poisoned_examples() -> None:
    """In round 2 of a split in time, clients train on their second window, poisoned from then on."""
    experiment = replace(BASE, split=TimeOrdered(IID(4), windows=2), attack=LabelFlip(clients=(1,), start=2))
    runtime = build_runtime(experiment)
    clean = runtime.federated.dataset.y_train[runtime.federated.at(2)[1]]
    first, second = (runtime.task(np.zeros(runtime.model.num_parameters, np.float32), r) for r in (1, 2))
    assert np.array_equal(first.partition[1], runtime.federated.at(1)[1])
    assert np.array_equal(second.y[second.partition[1]], 9 - clean)
    assert np.array_equal(second.partition[0], runtime.federated.at(2)[0])


def test_a_trigger_is_a_corner_of_an_image_or_the_last_features() -> None:
    assert np.flatnonzero(trigger_mask((64,), 2)).tolist() == [54, 55, 62, 63]
    assert np.flatnonzero(trigger_mask((10,), 3)).tolist() == [7, 8, 9]
    assert trigger_mask((5, 4), 1)[-1, -1]
    assert trigger_mask((3, 5, 4), 2)[:, -2:, -2:].all() == trigger_mask((5, 4, 3), 2)[-2:, -2:].all() == 1
    assert trigger_mask((3, 5, 4), 2).sum() == trigger_mask((5, 4, 3), 2).sum() == 12
    data = BASE.load_data()
    x, y = Backdoor(target=3, size=2).success_examples(data) or (np.empty(0), np.empty(0))
    assert len(x) == (data.y_test != 3).sum()
    assert (x[:, [54, 55, 62, 63]] == 1).all()
    assert (y == 3).all()


def test_the_success_rate_is_that_of_the_final_model() -> None:
    """Counted by hand from `Result.predict`; a run without a targeted attack has none."""
    result = replace(BASE, attack=Backdoor(target=1, fraction=0.5), rounds=4).run()
    x, _ = Backdoor(target=1).success_examples(result.dataset) or (np.empty(0), None)
    success = result.history["attack_success"]
    assert success.iloc[-1] == pytest.approx((result.predict(x) == 1).mean())
    assert len(success.dropna()) == 5
    flipped = replace(BASE, attack=LabelFlip(source=7, target=1, fraction=0.6), rounds=4).run()
    sevens = flipped.dataset.x_test[flipped.dataset.y_test == 7]
    assert flipped.history["attack_success"].iloc[-1] == pytest.approx((flipped.predict(sevens) == 1).mean())
    assert BASE.run().history["attack_success"].isna().all()
    study = compare(BASE, attack=[None, Backdoor()], seeds=3)
    assert study.table()["attack success"].iloc[0] == ""
    assert "±" in study.table()["attack success"].iloc[1]


@dataclass(frozen=True)
class Broken(Attack):
    """Sends what no client should."""

    value: float = np.nan
    together: bool = False

    @property
    def sees(self) -> str:
        return "all" if self.together else "own"

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        return np.full_like(changes, self.value)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("value", [np.nan, 1e300, np.inf])
def test_updates_that_are_not_finite_are_excluded_by_name(value: float, together: bool) -> None:
    attack = Broken(clients=(4,), value=value, together=together)
    with pytest.raises(DivergenceError, match="at client 4"):
        replace(BASE, attack=attack).run()
    result = replace(BASE, attack=attack, on_failure="exclude").run()
    assert result.failures["partition_id"].tolist() == [4, 4]
    assert result.history["clients"].tolist() == [0, 9, 9]


def test_cohorts_without_and_with_only_malicious_clients() -> None:
    for attack in EVERY:
        everyone = replace(BASE, rounds=1, attack=replace(attack, fraction=1.0), on_failure="exclude").run()
        assert np.isfinite(everyone.history["test_loss"]).all()
    some = replace(BASE, fraction_train=0.2, rounds=6)
    met = replace(some, attack=MinMax(fraction=0.1)).run()  # some rounds without the one malicious client
    assert len(met.history) == 7


def test_private_parameters_are_not_attacked() -> None:
    experiment = replace(BASE, client=clients.FedPer(), attack=SignFlip(scale=5.0), fraction_evaluate=1.0)
    assert np.isfinite(experiment.run().history["local_loss"].iloc[-1])


def test_secure_aggregation_allows_attacks_on_own_updates_only() -> None:
    secure = replace(BASE, secure_aggregation=SecureAggregation())
    with pytest.raises(ConfigError, match=r"attack is MinMax\(\), which needs the updates of several clients"):
        replace(secure, attack=MinMax()).run()
    hidden = replace(secure, attack=SignFlip(scale=2.0)).run().flat_weights
    np.testing.assert_allclose(hidden, replace(BASE, attack=SignFlip(scale=2.0)).run().flat_weights, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SignFlip, fraction=1.5), "SignFlip's fraction is 1.5"),
        (partial(SignFlip, fraction=float("nan")), "SignFlip's fraction is nan"),
        (partial(SignFlip, fraction=True), "SignFlip's fraction is True"),
        (partial(SignFlip, start=0), "SignFlip's start is 0"),
        (partial(SignFlip, scale=0), "SignFlip's scale is 0"),
        (partial(SignFlip, clients=(1, 1)), "allowed: each client once"),
        (lambda: SignFlip(clients="12"), "allowed: a list of partition ids"),  # type: ignore[arg-type]
        (lambda: SignFlip(clients=(1.5,)), "SignFlip's clients is 1.5"),  # type: ignore[arg-type]
        (partial(LabelFlip, source=1), "allowed: both, or neither"),
        (partial(LabelFlip, source=1, target=1), "two different labels"),
        (partial(MinMax, perturbation="size"), "perturbation is 'size'"),
        (partial(InnerProduct, knowledge="own"), "knowledge is 'own'"),
        (partial(Backdoor, share=0), "Backdoor's share is 0"),
        (partial(ModelReplacement, boost=-1.0), "ModelReplacement's boost is -1.0"),
        (partial(LittleIsEnough, z=float("inf")), "LittleIsEnough's z is inf"),
    ],
)
def test_settings_that_are_not_allowed(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_attacks_that_do_not_fit_the_data() -> None:
    x, y = np.random.default_rng(0).random((40, 4)), np.arange(40) / 40
    numbers = replace(BASE, dataset=Dataset("n", x, y, x, y, regression=True), loss="mse", split=IID(4))
    on_labels: list[Attack] = [LabelFlip(), Backdoor(), ModelReplacement()]
    for attack in on_labels:
        with pytest.raises(ConfigError, match="changes labels, and n has real-valued targets"):
            replace(numbers, attack=attack).run()
    assert np.isfinite(replace(numbers, attack=MinMax()).run().final_score)
    wrong: list[tuple[Attack, str]] = [
        (LabelFlip(source=2, target=10), "LabelFlip's target is 10"),
        (Backdoor(size=9), "Backdoor's size is 9; allowed: a whole number, 1 to 8"),
        (SignFlip(clients=(10,)), "SignFlip's clients is 10; allowed: a whole number, 0 to 9"),
    ]
    for attack, message in wrong:
        with pytest.raises(ConfigError, match=message):
            replace(BASE, attack=attack).run()


@dataclass(frozen=True)
class Misshapen(Attack):
    """Returns arrays of another shape."""

    data: bool = False

    def corrupt(self, changes: NDArray[np.float64], ctx: AttackContext) -> NDArray[np.float64]:
        return changes[:, :1]

    def poison(self, x: Any, y: Any, dataset: Dataset, rng: np.random.Generator) -> tuple[Any, Any]:
        return (x[:1], y) if self.data else (x, y)


def test_an_attack_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Misshapen's corrupt\(\) returned an array of shape"):
        replace(BASE, attack=Misshapen()).run()
    with pytest.raises(ConfigError, match=r"Misshapen's poison\(\) returned"):
        replace(BASE, attack=Misshapen(data=True)).run()


def test_an_attack_is_a_setting_as_any_other() -> None:
    made = config.experiment({"attack": "LittleIsEnough(fraction=0.3, clients=(1, 2))"})
    assert made.attack == LittleIsEnough(fraction=0.3, clients=(1, 2))
    for attack in EVERY:
        text = config.to_toml(replace(BASE, attack=attack))
        assert f'attack = "{type(attack).__name__}(' in text
    assert config.experiment({"attack": "none"}) == Experiment()
    changed = config.apply(made, ["attack.fraction=0.5"]).attack
    assert changed == LittleIsEnough(fraction=0.5, clients=(1, 2))
    with pytest.raises(ConfigError, match=r"attack is 3; allowed: an object of a class in fedsim\.attacks"):
        Experiment(attack=3)  # type: ignore[arg-type]
    assert centralised(made).attack is None


def test_poisoned_training_of_a_non_iid_split_is_measured_on_clean_examples() -> None:
    """Without `test_fraction` clients evaluate on training examples: those without the attack's changes."""
    experiment = replace(BASE, split=Dirichlet(6, alpha=0.3), fraction_evaluate=1.0, rounds=3)
    attacked = replace(experiment, attack=LabelFlip(fraction=1.0)).run()
    assert attacked.history["local_accuracy"].iloc[-1] < 0.2  # clean labels, a model of flipped ones
    assert attacked.history["train_loss"].iloc[-1] < attacked.history["local_loss"].iloc[-1] - 1
