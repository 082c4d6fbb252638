"""[torch] The train stage: manifests and images in, a model file and its history out. The test split is never read."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from imagepipe.core.errors import InputError
from imagepipe.core.files import hash_file, write_csv, write_json
from imagepipe.core.manifest import DatasetInfo, read_dataset_info, read_split
from imagepipe.core.seeds import derive_seed
from imagepipe.data.batches import LoaderOptions, make_eval_loader, make_loaders, shuffle_positions
from imagepipe.data.dataset import ManifestDataset
from imagepipe.models.classifier import Classifier, ModelInfo, build_classifier, save_classifier
from imagepipe.training.loop import Fit, Row, Score, fit, measure
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress


@dataclass(frozen=True, slots=True)
class Trained:
    """The model of the epoch that is kept, and how it does on the whole train split and on val."""

    model: Classifier
    kept: Row
    train: Score
    val: Score


def train_model(
    manifests_dir: Path,
    images_dir: Path,
    params: TrainParams,
    workers: int,
    jobs: int,
    model_path: Path,
    reports_dir: Path,
) -> Trained:
    """Train on the manifests, write the model file, `history.csv`, `steps.csv` and `metrics.json`.

    The two tables are rewritten after each epoch, so that plots can be followed while it runs.
    """
    info = read_dataset_info(manifests_dir / "dataset.json")
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
    train, val = (open_split(manifests_dir, images_dir, split, info) for split in ("train", "val"))
    options = LoaderOptions(workers=workers, jobs=jobs)
    model = build_classifier(describe_model(params, info, manifests_dir), derive_seed(params.seed, "weights"))
    loaders = make_loaders(
        train,
        val,
        batch_size=params.batch_size,
        eval_batch_size=params.eval_batch_size,
        shuffle=params.shuffle,
        drop_last=params.drop_last,
        seed=params.seed,
        workers=workers,
        jobs=jobs,
    )
    train_sample = make_eval_loader(train, params.eval_batch_size, options, sample_positions(len(train), params))
    whole_train = make_eval_loader(train, params.eval_batch_size, options)

    check_last_batch(model, train, params)
    seen = min(len(train), len(loaders.train) * params.batch_size)
    with Progress(params.epochs, seen) as progress:
        result = fit(model, loaders, train_sample, params, progress, lambda so_far: write_tables(so_far, reports_dir))
    model.load_state_dict(result.kept_weights)
    trained = Trained(
        model,
        result.kept,
        measure(model, whole_train),
        Score(float(result.kept["val_loss"]), float(result.kept["val_accuracy"])),
    )
    save_classifier(model, model_path)
    write_json(reports_dir / "metrics.json", summarise(trained, result))
    return trained


def open_split(manifests_dir: Path, images_dir: Path, split: str, info: DatasetInfo) -> ManifestDataset:
    """One split as a dataset; raises InputError where it is empty or its labels disagree with `dataset.json`."""
    path = manifests_dir / f"{split}.csv"
    if read_split(manifests_dir, split, info).empty:
        raise InputError(f"{path}: the {split} split is empty; raise split.fractions.{split} in params.yaml.")
    return ManifestDataset(path, images_dir, classes=info.classes)


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


def check_last_batch(model: Classifier, train: ManifestDataset, params: TrainParams) -> None:
    """Raise InputError where a batch holds one image and the model's batch norm cannot train on one."""
    ends_in_one = len(train) % params.batch_size == 1 and not params.drop_last
    if params.batch_size > 1 and not ends_in_one:
        return
    image, _ = train[0]
    try:
        copy.deepcopy(model).train()(image[None])
    except ValueError as error:
        raise InputError(
            f"train.batch_size: {params.batch_size} leaves a last batch of one of {len(train)} images, on which batch "
            "norm cannot train; choose another size above 1, or set train.drop_last to true."
        ) from error


def sample_positions(count: int, params: TrainParams) -> list[int]:
    """The fixed train images on which every epoch is measured: all, or `train_measured` drawn once."""
    if not 0 < params.train_measured < count:
        return list(range(count))
    drawn = shuffle_positions(count, derive_seed(params.seed, "train_measured"), 0)[: params.train_measured]
    return sorted(drawn.tolist())


def write_tables(result: Fit, reports_dir: Path) -> None:
    """Rewrite `history.csv` and `steps.csv`."""
    write_csv(reports_dir / "history.csv", pd.DataFrame(result.history).round(6))
    write_csv(reports_dir / "steps.csv", pd.DataFrame(result.steps).round({"loss": 6, "lr": 9}))


def summarise(trained: Trained, result: Fit) -> dict[str, object]:
    """`metrics.json` of the train stage: the epoch that is kept, measured on all of train and all of val."""
    weights = sum(weight.numel() for weight in trained.model.parameters())
    return {
        "train": {"loss": trained.train.loss, "accuracy": trained.train.accuracy},
        "val": {"loss": trained.val.loss, "accuracy": trained.val.accuracy},
        "kept_epoch": trained.kept["epoch"],
        "epochs": len(result.history),
        "updates": len(result.steps),
        "weights": weights,
    }
