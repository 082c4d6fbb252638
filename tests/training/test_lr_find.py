import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_file
from imagepipe.data.batches import make_loaders
from imagepipe.training.lr_find import Sweep, go_round, suggest_rate, trace_loss, trace_run
from imagepipe.training.train import train_model
from tests.core.made import make_run
from tests.data.test_params import AUGMENT
from tests.training.test_params import make_params

Batches = list[tuple[Tensor, Tensor]]

STILL = (1e-30, 1e-29)  # learning rates at which no weight changes
CNN = {"base": 2, "stem": "pool", "dropout": 0.5}


class OneWeight(nn.Module):
    """The logits (w·x, 0) of each input x, (B, 1): for the first class the loss is ln(1 + e^-wx)."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(Tensor([weight]))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.weight * inputs, torch.zeros_like(inputs)], dim=1)


def make_batches(*losses: float) -> Batches:
    """A batch of one sample for each loss that a weight of 1 is to have."""
    return [(Tensor([[-math.log(math.expm1(loss))]]), torch.tensor([0])) for loss in losses]


def trace(batches: Batches, *sweep: Any, weight: float = 1.0, **changes: Any) -> pd.DataFrame:
    return trace_loss(OneWeight(weight), batches, make_params(**changes), Sweep(*sweep))


def test_the_first_updates_by_hand() -> None:
    """Steps of plain gradient descent at 0.1, 1 and 10; the gradient of ln(1 + e^-w) is -1 / (1 + e^w)."""
    curve = trace([(Tensor([[1.0]]), torch.tensor([0]))], 0.1, 10.0, 3, weight=0.0)
    first = 0.1 * 0.5
    second = first + 1 / (1 + math.exp(first))
    assert curve.columns.tolist() == ["update", "lr", "loss", "smoothed"]
    assert curve["update"].tolist() == [1, 2, 3]
    assert curve["lr"].tolist() == pytest.approx([0.1, 1.0, 10.0])
    expected = [math.log1p(math.exp(-weight)) for weight in (0, first, second)]
    assert curve["loss"].tolist() == pytest.approx(expected)
    assert curve["smoothed"].tolist() == curve["loss"].tolist()  # a tenth of three updates is none but the last


def test_rates_rise_by_the_same_factor() -> None:
    curve = trace(make_batches(1.0), 1e-6, 1.0, 7)
    assert curve["lr"].tolist() == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])


def test_the_running_average_has_no_bias_by_hand() -> None:
    """Over 20 updates it is the last loss and half of what it was: weights of 1, 2, 4 … for losses, over their sum."""
    curve = trace(make_batches(1.0, 2.0, 4.0), *STILL, 20)
    assert curve["loss"].tolist()[:4] == pytest.approx([1, 2, 4, 1])
    assert curve["smoothed"].tolist()[:4] == pytest.approx([1, 5 / 3, 21 / 7, 29 / 15])


def test_it_ends_above_four_times_the_least_smoothed_loss() -> None:
    assert trace(make_batches(1.0, 0.5, 1.9, 2.1, 0.1), *STILL, 10)["loss"].tolist() == pytest.approx(
        [1, 0.5, 1.9, 2.1]
    )


def test_it_ends_before_a_loss_that_is_no_number() -> None:
    batches = [*make_batches(1.0, 2.0), (Tensor([[math.nan]]), torch.tensor([0]))]
    assert trace(batches, *STILL, 10)["loss"].tolist() == pytest.approx([1, 2])


def test_a_model_that_blows_up_ends_it() -> None:
    """Two batches that contradict each other, and steps that double."""
    batches = [(Tensor([[1.0]]), torch.tensor([label])) for label in (0, 1)]
    curve = trace(batches, 0.1, 1e9, 100, weight=0.0)
    assert len(curve) < 100
    assert curve["smoothed"].iloc[-1] > 4 * curve["smoothed"].min()
    assert (curve["smoothed"].iloc[:-1] <= 4 * curve["smoothed"].cummin().iloc[:-1]).all()


def test_a_first_loss_that_is_no_number_is_an_error() -> None:
    message = (
        r"^the loss is no finite number from the first update on, at a learning rate of 1e-30; look at train\.normalize"
    )
    with pytest.raises(InputError, match=message):
        trace([(Tensor([[math.nan]]), torch.tensor([0]))], *STILL, 10)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^a loader without batches; there is nothing to train on"):
        trace([], *STILL, 10)


def test_batches_are_gone_through_again_and_again() -> None:
    batches = make_batches(1.0, 2.0)
    rounds = go_round(batches)
    assert [next(rounds) for _ in range(5)] == [*batches, *batches, batches[0]]


def test_each_round_has_an_order_of_its_own_as_in_training() -> None:
    dataset = TensorDataset(torch.arange(6.0)[:, None] / 6, torch.zeros(6, dtype=torch.int64))
    loaders = make_loaders(dataset, batch_size=2, seed=1)
    expected: list[float] = []
    for epoch in range(2):
        loaders.set_epoch(epoch)
        expected += [torch.log1p(torch.exp(-inputs)).mean().item() for inputs, _ in loaders.train]
    loaders.set_epoch(0)
    curve = trace_loss(OneWeight(1.0), loaders.train, make_params(), Sweep(*STILL, 6))
    assert curve["loss"].tolist() == pytest.approx(expected)
    assert expected[:3] != expected[3:]


@pytest.mark.parametrize(
    "changes", [{"schedule": "cosine", "warmup": 0.5}, {"ema_decay": 0.9}, {"lr": 7.0}, {"epochs": 1}], ids=str
)
def test_schedule_averaging_and_the_rate_of_the_params_are_left_out(changes: dict[str, Any]) -> None:
    batches = make_batches(1.0, 0.5)
    pd.testing.assert_frame_equal(trace(batches, 0.01, 1.0, 8, **changes), trace(batches, 0.01, 1.0, 8))


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adam"}, {"weight_decay": 0.5}, {"clip_norm": 1e-3}, {"loss": "focal"}, {"label_smoothing": 0.2}],
    ids=str,
)
def test_optimiser_and_loss_are_those_of_the_params(changes: dict[str, Any]) -> None:
    batches = make_batches(1.0, 0.5)
    assert not trace(batches, 0.01, 1.0, 8, **changes).equals(trace(batches, 0.01, 1.0, 8))


def test_class_weights_count() -> None:
    """Losses 1 and ln(e - 1 + 1) of one sample of each class: (3 × 1 + 1 × the other) / 4."""
    inputs = Tensor([[-math.log(math.expm1(1.0))]] * 2)
    other = math.log1p(math.exp(float(inputs[0])))
    batch = (inputs, torch.tensor([0, 1]))
    curve = trace_loss(OneWeight(1.0), [batch], make_params(), Sweep(*STILL, 2), Tensor([3.0, 1.0]))
    assert curve["loss"].tolist() == pytest.approx(2 * [(3 + other) / 4])


def test_the_model_its_optimiser_and_all_random_state_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    batches = [(torch.rand(3, 1), torch.tensor([0, 1, 0])) for _ in range(2)]
    optimiser = torch.optim.Adam(model.parameters())
    nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimiser.step()
    model[1].eval()  # neither all in training nor all in evaluation
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    moments = [value.clone() for state in optimiser.state.values() for value in state.values()]
    modes = [module.training for module in model.modules()]
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]

    curve = trace_loss(model, batches, make_params(optimizer="adam"), Sweep(1e-3, 1.0, 9))

    assert curve["loss"].nunique() == len(curve)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    after = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(after) == len(gradients) == 6
    assert all(map(torch.equal, after, gradients))
    assert all(map(torch.equal, [value for state in optimiser.state.values() for value in state.values()], moments))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert np.random.get_state()[1].tolist() == drawn[1]  # type: ignore[index, union-attr]
    assert random.getstate() == drawn[2]


def trace_made(made: Path, *sweep: Any, **changes: Any) -> pd.DataFrame:
    return trace_run(made, made / "images", make_params(**changes), make_run(cache="off"), Sweep(*sweep))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "cnn", "cnn": CNN},
        {"augment": AUGMENT | {"horizontal_flip": 0.5, "crop_padding": 2}},
        {"augment": AUGMENT | {"transform": "RandomHorizontalFlip p=0.5"}},
        {"imbalance": "class_weights"},
        {"imbalance": "weighted_sampler"},
        {"batch_size": "all"},
        {"batch_size": 5, "drop_last": True},
        {"seed": 2},
    ],
    ids=str,
)
def test_model_batches_and_noise_are_those_of_train(made: Path, changes: dict[str, Any]) -> None:
    """At rates that change no weight, the losses are those of train's first two epochs at such a rate."""
    train_model(
        made,
        made / "images",
        make_params(lr=1e-30, epochs=2, **changes),
        make_run(cache="off"),
        made / "run" / "model.safetensors",
        made / "run",
    )
    steps = pd.read_csv(made / "run" / "steps.csv")
    curve = trace_made(made, *STILL, len(steps), **changes)
    assert curve["loss"].tolist() == pytest.approx(steps["loss"].tolist(), abs=1e-6)


