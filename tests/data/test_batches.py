import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from imagepipe.core.errors import InputError
from imagepipe.data.batches import LoaderOptions, make_eval_loader, make_loaders, shuffle_positions
from imagepipe.data.dataset import ManifestDataset

Batch = tuple[Tensor, Tensor]


def make_numbered(count: int) -> TensorDataset:
    """Sample `i` has label `i` and one grey 28×28 image."""
    return TensorDataset(torch.zeros(count, 1, 28, 28, dtype=torch.uint8), torch.arange(count))


def open_images(folder: Path, labels: Sequence[int], **options: Any) -> ManifestDataset:
    """Images of 3×2 pixels, each filled with the number of its row, and the table that labels them."""
    for number in range(len(labels)):
        Image.new("L", (3, 2), number).save(folder / f"{number}.png")
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (folder / "labels.csv").write_text("path,label\n" + rows, "utf-8")
    return ManifestDataset(folder / "labels.csv", folder, **options)


def list_labels(loader: DataLoader[Any]) -> list[int]:
    """All labels of one pass."""
    return [int(label) for _, labels in loader for label in labels]


def same_batches(left: Sequence[Batch], right: Sequence[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(image, other) and torch.equal(label, number)
        for (image, label), (other, number) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (1, 0, [7, 4, 2, 3, 6, 9, 1, 0, 5, 8]),
        (1, 1, [9, 4, 0, 1, 8, 5, 2, 6, 7, 3]),
        (2, 0, [2, 4, 3, 9, 6, 0, 7, 5, 1, 8]),
        (2**63 - 1, 0, [2, 7, 8, 3, 0, 4, 6, 5, 1, 9]),
    ],
)
def test_the_order_is_pinned(seed: int, epoch: int, expected: list[int]) -> None:
    """Worked out by the formula in unbounded integers; no library's next release may move it."""
    assert shuffle_positions(10, seed, epoch).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_every_position_comes_once(count: int) -> None:
    assert sorted(shuffle_positions(count, 1, 0).tolist()) == list(range(count))


def test_every_position_is_as_likely_in_every_place() -> None:
    """2000 deals of 10: a place's mean is 4.5 with deviation sqrt((10² - 1) / 12 / 2000) = 0.064, and each position
    is met there 200 times with deviation sqrt(2000 · 0.1 · 0.9) = 13.4. Both bounds are five deviations."""
    orders = np.array([shuffle_positions(10, 1, epoch) for epoch in range(2000)])
    assert np.abs(orders.mean(axis=0) - 4.5).max() < 0.32
    met = np.array([[np.count_nonzero(orders[:, place] == position) for position in range(10)] for place in range(10)])
    assert np.abs(met - 200).max() < 67


def test_eighty_rows_at_sixteen_give_five_batches(tmp_path: Path) -> None:
    train = make_loaders(open_images(tmp_path, [number % 4 for number in range(80)]), batch_size=16).train
    assert len(train) == 5
    assert [len(labels) for _, labels in train] == [16] * 5


def test_256_images_at_32_give_eight_batches() -> None:
    train = make_loaders(make_numbered(256), batch_size=32).train
    assert [tuple(images.shape) for images, _ in train] == [(32, 1, 28, 28)] * 8


def test_batches_of_images_are_uint8_with_int64_labels(tmp_path: Path) -> None:
    images, labels = next(iter(make_loaders(open_images(tmp_path, [1, 0, 1]), batch_size=2).train))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (2, 1, 2, 3))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (2,))


def test_each_image_keeps_its_label_through_the_shuffle(tmp_path: Path) -> None:
    labels = [(7 * number) % 5 for number in range(30)]
    for images, numbers in make_loaders(open_images(tmp_path, labels), batch_size=7).train:
        assert [labels[value] for value in images[:, 0, 0, 0].tolist()] == numbers.tolist()


def test_the_first_labels_depend_on_seed_and_epoch() -> None:
    dataset = make_numbered(100)
    first = make_loaders(dataset, batch_size=16, seed=1)
    again = make_loaders(dataset, batch_size=16, seed=1)
    other = make_loaders(dataset, batch_size=16, seed=2)
    epoch_0, epoch_1 = list_labels(first.train)[:10], list_labels(first.train)[:10]
    assert list_labels(again.train)[:10] == epoch_0 == shuffle_positions(100, 1, 0)[:10].tolist()
    assert list_labels(other.train)[:10] != epoch_0
    assert epoch_1 == shuffle_positions(100, 1, 1)[:10].tolist() != epoch_0


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    orders = [list_labels(make_loaders(make_numbered(50), batch_size=size).train) for size in (1, 7, 50)]
    assert orders[0] == orders[1] == orders[2]


