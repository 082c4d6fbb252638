import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import write_csv, write_json
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import DatasetInfo, read_manifest
from imagepipe.data.pixels import PixelCache
from imagepipe.evaluation.predictions import (
    check_fit,
    parse_predictions,
    predict_splits,
    read_predictions,
    tabulate_predictions,
)
from imagepipe.models.classifier import Classifier, ModelInfo, build_classifier, save_classifier
from tests.data.made import pack_shards
from tests.evaluation.made import make_table
from tests.made import CLASSES, make_dataset, make_dataset_info, make_model_info


def make_manifest(labels: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{number:05d}.png" for number in range(len(labels))],
            "label": labels,
            "class": [CLASSES[label] for label in labels],
            "split": "test",
            "group": [f"group {number}" for number in range(len(labels))],
            "source": [f"made#{number}" for number in range(len(labels))],
            "pixel_sha256": "0" * 64,
        }
    )


def test_loss_and_class_of_logits_worked_out_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    table = tabulate_predictions(make_manifest([0, 1]), logits, CLASSES)
    assert table["predicted"].tolist() == ["cat", "NA"]
    assert table["loss"].tolist() == pytest.approx([math.log(2), math.log(10)], abs=2e-6)
    assert table["key"].tolist() == ["00000", "00001"]


def test_the_loss_of_a_certain_right_class_is_written_without_a_sign() -> None:
    table = tabulate_predictions(make_manifest([1]), np.array([[0.0, 1000.0, 0.0]], np.float32), CLASSES)
    assert table["loss"].to_csv(index=False) == "loss\n0.0\n"


def test_a_tie_goes_to_the_lowest_class_index() -> None:
    table = tabulate_predictions(make_manifest([2]), np.array([[1.0, 3.0, 3.0]], np.float32), CLASSES)
    assert table["predicted"].tolist() == ["dog"]


def test_huge_logits_do_not_overflow() -> None:
    table = tabulate_predictions(make_manifest([1]), np.array([[1e30, 0.0, 0.0]], np.float32), CLASSES)
    assert math.isfinite(table["loss"][0])


def test_logits_come_back_as_the_same_float32(tmp_path: Path) -> None:
    logits = np.array([[0.1, 1 / 3, -1e-30], [np.float32(16777217), np.pi, 1e20]], np.float32)
    write_csv(tmp_path / "predictions.csv", tabulate_predictions(make_manifest([0, 1]), logits, CLASSES))
    table = read_predictions(tmp_path / "predictions.csv")
    assert np.array_equal(table[[f"logit:{name}" for name in CLASSES]].to_numpy(), logits)
    assert table["class"].tolist() == ["cat", "dog"]


