"""Recipes: small YAML files that say what they change in `recipes/base.yaml`; together they make `params.yaml`.

Written in the form that DVC itself writes, comments included, so that `dvc exp run -S` with the value that is there
gives no diff.
"""

import io
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML

from imagepipe.core.config import PARAMS_FILE, Params, check_section, load_section, parse_yaml, read_yaml
from imagepipe.core.errors import EnvironmentFault, InputError, list_findings, suggest_name
from imagepipe.core.files import write_text
from imagepipe.core.hashes import hash_bytes
from imagepipe.core.run import RunParams
from imagepipe.evaluation.params import EvaluateParams
from imagepipe.prepare.params import SplitParams
from imagepipe.report.balance import BalanceParams
from imagepipe.sources.params import FetchParams
from imagepipe.training.params import TrainParams

BASE = Path("recipes/base.yaml")
WRITTEN = Path(".dvc/tmp/params-written.sha256")  # of what `use_recipe` wrote last; DVC keeps the folder out of Git

SECTIONS: dict[str, type[Params]] = {
    "fetch": FetchParams,
    "split": SplitParams,
    "balance": BalanceParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "run": RunParams,
}


def use_recipe(recipe: Path, force: bool = False) -> bool:
    """Make `params.yaml` base plus `recipe`; returns whether that changed it.

    The `run:` section, which belongs to the machine, is kept as it is.

    Raises InputError where the recipe is wrong, or `params.yaml` holds edits that are neither committed nor a recipe's
    (unless `force`); nothing is written then.
    """
    written = merge_recipe(recipe)
    present = read_present(force)
    wanted = keep_run_section(written, present)
    if wanted == present:
        return False
    if present and not force and not is_safe_to_replace(present):
        raise InputError(
            f"{PARAMS_FILE}: holds edits that are not committed; commit them, put them into a recipe of your own, or "
            "give --force to lose them."
        )
    check_values(written, wanted, present, Path(f"{BASE} with {recipe}"))
    write_text(PARAMS_FILE, wanted)
    write_text(WRITTEN, hash_settings(wanted) + "\n")
    return True


def check_values(written: str, wanted: str, present: str, origin: Path) -> None:
    """Raise InputError for a wrong value, with the file that has it: `origin`, or `params.yaml` with its own `run:`."""
    values, tree = parse_yaml(written.encode("utf-8"), origin)
    for name, model in SECTIONS.items():
        check_section(name, model, values, tree, origin)
    if present:
        _, tree = parse_yaml(present.encode("utf-8"), PARAMS_FILE)
        values, _ = parse_yaml(wanted.encode("utf-8"), PARAMS_FILE)
        check_section("run", RunParams, values, tree, PARAMS_FILE)


def hash_settings(text: str) -> str:
    """SHA-256 of the text with the base's `run:` section, since the machine's own does not count."""
    return hash_bytes(keep_run_section(text, BASE.read_text("utf-8")).encode("utf-8"))


def list_missing() -> list[str]:
    """What `params.yaml` names on disk and is not there: sentences for the user."""
    fetch = load_section("fetch", FetchParams)
    return [
        f"{key} in params.yaml names {path}, which is not there yet"
        for key, path in (("fetch.path", fetch.path), ("fetch.classes", fetch.classes))
        if not Path(path).exists()
    ]


def read_present(force: bool) -> str:
    """The text of `params.yaml`, '' where there is none; what cannot be read is an InputError, or '' with `force`."""
    if not PARAMS_FILE.is_file():
        return ""
    try:
        read_yaml(PARAMS_FILE)
    except InputError:
        if force:
            return ""
        raise
    return PARAMS_FILE.read_text("utf-8")


def merge_recipe(recipe: Path) -> str:
    """The text of base plus recipe; raises InputError where there is no recipe, or it has a key that the base lacks."""
    read_yaml(BASE)
    if recipe.is_dir() or not recipe.exists():
        problem = "is a folder, not a recipe" if recipe.is_dir() else "is not there"
        raise InputError(f"{recipe}: {problem}; {suggest_name(str(recipe), map(str, list_recipes()))}.")
    changes, _ = read_yaml(recipe)
    yaml = make_yaml()
    base = cast("MutableMapping[str, Any]", yaml.load(BASE.read_text("utf-8")))
    unknown = list(find_unknown(base, changes, ""))
    if unknown:
        raise InputError(list_findings(f"{recipe}: keys that {BASE} lacks", unknown))
    merge(base, changes)
    return dump(yaml, base)


def list_recipes() -> list[Path]:
    """The recipes that lie beside the base."""
    return [path for path in sorted(BASE.parent.glob("*.yaml")) if path != BASE]


def make_yaml() -> YAML:
    """ruamel.yaml, set up as DVC does for writing."""
    yaml = YAML()
    yaml.default_flow_style = False
    return yaml


def dump(yaml: YAML, value: Any) -> str:
    """YAML text of `value`."""
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def find_unknown(base: Mapping[str, Any], changes: Mapping[str, Any], path: str) -> Iterator[str]:
    """One finding for each key of `changes` that `base` lacks, or that is a section in one and a value in the other."""
    for key, value in changes.items():
        name = f"{path}{key}"
        if key not in base:
            yield f"{name}: unknown key; {suggest_name(str(key), map(str, base))}"
        elif isinstance(value, Mapping) != isinstance(base[key], Mapping):
            yield f"{name}: is a section in one and a value in the other"
        elif isinstance(value, Mapping):
            yield from find_unknown(base[key], cast("Mapping[str, Any]", value), f"{name}.")


def merge(base: MutableMapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Put the values of `changes` into `base`, section by section."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            merge(base[key], cast("Mapping[str, Any]", value))
        else:
            base[key] = value


def keep_run_section(written: str, present: str) -> str:
    """`written` with the values that the `run:` section of `present` has, where it has them."""
    old: Any = make_yaml().load(present) if present else None
    if not isinstance(old, Mapping) or not isinstance(old.get("run"), Mapping):
        return written
    return set_run_section(written, cast("Mapping[str, Any]", old["run"]))


def set_run_section(text: str, values: Mapping[str, Any]) -> str:
    """The params `text` with these values in its `run:` section, where it has one and that has their keys."""
    yaml = make_yaml()
    params = cast("MutableMapping[str, Any]", yaml.load(text))
    if isinstance(params.get("run"), MutableMapping):
        params["run"].update({key: value for key, value in values.items() if key in params["run"]})
    return dump(yaml, params)


def is_safe_to_replace(present: str) -> bool:
    """Whether `present` is what Git's HEAD holds, what `use_recipe` wrote last, or what a recipe beside the base gives.

    The `run:` section does not count, since it is kept.
    """
    if present == read_committed(PARAMS_FILE):
        return True
    if WRITTEN.is_file() and WRITTEN.read_text("utf-8").strip() == hash_settings(present):
        return True
    return any(is_made_by(recipe, present) for recipe in list_recipes())


def is_made_by(recipe: Path, present: str) -> bool:
    """Whether the recipe gives the text `present`; one that is wrong gives nothing."""
    try:
        return present == keep_run_section(merge_recipe(recipe), present)
    except InputError:
        return False


def read_committed(path: Path) -> str | None:
    """The file's text in Git's HEAD; None where there is no repository, no commit, or no such file."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, check=False)  # noqa: S603, S607
    except FileNotFoundError as error:
        raise EnvironmentFault("git is not installed; it says whether params.yaml holds edits.") from error
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None
