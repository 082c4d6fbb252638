from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from imagepipe.core.errors import InputError
from imagepipe.training.optimisers import make_optimiser, make_schedule
from tests.training.test_params import VALUES, make_params


class Weight(nn.Module):
    """One weight of 1, and where it is asked for a matrix of 1s."""

    def __init__(self, matrix: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        if matrix:
            self.matrix = nn.Parameter(torch.ones(1, 1))


def change(section: str, **values: Any) -> dict[str, Any]:
    """The section of an optimiser with other values."""
    return {section: VALUES[section] | values}


def move_weight(gradients: list[float], **changes: Any) -> float:
    """Where a weight of 1 goes under these gradients, at a learning rate of 0.1."""
    model = Weight()
    optimiser = make_optimiser(model, make_params(lr=0.1, **changes))
    for gradient in gradients:
        model.weight.grad = Tensor([gradient])
        optimiser.step()
    return model.weight.item()


@pytest.mark.parametrize(
    ("changes", "gradients", "expected"),
    [
        ({"optimizer": "sgd"}, [2.0], 1 - 0.1 * 2),
        # The decay adds 0.5 · 1 to the gradient.
        ({"optimizer": "sgd", "weight_decay": 0.5}, [2.0], 1 - 0.1 * 2.5),
        # The second step is 2 + 0.9 · 2.
        ({"optimizer": "sgd", **change("sgd", momentum=0.9)}, [2.0, 2.0], 1 - 0.1 * 2 - 0.1 * 3.8),
        # Half of the second gradient is dampened away: 0.9 · 2 + 0.5 · 2.
        ({"optimizer": "sgd", **change("sgd", momentum=0.9, dampening=0.5)}, [2.0, 2.0], 1 - 0.1 * 2 - 0.1 * 2.8),
        # Nesterov's first step is 2 + 0.9 · 2.
        ({"optimizer": "sgd", **change("sgd", momentum=0.9, nesterov=True)}, [2.0], 1 - 0.1 * 3.8),
        # The mean square is 0.01 · 2² = 0.2², so the first step is 0.1 · 2 / 0.2.
        ({"optimizer": "rmsprop"}, [2.0], 0.0),
        ({"optimizer": "rmsprop", **change("rmsprop", momentum=0.5)}, [2.0, 0.0], 1 - 1 - 0.5),
        # The mean square is 0.19 · 2², the mean 0.19 · 2: without its square, 0.19 · 4 · (1 - 0.19) is left.
        ({"optimizer": "rmsprop", **change("rmsprop", alpha=0.81)}, [2.0], 1 - 0.1 * 2 / (0.19 * 4) ** 0.5),
        (
            {"optimizer": "rmsprop", **change("rmsprop", alpha=0.81, centered=True)},
            [2.0],
            1 - 0.1 * 2 / (0.19 * 4 * 0.81) ** 0.5,
        ),
        ({"optimizer": "adagrad"}, [2.0], 0.9),
        # The sum of squares is 2² + 2² at the second step, whose rate is 0.1 / (1 + 1 · 0.5).
        ({"optimizer": "adagrad", **change("adagrad", lr_decay=0.5)}, [2.0, 2.0], 0.9 - 0.1 / 1.5 / 2**0.5),
        ({"optimizer": "adagrad", **change("adagrad", initial_accumulator_value=5.0)}, [2.0], 1 - 0.1 * 2 / 3),
        # Adam's first step is lr along the sign of the gradient, whatever its size.
        ({"optimizer": "adam"}, [2.0], 0.9),
        ({"optimizer": "adam"}, [-0.02], 1.1),
        # Without memory of past gradients, each step is the sign; the mean square still remembers.
        ({"optimizer": "adam", **change("adam", beta1=0.0, beta2=0.0)}, [2.0, -3.0], 1.0),
        ({"optimizer": "adam", **change("adam", eps=2.0)}, [2.0], 0.95),
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
    model = Weight()
    params = make_params(**changes)
    optimiser = make_optimiser(model, params)
    schedule = make_schedule(optimiser, params, updates)
    rates: list[float] = []
    for _ in range(updates):
        model.weight.grad = torch.ones(1)
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


@pytest.mark.parametrize("updates", range(4, 8))
def test_onecycle_fits_any_number_of_updates_that_lets_it_rise(updates: int) -> None:
    rates = list_rates(updates, schedule="onecycle", lr=0.5)
    assert len(rates) == updates
    assert 0 < min(rates) <= max(rates) <= 0.5


@pytest.mark.parametrize(
    ("updates", "share", "rise"), [(1, 0.3, "0.3"), (3, 0.3, "0.9"), (2, 0.5, "1"), (4, 0.25, "1"), (10, 0.1, "1")]
)
def test_onecycle_is_refused_where_it_cannot_rise(updates: int, share: float, rise: str) -> None:
    message = (
        rf"^train\.schedule is onecycle, but train\.onecycle\.pct_start is {share} and there are {updates} updates: lr "
        rf"would rise over {rise} updates; it needs more than 1\. Raise train\.epochs or pct_start, reduce "
        r"train\.batch_size, or choose another train\.schedule\.$"
    )
    with pytest.raises(InputError, match=message):
        list_rates(updates, schedule="onecycle", **change("onecycle", pct_start=share))


def test_onecycle_leaves_the_momentum_alone() -> None:
    params = make_params(schedule="onecycle", **change("sgd", momentum=0.9))
    optimiser = make_optimiser(Weight(), params)
    make_schedule(optimiser, params, 10)
    assert optimiser.param_groups[0]["momentum"] == 0.9


def test_onecycle_takes_its_arguments() -> None:
    shape = {"pct_start": 0.5, "div_factor": 2.0, "final_div_factor": 4.0}
    rates = list_rates(11, schedule="onecycle", lr=0.8, onecycle=shape)
    assert rates[0] == pytest.approx(0.4)
    assert max(range(11), key=rates.__getitem__) in (4, 5)
    assert rates[-1] == pytest.approx(0.1)


def test_steps_cut_the_updates_evenly() -> None:
    rates = list_rates(6, schedule="step", lr=0.8, step={"steps": 3, "factor": 0.5})
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


def test_a_cosine_falls_to_its_end() -> None:
    """After half of the updates it is half way down, after a quarter (1 + cos 45°) / 2 of the way is left."""
    rates = list_rates(4, schedule="cosine", lr=1.0, cosine={"end": 0.2})
    assert rates == pytest.approx([1.0, 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 0.6, 0.2 + 0.8 * (1 - 0.5**0.5) / 2])


def test_a_warmup_rises_evenly_and_then_the_schedule_begins() -> None:
    rates = list_rates(8, schedule="step", lr=0.8, warmup=0.5, step={"steps": 2, "factor": 0.5})
    assert rates == pytest.approx([0.8 * k / 5 for k in (1, 2, 3, 4)] + [0.8, 0.8, 0.4, 0.4])


def test_norms_and_biases_can_be_spared_the_decay() -> None:
    model = Weight(matrix=True)
    optimiser = make_optimiser(model, make_params(lr=0.1, weight_decay=0.5, decay_norms_and_biases=False))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    assert (model.weight.item(), model.matrix.item()) == (1.0, pytest.approx(0.95))


def test_weights_that_are_frozen_are_left_out() -> None:
    model = Weight(matrix=True)
    model.weight.requires_grad_(False)
    (group,) = make_optimiser(model, make_params(decay_norms_and_biases=False)).param_groups
    assert group["params"] == [model.matrix]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", optim.SGD),
        ("rmsprop", optim.RMSprop),
        ("adagrad", optim.Adagrad),
        ("adam", optim.Adam),
        ("adamw", optim.AdamW),
    ],
)
def test_a_name_gives_its_optimiser(name: str, kind: type[optim.Optimizer]) -> None:
    assert type(make_optimiser(Weight(), make_params(optimizer=name))) is kind
