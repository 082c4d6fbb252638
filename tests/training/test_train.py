import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from imagepipe.core import manifest
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.hashes import hash_file
from imagepipe.data import dataset
from imagepipe.data.batches import make_eval_loader
from imagepipe.data.dataset import ManifestDataset
from imagepipe.models.classifier import load_classifier
from imagepipe.training.loop import measure
from imagepipe.training.setup import sample_positions
from imagepipe.training.train import Trained, report_faults, train_model
from tests.core.made import make_run
from tests.data.test_params import AUGMENT
from tests.made import make_conversion
from tests.training.test_params import make_params

CNN = {"base": 2, "stem": "pool", "dropout": 0.5}


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run that keeps decoded images keeps them."""
    root = tmp_path / "cache"
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(root))
    return root


def run(made: Path, name: str = "run", knobs: dict[str, Any] | None = None, **changes: Any) -> Trained:
    """Train on `made`; the model file and the reports go to `made/<name>`."""
    out = made / name
    knobs = {"cache": "off"} | (knobs or {})
    return train_model(
        made,
        made / "images",
        make_params(**changes),
        make_run(**knobs),
        out / "model.safetensors",
        out / "reports",
    )


def read_outputs(made: Path, name: str = "run") -> dict[str, bytes]:
    """Every file that a run wrote."""
    return {path.name: path.read_bytes() for path in (made / name).rglob("*") if path.is_file()}


def edit_manifest(made: Path, split: str, **columns: Any) -> None:
    """Overwrite whole columns of a manifest."""
    table = pd.read_csv(made / f"{split}.csv", dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(made / f"{split}.csv", index=False)


def test_a_run_writes_the_model_two_tables_and_metrics(made: Path) -> None:
    run(made, epochs=3)
    outputs = read_outputs(made)
    assert set(outputs) == {"model.safetensors", "history.csv", "steps.csv", "metrics.json"}
    history = pd.read_csv(made / "run" / "reports" / "history.csv")
    steps = pd.read_csv(made / "run" / "reports" / "steps.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["updates"].tolist() == [3, 6, 9]
    assert steps["update"].tolist() == list(range(1, 10))
    assert b"\r" not in outputs["history.csv"] + outputs["steps.csv"]


def test_metrics_are_those_of_the_best_epoch_on_train_and_val(made: Path) -> None:
    run(made, epochs=4)
    metrics = json.loads(read_outputs(made)["metrics.json"])
    history = pd.read_csv(made / "run" / "reports" / "history.csv").set_index("epoch")
    best = history.loc[metrics["kept_epoch"]]
    assert best["val_accuracy"] == history["val_accuracy"].max()
    model = load_classifier(made / "run" / "model.safetensors")
    for split in ("train", "val"):
        dataset = ManifestDataset(made / f"{split}.csv", made / "images")
        score = measure(model, make_eval_loader(dataset, 3))
        assert (metrics[split]["loss"], metrics[split]["accuracy"]) == pytest.approx(
            (score.loss, score.accuracy), abs=1e-6
        )
    assert metrics["val"]["balanced_accuracy"] == pytest.approx(score.balanced_accuracy, abs=1e-6)
    assert metrics["gap"] == pytest.approx(metrics["train"]["accuracy"] - metrics["val"]["accuracy"], abs=1e-6)
    assert metrics["best"] == {"epoch": metrics["kept_epoch"], "val_accuracy": metrics["val"]["accuracy"]}
    assert metrics["last"]["val_accuracy"] == pytest.approx(history["val_accuracy"].iloc[-1], abs=1e-6)
    assert best["val_loss"] == pytest.approx(metrics["val"]["loss"], abs=1e-6)
    assert (metrics["epochs"], metrics["updates"]) == (4, 12)
    assert metrics["weights"] == 64 * 3 + 3


def test_what_a_run_returns_is_what_it_wrote(made: Path) -> None:
    trained = run(made)
    metrics = json.loads(read_outputs(made)["metrics.json"])
    assert trained.kept["epoch"] == metrics["kept_epoch"]
    assert metrics["train"]["loss"] == pytest.approx(trained.kept["train_loss"], abs=1e-6)
    assert metrics["val"]["accuracy"] == pytest.approx(trained.kept["val_accuracy"], abs=1e-6)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    loaded = load_classifier(made / "run" / "model.safetensors")
    assert torch.equal(loaded(images), trained.model.eval()(images))


def test_the_model_says_what_it_was_made_from(made: Path) -> None:
    run(made, model="mlp", normalize="dataset")
    info = load_classifier(made / "run" / "model.safetensors").info
    assert (info.model, info.choices, info.normalize) == ("mlp", {"hidden": 5}, "dataset")
    assert info.classes == ["cat", "dog", "NA"]
    assert (info.image.mode, info.image.width, info.image.height) == ("L", 8, 8)
    assert (info.mean, info.std) == ([0.5], [0.25])
    assert info.manifests == {split: hash_file(made / f"{split}.csv") for split in ("train", "val")}
    assert info.conversion == make_conversion()


def test_the_same_params_give_the_same_bytes_and_another_seed_others(made: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(made, name, model="cnn", cnn=CNN, seed=seed)
    first = read_outputs(made, "first")
    assert read_outputs(made, "again") == first
    other = read_outputs(made, "other")
    assert other["model.safetensors"] != first["model.safetensors"]
    assert other["steps.csv"] != first["steps.csv"]


def test_the_first_weights_depend_on_the_seed(made: Path) -> None:
    """Without shuffling and dropout nothing else does."""
    for name, seed in (("first", 1), ("other", 2)):
        run(made, name, shuffle=False, seed=seed)
    assert read_outputs(made, "first")["model.safetensors"] != read_outputs(made, "other")["model.safetensors"]


def test_shuffling_can_be_turned_off(made: Path) -> None:
    run(made, "shuffled")
    run(made, "ordered", shuffle=False)
    assert read_outputs(made, "shuffled")["steps.csv"] != read_outputs(made, "ordered")["steps.csv"]


def test_workers_change_no_byte(made: Path) -> None:
    run(made, "alone", model="cnn", cnn=CNN)
    run(made, "helped", {"workers": 2}, model="cnn", cnn=CNN)
    assert read_outputs(made, "helped") == read_outputs(made, "alone")


@pytest.mark.parametrize(
    "knobs", [{"cache": "on"}, {"cache": "on", "memory_gigabytes": 0}, {"jobs": 2}], ids=["cached", "mapped", "jobs"]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_how_images_come_to_memory_changes_no_byte(made: Path, knobs: dict[str, Any], workers: int) -> None:
    run(made, "plain")
    for name in ("first", "again"):
        run(made, name, {**knobs, "workers": workers})
        assert read_outputs(made, name) == read_outputs(made, "plain")


@pytest.mark.parametrize("transform", ["", "RandomHorizontalFlip p=0.5"])
def test_cached_images_are_decoded_once(made: Path, cache_root: Path, transform: str) -> None:
    """The second run finds no image file, and does not miss one."""
    run(made, "first", {"cache": "on"}, augment=AUGMENT | {"transform": transform})
    shutil.rmtree(made / "images")
    run(made, "again", {"cache": "on"}, augment=AUGMENT | {"transform": transform})
    assert read_outputs(made, "again") == read_outputs(made, "first")
    assert (cache_root / "pixels").is_dir()


def test_each_manifest_is_read_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_text_table = manifest.read_text_table

    def read_and_count(path: Path, *options: Any) -> pd.DataFrame:
        read.append(path.name)
        return read_text_table(path, *options)

    for module in (manifest, dataset):
        monkeypatch.setattr(module, "read_text_table", read_and_count)
    run(made)
    assert read == ["train.csv", "val.csv"]


@pytest.mark.parametrize(
    "changes",
    [{"horizontal_flip": 0.5, "crop_padding": 2}, {"transform": "RandomHorizontalFlip p=0.5"}],
    ids=["augmentation", "transform"],
)
def test_augmenting_changes_the_model_and_does_so_alike_in_every_run(made: Path, changes: dict[str, Any]) -> None:
    run(made, "plain")
    for name, workers in (("first", 0), ("again", 0), ("helped", 2)):
        run(made, name, {"workers": workers}, augment=AUGMENT | changes)
    assert read_outputs(made, "first")["model.safetensors"] != read_outputs(made, "plain")["model.safetensors"]
    assert read_outputs(made, "again") == read_outputs(made, "first")
    assert read_outputs(made, "helped") == read_outputs(made, "first")


@pytest.mark.parametrize(
    "changes", [{"erasing": 1.0}, {"transform": "RandomErasing p=1"}], ids=["augmentation", "transform"]
)
def test_what_is_measured_is_not_augmented(made: Path, changes: dict[str, Any]) -> None:
    trained = run(made, augment=AUGMENT | changes, epochs=1)
    train, val = (ManifestDataset(made / f"{split}.csv", made / "images") for split in ("train", "val"))
    for name, split in (("train", train), ("val", val)):
        found = measure(trained.model, make_eval_loader(split, 3))
        assert (found.loss, found.accuracy) == (trained.kept[f"{name}_loss"], trained.kept[f"{name}_accuracy"])
    history = pd.read_csv(made / "run" / "reports" / "history.csv")
    assert history["train_loss"].tolist() == [pytest.approx(trained.kept["train_loss"], abs=1e-6)]


def test_a_transform_that_torchvision_lacks_is_refused_before_training(made: Path) -> None:
    with pytest.raises(InputError, match=r"train\.augment\.transform: torchvision\.transforms\.v2 has no `RandAugmnt`"):
        run(made, augment=AUGMENT | {"transform": "RandAugmnt"})
    assert not (made / "run").exists()


def test_the_test_split_is_never_read(made: Path) -> None:
    """Its images and its manifest are gone, which nobody notices."""
    run(made, "before")
    for path in pd.read_csv(made / "test.csv")["path"]:
        (made / "images" / path).unlink()
    (made / "test.csv").unlink()
    run(made, "after")
    assert read_outputs(made, "after") == read_outputs(made, "before")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused_before_training(made: Path, split: str) -> None:
    header = (made / f"{split}.csv").read_text("utf-8").splitlines()[0]
    (made / f"{split}.csv").write_text(header + "\n", "utf-8")
    message = rf"{split}\.csv: the {split} split is empty; raise split\.fractions\.{split} in params\.yaml"
    with pytest.raises(InputError, match=message):
        run(made)
    assert not (made / "run").exists()


@pytest.mark.parametrize(("split", "images"), [("train", 12), ("val", 6)])
def test_a_label_out_of_range_is_refused_before_training(made: Path, split: str, images: int) -> None:
    edit_manifest(made, split, label="3")
    message = rf"{split}\.csv: label and class disagree with dataset\.json \({images}\):\n  row 2: label 3 with "
    with pytest.raises(InputError, match=message):
        run(made)
    assert not (made / "run").exists()


def test_a_class_under_another_number_is_refused_before_training(made: Path) -> None:
    edit_manifest(made, "val", label="0", **{"class": "dog"})
    with pytest.raises(InputError, match=r"val\.csv: .*\n  row 2: label 0 with class 'dog'"):
        run(made)


def test_a_diverging_run_writes_no_model(made: Path) -> None:
    message = r"the loss became (nan|inf) in epoch 1, batch \d, at a learning rate of 1e\+38; no model was written"
    with pytest.raises(InputError, match=message):
        run(made, lr=1e38)
    assert not (made / "run" / "model.safetensors").exists()


def test_a_run_that_diverges_in_its_last_update_writes_no_model(made: Path) -> None:
    with pytest.raises(InputError, match=r"the loss became (nan|inf) in epoch 1"):
        run(made, lr=1e38, epochs=1, batch_size=12)
    assert not (made / "run" / "model.safetensors").exists()


def test_a_last_batch_of_one_that_batch_norm_cannot_take_is_refused_before_training(made: Path) -> None:
    """Halved three times, an image of 8×8 leaves one number a channel, and one image has no variance."""
    with pytest.raises(InputError, match=r"train\.batch_size"):
        run(made, model="cnn", cnn=CNN, batch_size=11)
    assert not (made / "run" / "model.safetensors").exists()


def test_dropping_the_last_batch_of_one_makes_that_run_work(made: Path) -> None:
    run(made, model="cnn", cnn=CNN, batch_size=11, drop_last=True)
    assert (made / "run" / "model.safetensors").is_file()


def test_an_unknown_model_gets_the_names(made: Path) -> None:
    with pytest.raises(InputError, match=r"train\.model: unknown model `cn`; did you mean `cnn`\?"):
        run(made, model="cn")
    assert not (made / "run").exists()


def test_a_batch_larger_than_the_data_is_refused_where_drop_last_leaves_none(made: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: 13 is more than the 12 train images"):
        run(made, batch_size=13, drop_last=True)


def test_a_missing_image_is_named_and_nothing_is_written(made: Path) -> None:
    (made / "images" / "00003.png").unlink()
    with pytest.raises(InputError, match=r"00003\.png: no such image"):
        run(made)
    assert not (made / "run").exists()


@pytest.mark.parametrize("size", [(8, 8), (9, 8)], ids=["other pixels", "another size"])
def test_images_that_are_not_the_manifests_are_refused(made: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(made / "images" / "00003.png")
    with pytest.raises(
        InputError, match=r"differ from their manifest's pixel_sha256 \(1\):\n  \S*00003\.png\nRun the sp"
    ):
        run(made)
    assert not (made / "run").exists()


@pytest.mark.parametrize("name", ["dataset.json", "train.csv", "val.csv"])
def test_a_missing_manifest_is_named(made: Path, name: str) -> None:
    (made / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: cannot be read"):
        run(made)


def test_a_failed_run_leaves_the_former_model_alone(made: Path) -> None:
    run(made)
    before = read_outputs(made)["model.safetensors"]
    shutil.rmtree(made / "images")
    with pytest.raises(InputError):
        run(made)
    assert read_outputs(made)["model.safetensors"] == before


def test_history_measures_the_drawn_train_images_only(made: Path) -> None:
    run(made, epochs=1, train_measured=5)
    positions = sample_positions(12, make_params(train_measured=5))
    dataset = ManifestDataset(made / "train.csv", made / "images")
    loader = make_eval_loader(dataset, 3, positions=positions)
    score = measure(load_classifier(made / "run" / "model.safetensors"), loader)
    history = pd.read_csv(made / "run" / "reports" / "history.csv")
    assert history["train_accuracy"].tolist() == [pytest.approx(score.accuracy, abs=1e-6)]
    assert history["train_loss"].tolist() == [pytest.approx(score.loss, abs=1e-6)]


def test_an_empty_test_split_is_refused_before_training(made: Path) -> None:
    path = made / "dataset.json"
    info = json.loads(path.read_text("utf-8"))
    info["counts"]["test"] = dict.fromkeys(info["classes"], 0)
    path.write_text(json.dumps(info), "utf-8")
    with pytest.raises(InputError, match=r"the test split is empty, so nothing could be evaluated; raise split\.frac"):
        run(made)


def test_one_class_alone_is_refused_before_training(made: Path) -> None:
    path = made / "dataset.json"
    info = json.loads(path.read_text("utf-8"))
    info["counts"]["train"] = {"cat": 5, "dog": 0, "NA": 0}
    path.write_text(json.dumps(info), "utf-8")
    with pytest.raises(InputError, match=r"train\.csv: has images of 1 class only \('cat'\); a classifier needs two"):
        run(made)


def test_batches_of_one_that_batch_norm_cannot_take_are_refused(made: Path) -> None:
    message = (
        r"^train\.batch_size: 1 gives the model a single image at a time, on which batch norm cannot train; choose 2 "
        r"or more\.$"
    )
    with pytest.raises(InputError, match=message):
        run(made, model="cnn", cnn=CNN, batch_size=1, drop_last=True)


def test_all_train_images_in_one_batch(made: Path) -> None:
    run(made, epochs=3, batch_size="all")
    history = pd.read_csv(made / "run" / "reports" / "history.csv")
    assert history["updates"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("imbalance", ["class_weights", "weighted_sampler", "focal"])
def test_each_remedy_for_imbalance_changes_the_model_and_repeats(made: Path, imbalance: str) -> None:
    """The classes of train become 6, 3 and 3 images."""
    rows = pd.read_csv(made / "train.csv", dtype=str, keep_default_na=False)
    classes = json.loads((made / "dataset.json").read_bytes())["classes"]
    labels = [0] * 6 + [1] * 3 + [2] * 3
    edit_manifest(made, "train", label=labels, **{"class": [classes[label] for label in labels]})
    info = json.loads((made / "dataset.json").read_bytes())
    info["counts"]["train"] = dict(zip(classes, (6, 3, 3), strict=True))
    (made / "dataset.json").write_text(json.dumps(info))
    assert len(rows) == 12
    for name, chosen in (("plain", "none"), ("one", imbalance), ("other", imbalance)):
        run(made, name, imbalance=chosen)
    plain, one, other = (read_outputs(made, name) for name in ("plain", "one", "other"))
    assert one == other
    assert one["model.safetensors"] != plain["model.safetensors"]
    assert json.loads(one["metrics.json"])["baseline"]["val_accuracy"] == pytest.approx(1 / 3, abs=1e-6)


def test_two_remedies_at_once_give_a_warning(made: Path) -> None:
    message = (
        r"train\.imbalance is class_weights and train\.loss is focal: two remedies at once make rare classes count too"
    )
    with pytest.warns(UserWarning, match=message):
        run(made, imbalance="class_weights", loss="focal")


def test_patience_reaches_the_report(made: Path) -> None:
    run(made, epochs=50, patience=1, lr=1e-30)
    assert json.loads(read_outputs(made)["metrics.json"])["epochs"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_learns_what_the_processor_learns(made: Path) -> None:
    processor, gpu = (run(made, device, device=device) for device in ("cpu", "cuda"))
    assert gpu.kept["train_loss"] == pytest.approx(processor.kept["train_loss"], abs=1e-3)


def test_weights_of_another_run_can_be_taken_up_and_frozen(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run's body is left as it is; its last layer is trained on. What was loaded is said before training."""
    run(made, "first", model="mlp")
    path = str(made / "first" / "model.safetensors")
    digest = hash_file(Path(path))
    capsys.readouterr()
    run(made, "second", model="mlp", pretrained=path, pretrained_sha256=digest, freeze="body", epochs=1)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "train: pretrained: 4 of 4 tensors of the model were loaded"
    assert said[1].startswith("train: epoch 1/1  train loss ")
    first, after = (load_classifier(made / name / "model.safetensors").state_dict() for name in ("first", "second"))
    assert torch.equal(first["body.1.weight"], after["body.1.weight"])
    assert not torch.equal(first["body.3.weight"], after["body.3.weight"])


