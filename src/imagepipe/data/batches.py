"""[torch] The order of the samples and the loaders that follow it.

Order depends on (seed, epoch, position) alone: not on workers, processes, batch boundaries or a library's version.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from imagepipe.core.errors import InputError
from imagepipe.core.seeds import derive_seed
from imagepipe.data.dataset import ManifestDataset


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, elementwise (Steele, Lea, Flood: Fast splittable pseudorandom generators, 2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def shuffle_positions(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0 … count-1: the positions sorted by a hash of (seed, epoch, position)."""
    stream = np.uint64(derive_seed(seed, "order", epoch))
    positions = np.arange(count, dtype=np.uint64)
    return np.argsort(mix(mix(positions + stream)), kind="stable")


class EpochSampler(Sampler[int]):
    """Positions 0 … count-1, shuffled anew in each epoch, or in order.

    Every `iter()` begins the next epoch; `set_epoch` says which that is.
    """

    def __init__(self, count: int, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.count = count
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` yield the order of `epoch` (from 0)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        self.epoch += 1
        order = shuffle_positions(self.count, self.seed, epoch) if self.shuffle else np.arange(self.count)
        return iter(order.tolist())


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """Worker processes, how they start, processes that decode; and the seed of what transforms draw in workers."""

    workers: int = 0
    start_method: str | None = None
    jobs: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Loaders:
    """The loaders of one run. `train` is shuffled (or as its sampler says); the others are in order and complete."""

    train: DataLoader[Any]
    val: DataLoader[Any] | None
    test: DataLoader[Any] | None
    order: Sampler[int]

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass over `train` the one of `epoch` (from 0); without it, every pass is the next epoch."""
        set_epoch = getattr(self.order, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


def make_loaders(
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    test: Dataset[Any] | None = None,
    *,
    batch_size: int,
    eval_batch_size: int = 1000,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 1,
    sampler: Sampler[int] | None = None,
    workers: int = 0,
    start_method: str | None = None,
    jobs: int = 1,
) -> Loaders:
    """Loaders over any map-style datasets; batches are (images, labels).

    A ManifestDataset without a transform is decoded once (with `jobs` processes) and gives uint8 (B, C, H, W) and int64
    (B,) by one gather a batch. `sampler` decides the train order instead of `shuffle`. `workers` processes load ahead
    (`start_method` `fork` or `spawn`); they change no batch.

    Raises InputError for an empty dataset, manifests that number their classes differently, or a train set that has no
    full batch while `drop_last` is set. Warns where `shuffle` is False and the rows stand in class order.
    """
    count = count_samples(train)
    if sampler is None:
        if not shuffle and is_sorted_by_class(train):
            warnings.warn(
                "shuffle is off and the train rows stand in class order: each batch holds one class, and training on "
                "it learns little; set train.shuffle to true",
                stacklevel=2,
            )
        sampler = EpochSampler(count, seed, shuffle)
    batches = BatchSampler(sampler, batch_size, drop_last)
    if len(batches) == 0:
        raise InputError(
            f"train.batch_size: {batch_size} is more than the {count} train images, and "
            "train.drop_last leaves no batch; lower the one or set the other to false."
        )

    for other in (val, test):
        check_classes(train, other)
    options = LoaderOptions(workers, start_method, jobs, derive_seed(seed, "workers"))
    return Loaders(
        open_loader(train, batches, options),
        None if val is None else make_eval_loader(val, eval_batch_size, options),
        None if test is None else make_eval_loader(test, eval_batch_size, options),
        sampler,
    )


def make_eval_loader(
    dataset: Dataset[Any], batch_size: int, options: LoaderOptions, positions: Sequence[int] | None = None
) -> DataLoader[Any]:
    """A loader over `positions` (all, where None) in order, each exactly once; raises InputError where none is."""
    order = range(count_samples(dataset)) if positions is None else positions
    if not len(order):
        raise InputError("a loader over no images; name at least one position.")
    return open_loader(dataset, BatchSampler(order, batch_size, drop_last=False), options)


def open_loader(dataset: Dataset[Any], batches: BatchSampler, options: LoaderOptions) -> DataLoader[Any]:
    """The DataLoader behind every loader here: a decoded dataset hands over whole batches, others are collated."""
    collate = None
    if isinstance(dataset, ManifestDataset) and dataset.transform is None:
        dataset.load_pixels(options.jobs)
        dataset, collate = GatheredDataset(dataset.pixels, torch.from_numpy(dataset.labels)), keep_batch
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=options.workers,
        collate_fn=collate,
        multiprocessing_context=options.start_method if options.workers else None,
        generator=torch.Generator().manual_seed(options.seed),  # its own, or each pass would draw from the global one
    )


class GatheredDataset(Dataset[Any]):
    """A whole batch at once: uint8 images (N, C, H, W) and int64 labels (N,), gathered without Python per sample."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[chosen], self.labels[chosen]


def keep_batch(batch: Any) -> Any:
    """The batch as `__getitems__` made it."""
    return batch


def check_classes(train: Dataset[Any], other: Dataset[Any] | None) -> None:
    """Raise InputError where two manifests number their classes differently."""
    if isinstance(train, ManifestDataset) and isinstance(other, ManifestDataset) and train.classes != other.classes:
        only = [
            sorted(set(one) - set(two)) for one, two in ((train.classes, other.classes), (other.classes, train.classes))
        ]
        raise InputError(
            f"two datasets number their classes differently (only in train: {only[0]}, only in the other: {only[1]}); "
            "open the other with classes=train.classes."
        )


def count_samples(dataset: Dataset[Any]) -> int:
    """The dataset's length; raises InputError where it is empty."""
    count = len(dataset)  # pyright: ignore[reportArgumentType]
    if count == 0:
        raise InputError("a split holds no images; change split.fractions in params.yaml.")
    return count


def is_sorted_by_class(dataset: Dataset[Any]) -> bool:
    """Whether a ManifestDataset of several classes holds each class in one run of rows."""
    if not isinstance(dataset, ManifestDataset):
        return False
    runs = 1 + int(np.count_nonzero(np.diff(dataset.labels)))
    return 1 < runs == len(np.unique(dataset.labels))
