import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight  # pyright: ignore[reportUnknownVariableType]

from imagepipe.core.class_counts import check_several, count_effective, find_majority, weigh_balanced, weigh_effective
from imagepipe.core.errors import InputError


def test_one_class_alone_is_refused() -> None:
    check_several([], "pets")
    check_several(["dog", "cat", "dog"], "pets")
    with pytest.raises(InputError) as caught:
        check_several(["cat", "cat"], "pets")
    assert str(caught.value) == (
        "pets: has images of 1 class only ('cat'); a classifier needs two. Is the source read as it is meant "
        "(fetch.source, fetch.path, fetch.classes)?"
    )


def test_majority_ties_go_to_the_first_class() -> None:
    assert find_majority({"b": 2, "a": 2, "c": 1}) == "b"


def test_effective_numbers_by_hand() -> None:
    assert count_effective(2, 4) == pytest.approx(1.75)  # β = 3/4: (1 - 9/16) / (1/4)
    assert count_effective(1, 60_000) == 1
    assert count_effective(0, 60_000) == 0
    assert count_effective(1, 1) == 1
    assert count_effective(10, 10**9) == pytest.approx(10)  # rare against the whole: nearly its own number


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_effective_numbers_lie_between_one_and_the_images(images: int, others: int) -> None:
    total = images + others
    found = count_effective(images, total)
    assert 1 - 1e-9 <= found <= images * (1 + 1e-9)
    assert found < count_effective(images + 1, total)


def test_weights_by_hand() -> None:
    train = {"a": 2, "b": 1, "c": 1, "d": 0}
    assert weigh_balanced(train) == pytest.approx({"a": 4 / 6, "b": 4 / 3, "c": 4 / 3})
    # effective numbers 1.75, 1, 1: their inverses 4/7, 1, 1 have the mean 6/7
    assert weigh_effective(train) == pytest.approx({"a": 2 / 3, "b": 7 / 6, "c": 7 / 6})


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30).filter(any))
def test_weights_have_the_mean_that_they_promise(counts: list[int]) -> None:
    train = {str(label): count for label, count in enumerate(counts)}
    balanced, effective = weigh_balanced(train), weigh_effective(train)
    assert balanced.keys() == effective.keys() == {name for name, count in train.items() if count}
    assert sum(train[name] * weight for name, weight in balanced.items()) == pytest.approx(sum(counts))
    assert sum(effective.values()) / len(effective) == pytest.approx(1)
    labels = np.repeat(np.arange(len(counts)), counts)
    theirs = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert list(balanced.values()) == pytest.approx(theirs.tolist())
