"""Labelled images from elsewhere, judged as the test split is: read, checked and converted alike, classes by name."""

import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from imagepipe.core.class_counts import find_majority
from imagepipe.core.config import load_section
from imagepipe.core.engines import open_engine
from imagepipe.core.errors import InputError, list_findings, suggest_name
from imagepipe.core.files import replace_directory, report_write_errors, write_csv, write_json
from imagepipe.core.manifest import read_dataset_info, read_manifest
from imagepipe.core.run import RunParams, count_jobs, load_run_params
from imagepipe.evaluation.metrics import list_predicted_classes, measure_predictions, summarise
from imagepipe.evaluation.params import EvaluateParams
from imagepipe.evaluation.predictions import list_trained, predict_manifest, read_predictions, tabulate_predictions
from imagepipe.prepare.dataset import make_manifest
from imagepipe.prepare.index import MODES, Facts
from imagepipe.prepare.params import ImageParams, SplitParams
from imagepipe.prepare.store import open_store
from imagepipe.sources import find_source
from imagepipe.sources.names import is_litter, name_part
from imagepipe.sources.params import FetchParams, TableParams
from imagepipe.sources.records import Record
from imagepipe.sources.table import NONE as NO_COLUMN
from imagepipe.sources.trees import TABLES

if TYPE_CHECKING:
    from imagepipe.models.classifier import ModelInfo

MANIFESTS = Path("data/manifests")
WRITTEN = ("metrics.json", "per_class.csv", "predictions.csv")
RECOGNISED = TableParams(file="", images="", path="", label="", split="", group="")


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
    """[torch] Predict every image of class folders, an archive of such, or a table; PNGs wait in a folder in `scratch`.

    They are converted as `split.image` in params.yaml says. Raises InputError where a class is not the model's (unless
    `ignore_unknown`), none of the images can be used, their mode or size is not the model's, or some are those that it
    was trained on (unless `allow_train`).
    """
    from imagepipe.models.classifier import load_classifier

    split, run = load_section("split", SplitParams), load_run_params()
    model = load_classifier(model_path)
    with report_write_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".evaluate.", suffix=".part", dir=scratch)
    with made as folder, open_engine(run) as engine:
        raw_dir, images_dir = Path(folder) / "raw", Path(folder) / "images"
        raw_dir.mkdir()
        records, notes = read_labelled(place, raw_dir, run)
        known, ignored = bind_classes(records, model.info.classes, place, ignore_unknown)
        with open_store(images_dir, split.image, engine, shards=False) as store:
            verdict = store.examine(known)
            sources = {record.key: record.source for record in known}
            unreadable = sorted(f"{sources[key]}: {reason}" for key, reason in verdict.rejected.items())
            usable = sorted((record for record in known if record.key in verdict.facts), key=lambda record: record.key)
            if not usable:
                raise InputError(list_findings(f"{place}: none of the images can be used", unreadable))
            check_sizes(usable, verdict.facts, model.info, model_path)
            paths = [f"{record.key}.png" for record in usable]
            _, places = store.place(usable, paths)
        rows = verdict.facts.take_rows([record.key for record in usable])
        splits = {record.key: "test" for record in usable}
        manifest = make_manifest(usable, splits, model.info.classes, rows, paths, places)
        notes += [*describe_conversion(split.image, model.info), *describe_absent(manifest, model.info.classes)]
        if not allow_train:
            check_trained(manifest, model_path)
        logits = predict_manifest(model, manifest, place, images_dir, params.batch_size, count_jobs(run), None)
        predictions = tabulate_predictions(manifest, logits, model.info.classes)
    return Judged(predictions, unreadable, ignored, notes)


def read_labelled(place: Path, raw_dir: Path, run: RunParams) -> tuple[list[Record], list[str]]:
    """Every labelled image, read as fetch and split read a source of one's own, and what was noticed on the way.

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
    columns = project.table if project.source == "table" else RECOGNISED
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
        table=columns.model_copy(update={"file": place.name, "images": "", "split": NO_COLUMN}),
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


def check_sizes(records: Sequence[Record], facts: Facts, model: "ModelInfo", model_path: Path) -> None:
    """Raise InputError where images, as split.image makes them, have not the mode and size that the model expects."""
    rows = facts.take_rows([record.key for record in records])
    kinds = zip(rows["mode"].tolist(), rows["width"].tolist(), rows["height"].tolist(), strict=True)
    wanted = (MODES.index(model.image.mode), model.image.width, model.image.height)
    other = [
        f"{record.source}: {MODES[kind[0]]} {kind[1]}×{kind[2]}"
        for record, kind in zip(records, kinds, strict=True)
        if kind != wanted
    ]
    if other:
        image = model.image
        raise InputError(
            list_findings(
                f"{model_path}: made for {image.mode} {image.width}×{image.height} images, but as split.image in "
                "params.yaml makes them, these are others",
                other,
                f"To convert them, set mode to {image.mode}, width to {image.width} and height to {image.height} in "
                "split.image.",
            )
        )


def describe_conversion(image: ImageParams, model: "ModelInfo") -> list[str]:
    """A note where `split.image` in params.yaml is not what the images of the model's data were converted by."""
    path = MANIFESTS / "dataset.json"
    if not path.is_file():
        return [f"{path} is not there: nobody can tell whether the model's own images were converted alike"]
    info = read_dataset_info(path)
    made = info.split.get("image")
    if info.classes != model.classes or info.image != model.image or not isinstance(made, dict):
        return [f"{path} is not that of the model: nobody can tell whether its own images were converted alike"]
    now = image.model_dump()
    changed = [
        f"split.image.{name} is {now[name]!r} now and was {made.get(name)!r}"
        for name in now
        if now[name] != made.get(name)
    ]
    return [f"the model's own images were converted otherwise: {', '.join(changed)}"] if changed else []


def describe_absent(manifest: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """A note on classes of the model that no image has."""
    present = set(manifest["class"])
    absent = [repr(name) for name in classes if name not in present]
    if not absent:
        return []
    return [list_findings("classes of the model without an image here, left out of means over classes", absent)]


def check_trained(manifest: pd.DataFrame, model_path: Path) -> None:
    """Raise InputError where images are, to the pixel, those of the train manifest that is at hand."""
    path = MANIFESTS / "train.csv"
    if not path.is_file():
        return
    shared = list_trained(manifest, read_manifest(path), "source")
    if shared:
        raise InputError(
            list_findings(
                f"{model_path}: was trained on some of these images",
                shared,
                "Leave them out, or let them count with --allow-train.",
            )
        )


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
