import builtins
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import ImageInfo
from imagepipe.inference import onnx_files
from imagepipe.inference.onnx_files import check_size, export_onnx, import_onnx
from imagepipe.models.classifier import Classifier, build_classifier, save_classifier
from tests.inference.made import make_model
from tests.made import CLASSES, make_conversion, make_dataset, make_model_info

KINDS: dict[str, tuple[dict[str, int | float | str], str, int]] = {
    "softmax": ({}, "L", 8),
    "mlp": ({"hidden": 5}, "L", 8),
    "simplenet": ({}, "RGB", 8),
    "cnn": ({"base": 4, "stem": "stride", "dropout": 0.5}, "RGB", 8),
    "resnet_small": ({"width": 4, "stem": "full", "blocks": 1, "dropout": 0.1}, "L", 8),
    "torchvision:resnet18": ({"dropout": 0.0}, "RGB", 32),
}


def make(path: Path, name: str = "softmax") -> Classifier:
    """A model of three classes that normalises with figures of its own, saved."""
    choices, mode, side = KINDS[name]
    changes = {
        "model": name,
        "choices": choices,
        "normalize": "dataset",
        "image": ImageInfo.model_validate({"mode": mode, "width": side, "height": side}),
        "mean": [0.1, 0.4, 0.7][: len(mode)],
        "std": [0.1, 0.2, 0.3][: len(mode)],
        "manifests": {"train": "a" * 64, "val": "b" * 64},
    }
    model = build_classifier(make_model_info().model_copy(update=changes), 1).eval()
    save_classifier(model, path)
    return model


def export(folder: Path) -> list[str]:
    return export_onnx(folder / "m", folder / "m.onnx", folder / "none", folder / "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_other_programs_get_what_the_model_gives(tmp_path: Path, name: str) -> None:
    model = make(tmp_path / "m", name)
    lines = export(tmp_path)
    _, mode, side = KINDS[name]
    assert lines[0] == (
        f"export: {tmp_path}/m.onnx: uint8 images (N, {len(mode)}, {side}, {side}) in, logits and probabilities of 3 "
        "classes out"
    )
    session: Any = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [(one.name, one.type) for one in session.get_inputs()] == [("images", "tensor(uint8)")]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("logits", ["N", 3]),
        ("probabilities", ["N", 3]),
    ]
    images = torch.randint(0, 256, (7, len(mode), side, side), dtype=torch.uint8)
    for batch in (images, images[:1]):
        logits, probabilities = session.run(None, {"images": batch.numpy()})
        with torch.inference_mode():
            expected = model(batch)
        assert np.allclose(logits, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
        assert np.allclose(probabilities, torch.softmax(expected, dim=1).numpy(), atol=1e-4)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    make(tmp_path / "m")
    export(tmp_path)
    return tmp_path


def test_the_metadata_say_what_the_model_file_says(exported: Path) -> None:
    held = {prop.key: prop.value for prop in onnx.load(exported / "m.onnx").metadata_props}
    assert held.pop("model_sha256") == hash_file(exported / "m")
    assert {name: json.loads(text) for name, text in held.items()} == {
        "classes": CLASSES,
        "image": {"mode": "L", "width": 8, "height": 8},
        "conversion": make_conversion(),
        "manifests": {"train": "a" * 64, "val": "b" * 64},
    }


def test_the_same_model_gives_the_same_bytes_and_no_place_of_this_machine(exported: Path) -> None:
    first = (exported / "m.onnx").read_bytes()
    export(exported)
    assert (exported / "m.onnx").read_bytes() == first
    assert b".py" not in first
    assert str(Path(onnx_files.__file__).parents[3]).encode() not in first


def test_it_is_checked_on_test_images_where_they_are_at_hand(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 3, "test": 9})
    make_model(tmp_path / "m")
    lines = export_onnx(tmp_path / "m", tmp_path / "m.onnx", tmp_path, tmp_path / "images")
    begins = "export: checked against PyTorch on 9 of 9 test images, in batches of 64 and of 1: the same classes, and "
    assert lines[1].startswith(begins + "logits that differ by ")
    assert lines[1].endswith(" of the largest (0.0001 is allowed)")


