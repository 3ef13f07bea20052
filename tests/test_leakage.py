"""What updates and models reveal: exact where theory says so, nothing where it should."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from fedsim import Experiment
from fedsim.clients import SGD, Array, ClientStrategy, Context, FedProx
from fedsim.data import Dataset
from fedsim.engines.runtime import ClientRuntime
from fedsim.errors import ConfigError, FedsimError
from fedsim.leakage import (
    Inversion,
    LabelInference,
    MembershipInference,
    ShadowModels,
    assign,
    attack_result,
    imprint_weights,
    infer_labels,
    infer_membership,
    invert,
    lira_scores,
    match_gradient,
    neuron_ratios,
    observe,
    psnr,
    read_imprint,
    separate,
    single_example,
    train_shadow_models,
)
from fedsim.leakage.labels import label_counts
from fedsim.leakage.matching import GradientMatch, total_variation
from fedsim.leakage.shadow_models import confidence
from fedsim.models import MLP
from fedsim.privacy import CentralDP, Clip, LocalDP
from fedsim.report.leaks import plot_images
from fedsim.secure import SecureAggregation
from fedsim.servers import FedAvgM
from fedsim.splits import IID, Dirichlet, FederatedDataset, Partition, Split, TimeOrdered
from fedsim.streams import Purpose, generator
from fedsim.study.build import build_runtime
from fedsim.updates import TopK


def batches(examples: int, clients: int = 10, **settings: Any) -> Experiment:
    """Clients with so many digits each, which make one step on all of them."""
    given: dict[str, Any] = {
        "hidden": (100,),
        "client": SGD(batch_size=None),
        "split": IID(clients, [examples] * clients),
    }
    return Experiment(**(given | settings))


class LocalGradient(ClientStrategy):
    """Not SGD."""

    def train(self, ctx: Context) -> Array:
        return ctx.global_weights[None]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Experiment().load_data()


# What is seen.


def test_the_server_sees_what_clients_send_and_a_mean_of_it_under_secure_aggregation() -> None:
    experiment = Experiment(split=IID(4, [5, 9, 2, 7]), transforms=(Clip(0.2),), client=SGD(epochs=2))
    runtime = build_runtime(experiment)
    seen = observe(experiment)
    task = runtime.task(seen[0].weights, 1)
    sent = runtime.train(task, np.arange(4), lambda clients: {}).weights.astype(float) - task.global_weights
    for k, observation in enumerate(seen):
        assert observation.clients.tolist() == [k]
        assert np.array_equal(observation.update, sent[k])
        assert np.array_equal(observation.indices, runtime.partition[k])
        assert observation.num_examples == len(runtime.partition[k])
    [mean] = observe(experiment, view="mean", clients=[0, 1, 3])
    assert mean.update == pytest.approx(np.average(sent[[0, 1, 3]], axis=0, weights=[5, 9, 7]), abs=1e-9)
    assert mean.num_examples == 21


def test_the_gradient_of_a_round_knows_its_learning_rate_and_steps() -> None:
    client = SGD(lr=0.4, lr_decay=0.5, lr_decay_every=2, steps=1, batch_size=None)
    experiment = Experiment(split=IID(3, [5, 9, 2]), client=client, dtype="float64")
    seen = observe(experiment, round_number=4)[1]
    data = experiment.load_data()
    x, y = data.x_train[seen.indices].astype(float), data.y_train[seen.indices]
    _, gradient = seen.model.loss_and_gradient(seen.weights[None], x[None], y[None])
    assert np.concatenate([values.ravel() for values in seen.gradient.values()]) == pytest.approx(
        gradient[0], abs=1e-12
    )
    assert seen.lr == pytest.approx(0.2)
    for changes, steps in (({"steps": 7}, 7), ({"steps": None, "epochs": 2, "batch_size": 4}, 6)):
        assert observe(replace(experiment, client=SGD.of(client, **changes)))[1].steps == steps


def test_an_experiment_with_secure_aggregation_shows_its_mean_and_its_model() -> None:
    plain = Experiment(split=IID(5, [5, 9, 2, 7, 4]), client=SGD(epochs=2), rounds=1)
    secure = replace(plain, secure_aggregation=SecureAggregation())
    [expected], [mean], [model] = (
        observe(e, view=v) for e, v in ((plain, "mean"), (secure, "mean"), (secure, "model"))
    )
    assert mean.update == pytest.approx(expected.update, abs=1e-6)
    assert mean.clients.tolist() == [0, 1, 2, 3, 4]
    assert mean.num_examples == 27
    assert np.array_equal(model.update, mean.update)
    flat = np.concatenate([values.ravel() for values in secure.run().weights.values()])
    assert np.array_equal((model.weights + model.update).astype(np.float32), flat)


def test_who_sees_models_sees_the_change_that_a_run_makes() -> None:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    experiment = batches(
        3, rounds=1, privacy=CentralDP(clip=0.1, noise_multiplier=0.5), server=FedAvgM(server_momentum=0.5)
    )
    [seen] = observe(experiment, view="model")
    result = experiment.run()
    flat = np.concatenate([values.ravel() for values in result.weights.values()])
    assert np.array_equal((seen.weights + seen.update).astype(np.float32), flat)


@pytest.mark.parametrize(
    ("settings", "options", "sentence"),
    [
        ({"client": FedProx()}, {}, "client is FedProx; allowed: SGD without"),
        ({"client": SGD(momentum=0.9)}, {}, "allowed: SGD without momentum"),
        ({}, {"view": "all"}, "view is 'all'; allowed: updates, mean, model"),
        ({}, {"clients": [50]}, "clients is 50; allowed: a whole number"),
        ({}, {"clients": [1, 1]}, r"clients is \[1, 1\]; allowed: at least one partition id, each once"),
        ({}, {"clients": [1], "view": "model"}, "clients is given for the view 'model'"),
        ({}, {"weights": np.zeros(3)}, r"weights has shape \(3,\); allowed: \(2410,\)"),
        ({}, {"round_number": 0}, "round_number is 0"),
        ({"secure_aggregation": SecureAggregation()}, {}, "view is 'updates', which secure_aggregation hides"),
        (
            {"secure_aggregation": SecureAggregation()},
            {"view": "mean", "clients": [1]},
            "no client has sent an update: few",
        ),
        (
            {"split": TimeOrdered(IID(1442), windows=3)},
            {"clients": [0]},
            "no client has sent an update: client 0 has no examples",
        ),
    ],
)
def test_rounds_that_the_attacks_do_not_know_are_refused(
    settings: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        observe(Experiment(**settings), **options)


# Quality.


def test_psnr_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 7))
    by_hand = [
        20 * np.log10(2.0) - 10 * np.log10(sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) / 7)
        for p, q in zip(a, b, strict=True)
    ]
    assert psnr(a, b, data_range=2.0) == pytest.approx(by_hand)
    assert psnr(a, a).tolist() == [200.0] * 5
    with pytest.raises(ConfigError, match="data_range is 0"):
        psnr(a, b, data_range=0)
    with pytest.raises(ConfigError, match=r"reconstruction has shape \(5, 3\)"):
        psnr(a, b[:, :3])


def test_reconstructions_are_assigned_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    originals = rng.random((6, 9))
    order = rng.permutation(6)
    assert np.array_equal(order[assign(originals, originals[order] + 0.01)], np.arange(6))
    assert (assign(originals, originals[:2]) == [0, 1, -1, -1, -1, -1]).all()
    assert (assign(originals, originals[:0]) == -1).all()


# Inversion in closed form.


@pytest.mark.parametrize("hidden", [(), (32,), (20, 10)])
@pytest.mark.parametrize("transforms", [(), (Clip(0.05),)])
def test_a_single_example_is_read_exactly_also_from_a_clipped_update(
    hidden: tuple[int, ...], transforms: tuple[Clip, ...], digits: Dataset
) -> None:
    experiment = batches(1, hidden=hidden, dtype="float64", transforms=transforms)
    for observation in observe(experiment):
        original = digits.x_train[observation.indices[0]]
        assert single_example(observation) == pytest.approx(original, abs=1e-10)
        inverted = invert(observation, digits)
        assert inverted.method == "ratio"
        assert inverted.psnr(original[None])[0] == pytest.approx(200)


def test_rounding_to_float32_and_local_steps_leave_a_single_example_exact(digits: Dataset) -> None:
    for observation in observe(batches(1, client=SGD(epochs=5))):
        assert psnr(digits.x_train[observation.indices[0]], single_example(observation)) > 100


def test_neurons_that_one_example_of_a_batch_activates_show_it(digits: Dataset) -> None:
    [observation] = observe(batches(4, dtype="float64"), clients=[0])
    originals = digits.x_train[observation.indices]
    ratios = neuron_ratios(observation)
    exact = psnr(originals, ratios[assign(originals, ratios)]) > 100
    assert exact.any()


@pytest.mark.parametrize("examples", [2, 4, 8])
def test_a_relu_layer_shows_a_small_batch_exactly(examples: int, digits: Dataset) -> None:
    [observation] = observe(batches(examples), clients=[0])
    inverted = invert(observation, digits)
    assert inverted.method == "zeros of ReLU"
    assert inverted.psnr(digits.x_train[observation.indices]).min() > 60


def test_no_batch_is_separated_without_relu_with_noise_or_with_too_many_examples() -> None:
    for experiment in (batches(4, activation="tanh"), batches(4, transforms=(LocalDP(0.1, 0.01),)), batches(40)):
        [observation] = observe(experiment, clients=[0])
        assert separate(observation, trials=10_000).shape == (0, 64)
    assert separate(replace(observation, update=np.zeros_like(observation.update))).shape == (0, 64)
    with pytest.raises(ConfigError, match="trials is 0"):
        separate(observation, trials=0)


# Inversion by optimisation.


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "binary_cross_entropy"])
def test_the_distance_of_gradients_and_its_slope(activation: str, loss: str) -> None:
    rng = np.random.default_rng(0)
    model = MLP((6, 5, 4, 3), activation, loss, "float64")
    weights = model.init(rng) + 0.1 * rng.normal(size=model.num_parameters)
    x, y = rng.random((3, 6)), np.array([0, 2, 1])
    _, gradient = model.loss_and_gradient(weights[None], x[None], y[None])
    assert GradientMatch(model, weights, 3.0 * gradient[0], y).distance(x)[0] == pytest.approx(0, abs=1e-12)
    matched = GradientMatch(model, weights, rng.normal(size=model.num_parameters), y)
    _, slope = matched.distance(x)
    along = rng.normal(size=x.shape)
    ends = [matched.distance(x + step * along)[0] for step in (1e-6, -1e-6)]
    assert (slope * along).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_total_variation_and_its_slope() -> None:
    rng = np.random.default_rng(0)
    images, along = rng.random((2, 2, 4, 3))
    ends = [total_variation(images + step * along)[0] for step in (1e-6, -1e-6)]
    assert (total_variation(images)[1] * along).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)
    assert total_variation(np.ones((1, 4, 4)))[0] == 0


def test_a_batch_is_found_by_optimisation_without_relu(digits: Dataset) -> None:
    [observation] = observe(batches(2, activation="tanh"), clients=[0])
    inverted = invert(observation, digits, starts=2, hops=0)
    assert inverted.method == "optimisation"
    assert inverted.psnr(digits.x_train[observation.indices]).min() > 30


def test_noise_hides_an_example_and_little_noise_does_not(digits: Dataset) -> None:
    scores = []
    for noise in (0.003, 0.3):
        [observation] = observe(batches(1, transforms=(LocalDP(0.1, noise),)), clients=[0])
        inverted = invert(observation, digits, starts=2, hops=0)
        scores.append(inverted.psnr(digits.x_train[observation.indices])[0])
    assert scores[0] > 25
    assert scores[1] < 13


@pytest.mark.slow
def test_the_mean_of_ten_clients_hides_their_examples(digits: Dataset) -> None:
    """No better than other digits, which are assigned to the originals in the same way."""
    for seed in range(3):
        [observation] = observe(batches(8, seed=seed), view="mean")
        inverted = invert(observation, digits, starts=2, hops=4)
        originals = digits.x_train[observation.indices]
        others = digits.x_test[: len(originals)]
        guessed = psnr(originals, others[assign(originals, others)]).mean()
        assert inverted.psnr(originals).mean() < guessed + 1


def test_a_malicious_server_reads_examples_from_the_mean_of_all_clients(digits: Dataset) -> None:
    """Where one example has its mean between the thresholds of two neurons, and not from noisy updates."""
    experiment = batches(4)
    weights = imprint_weights(MLP((64, 100, 10)), digits.x_test)
    [observation] = observe(experiment, view="mean", weights=weights)
    originals = digits.x_train[observation.indices]
    found = read_imprint(observation)
    bins, counts = np.unique(np.digitize(originals.mean(axis=1), -weights[6400:6500]), return_counts=True)
    alone = np.isin(np.digitize(originals.mean(axis=1), -weights[6400:6500]), bins[counts == 1])
    assert alone.sum() >= 15
    exact = psnr(originals[alone], found[assign(originals[alone], found)]) > 35
    assert exact.mean() > 0.8
    [noisy] = observe(replace(experiment, transforms=(LocalDP(0.1, 0.1),)), view="mean", weights=weights)
    assert psnr(originals, Inversion(read_imprint(noisy), "imprint").aligned(originals)).max() < 20
    with pytest.raises(ConfigError, match="allowed: an MLP with one hidden ReLU layer"):
        imprint_weights(MLP((64, 10)), digits.x_test)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": [10]}, "labels is .*; allowed: at least one label from 0 to 9"),
        ({"labels": []}, "allowed: at least one label"),
        ({"starts": 0}, "starts is 0"),
        ({"smoothness": -1}, "smoothness is -1"),
        ({"bounds": (1, 0)}, r"bounds is \(1, 0\)"),
        ({"image_shape": (3, 4)}, "allowed: a height and a width with 64 pixels"),
    ],
)
def test_optimisations_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    [observation] = observe(batches(1), clients=[0])
    with pytest.raises(ConfigError, match=sentence):
        match_gradient(observation, **({"labels": [1]} | options))


# Labels.


def test_labels_of_single_examples_and_batches_are_inferred(digits: Dataset) -> None:
    for examples in (1, 8):
        for observation in observe(batches(examples), clients=[0, 1, 2]):
            inferred = label_counts(observation, digits.x_test, digits.y_test)
            wrong = np.setdiff1d(digits.y_train[observation.indices], inferred)
            assert len(inferred) == examples
            assert len(wrong) <= (0 if examples == 1 else 1)


@pytest.mark.parametrize("client", [SGD(batch_size=None), SGD(epochs=5)])
@pytest.mark.parametrize("split", [IID(50), Dirichlet(50, alpha=0.1)])
def test_label_distributions_are_inferred_unless_noise_hides_them(client: SGD, split: Split, digits: Dataset) -> None:
    clients = list(range(15))
    found: list[LabelInference] = []
    for transforms in ((), (Clip(0.1),), (LocalDP(0.5, 1.0),)):
        experiment = Experiment(split=split, client=client, transforms=transforms)
        found.append(infer_labels(observe(experiment, clients=clients), digits))
    assert found[0].error.mean() < 0.15
    assert found[1].error.mean() < 0.25
    assert found[2].error.mean() > 0.3
    assert found[0].error.mean() < found[0].error_of_prior.mean() / 2
    assert found[0].top_label > 0.6
    frame = found[0].to_frame()
    assert frame.groupby("client")[["inferred", "true"]].sum().to_numpy() == pytest.approx(np.ones((15, 2)))


def test_the_attackers_examples_have_every_label(digits: Dataset) -> None:
    few = Dataset("few", digits.x_train, digits.y_train, digits.x_test[:3], np.array([0, 1, 2]), 10)
    observations = observe(Experiment(dataset=few, split=IID(5)))
    with pytest.raises(ConfigError, match="few's test set has no example of label 3"):
        infer_labels(observations, few)


def test_compressed_updates_are_seen_as_the_server_decodes_them() -> None:
    [observation] = observe(batches(1, transforms=(TopK(0.1),)), clients=[0])
    assert 0 < np.count_nonzero(observation.update) <= 0.1 * observation.update.size + 1


# Membership.


def test_the_roc_curve_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    members = rng.random(500) < 0.4
    scores = np.round(rng.normal(size=500) + members, 1)  # with ties
    found = MembershipInference("threshold", scores, members)
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    assert np.allclose(found.roc(), (false, true))
    assert found.auc == pytest.approx(roc_auc_score(members, scores))
    assert found.tpr_at(0.0) == true[false == 0].max()
    assert found.tpr_at(1.0) == 1


def test_lira_is_the_likelihood_ratio_where_confidences_are_normal() -> None:
    """Neyman and Pearson: no attack is better. With variance 1 and means 0 and d, its AUC is Phi(d / sqrt 2)."""
    rng = np.random.default_rng(0)
    models, examples, distance = 600, 2000, 1.5
    trained_on = rng.permuted(np.arange(models)[:, None] < np.full((1, examples), models // 2), axis=0)
    hardness = rng.normal(0, 5, examples)  # a threshold on the confidence sees nothing but this
    shadows = ShadowModels(hardness + distance * trained_on + rng.standard_normal(trained_on.shape), trained_on)
    members = rng.random(examples) < 0.5
    observed = hardness + distance * members + rng.standard_normal(examples)
    scores = lira_scores(observed, shadows)
    exact = distance * (observed - hardness - distance / 2)
    assert np.corrcoef(scores, exact)[0, 1] > 0.99
    assert np.median(np.abs(scores - exact)) < 0.1 * np.std(exact)
    assert MembershipInference("lira", scores, members).auc == pytest.approx(norm.cdf(distance / 2**0.5), abs=0.02)
    offline = lira_scores(observed, shadows, offline=True)
    assert np.corrcoef(offline, observed - hardness)[0, 1] > 0.99
    assert MembershipInference("threshold", observed, members).auc < 0.65


def test_shadow_models_are_trained_as_a_cohort_and_alone_the_same(digits: Dataset) -> None:
    model = MLP((64, 8, 10))
    x, y = digits.x_train[:60], digits.y_train[:60]
    shadows = train_shadow_models(model, x, y, SGD(epochs=3), models=6)
    assert (shadows.trained_on.sum(axis=0) == 3).all()
    assert (shadows.trained_on.sum(axis=1) == 30).all()
    assert np.array_equal(shadows.trained_on[0], ~shadows.trained_on[1])
    start = model.init(generator(0, Purpose.SHADOW, 1))
    shard = np.flatnonzero(shadows.trained_on[0])
    alone = FederatedDataset(digits, Partition.from_sizes(shard, np.array([30])))
    runtime = ClientRuntime(model, alone, SGD(epochs=3), 0, "numpy")
    weights = runtime.train(runtime.task(start, 1), np.array([0]), lambda clients: {}).weights
    assert confidence(model, weights, x, y)[0] == pytest.approx(shadows.confidence[0], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_the_confidence_is_the_logit_of_the_probability(loss: str) -> None:
    rng = np.random.default_rng(0)
    model = MLP((4, 3, 2 if loss == "cross_entropy" else 1), loss=loss, dtype="float64")
    weights = rng.normal(size=(2, model.num_parameters))
    x, y = rng.normal(size=(5, 4)), np.array([0, 1, 1, 0, 1])
    for k, row in enumerate(confidence(model, weights, x, y)):
        for example, value in enumerate(row):
            one = x[None, example : example + 1], y[None, example : example + 1]
            p = np.exp(-model.evaluate(weights[k : k + 1], *one)[0][0])
            assert value == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(
        confidence(model, 1e5 * weights, x, y)
    ).all()  # a loss of more than 709, whose exponential overflows


def test_a_model_trained_on_none_of_the_pool_tells_nothing(digits: Dataset) -> None:
    x, y = digits.x_train[:400], digits.y_train[:400]
    members = np.random.default_rng(1).random(400) < 0.5
    model = MLP((64, 10))
    result = Experiment(
        dataset=replace(digits, x_train=digits.x_train[400:], y_train=digits.y_train[400:]), hidden=(), rounds=3
    ).run()
    shadows = train_shadow_models(model, x, y, SGD(epochs=3), models=16)
    for attack in ("threshold", "lira", "lira offline"):
        found = infer_membership(model, result.weights, x, y, members, attack=attack, shadows=shadows)
        assert found.auc == pytest.approx(0.5, abs=0.09)  # three standard deviations of the estimate


@pytest.mark.slow
def test_members_of_an_overfitted_model_are_found_and_noise_protects_them(digits: Dataset) -> None:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 200)  # labels that can only be known by heart
    data = replace(digits, x_train=digits.x_train[:200], y_train=y)
    base = Experiment(dataset=data, split=IID(4, [25] * 4), rounds=40, client=SGD(epochs=5), hidden=(64,))
    overfitted, private = (
        attack_result(experiment.run(), models=16)
        for experiment in (base, replace(base, privacy=CentralDP(clip=0.3, noise_multiplier=2.0)))
    )
    assert overfitted["threshold"].auc > 0.9
    assert overfitted["lira"].auc > 0.9
    assert overfitted["lira"].tpr_at(0.001) > 0.2
    for attack, found in private.items():
        assert found.auc < 0.65
        assert found.auc < overfitted[attack].auc
    assert overfitted["lira"].to_frame()["member"].sum() == 100


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x, y: train_shadow_models(m, x, y, SGD(), models=3), "models is 3; allowed: an even number"),
        (
            lambda m, x, y: train_shadow_models(m, x, y, SGD(lr=1e38, epochs=9), models=2),
            "training of shadow models diverged with SGD",
        ),
        (
            lambda m, x, y: infer_membership(m, np.full(m.num_parameters, np.nan), x, y, y > 3),
            "weights has values that are not finite",
        ),
        (lambda m, x, y: train_shadow_models(m, x, y[:5], SGD()), "the pool has 20 examples and 5 labels"),
        (
            lambda m, x, y: train_shadow_models(m, x, y, LocalGradient()),  # type: ignore[arg-type]
            "client is .*; allowed: SGD or a strategy",
        ),
        (
            lambda m, x, y: infer_membership(m, m.init(generator(0, Purpose.INIT)), x, y, y < 0),
            "members has no members",
        ),
        (lambda m, x, y: infer_membership(m, {}, x, y, y > 3, attack="loss"), "attack is 'loss'; allowed: threshold"),
        (
            lambda m, x, y: infer_membership(m, m.init(generator(0, Purpose.INIT)), x, y, y > 3, attack="lira"),
            "shadows is None; allowed for LiRA",
        ),
    ],
)
def test_membership_inference_refuses_what_it_cannot_use(call: Any, sentence: str, digits: Dataset) -> None:
    with pytest.raises(FedsimError, match=sentence):
        call(MLP((64, 10)), digits.x_train[:20], digits.y_train[:20])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient_inversion", ["--hidden", "32", "--starts", "1", "--hops", "0"]),
        ("membership_inference", ["--examples", "200", "--rounds", "2", "--shadow-models", "4", "--epochs", "1"]),
        ("label_inference", ["--clients", "5", "--epochs", "1"]),
        ("utility_privacy", ["--epsilon", "1", "8", "--rounds", "2", "--seeds", "2"]),
    ],
)
def test_the_scripts_print_a_table_and_write_a_picture(name: str, options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    script = Path(__file__).parents[1] / "experiments" / "trust" / f"{name}.py"
    command = [sys.executable, str(script), *options, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wrote {name}.csv, {name}.png" in done.stdout
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(done.stdout.splitlines()) > 4


@pytest.mark.slow
def test_pictures_need_square_images_and_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_shape is None; allowed: a height and a width with 12 pixels"):
        plot_images([("original", np.zeros((2, 12)), None)], tmp_path / "a.png", "title")
    with pytest.raises(ConfigError, match="rows is empty"):
        plot_images([], tmp_path / "a.png", "title")
    plot_images([("original", np.zeros((2, 12)), np.ones(2))], tmp_path / "a.png", "title", (3, 4))
    members = np.array([True, False, True])
    MembershipInference("lira", np.arange(3.0), members).plot(tmp_path / "b.png")
    one_hot = np.eye(3)
    LabelInference(np.arange(3), one_hot, one_hot, np.full(3, 1 / 3)).plot(tmp_path / "c.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in "abc")
