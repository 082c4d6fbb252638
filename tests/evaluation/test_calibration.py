import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from imagepipe.evaluation.calibration import (
    BINS,
    find_calibration_error,
    find_log_loss,
    find_log_probabilities,
    fit_temperature,
    tabulate_calibration,
)


def test_probabilities_are_a_softmax() -> None:
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]])
    assert np.exp(find_log_probabilities(logits)).tolist() == [pytest.approx([0.25, 0.75]), [1.0, 0.0]]


def test_a_temperature_flattens() -> None:
    logits = np.array([[0.0, np.log(9.0)]])
    assert np.exp(find_log_probabilities(logits, 2.0))[0].tolist() == pytest.approx([0.25, 0.75])


def test_log_loss_agrees_with_scikit_learn() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    labels = np.arange(50) % 4
    logarithms = find_log_probabilities(logits)
    assert find_log_loss(logarithms, labels) == pytest.approx(log_loss(labels, np.exp(logarithms)))


def test_the_temperature_is_the_one_that_theory_has() -> None:
    """Three of four are right, so that ln 3 is the best difference of two logits that are 2 ln 3 apart."""
    logits = np.array([[2 * np.log(3.0), 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(2.0, rel=1e-4)


def test_without_a_mistake_no_temperature_is_the_best() -> None:
    assert fit_temperature(np.array([[3.0, 0.0], [0.0, 0.1]]), np.array([0, 1])) == 1.0
    assert str(find_log_loss(np.zeros((2, 1)), np.array([0, 0]))) == "0.0"


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.01, 50))
def test_scaling_never_makes_the_log_loss_worse(seed: int, classes: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=scale, size=(20, classes))
    labels = generator.integers(0, classes, 20)
    scaled = find_log_loss(find_log_probabilities(logits, fit_temperature(logits, labels)), labels)
    assert scaled <= find_log_loss(find_log_probabilities(logits), labels)


def test_calibration_by_hand() -> None:
    """Bins of a fifteenth: two images at 0.95 of which one is right, one at 0.55 that is right."""
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55]])
    table = tabulate_calibration(probabilities, np.array([0, 1, 1]))
    assert len(table) == BINS
    assert table["images"].tolist() == [0] * 8 + [1] + [0] * 5 + [2]
    assert table["confidence"].dropna().tolist() == pytest.approx([0.55, 0.95])
    assert table["accuracy"].dropna().tolist() == [1.0, 0.5]
    assert find_calibration_error(table) == pytest.approx((0.45 + 2 * 0.45) / 3)


def test_the_ends_of_the_scale_are_in_the_first_and_last_bin() -> None:
    table = tabulate_calibration(np.array([[1.0, 0.0], [1 / 15, 0.0]]), np.array([0, 0]))
    assert (table["images"].iloc[0], table["images"].iloc[-1]) == (1, 1)
