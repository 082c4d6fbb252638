"""The stages with their paths, as `dvc.yaml` calls them."""

import shlex
import sys

from imagepipe.core.config import read_yaml
from tests.conftest import ROOT

STAGES: dict[str, tuple[str, ...]] = {
    name: tuple(shlex.split(described["cmd"])[2:])  # without `python stages/<name>.py`
    for name, described in read_yaml(ROOT / "dvc.yaml")[0]["stages"].items()
}


def list_outputs(stage: str) -> list[str]:
    """The paths that a stage writes: those that no stage before it names."""
    names = list(STAGES)
    known = {path for name in names[: names.index(stage)] for path in STAGES[name]}
    return [path for path in STAGES[stage] if path not in known]


def command_of(stage: str) -> list[str]:
    """This checkout's script with the stage's paths, for any folder."""
    return [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *STAGES[stage]]