def test_weights_without_a_hash_are_refused_before_training(made: Path) -> None:
    run(made, "first", model="mlp")
    path = str(made / "first" / "model.safetensors")
    with pytest.raises(InputError, match=r"train\.pretrained_sha256: is not given for .*model\.safetensors; if"):
        run(made, "second", model="mlp", pretrained=path)
    assert not (made / "second").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("numpy has none"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_memory_is_short_the_batch_size_is_named(error: Exception) -> None:
    message = r"^out of memory while training \(.*\); reduce train\.batch_size or train\.eval_batch_size, or the"
    with pytest.raises(EnvironmentFault, match=message), report_faults():
        raise error


def test_torch_says_so_when_the_processor_has_no_memory_left() -> None:
    """More than any machine has, but less than torch refuses to count."""
    with pytest.raises(EnvironmentFault, match=r"^out of memory while training"), report_faults():
        torch.empty(2**52, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ConnectionResetError(104, "Connection reset by peer"),  # it died while it handed a batch over
        EOFError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_loading_process_that_has_ended_is_said(error: Exception) -> None:
    message = r"^a process that loads batches has ended \(.+\); memory may have been short: reduce run\.workers"
    with pytest.raises(EnvironmentFault, match=message), report_faults():
        raise error


def test_a_late_sign_of_its_end_does_not_cut_the_message() -> None:
    """A loading process closes its pipe before its parent hears that it has ended."""

    def raise_again(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, raise_again)
    try:
        with pytest.raises(EnvironmentFault, match="Connection reset by peer") as raised, report_faults():
            raise ConnectionResetError(104, "Connection reset by peer")
        signal.raise_signal(signal.SIGCHLD)
        assert "run.workers" in str(raised.value)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_other_errors_go_their_way() -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"), report_faults():
        raise RuntimeError("a bug")


DEADLY = """
import os, signal, torch
from imagepipe.data.batches import LoaderOptions, make_eval_loader
from imagepipe.training.train import report_faults

class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1), 0

with report_faults():
    list(make_eval_loader(Deadly(), 1, LoaderOptions(workers=1)))
"""


def test_a_loading_process_that_was_killed_is_said() -> None:
    """As a system does that is short of memory; in a process of its own, since torch's handler of SIGCHLD stays."""
    done = subprocess.run([sys.executable, "-c", DEADLY], capture_output=True, text=True)
    assert done.returncode == 1
    said = r"EnvironmentFault: a process that loads batches has ended \(.+\); memory may have"
    assert re.search(said, done.stderr)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(made: Path) -> None:
    plain, compiled = (run(made, str(wish), model="mlp", compile=wish) for wish in (False, True))
    assert compiled.kept["train_loss"] == pytest.approx(plain.kept["train_loss"], abs=1e-4)
    names = [load_classifier(made / name / "model.safetensors").state_dict().keys() for name in ("False", "True")]
    assert names[0] == names[1]
