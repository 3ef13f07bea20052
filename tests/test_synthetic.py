"""Made-up datasets follow their papers."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim import Experiment, data
from fedsim.clients import SGD
from fedsim.data.synthetic import fcube, synthetic, synthetic_iid
from fedsim.errors import ConfigError
from fedsim.splits import Natural, skew


def test_synthetic_has_fedproxs_devices() -> None:
    found = synthetic(1, 1)
    held = Natural("device").federate(found)
    assert len(held.partition) == 30
    assert found.x_train.shape[1] == 60
    assert found.num_classes == 10
    tested = len(found.x_test) / (len(found.x_test) + len(found.x_train))
    assert tested == pytest.approx(0.1, abs=0.005)
    assert held.partition.sizes.min() >= 45  # nine tenths of 50


def test_synthetic_sizes_are_log_normal_above_fifty() -> None:
    sizes = np.concatenate([Natural().federate(synthetic(0, 0, seed)).partition.sizes for seed in range(10)])
    logs = np.log(np.maximum(sizes / 0.9 - 50, 1))
    assert logs.mean() == pytest.approx(4, abs=4 * 2 / np.sqrt(300))
    assert logs.std() == pytest.approx(2, abs=0.35)


def test_features_vary_as_j_to_the_minus_1_2() -> None:
    found = synthetic_iid()
    variance = found.x_train.var(axis=0)
    expected = np.arange(1, 61) ** -1.2
    assert np.abs(variance / expected - 1).max() < 0.2
    assert np.abs(found.x_train.mean(axis=0)).max() < 0.1


def test_beta_sets_devices_apart_and_iid_ones_are_alike() -> None:
    alike, none, far = (skew(Natural().federate(d)) for d in (synthetic_iid(), synthetic(0, 0), synthetic(0, 3)))
    large = alike["examples"] > 200
    assert alike["feature_distance"][large].max() < 0.3
    assert alike["emd"][large].max() < 0.5 < none["emd"].mean()
    assert far["feature_distance"].mean() > none["feature_distance"].mean() > alike["feature_distance"].mean()


def test_one_linear_model_labels_synthetic_iid() -> None:
    experiment = Experiment(
        dataset="synthetic_iid",
        split=Natural(),
        hidden=(),
        client=SGD(lr=0.3, epochs=5, lr_decay=0.97),
        rounds=60,
    )
    assert experiment.run().final_accuracy > 0.9


def test_fcube_has_equal_labels_and_different_octants() -> None:
    found = fcube()
    assert (len(found.x_train), len(found.x_test)) == (4000, 1000)
    assert np.array_equal(found.y_train, (found.x_train[:, 0] <= 0).astype(int))
    assert np.array_equal(found.y_test, (found.x_test[:, 0] <= 0).astype(int))
    held = Natural("octants").federate(found)
    assert held.label_counts().tolist() == [[500, 500]] * 4
    for shard in held.partition:
        x = found.x_train[shard]
        signs = np.unique(np.sign(x), axis=0)
        assert len(signs) == 2
        assert np.array_equal(signs[0], -signs[1])
    assert skew(held)["emd"].max() == 0


def test_they_are_reached_by_name_and_seed() -> None:
    by_name = data.load("synthetic(0.5, 0.5, seed=3)")
    assert by_name.name == "synthetic(0.5, 0.5)"
    assert np.array_equal(by_name.x_train, synthetic(0.5, 0.5, 3).x_train)
    assert not np.array_equal(by_name.y_train[:50], synthetic(0.5, 0.5, 4).y_train[:50])
    assert data.load("fcube").name == "fcube"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("synthetic(-1)", "synthetic's alpha is -1"),
        ("synthetic(1, 'a')", "synthetic's beta is 'a'"),
        ("synthetic(1, 1, 0, 9)", "synthetic takes alpha, beta, seed .too many"),
        ("synthetic(gamma=1)", "got an unexpected keyword argument 'gamma'"),
        ("fcube(seed=-1)", "fcube's seed is -1"),
        ("synthetic(1", "allowed: a call with plain values"),
    ],
)
def test_bad_values_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        data.load(text)


def test_fcube_fills_all_eight_octants() -> None:
    signs = np.unique(np.sign(fcube().x_train), axis=0)
    assert len(signs) == 8


def test_devices_lie_beta_apart_and_their_features_one() -> None:
    """Device k's features have means drawn from N(B_k, 1), and B_k is drawn from N(0, beta)."""
    within, between = [], []
    for seed in range(8):
        found = synthetic(0, 2, seed)
        for device in range(30):
            means = found.x_train[found.groups["device"] == device].mean(axis=0)
            within.append(means[20:].std())  # later features vary little about their mean
            between.append(means.mean())
    assert np.mean(within) == pytest.approx(1, rel=0.03)
    assert np.std(between) == pytest.approx(2, rel=4 / np.sqrt(2 * 240))


def test_no_example_is_in_both_sets() -> None:
    for found in (synthetic(1, 1), fcube()):
        assert not set(map(bytes, found.x_test)) & set(map(bytes, found.x_train))


def test_fcubes_points_are_uniform() -> None:
    found = fcube()
    for x in (found.x_train, found.x_test):
        sizes = np.sort(np.abs(x), axis=0)
        assert np.abs(sizes - (np.arange(len(x))[:, None] + 0.5) / len(x)).max() < 1.95 / np.sqrt(len(x))  # 0.1 %
    assert np.unique(np.sign(found.x_test), axis=0).shape == (8, 3)
    assert not np.array_equal(found.x_train, fcube(1).x_train)
