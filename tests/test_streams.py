"""Counter-based randomness: known values, independence of order, and fair shuffles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim import streams
from fedsim.streams import Purpose


def test_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 seeded with 1234567, as its reference implementation gives them."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + golden * k) % 2**64 for k in (1, 2, 3)], dtype=np.uint64)
    assert streams.mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**70), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_rows_are_permutations_and_depend_on_their_own_key_alone(seed: int, sizes: list[int]) -> None:
    keys = streams.keys(seed, Purpose.SHUFFLE, 3, np.arange(len(sizes)))
    together = streams.permutations(keys, np.array(sizes))
    for row, size in enumerate(sizes):
        alone = streams.permutations(keys[row : row + 1], np.array([size]))[0]
        assert sorted(alone) == list(range(size))
        assert np.array_equal(together[row, :size], alone)


def test_shuffles_are_uniform() -> None:
    """All 24 orders of four things come up equally often (chi-squared, 23 degrees of freedom)."""
    keys = streams.keys(0, Purpose.SHUFFLE, np.arange(48_000))
    orders = streams.permutations(keys, np.full(48_000, 4))
    _, counts = np.unique(orders @ np.array([64, 16, 4, 1]), return_counts=True)
    assert len(counts) == 24
    assert ((counts - 2000) ** 2 / 2000).sum() < 55  # p = 0.0002


def test_streams_differ_by_seed_purpose_and_ids() -> None:
    keys = [
        int(streams.keys(seed, purpose, a, b)[0])
        for seed in (0, 1, 2**63)
        for purpose in (Purpose.INIT, Purpose.SHUFFLE)
        for a in (0, 1)
        for b in (0, 1)
    ]
    assert len(set(keys)) == len(keys)


def test_purposes_keep_their_numbers() -> None:
    """A purpose is never renumbered: a checkpoint goes on with the bits it began with, and stored results stand."""
    first = ("INIT", "SPLIT", "SAMPLE_TRAIN", "SAMPLE_EVALUATE", "SHUFFLE", "DATA", "FLOWER", "SHUFFLE_PERSONAL")
    numbered = dict(enumerate((*first, "CLIENT_TEST", "SPLIT_CHANGE", "COMPRESS"), 1))
    assert {k: Purpose(k).name for k in numbered} == numbered
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose.__members__)


def test_a_key_folds_seed_purpose_and_ids_by_splitmix64() -> None:
    """Each id is a number of steps from the state so far, then the output function: written in plain integers."""

    def mixed(z: int) -> int:
        z %= 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    key = mixed(2**64 + 12345)
    for part in (5, 3, 0, 10**6):  # the purpose is the first
        key = mixed(key + (part + 1) * 0x9E3779B97F4A7C15)
    assert streams.keys(12345, Purpose.SHUFFLE, 3, 0, np.array([10**6])).tolist() == [key]


def test_a_number_and_an_array_of_it_have_one_stream() -> None:
    """Plain numbers are folded by another way."""
    for seed in (0, 1, 2**63, 2**64 + 1):
        for k in (0, 1, 10**6):
            plain = streams.keys(seed, Purpose.SHUFFLE, 7, k)
            assert np.array_equal(plain, streams.keys(seed, Purpose.SHUFFLE, 7, np.array([k])))
            assert np.array_equal(plain, streams.keys(seed, Purpose.SHUFFLE, np.array([7]), k))


def outputs(key: int, count: int) -> list[int]:
    """The first outputs of SplitMix64 from a state, in plain integers."""
    found = []
    for k in range(1, count + 1):
        z = (key + k * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        found.append(z ^ z >> 31)
    return found


def test_a_shuffle_sorts_by_the_upper_halves_of_the_streams_outputs() -> None:
    """Anybody can do it again from the key: of equal halves the smaller number comes first."""
    keys = streams.keys(3, Purpose.SHUFFLE, np.arange(5))
    sizes = np.array([7, 7, 4, 1, 0])
    shuffled = streams.permutations(keys, sizes)
    assert shuffled.shape == (5, 7)
    assert shuffled.dtype == np.intp
    for key, size, row in zip(keys.tolist(), sizes, shuffled, strict=True):
        upper = [z >> 32 for z in outputs(key, size)]
        assert row[:size].tolist() == sorted(range(size), key=lambda k: (upper[k], k))
    assert streams.permutations(keys[:0], sizes[:0]).shape == (0, 0)


def test_a_generator_is_numpys_philox_with_the_streams_key() -> None:
    key = int(streams.keys(5, Purpose.SPLIT, 2, 9)[0])
    drawn = streams.generator(5, Purpose.SPLIT, 2, 9).random(4)
    assert np.array_equal(drawn, np.random.Generator(np.random.Philox(key=key)).random(4))
    assert not np.array_equal(drawn, streams.generator(5, Purpose.SPLIT, 9, 2).random(4))


def test_ids_broadcast_to_a_key_each() -> None:
    rounds, clients = np.arange(3)[:, None], np.array([4, 9])
    keys = streams.keys(1, Purpose.SHUFFLE, 6, rounds, clients, 8)
    assert keys.shape == (3, 2)
    for a, b in np.ndindex(3, 2):
        assert keys[a, b] == streams.keys(1, Purpose.SHUFFLE, 6, a, int(clients[b]), 8)[0]
    assert streams.keys(1, Purpose.SHUFFLE).shape == (1,)
