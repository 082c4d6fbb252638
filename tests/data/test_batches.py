import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, WeightedRandomSampler

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_pixels
from imagepipe.core.seeds import derive_seed, hash_positions
from imagepipe.data.batches import (
    Batch,
    EpochBatches,
    GatheredDataset,
    LoaderOptions,
    Order,
    make_eval_loader,
    make_loaders,
    share_out,
    shuffle_positions,
    take_ahead,
)
from imagepipe.data.dataset import ManifestDataset
from imagepipe.data.pixels import PixelCache

Pair = tuple[Tensor, Tensor]


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


def same_batches(left: Sequence[Pair], right: Sequence[Pair]) -> bool:
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


def test_no_two_positions_have_one_hash() -> None:
    """Or the order would depend on how it is sorted."""
    hashes = hash_positions(np.arange(100_000), derive_seed(1, "order", 0))
    assert len(np.unique(hashes)) == 100_000
    assert np.array_equal(shuffle_positions(100_000, 1, 0), np.argsort(hashes, kind="stable"))


def test_every_position_is_as_likely_in_every_place() -> None:
    """2000 deals of 10: a place's mean is 4.5 with deviation sqrt((10² - 1) / 12 / 2000) = 0.064, and each position
    is met there 200 times with deviation sqrt(2000 · 0.1 · 0.9) = 13.4. Both bounds are five deviations."""
    orders = np.array([shuffle_positions(10, 1, epoch) for epoch in range(2000)])
    assert np.abs(orders.mean(axis=0) - 4.5).max() < 0.32
    met = np.array([[np.count_nonzero(orders[:, place] == position) for position in range(10)] for place in range(10)])
    assert np.abs(met - 200).max() < 67


def take_epoch(batches: EpochBatches) -> list[list[int]]:
    """The positions of each batch of the coming epoch."""
    return [batch.positions.tolist() for batch in batches]


def test_batches_are_slices_of_the_epochs_order() -> None:
    batches = list(EpochBatches(Order(10, seed=1, shuffle=True), 4))
    assert [batch.positions.tolist() for batch in batches] == [[7, 4, 2, 3], [6, 9, 1, 0], [5, 8]]
    assert all(batch.positions.dtype == np.int64 for batch in batches)
    assert all(batch.positions.base is batches[0].positions.base is not None for batch in batches)
    assert [batch.draws.tolist() for batch in batches] == [batch.positions.tolist() for batch in batches]
    assert [batch.epoch for batch in batches] == [0, 0, 0]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", range(11))
def test_an_epoch_that_is_resumed_is_the_rest_of_it(start: int, drop_last: bool) -> None:
    batches = EpochBatches(Order(10, seed=1, shuffle=True), 4, drop_last)
    batches.set_epoch(1, start)
    left = shuffle_positions(10, 1, 1)[start:].tolist()
    expected = [left[first : first + 4] for first in range(0, len(left), 4)]
    expected = [batch for batch in expected if not drop_last or len(batch) == 4]
    assert len(batches) == len(expected)
    assert take_epoch(batches) == expected
    assert len(batches) == (2 if drop_last else 3)
    assert take_epoch(batches) == take_epoch_of(2, drop_last)


def take_epoch_of(epoch: int, drop_last: bool) -> list[list[int]]:
    batches = EpochBatches(Order(10, seed=1, shuffle=True), 4, drop_last)
    batches.set_epoch(epoch)
    return take_epoch(batches)


@pytest.mark.parametrize("start", [-1, 11])
def test_an_epoch_has_no_samples_before_its_first_or_after_its_last(start: int) -> None:
    batches = EpochBatches(Order(10, seed=1, shuffle=True), 4)
    with pytest.raises(InputError, match=rf"an epoch cannot start after {start} samples: it has 10"):
        batches.set_epoch(0, start)


def test_a_loader_resumes_in_the_middle_of_an_epoch_and_goes_on_with_the_next() -> None:
    loaders, whole = (make_loaders(make_numbered(50), batch_size=8) for _ in range(2))
    epochs = [list_labels(whole.train) for _ in range(3)]
    loaders.set_epoch(1, start=24)
    assert len(loaders.train) == 4
    assert list_labels(loaders.train) == epochs[1][24:]
    assert len(loaders.train) == 7
    assert list_labels(loaders.train) == epochs[2]


