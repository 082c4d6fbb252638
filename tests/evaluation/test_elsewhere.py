import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import write_json
from imagepipe.core.hashes import hash_file, hash_pixels
from imagepipe.core.manifest import SPLITS, read_manifest
from imagepipe.evaluation.elsewhere import Judged, check_replaceable, format_classes, judge_images, write_judged
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.inference.inputs import Inputs
from imagepipe.inference.predict import predict_images
from imagepipe.models.classifier import Classifier, build_classifier, save_classifier
from tests.conftest import ROOT
from tests.data.made import make_usable
from tests.inference.made import make_model
from tests.made import CLASSES, make_dataset, make_model_info
from tests.report.conftest import PARAMS

MODEL = Path("m.safetensors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the default params and a model of three classes for grey images of 8×8."""
    monkeypatch.chdir(tmp_path)
    set_params({"jobs: 0": "jobs: 1"})
    save_classifier(build_classifier(make_model_info(), 1), MODEL)
    return tmp_path


def set_params(changes: dict[str, str]) -> None:
    """params.yaml as it is by default, but for what is replaced in its text."""
    text = (Path("params.yaml") if Path("params.yaml").exists() else ROOT / "recipes" / "base.yaml").read_text("utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    Path("params.yaml").write_text(text, "utf-8")


def draw(number: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(100 + number).integers(0, 256, (height, width), dtype=np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_folders(names: tuple[str, ...] = ("cat", "cat", "dog", "NA")) -> None:
    """Class folders in `new`: image 0 is a cat, and so on."""
    for number, name in enumerate(names):
        save(Path("new") / name / f"{number}.png", draw(number))


def judge(place: str = "new", ignore_unknown: bool = False, allow_train: bool = False) -> Judged:
    return judge_images(Path(place), MODEL, Path(), PARAMS, ignore_unknown, allow_train)


def test_class_folders_are_judged_by_name(here: Path) -> None:
    save_folders()
    judged = judge()
    table = judged.predictions
    assert table["source"].tolist() == ["NA/3.png", "cat/0.png", "cat/1.png", "dog/2.png"]
    assert table["class"].tolist() == ["NA", "cat", "cat", "dog"]
    assert table["pixel_sha256"].tolist() == [hash_pixels("L", draw(number)) for number in (3, 0, 1, 2)]
    assert set(table["split"]) == {"test"}
    assert (judged.unreadable, judged.ignored) == ([], {})
    assert sorted(path.name for path in here.iterdir()) == ["m.safetensors", "new", "params.yaml"]


def test_where_memory_is_short_the_batch_size_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    save_folders()
    monkeypatch.setattr(Classifier, "forward", lambda *_: torch.empty(2**52, dtype=torch.uint8))
    message = r"^out of memory while images are predicted \(.*\); reduce evaluate\.batch_size in params\.yaml, or free"
    with pytest.raises(EnvironmentFault, match=message):
        judge()


def test_predictions_are_those_of_the_model(here: Path) -> None:
    import torch

    save_folders()
    table = judge().predictions
    model = build_classifier(make_model_info(), 1).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(np.stack([draw(number) for number in (3, 0, 1, 2)])[:, None])).numpy()
    assert np.allclose(table[[f"logit:{name}" for name in CLASSES]].astype(np.float32), logits, atol=1e-6)


def test_a_table_is_judged_whatever_split_its_rows_name(here: Path) -> None:
    save_folders()
    Path("new/list.csv").write_text("file,label,split,site\ndog/2.png,cat,test,north\ncat/0.png,cat,,\n")
    table = judge("new/list.csv").predictions
    assert table["class"].tolist() == ["cat", "cat"]
    assert table["user:site"].tolist() == ["", "north"]


@pytest.mark.parametrize("source", ["table", "folder", "digits"])
def test_the_columns_and_the_folder_that_params_name_count_whatever_the_source(here: Path, source: str) -> None:
    save_folders()
    Path("new/list.csv").write_text("file,wrong,what,kind,who\nx,x,2.png,cat,me\n")
    set_params({"source: digits": f"source: {source}", "path: data/source": "path: new", "images: ''": "images: dog"})
    set_params(
        {"    path: ''": "    path: what", "    label: ''": "    label: kind", "    group: ''": "    group: who"}
    )
    table = judge("new/list.csv").predictions
    assert table[["source", "class", "group"]].to_numpy().tolist() == [["dog/2.png", "cat", "me"]]


def test_what_is_said_of_a_table_without_its_files_helps(here: Path) -> None:
    save_folders()
    Path("new/list.csv").write_text("file,label\n2.png,cat\n")
    with pytest.raises(InputError) as caught:
        judge("new/list.csv")
    assert str(caught.value).splitlines() == [
        "new: none of the files that the table names is there (1):",
        "  list.csv, line 2: 2.png",
        "Name the folder that its paths start from in fetch.table.images in params.yaml.",
    ]
    set_params({"images: ''": "images: dog"})
    assert judge("new/list.csv").predictions["source"].tolist() == ["dog/2.png"]


def test_an_archive_is_read_without_unpacking(here: Path) -> None:
    save_folders()
    shutil.make_archive("packed", "zip", "new")
    folders, packed = judge().predictions, judge("packed.zip").predictions
    assert packed.drop(columns="source").equals(folders.drop(columns="source"))


@pytest.mark.parametrize(
    "conversion", [{}, {"mode": "L", "height": 8, "width": 8, "fit": "pad", "background": 9}], ids=["keep", "pad"]
)
def test_images_are_converted_as_predict_converts_them(here: Path, conversion: dict[str, int | str]) -> None:
    """By what the model file says, whatever stands in params.yaml: the same pixels, so the same probabilities."""
    make_model(MODEL, **conversion)
    set_params({"mode: keep": "mode: RGB", "height: 0": "height: 5", "width: 0": "width: 5"})
    files = make_usable()
    for name, data in files.items():
        path = Path("new/cat", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    judged = judge()
    table = judged.predictions
    predict_images(MODEL, Inputs([f"new/{name}" for name in table["source"]]), Path("p.csv"), "csv", 3, 500, 1)
    rows = [line.split(",") for line in Path("p.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == [f"new/cat/{name}" for name in sorted(files)]
    assert [row[1] for row in rows] == table["predicted"].tolist()
    logits = table[[f"logit:{name}" for name in CLASSES]].astype(np.float32).to_numpy(np.float64)
    for row, shares in zip(rows, softmax(logits, axis=1), strict=True):
        found = dict(zip(row[1::2], map(float, row[2::2]), strict=True))
        assert [found[name] for name in CLASSES] == pytest.approx(shares, abs=1e-6)


def test_what_was_done_to_images_of_another_kind_is_said(here: Path) -> None:
    save_folders(("cat", "dog", "NA"))
    save(Path("new/cat/large.png"), draw(9, 9, 7))
    assert judge(allow_train=True).notes == ["1 image: brought to L 8×8, as all were that the model was made from"]


def test_a_class_that_the_model_does_not_know_is_refused_or_left_out(here: Path) -> None:
    save_folders(("cat", "cot", "cot", "dog"))
    with pytest.raises(InputError) as caught:
        judge()
    lines = str(caught.value).splitlines()
    assert lines[0] == "new: classes that the model does not know (1):"
    assert lines[1].startswith("  'cot', 2 images; did you mean `cat`? Known: NA, cat, dog")
    assert lines[2] == "Rename them, or leave these images out with --ignore-unknown."
    judged = judge(ignore_unknown=True)
    assert judged.ignored == {"cot": 2}
    assert judged.predictions["class"].tolist() == ["cat", "dog"]
    assert "classes of the model without an image here, left out of means over classes (1):\n  'NA'" in judged.notes


def test_where_no_class_is_known_nothing_is_left(here: Path) -> None:
    save_folders(("fox", "owl"))
    with pytest.raises(InputError, match="None is left to judge"):
        judge(ignore_unknown=True)


def test_images_that_cannot_be_read_are_listed_and_the_rest_is_judged(here: Path) -> None:
    save_folders()
    Path("new/cat/broken.png").write_bytes(Path("new/cat/0.png").read_bytes()[:60])
    Path("new/cat/page.jpg").write_text("<html>")
    judged = judge()
    assert len(judged.predictions) == 4
    assert [line.partition(": ")[0] for line in judged.unreadable] == ["cat/broken.png", "cat/page.jpg"]
    assert "begins with b'<html>'" in judged.unreadable[1]


def test_where_no_image_can_be_read_that_is_an_error(here: Path) -> None:
    Path("new/cat").mkdir(parents=True)
    Path("new/cat/page.jpg").write_text("<html>")
    with pytest.raises(InputError, match=r"none of the images can be used \(1\):\n  cat/page\.jpg: is not an image"):
        judge()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["test/cat"], "new: holds the parts test; name the folder of the one that is meant, such as new/test"),
        (["train/cat", "test/cat"], "new: holds the parts test, train; name the folder"),
        ([], "new: holds no class folders with files"),
    ],
)
def test_a_place_without_class_folders_is_refused(here: Path, folders: list[str], message: str) -> None:
    Path("new").mkdir()
    for folder in folders:
        save(Path("new") / folder / "a.png", draw(1))
    with pytest.raises(InputError, match=message):
        judge()


def test_a_part_of_a_dataset_can_be_judged(here: Path) -> None:
    save(Path("new/test/cat/a.png"), draw(1))
    save(Path("new/test/dog/a.png"), draw(2))
    assert judge("new/test").predictions["class"].tolist() == ["cat", "dog"]


def test_a_place_that_is_not_there_is_named(here: Path) -> None:
    with pytest.raises(InputError, match=r"^nowhere: is not there; name class folders, an archive of them, or a table"):
        judge("nowhere")


def make_project(folder: Path) -> None:
    """Manifests and images of train, val and test in data/."""
    manifests = folder / "data" / "manifests"
    manifests.mkdir(parents=True)
    make_dataset(manifests, {split: 3 for split in SPLITS})
    (manifests / "images").rename(folder / "data" / "images")


def save_model_of(train: Path) -> None:
    """The model, now made from this manifest."""
    info = make_model_info().model_copy(update={"manifests": {"train": hash_file(train)}})
    save_classifier(build_classifier(info, 1), MODEL)


def test_images_of_train_are_refused_or_allowed(here: Path) -> None:
    make_project(here)
    save_model_of(Path("data/manifests/train.csv"))
    save_folders()
    assert judge().notes == []
    train = read_manifest(Path("data/manifests/train.csv"))
    shutil.copyfile(Path("data/images") / train["path"].iloc[1], "new/dog/copy.png")
    with pytest.raises(InputError) as caught:
        judge()
    assert str(caught.value).splitlines() == [
        "m.safetensors: was trained on some of these images (1):",
        f"  dog/copy.png is {train['path'].iloc[1]} of train",
        "Leave them out, or let them count with --allow-train.",
    ]
    judged = judge(allow_train=True)
    assert (len(judged.predictions), judged.notes) == (5, [])


def test_without_the_models_own_train_manifest_it_is_said_that_nothing_can_be_told(here: Path) -> None:
    make_project(here)
    save_folders()
    manifest = Path("data/manifests/train.csv")
    train = read_manifest(manifest)
    shutil.copyfile(Path("data/images") / train["path"].iloc[1], "new/dog/copy.png")
    save_model_of(manifest.with_name("val.csv"))
    note = "it cannot be told whether m.safetensors was trained on some of these images: data/manifests/train.csv is "
    assert judge().notes == [f"{note}not the manifest that it was trained on"]
    manifest.unlink()
    judged = judge()
    assert (len(judged.predictions), judged.notes) == (5, [f"{note}not there"])


def change_info(**changes: object) -> None:
    path = Path("data/manifests/dataset.json")
    info = json.loads(path.read_text("utf-8"))
    for section, values in changes.items():
        info[section] |= values
    write_json(path, info)


def test_classes_have_the_names_that_the_project_gives_them(here: Path) -> None:
    make_project(here)
    change_info(source={"chosen": [["kitten", "cat"], ["dog", "dog"]]})
    save_folders(("kitten", "cat", "dog"))
    judged = judge()
    assert judged.predictions["class"].tolist() == ["cat", "dog", "cat"]
    assert "'kitten' counts as 'cat', as fetch.classes has it" in judged.notes


def test_what_is_written_is_what_evaluate_writes(here: Path) -> None:
    save_folders()
    judged = judge()
    metrics, _ = write_judged(Path("out"), judged, PARAMS)
    assert sorted(path.name for path in Path("out").iterdir()) == ["metrics.json", "per_class.csv", "predictions.csv"]
    right = int((judged.predictions["class"] == judged.predictions["predicted"]).sum())
    assert metrics["test"]["accuracy"] == right / 4
    assert metrics["baseline"]["accuracy"] == 0.5  # of `cat`, the most frequent of these images
    assert json.loads(Path("out/metrics.json").read_text())["test"]["images"] == 4
    assert len(read_predictions(Path("out/predictions.csv"))) == 4
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    write_judged(Path("out"), judge(), PARAMS)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_the_constant_answer_is_trains_most_frequent_class_where_that_is_known(here: Path) -> None:
    make_project(here)
    save_folders()
    judged = judge()
    change_info(counts={"train": {"cat": 1, "dog": 9, "NA": 0}})
    assert write_judged(Path("out"), judged, PARAMS)[0]["baseline"]["accuracy"] == 0.25


def test_a_folder_with_other_things_is_not_replaced(here: Path) -> None:
    Path("out").mkdir()
    check_replaceable(Path("out"))
    Path("out/mine.txt").write_text("")
    with pytest.raises(InputError, match=r"--out: out would be replaced, but holds \(1\):\n  mine\.txt\nName a new"):
        check_replaceable(Path("out"))
    with pytest.raises(InputError, match=r"--out: out/mine\.txt would be replaced"):
        check_replaceable(Path("out/mine.txt"))


def test_a_place_that_cannot_be_written_is_the_machines_fault(here: Path) -> None:
    save_folders()
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        judge_images(Path("new"), MODEL, MODEL / "below", PARAMS, ignore_unknown=False, allow_train=False)


def test_classes_are_shown_from_the_worst_on(here: Path) -> None:
    save_folders()
    predictions = judge().predictions.assign(predicted=["NA", "cat", "dog", "cat"])
    _, table = write_judged(Path("out"), replace(judge(), predictions=predictions), PARAMS)
    assert format_classes(table, shown=2).splitlines() == [
        "  images   recall precision  class",
        "       1   0.00 %    0.00 %  dog",
        "       2  50.00 %   50.00 %  cat",
        "… and 1 more, see per_class.csv",
    ]