def test_each_epoch_holds_every_sample_once() -> None:
    train = make_loaders(make_numbered(50), batch_size=8).train
    for _ in range(3):
        assert sorted(list_labels(train)) == list(range(50))


def test_each_pass_is_the_next_epoch_and_set_epoch_repeats_one() -> None:
    loaders = make_loaders(make_numbered(50), batch_size=8)
    passes = [list_labels(loaders.train) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2] != passes[0]
    loaders.set_epoch(1)
    assert [list_labels(loaders.train) for _ in range(2)] == passes[1:]


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [16, 16, 16]), (False, [16, 16, 16, 2])])
def test_drop_last_leaves_out_what_fills_no_batch(drop_last: bool, sizes: list[int]) -> None:
    train = make_loaders(make_numbered(50), batch_size=16, drop_last=drop_last).train
    assert len(train) == len(sizes)
    assert [len(labels) for _, labels in train] == sizes


def test_val_and_test_are_in_order_and_complete_in_every_pass() -> None:
    loaders = make_loaders(
        make_numbered(8), make_numbered(25), make_numbered(9), batch_size=4, eval_batch_size=10, drop_last=True
    )
    assert loaders.val is not None
    assert loaders.test is not None
    assert [len(labels) for _, labels in loaders.val] == [10, 10, 5]
    assert [list_labels(loaders.val) for _ in range(2)] == [list(range(25))] * 2
    assert list_labels(loaders.test) == list(range(9))


def test_without_val_and_test_there_is_no_loader_for_them() -> None:
    loaders = make_loaders(make_numbered(8), batch_size=4)
    assert (loaders.val, loaders.test) == (None, None)


def test_without_shuffling_the_rows_stay_as_they_are(tmp_path: Path) -> None:
    labels = [0, 1, 0, 2, 1, 2]
    train = make_loaders(open_images(tmp_path, labels), batch_size=4, shuffle=False).train
    assert [list_labels(train) for _ in range(2)] == [labels] * 2


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [2, 1, 1, 0]])
def test_unshuffled_rows_in_class_order_give_a_warning(tmp_path: Path, labels: list[int]) -> None:
    dataset = open_images(tmp_path, labels)
    with pytest.warns(UserWarning, match=r"class order: .* set train\.shuffle to true"):
        make_loaders(dataset, batch_size=4, shuffle=False)


@pytest.mark.parametrize("labels", [[0, 1, 0], [1, 1, 1], [0, 1, 1, 2, 1]])
def test_other_rows_give_none(tmp_path: Path, labels: list[int]) -> None:
    """Warnings are errors here."""
    make_loaders(open_images(tmp_path, labels), batch_size=4, shuffle=False)


def test_shuffled_rows_in_class_order_give_none(tmp_path: Path) -> None:
    make_loaders(open_images(tmp_path, [0, 0, 1, 1]), batch_size=4)


def test_an_eval_loader_over_some_positions_keeps_their_order() -> None:
    assert list_labels(make_eval_loader(make_numbered(10), 2, LoaderOptions(), [1, 5, 8])) == [1, 5, 8]


def test_a_sampler_decides_the_train_order() -> None:
    def draw_weighted() -> WeightedRandomSampler:
        weights = [0.0] * 5 + [1.0] * 5
        return WeightedRandomSampler(weights, 40, generator=torch.Generator().manual_seed(3))

    first, again = (make_loaders(make_numbered(10), batch_size=8, sampler=draw_weighted()) for _ in range(2))
    labels = list_labels(first.train)
    assert len(first.train) == 5
    assert len(labels) == 40
    assert set(labels) == {5, 6, 7, 8, 9}
    assert labels == list_labels(again.train)


def test_a_sampler_of_ones_own_has_no_epoch_to_set() -> None:
    sampler = WeightedRandomSampler([1.0] * 6, 6, generator=torch.Generator().manual_seed(3))
    loaders = make_loaders(make_numbered(6), make_numbered(4), batch_size=2, sampler=sampler)
    loaders.set_epoch(4)
    assert loaders.val is not None
    assert list_labels(loaders.val) == [0, 1, 2, 3]


