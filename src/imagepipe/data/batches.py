"""[torch] The order of the samples, the batches that are cut from it, and the loaders that follow them.

The order, and what is drawn at random for a sample, depend on (seed, epoch, position) alone: not on workers, processes,
batch boundaries or a library's version.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from imagepipe.core.errors import ImagepipeError, InputError
from imagepipe.core.seeds import derive_seed, hash_positions
from imagepipe.data.dataset import ManifestDataset
from imagepipe.data.pixels import PixelCache

# Called as (images, epoch, draws): uint8 (B, C, H, W) on their device, the epoch from 0, and int64 (B,) that number the
# samples (see Batch); gives images of the same shape and type. `imagepipe.data.augment` has it.
Augment = Callable[[Tensor, int, NDArray[np.int64]], Tensor]


GATHERED_BYTES = 2**18  # of images that are gathered at once, where a batch has fewer


def shuffle_positions(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0 … count-1: the positions sorted by a hash of (seed, epoch, position)."""
    # The hash is one to one, so that no two are equal, and every way of sorting gives the same order.
    return np.argsort(hash_positions(np.arange(count), derive_seed(seed, "order", epoch)))


class Batch(NamedTuple):
    """Which samples a loader asks a dataset for.

    `positions` (B,) int64 are rows of the dataset. `draws` (B,) int64 number the samples for what is drawn at random:
    the positions again, but where a sampler takes a row twice in an epoch each time has a number of its own.
    """

    epoch: int
    positions: NDArray[np.int64]
    draws: NDArray[np.int64]

    def cut(self, part: slice) -> "Batch":
        """The samples of a part of it."""
        return Batch(self.epoch, self.positions[part], self.draws[part])


@dataclass(frozen=True, slots=True)
class Order:
    """The samples of each epoch: 0 … count-1 shuffled anew, or as they stand, or what `sampler` yields."""

    count: int
    seed: int
    shuffle: bool
    sampler: Sampler[int] | None = None

    def __len__(self) -> int:
        return self.count if self.sampler is None else len(cast("Sized", self.sampler))

    def list_samples(self, epoch: int) -> Batch:
        """All of an epoch; a sampler that has `set_epoch` is told which. Raises InputError for a sampler that errs."""
        if self.sampler is None:
            positions = shuffle_positions(self.count, self.seed, epoch) if self.shuffle else np.arange(self.count)
            return Batch(epoch, positions, positions)
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        positions = np.fromiter(self.sampler, np.int64)
        if len(positions) != len(self):
            raise InputError(f"the sampler yielded {len(positions)} positions, but its length is {len(self)}.")
        check_positions(positions, self.count)
        times = pd.Series(positions).groupby(positions).cumcount().to_numpy()  # that the position was taken before
        return Batch(epoch, positions, positions + self.count * times)