def test_it_is_checked_on_random_images_and_says_why(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 3, "test": 9})
    save_classifier(build_classifier(make_model_info(["cat", "dog"]), 1), tmp_path / "m")
    lines = export_onnx(tmp_path / "m", tmp_path / "m.onnx", tmp_path, tmp_path / "images")
    assert "on 64 random images, since there are no test images that fit (" in lines[1]
    assert "its classes differ from dataset.json's (only in the model: [], only in the data: ['NA'])" in lines[1]
    assert "dataset.json: cannot be read: No such file or directory" in export(tmp_path)[1]


class Off:
    """A session whose outputs are changed on their way."""

    def __init__(self, session: Any, add: np.ndarray, again: bool) -> None:
        self.session, self.add, self.again = session, add.astype(np.float32), again

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[np.ndarray]:
        logits, probabilities = self.session.run(names, feeds)
        logits = logits + self.add
        return [logits, torch.softmax(torch.from_numpy(logits), 1).numpy() if self.again else probabilities]


@pytest.mark.parametrize(
    ("add", "again", "message"),
    [
        (
            [0.0, 0.1, 0.0],
            True,
            r"other logits than PyTorch: they differ by 1\.0e-01, which is .* of the largest",
        ),
        ([0.0, np.nan, 0.0], True, r"gives other logits than PyTorch|probabilities are not the softmax"),
        ([0.0, 1.0, 0.0], False, r"probabilities are not the softmax of its logits; nothing was written"),
    ],
)
def test_a_file_that_predicts_anything_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: list[float], again: bool, message: str
) -> None:
    make(tmp_path / "m")
    opened = onnx_files.open_session
    monkeypatch.setattr(
        onnx_files, "open_session", lambda runtime, data: Off(opened(runtime, data), np.array(add), again)
    )
    with pytest.raises(EnvironmentFault, match=message):
        export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_another_class_in_a_tie_is_no_error_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tmp_path / "m")
    with torch.no_grad():
        for weight in model.body.parameters():
            weight.zero_()
        list(model.body.parameters())[-1].copy_(torch.tensor([5.0, 5.0, 0.0]))
    save_classifier(model, tmp_path / "m")
    opened, add = onnx_files.open_session, np.array([0.0, 1e-5, 0.0])
    monkeypatch.setattr(onnx_files, "open_session", lambda runtime, data: Off(opened(runtime, data), add, True))
    assert "64 other classes, in ties, and logits that differ by 1.0e-05 at most, 2.0e-06 of" in export(tmp_path)[1]


def test_without_the_extra_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError(name=name)
        return builtins

    monkeypatch.setattr(importlib, "import_module", find)
    with pytest.raises(EnvironmentFault) as caught:
        import_onnx()
    assert str(caught.value) == (
        "`imagepipe export --onnx` needs the package onnxruntime, which is not installed; "
        "in the project's folder, `pip install -c constraints.txt -e '.[onnx]'` brings it."
    )


def test_a_broken_installation_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        raise ModuleNotFoundError(name="numpy")

    monkeypatch.setattr(importlib, "import_module", find)
    with pytest.raises(ModuleNotFoundError):
        import_onnx()


def test_a_model_that_no_file_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tmp_path / "m")
    monkeypatch.setattr(onnx_files, "MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"^m: its weights take 0\.0 GiB; an ONNX file can hold 2 GiB\.$"):
        check_size(model, Path("m"))


def test_a_model_that_torch_cannot_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.onnx.OnnxExporterError("no such operator\nand much more")

    make(tmp_path / "m")
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(InputError, match=r"m: torch cannot export `softmax` as ONNX: no such operator$"):
        export(tmp_path)