def test_a_transform_makes_what_is_batched(tmp_path: Path) -> None:
    dataset = open_images(tmp_path, [0, 1, 0, 1], transform=np.array)
    images, labels = next(iter(make_loaders(dataset, batch_size=4, shuffle=False).train))
    assert not dataset.has_pixels
    assert images.shape == (4, 2, 3)
    assert images[:, 1, 2].tolist() == [0, 1, 2, 3]
    assert labels.tolist() == [0, 1, 0, 1]


def test_loading_leaves_torchs_global_generator_alone() -> None:
    train = make_loaders(make_numbered(10), batch_size=4).train
    state = torch.get_rng_state()
    list_labels(train)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("transform", [None, np.array], ids=["pixels", "transform"])
@pytest.mark.parametrize("workers", [1, 2])
def test_forked_workers_change_no_batch(tmp_path: Path, workers: int, transform: Any) -> None:
    dataset = open_images(tmp_path, [number % 3 for number in range(20)], transform=transform)
    plain = make_loaders(dataset, dataset, batch_size=6, eval_batch_size=8)
    forked = make_loaders(dataset, dataset, batch_size=6, eval_batch_size=8, workers=workers, start_method="fork")
    for _ in range(2):
        assert same_batches(list(forked.train), list(plain.train))
    assert plain.val is not None
    assert forked.val is not None
    assert same_batches(list(forked.val), list(plain.val))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "transform"), [(1, np.array), (2, None)], ids=["1-transform", "2-pixels"])
def test_spawned_workers_change_no_batch(tmp_path: Path, workers: int, transform: Any) -> None:
    dataset = open_images(tmp_path, [number % 3 for number in range(20)], transform=transform)
    plain = make_loaders(dataset, batch_size=6).train
    spawned = make_loaders(dataset, batch_size=6, workers=workers, start_method="spawn").train
    assert same_batches(list(spawned), list(plain))


COUNT_HANDLES = """
import hashlib, json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from imagepipe.data.batches import make_loaders
from imagepipe.data.dataset import ManifestDataset

found = []
for workers in (0, 1, 2):
    train = make_loaders(ManifestDataset(sys.argv[1], sys.argv[2]), batch_size=1, workers=workers).train
    digest = hashlib.sha256()
    before = len(os.listdir("/proc/self/fd"))
    for epoch in range(10):
        for images, labels in train:
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    del images, labels  # a batch that came from a worker lies in shared memory and holds its handles
    for _ in range(500):  # the threads of the workers' queues close their pipes a little later
        after = len(os.listdir("/proc/self/fd"))
        if after == before:
            break
        time.sleep(0.01)
    found.append([before, after, digest.hexdigest()])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts file handles in /proc")
def test_ten_epochs_leak_no_file_handle(tmp_path: Path) -> None:
    open_images(tmp_path, [number % 3 for number in range(40)])
    command = [sys.executable, "-W", "error", "-c", COUNT_HANDLES, str(tmp_path / "labels.csv"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert [before for before, _, _ in counts] == [after for _, after, _ in counts]
    assert len({digest for _, _, digest in counts}) == 1


def test_a_batch_larger_than_the_data_is_refused_where_drop_last_leaves_none() -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: 64 is more than the 50 train images, and train\.drop_l"):
        make_loaders(make_numbered(50), batch_size=64, drop_last=True)


def test_a_batch_larger_than_the_data_is_one_short_batch_otherwise() -> None:
    assert len(list_labels(make_loaders(make_numbered(50), batch_size=64).train)) == 50


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_dataset_is_refused(split: str) -> None:
    datasets = {name: make_numbered(0 if name == split else 5) for name in ("train", "val", "test")}
    with pytest.raises(InputError, match=r"a split holds no images; change split\.fractions"):
        make_loaders(**datasets, batch_size=2)


def test_an_eval_loader_over_no_positions_is_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        make_eval_loader(make_numbered(5), 2, LoaderOptions(), [])


def test_manifests_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("path,label\na.png,cat\na.png,cow\na.png,dog\n")
    (tmp_path / "val.csv").write_text("path,label\na.png,cat\na.png,dog\n")
    train, val = (ManifestDataset(tmp_path / name, tmp_path) for name in ("train.csv", "val.csv"))
    with pytest.raises(InputError, match=r"only in train: \['cow'\], only in the other: \[\]\); open the other with"):
        make_loaders(train, val, batch_size=2)
    bound = ManifestDataset(tmp_path / "val.csv", tmp_path, classes=train.classes)
    assert list_labels(make_loaders(train, bound, batch_size=2).val) == [0, 2]
