import numpy as np
import pytest
import torch

from imagepipe.training.imbalance import WeightedSampler, make_class_weights

LABELS = np.repeat(np.arange(3), [8000, 1600, 400])


def test_class_weights_by_hand() -> None:
    """N / (k·n) for the two classes that have images; the order is that of the classes."""
    found = make_class_weights({"b": 1, "a": 3, "none": 0}, ["a", "b", "none"])
    assert torch.allclose(found, torch.tensor([4 / 6, 4 / 2, 0.0]))


def test_every_class_is_drawn_about_equally_often() -> None:
    drawn = LABELS[list(WeightedSampler(LABELS, seed=1))]
    assert len(drawn) == len(LABELS)
    # The standard deviation of a count is sqrt(10,000 · 1/3 · 2/3) = 47.
    assert np.bincount(drawn) == pytest.approx(10_000 / 3, abs=4 * 47)


def test_images_of_a_class_are_drawn_about_equally_often() -> None:
    sampler = WeightedSampler(LABELS, seed=1)
    counts = np.zeros(len(LABELS))
    for epoch in range(30):
        sampler.set_epoch(epoch)
        counts += np.bincount(list(sampler), minlength=len(LABELS))
    rare = counts[LABELS == 2]  # each expects 30 · 10,000 / 3 / 400 = 250, with a deviation of 16
    assert rare.mean() == pytest.approx(250, abs=5)
    assert rare.min() > 250 - 5 * 16
    assert rare.max() < 250 + 5 * 16


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    first, second = WeightedSampler(LABELS, seed=1), WeightedSampler(LABELS, seed=1)
    state = torch.get_rng_state()
    one = list(first)
    torch.rand(3)
    assert one == list(first) == list(second)
    second.set_epoch(1)
    assert list(second) != one
    assert list(WeightedSampler(LABELS, seed=2)) != one
    second.set_epoch(0)
    assert list(second) == one
    assert not torch.equal(torch.get_rng_state(), state)  # by the draw above, and nothing else


def test_a_class_without_images_is_never_drawn() -> None:
    labels = np.array([0, 0, 2])
    assert set(WeightedSampler(labels, seed=1)) <= {0, 1, 2}
