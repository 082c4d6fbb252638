"""The predictions table: one row for each val and test image; every metric and figure is derived from it.

| column | meaning |
|---|---|
| `split`, `key`, `path`, `group`, `source`, `pixel_sha256` | which image: record key, PNG, where it came from |
| `shard`, `offset`, `length` | only where the images lie in shards: the tar, and which bytes of it |
| `class`, `predicted` | true and predicted class name |
| `loss` | cross-entropy in nats |
| `logit:<class>` | the model's float32 output, in digits that give the same float32 back |
| `user:<name>` | the further columns of the user's own table, as the manifest has them |
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import SHARD_COLUMNS, DatasetInfo, list_user_columns, read_dataset_info, read_split
from imagepipe.core.tables import parse_text_table, read_text_table
from imagepipe.data.pixels import PixelCache
from imagepipe.evaluation.calibration import find_log_probabilities

if TYPE_CHECKING:
    from imagepipe.models.classifier import Classifier, ModelInfo

LOGIT = "logit:"


def predict_splits(
    model_path: Path, manifests_dir: Path, images_dir: Path, batch_size: int, jobs: int, cache: PixelCache | None
) -> "tuple[pd.DataFrame, ModelInfo]":
    """[torch] The predictions table for val and test, each in the order of its manifest, and what the model file says.

    The images come from `cache` as far as it has them, and are decoded by `jobs` processes else.

    Raises InputError where model and data do not belong together (classes, mode, size), test is empty or shares pixels
    with train (unless `split.leaks` kept them), or a logit is not a number.
    """
    from imagepipe.models.classifier import load_classifier

    model = load_classifier(model_path)
    info = read_dataset_info(manifests_dir / "dataset.json")
    check_fit(model.info, info, model_path)
    check_manifests(model.info, manifests_dir, model_path)
    manifests = {split: read_split(manifests_dir, split, info) for split in ("val", "test")}
    check_leaks(manifests["test"], manifests_dir, info)
    tables: list[pd.DataFrame] = []
    for split, manifest in manifests.items():
        path = manifests_dir / f"{split}.csv"
        if manifest.empty:
            if split == "test":
                raise InputError(f"{path}: the test split is empty; raise split.fractions.test in params.yaml.")
            continue
        logits = predict_manifest(model, manifest, path, images_dir, batch_size, jobs, cache)
        tables.append(tabulate_predictions(manifest, logits, info.classes, str(info.split["layout"])))
    return pd.concat(tables, ignore_index=True), model.info


def predict_manifest(
    model: "Classifier",
    manifest: pd.DataFrame,
    path: Path,
    images_dir: Path,
    batch_size: int,
    jobs: int,
    cache: PixelCache | None,
) -> NDArray[np.float32]:
    """[torch] The logits (N, classes) for the rows of a manifest, in their order; `path` is for messages only.

    Raises InputError where an image cannot be decoded or is not the one that the manifest names, EnvironmentFault where
    memory does not suffice.
    """
    import torch

    from imagepipe.data.batches import LoaderOptions, make_eval_loader
    from imagepipe.data.dataset import ManifestDataset
    from imagepipe.models.runtime import report_memory

    dataset = ManifestDataset(path, images_dir, classes=model.info.classes, table=manifest)
    with report_memory(f"the images of {path} are predicted", "reduce evaluate.batch_size, or free memory"):
        dataset.load_pixels(cache, jobs)
        loader = make_eval_loader(dataset, batch_size, LoaderOptions(jobs=jobs))
        with torch.no_grad():
            return torch.cat([model(images) for images, _ in loader]).numpy()


def check_fit(model: "ModelInfo", info: DatasetInfo, model_path: Path) -> None:
    """Raise InputError where the model was made for other classes or images."""
    if model.classes != info.classes:
        missing = sorted(set(model.classes) - set(info.classes))
        added = sorted(set(info.classes) - set(model.classes))
        raise InputError(
            f"{model_path}: its classes differ from dataset.json's (only in the model: {missing}, only in the data: "
            f"{added}); train it again."
        )
    if model.image != info.image:
        made, found = (f"{image.mode} {image.width}×{image.height}" for image in (model.image, info.image))
        raise InputError(f"{model_path}: made for {made} images, but these are {found}; train it again.")


def check_manifests(model: "ModelInfo", manifests_dir: Path, model_path: Path) -> None:
    """Raise InputError where train or val are not those of the model: its own train images could stand in test now."""
    for split, expected in model.manifests.items():
        path = manifests_dir / f"{split}.csv"
        if not path.is_file() or hash_file(path) != expected:
            raise InputError(f"{path}: not the manifest that {model_path} was made from; train it again.")


def check_leaks(test: pd.DataFrame, manifests_dir: Path, info: DatasetInfo) -> None:
    """Raise InputError where test holds the very pixels of a train image and nobody decided to keep that."""
    if info.leaks.policy == "keep":
        return
    shared = list_trained(test, read_split(manifests_dir, "train", info))
    if shared:
        raise InputError(
            list_findings(
                f"{manifests_dir / 'test.csv'}: test images whose very pixels the model was trained on",
                shared,
                "Run the split stage again with split.leaks `drop` in params.yaml, or with `keep` if they shall count.",
            )
        )


def list_trained(table: pd.DataFrame, train: pd.DataFrame, column: str = "path") -> list[str]:
    """Which rows, named by `column`, have the very pixels of an image of train."""
    trained = dict(zip(train["pixel_sha256"], train["path"], strict=True))
    return [
        f"{name} is {trained[pixels]} of train"
        for name, pixels in zip(table[column], table["pixel_sha256"], strict=True)
        if pixels in trained
    ]


def tabulate_predictions(
    manifest: pd.DataFrame, logits: NDArray[np.float32], classes: list[str], layout: str = "single"
) -> pd.DataFrame:
    """The table for one manifest and its logits (N, classes); ties go to the lowest class index.

    With the layout `folders` a path begins with its split, and the key does not.

    Raises InputError where a logit is not a finite number.
    """
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise InputError(
            f"{len(bad)} images have logits that are not finite numbers, the first {manifest['path'].iloc[bad[0]]}; "
            "the model is broken: train it again with a lower train.lr."
        )
    labels = manifest["label"].to_numpy()
    logarithms = find_log_probabilities(logits.astype(np.float64))
    losses = 0.0 - logarithms[np.arange(len(labels)), labels]  # a minus alone would make -0.0 of 0.0
    paths, splits = manifest["path"].tolist(), manifest["split"].tolist()
    prefixes = [f"{split}/" if layout == "folders" else "" for split in splits]
    keys = [path.removesuffix(".png").removeprefix(prefix) for path, prefix in zip(paths, prefixes, strict=True)]
    table = pd.DataFrame(
        {
            "split": splits,
            "key": keys,
            "path": paths,
            "group": manifest["group"].tolist(),
            "source": manifest["source"].tolist(),
            "pixel_sha256": manifest["pixel_sha256"].tolist(),
            **{name: manifest[name].tolist() for name in SHARD_COLUMNS if name in manifest.columns},
            "class": manifest["class"].tolist(),
            "predicted": np.array(classes, dtype=object)[logits.argmax(axis=1)],
            "loss": losses.round(6),
        }
    )
    columns = {f"{LOGIT}{name}": [str(value) for value in logits[:, index]] for index, name in enumerate(classes)}
    carried = manifest.loc[:, list_user_columns(manifest)]
    parts = [table, pd.DataFrame(columns), carried.reset_index(drop=True)]
    return pd.concat(parts, axis=1)


def read_predictions(path: Path) -> pd.DataFrame:
    """`predictions.csv` with text as text, `loss` float64, the logits float32, `offset` and `length` int64.

    Raises InputError where it is none.
    """
    return type_predictions(read_text_table(path), path)


def parse_predictions(data: bytes, path: Path) -> pd.DataFrame:
    """As `read_predictions`, from the bytes of the file; `path` is for messages only."""
    return type_predictions(parse_text_table(data, path), path)


def type_predictions(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table of text as `read_predictions` gives it."""
    logits = [name for name in table.columns if name.startswith(LOGIT)]
    missing = [name for name in ("split", "key", "path", "class", "predicted", "loss") if name not in table.columns]
    if missing or not logits:
        raise InputError(f"{path}: not a predictions table (no {', '.join(missing) or 'logit columns'}).")
    types = {"loss": np.float64, "offset": np.int64, "length": np.int64, **dict.fromkeys(logits, np.float32)}
    typed = {name: type_numbers(table[name], kind, path) for name, kind in types.items() if name in table.columns}
    return table.assign(**typed)


def type_numbers(cells: pd.Series, kind: type[np.number], path: Path) -> pd.Series:
    """The cells as finite numbers of this kind; raises InputError, listing the rows, where one is none."""
    numbers = make_numbers(cells, kind)
    if numbers is not None:
        return numbers
    alone = (pd.Series([cell], dtype=str) for cell in cells)
    wrong = [
        f"row {row}: {cells.name} is {cell.iat[0]!r}"
        for row, cell in enumerate(alone, start=2)
        if make_numbers(cell, kind) is None
    ]
    raise InputError(list_findings(f"{path}: expected numbers", wrong, "Run the evaluate stage again."))


def make_numbers(cells: pd.Series, kind: type[np.number]) -> pd.Series | None:
    """The cells as numbers of this kind; None where one is none, or is not finite."""
    try:
        with np.errstate(over="ignore"):
            numbers = cells.astype(kind)
    except (ValueError, OverflowError):
        return None
    return numbers if np.isfinite(numbers).all() else None