class EpochBatches(Sampler[Batch]):
    """The batches of one epoch after another. Every pass begins the next epoch; `set_epoch` says which that is.

    Its length is the number of batches of the coming pass.

    Of `world_size` processes, the one of `rank` gets its share of each batch that a single process would get: all take
    the same number of steps, and together they take each sample once. `batch_size` counts the samples of all of them;
    where a last batch has fewer samples than there are processes, the shares of the last of them are empty.
    """

    def __init__(
        self, order: Order, batch_size: int, drop_last: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__()
        self.order = order
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make the next pass that of `epoch` (from 0) without its first `start` samples, which were seen already.

        `start` counts the samples of all processes together.
        """
        if not 0 <= start <= len(self.order):
            raise InputError(f"an epoch cannot start after {start} samples: it has {len(self.order)}.")
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        left = len(self.order) - self.start
        return left // self.batch_size if self.drop_last else -(-left // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, for torch's loader with workers asks for two of them, and takes batches from one.
        samples, start, count = self.order.list_samples(self.epoch), self.start, len(self)
        self.set_epoch(self.epoch + 1)
        last = len(samples.positions)
        for first in range(start, start + count * self.batch_size, self.batch_size):
            yield samples.cut(share_out(first, min(first + self.batch_size, last), self.rank, self.world_size))


def share_out(first: int, last: int, rank: int, world_size: int) -> slice:
    """The part of `first` … `last`-1 that falls to a process: one after the other, and of even size but for one."""
    count = last - first
    return slice(first - (-rank * count // world_size), first - (-(rank + 1) * count // world_size))


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """How batches are brought; no value changes what is in them.

    `jobs` processes decode what is not in `cache`, once, before the first batch. `workers` processes load ahead (0:
    this one loads), started by `start_method` (`fork`, `spawn`; None is the system's own). `pin_memory` copies batches
    to page-locked memory, from where they reach a GPU sooner. They arrive on `device`, each on its way while the one
    before is worked on, and are augmented there; a GPU that has room for all images holds them itself, and needs
    neither workers nor page-locked memory. `rank` of `world_size` processes gets its share of them.
    """

    jobs: int = 1
    cache: PixelCache | None = None
    workers: int = 0
    start_method: str | None = None
    pin_memory: bool = False
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank {self.rank} of {self.world_size} processes; ranks go from 0 to world_size - 1.")


ONE_PROCESS = LoaderOptions()


@dataclass(frozen=True, slots=True)
class Loaders:
    """The loaders of one run. `train` is shuffled (or as its sampler says); the others are in order and complete."""

    train: DataLoader[Any]
    val: DataLoader[Any] | None
    test: DataLoader[Any] | None
    batches: EpochBatches

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make the next pass over `train` the one of `epoch` (from 0), and leave out its first `start` samples.

        Without it, every pass is the whole of the next epoch. To resume, give the samples that were seen: what is left
        comes in the batches in which it would have come.
        """
        self.batches.set_epoch(epoch, start)


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
    augment: Augment | None = None,
    options: LoaderOptions = ONE_PROCESS,
) -> Loaders:
    """Loaders over any map-style datasets of (image, label); batches are (images, labels).

    A ManifestDataset without a transform is decoded once and gives uint8 (B, C, H, W) and int64 (B,) by one gather a
    batch; so does a TensorDataset of two tensors. From other datasets samples are taken one by one: what they draw from
    torch's generator is seeded for each by (seed, epoch, position).

    `sampler` decides the train order instead of `shuffle`. `augment` changes the images of train, and of nothing else.
    With several processes `batch_size` counts the samples of all, and `eval_batch_size` those of each (see EpochBatches
    and make_eval_loader); a sampler has to yield the same positions in all of them.

    Raises InputError for an empty dataset, manifests that number their classes differently, a train set that has no
    full batch while `drop_last` is set, or more processes than samples in a batch. Warns where `shuffle` is False and
    the rows stand in class order.
    """
    count = count_samples(train)
    if sampler is None and not shuffle and is_sorted_by_class(train):
        warnings.warn(
            "shuffle is off and the train rows stand in class order: each batch holds one class, and training on "
            "it learns little; set train.shuffle to true",
            stacklevel=2,
        )
    order = Order(count, seed, shuffle, sampler)
    batches = EpochBatches(order, batch_size, drop_last, options.rank, options.world_size)
    if len(batches) == 0:
        raise InputError(
            f"train.batch_size: {batch_size} is more than the {len(order)} train images, and "
            "train.drop_last leaves no batch; lower the one or set the other to false."
        )
    if batch_size < options.world_size:
        raise InputError(
            f"train.batch_size: {batch_size} is shared by {options.world_size} processes, and some would get nothing; "
            "raise it, or use fewer processes."
        )

    for other in (val, test):
        check_classes(train, other)
    return Loaders(
        Loader(wrap_dataset(train, seed, options), batches, options, augment),
        None if val is None else make_eval_loader(val, eval_batch_size, options, seed=seed),
        None if test is None else make_eval_loader(test, eval_batch_size, options, seed=seed),
        batches,
    )


def make_eval_loader(
    dataset: Dataset[Any],
    batch_size: int,
    options: LoaderOptions = ONE_PROCESS,
    positions: Sequence[int] | NDArray[np.int64] | None = None,
    seed: int = 1,
) -> DataLoader[Any]:
    """A loader over `positions` (all, where None) in order, each exactly once, and alike in every pass.

    Of several processes each gets one run of them, without padding: put together in the order of their ranks, they are
    all. Where there are fewer positions than processes, some loaders have no batch. `seed` is for what the dataset
    draws at random, with the epoch 0.

    Raises InputError where there is no position at all, or one that the dataset has not.
    """
    count = count_samples(dataset)
    order = np.arange(count) if positions is None else np.array(positions, dtype=np.int64)
    if not len(order):
        raise InputError("a loader over no images; name at least one position.")
    check_positions(order, count)
    mine = order[share_out(0, len(order), options.rank, options.world_size)]
    samples = Batch(0, mine, mine)
    batches = [samples.cut(slice(first, first + batch_size)) for first in range(0, len(mine), batch_size)]
    return Loader(wrap_dataset(dataset, seed, options), batches, options)


class Loader(DataLoader[Any]):
    """The DataLoader behind every loader here: it moves the batches to the device and augments them there."""

    def __init__(
        self,
        dataset: "GatheredDataset | SampledDataset",
        batches: EpochBatches | list[Batch],
        options: LoaderOptions,
        augment: Augment | None = None,
    ) -> None:
        held = isinstance(dataset, GatheredDataset) and dataset.rows.device.type != "cpu"
        workers = 0 if held else options.workers
        super().__init__(
            dataset,
            batch_sampler=cast("Any", batches),  # torch has lists of indices in mind, and hands on what it gets
            num_workers=workers,
            collate_fn=keep_batch,
            pin_memory=options.pin_memory and not held,
            multiprocessing_context=options.start_method if workers else None,
            generator=torch.Generator(),  # its own, or each pass would draw from the global one
        )
        self.fetch = dataset.__getitems__
        self.device = torch.device(options.device)
        self.augment = augment

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.device.type == "cpu":
            return self.prepare_batches()
        return take_ahead(self.prepare_batches())

    def prepare_batches(self) -> Iterator[Any]:
        """The batches of a pass, on the device and augmented; what a GPU has to do for it is only begun."""
        for batch, found in self.load_batches():  # no name for it, so that its workers end as soon as an error does
            if isinstance(found, ImagepipeError):
                raise found
            if self.device.type != "cpu":
                found = tuple(part.to(self.device, non_blocking=True) for part in found)
            if self.augment is not None and len(batch.positions):
                images, labels = found
                found = self.augment(images, batch.epoch, batch.draws), labels
            yield found

    def load_batches(self) -> Iterator[tuple[Batch, Any]]:
        """What the dataset gives for each batch of a pass."""
        if self.num_workers or self.pin_memory:
            return super().__iter__()
        # Without them torch's own way round adds nothing but its time, for small images as much as the gather takes.
        batches = cast("Iterable[Batch]", self.batch_sampler)
        if isinstance(self.dataset, GatheredDataset):
            return self.dataset.gather_batches(batches)
        return map(self.fetch, batches)


def take_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, each of which is asked for before the one before it is given out."""
    ahead = list(islice(batches, 1))
    for batch in batches:
        yield ahead.pop()
        ahead.append(batch)
    yield from ahead


def keep_batch(batch: Any) -> Any:
    """The batch as `__getitems__` made it."""
    return batch


def wrap_dataset(dataset: Dataset[Any], seed: int, options: LoaderOptions) -> "GatheredDataset | SampledDataset":
    """The dataset as a Loader wants it: one that hands over whole batches, by one gather where that can be."""
    if isinstance(dataset, ManifestDataset) and dataset.transform is None:
        dataset.load_pixels(options.cache, options.jobs)
        dataset.place_pixels(torch.device(options.device))
        return GatheredDataset(dataset)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return GatheredDataset(dataset)
    return SampledDataset(dataset, seed)


class GatheredDataset(Dataset[Any]):
    """Batches of images (N, …) and labels (N,), gathered at once, without Python for each sample."""

    def __init__(self, source: ManifestDataset | TensorDataset) -> None:
        self.source = source
        if isinstance(source, ManifestDataset):
            images = source.pixels
            self.labels = torch.from_numpy(source.labels).to(images.device)
        else:
            images, self.labels = source.tensors
        # Images are copied whole where they are indexed in the order in which they lie in memory, else pixel by pixel.
        self.channels_last = images.dim() == 4 and images.stride(1) == 1
        self.rows = images.permute(0, 2, 3, 1) if self.channels_last else images

    def __reduce__(self) -> tuple[type["GatheredDataset"], tuple[object]]:
        """A worker that does not share this memory gets what the source makes of itself: a file stays a file."""
        return GatheredDataset, (self.source,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, batch: Batch) -> tuple[Batch, tuple[Tensor, Tensor]]:
        chosen = torch.from_numpy(batch.positions).to(self.rows.device)
        images = self.rows.index_select(0, chosen)
        return batch, (
            images.permute(0, 3, 1, 2) if self.channels_last else images,
            self.labels.index_select(0, chosen),
        )

    def gather_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, tuple[Tensor, Tensor]]]:
        """What `__getitems__` gives for each of `batches`; of small ones, several come from one gather.

        Between two steps of a model, the gather and all that it needs have left the processor's cache: alone, a batch
        of digits takes 50 µs there, where it takes 10 after another.
        """
        image_bytes = self.rows.shape[1:].numel() * self.rows.element_size()
        left = iter(batches)
        for first in left:
            more = GATHERED_BYTES // max(1, len(first.positions) * image_bytes) - 1
            some = [first, *islice(left, max(0, more))]
            positions, draws = (np.concatenate(parts) for parts in zip(*(batch[1:] for batch in some), strict=True))
            _, (images, labels) = self.__getitems__(Batch(first.epoch, positions, draws))
            sizes = [len(batch.positions) for batch in some]
            yield from zip(some, zip(images.split(sizes), labels.split(sizes), strict=True), strict=True)


class SampledDataset(Dataset[Any]):
    """Batches of a map-style dataset, one sample after the other.

    What a sample draws from torch's generator, as torchvision's transforms do, depends on (seed, epoch, position) and,
    where a sampler takes it again in an epoch, on how often it was taken; the generator is left as it was. Python's
    `random` and NumPy's global generator are not seeded: transforms that use those depend on the workers.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(cast("Sized", self.dataset))

    def __getitems__(self, batch: Batch) -> tuple[Batch, Any]:
        """The batch, or the error that stands in its place: raised in a worker, it would reach the user as a trace."""
        try:
            if len(batch.positions):
                return batch, collate_samples(self.take_samples(batch), batch.positions)
            first = Batch(batch.epoch, np.zeros(1, np.int64), np.zeros(1, np.int64))  # tells the shape of none
            return batch, [part[:0] for part in collate_samples(self.take_samples(first), first.positions)]
        except ImagepipeError as error:
            return batch, error

    def take_samples(self, batch: Batch) -> list[Any]:
        """The samples of a batch, each with its own random numbers."""
        seeds = hash_positions(batch.draws, derive_seed(self.seed, "transform", batch.epoch))
        samples: list[Any] = []
        with torch.random.fork_rng(devices=[]):
            for position, seed in zip(batch.positions.tolist(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                samples.append(self.dataset[position])
        return samples


def collate_samples(samples: list[Any], positions: NDArray[np.int64]) -> Any:
    """The samples as a batch of torch's making; raises InputError where they cannot be one, naming the position."""
    shapes = [tuple(getattr(sample[0], "shape", ())) for sample in samples if isinstance(sample, tuple | list)]
    odd = [index for index, shape in enumerate(shapes) if shape != shapes[0]]
    if odd:
        raise InputError(
            f"position {positions[odd[0]]} of the dataset: shape {shapes[odd[0]]}, but position {positions[0]} of the "
            f"same batch has {shapes[0]}; a batch needs images of one size: let the transform resize or crop to one."
        )
    try:
        return default_collate(samples)
    except TypeError as error:
        raise InputError(f"{error}. Let the transform end in a tensor, as ToImage of torchvision does.") from error


def check_positions(positions: NDArray[np.int64], count: int) -> None:
    """Raise InputError for positions that a dataset of `count` samples has not."""
    outside = positions[(positions < 0) | (positions >= count)]
    if len(outside):
        raise InputError(f"position {outside[0]} in a dataset of {count} samples; positions go from 0 to {count - 1}.")


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