@pytest.mark.parametrize(
    ("count", "world_size", "shares"),
    [
        (10, 1, [(0, 10)]),
        (10, 4, [(0, 3), (3, 5), (5, 8), (8, 10)]),
        (2, 4, [(0, 1), (1, 1), (1, 2), (2, 2)]),
        (1, 3, [(0, 1), (1, 1), (1, 1)]),
        (0, 2, [(0, 0), (0, 0)]),
    ],
)
def test_what_falls_to_each_process(count: int, world_size: int, shares: list[tuple[int, int]]) -> None:
    found = [share_out(100, 100 + count, rank, world_size) for rank in range(world_size)]
    assert [(share.start - 100, share.stop - 100) for share in found] == shares


def test_processes_take_each_batch_of_one_process_together() -> None:
    """By hand: the batches of one are 7 4 2 3, 6 9 1 0 and 5 8."""
    shares = [take_epoch(EpochBatches(Order(10, 1, True), 4, rank=rank, world_size=3)) for rank in range(3)]
    assert shares == [[[7, 4], [6, 9], [5]], [[2], [1], [8]], [[3], [0], []]]


@given(
    count=st.integers(0, 20),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    share=st.floats(0, 1),
)
def test_shares_of_all_processes_are_the_batches_of_one(
    count: int, batch_size: int, world_size: int, drop_last: bool, epoch: int, share: float
) -> None:
    def open_batches(rank: int, world_size: int) -> EpochBatches:
        batches = EpochBatches(Order(count, 3, True), batch_size, drop_last, rank, world_size)
        batches.set_epoch(epoch, int(share * count))
        return batches

    alone = take_epoch(open_batches(0, 1))
    processes = [open_batches(rank, world_size) for rank in range(world_size)]
    assert [len(batches) for batches in processes] == [len(alone)] * world_size
    shares = [take_epoch(batches) for batches in processes]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*shares, strict=True))


@given(count=st.integers(1, 20), batch_size=st.integers(1, 9), world_size=st.integers(1, 5), data=st.data())
def test_processes_that_measure_take_each_sample_once(
    count: int, batch_size: int, world_size: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.none() | st.lists(st.integers(0, count - 1), min_size=1))
    found: list[int] = []
    for rank in range(world_size):
        loader = make_eval_loader(
            make_numbered(count), batch_size, LoaderOptions(rank=rank, world_size=world_size), chosen
        )
        labels = [labels.tolist() for _, labels in loader]
        assert len(loader) == len(labels)
        assert all(labels)
        found += chain(*labels)
    assert found == (list(range(count)) if chosen is None else chosen)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_is_none_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match=rf"rank {rank} of 2 processes; ranks go from 0 to world_size - 1"):
        LoaderOptions(rank=rank, world_size=2)


def test_more_processes_than_samples_in_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: 3 is shared by 4 processes, and some would get nothing"):
        make_loaders(make_numbered(8), batch_size=3, options=LoaderOptions(world_size=4))


def keep_images(images: Tensor, epoch: int, draws: NDArray[np.int64]) -> Tensor:
    """An augmentation that changes nothing, and is never asked for nothing."""
    assert len(images)
    return images


@pytest.mark.parametrize("transform", [None, np.array], ids=["pixels", "transform"])
def test_a_share_without_samples_is_a_batch_of_none(tmp_path: Path, transform: Any) -> None:
    """Every process makes the same number of steps, or those that wait for each other would wait for ever."""
    dataset = open_images(tmp_path, [0, 1, 0, 1, 0], transform=transform)
    last = [
        list(
            make_loaders(
                dataset, batch_size=4, augment=keep_images, options=LoaderOptions(rank=rank, world_size=2)
            ).train
        )[-1]
        for rank in range(2)
    ]
    shape = (1, 2, 3) if transform is None else (2, 3)
    assert [tuple(images.shape) for images, _ in last] == [(1, *shape), (0, *shape)]
    assert [(images.dtype, labels.dtype, len(labels)) for images, labels in last] == [
        (torch.uint8, torch.int64, 1),
        (torch.uint8, torch.int64, 0),
    ]


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


def test_images_of_a_batch_lie_in_memory_as_those_of_the_dataset(tmp_path: Path) -> None:
    """Channels last, or the arithmetic of the model would take another way, and end in other bits."""
    dataset = open_images(tmp_path, [1, 0, 1])
    images, _ = next(iter(make_loaders(dataset, batch_size=2).train))
    assert images.stride() == dataset.pixels.stride() == (6, 1, 3, 1)


