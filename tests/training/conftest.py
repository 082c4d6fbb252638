"""What tests of training share."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.made import make_run
from tests.made import make_dataset
from tests.training.test_params import make_params


@pytest.fixture(autouse=True)
def use_one_thread() -> Iterator[None]:
    """Models this small lose time on more, most of all beside other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with manifests of 12 train, 6 val and 5 test images, which lie below `images`."""
    make_dataset(tmp_path, {"train": 12, "val": 6, "test": 5})
    return tmp_path


@pytest.fixture
def make_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`make_project(name, sizes, **changes)`: a folder for the train stage; `changes` go into params.yaml's train."""

    def make(name: str, sizes: dict[str, int], **changes: Any) -> Path:
        project = tmp_path / name
        (project / "data/manifests").mkdir(parents=True)
        make_dataset(project / "data/manifests", sizes)
        (project / "data/manifests/images").rename(project / "data/images")
        knobs = make_run(checkpoint_minutes=0, cache_dir=str(tmp_path / "cache")).model_dump()
        text = json.dumps({"train": make_params(**changes).model_dump(), "run": knobs})
        (project / "params.yaml").write_text(text, "utf-8")
        monkeypatch.delenv("IMAGEPIPE_CACHE", raising=False)
        return project

    return make
