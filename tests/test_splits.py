"""Splits: every example in exactly one shard, and the papers' own examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.splits import IID, Dirichlet, Partition, Shards, Split

LABELS = np.repeat(np.arange(10), 6000)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Split, Any, int]:
    examples = draw(st.integers(1, 200))
    clients = draw(st.integers(1, examples))
    labels = np.array(draw(st.lists(st.integers(0, 7), min_size=examples, max_size=examples)))
    split = draw(
        st.sampled_from(
            [
                IID(clients),
                Shards(clients, per_client=draw(st.integers(1, max(1, examples // clients)))),
                Dirichlet(clients, alpha=draw(st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e6]))),
            ]
        )
    )
    return split, labels, draw(st.integers(0, 2**64))


@given(cases())
def test_every_example_is_in_exactly_one_shard_and_no_client_is_empty(case: tuple[Split, Any, int]) -> None:
    split, labels, seed = case
    partition = split.partition(labels, seed)
    assert len(partition) == split.num_clients
    assert np.array_equal(np.sort(np.concatenate(list(partition))), np.arange(len(labels)))
    assert partition.sizes.min() >= 1
    assert partition.sizes.sum() == len(labels)
    counts = partition.label_counts(labels, 8)
    assert np.array_equal(counts.sum(axis=0), np.bincount(labels, minlength=8))
    for shard, row in zip(partition, counts, strict=True):
        assert np.array_equal(np.bincount(labels[shard], minlength=8), row)


@given(cases())
def test_a_seed_decides_the_split(case: tuple[Split, Any, int]) -> None:
    split, labels, seed = case
    once, again = split.partition(labels, seed), split.partition(labels, seed)
    assert np.array_equal(once.indices, again.indices)
    assert np.array_equal(once.offsets, again.offsets)


def test_fedavgs_200_shards_of_300() -> None:
    """60,000 examples in ten equal classes: 100 clients, 600 examples each, at most two labels."""
    counts = Shards(100, per_client=2).partition(LABELS).label_counts(LABELS, 10)
    assert (counts.sum(axis=1) == 600).all()
    assert set(np.unique(counts)) <= {0, 300, 600}
    assert (counts > 0).sum(axis=1).max() == 2


def test_iid_shards_have_everybodys_labels() -> None:
    counts = IID(100).partition(LABELS).label_counts(LABELS, 10)
    expected = 60
    assert (counts.sum(axis=1) == 600).all()
    assert ((counts - expected) ** 2 / expected).sum() / (99 * 9) == pytest.approx(1, abs=0.15)


def test_dirichlets_limits() -> None:
    """Alpha to infinity is the population, alpha to zero one label; but for the last clients, who take what is left."""
    even = Dirichlet(50, alpha=1e9).partition(LABELS).label_counts(LABELS, 10)
    worst_label = np.abs(even / 1200 - 0.1).max(axis=1)
    assert np.quantile(worst_label, 0.95) < 4 * np.sqrt(0.09 / 1200)
    single = Dirichlet(50, alpha=1e-9).partition(LABELS).label_counts(LABELS, 10)
    assert np.median((single > 0).sum(axis=1)) == 1


def test_dirichlets_mixtures_have_the_variance_of_the_distribution() -> None:
    """Share of a label: mean 1/10, variance p(1-p)/(alpha+1) plus the multinomial's own, before labels run out."""
    alpha, size = 5.0, 600
    counts = Dirichlet(100, alpha=alpha).partition(LABELS, 3).label_counts(LABELS, 10)
    within = 0.09 / (alpha + 1)
    expected = within + (0.09 - within) / size
    assert (counts / size).var() == pytest.approx(expected, rel=0.2)


def test_a_splits_own_seed_wins() -> None:
    fixed = IID(7, seed=5)
    assert np.array_equal(fixed.partition(LABELS, 1).indices, fixed.partition(LABELS, 2).indices)
    assert not np.array_equal(IID(7).partition(LABELS, 1).indices, IID(7).partition(LABELS, 2).indices)


def test_a_million_clients_are_two_arrays() -> None:
    partition = IID(1_000_000).partition(np.zeros(1_000_000, dtype=int))
    assert isinstance(partition, Partition)
    assert len(partition[999_999]) == 1
    with pytest.raises(IndexError):
        partition[1_000_000]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Dirichlet(10, alpha=-1), "Dirichlet's alpha is -1; allowed: a finite number greater than 0"),
        (lambda: Dirichlet(10, alpha=float("nan")), "alpha is nan"),
        (lambda: Dirichlet(10, alpha="much"), "alpha is 'much'"),  # type: ignore[arg-type]
        (lambda: IID(0), "IID's num_clients is 0; allowed: a whole number, 1 or more"),
        (lambda: IID(2.5), "num_clients is 2.5"),  # type: ignore[arg-type]
        (lambda: IID(True), "num_clients is True"),
        (lambda: IID(3, seed=-1), "seed is -1"),
        (lambda: Shards(3, per_client=0), "per_client is 0"),
        (lambda: IID(11).partition(np.zeros(10, dtype=int)), "num_clients is 11; allowed: at most 10"),
        (lambda: Shards(4, per_client=3).partition(np.zeros(10, dtype=int)), "12 shards; allowed: at most 10"),
    ],
)
def test_bad_splits_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.floats(0, 0.99), st.integers(0, 2**70))
def test_a_clients_own_test_examples(sizes: list[int], fraction: float, seed: int) -> None:
    """Every example on exactly one side, on its own client; the share to a whole example; one left to train on."""
    total = sum(sizes)
    order = np.random.default_rng(0).permutation(total)
    whole = Partition(order, np.concatenate([[0], np.cumsum(sizes)]))
    train, test = whole.divide(fraction, seed)
    for k, size in enumerate(sizes):
        assert sorted([*train[k], *test[k]]) == sorted(whole[k])
        assert len(test[k]) == min(round(size * fraction), max(size - 1, 0))
    again, _ = whole.divide(fraction, seed)
    assert np.array_equal(again.indices, train.indices)


def test_the_division_is_random_within_clients() -> None:
    whole = Partition(np.arange(10_000), np.array([0, 5_000, 10_000]))
    _, test = whole.divide(0.5, 1)
    for k in range(2):
        assert abs(test[k].mean() - whole[k].mean()) < 100
    assert not np.array_equal(test[0], whole.divide(0.5, 2)[1][0])