def test_a_tensor_dataset_is_gathered_as_it_lies() -> None:
    generator = torch.Generator().manual_seed(1)
    dataset = TensorDataset(torch.rand(7, 3, 4, 5, generator=generator), torch.arange(7))
    images, labels = next(iter(make_eval_loader(dataset, 3, positions=[6, 0, 6])))
    assert torch.equal(images, dataset.tensors[0][[6, 0, 6]])
    assert images.is_contiguous()
    assert labels.tolist() == [6, 0, 6]


@pytest.mark.parametrize(("side", "gathered"), [(28, [300]), (100, [24, 6]), (224, [3] * 10), (600, [3] * 10)])
def test_small_batches_are_gathered_several_at_once(side: int, gathered: list[int]) -> None:
    """Batches of 3: a quarter of a MiB holds 111 of 28×28, 8 of 100×100, 1 of 224×224, and none of larger ones."""
    count = sum(gathered)
    dataset = GatheredDataset(TensorDataset(torch.zeros(count, 1, side, side, dtype=torch.uint8), torch.arange(count)))
    asked: list[int] = []
    gather = dataset.__getitems__

    def note(batch: Batch) -> tuple[Batch, Pair]:
        asked.append(len(batch.positions))
        return gather(batch)

    dataset.__getitems__ = note
    batches = [Batch(5, np.arange(first, first + 3), np.arange(first, first + 3)) for first in range(0, count, 3)]
    found = list(dataset.gather_batches(batches))
    assert [batch for batch, _ in found] == batches
    assert [(tuple(images.shape), labels.tolist()) for _, (images, labels) in found] == [
        ((3, 1, side, side), batch.positions.tolist()) for batch in batches
    ]
    assert asked == gathered


def test_pixels_in_a_file_are_not_read_as_a_whole(tmp_path: Path) -> None:
    """A tebibyte of them, which no memory holds; the file is empty but for its last image."""
    shape = (1 << 20, 1024, 1024, 1)
    with (tmp_path / "pixels").open("wb") as file:
        file.truncate(1 << 40)
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "r+", shape=shape)
    pixels[-1, 1, 2] = 7
    dataset = TensorDataset(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.zeros(shape[0], dtype=torch.int64))
    images, _ = next(iter(make_eval_loader(dataset, 2, positions=[shape[0] - 1, 0])))
    assert tuple(images.shape) == (2, 1, 1024, 1024)
    assert images[0, 0, 1, 2] == 7
    assert images.sum() == 7


def test_what_the_cache_holds_is_not_decoded_again(tmp_path: Path) -> None:
    def load(folder: Path) -> list[Pair]:
        dataset = ManifestDataset(tmp_path / "images.csv", folder)
        options = LoaderOptions(cache=PixelCache(tmp_path / "cache", most_bytes=10**9, memory_bytes=10**9))
        return list(make_loaders(dataset, batch_size=2, options=options).train)

    open_images(tmp_path, [1, 0, 1])
    hashes = [hash_pixels("L", np.full((2, 3), number, np.uint8)) for number in range(3)]
    rows = "".join(f"{number}.png,{number},{digest}\n" for number, digest in enumerate(hashes))
    (tmp_path / "images.csv").write_text("path,label,pixel_sha256\n" + rows, "utf-8")
    assert same_batches(load(tmp_path), load(tmp_path / "nowhere"))


def test_pixels_in_a_file_go_to_a_worker_by_its_name(tmp_path: Path) -> None:
    dataset = open_images(tmp_path, [1, 0, 1])
    dataset.load_pixels(PixelCache(tmp_path / "cache", most_bytes=10**9, memory_bytes=0))
    sent = pickle.dumps(GatheredDataset(dataset))
    assert dataset.pixels.numpy().tobytes() not in sent
    positions = np.array([2, 0])
    _, (images, labels) = pickle.loads(sent).__getitems__(Batch(0, positions, positions))
    assert torch.equal(images, dataset.pixels[[2, 0]])
    assert labels.tolist() == [1, 1]


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
    assert list_labels(make_eval_loader(make_numbered(10), 2, positions=[1, 5, 8])) == [1, 5, 8]


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


class Listed(Sampler[int]):
    """Yields positions that it is given, and remembers which epochs it was told."""

    def __init__(self, positions: list[int], length: int | None = None) -> None:
        super().__init__()
        self.positions = positions
        self.length = len(positions) if length is None else length
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


