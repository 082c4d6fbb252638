"""The knobs of a run."""

from typing import Any

from imagepipe.core.run import RunParams


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