def test_a_class_called_na_stays_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", tabulate_predictions(make_manifest([2]), np.eye(3, dtype=np.float32)[2:], CLASSES))
    assert read_predictions(tmp_path / "p.csv")["predicted"].tolist() == ["NA"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_logits_that_are_not_finite(bad: float) -> None:
    logits = np.array([[0.0, 1.0, 2.0], [0.0, bad, 1.0]], np.float32)
    with pytest.raises(InputError, match=r"1 images have logits that are not finite numbers, the first 00001\.png"):
        tabulate_predictions(make_manifest([0, 1]), logits, CLASSES)


def test_refuses_other_classes_by_name() -> None:
    model = make_model_info(classes=["cat", "dog", "fox"])
    with pytest.raises(InputError, match=r"only in the model: \['fox'\], only in the data: \['NA'\]"):
        check_fit(model, make_dataset_info(), Path("model.safetensors"))


def test_refuses_the_same_classes_in_another_order() -> None:
    model = make_model_info(classes=["dog", "cat", "NA"])
    with pytest.raises(InputError, match="its classes differ"):
        check_fit(model, make_dataset_info(), Path("model.safetensors"))


def test_refuses_images_of_another_size() -> None:
    model = make_model_info(width=9)
    with pytest.raises(InputError, match="made for L 9×8 images, but these are L 8×8"):
        check_fit(model, make_dataset_info(), Path("model.safetensors"))


def test_refuses_a_table_that_is_no_predictions_table(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("split,key\ntest,1\n")
    with pytest.raises(InputError, match=r"p\.csv: not a predictions table \(no path, class, predicted, loss\)"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("column", "cell"), [("loss", "low"), ("loss", "inf"), ("logit:dog", ""), ("logit:dog", "1e39"), ("offset", "1.5")]
)
def test_refuses_a_cell_that_is_no_number_and_names_its_row(column: str, cell: str) -> None:
    table = make_table([True, False]).assign(offset=0).astype(str)
    table.loc[1, column] = cell
    with pytest.raises(InputError) as caught:
        parse_predictions(table.to_csv(index=False).encode(), Path("p.csv"))
    assert str(caught.value) == (
        f"p.csv: expected numbers (1):\n  row 3: {column} is {cell!r}\nRun the evaluate stage again."
    )


def save_model(path: Path, info: ModelInfo) -> None:
    save_classifier(build_classifier(info, 1), path)


def test_predicts_val_and_test_in_the_order_of_the_manifests(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 4, "test": 5})
    save_model(tmp_path / "m.safetensors", make_model_info())
    for batch_size in (2, 100):
        table, info = predict_splits(
            tmp_path / "m.safetensors", tmp_path, tmp_path / "images", batch_size, jobs=1, cache=None
        )
        assert table["split"].tolist() == ["val"] * 4 + ["test"] * 5
        assert table["key"].tolist() == sorted(table["key"][:4]) + sorted(table["key"][4:])
        assert info.classes == CLASSES


def test_predictions_are_those_of_the_model(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 0, "test": 2})
    save_model(tmp_path / "m.safetensors", make_model_info())
    table, _ = predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 10, jobs=1, cache=None)
    from imagepipe.data.dataset import ManifestDataset

    dataset = ManifestDataset(tmp_path / "test.csv", tmp_path / "images")
    model = build_classifier(make_model_info(), 1).eval()
    with torch.no_grad():
        logits = model(torch.stack([dataset[0][0], dataset[1][0]])).numpy()
    written = table[[f"logit:{name}" for name in CLASSES]].astype(np.float32).to_numpy()
    assert np.array_equal(written, logits)