def test_a_sampler_that_knows_epochs_is_told_each() -> None:
    sampler = Listed([2, 0, 1])
    loaders = make_loaders(make_numbered(3), batch_size=2, sampler=sampler)
    list_labels(loaders.train)
    list_labels(loaders.train)
    loaders.set_epoch(7)
    list_labels(loaders.train)
    assert sampler.epochs == [0, 1, 7]


def test_a_samplers_order_is_resumed_and_shared_as_any_other() -> None:
    sampler = Listed([4, 4, 0, 3, 1, 2, 0])
    shares: list[list[int]] = []
    for rank in range(2):
        options = LoaderOptions(rank=rank, world_size=2)
        loaders = make_loaders(make_numbered(5), batch_size=4, sampler=sampler, drop_last=True, options=options)
        loaders.set_epoch(0, start=1)
        shares.append(list_labels(loaders.train))
    assert shares == [[4, 0], [3, 1]]


def test_a_sample_that_a_sampler_takes_again_draws_other_numbers() -> None:
    batch = next(iter(EpochBatches(Order(5, 1, True, Listed([4, 0, 4, 4, 0, 1])), 6)))
    assert batch.positions.tolist() == [4, 0, 4, 4, 0, 1]
    assert batch.draws.tolist() == [4, 0, 9, 14, 5, 1]
    assert batch.draws.dtype == np.int64


def test_a_sampler_that_errs_in_its_length_is_refused() -> None:
    loaders = make_loaders(make_numbered(5), batch_size=2, sampler=Listed([0, 1, 2], length=4))
    with pytest.raises(InputError, match=r"the sampler yielded 3 positions, but its length is 4"):
        list_labels(loaders.train)


@pytest.mark.parametrize("position", [-1, 5])
def test_positions_that_the_dataset_has_not_are_refused(position: int) -> None:
    message = rf"position {position} in a dataset of 5 samples; positions go from 0 to 4"
    with pytest.raises(InputError, match=message):
        list_labels(make_loaders(make_numbered(5), batch_size=2, sampler=Listed([0, position])).train)
    with pytest.raises(InputError, match=message):
        make_eval_loader(make_numbered(5), 2, positions=[0, position])


def test_a_batch_larger_than_what_the_sampler_takes_is_refused_where_drop_last_leaves_none() -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: 4 is more than the 3 train images"):
        make_loaders(make_numbered(9), batch_size=4, sampler=Listed([0, 1, 2]), drop_last=True)


def test_a_transform_makes_what_is_batched(tmp_path: Path) -> None:
    dataset = open_images(tmp_path, [0, 1, 0, 1], transform=np.array)
    images, labels = next(iter(make_loaders(dataset, batch_size=4, shuffle=False).train))
    assert images.shape == (4, 2, 3)
    assert images[:, 1, 2].tolist() == [0, 1, 2, 3]
    assert labels.tolist() == [0, 1, 0, 1]


class Shaded(Dataset[tuple[Tensor, int]]):
    """Samples that are what `change` makes of their number."""

    def __init__(self, count: int, change: Callable[[int], Any]) -> None:
        self.count = count
        self.change = change

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.change(index), index


def draw_number(image: object) -> Tensor:
    """What a transform that draws at random draws."""
    return torch.rand(())


def list_draws(loader: DataLoader[Any]) -> dict[int, float]:
    """What each sample drew, by its label."""
    return {label: value for images, labels in loader for label, value in zip(labels.tolist(), images.tolist())}  # noqa: B905


def test_what_a_transform_draws_depends_on_seed_epoch_and_position() -> None:
    def open_train(seed: int = 1, **options: Any) -> DataLoader[Any]:
        return make_loaders(Shaded(20, draw_number), batch_size=6, seed=seed, **options).train

    train = open_train()
    first, second = list_draws(train), list_draws(train)
    assert len(set(first.values()) | set(second.values())) == 40
    assert list_draws(open_train(seed=2)) != first
    assert list_draws(open_train(shuffle=False)) == first


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": 20}], ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_it_depends_on_no_batch_size_and_no_worker(options: dict[str, int], workers: int) -> None:
    dataset = Shaded(20, draw_number)
    plain = make_loaders(dataset, dataset, batch_size=6).train
    other = make_loaders(dataset, **options, options=LoaderOptions(workers=workers, start_method="fork")).train
    for _ in range(2):
        assert list_draws(other) == list_draws(plain)


