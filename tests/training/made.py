"""The train stage in a process of its own, as DVC runs it."""

import subprocess
from pathlib import Path

from tests.stages import command_of


def start_stage(project: Path) -> subprocess.Popen[str]:
    """The train stage as DVC runs it, in a process group of its own."""
    return subprocess.Popen(
        command_of("train"),
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