def break_model(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict two images with a model that raises this error."""

    def fail(*_: object) -> None:
        raise error

    make_dataset(folder, {"train": 3, "val": 0, "test": 2})
    save_model(folder / "m.safetensors", make_model_info())
    monkeypatch.setattr(Classifier, "forward", fail)
    predict_splits(folder / "m.safetensors", folder, folder / "images", 10, jobs=1, cache=None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory\nat line 7"), "DefaultCPU.*: can't allocate memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_where_memory_is_short_the_batch_size_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    message = (
        rf"^out of memory while the images of .*test\.csv are predicted \({said}\); reduce evaluate\.batch_size, "
        r"or free memory\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        break_model(error, tmp_path, monkeypatch)


def test_other_errors_go_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        break_model(RuntimeError("a bug"), tmp_path, monkeypatch)


def test_refuses_an_empty_test_split(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 2, "test": 0})
    save_model(tmp_path / "m.safetensors", make_model_info())
    with pytest.raises(InputError, match=r"test\.csv: the test split is empty; raise split\.fractions\.test"):
        predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 10, jobs=1, cache=None)


def test_refuses_a_model_of_another_split(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 2, "test": 2})
    made_of = {"train": hash_file(tmp_path / "train.csv"), "val": "0" * 64}
    save_model(tmp_path / "m.safetensors", make_model_info().model_copy(update={"manifests": made_of}))
    with pytest.raises(InputError, match=r"val\.csv: not the manifest that .*m\.safetensors was made from"):
        predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 10, jobs=1, cache=None)


def share_pixels(folder: Path, count: int) -> DatasetInfo:
    """A dataset whose first test images have the pixels of the first train images."""
    info = make_dataset(folder, {"train": count + 1, "val": 2, "test": count + 1})
    train, test = read_manifest(folder / "train.csv"), read_manifest(folder / "test.csv")
    for path, other in zip(train["path"][:count], test["path"][:count], strict=True):
        shutil.copyfile(folder / "images" / path, folder / "images" / other)
    test.loc[: count - 1, "pixel_sha256"] = train["pixel_sha256"][:count]
    write_csv(folder / "test.csv", test)
    return info


def test_refuses_test_pixels_that_stand_in_train(tmp_path: Path) -> None:
    share_pixels(tmp_path, 25)
    save_model(tmp_path / "m.safetensors", make_model_info())
    with pytest.raises(InputError) as caught:
        predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 10, jobs=1, cache=None)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'test.csv'}: test images whose very pixels the model was trained on (25):"
    assert lines[1] == "  00028.png is 00000.png of train"
    assert lines[21] == "  … and 5 more"
    assert "split.leaks `drop` in params.yaml, or with `keep`" in lines[22]


def test_takes_test_pixels_that_stand_in_train_where_that_was_decided(tmp_path: Path) -> None:
    info = share_pixels(tmp_path, 1)
    kept = info.model_copy(update={"leaks": info.leaks.model_copy(update={"policy": "keep"})})
    write_json(tmp_path / "dataset.json", kept.model_dump())
    save_model(tmp_path / "m.safetensors", make_model_info())
    table, _ = predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 10, jobs=1, cache=None)
    assert table["split"].tolist() == ["val"] * 2 + ["test"] * 2


def test_carries_the_users_columns_to_the_end(tmp_path: Path) -> None:
    manifest = make_manifest([0, 1]).iloc[::-1]  # an index that is not 0, 1
    manifest["user:logit:site"] = ["NA", "007"]
    manifest["user:age"] = ["", "1e5"]
    write_csv(tmp_path / "p.csv", tabulate_predictions(manifest, np.eye(2, 3, dtype=np.float32), CLASSES))
    table = read_predictions(tmp_path / "p.csv")
    assert table.columns[-5:].tolist() == ["logit:cat", "logit:dog", "logit:NA", "user:logit:site", "user:age"]
    assert table[["key", "user:logit:site", "user:age"]].to_numpy().tolist() == [
        ["00001", "NA", ""],
        ["00000", "007", "1e5"],
    ]


def test_carried_columns_of_val_and_test_meet_in_one_table(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 1, "test": 2})
    for split in ("train", "val", "test"):
        manifest = read_manifest(tmp_path / f"{split}.csv")
        write_csv(tmp_path / f"{split}.csv", manifest.assign(**{"user:site": f"of {split}"}))
    save_model(tmp_path / "m.safetensors", make_model_info())
    table, _ = predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 10, jobs=1, cache=None)
    assert table.columns[-1] == "user:site"
    assert table["user:site"].tolist() == ["of val", "of test", "of test"]


def test_a_key_is_the_same_whatever_the_layout() -> None:
    manifest = make_manifest([0, 1])
    single = tabulate_predictions(manifest, np.eye(2, 3, dtype=np.float32), CLASSES)
    moved = manifest.assign(path=manifest["split"] + "/" + manifest["path"])
    folders = tabulate_predictions(moved, np.eye(2, 3, dtype=np.float32), CLASSES, "folders")
    assert folders["key"].tolist() == single["key"].tolist()
    assert folders["path"].tolist() == moved["path"].tolist()
    assert folders["group"].tolist() == ["group 0", "group 1"]


def test_slices_of_shards_stand_behind_the_pixel_hash(tmp_path: Path) -> None:
    slices = {"shard": ["x.tar", "007"], "offset": [512, 2048], "length": [70, 80]}
    manifest = make_manifest([0, 1]).assign(**slices)
    write_csv(tmp_path / "p.csv", tabulate_predictions(manifest, np.eye(2, 3, dtype=np.float32), CLASSES))
    table = read_predictions(tmp_path / "p.csv")
    assert table.columns[5:10].tolist() == ["pixel_sha256", "shard", "offset", "length", "class"]
    assert table[list(slices)].to_dict("list") == slices


def test_predictions_do_not_depend_on_the_layout_or_the_cache(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 4, "test": 5})
    save_model(tmp_path / "m.safetensors", make_model_info())
    plain, _ = predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path / "images", 3, jobs=1, cache=None)
    for split in ("train", "val", "test"):
        manifest = read_manifest(tmp_path / f"{split}.csv")
        columns = pack_shards(manifest["path"].tolist(), tmp_path / "images", tmp_path / split, each=2)
        columns["shard"] = f"{split}/" + columns["shard"]
        write_csv(tmp_path / f"{split}.csv", manifest.join(columns))
    shutil.rmtree(tmp_path / "images")
    cache = PixelCache(tmp_path / "cache", 10**9, 0)
    for _ in range(2):
        table, _ = predict_splits(tmp_path / "m.safetensors", tmp_path, tmp_path, 3, jobs=1, cache=cache)
        assert table["shard"].tolist()[3:5] == ["val/00002.tar", "test/00000.tar"]
        assert table.drop(columns=["shard", "offset", "length"]).equals(plain)
        for split in ("val", "test"):
            shutil.rmtree(tmp_path / split, ignore_errors=True)
    assert len(list(cache.root.iterdir())) == 2