def test_a_run_goes_on_from_given_weights(made: Path) -> None:
    """What train made at a loss near 0 begins near 0."""
    trained = train_model(
        made,
        made / "images",
        make_params(lr=1.0, epochs=40, keep="last"),
        make_run(cache="off"),
        made / "run" / "model.safetensors",
        made / "run",
    )
    path = made / "run" / "model.safetensors"
    given = {"pretrained": str(path), "pretrained_sha256": hash_file(path)}
    assert trace_made(made, *STILL, 2, batch_size="all", **given)["loss"].tolist() == pytest.approx(
        [trained.kept["train_loss"]] * 2, abs=1e-5
    )


def test_a_run_writes_no_file(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    first, again = (trace_made(made, 1e-3, 1.0, 9, model="cnn", cnn=CNN) for _ in range(2))
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("name", ["dataset.json", "train.csv", "val.csv"])
def test_a_missing_manifest_is_named_as_train_names_it(made: Path, name: str) -> None:
    (made / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: cannot be read: No such file or directory\. Run the "):
        trace_made(made, 1e-3, 1.0, 9)


def test_what_train_refuses_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match=r"train\.model: unknown model `cn`; did you mean `cnn`\?"):
        trace_made(made, 1e-3, 1.0, 9, model="cn")
    with pytest.raises(InputError, match=r"train\.batch_size: 11 leaves a last batch of one of 12 images"):
        trace_made(made, 1e-3, 1.0, 9, model="cnn", cnn=CNN, batch_size=11)


@pytest.mark.parametrize(
    ("lowest", "highest", "named"),
    [
        (0.1, 0.1, "0.1 to 0.1"),
        (1.0, 1e-6, "1 to 1e-06"),
        (0.0, 1.0, "0 to 1"),
        (-1.0, 1.0, "-1 to 1"),
        (0.1, math.inf, "0.1 to inf"),
        (math.nan, 1.0, "nan to 1"),
        (0.1, math.nan, "0.1 to nan"),
    ],
)
def test_rates_that_do_not_rise_are_refused(lowest: float, highest: float, named: str) -> None:
    with pytest.raises(InputError, match=rf"^learning rates from {named}; expected 0 < from < to <= 1e\+38\.$"):
        Sweep(lowest, highest, 100)


@pytest.mark.parametrize("updates", [1, 0, -3])
def test_fewer_than_two_updates_are_refused(updates: int) -> None:
    with pytest.raises(InputError, match=rf"^learning rates that rise over {updates} updates; expected 2 or more\.$"):
        Sweep(1e-6, 1.0, updates)


def make_curve(losses: Any, lowest: float = 1e-6) -> pd.DataFrame:
    """A curve over six decades, with these smoothed losses."""
    return pd.DataFrame({"lr": np.geomspace(lowest, 1e6 * lowest, len(losses)), "smoothed": losses})


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    """A loss that falls along a logistic curve with its middle at 10^-3, and rises from 10^-1 on."""
    decades = np.linspace(-6, 0, 61)
    losses = 2 / (1 + np.exp(3 * (decades + 3))) + np.maximum(0, 20 * (decades + 1))
    assert suggest_rate(make_curve(losses)) == pytest.approx(1e-3)


def test_the_suggestion_by_hand() -> None:
    """A fifth of ten updates is three at least: what the loss falls by from the one before to the one after counts."""
    losses = [9.0, 9, 9, 8, 5, 4, 4, 4, 4, 4]  # by 1, 4, 4 and 1 about the updates 2 to 5, from 0: of two, the first
    curve = make_curve(losses)
    assert suggest_rate(curve) == curve["lr"][3]


def test_noise_from_update_to_update_does_not_move_it_far() -> None:
    decades = np.linspace(-6, 0, 101)
    noise = np.random.default_rng(1).normal(0, 0.02, 101)
    found = suggest_rate(make_curve(2 / (1 + np.exp(3 * (decades + 3))) + noise))
    assert found is not None
    assert abs(math.log10(found) + 3) < 0.3


def test_a_second_fall_after_the_model_blew_up_is_left_out() -> None:
    decades = np.linspace(-6, 0, 61)
    hump = 9 * np.exp(-8 * (decades + 1.5) ** 2) + np.maximum(0, decades + 2.5)
    losses = 2 / (1 + np.exp(3 * (decades + 4))) + hump
    assert suggest_rate(make_curve(losses)) == pytest.approx(1e-4)


def test_a_first_loss_that_is_the_least_by_chance_hides_nothing() -> None:
    losses = np.linspace(2, 1, 40)
    losses[0] = 0.9
    losses[20:] -= 0.05 * np.arange(20)
    found = suggest_rate(make_curve(losses))
    assert found is not None
    assert found > 1e-3


@pytest.mark.parametrize("losses", [[1.0] * 20, np.linspace(1, 2, 20), [2.0, 1.0]], ids=["flat", "rising", "two"])
def test_where_the_loss_falls_nowhere_nothing_is_suggested(losses: Any) -> None:
    assert suggest_rate(make_curve(losses)) is None
