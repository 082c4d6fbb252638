"""Labelled images from elsewhere, judged as the test split is: read, checked and converted alike, classes by name."""

import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.class_counts import find_majority
from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError, list_findings, suggest_name
from imagepipe.core.files import replace_directory, report_write_errors, write_csv, write_json
from imagepipe.core.hashes import hash_file, hash_pixels
from imagepipe.core.manifest import read_dataset_info, read_manifest
from imagepipe.core.parallel import LocalEngine
from imagepipe.core.progress import open_progress
from imagepipe.core.run import RunParams, count_jobs, load_run_params
from imagepipe.core.slices import FileSlice
from imagepipe.core.unfinished import make_unfinished
from imagepipe.data.conversion import Conversion, Foreign, bring_batches, read_conversion
from imagepipe.evaluation.metrics import list_predicted_classes, measure_predictions, summarise
from imagepipe.evaluation.params import EvaluateParams
from imagepipe.evaluation.predictions import list_trained, read_predictions, tabulate_predictions
from imagepipe.prepare.dataset import list_columns
from imagepipe.prepare.leaks import count_images
from imagepipe.sources import find_source
from imagepipe.sources.names import is_litter, name_part
from imagepipe.sources.params import FetchParams
from imagepipe.sources.records import Record
from imagepipe.sources.table import NONE as NO_COLUMN
from imagepipe.sources.trees import TABLES

if TYPE_CHECKING:
    from imagepipe.models.classifier import Classifier

