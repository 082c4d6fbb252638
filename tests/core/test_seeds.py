import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagepipe.core.seeds import derive_seed


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


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.text(), st.integers(0, 10**9))
def test_is_a_seed_itself(seed: int, purpose: str, index: int) -> None:
    assert 0 <= derive_seed(seed, purpose, index) < 2**63
