"""Splits: who holds what is exact for every family and odd sizes, and the papers' own examples come out."""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
from flwr.serverapp import strategy as stock
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from fedsim import Experiment, data, servers, splits
from fedsim.clients import SGD, Context
from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.splits import (
    IID,
    CountedSplit,
    Dirichlet,
    DirichletSizes,
    FeatureNoise,
    FeatureScale,
    FlowerDatasets,
    LabelDirichlet,
    LabelNoise,
    LabelPermutation,
    LabelsPerClient,
    LogNormal,
    Mixture,
    Natural,
    Partition,
    Pooled,
    PowerLaw,
    Rotation,
    Shards,
    Shared,
    Split,
    TimeOrdered,
    Without,
)
from fedsim.study import config

#: What is none of the things that are allowed.
ANY: Any = 3
LABELS = np.repeat(np.arange(10), 6000)


@st.composite
def laws(draw: st.DrawFn, examples: int, clients: int) -> Any:
    least = draw(st.integers(1, examples // clients))
    fixed = [examples // clients] * clients
    return draw(
        st.sampled_from(
            [None, LogNormal(draw(st.floats(0, 50)), least), PowerLaw(draw(st.floats(0, 50)), least), fixed]
            + [DirichletSizes(alpha, least) for alpha in (1e-300, 0.1, 1e6)]
        )
    )


@st.composite
def exact(draw: st.DrawFn) -> tuple[Split, NDArray[Any], dict[str, NDArray[Any]], int]:
    """A split of any family that gives every example to exactly one client, and what to divide."""
    examples = draw(st.integers(1, 200))
    clients = draw(st.integers(1, examples))
    labels = np.array(draw(st.lists(st.integers(0, 7), min_size=examples, max_size=examples)))
    groups = {"who": np.array(draw(st.lists(st.integers(-3, 9), min_size=examples, max_size=examples)))}
    present = len(np.unique(labels))
    alpha = draw(st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e6]))
    law = draw(laws(examples, clients))
    whole = law if not isinstance(law, list) or sum(law) == examples else None
    choices: list[Split] = [
        IID(clients, sizes=whole),
        Shards(clients, per_client=draw(st.integers(1, max(1, examples // clients)))),
        Dirichlet(clients, alpha=alpha, sizes=whole),
        LabelDirichlet(
            clients, alpha=alpha, min_size=draw(st.integers(1, examples // clients)), balance=draw(st.booleans())
        ),
        Natural("who"),
        Natural(num_clients=draw(st.integers(1, len(np.unique(groups["who"]))))),
    ]
    if clients * present >= present:
        choices.append(LabelsPerClient(clients, k=draw(st.integers(-(-present // clients), present))))
    if clients <= examples // 2:
        choices.append(Mixture(IID(clients), Dirichlet(clients, alpha), share=0.5))
    return draw(st.sampled_from(choices)), labels, groups, draw(st.integers(0, 2**64))


@given(exact())
def test_every_example_is_in_exactly_one_shard_and_no_client_is_empty(
    case: tuple[Split, NDArray[Any], dict[str, NDArray[Any]], int],
) -> None:
    split, labels, groups, seed = case
    partition = split.partition(labels, seed, groups)
    wanted = getattr(split, "num_clients", None) or len(np.unique(groups["who"]))
    assert len(partition) == wanted
    assert np.array_equal(np.sort(np.concatenate(list(partition))), np.arange(len(labels)))
    assert partition.sizes.min() >= 1
    assert partition.sizes.sum() == len(labels)
    counts = partition.label_counts(labels, 8)
    assert np.array_equal(counts.sum(axis=0), np.bincount(labels, minlength=8))
    for shard, row in zip(partition, counts, strict=True):
        assert np.array_equal(np.bincount(labels[shard], minlength=8), row)
    least = getattr(split, "min_size", None) or getattr(getattr(split, "sizes", None), "least", 1)
    assert partition.sizes.min() >= least


@given(exact())
def test_a_seed_decides_the_split(case: tuple[Split, NDArray[Any], dict[str, NDArray[Any]], int]) -> None:
    split, labels, groups, seed = case
    once, again = (split.partition(labels, seed, groups) for _ in range(2))
    assert np.array_equal(once.indices, again.indices)
    assert np.array_equal(once.offsets, again.offsets)


def test_all_splits_have_been_tried_here() -> None:
    families = {n for n, c in vars(splits).items() if inspect.isclass(c) and issubclass(c, Split)}
    here = {n for n, c in globals().items() if inspect.isclass(c) and issubclass(c, Split)}
    assert families - here == {"CountedSplit", "Split"} - here


@given(exact(), st.floats(0.01, 0.99))
def test_shared_examples_are_everywhere_and_others_once(
    case: tuple[Split, NDArray[Any], dict[str, NDArray[Any]], int], fraction: float
) -> None:
    _, labels, groups, seed = case
    rest = len(labels) - round(fraction * len(labels))
    if not rest:
        return
    clients = max(1, rest // 3)
    partition = Shared(IID(clients), fraction).partition(labels, seed, groups)
    times = np.bincount(partition.indices, minlength=len(labels))
    assert sorted(times.tolist()) == [1] * rest + [clients] * (len(labels) - rest) or clients == 1
    for shard in partition:
        assert len(np.unique(shard)) == len(shard)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32))
def test_overlap_is_as_large_as_asked_for(clients: int, k: int, overlap: float, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 8, 400)
    present = len(np.unique(labels))
    if k > present or clients * k < present:
        return
    partition = LabelsPerClient(clients, k, overlap).partition(labels, seed)
    times = np.bincount(partition.indices, minlength=400)
    assert times.min() >= 1
    assert times.max() <= 2
    for shard in partition:
        assert len(np.unique(shard)) == len(shard)
        assert len(np.unique(labels[shard])) <= k


@given(exact(), st.integers(0, 2**32))
def test_pooled_is_all_of_it_in_one_place(case: Any, seed: int) -> None:
    split, labels, groups, _ = case
    x = np.arange(len(labels), dtype=np.float64)[:, None]
    dataset = Dataset("numbered", x, labels, x[:1], labels[:1], 8, groups=groups)
    plain = split.federate(dataset, seed)
    for inner in (split, LabelNoise(split, 0.5)):
        held = Pooled(inner).federate(dataset, seed)
        assert held.partition.sizes.tolist() == [len(labels)]
        clients = inner.federate(dataset, seed).dataset
        assert np.array_equal(np.sort(held.dataset.y_train), np.sort(clients.y_train))
    assert np.array_equal(Pooled(split).partition(labels, seed, groups).indices, plain.partition.indices)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**32), st.floats(0, 0.9))
def test_windows_of_time_share_out_every_clients_examples(
    examples: int, windows: int, seed: int, fraction: float
) -> None:
    rng = np.random.default_rng(seed)
    dataset = tiny(rng.integers(0, 3, examples))
    split = TimeOrdered(IID(int(rng.integers(1, examples + 1))), windows, 2, by="label")
    held = split.federate(dataset, seed).with_tests(fraction, seed)
    parts = [held.at(r) for r in range(1, 2 * windows + 1)]
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(parts[::2], parts[1::2], strict=True))
    for client, shard in enumerate(held.partition):
        seen = np.concatenate([part[client] for part in parts[::2]])
        assert np.array_equal(seen, shard)
        assert np.array_equal(dataset.y_train[seen], np.sort(dataset.y_train[seen]))
    assert np.array_equal(held.at(10**6).indices, parts[-1].indices)


@given(exact(), st.integers(0, 2**32))
def test_changes_keep_every_example_where_it_is(
    case: tuple[Split, NDArray[Any], dict[str, NDArray[Any]], int], seed: int
) -> None:
    split, labels, groups, _ = case
    x = np.arange(len(labels), dtype=np.float64)[:, None]  # one feature, its own number: a square image of one pixel
    dataset = Dataset("numbered", x, labels, x[:1], labels[:1], 8, groups=groups)
    plain = split.federate(dataset, seed)
    for change in (
        FeatureNoise(split, 0.0),
        FeatureScale(split, 1.0, 1.0),
        Rotation(split),
        LabelNoise(split, 1.0),
        LabelPermutation(split),
        TimeOrdered(split, 3),
    ):
        held = change.federate(dataset, seed)
        assert np.array_equal(held.partition.sizes, plain.partition.sizes)
        assert np.array_equal(np.sort(held.partition.indices), np.arange(len(labels)))
        for before, after in zip(plain.partition, held.partition, strict=True):
            rows = held.dataset.x_train[after, 0]
            expected = np.sort(before) if isinstance(change, TimeOrdered) else before
            assert np.array_equal(rows, expected)
            assert np.array_equal(groups["who"][rows.astype(int)], held.dataset.groups["who"][after])


@settings(max_examples=40)
@given(exact(), st.integers(0, 2**32), st.floats(0, 0.9), st.data())
def test_removing_clients_changes_nothing_for_the_others(
    case: tuple[Split, NDArray[Any], dict[str, NDArray[Any]], int], seed: int, fraction: float, chosen: st.DataObject
) -> None:
    """They keep their ids, their examples and their test examples, in any order of the wrappers."""
    split, labels, groups, _ = case
    x = np.zeros((len(labels), 1))
    dataset = Dataset("flat", x, labels, x[:1], labels[:1], 8, groups=groups)
    for whole in (split, LabelNoise(split, 1.0), TimeOrdered(split, 2)):
        before = whole.federate(dataset, seed).with_tests(fraction, seed)
        filled = np.flatnonzero(before.partition.sizes).tolist()
        removed = chosen.draw(st.sets(st.sampled_from(filled), max_size=len(filled) - 1))
        after = Without(whole, tuple(removed)).federate(dataset, seed).with_tests(fraction, seed)
        assert len(after.partition) == len(before.partition)
        assert np.array_equal(after.dataset.y_train, before.dataset.y_train)
        for parts in ((before.at(1), after.at(1)), (before.partition_test, after.partition_test)):
            for k, (one, other) in enumerate(zip(*[part or () for part in parts], strict=True)):
                assert np.array_equal(other, one[:0] if k in removed else one)
    plain = Without(split, ()).partition(labels, seed, groups)
    assert np.array_equal(plain.indices, split.partition(labels, seed, groups).indices)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("server", [None, servers.FedMedian(), stock.FedAvg])
def test_training_without_a_client_is_training_in_which_it_is_never_heard(fraction: float, server: Any) -> None:
    """The others are sampled in the same rounds and draw the same batches; a removed client is no failure."""

    class Silent(SGD):
        def train(self, ctx: Context) -> NDArray[Any]:
            assert 3 not in ctx.partition_ids, "silent"
            return ctx.fit()

    base = Experiment(split=IID(6), hidden=(), rounds=3, fraction_train=fraction, server=server, kernel="numpy")
    silent = replace(base, client=Silent(), on_failure="exclude").run()
    without = replace(base, split=Without(base.split, (3,))).run()
    assert np.array_equal(silent.flat_weights, without.flat_weights)
    assert silent.history["clients"].equals(without.history["clients"])
    assert len(without.failures) == 0 < len(silent.failures)


def test_clients_removed_twice_are_removed_once() -> None:
    """Whether at once or one after the other, the remaining clients hold out the same examples."""
    split = IID(5)
    nested, flat = (
        made.federate(data.load("digits")).with_tests(0.3, 0)
        for made in (Without(Without(split, (1,)), (3,)), Without(split, (1, 3)))
    )
    assert nested.partition_test is not None
    assert flat.partition_test is not None
    assert np.array_equal(nested.partition_test.indices, flat.partition_test.indices)
    assert np.array_equal(nested.partition.indices, flat.partition.indices)


def test_clients_that_are_removed_before_their_examples_are_ordered_are_no_failures() -> None:
    split = TimeOrdered(Without(IID(4), (2,)), 2)
    result = Experiment(split=split, hidden=(), rounds=2, fraction_evaluate=1.0).run()
    assert result.history["failures"].tolist() == [0, 0, 0]
    assert set(result.clients["partition_id"]) == {0, 1, 3}


def tiny(labels: NDArray[Any], features: int = 4) -> Dataset:
    x = np.random.default_rng(0).random((len(labels), features), dtype=np.float32)
    return Dataset("tiny", x, labels, x[:1], labels[:1], 3, groups={"who": labels % 2})


# What papers say of their splits.


def test_fedavgs_200_shards_of_300() -> None:
    """60,000 examples in ten equal classes: 100 clients, 600 examples each, at most two labels."""
    counts = Shards(100, per_client=2).partition(LABELS).label_counts(LABELS, 10)
    assert (counts.sum(axis=1) == 600).all()
    assert set(np.unique(counts)) <= {0, 300, 600}
    assert (counts > 0).sum(axis=1).max() == 2


def test_which_examples_of_a_label_a_client_gets_is_random() -> None:
    """Each label is 6,000 examples in a row: those of a shard of 300 are spread over all of them, not side by side."""
    for shard in Shards(100, per_client=2).partition(LABELS, 1)[:5]:
        assert (shard % 6000).std() == pytest.approx(6000 / np.sqrt(12), rel=0.15)


def test_iid_shards_have_everybodys_labels() -> None:
    counts = IID(100).partition(LABELS).label_counts(LABELS, 10)
    expected = 60
    assert (counts.sum(axis=1) == 600).all()
    assert ((counts - expected) ** 2 / expected).sum() / (99 * 9) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("family", [Dirichlet, LabelDirichlet])
def test_dirichlets_limits(family: type[Dirichlet | LabelDirichlet]) -> None:
    """Alpha to infinity is the population, alpha to zero one label; but for the last clients, who take what is left."""
    even = family(50, alpha=1e9).partition(LABELS).label_counts(LABELS, 10)
    worst_label = np.abs(even / 1200 - 0.1).max(axis=1)
    assert np.quantile(worst_label, 0.95) < 4 * np.sqrt(0.09 / 1200)
    single = family(50, alpha=1e-9).partition(LABELS).label_counts(LABELS, 10)
    assert np.median((single > 0).sum(axis=1)) == 1


def test_dirichlets_mixtures_have_the_variance_of_the_distribution() -> None:
    """Share of a label: mean 1/10, variance p(1-p)/(alpha+1) plus the multinomial's own, before labels run out."""
    alpha, size = 5.0, 600
    counts = Dirichlet(100, alpha=alpha).partition(LABELS, 3).label_counts(LABELS, 10)
    within = 0.09 / (alpha + 1)
    expected = within + (0.09 - within) / size
    assert (counts / size).var() == pytest.approx(expected, rel=0.2)


def test_labels_dirichlet_has_the_variance_of_the_distribution() -> None:
    """A client's share of a label: mean 1/K, variance (1/K)(1 - 1/K)/(K alpha + 1), where nothing is balanced."""
    alpha, clients = 0.5, 20
    shares = [
        LabelDirichlet(clients, alpha, balance=False).partition(LABELS, s).label_counts(LABELS, 10) / 6000
        for s in range(20)
    ]
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.var(shares) == pytest.approx(expected, rel=0.1)


UNBALANCED = np.repeat(np.arange(3), (24_000, 4_500, 1_500))


def test_dirichlets_prior_is_the_datas_own_label_distribution() -> None:
    """With a large alpha every client, the first to draw included, has the data's 80, 15 and 5 per cent."""
    prior = np.bincount(UNBALANCED) / len(UNBALANCED)
    for seed in range(3):
        shares = Dirichlet(20, alpha=1e9).partition(UNBALANCED, seed).label_counts(UNBALANCED, 3) / 1500
        assert (np.abs(shares - prior) < 5 * np.sqrt(prior * (1 - prior) / 1500)).all()


def test_dirichlets_concentration_is_alpha_in_all() -> None:
    """Share of label k: variance p_k (1 - p_k) / (alpha + 1); no label runs out, as a third is dealt."""
    alpha, size = 20.0, 100
    split = Dirichlet(100, alpha=alpha, sizes=(size,) * 100)
    drawn = [split.partition(UNBALANCED, seed).label_counts(UNBALANCED, 3) / size for seed in range(5)]
    prior = np.bincount(UNBALANCED) / len(UNBALANCED)
    between = prior * (1 - prior) / (alpha + 1)
    expected = between + (prior * (1 - prior) - between) / size
    np.testing.assert_allclose(np.concatenate(drawn).var(axis=0), expected, rtol=0.25)


def test_a_client_whose_labels_are_gone_takes_the_rest_in_its_own_proportions() -> None:
    """One label each: a client of label 1 wants 6,000 examples, of which there are 4,500; 24,000 and 1,500 are left."""
    rest = []
    for seed in range(60):
        counts = Dirichlet(1, alpha=1e-9, sizes=(6000,)).partition(UNBALANCED, seed).label_counts(UNBALANCED, 3)[0]
        if counts[1] == 4_500:
            rest.append(counts[2])
    assert len(rest) >= 2
    expected = 1_500 * 1_500 / 25_500
    assert np.mean(rest) == pytest.approx(expected, abs=5 * np.sqrt(expected / len(rest)))


def test_whoever_takes_the_remains_of_a_dirichlet_split_is_random() -> None:
    """Clients draw in random order: over many seeds the last client has as few labels as the first."""
    labels = np.repeat(np.arange(10), 200)
    kinds = np.array(
        [(Dirichlet(10, alpha=1e-3).partition(labels, s).label_counts(labels, 10) > 0).sum(axis=1) for s in range(60)]
    )
    first, last = kinds[:, :5].mean(axis=1), kinds[:, 5:].mean(axis=1)
    assert abs((first - last).mean()) < 4 * (first - last).std() / np.sqrt(60)


def test_a_client_with_its_even_share_gets_no_more_labels() -> None:
    """Balance: whoever has 1/K of all examples before a label is divided gets none of it, in the order of labels."""
    counts = LabelDirichlet(20, alpha=0.3, balance=True).partition(LABELS, 1).label_counts(LABELS, 10)
    before = np.cumsum(counts, axis=1) - counts
    assert (before >= len(LABELS) / 20).any()
    assert (counts[before >= len(LABELS) / 20] <= 1).all()  # one that rounding leaves over
    free = LabelDirichlet(20, alpha=0.3, balance=False).partition(LABELS, 1).label_counts(LABELS, 10)
    assert (free[np.cumsum(free, axis=1) - free >= len(LABELS) / 20] > 0).any()


def test_remainders_go_to_the_largest_fractions() -> None:
    """The textbook example of Hamilton's method: 100,000 votes for six parties, ten seats."""
    votes = np.array([47_000, 16_000, 15_800, 12_000, 6_100, 3_100], dtype=float)
    assert splits.sizes.apportion(votes, 10).tolist() == [5, 2, 1, 1, 1, 0]
    assert splits.sizes.apportion(votes, 10, least=1).tolist() == [4, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 1.0])
def test_overlap_is_the_share_of_examples_that_two_clients_hold(overlap: float) -> None:
    """10 clients, 2 labels each: every label has two holders or more, so that share of its examples is held twice."""
    for seed in range(5):
        partition = LabelsPerClient(10, 2, overlap).partition(LABELS, seed)
        holders = (partition.label_counts(LABELS, 10) > 0).sum(axis=0)
        times = np.bincount(partition.indices, minlength=len(LABELS))
        for label in range(10):
            twice = (times[label == LABELS] == 2).mean()
            assert twice == pytest.approx(overlap if holders[label] > 1 else 0, abs=1e-3)


def test_groups_are_dealt_to_clients_evenly_and_at_random() -> None:
    groups = {"who": np.repeat(np.arange(23), 10)}
    dealt = []
    for seed in range(2):
        partition = Natural(num_clients=5).partition(np.zeros(230), seed, groups)
        held = [set(groups["who"][shard]) for shard in partition]
        assert sorted(map(len, held)) == [4, 4, 5, 5, 5]
        assert set.union(*held) == set(range(23))
        assert held[0] != set(range(5))
        dealt.append(held)
    assert dealt[0] != dealt[1]


@given(exact(), st.floats(0, 0.99), st.integers(0, 2**32))
def test_a_clients_own_test_is_a_random_share_of_its_examples(case: Any, fraction: float, seed: int) -> None:
    split, labels, groups, _ = case
    partition = split.partition(labels, seed, groups)
    train, test = partition.divide(fraction, seed)
    for whole, one, other in zip(partition, train, test, strict=True):
        assert len(other) == min(round(fraction * len(whole)), len(whole) - 1)
        assert sorted([*one, *other]) == sorted(whole)


def test_a_clients_own_test_is_not_its_first_examples() -> None:
    partition = IID(1).partition(np.zeros(1000), 0)
    places = [np.flatnonzero(np.isin(partition[0], partition.divide(0.3, seed)[1][0])) for seed in (1, 2)]
    for place in places:
        assert place.mean() == pytest.approx(499.5, abs=60)  # about three standard errors
    assert not np.array_equal(places[0], places[1])


def test_niid_benchs_labels_per_client() -> None:
    """#C = 2 on ten clients: client i has label i and one other; a label's holders have equal parts of it."""
    counts = LabelsPerClient(10, k=2).partition(LABELS).label_counts(LABELS, 10)
    assert ((counts > 0).sum(axis=1) == 2).all()
    assert (np.diag(counts) > 0).all()
    for label in counts.T:
        assert np.ptp(label[label > 0]) <= 1


def test_log_normal_sizes_are_log_normal() -> None:
    sizes = IID(2000, sizes=LogNormal(1.0)).partition(np.zeros(2_000_000, dtype=int)).sizes
    logs = np.log(sizes) - np.log(sizes).mean()
    assert ks_2samp(np.asarray(logs), np.random.default_rng(0).normal(size=20_000)).pvalue > 0.01


def test_power_law_sizes_are_zipfs() -> None:
    sizes = np.sort(IID(100, sizes=PowerLaw(1.0)).partition(np.zeros(1_000_000, dtype=int)).sizes)[::-1]
    expected = 1 / np.arange(1, 101)
    assert np.abs(sizes - 1_000_000 * expected / expected.sum()).max() <= 1


@pytest.mark.parametrize("law", [PowerLaw(1.0), LogNormal(1.0), DirichletSizes(0.5)])
def test_which_client_is_large_is_random(law: Any) -> None:
    sizes = [IID(50, sizes=law).partition(np.zeros(100_000), seed).sizes for seed in range(40)]
    largest = np.argmax(sizes, axis=1)
    assert len(set(largest.tolist())) > 10
    assert largest.mean() == pytest.approx(24.5, abs=4 * 14.4 / np.sqrt(40))


def test_fixed_sizes_are_kept_and_the_rest_belongs_to_nobody() -> None:
    partition = IID(3, sizes=(5, 1, 7)).partition(np.zeros(20, dtype=int))
    assert partition.sizes.tolist() == [5, 1, 7]
    assert len(np.unique(partition.indices)) == 13


def test_scaffolds_similarity() -> None:
    """Of 10 % similarity: a tenth of each client's examples is IID, the rest of one label (its neighbours' at cuts)."""
    split = Mixture(IID(10), Shards(10, per_client=1), share=0.1)
    counts = split.partition(LABELS, 1).label_counts(LABELS, 10)
    assert (counts.sum(axis=1) == 6000).all()
    assert (np.sort(counts, axis=1)[:, -1] > 0.88 * 6000).all()
    assert ((counts > 20).sum(axis=1) == 10).all()


# Splits that change what clients hold.


def test_noise_grows_from_client_to_client_as_in_niid_bench() -> None:
    dataset = data.load("digits")
    plain, noisy = (s.federate(dataset, 3) for s in (IID(11), FeatureNoise(IID(11), 0.5)))
    assert np.array_equal(plain.dataset.y_train[plain.partition.indices], noisy.dataset.y_train)
    for client in range(11):
        before, after = (h.dataset.x_train[h.partition[client]] for h in (plain, noisy))
        assert (after - before).std() == pytest.approx(0.05 * client, rel=0.05)
    assert np.array_equal(noisy.dataset.x_test, dataset.x_test)


def test_scales_rise_evenly() -> None:
    dataset = data.load("digits")
    held = FeatureScale(IID(3), high=3.0, low=1.0).federate(dataset, 0)
    plain = IID(3).federate(dataset, 0)
    for client, factor in enumerate((1, 2, 3)):
        before, after = (h.dataset.x_train[h.partition[client]] for h in (plain, held))
        np.testing.assert_allclose(after, factor * before)


def test_quarter_turns_are_exact_and_others_keep_the_middle() -> None:
    dataset = data.load("digits")
    plain, turned = (s.federate(dataset, 0) for s in (IID(4), Rotation(IID(4), (0, 90, 180, 30))))
    shards = [h.dataset.x_train[h.partition[k]].reshape(-1, 8, 8) for h in (plain, turned) for k in range(4)]
    for quarters in range(3):
        assert np.array_equal(np.rot90(shards[quarters], quarters, axes=(1, 2)), shards[4 + quarters])
    smooth = np.add.outer(np.arange(8.0), np.zeros(8))[None]
    counter_clockwise = splits.features._rotate(smooth, 30)[0, 2:6, 2:6]
    clockwise = splits.features._rotate(smooth, -30)[0, 2:6, 2:6]
    along = np.diff(counter_clockwise, axis=1).mean()
    assert along == pytest.approx(np.sin(np.pi / 6), abs=0.01)  # rows grow down: turned left, they grow to the right
    np.testing.assert_allclose(np.diff(clockwise, axis=1).mean(), -along)
    assert np.array_equal(splits.features._rotate(smooth, 90)[0], np.rot90(smooth[0]))


def test_label_noise_is_wrong_as_often_as_asked_for() -> None:
    dataset = data.load("digits")
    plain, noisy = (s.federate(dataset, 1) for s in (IID(2), LabelNoise(IID(2), high=0.5, low=0.0)))
    wrong = noisy.dataset.y_train != plain.dataset.y_train[plain.partition.indices]
    first, last = wrong[: noisy.partition.sizes[0]], wrong[noisy.partition.sizes[0] :]
    assert not first.any()
    assert last.mean() == pytest.approx(0.5, abs=0.06)


def test_wrong_labels_are_wrong_and_uniform_over_the_others() -> None:
    dataset = data.load("digits")
    plain = IID(1).federate(dataset, 1)
    before = plain.dataset.y_train[plain.partition.indices]
    shifts = np.zeros(10)
    for seed in range(3):
        noisy = LabelNoise(IID(1, seed=1), high=1.0, low=1.0, seed=seed).federate(dataset, 1)
        inner = IID(1, seed=1).federate(dataset, 1)
        assert np.array_equal(inner.dataset.y_train[inner.partition.indices], before)
        shifts += np.bincount((noisy.dataset.y_train - before) % 10, minlength=10)
    assert shifts[0] == 0
    expected = shifts.sum() / 9
    assert ((shifts[1:] - expected) ** 2 / expected).sum() < 26  # chi-squared, 8 degrees of freedom, 0.1 %


def test_noise_does_not_depend_on_how_many_examples_are_changed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    split, dataset = FeatureNoise(IID(7), 0.5), data.load("digits")
    expected = split.federate(dataset, 3).dataset.x_train
    monkeypatch.setattr("fedsim.splits.features.ROWS", 100)
    np.testing.assert_array_equal(split.federate(dataset, 3).dataset.x_train, expected)


def test_permuted_labels_are_a_permutation_by_cluster() -> None:
    dataset = data.load("digits")
    plain, permuted = (s.federate(dataset, 1) for s in (IID(6), LabelPermutation(IID(6), clusters=3)))
    maps = []
    for client in range(6):
        before, after = (h.dataset.y_train[h.partition[client]] for h in (plain, permuted))
        pairs = dict(zip(before.tolist(), after.tolist(), strict=True))
        assert len(set(pairs.values())) == 10
        assert [pairs[int(b)] for b in before] == after.tolist()
        maps.append(pairs)
    assert maps[0] == {k: k for k in range(10)}
    assert maps[1] == maps[4] != maps[0]


def test_time_changes_what_clients_train_on() -> None:
    """Labels come one after the other: each window's model forgets what it has not seen for long."""
    experiment = Experiment(split=TimeOrdered(IID(5), 5, 4, by="label"), client=SGD(lr=0.2, epochs=3), rounds=20)
    history = experiment.run().history
    assert history["test_accuracy"].iloc[-1] < 0.4
    assert history["train_loss"].iloc[4] < history["train_loss"].iloc[5]  # new labels
    whole = Experiment(split=IID(5), client=SGD(lr=0.2, epochs=3), rounds=20).run()
    assert whole.final_accuracy > 0.85


# Flower Datasets.


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (
            LabelDirichlet(20, alpha=0.5, min_size=10),
            "DirichletPartitioner",
            {"num_partitions": 20, "partition_by": "label", "alpha": 0.5, "self_balancing": True},
        ),
        (
            LabelDirichlet(20, alpha=0.5, min_size=10, balance=False),
            "DirichletPartitioner",
            {"num_partitions": 20, "partition_by": "label", "alpha": 0.5},
        ),
        (
            Dirichlet(20, alpha=3.0),
            "InnerDirichletPartitioner",
            {"partition_sizes": [100] * 20, "partition_by": "label", "alpha": 0.3},
        ),
        (IID(20), "IidPartitioner", {"num_partitions": 20}),
        (
            LabelsPerClient(20, k=3),
            "PathologicalPartitioner",
            {
                "num_partitions": 20,
                "partition_by": "label",
                "num_classes_per_partition": 3,
                "class_assignment_mode": "first-deterministic",
            },
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Split | str) else "",
)
def test_flower_datasets_partitioners_agree_in_distribution(ours: Split, theirs: str, options: dict[str, Any]) -> None:
    """Each client's largest share of a label, and its size, over several seeds: two-sample Kolmogorov-Smirnov."""
    pytest.importorskip("flwr_datasets", reason="flwr_datasets is not installed")
    labels = np.repeat(np.arange(10), 200)
    drawn = [
        np.concatenate([split.partition(labels, seed).label_counts(labels, 10) for seed in range(8)])
        for split in (ours, FlowerDatasets(theirs, options))
    ]
    sizes = [counts.sum(axis=1) for counts in drawn]
    shares = [counts.max(axis=1) / size for counts, size in zip(drawn, sizes, strict=True)]
    assert ks_2samp(shares[0], shares[1]).pvalue > 0.001
    assert ks_2samp(sizes[0], sizes[1]).pvalue > 0.001


def test_natural_partitions_are_flower_datasets_too() -> None:
    pytest.importorskip("flwr_datasets", reason="flwr_datasets is not installed")
    who = np.array(["b", "a", "c", "a", "b", "b"])
    theirs = FlowerDatasets("NaturalIdPartitioner", {"partition_by": "who"}).partition(np.zeros(6), 0, {"who": who})
    ours = Natural("who").partition(np.zeros(6), 0, {"who": who})
    assert sorted(map(sorted, map(list, theirs))) == sorted(map(sorted, map(list, ours)))


# The rest.


def test_a_splits_own_seed_wins() -> None:
    fixed = IID(7, seed=5)
    assert np.array_equal(fixed.partition(LABELS, 1).indices, fixed.partition(LABELS, 2).indices)
    assert not np.array_equal(IID(7).partition(LABELS, 1).indices, IID(7).partition(LABELS, 2).indices)
    once, again = (Mixture(IID(7), IID(7), seed=5).partition(LABELS, s) for s in (1, 2))
    assert np.array_equal(once.indices, again.indices)


@pytest.mark.parametrize(
    "split",
    [
        IID(5), Mixture(IID(5), IID(5)), Shared(IID(5), 0.1), Pooled(IID(5)), TimeOrdered(IID(5), 2, by="who"),
        LabelNoise(IID(5)), LabelPermutation(IID(5)), FeatureNoise(IID(5)), FeatureScale(IID(5)), Natural("who", 2),
    ],
    ids=str,
)  # fmt: skip
def test_a_seed_that_is_not_given_is_0(split: Split) -> None:
    dataset = tiny(np.arange(60) % 3)
    left, right = split.federate(dataset), split.federate(dataset, 0)
    assert np.array_equal(left.partition.indices, right.partition.indices)
    assert np.array_equal(left.dataset.x_train, right.dataset.x_train)
    assert np.array_equal(left.dataset.y_train, right.dataset.y_train)
    labels, groups = dataset.y_train, dataset.groups
    assert np.array_equal(split.partition(labels, groups=groups).indices, split.partition(labels, 0, groups).indices)


def test_a_natural_split_is_by_the_column_that_is_named() -> None:
    groups = {"dept": np.array([0, 0, 1, 1]), "who": np.array(["b", "a", "b", "a"])}
    for column, shards in (("dept", [[0, 1], [2, 3]]), ("who", [[1, 3], [0, 2]])):
        assert [shard.tolist() for shard in Natural(column).partition(np.zeros(4), 0, groups)] == shards
    assert Rotation(IID(4)).degrees == (0, 90, 180, 270)  # the paper's


def test_a_million_clients_are_two_arrays() -> None:
    partition = IID(1_000_000).partition(np.zeros(1_000_000, dtype=int))
    assert isinstance(partition, Partition)
    assert len(partition) == 1_000_000
    assert np.shares_memory(partition[999_999], partition.indices)
    assert [len(shard) for shard in partition[5:8]] == [1, 1, 1]


def measured() -> Dataset:
    """A thousand targets that are real numbers."""
    y = np.random.default_rng(0).normal(size=1000)
    return Dataset("numbers", y[:, None], y, y[:5, None], y[:5], regression=True)


def test_regression_targets_are_split_by_deciles() -> None:
    counts = Shards(10, per_client=1).federate(measured()).label_counts()
    assert counts.shape == (10, 10)
    assert ((counts > 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: IID(0), "IID's num_clients is 0; allowed: a whole number, 1 or more"),
        (lambda: IID(True), "IID's num_clients is True"),
        (lambda: IID(3, seed=-1), "IID's seed is -1"),
        (lambda: IID(3, sizes=(1, 2)), r"IID's sizes is \(1, 2\); allowed: LogNormal, .*, or 3 numbers of examples"),
        (lambda: IID(2, sizes=(0, 2)), "IID's sizes is 0; allowed: a whole number, 1 or more"),
        (lambda: IID(2, sizes=ANY), "IID's sizes is 3"),
        (lambda: IID(2, sizes=(9, 9)).partition(np.zeros(17)), "sizes add up to 18; allowed: at most 17"),
        (
            lambda: IID(5, sizes=LogNormal(1, 4)).partition(np.zeros(17)),
            "5 clients and 17 training examples is 4; .*, 1 to 3",
        ),
        (lambda: LogNormal(-1), "LogNormal's sigma is -1"),
        (lambda: Shards(3, per_client=0), "Shards's per_client is 0"),
        (lambda: Dirichlet(3, alpha=0), "Dirichlet's alpha is 0; allowed: a finite number greater than 0"),
        (lambda: Dirichlet(3, alpha=float("nan")), "Dirichlet's alpha is nan"),
        (
            lambda: LabelDirichlet(3, min_size=9).partition(np.zeros(20)),
            "min_size for 3 clients and 20 training examples is 9; .*, 1 to 6",
        ),
        (lambda: LabelsPerClient(3, k=11).partition(LABELS), "k for 3 clients and 10 labels is 11; .*, 4 to 10"),
        (lambda: LabelsPerClient(3, k=2).partition(LABELS), "k for 3 clients and 10 labels is 2; .*, 4 to 10"),
        (lambda: IID(6).partition(np.zeros(5)), "IID's num_clients for 5 training examples is 6; .*, 1 to 5"),
        (
            lambda: Shards(3, per_client=2).partition(np.zeros(5)),
            "per_client for 3 clients and 5 training examples is 2; .*, 1 to 1",
        ),
        (lambda: Natural("hospital").federate(data.load("digits")), "no column that identifies clients"),
        (lambda: Natural("hu").federate(tiny(LABELS % 3)), "Natural's column is 'hu'; allowed: who"),
        (
            lambda: Natural("wh").partition(LABELS, 0, {"dept": LABELS, "who": LABELS}),
            "Natural's column is 'wh'; allowed: dept, who",
        ),
        (lambda: Natural("who", 3).federate(tiny(LABELS % 3)), "num_clients for 2 groups is 3; .*, 1 to 2"),
        (lambda: FeatureNoise(ANY), "FeatureNoise's split is 3; allowed: a split"),
        (lambda: FeatureNoise(IID(3), -1), "FeatureNoise's high is -1"),
        (lambda: Rotation(IID(3)).federate(tiny(LABELS % 3, 5)), r"tiny has examples of shape \(5,\)"),
        (lambda: Rotation(IID(3), ()), r"Rotation's degrees is \(\)"),
        (lambda: LabelNoise(IID(3), 1.5), "LabelNoise's high is 1.5"),
        (lambda: TimeOrdered(IID(3), by="wo").federate(tiny(LABELS % 3)), "by is 'wo'; allowed: who, label; did you"),
        (lambda: Mixture(IID(3), IID(4)).partition(LABELS), "splits make 3 and 4 clients"),
        (lambda: Mixture(IID(3), ANY), "Mixture's other is 3"),
        (lambda: Shared(IID(3), 1.0), "Shared's fraction is 1.0"),
        (lambda: Shared(IID(3), 0), "Shared's fraction is 0"),
        (lambda: Mixture(IID(3), IID(3), 0), "Mixture's share is 0"),
        (lambda: Mixture(IID(3), IID(3), 1), "Mixture's share is 1"),
        (lambda: LabelPermutation(IID(3), 0), "LabelPermutation's clusters is 0"),
        (lambda: LabelPermutation(IID(3)).federate(measured()), "LabelPermutation changes labels; numbers has"),
        (lambda: LabelNoise(IID(3), 1, -0.1), "LabelNoise's low is -0.1"),
        (lambda: TimeOrdered(IID(3), 0), "TimeOrdered's windows is 0"),
        (lambda: TimeOrdered(IID(3), rounds_per_window=0), "TimeOrdered's rounds_per_window is 0"),
        (lambda: TimeOrdered(IID(3), by=ANY), "TimeOrdered's by is 3"),
        (lambda: LabelsPerClient(3, k=0), "LabelsPerClient's k is 0"),
        (lambda: LabelsPerClient(3, overlap=1.1), "LabelsPerClient's overlap is 1.1"),
        (lambda: LabelsPerClient(3, overlap=-0.1), "LabelsPerClient's overlap is -0.1"),
        (lambda: LabelDirichlet(3, alpha=0), "LabelDirichlet's alpha is 0"),
        (lambda: LabelDirichlet(3, min_size=0), "LabelDirichlet's min_size is 0"),
        (lambda: LabelDirichlet(3, balance=ANY), "LabelDirichlet's balance is 3"),
        (lambda: LogNormal(50.1), "LogNormal's sigma is 50.1"),
        (lambda: PowerLaw(-0.1), "PowerLaw's exponent is -0.1"),
        (lambda: PowerLaw(1, 0), "PowerLaw's least is 0"),
        (lambda: LogNormal(1, 0), "LogNormal's least is 0"),
        (lambda: DirichletSizes(0), "DirichletSizes's alpha is 0"),
        (lambda: DirichletSizes(1, 0), "DirichletSizes's least is 0"),
        (lambda: Natural(ANY), "Natural's column is 3"),
        (lambda: Natural("who", 0), "Natural's num_clients is 0"),
        (lambda: Rotation(IID(3), "90"), "Rotation's degrees is '90'"),  # type: ignore[arg-type]
        (lambda: Rotation(IID(3), (0, float("inf"))), "Rotation's degrees is inf"),
        (lambda: FlowerDatasets(ANY), "partitioner is 3"),
        (lambda: Without(IID(3), ANY), "Without's clients is 3; allowed: a list of partition ids"),
        (lambda: Without(IID(3), (0, True)), "Without's clients is True; allowed: a whole number"),
        (lambda: Without(IID(3), (1, 1)), r"Without's clients is \(1, 1\); allowed: each partition id once"),
        (lambda: Without(IID(3), (3,)).partition(LABELS), "Without's clients is 3; allowed: a whole number, 0 to 2"),
        (
            lambda: Without(IID(2), (1, 0)).partition(LABELS),
            r"clients is \(1, 0\); allowed: all but one client at most",
        ),
    ],
)
def test_bad_values_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "IID(50, sizes=LogNormal(1.5, least=2))",
        "Dirichlet(3, 0.3, sizes=(1, 2, 3))",
        "FeatureNoise(Dirichlet(50, alpha=0.1), 0.2)",
        "Mixture(IID(50), Shards(50, per_client=1), share=0.1)",
        "TimeOrdered(Natural('dept'), windows=3, by='time')",
        "TimeOrdered(Natural, 3)",
        "Rotation(IID(8), [0, 45])",
        "FlowerDatasets('IidPartitioner', {'num_partitions': 5})",
        "Without(Dirichlet(8, alpha=0.5), clients=(3,))",
        "Without(IID(8), [3, 0])",
    ],
)
def test_splits_are_written_and_read_as_text(text: str) -> None:
    split = config.build("split", text)
    written = config.to_toml(Experiment(split=split))
    assert config.experiment(tomllib.loads(written)).split == split


class Halves(CountedSplit):
    """A split of the user's own."""

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        return Partition.from_owners(np.arange(len(labels)) % self.num_clients, self.num_clients)


def test_a_split_of_ones_own() -> None:
    groups: Mapping[str, NDArray[Any]] = {}
    assert Halves(2).partition(np.zeros(5), 0, groups).sizes.tolist() == [3, 2]
    assert FeatureNoise(Halves(2)).federate(data.load("digits")).partition.sizes.tolist() == [721, 721]


def test_shared_examples_are_drawn_at_random() -> None:
    part = Shared(IID(4), fraction=0.1).partition(np.zeros(1000, dtype=int), 0)
    ids, held = np.unique(part.indices, return_counts=True)
    common = ids[held == 4]
    assert len(common) == 100
    assert 400 < common.mean() < 600


def test_a_debugger_changes_no_split() -> None:
    """It refers to the arrays of the functions that it looks into."""

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        return look if frame.f_locals is not None else None

    full, before = Partition(np.arange(20), np.array([0, 20, 20])), sys.gettrace()
    sys.settrace(look)
    try:
        topped = full.top_up(8, np.random.default_rng(0))
    finally:
        sys.settrace(before)
    assert topped.sizes.tolist() == [12, 8]


def test_what_a_short_client_receives_is_random_and_from_random_clients() -> None:
    full = Partition(np.arange(2000), np.array([0, 0, 1000, 2000]))
    topped = full.top_up(200, np.random.default_rng(0))
    assert topped.sizes[0] == 200
    received = topped[0]
    assert 70 < (received < 1000).sum() < 130  # about half from either
    for first, owned in ((0, received[received < 1000]), (1000, received[received >= 1000])):
        assert 350 < owned.mean() - first < 650  # not the first examples of its former owner


def test_topping_up_works_under_a_debugger() -> None:
    """A tracer holds references to local arrays, which must not matter."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return trace if frame.f_locals is not None else None

    few = Partition(np.arange(9), np.array([0, 8, 9, 9, 9]))
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        topped = few.top_up(1, np.random.default_rng(0))
    finally:
        sys.settrace(before)
    assert list(topped.sizes) == [6, 1, 1, 1]


@pytest.mark.parametrize(
    ("split", "label"),
    [
        (IID(50), "IID"),
        (IID(50, sizes=LogNormal(1.5, least=2), seed=3), "IID(LogNormal(1.5))"),
        (Dirichlet(50), "Dirichlet(0.5)"),
        (Dirichlet(50, sizes=PowerLaw(2.0)), "Dirichlet(0.5, PowerLaw(2.0))"),
        (LabelDirichlet(50, alpha=0.1, balance=False), "LabelDirichlet(0.1, False)"),
        (LabelsPerClient(50, k=3), "LabelsPerClient(3)"),
        (FeatureNoise(Dirichlet(50, alpha=0.1)), "FeatureNoise(Dirichlet(0.1))"),
        (FeatureScale(IID(5), 3.0, 0.5), "FeatureScale(IID, 3.0)"),
        (Mixture(IID(5), Shards(5), share=0.1), "Mixture(IID, Shards(2), 0.1)"),
        (Natural("who", 5), "Natural(who)"),
        (Natural(), "Natural"),
        (Pooled(IID(5)), "Pooled(IID)"),
        (FlowerDatasets("IidPartitioner", {"num_partitions": 5}), "IidPartitioner"),
    ],
    ids=str,
)
def test_a_splits_label_is_its_family_and_what_shapes_it(split: Split, label: str) -> None:
    assert str(split) == label


def test_a_change_leaves_the_shards_of_its_own_seed_and_knows_their_number() -> None:
    groups = {"who": LABELS % 4}
    for seed, own in ((1, None), (2, 5)):
        expected = IID(7).partition(LABELS, own or seed)
        changed = FeatureNoise(IID(7), seed=own)
        assert np.array_equal(changed.partition(LABELS, seed).indices, expected.indices)
        dataset = tiny(LABELS[::2000] % 3)
        held = IID(7).federate(dataset, own or seed)
        assert np.array_equal(changed.federate(dataset, seed).dataset.y_train, dataset.y_train[held.partition.indices])
    assert len(FeatureNoise(Natural("who")).partition(LABELS, 0, groups)) == 4
    assert (FeatureNoise(IID(7)).num_clients, FeatureNoise(Natural()).num_clients) == (7, None)
    assert Pooled(IID(7)).num_clients == 1


def test_parts_of_a_split_see_the_groups_of_their_own_examples() -> None:
    groups = {"who": np.random.default_rng(0).integers(0, 4, 400)}
    labels = np.zeros(400, int)
    for shard, k in zip(Mixture(Natural("who"), Natural("who")).partition(labels, 1, groups), range(4), strict=True):
        assert np.array_equal(shard, np.flatnonzero(groups["who"] == k))
    shared = Shared(Natural("who"), 0.1).partition(labels, 1, groups)
    common = set.intersection(*map(set, shared))
    assert len(common) == 40
    for shard, k in zip(shared, range(4), strict=True):
        assert set(shard) - common == set(np.flatnonzero(groups["who"] == k)) - common


def test_each_cluster_has_a_permutation_of_its_own() -> None:
    held = LabelPermutation(IID(6, sizes=(200,) * 6), clusters=3).federate(data.load("digits"), 1)
    plain = IID(6, sizes=(200,) * 6).federate(data.load("digits"), 1)
    maps = [
        dict(zip(plain.dataset.y_train[a].tolist(), held.dataset.y_train[b].tolist(), strict=True))
        for a, b in zip(plain.partition, held.partition, strict=True)
    ]
    assert [maps.index(each) for each in maps] == [0, 1, 2, 0, 1, 2]


def test_turns_go_round_the_clients_and_fill_in_zeros() -> None:
    dataset = data.load("digits")
    plain, turned = (s.federate(dataset, 0) for s in (IID(5), Rotation(IID(5), (0, -90))))
    for k in range(5):
        before, after = (h.dataset.x_train[h.partition[k]].reshape(-1, 8, 8) for h in (plain, turned))
        assert np.array_equal(after, np.rot90(before, -(k % 2), axes=(1, 2)))
    full = splits.features._rotate(np.ones((1, 9, 9)), 45)[0]
    assert full[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0] * 4
    spot = np.zeros((1, 9, 9))
    spot[0, 2, 6] = 1
    between = splits.features._rotate(spot, 30)
    assert between.min() >= 0  # interpolated linearly
    assert between.max() <= 1


def test_balance_gives_every_client_as_many_whole_labels() -> None:
    """With alpha near zero a label goes to one client, which must have room for it."""
    for seed in range(5):
        counts = LabelDirichlet(5, alpha=1e-300).partition(LABELS, seed).label_counts(LABELS, 10)
        assert (np.sort(counts, axis=1) == [0] * 8 + [6000] * 2).all()


def test_every_label_has_a_holder_whether_clients_or_labels_are_more() -> None:
    many = LabelsPerClient(25, k=2).partition(LABELS, 1).label_counts(LABELS, 10)
    assert (many[np.arange(25), np.arange(25) % 10] > 0).all()
    few = LabelsPerClient(3, k=4).partition(LABELS, 1).label_counts(LABELS, 10)
    assert (few[np.arange(10) % 3, np.arange(10)] > 0).all()
    assert ((few > 0).sum(axis=1) == 4).all()


def test_dirichlet_sizes_have_the_variance_of_the_distribution() -> None:
    """A share of the examples: mean 1/K, variance (1/K)(1 - 1/K)/(K alpha + 1)."""
    law = DirichletSizes(0.5)
    shares = [IID(20, sizes=law).partition(np.zeros(100_000), seed).sizes / 100_000 for seed in range(40)]
    assert np.var(shares) == pytest.approx(0.05 * 0.95 / 11, rel=0.15)


def test_raising_the_smallest_may_lower_others_below_the_least() -> None:
    assert splits.sizes.apportion(np.array([6.0, 5, 1]), 12, least=4).tolist() == [4, 4, 4]
    assert splits.sizes.apportion(np.array([100.0, 1, 1, 10]), 20, least=4).tolist() == [8, 4, 4, 4]
    assert splits.sizes.apportion(np.zeros(3), 8, least=2).tolist() == [3, 3, 2]


def test_a_partition_is_a_sequence() -> None:
    partition = Partition(np.array([5, 3, 8, 1]), np.array([0, 1, 1, 4]))
    assert [shard.tolist() for shard in partition] == [[5], [], [3, 8, 1]]
    assert partition[-1].tolist() == [3, 8, 1]
    assert [shard.tolist() for shard in partition[1:]] == [[], [3, 8, 1]]
    with pytest.raises(IndexError):
        partition[3]
    assert (partition.owners.tolist(), partition.positions.tolist()) == ([0, 2, 2, 2], [0, 0, 1, 2])
    kept = partition.select(np.array([True, False, True, True]))
    assert [shard.tolist() for shard in kept] == [[5], [], [8, 1]]


def test_time_orders_by_a_column_and_by_the_labels_that_clients_see() -> None:
    rng = np.random.default_rng(0)
    dataset = Dataset(
        "dated", rng.random((90, 1)), np.arange(90) % 3, np.zeros((1, 1)), np.zeros(1, int),
        groups={"year": rng.integers(0, 5, 90)},
    )  # fmt: skip
    held = TimeOrdered(IID(4), 2, by="year").federate(dataset, 1)
    for shard, before in zip(held.partition, IID(4).federate(dataset, 1).partition, strict=True):
        assert shard.tolist() == sorted(before.tolist(), key=lambda k: int(dataset.groups["year"][k]))
    assert [held.window(r) for r in (0, 1, 2, 3)] == [1, 1, 2, 2]  # before the first round it is the first
    noisy = TimeOrdered(LabelNoise(IID(4), 0.9, 0.9), 2, by="label").federate(dataset, 1)
    for shard in noisy.partition:
        assert (np.diff(noisy.dataset.y_train[shard]) >= 0).all()


def test_a_partitioners_seed_is_the_splits_and_its_refusal_is_a_sentence() -> None:
    pytest.importorskip("flwr_datasets", reason="flwr_datasets is not installed")
    labels = np.arange(200) % 10
    options = {"num_partitions": 4, "partition_by": "label", "alpha": 0.5}

    def drawn(number: int, own: int | None = None, **more: Any) -> list[list[int]]:
        split = FlowerDatasets("DirichletPartitioner", options | more, seed=own)
        return [shard.tolist() for shard in split.partition(labels, number)]

    assert drawn(1) == drawn(1) == drawn(2, own=1) != drawn(2)
    assert drawn(1) != drawn(1, seed=5)
    skewed = [sorted(map(len, drawn(seed))) for seed in range(4)]
    assert len(set(map(tuple, skewed))) > 1  # sizes are drawn anew, not only who is dealt what
    with pytest.raises(ConfigError, match=r"FlowerDatasets's DirichletPartitioner refuses {.*'alpha': -1"):
        drawn(1, alpha=-1)
    with pytest.raises(
        ConfigError, match=r"partitioner is 'IidPartitoner'; allowed: .*; did you mean 'IidPartitioner'"
    ):
        FlowerDatasets("IidPartitoner", {}).partition(labels)
    with pytest.raises(ConfigError, match="FlowerDatasets's options is 3; allowed: a dict"):
        FlowerDatasets("IidPartitioner", ANY)