def test_it_depends_on_no_number_of_processes_and_on_no_resuming() -> None:
    dataset = Shaded(20, draw_number)
    whole = list_draws(make_loaders(dataset, batch_size=6).train)
    found: dict[int, float] = {}
    for rank in range(3):
        found |= list_draws(make_loaders(dataset, batch_size=6, options=LoaderOptions(rank=rank, world_size=3)).train)
    assert found == whole
    resumed = make_loaders(dataset, batch_size=6)
    resumed.set_epoch(0, start=12)
    rest = list_draws(resumed.train)
    assert len(rest) == 8
    assert rest.items() <= whole.items()


def test_a_sample_that_is_taken_again_is_changed_in_another_way() -> None:
    dataset = Shaded(5, draw_number)
    images, labels = next(iter(make_loaders(dataset, batch_size=4, sampler=Listed([3, 3, 1, 3])).train))
    assert labels.tolist() == [3, 3, 1, 3]
    assert len(set(images.tolist())) == 4
    once = list_draws(make_loaders(dataset, batch_size=4).train)
    assert (images[0], images[2]) == (pytest.approx(once[3]), pytest.approx(once[1]))


def test_what_val_draws_is_the_same_in_every_pass() -> None:
    loaders = make_loaders(make_numbered(4), Shaded(10, draw_number), Shaded(10, draw_number), batch_size=2)
    loaders.set_epoch(5)
    assert loaders.val is not None
    assert loaders.test is not None
    first = list_draws(loaders.val)
    assert len(set(first.values())) == 10
    assert list_draws(loaders.val) == list_draws(loaders.test) == first


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_several_shapes_are_refused_by_their_positions(workers: int) -> None:
    dataset = Shaded(6, lambda index: torch.zeros(3, 4, 5 if index == 2 else 4))
    train = make_loaders(
        dataset,
        batch_size=6,
        shuffle=False,
        options=LoaderOptions(workers=workers, start_method="fork" if workers else None),
    ).train
    with pytest.raises(InputError) as caught:
        list(train)
    assert str(caught.value) == (
        "position 2 of the dataset: shape (3, 4, 5), but position 0 of the same batch has (3, 4, 4); a batch needs "
        "images of one size: let the transform resize or crop to one."
    )


def test_a_transform_that_leaves_a_pil_image_is_refused(tmp_path: Path) -> None:
    train = make_loaders(open_images(tmp_path, [0, 1], transform=lambda image: image), batch_size=2).train
    with pytest.raises(
        InputError, match=r"found <class 'PIL\..*'>\. Let the transform end in a tensor, as ToImage of t"
    ):
        list(train)


def test_an_error_of_a_worker_reaches_the_user_without_a_trace(tmp_path: Path) -> None:
    dataset = open_images(tmp_path, [0, 1], transform=np.array)
    (tmp_path / "1.png").unlink()
    options = LoaderOptions(workers=1, start_method="fork")
    with pytest.raises(InputError, match=r"\A\S*1\.png: no such image"):
        list(make_loaders(dataset, batch_size=2, options=options).train)


