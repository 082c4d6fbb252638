"""[torch] The train stage: manifests and images in, a model file and its history out. The test split is never read."""

import copy
import json
import platform
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagepipe.core.class_counts import find_majority
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import write_csv, write_json
from imagepipe.core.hashes import hash_bytes, hash_file
from imagepipe.core.manifest import DatasetInfo, read_dataset_info, read_split
from imagepipe.core.run import RunParams, count_jobs, find_cache_root
from imagepipe.core.seeds import derive_seed
from imagepipe.data.augment import make_augmentation, make_transform
from imagepipe.data.batches import LoaderOptions, Loaders, make_eval_loader, make_loaders, share_out, shuffle_positions
from imagepipe.data.dataset import ManifestDataset, Transform
from imagepipe.data.pixels import open_cache
from imagepipe.models.classifier import FORMAT, Classifier, ModelInfo, build_classifier, save_classifier
from imagepipe.models.weights import check_pretrained, freeze, load_pretrained
from imagepipe.training.checkpoints import Checkpoints
from imagepipe.training.devices import find_device
from imagepipe.training.diagnosis import suggest_remedy
from imagepipe.training.group import ALONE, Group
from imagepipe.training.imbalance import WeightedSampler, make_class_weights
from imagepipe.training.loop import Fit, Row, fit
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress


@dataclass(frozen=True, slots=True)
class Trained:
    """The model of the epoch that is kept, and that epoch's row of the history: how it did on train and on val.

    `baseline` is the accuracy on val of always saying the class that is most frequent in train. `notes` say what became
    of pretrained weights.
    """

    model: Classifier
    kept: Row
    baseline: float
    notes: list[str]

    @property
    def suggestion(self) -> str:
        """What to try next."""
        return suggest_remedy(self.kept["train_accuracy"], self.kept["val_accuracy"], self.baseline)


def train_model(
    manifests_dir: Path,
    images_dir: Path,
    params: TrainParams,
    run: RunParams,
    model_path: Path,
    reports_dir: Path,
    group: Group = ALONE,
) -> Trained:
    """Train on the manifests, write the model file, `history.csv`, `steps.csv` and `metrics.json`.

    The tables and metrics are rewritten after each epoch, so that plots can be followed while it runs. What is
    measured, train images too, is not augmented. A run that was interrupted goes on from its last checkpoint, and
    leaves the same bytes. Of a `group`, the leading process writes.
    """
    setup = set_up(manifests_dir, images_dir, params, group)
    info, train, model, device = setup.info, setup.train, setup.model, setup.device
    options = choose_options(run, device, group)
    if not group.leads:
        group.take_turns()  # the leading process decodes what is not in the cache
    # The first loader: what it decodes is shared by the others, and by the images that go through a transform.
    train_sample = make_eval_loader(train, params.eval_batch_size, options, sample_positions(len(train), params))
    if group.leads:
        group.take_turns()
    loaders = open_loaders(setup, setup.val, params, options)

    model.to(device)
    if params.compile:
        model.compile()
    class_weights = weigh_classes(params, info, device)
    weights, baseline = sum(weight.numel() for weight in model.parameters()), measure_baseline(info)

    def write(result: Fit, durable: bool = False) -> None:
        if group.leads:
            write_reports(reports_dir, result, summarise(result, baseline, weights), durable)

    key = identify_run(params, info, manifests_dir, device)
    checkpoints = Checkpoints(find_cache_root(run) / "checkpoints", key, 60 * run.checkpoint_minutes, group)
    images_per_epoch = min(len(train), len(loaders.train) * setup.batch_size)
    with report_memory(), Progress(params.epochs, images_per_epoch, shown=group.leads) as progress:
        result = fit(model, loaders, train_sample, params, progress, write, class_weights, checkpoints, group)
    model.load_state_dict(result.kept_weights)
    if group.leads:
        save_classifier(model, model_path)
        write(result, durable=True)
        checkpoints.remove()
    return Trained(model, result.kept, baseline, setup.notes)


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
    check_pretrained(params.pretrained, params.pretrained_sha256)
    device = find_device(params.device, group.local_rank)
    train, val = (open_split(manifests_dir, images_dir, split, info) for split in ("train", "val"))
    model = build_classifier(describe_model(params, info, manifests_dir), derive_seed(params.seed, "weights"))
    notes = load_pretrained(model, params.pretrained)
    freeze(model, params.freeze)
    batch_size = len(train) if params.batch_size == "all" else params.batch_size
    check_last_batch(model, train, batch_size, params.drop_last, group)
    return Setup(info, device, train, val, model, batch_size, notes)


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


def identify_run(params: TrainParams, info: DatasetInfo, manifests_dir: Path, device: str) -> dict[str, str]:
    """All that decides the bytes of a run, by name: a checkpoint of another run is of no use.

    The manifests hold the hashes of all pixels. Processors are told apart by what torch makes use of.
    """
    kept = {name: find_version(name) for name in ("torch", "torchvision", "numpy", "pillow", "timm")}
    processor = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    if device.startswith("cuda"):
        processor.append(torch.cuda.get_device_name(device))
    data = [hash_file(manifests_dir / name) for name in ("dataset.json", "train.csv", "val.csv")]
    return {
        "params": params.model_dump_json(),
        "data": " ".join(data),
        "classes": json.dumps(info.classes),
        "code": hash_code(),
        "versions": json.dumps(kept),
        "processor": " ".join([*processor, device.partition(":")[0]]),
    }


