import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagepipe.core.errors import InputError
from imagepipe.models import load_model
from imagepipe.models.classifier import build_classifier, save_classifier
from tests.made import CLASSES, make_model_info


@pytest.mark.parametrize("kind", [Path, str])
def test_a_model_is_loaded_with_its_classes(tmp_path: Path, kind: type[Path] | type[str]) -> None:
    saved = build_classifier(make_model_info(), 1)
    save_classifier(saved, tmp_path / "model.safetensors")
    model, classes = load_model(kind(tmp_path / "model.safetensors"))
    images = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8)
    assert classes == CLASSES
    assert not model.training
    assert torch.equal(model(images), saved(images))


def test_an_absent_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors: no such model"):
        load_model(tmp_path / "gone.safetensors")


def test_the_package_imports_no_torch() -> None:
    code = "import sys; from imagepipe.models import load_model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
