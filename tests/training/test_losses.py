import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imagepipe.training.losses import LOSSES, make_loss
from tests.training.test_params import make_params

# Class 0 has the probability 1/4 in the first sample and 1/2 in the second.
LOGITS = Tensor([[0.0, math.log(3)], [0.0, 0.0]])
LABELS = torch.tensor([0, 1])
LOGITS.requires_grad_()


def take_loss(weights: list[float] | None = None, **changes: object) -> float:
    return make_loss(make_params(**changes), None if weights is None else Tensor(weights))(LOGITS, LABELS).item()


def test_cross_entropy_by_hand() -> None:
    assert take_loss() == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert take_loss([3.0, 1.0]) == pytest.approx((3 * math.log(4) + math.log(2)) / 4)


def test_nll_on_the_log_softmax_is_the_cross_entropy() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % 7
    for weights in (None, torch.arange(1.0, 8.0)):
        found = LOSSES["nll"](make_params(), weights)(logits, labels)
        assert torch.allclose(found, functional.cross_entropy(logits, labels, weights))
        assert torch.allclose(LOSSES["focal"](make_params(focal_gamma=0.0), weights)(logits, labels), found)


def test_focal_loss_by_hand() -> None:
    """(3/4)² of ln 4 and (1/2)² of ln 2."""
    expected = [9 / 16 * math.log(4), 1 / 4 * math.log(2)]
    assert take_loss(loss="focal") == pytest.approx(sum(expected) / 2)
    assert take_loss(imbalance="focal") == pytest.approx(sum(expected) / 2)
    assert take_loss([3.0, 1.0], loss="focal") == pytest.approx((3 * expected[0] + expected[1]) / 4)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_a_certain_sample_adds_nothing_to_the_focal_loss_or_its_gradient(gamma: float) -> None:
    """e^-200 is 0 in float32: the first loss is 0, the second (1/2)^gamma ln 2, half of which is the mean.

    With p = 1/2, -d/dp of (1 - p)^gamma ln(1/p) is (1/2)^gamma (2 gamma ln 2 + 2), and dp/dlogit is 1/4.
    """
    logits = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = make_loss(make_params(loss="focal", focal_gamma=gamma))(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(0.5**gamma * math.log(2) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    slope = 0.5**gamma * (gamma * math.log(2) + 1) / 4
    assert gradient.tolist() == [[0, 0], pytest.approx([slope, -slope])]


def test_one_against_the_rest_by_hand() -> None:
    """Logits of 0 cost ln 2 either way; ln 3 is a probability of 3/4, which is wrong in the first sample: ln 4."""
    expected = [math.log(2) + math.log(4), 2 * math.log(2)]
    assert take_loss(loss="bce") == pytest.approx(sum(expected) / 2)
    assert take_loss([3.0, 1.0], loss="bce") == pytest.approx((3 * expected[0] + expected[1]) / 4)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_along_its_gradient(name: str) -> None:
    loss_function = make_loss(make_params(loss=name), torch.tensor([1.0, 2.0]))
    loss = loss_function(LOGITS, LABELS)
    (gradient,) = torch.autograd.grad(loss, LOGITS)
    assert loss_function(LOGITS - 0.1 * gradient, LABELS) < loss


def test_label_smoothing_reaches_the_cross_entropy() -> None:
    """0.9 of the right class and 0.1 of the other: probabilities 1/4 and 3/4, then 1/2 and 1/2."""
    first = 0.9 * math.log(4) + 0.1 * math.log(4 / 3)
    assert take_loss(label_smoothing=0.2) == pytest.approx((first + math.log(2)) / 2)