def find_version(package: str) -> str:
    """The version that is installed; '' where none is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def hash_code() -> str:
    """SHA-256 over the code of the packages that training runs."""
    package = Path(__file__).resolve().parents[1]
    files = [path for room in ("core", "data", "models", "training") for path in (package / room).glob("*.py")]
    return hash_bytes("".join(f"{path.name} {hash_file(path)}\n" for path in sorted(files)).encode())


@contextmanager
def report_memory() -> Generator[None]:
    """Say what helps where memory is short, or a process that loads batches has ended."""
    try:
        yield
    # torch has a kind of its own for GPUs alone; a loading process that dies while it hands a batch over breaks a pipe
    except (RuntimeError, MemoryError, ConnectionError, EOFError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
            raise EnvironmentFault(
                f"out of memory while training ({said}); reduce train.batch_size or train.eval_batch_size, or the "
                "size of the model."
            ) from error
        if "DataLoader worker" in said or isinstance(error, ConnectionError | EOFError):
            raise EnvironmentFault(
                f"a process that loads batches has ended ({said}); memory may have been short: reduce run.workers "
                "(0 loads in the main process), or train.batch_size."
            ) from error
        raise


def check_counts(info: DatasetInfo, manifests_dir: Path) -> None:
    """Raise InputError where nothing could be evaluated, or nothing be told apart."""
    if not sum(info.counts.get("test", {}).values()):
        raise InputError(
            f"{manifests_dir}: the test split is empty, so nothing could be evaluated; raise "
            "split.fractions.test in params.yaml."
        )
    learnt = [name for name, count in info.counts["train"].items() if count]
    if len(learnt) < 2:
        raise InputError(
            f"{manifests_dir}/train.csv: has images of {len(learnt)} class only ({', '.join(map(repr, learnt))}); a "
            "classifier needs two. Is the source read as it is meant (fetch.source, fetch.path, fetch.classes)?"
        )


def warn_of_two_remedies(params: TrainParams) -> None:
    """Warn where classes of unlike size are made up for twice."""
    if params.imbalance in ("class_weights", "weighted_sampler") and params.loss == "focal":
        warnings.warn(
            f"train.imbalance is {params.imbalance} and train.loss is focal: two remedies at once make rare classes "
            "count too much; one is enough",
            stacklevel=2,
        )


def measure_baseline(info: DatasetInfo) -> float:
    """The share of val that is of the class most frequent in train; of several, the first in the list of classes."""
    train, val = info.counts["train"], info.counts["val"]
    return val[find_majority({name: train[name] for name in info.classes})] / sum(val.values())


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


def check_last_batch(
    model: Classifier, train: ManifestDataset, batch_size: int, drop_last: bool, group: Group = ALONE
) -> None:
    """Raise InputError where a process gets a single image of a batch and the model's batch norm cannot train on it."""
    batches = [batch_size] if batch_size <= len(train) else []
    if not drop_last and len(train) % batch_size:
        batches.append(len(train) % batch_size)
    if all(share_size(batch, rank, group.size) != 1 for batch in batches for rank in range(group.size)):
        return
    image, _ = train[0]
    try:
        copy.deepcopy(model).train()(image[None])
    except ValueError as error:
        among = f" among {group.size} processes" if group.size > 1 else ""
        raise InputError(
            f"train.batch_size: {batch_size} leaves a last batch of one of {len(train)} images{among}, on which batch "
            "norm cannot train; choose another size above 1, or set train.drop_last to true."
        ) from error


def share_size(samples: int, rank: int, world_size: int) -> int:
    """How many of a batch's samples fall to a process."""
    share = share_out(0, samples, rank, world_size)
    return share.stop - share.start


def sample_positions(count: int, params: TrainParams) -> NDArray[np.int64]:
    """The fixed train images on which every epoch is measured: all, or `train_measured` drawn once."""
    if not 0 < params.train_measured < count:
        return np.arange(count)
    return np.sort(shuffle_positions(count, derive_seed(params.seed, "train_measured"), 0)[: params.train_measured])


def write_reports(reports_dir: Path, result: Fit, metrics: dict[str, object], durable: bool) -> None:
    """Rewrite `history.csv`, `steps.csv` and `metrics.json`."""
    history, steps = pd.DataFrame(result.history).round(6), pd.DataFrame(result.steps).round({"loss": 6, "lr": 9})
    write_csv(reports_dir / "history.csv", history, durable=durable)
    write_csv(reports_dir / "steps.csv", steps, durable=durable)
    write_json(reports_dir / "metrics.json", metrics, durable=durable)


def summarise(result: Fit, baseline: float, weights: int) -> dict[str, object]:
    """`metrics.json` of the train stage: the epoch that is kept, measured on the train images that are, and on val."""
    kept = result.kept
    return {
        "train": {"loss": kept["train_loss"], "accuracy": kept["train_accuracy"]},
        "val": {
            "loss": kept["val_loss"],
            "accuracy": kept["val_accuracy"],
            "balanced_accuracy": kept["val_balanced_accuracy"],
        },
        "baseline": {"val_accuracy": baseline},
        "gap": kept["train_accuracy"] - kept["val_accuracy"],
        "suggestion": suggest_remedy(kept["train_accuracy"], kept["val_accuracy"], baseline),
        "best": {"epoch": result.best["epoch"], "val_accuracy": result.best["val_accuracy"]},
        "last": {"val_accuracy": result.history[-1]["val_accuracy"]},
        "kept_epoch": kept["epoch"],
        "epochs": len(result.history),
        "updates": len(result.steps),
        "weights": weights,
    }
