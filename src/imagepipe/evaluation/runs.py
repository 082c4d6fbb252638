"""A run: the predictions on test and the params of a Git revision, a DVC experiment or a folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.config import PARAMS_FILE, parse_yaml
from imagepipe.core.errors import EnvironmentFault, InputError, list_findings
from imagepipe.evaluation.metrics import list_predicted_classes
from imagepipe.evaluation.predictions import parse_predictions, read_predictions

PREDICTIONS = Path("reports/evaluate/predictions.csv")
NEEDED = ("split", "key", "path", "pixel_sha256", "class", "predicted", "loss")
WORKSPACE = "workspace"
SEED, FOLD = "train.seed", "split.fold"
ABSENT = "(absent)"  # in place of a param that one of two runs lacks


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run, by the name that the user gave it.

    `test` are the test rows of its predictions table, by key, with a `group` column in any case. `params` maps each
    leaf of params.yaml but those of `run:` to its value (`train.lr`), and is None where there is no params.yaml.
    `folder` is where it lies, None for a revision.
    """

    name: str
    test: pd.DataFrame
    classes: list[str]
    params: Mapping[str, Any] | None
    folder: Path | None

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the class of each test image is the predicted one, in the order of `test`."""
        return np.asarray(self.test["class"] == self.test["predicted"], np.bool_)


@dataclass(frozen=True, slots=True)
class ParamChange:
    """A value of params.yaml that differs."""

    name: str
    base: str
    other: str


def read_run(name: str) -> Run:
    """The run that `name` stands for: a folder where there is one of this name, else a revision or an experiment.

    Raises InputError where there is neither, or its predictions cannot be had.
    """
    path = Path(name)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        raise InputError(f"{name}: is a file; name the folder that holds predictions.csv, or a revision.")
    return read_revision(name)


def read_folder(folder: Path) -> Run:
    """The run of a project folder, or of one that holds predictions.csv (and params.yaml, if it is to be known)."""
    found = [path for path in (folder / PREDICTIONS, folder / PREDICTIONS.name) if path.is_file()]
    if not found:
        raise InputError(
            f"{folder}: holds neither {PREDICTIONS} nor {PREDICTIONS.name}; run `dvc repro` there, or `dvc checkout` "
            "where it ran before."
        )
    params = folder / PARAMS_FILE
    return make_run(
        WORKSPACE if folder == Path() else str(folder),
        read_predictions(found[0]),
        found[0],
        flatten_params(params.read_bytes(), params) if params.is_file() else None,
        folder,
    )


def read_revision(name: str) -> Run:
    """The run of a commit, branch, tag or experiment of this repository, out of DVC's cache or its remote.

    Raises InputError where there is no such revision or nobody has its predictions, EnvironmentFault where the remote
    cannot be reached.
    """
    # DVC takes a second to import, and folders do without it.
    from dvc.api import DVCFileSystem  # pyright: ignore[reportPrivateUsage]
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.scm import RevError, SCMError

    shown = Path(f"{name}:{PREDICTIONS}")
    try:
        files = DVCFileSystem(rev=name, subrepos=True)
        below = Path.cwd().resolve().relative_to(Path(str(files.repo.scm.root_dir)).resolve())
        place, params = (PurePosixPath(below / path).as_posix() for path in (PREDICTIONS, PARAMS_FILE))
        if not files.exists(place):
            raise InputError(f"{shown}: this revision has no such file; compare one in which the pipeline has run.")
        predictions = parse_predictions(cast("bytes", files.read_bytes(place)), shown)
        text = cast("bytes", files.read_bytes(params)) if files.exists(params) else None
    except RevError as error:
        raise InputError(
            f"{name}: neither a folder, nor a Git revision or an experiment of this repository; `git branch -a`, "
            "`git tag` and `dvc exp list` name them, and `git fetch` or `dvc exp pull` brings those of others."
        ) from error
    except (NotDvcRepoError, SCMError) as error:
        raise InputError(
            f"{name}: not a folder, and there is no Git repository here that could have such a revision."
        ) from error
    except FileNotFoundError as error:
        raise InputError(
            f"{shown}: neither in DVC's cache here nor in its remote. If the pipeline had run in this revision: "
            f"`dvc push` (for an experiment `dvc exp push origin {name}`) where that was. Else make it here: "
            f"`git checkout` (or `dvc exp apply`) {name} and `dvc repro`."
        ) from error
    except (DvcException, OSError) as error:
        raise EnvironmentFault(f"{shown}: DVC cannot read it: {error}.") from error
    values = None if text is None else flatten_params(text, Path(f"{name}:{PARAMS_FILE}"))
    return make_run(name, predictions, shown, values, None)


def make_run(
    name: str, predictions: pd.DataFrame, path: Path, params: Mapping[str, Any] | None, folder: Path | None
) -> Run:
    """The run of a predictions table; raises InputError, naming `path`, where it cannot be compared with others."""
    missing = [column for column in NEEDED if column not in predictions.columns]
    if missing:
        raise InputError(f"{path}: not a predictions table (no {', '.join(missing)}); run the evaluate stage again.")
    test = predictions[predictions["split"] == "test"]
    if test.empty:
        raise InputError(f"{path}: has no test rows; run the evaluate stage again.")
    doubled = sorted(test["key"][test["key"].duplicated()])
    if doubled:
        raise InputError(list_findings(f"{path}: keys that stand there twice", doubled))
    if "group" not in test.columns:
        test = test.assign(group="")
    return Run(name, test.set_index("key", drop=False).sort_index(), list_predicted_classes(test), params, folder)


def flatten_params(text: bytes, path: Path) -> dict[str, Any]:
    """The leaves of a params file but for `run:`, which changes no result, by their dotted names."""
    values, _ = parse_yaml(text, path)
    return dict(list_leaves({name: section for name, section in values.items() if name != "run"}, ""))


def list_leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from list_leaves(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def list_changes(base: Run, other: Run) -> list[ParamChange]:
    """The params that differ, in the order of the first run's file; none where one run has no params.yaml."""
    if base.params is None or other.params is None:
        return []
    names = dict.fromkeys([*base.params, *other.params])
    pairs = [(name, base.params.get(name, ABSENT), other.params.get(name, ABSENT)) for name in names]
    return [
        ParamChange(name, str(old), str(new)) for name, old, new in pairs if old != new or type(old) is not type(new)
    ]
