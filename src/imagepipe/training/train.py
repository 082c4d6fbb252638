"""[torch] The train stage: manifests and images in, a model file and its history out. The test split is never read."""

import copy
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.class_counts import find_majority
from imagepipe.core.errors import InputError
from imagepipe.core.files import write_csv, write_json
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import DatasetInfo, read_dataset_info, read_split
from imagepipe.core.run import RunParams, count_jobs
from imagepipe.core.seeds import derive_seed
from imagepipe.data.augment import make_augmentation, make_transform
from imagepipe.data.batches import LoaderOptions, make_eval_loader, make_loaders, shuffle_positions
from imagepipe.data.dataset import ManifestDataset, Transform
from imagepipe.data.pixels import open_cache
from imagepipe.models.classifier import Classifier, ModelInfo, build_classifier, save_classifier
from imagepipe.models.weights import freeze, load_pretrained
from imagepipe.training.devices import find_device
from imagepipe.training.diagnosis import suggest_remedy
from imagepipe.training.imbalance import WeightedSampler, make_class_weights
from imagepipe.training.loop import Fit, Row, Score, fit, measure
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress


@dataclass(frozen=True, slots=True)
class Trained:
    """The model of the epoch that is kept, and how it does on the whole train split and on val.

    `baseline` is the accuracy on val of always saying the class that is most frequent in train. `notes` say what became
    of pretrained weights.
    """

    model: Classifier
    kept: Row
    train: Score
    val: Score
    baseline: float
    notes: list[str]

    @property
    def suggestion(self) -> str:
        """What to try next."""
        return suggest_remedy(self.train.accuracy, self.val.accuracy, self.baseline)


def train_model(
    manifests_dir: Path, images_dir: Path, params: TrainParams, run: RunParams, model_path: Path, reports_dir: Path
) -> Trained:
    """Train on the manifests, write the model file, `history.csv`, `steps.csv` and `metrics.json`.

    The two tables are rewritten after each epoch, so that plots can be followed while it runs. What is measured, train
    images too, is not augmented.
    """
    info = read_dataset_info(manifests_dir / "dataset.json")
    check_counts(info, manifests_dir)
    warn_of_two_remedies(params)
    train, val = (open_split(manifests_dir, images_dir, split, info) for split in ("train", "val"))
    device = find_device(params.device)
    model = build_classifier(describe_model(params, info, manifests_dir), derive_seed(params.seed, "weights"))
    notes = load_pretrained(model, params.pretrained)
    freeze(model, params.freeze)
    transform = make_transform(params.augment.transform)
    options = LoaderOptions(jobs=count_jobs(run), cache=open_cache(run), workers=run.workers, device=device)
    # The first loader: what it decodes is shared by the others, and by the images that go through a transform.
    whole_train = make_eval_loader(train, params.eval_batch_size, options)
    train_sample = make_eval_loader(train, params.eval_batch_size, options, sample_positions(len(train), params))
    batch_size = len(train) if params.batch_size == "all" else params.batch_size
    loaders = make_loaders(
        transform_dataset(train, transform),
        val,
        batch_size=batch_size,
        eval_batch_size=params.eval_batch_size,
        shuffle=params.shuffle,
        drop_last=params.drop_last,
        seed=params.seed,
        sampler=WeightedSampler(train.labels, params.seed) if params.imbalance == "weighted_sampler" else None,
        augment=make_augmentation(params.augment, params.seed),
        options=options,
    )

    check_last_batch(model, train, batch_size, params.drop_last)
    model.to(device)
    weights = None
    if params.imbalance == "class_weights":
        weights = make_class_weights(info.counts["train"], info.classes).to(device)
    write = partial(write_tables, reports_dir=reports_dir)
    with Progress(params.epochs, min(len(train), len(loaders.train) * batch_size)) as progress:
        result = fit(model, loaders, train_sample, params, progress, write, weights)
    model.load_state_dict(result.kept_weights)
    kept = result.kept
    on_val = Score(kept["val_loss"], kept["val_accuracy"], kept["val_balanced_accuracy"])
    trained = Trained(model, kept, measure(model, whole_train), on_val, measure_baseline(info), notes)
    save_classifier(model, model_path)
    write_json(reports_dir / "metrics.json", summarise(trained, result))
    return trained


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
        format=1,
        model=params.model,
        choices=params.choices,
        normalize=params.normalize,
        classes=info.classes,
        image=info.image,
        mean=info.mean,
        std=info.std,
        manifests={split: hash_file(manifests_dir / f"{split}.csv") for split in ("train", "val")},
    )


def check_last_batch(model: Classifier, train: ManifestDataset, batch_size: int, drop_last: bool) -> None:
    """Raise InputError where a batch holds one image and the model's batch norm cannot train on one."""
    ends_in_one = len(train) % batch_size == 1 and not drop_last
    if batch_size > 1 and not ends_in_one:
        return
    image, _ = train[0]
    try:
        copy.deepcopy(model).train()(image[None])
    except ValueError as error:
        raise InputError(
            f"train.batch_size: {batch_size} leaves a last batch of one of {len(train)} images, on which batch "
            "norm cannot train; choose another size above 1, or set train.drop_last to true."
        ) from error


def sample_positions(count: int, params: TrainParams) -> NDArray[np.int64]:
    """The fixed train images on which every epoch is measured: all, or `train_measured` drawn once."""
    if not 0 < params.train_measured < count:
        return np.arange(count)
    return np.sort(shuffle_positions(count, derive_seed(params.seed, "train_measured"), 0)[: params.train_measured])


def write_tables(result: Fit, reports_dir: Path) -> None:
    """Rewrite `history.csv` and `steps.csv`."""
    write_csv(reports_dir / "history.csv", pd.DataFrame(result.history).round(6))
    write_csv(reports_dir / "steps.csv", pd.DataFrame(result.steps).round({"loss": 6, "lr": 9}))


def summarise(trained: Trained, result: Fit) -> dict[str, object]:
    """`metrics.json` of the train stage: the epoch that is kept, measured on all of train and all of val."""
    weights = sum(weight.numel() for weight in trained.model.parameters())
    return {
        "train": {"loss": trained.train.loss, "accuracy": trained.train.accuracy},
        "val": {
            "loss": trained.val.loss,
            "accuracy": trained.val.accuracy,
            "balanced_accuracy": trained.val.balanced_accuracy,
        },
        "baseline": {"val_accuracy": trained.baseline},
        "gap": trained.train.accuracy - trained.val.accuracy,
        "suggestion": trained.suggestion,
        "best": {"epoch": result.best["epoch"], "val_accuracy": result.best["val_accuracy"]},
        "last": {"val_accuracy": result.history[-1]["val_accuracy"]},
        "kept_epoch": trained.kept["epoch"],
        "epochs": len(result.history),
        "updates": len(result.steps),
        "weights": weights,
    }