MANIFESTS = Path("data/manifests")
WRITTEN = ("metrics.json", "per_class.csv", "predictions.csv")


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What became of the images: the predictions, each with the split `test`, and what the user should hear of.

    `unreadable` are the images that cannot be used, with the reason; `ignored` counts, by class, those that were left
    out since the model does not know their class.
    """

    predictions: pd.DataFrame
    unreadable: list[str]
    ignored: Counter[str]
    notes: list[str]


def judge_images(
    place: Path, model_path: Path, scratch: Path, params: EvaluateParams, ignore_unknown: bool, allow_train: bool
) -> Judged:
    """[torch] Predict every image of class folders, an archive of such, or a table, converted as the model's own were.

    What has to be unpacked waits in a folder in `scratch`. Raises InputError where a class is not the model's (unless
    `ignore_unknown`), none of the images can be used, or some are those that it was trained on (unless `allow_train`).
    """
    from imagepipe.models.classifier import load_classifier

    run, model = load_run_params(), load_classifier(model_path)
    conversion = read_conversion(model.info.conversion, model.info.image, str(model_path))
    with report_write_errors(scratch):
        raw_dir = make_unfinished(scratch)
    try:
        records, notes = read_labelled(place, raw_dir, run)
        known, ignored = bind_classes(records, model.info.classes, place, ignore_unknown)
        found = predict_records(model, known, conversion, LocalEngine(count_jobs(run)), params.batch_size)
    finally:
        shutil.rmtree(raw_dir, ignore_errors=True)
    unreadable = sorted(f"{record.source}: {reason}" for record, reason in found.unusable)
    if not found.records:
        raise InputError(list_findings(f"{place}: none of the images can be used", unreadable))
    manifest = make_test_manifest(found.records, found.hashes, model.info.classes)
    if not allow_train:
        notes += check_trained(manifest, model.info.manifests.get("train"), model_path)
    notes += [f"{count_images(count)}: {remark}" for remark, count in sorted(found.remarks.items())]
    notes += describe_absent(manifest, model.info.classes)
    predictions = tabulate_predictions(manifest, np.concatenate(found.logits), model.info.classes)
    return Judged(predictions, unreadable, ignored, notes)


@dataclass(slots=True, eq=False)
class Predicted:
    """Of the records that can be used, in order: `hashes` of their pixels, and `logits` (B, classes) batch by batch."""

    records: list[Record] = field(default_factory=list[Record])
    hashes: list[str] = field(default_factory=list[str])
    logits: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    unusable: list[tuple[Record, str]] = field(default_factory=list[tuple[Record, str]])
    remarks: Counter[str] = field(default_factory=Counter[str])


def predict_records(
    model: "Classifier", records: Sequence[Record], conversion: Conversion, engine: LocalEngine, batch_size: int
) -> Predicted:
    """[torch] What the model says of the images of records, which are files, in the order of their keys."""
    import torch

    from imagepipe.data.dataset import to_channels_first
    from imagepipe.models.runtime import report_memory

    record_of = {record.key: record for record in sorted(records, key=lambda record: record.key)}
    images = [Foreign(key, cast("FileSlice", record.image)) for key, record in record_of.items()]
    found = Predicted()

    def report(key: str, reason: str) -> None:
        found.unusable.append((record_of[key], reason))

    with open_progress("evaluate", len(images)) as advance, torch.inference_mode():
        for keys, pixels in bring_batches(images, conversion, engine, batch_size, report, found.remarks):
            found.records += [record_of[key] for key in keys]
            found.hashes += [hash_pixels(conversion.image.mode, image) for image in pixels]
            with report_memory("images are predicted", "reduce evaluate.batch_size in params.yaml, or free memory"):
                found.logits.append(model(to_channels_first(pixels)).numpy())
            advance(len(keys))
    return found


def make_test_manifest(records: Sequence[Record], hashes: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """The columns of a test manifest (see core/manifest.py) that predictions are tabulated by."""
    label_of = {name: label for label, name in enumerate(classes)}
    return pd.DataFrame(
        {
            "path": [f"{record.key}.png" for record in records],
            "label": [label_of[record.class_name] for record in records],
            "class": [record.class_name for record in records],
            "split": "test",
            "group": [record.group for record in records],
            "pixel_sha256": hashes,
            "source": [record.source for record in records],
            **list_columns(records),
        }
    )


def read_labelled(place: Path, raw_dir: Path, run: RunParams) -> tuple[list[Record], list[str]]:
    """Every labelled image, read as fetch and split read a source of one's own, and what was noticed on the way.

    The columns of a table, and the folder of its images, are those of `fetch.table`, whatever the project's source is.
    Classes have the names that the project gives them: what `fetch.classes` renames or joins is so here, too.
    """
    if not place.exists():
        raise InputError(
            f"{place}: is not there; name class folders, an archive of them, or a table of files and labels."
        )
    if place.is_dir():
        check_parts(place, [path.name for path in place.iterdir() if path.is_dir() and not is_litter(path.name)])
    project = load_section("fetch", FetchParams)
    is_table = place.is_file() and place.suffix.lower() in TABLES
    # Without validation: what a pipeline must not read (an output, a path through `..`) may well be judged.
    params = FetchParams.model_construct(
        source="table" if is_table else "folder",
        name="",
        options="",
        path=str(place.parent if is_table else place),
        url="",
        sha256="",
        max_gigabytes=project.max_gigabytes,
        classes=project.classes,
        table=project.table.model_copy(update={"file": place.name, "split": NO_COLUMN}),
    )
    module = find_source(params.source, "source")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders that Git and DVC do not track, which matters to a pipeline only
        info = module.fetch(params, run, raw_dir)
    records: list[Record] = module.read_records(Path(params.path), raw_dir, info)
    check_parts(place, list({record.part for record in records}))
    renamed = {old: new for old, new in read_renamed() if old != new}
    found = sorted({record.class_name for record in records} & renamed.keys())
    notes = [*info.notes, *(f"{name!r} counts as {renamed[name]!r}, as fetch.classes has it" for name in found)]
    return [replace(record, class_name=renamed.get(record.class_name, record.class_name)) for record in records], notes


def check_parts(place: Path, names: Sequence[str]) -> None:
    """Raise InputError where what should be classes are the parts of a dataset, which are not judged together."""
    parts = sorted(name for name in names if name_part(name))
    if parts and len(parts) == len(names):
        raise InputError(
            f"{place}: holds the parts {', '.join(parts)}; name the folder of the one that is meant, such as "
            f"{place / parts[-1]}."
        )


def read_renamed() -> list[tuple[str, str]]:
    """The pairs (class of the source, its name here) that the data were split by; none where they are not at hand."""
    path = MANIFESTS / "dataset.json"
    if not path.is_file():
        return []
    pairs = read_dataset_info(path).source.get("chosen", [])
    return [(str(old), str(new)) for old, new in pairs] if isinstance(pairs, list) else []


def bind_classes(
    records: Sequence[Record], classes: Sequence[str], place: Path, ignore_unknown: bool
) -> tuple[list[Record], Counter[str]]:
    """The records whose class the model knows, and how many there are of each other class.

    Raises InputError, naming the classes, where there are such and they are not to be ignored, or nothing is left.
    """
    known = set(classes)
    unknown = Counter(record.class_name for record in records if record.class_name not in known)
    kept = [record for record in records if record.class_name in known]
    if unknown and not (ignore_unknown and kept):
        shown = [
            f"{name!r}, {count} images; {suggest_name(name, classes, shown=10)}"
            for name, count in sorted(unknown.items())
        ]
        raise InputError(
            list_findings(
                f"{place}: classes that the model does not know",
                shown,
                "Rename them, or leave these images out with --ignore-unknown." if kept else "None is left to judge.",
            )
        )
    return kept, unknown


def describe_absent(manifest: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """A note on classes of the model that no image has."""
    present = set(manifest["class"])
    absent = [repr(name) for name in classes if name not in present]
    if not absent:
        return []
    return [list_findings("classes of the model without an image here, left out of means over classes", absent)]


def check_trained(manifest: pd.DataFrame, trained: str | None, model_path: Path) -> list[str]:
    """Raise InputError where images are, to the pixel, those of train, whose manifest has the SHA-256 `trained`.

    Where that manifest is not at hand, the note that says so.
    """
    path = MANIFESTS / "train.csv"
    if not path.is_file() or hash_file(path) != trained:
        reason = "not the manifest that it was trained on" if path.is_file() else "not there"
        return [f"it cannot be told whether {model_path} was trained on some of these images: {path} is {reason}"]
    shared = list_trained(manifest, read_manifest(path), "source")
    if shared:
        raise InputError(
            list_findings(
                f"{model_path}: was trained on some of these images",
                shared,
                "Leave them out, or let them count with --allow-train.",
            )
        )
    return []


def write_judged(out: Path, judged: Judged, params: EvaluateParams) -> tuple[dict[str, Any], pd.DataFrame]:
    """Write predictions, metrics and per-class table to the folder `out`, all or nothing; gives the latter two.

    Raises InputError where the folder holds anything else.
    """
    check_replaceable(out)
    with replace_directory(out) as staging:
        write_csv(staging / "predictions.csv", judged.predictions)
        predictions = read_predictions(staging / "predictions.csv")
        measured, temperature = measure_predictions(predictions, params.top_k, params.confidence, params.resamples)
        baseline = float((predictions["class"] == find_usual(predictions)).mean())
        metrics = summarise(measured, temperature, baseline)
        write_json(staging / "metrics.json", metrics)
        write_csv(staging / "per_class.csv", measured["test"].classes)
    return metrics, measured["test"].classes


def check_replaceable(out: Path) -> None:
    """Raise InputError where `out` is no folder, or holds what `write_judged` did not write."""
    if not out.exists():
        return
    strangers = sorted(path.name for path in out.iterdir() if path.name not in WRITTEN) if out.is_dir() else [out.name]
    if strangers:
        raise InputError(
            list_findings(f"--out: {out} would be replaced, but holds", strangers, "Name a new or an empty folder.")
        )


def find_usual(predictions: pd.DataFrame) -> str:
    """The most frequent class of train where that is at hand, else of these images: what a constant answer would be."""
    path = MANIFESTS / "dataset.json"
    classes = list_predicted_classes(predictions)
    if path.is_file():
        info = read_dataset_info(path)
        if info.classes == classes and info.counts.get("train"):
            return find_majority(info.counts["train"])
    counts = predictions["class"].value_counts()
    return find_majority({name: int(counts.get(name, 0)) for name in classes})


def format_classes(table: pd.DataFrame, shown: int = 20) -> str:
    """Of `per_class.csv` the classes with images as text, the lowest recall first; the rest is counted."""
    table = table[table["images"] > 0].sort_values(["recall", "class"], kind="stable")
    lines = [f"{'images':>8} {'recall':>8} {'precision':>9}  class"]
    lines += [
        f"{row['images']:>8,} {100 * row['recall']:>6.2f} % {100 * row['precision']:>7.2f} %  {row['class']}"
        for row in table.head(shown).to_dict("records")
    ]
    if len(table) > shown:
        lines.append(f"… and {len(table) - shown} more, see per_class.csv")
    return "\n".join(lines)
