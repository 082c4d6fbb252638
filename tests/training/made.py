"""The train stage in a process of its own, as DVC runs it."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def start_stage(project: Path) -> subprocess.Popen[str]:
    """The train stage as DVC runs it, in a process group of its own."""
    places = ["data/manifests", "data/images", "models/model.safetensors", "reports/train"]
    return subprocess.Popen(
        [sys.executable, ROOT / "stages/train.py", *places],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish_stage(project: Path) -> str:
    """Run the stage to its end; what it printed."""
    with start_stage(project) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    return printed
