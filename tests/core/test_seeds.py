import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagepipe.core.seeds import derive_seed, draw_uniform, hash_positions


def test_never_changes() -> None:
    assert derive_seed(1, "order") == 7617939368003374703


def test_is_the_first_63_bits_of_a_hash() -> None:
    first = hashlib.sha256(b"5\0dropout\x003").hexdigest()[:16]
    assert derive_seed(5, "dropout", 3) == int(first, 16) // 2


@pytest.mark.parametrize("other", [(2, "order", 0), (1, "augment", 0), (1, "order", 1)])
def test_depends_on_seed_purpose_and_index(other: tuple[int, str, int]) -> None:
    assert derive_seed(*other) != derive_seed(1, "order", 0)


def test_parts_do_not_run_together() -> None:
    assert derive_seed(1, "1", 0) != derive_seed(11, "", 0)


@given(st.integers(0, 2**63 - 1), st.text(), st.integers(0, 10**9))
def test_is_a_seed_itself(seed: int, purpose: str, index: int) -> None:
    assert 0 <= derive_seed(seed, purpose, index) < 2**63


def mix_by_hand(value: int) -> int:
    """SplitMix64's finaliser in unbounded integers."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@pytest.mark.parametrize("stream", [0, 7617939368003374703, 2**64 - 1])
def test_a_position_is_hashed_and_then_steps_as_splitmix64_does(stream: int) -> None:
    positions = [0, 1, 59_999, 2**62]
    hashes = [mix_by_hand(mix_by_hand((position + stream) % 2**64)) for position in positions]
    assert hash_positions(np.array(positions), stream).tolist() == hashes
    expected = [
        [(mix_by_hand((start + step * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for step in (1, 2, 3)]
        for start in hashes
    ]
    assert draw_uniform(np.array(positions), stream, 3).tolist() == expected


def test_draws_do_not_depend_on_the_neighbours_or_on_how_many_are_drawn() -> None:
    whole = draw_uniform(np.arange(100), 5, 4)
    assert np.array_equal(draw_uniform(np.array([17, 3]), 5, 2), whole[[17, 3], :2])


def test_draws_are_even_and_independent() -> None:
    """40,000 draws of 4 numbers: a mean is 0.5 with deviation sqrt(1/12/40,000) = 0.0014, a correlation 0 with
    0.005, and a tenth of the range holds 4,000 with 60. The bounds are five deviations."""
    draws = draw_uniform(np.arange(40_000), derive_seed(1, "augment.degrees"), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.007
    tenths = np.array([np.bincount((10 * column).astype(int), minlength=10) for column in draws.T])
    assert np.abs(tenths - 4000).max() < 300
    neighbours = np.column_stack((draws[:-1], draws[1:]))
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(8)).max() < 0.025
