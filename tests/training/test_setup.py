from pathlib import Path

import pytest
import torch
from torch import nn, optim

from imagepipe.core.errors import InputError
from imagepipe.data.dataset import ManifestDataset
from imagepipe.models.classifier import build_classifier
from imagepipe.training import losses, optimisers
from imagepipe.training.group import Group
from imagepipe.training.setup import check_batch_norm, sample_positions, set_up, share_size
from tests.made import make_model_info
from tests.training.test_params import load_params, make_params


@pytest.mark.parametrize("measured", [0, 10, 11])
def test_all_train_images_are_measured_where_none_are_drawn(measured: int) -> None:
    assert sample_positions(10, make_params(train_measured=measured)).tolist() == list(range(10))


def test_measured_train_images_are_drawn_once_by_the_seed() -> None:
    def draw(seed: int) -> list[int]:
        return sample_positions(100, make_params(train_measured=7, seed=seed)).tolist()

    first = draw(1)
    assert first == sorted(set(first))
    assert len(first) == 7
    assert set(first) <= set(range(100))
    assert draw(1) == first
    assert draw(2) != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "cross"}, r"train\.loss: unknown name `cross`; Known: bce, cross_entropy, focal, nll\."),
        ({"optimizer": "sdg"}, r"train\.optimizer: unknown name `sdg`; did you mean `sgd`\? Known: adagrad, adam,"),
        ({"schedule": "Step"}, r"train\.schedule: unknown name `Step`; did you mean `step`\? Known: constant, cosine,"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unknown_name_is_refused_before_anything_is_made(made: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=rf"^params\.yaml: {message}"):
        set_up(made, made / "images", make_params(**changes))


def test_a_loss_an_optimiser_and_a_schedule_of_ones_own_are_one_line_each(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "mine", lambda params, weights: nn.MultiMarginLoss(weight=weights))
    monkeypatch.setitem(optimisers.OPTIMISERS, "mine", lambda groups, params: optim.NAdam(groups, lr=params.lr))
    monkeypatch.setitem(optimisers.FACTORS, "mine", lambda done, params: 1 - done)
    params = load_params(tmp_path, loss="mine", optimizer="mine", schedule="mine")
    setup = set_up(made, made / "images", params)
    optimiser = optimisers.make_optimiser(setup.model, params)
    assert isinstance(optimiser, optim.NAdam)
    schedule = optimisers.make_schedule(optimiser, params, 4)
    rates: list[float] = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0] / params.lr)
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25])
    assert losses.make_loss(params)(torch.tensor([[1.0, 2.0]]), torch.tensor([1])).item() == 0


def test_shares_of_a_batch() -> None:
    assert [share_size(5, rank, 3) for rank in range(3)] == [2, 2, 1]
    assert [share_size(1, rank, 2) for rank in range(2)] == [1, 0]


def test_a_share_of_one_that_batch_norm_cannot_take_is_refused(made: Path) -> None:
    """Twelve images: of four in a batch, three processes get two, one and one; ten leave two, for two processes."""
    data = ManifestDataset(made / "train.csv", made / "images")
    model = build_classifier(
        make_model_info().model_copy(update={"model": "cnn", "choices": {"base": 2, "stem": "pool", "dropout": 0.5}}), 1
    )
    check_batch_norm(model, data, 4, False, Group(size=2))
    for drop_last in (False, True):
        with pytest.raises(InputError) as caught:
            check_batch_norm(model, data, 4, drop_last, Group(size=3))
        assert str(caught.value) == (
            "train.batch_size: 4 gives one of 3 processes a single image at a time, on which batch norm cannot train; "
            "choose 6 or more."
        )
    check_batch_norm(model, data, 10, True, Group(size=2))
    with pytest.raises(InputError) as caught:
        check_batch_norm(model, data, 10, False, Group(size=2))
    assert str(caught.value) == (
        "train.batch_size: 10 leaves a last batch of one of 12 images among 2 processes, on which batch norm cannot "
        "train; choose another size of 4 or more, or set train.drop_last to true."
    )
