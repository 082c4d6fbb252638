"""The knobs of a run, and the name of what a process left that was killed."""

import subprocess
import sys
from typing import Any

from imagepipe.core.run import RunParams
from imagepipe.core.unfinished import name_place


def make_run(**changes: Any) -> RunParams:
    """The `run:` section of the base, with one job and some changes."""
    values: dict[str, Any] = {
        "jobs": 1,
        "workers": 0,
        "engine": "local",
        "ray_address": "",
        "mirror": "",
        "cache_dir": "",
        "cache": "on",
        "cache_gigabytes": 50,
        "memory_gigabytes": 4,
        "checkpoint_minutes": 5,
    }
    return RunParams(**values | changes)


def name_abandoned() -> str:
    """What a process that has ended would have called what it wrote."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f".{process.pid}@{name_place()}.0123456789abcdef.part"
