"""[torch] What is trained and on which images: everything is opened, and refused where it must be, before training."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imagepipe.core.class_counts import check_several
from imagepipe.core.errors import InputError, find_named
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import DatasetInfo, read_dataset_info, read_split
from imagepipe.core.run import RunParams, count_jobs
from imagepipe.core.seeds import derive_seed
from imagepipe.data.augment import make_augmentation, make_transform
from imagepipe.data.batches import LoaderOptions, Loaders, make_loaders, share_out, shuffle_positions
from imagepipe.data.dataset import ManifestDataset, Transform
from imagepipe.data.pixels import open_cache
from imagepipe.models.classifier import FORMAT, Classifier, ModelInfo, build_classifier
from imagepipe.models.weights import check_pretrained, freeze, load_pretrained
from imagepipe.training.devices import find_device
from imagepipe.training.group import ALONE, Group
from imagepipe.training.imbalance import WeightedSampler, make_class_weights
from imagepipe.training.losses import LOSSES
from imagepipe.training.optimisers import OPTIMISERS, list_schedules
from imagepipe.training.params import TrainParams


@dataclass(frozen=True, slots=True)
class Setup:
    """What is trained, and on which images; `batch_size` counts those of an update, of all processes together.

    `notes` say what became of pretrained weights. The model is not on the `device` yet.
    """

    info: DatasetInfo
    device: str
    train: ManifestDataset
    val: ManifestDataset
    model: Classifier
    batch_size: int
    notes: list[str]


def set_up(manifests_dir: Path, images_dir: Path, params: TrainParams, group: Group = ALONE) -> Setup:
    """Open train and val and make the model, before any image is decoded but the one that tries batch norm.

    Raises InputError or EnvironmentFault for what the manifests, the params or the machine do not allow.
    """
    info = read_dataset_info(manifests_dir / "dataset.json")
    check_counts(info, manifests_dir)
    warn_of_two_remedies(params)
    check_names(params)
    check_pretrained(params.pretrained, params.pretrained_sha256)
    device = find_device(params.device, group.local_rank)
    train, val = (open_split(manifests_dir, images_dir, split, info) for split in ("train", "val"))
    model = build_classifier(describe_model(params, info, manifests_dir), derive_seed(params.seed, "weights"))
    notes = load_pretrained(model, params.pretrained)
    freeze(model, params.freeze)
    batch_size = len(train) if params.batch_size == "all" else params.batch_size
    check_batch_norm(model, train, batch_size, params.drop_last, group)
    return Setup(info, device, train, val, model, batch_size, notes)


def check_names(params: TrainParams) -> None:
    """Raise InputError for a loss, an optimiser or a schedule that there is not."""
    for key, table in (("loss", LOSSES), ("optimizer", OPTIMISERS), ("schedule", list_schedules())):
        find_named(table, f"train.{key}", getattr(params, key))


def open_loaders(setup: Setup, val: ManifestDataset | None, params: TrainParams, options: LoaderOptions) -> Loaders:
    """The loader of train, in the order and with the augmentation of `params`, and that of `val`."""
    train = setup.train
    return make_loaders(
        transform_dataset(train, make_transform(params.augment.transform)),
        val,
        batch_size=setup.batch_size,
        eval_batch_size=params.eval_batch_size,
        shuffle=params.shuffle,
        drop_last=params.drop_last,
        seed=params.seed,
        sampler=WeightedSampler(train.labels, params.seed) if params.imbalance == "weighted_sampler" else None,
        augment=make_augmentation(params.augment, params.seed),
        options=options,
    )


def weigh_classes(params: TrainParams, info: DatasetInfo, device: str) -> Tensor | None:
    """What each class weighs in the loss, float32 (classes,); None where `train.imbalance` does not ask for it."""
    if params.imbalance != "class_weights":
        return None
    return make_class_weights(info.counts["train"], info.classes).to(device)


def choose_options(run: RunParams, device: str, group: Group) -> LoaderOptions:
    """How batches are brought: on a GPU from its own memory where they fit, else from page-locked memory."""
    return LoaderOptions(
        jobs=count_jobs(run),
        cache=open_cache(run),
        workers=run.workers,
        pin_memory=device.startswith("cuda"),
        device=device,
        rank=group.rank,
        world_size=group.size,
    )


def check_counts(info: DatasetInfo, manifests_dir: Path) -> None:
    """Raise InputError where nothing could be evaluated, or nothing be told apart."""
    if not sum(info.counts.get("test", {}).values()):
        raise InputError(
            f"{manifests_dir}: the test split is empty, so nothing could be evaluated; raise "
            "split.fractions.test in params.yaml."
        )
    check_several((name for name, count in info.counts["train"].items() if count), f"{manifests_dir}/train.csv")


def warn_of_two_remedies(params: TrainParams) -> None:
    """Warn where classes of unlike size are made up for twice."""
    if params.imbalance in ("class_weights", "weighted_sampler") and params.loss == "focal":
        warnings.warn(
            f"train.imbalance is {params.imbalance} and train.loss is focal: two remedies at once make rare classes "
            "count too much; one is enough",
            stacklevel=2,
        )


def open_split(manifests_dir: Path, images_dir: Path, split: str, info: DatasetInfo) -> ManifestDataset:
    """One split as a dataset; raises InputError where it is empty or its labels disagree with `dataset.json`."""
    path = manifests_dir / f"{split}.csv"
    table = read_split(manifests_dir, split, info)
    if table.empty:
        raise InputError(f"{path}: the {split} split is empty; raise split.fractions.{split} in params.yaml.")
    return ManifestDataset(path, images_dir, classes=info.classes, table=table)


def transform_dataset(dataset: ManifestDataset, transform: Transform | None) -> ManifestDataset:
    """The same dataset with another transform; it shares the images that are decoded."""
    transformed = copy.copy(dataset)
    transformed.transform = transform
    return transformed


def describe_model(params: TrainParams, info: DatasetInfo, manifests_dir: Path) -> ModelInfo:
    """What the model file will say: sizes come from the data, choices from the params."""
    return ModelInfo(
        format=FORMAT,
        model=params.model,
        choices=params.choices,
        normalize=params.normalize,
        classes=info.classes,
        image=info.image,
        mean=info.mean,
        std=info.std,
        manifests={split: hash_file(manifests_dir / f"{split}.csv") for split in ("train", "val")},
        conversion=cast("dict[str, int | str]", info.split["image"]),
    )


def check_batch_norm(
    model: Classifier, train: ManifestDataset, batch_size: int, drop_last: bool, group: Group = ALONE
) -> None:
    """Raise InputError where a process gets a single image of a batch and the model's batch norm cannot train on it."""
    enough = f"{2 * group.size} or more"
    rest = 0 if drop_last else len(train) % batch_size
    if batch_size <= len(train) and leaves_one(batch_size, group):
        one = f"one of {group.size} processes" if group.size > 1 else "the model"
        problem = (
            f"{batch_size} gives {one} a single image at a time, on which batch norm cannot train; choose {enough}."
        )
    elif leaves_one(rest, group):
        among = f" among {group.size} processes" if group.size > 1 else ""
        problem = (
            f"{batch_size} leaves a last batch of one of {len(train)} images{among}, on which batch norm cannot train; "
            f"choose another size of {enough}, or set train.drop_last to true."
        )
    else:
        return
    image, _ = train[0]
    try:
        copy.deepcopy(model).train()(image[None])
    except ValueError as error:
        raise InputError(f"train.batch_size: {problem}") from error


def leaves_one(samples: int, group: Group) -> bool:
    """Whether a process gets just one of a batch's samples."""
    return any(share_size(samples, rank, group.size) == 1 for rank in range(group.size))


def share_size(samples: int, rank: int, world_size: int) -> int:
    """How many of a batch's samples fall to a process."""
    share = share_out(0, samples, rank, world_size)
    return share.stop - share.start


def sample_positions(count: int, params: TrainParams) -> NDArray[np.int64]:
    """The fixed train images on which every epoch is measured: all, or `train_measured` drawn once."""
    if not 0 < params.train_measured < count:
        return np.arange(count)
    return np.sort(shuffle_positions(count, derive_seed(params.seed, "train_measured"), 0)[: params.train_measured])