class Recorder:
    """In place of an augmentation: the first pixel becomes 100 · epoch + draw, and the calls are remembered."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[int], str]] = []

    def __call__(self, images: Tensor, epoch: int, draws: NDArray[np.int64]) -> Tensor:
        self.calls.append((epoch, draws.tolist(), images.device.type))
        images = images.clone()
        if images.device.type != "meta":
            images[:, 0, 0, 0] = torch.from_numpy(100 * epoch + draws).to(torch.uint8)
        return images


def list_first_pixels(loader: DataLoader[Any]) -> dict[int, int]:
    """The first pixel of each image, by its label."""
    found: dict[int, int] = {}
    for images, labels in loader:
        found |= dict(zip(labels.tolist(), images[:, 0, 0, 0].tolist(), strict=True))
    return found


def test_train_is_augmented_by_epoch_and_position() -> None:
    recorder = Recorder()
    loaders = make_loaders(make_numbered(5), make_numbered(3), make_numbered(2), batch_size=3, augment=recorder)
    assert list_first_pixels(loaders.train) == {label: label for label in range(5)}
    loaders.set_epoch(2)
    assert list_first_pixels(loaders.train) == {label: 200 + label for label in range(5)}
    calls = [(epoch, shuffle_positions(5, 1, epoch).tolist()) for epoch in (0, 2)]
    assert recorder.calls == [(epoch, part, "cpu") for epoch, order in calls for part in (order[:3], order[3:])]


def test_val_and_test_are_not_augmented() -> None:
    recorder = Recorder()
    loaders = make_loaders(make_numbered(5), make_numbered(3), make_numbered(2), batch_size=3, augment=recorder)
    assert loaders.val is not None
    assert loaders.test is not None
    assert list_first_pixels(loaders.val) == {0: 0, 1: 0, 2: 0}
    assert list_first_pixels(loaders.test) == {0: 0, 1: 0}
    assert recorder.calls == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
@pytest.mark.parametrize("transform", [None, lambda image: np.array(image)[None]], ids=["pixels", "transform"])
def test_augmenting_depends_on_no_batch_size_and_no_worker(
    tmp_path: Path, workers: int, batch_size: int, transform: Any
) -> None:
    dataset = open_images(tmp_path, range(10), transform=transform)
    options = LoaderOptions(workers=workers, start_method="fork")
    train = make_loaders(dataset, batch_size=batch_size, augment=Recorder(), options=options).train
    assert list_first_pixels(train) == {label: label for label in range(10)}
    assert list_first_pixels(train) == {label: 100 + label for label in range(10)}


def test_what_is_taken_again_is_augmented_in_another_way() -> None:
    train = make_loaders(make_numbered(5), batch_size=4, sampler=Listed([3, 3, 1, 3]), augment=Recorder()).train
    images, labels = next(iter(train))
    assert labels.tolist() == [3, 3, 1, 3]
    assert images[:, 0, 0, 0].tolist() == [3, 8, 1, 13]


@pytest.mark.parametrize(
    "dataset", [make_numbered(6), Shaded(6, lambda index: torch.zeros(1, 2, 2))], ids=["gathered", "sampled"]
)
def test_batches_arrive_on_the_device_and_are_augmented_there(dataset: Dataset[Any]) -> None:
    """The device `meta` has shapes and no memory; every machine has it."""
    recorder = Recorder()
    loaders = make_loaders(dataset, dataset, batch_size=4, augment=recorder, options=LoaderOptions(device="meta"))
    assert loaders.val is not None
    for loader in (loaders.train, loaders.val):
        assert {(images.device.type, labels.device.type) for images, labels in loader} == {("meta", "meta")}
    assert [device for _, _, device in recorder.calls] == ["meta", "meta"]


@pytest.mark.parametrize("workers", [0, 1])
def test_pinning_changes_no_batch(workers: int) -> None:
    options = LoaderOptions(workers=workers, start_method="fork", pin_memory=True)
    plain, pinned = (
        make_loaders(make_numbered(10), batch_size=4, augment=Recorder(), options=options).train
        for options in (LoaderOptions(), options)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator is found")
        assert same_batches(list(pinned), list(plain))


def test_on_a_gpu_each_batch_is_on_its_way_before_the_one_before_it_is_given_out() -> None:
    asked: list[int] = []

    def make() -> Iterator[int]:
        for number in range(3):
            asked.append(number)
            yield number

    seen = [(batch, list(asked)) for batch in take_ahead(make())]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    assert list(take_ahead(iter([]))) == []


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
    options = LoaderOptions(workers=workers, start_method="fork")
    forked = make_loaders(dataset, dataset, batch_size=6, eval_batch_size=8, options=options)
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
    options = LoaderOptions(workers=workers, start_method="spawn")
    spawned = make_loaders(dataset, batch_size=6, options=options).train
    assert same_batches(list(spawned), list(plain))


COUNT_HANDLES = """
import hashlib, json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from imagepipe.data.batches import LoaderOptions, make_loaders
from imagepipe.data.dataset import ManifestDataset

found = []
for workers in (0, 1, 2):
    dataset = ManifestDataset(sys.argv[1], sys.argv[2])
    train = make_loaders(dataset, batch_size=1, options=LoaderOptions(workers=workers)).train
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
        make_eval_loader(make_numbered(5), 2, positions=[])


def test_manifests_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("path,label\na.png,cat\na.png,cow\na.png,dog\n")
    (tmp_path / "val.csv").write_text("path,label\na.png,cat\na.png,dog\n")
    train, val = (ManifestDataset(tmp_path / name, tmp_path) for name in ("train.csv", "val.csv"))
    with pytest.raises(InputError, match=r"only in train: \['cow'\], only in the other: \[\]\); open the other with"):
        make_loaders(train, val, batch_size=2)
    bound = ManifestDataset(tmp_path / "val.csv", tmp_path, classes=train.classes)
    assert list_labels(make_loaders(train, bound, batch_size=2).val) == [0, 2]
