from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn, optim

from imagepipe.training.optimisers import OPTIMISERS, SCHEDULES, make_optimiser, make_schedule
from imagepipe.training.params import TrainParams
from tests.training.test_params import make_params


def move_weight(gradients: list[float], **changes: Any) -> float:
    """Where a weight of 1 goes under these gradients, at a learning rate of 0.1."""
    weight = nn.Parameter(torch.ones(1))
    optimiser = make_optimiser([weight], make_params(lr=0.1, **changes))
    for gradient in gradients:
        weight.grad = Tensor([gradient])
        optimiser.step()
    return weight.item()


@pytest.mark.parametrize(
    ("changes", "gradients", "expected"),
    [
        ({"optimizer": "sgd"}, [2.0], 1 - 0.1 * 2),
        # The decay adds 0.5 · 1 to the gradient.
        ({"optimizer": "sgd", "weight_decay": 0.5}, [2.0], 1 - 0.1 * 2.5),
        # The second step is 2 + 0.9 · 2.
        ({"optimizer": "sgd", "momentum": 0.9}, [2.0, 2.0], 1 - 0.1 * 2 - 0.1 * 3.8),
        # The mean square is 0.01 · 2² = 0.2², so the first step is 0.1 · 2 / 0.2.
        ({"optimizer": "rmsprop"}, [2.0], 0.0),
        ({"optimizer": "rmsprop", "momentum": 0.5}, [2.0, 0.0], 1 - 1 - 0.5),
        # Adam's first step is lr along the sign of the gradient, whatever its size.
        ({"optimizer": "adam"}, [2.0], 0.9),
        ({"optimizer": "adam"}, [-0.02], 1.1),
        ({"optimizer": "adamw"}, [2.0], 0.9),
        # Without a gradient, Adam takes the decay for one; AdamW takes 0.1 · 0.5 of the weight.
        ({"optimizer": "adam", "weight_decay": 0.5}, [0.0], 0.9),
        ({"optimizer": "adamw", "weight_decay": 0.5}, [0.0], 0.95),
    ],
)
def test_steps_worked_out_by_hand(changes: dict[str, Any], gradients: list[float], expected: float) -> None:
    assert move_weight(gradients, **changes) == pytest.approx(expected, abs=1e-5)


def list_rates(updates: int, **changes: Any) -> list[float]:
    """The learning rate of each update."""
    weight = nn.Parameter(torch.ones(1))
    params = make_params(**changes)
    optimiser = make_optimiser([weight], params)
    schedule = make_schedule(optimiser, params, updates)
    rates: list[float] = []
    for _ in range(updates):
        weight.grad = torch.ones(1)
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def test_a_constant_rate_stays() -> None:
    assert list_rates(5, schedule="constant", lr=0.3) == [0.3] * 5


def test_onecycle_peaks_at_lr_after_three_tenths_of_the_updates() -> None:
    rates = list_rates(10, schedule="onecycle", lr=0.5)
    assert max(rates) == rates[2] == pytest.approx(0.5)
    assert rates[:3] == sorted(rates[:3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    # Half of the way up, a cosine is half of the way from lr / 25 to lr.
    assert rates[:2] == pytest.approx([0.02, (0.02 + 0.5) / 2])
    assert rates[-1] == pytest.approx(0.02 / 10_000)


@pytest.mark.parametrize("updates", range(1, 8))
def test_onecycle_fits_any_number_of_updates(updates: int) -> None:
    rates = list_rates(updates, schedule="onecycle", lr=0.5)
    assert len(rates) == updates
    assert 0 < min(rates) <= max(rates) <= 0.5


def test_onecycle_leaves_the_momentum_alone() -> None:
    params = make_params(schedule="onecycle", momentum=0.9)
    optimiser = make_optimiser([nn.Parameter(torch.ones(1))], params)
    make_schedule(optimiser, params, 10)
    assert optimiser.param_groups[0]["momentum"] == 0.9


def test_every_name_that_params_allow_is_in_its_table() -> None:
    fields = TrainParams.model_fields
    assert set(get_args(fields["optimizer"].annotation)) == set(OPTIMISERS)
    assert set(get_args(fields["schedule"].annotation)) == set(SCHEDULES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", optim.SGD), ("rmsprop", optim.RMSprop), ("adam", optim.Adam), ("adamw", optim.AdamW)],
)
def test_a_name_gives_its_optimiser(name: str, kind: type[optim.Optimizer]) -> None:
    assert type(make_optimiser([nn.Parameter(torch.ones(1))], make_params(optimizer=name))) is kind
