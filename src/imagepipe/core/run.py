"""The machine's knobs: the `run:` section, which no stage tracks since nothing in it changes a byte of any output."""

import os
from pathlib import Path
from typing import Annotated, Literal

import joblib
import platformdirs
from pydantic import Field, field_validator

from imagepipe.core.config import Params, load_section, refuse_output
from imagepipe.core.errors import InputError


class RunParams(Params):
    """`run:` in params.yaml."""

    jobs: Annotated[int, Field(ge=0, le=1024)]
    workers: Annotated[int, Field(ge=0, le=256)]
    engine: Literal["local", "ray"]
    ray_address: str
    mirror: str
    cache_dir: str
    cache: Literal["on", "off"]
    cache_gigabytes: Annotated[float, Field(gt=0)]
    memory_gigabytes: Annotated[float, Field(ge=0)]
    checkpoint_minutes: Annotated[float, Field(ge=0)]

    @field_validator("cache_dir")
    @classmethod
    def stays_clear(cls, value: str) -> str:
        """What is kept there would become part of an output."""
        if value:
            refuse_output(value)
        return value


def load_run_params() -> RunParams:
    """The `run:` section of params.yaml in the working folder."""
    return load_section("run", RunParams)


def count_jobs(run: RunParams) -> int:
    """Processes to use: `run.jobs`, or every core that this process may use where it is 0."""
    return run.jobs or joblib.cpu_count()


def find_cache_root(run: RunParams) -> Path:
    """Where downloads, decoded pixels and checkpoints live.

    `IMAGEPIPE_CACHE` goes before `run.cache_dir`, and that before the user's cache folder. Raises InputError where
    `IMAGEPIPE_CACHE` is an output of the pipeline.
    """
    variable = os.environ.get("IMAGEPIPE_CACHE")
    if variable:
        try:
            refuse_output(variable)
        except ValueError as error:
            raise InputError(f"IMAGEPIPE_CACHE: {error}.") from error
        return expand_home(variable, "IMAGEPIPE_CACHE")
    if run.cache_dir:
        return expand_home(run.cache_dir, "params.yaml: run.cache_dir")
    return Path(platformdirs.user_cache_dir("imagepipe"))


def expand_home(folder: str, origin: str) -> Path:
    """The folder, with a home folder in place of `~` or `~name`; `origin` says where it was named.

    Raises InputError where there is no such home folder.
    """
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        home = Path(folder).parts[0]
        raise InputError(
            f"{origin}: found {folder}, but no home folder is known for {home}; expected a folder: write its full path."
        ) from error
