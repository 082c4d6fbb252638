from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.data.dataset import ManifestDataset
from imagepipe.models.classifier import build_classifier
from imagepipe.training.group import Group
from imagepipe.training.setup import check_last_batch, sample_positions, share_size
from tests.made import make_model_info
from tests.training.test_params import make_params


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


def test_shares_of_a_batch() -> None:
    assert [share_size(5, rank, 3) for rank in range(3)] == [2, 2, 1]
    assert [share_size(1, rank, 2) for rank in range(2)] == [1, 0]


def test_a_share_of_one_that_batch_norm_cannot_take_is_refused(made: Path) -> None:
    """Twelve images in batches of four: three processes get two, one and one."""
    data = ManifestDataset(made / "train.csv", made / "images")
    model = build_classifier(
        make_model_info().model_copy(update={"model": "cnn", "choices": {"base": 2, "stem": "pool", "dropout": 0.5}}), 1
    )
    check_last_batch(model, data, 4, False, Group(size=2))
    message = r"train\.batch_size: 4 leaves a last batch of one of 12 images among 3 processes, on which batch norm"
    with pytest.raises(InputError, match=message):
        check_last_batch(model, data, 4, False, Group(size=3))
