import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from annotated_types import Le
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update
from pydantic import BaseModel

from imagepipe.core.config import load_section, read_yaml
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.recipes import (
    SECTIONS,
    find_unknown,
    is_safe_to_replace,
    keep_run_section,
    list_missing,
    merge_recipe,
    read_committed,
    use_recipe,
)
from tests.core.made import make_run

RECIPES = sorted(path.name for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml"))
PARAMS = Path("params.yaml")


@pytest.fixture(autouse=True)
def project(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the base and one recipe that changes the epochs; no params.yaml yet, and no repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "base.yaml").write_bytes((root / "recipes" / "base.yaml").read_bytes())
    make_recipe("long", "train:\n  epochs: 99\n")
    return tmp_path


@pytest.fixture
def commit(project: Path) -> Callable[[], None]:
    """`commit()`: all that is in the folder, in a new repository."""

    def commit_all() -> None:
        name = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["init", "-q"], ["add", "-A"], [*name, "commit", "-q", "-m", "as it is"]):
            subprocess.run(["git", *command], cwd=project, check=True)

    return commit_all


def make_recipe(name: str, text: str) -> Path:
    path = Path("recipes") / f"{name}.yaml"
    path.write_text(text, "utf-8")
    return path


def read_params() -> dict[str, dict[str, object]]:
    return read_yaml(PARAMS)[0]


def edit_params(old: str, new: str) -> None:
    text = PARAMS.read_text("utf-8")
    assert old in text
    PARAMS.write_text(text.replace(old, new), "utf-8")


def refuse(recipe: Path, force: bool = False) -> str:
    before = PARAMS.read_bytes() if PARAMS.exists() else None
    with pytest.raises(InputError) as caught:
        use_recipe(recipe, force)
    assert (PARAMS.read_bytes() if PARAMS.exists() else None) == before
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_changes_nothing_else(root: Path, name: str) -> None:
    recipe = root / "recipes" / name
    assert use_recipe(recipe)
    for section, model in SECTIONS.items():
        load_section(section, model)
    changes = read_yaml(recipe)[0]
    assert list(find_unknown(read_params(), changes, "")) == []
    text = PARAMS.read_text("utf-8")
    assert text == dumps_yaml(parse_yaml_for_update(text, "params.yaml"))


def test_the_base_is_what_dvc_writes(root: Path) -> None:
    text = (root / "recipes" / "base.yaml").read_bytes().decode("utf-8")
    assert dumps_yaml(parse_yaml_for_update(text, "base.yaml")) == text


def list_upper_bounds(models: Mapping[str, type[BaseModel]]) -> Iterator[tuple[str, str]]:
    """Each key that has an upper bound, with that bound as comments write it."""
    for section, model in models.items():
        for name, field in model.model_fields.items():
            key = f"{section}.{name}"
            yield from ((key, f"{item.le:,}") for item in field.metadata if isinstance(item, Le))
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from list_upper_bounds({key: field.annotation})


def read_comments(text: str) -> dict[str, str]:
    """The comment above each key, or else above the nearest key before it that has one."""
    comments: dict[str, str] = {}
    keys: list[str] = []
    lines: list[str] = []
    before = ""
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("#"):
            lines = [*lines, words] if before.startswith("#") else [words]
        elif words:
            keys[line.index(words) // 2 :] = [words.partition(":")[0]]
            comments[".".join(keys)] = " ".join(lines)
        before = words
    return comments


def test_the_base_states_every_upper_bound(root: Path) -> None:
    comments = read_comments((root / "recipes" / "base.yaml").read_text("utf-8"))
    bounds = list(list_upper_bounds(SECTIONS))
    assert {("train.threads", "1,024"), ("split.image.width", "65,535"), ("train.cosine.end", "1")} <= set(bounds)
    assert [
        (key, bound)
        for key, bound in bounds
        if not re.search(rf"(?<![\d,]){re.escape(bound)}(?![\d,]*\d)", comments[key])
    ] == []


def test_writes_the_base_with_the_recipe() -> None:
    assert use_recipe(Path("recipes/long.yaml"))
    base = Path("recipes/base.yaml").read_text("utf-8")
    assert PARAMS.read_text("utf-8") == base.replace("  epochs: 20\n", "  epochs: 99\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "recipes/lnog.yaml",
            "is not there; did you mean `recipes/long.yaml`? Known: recipes/long.yaml, recipes/quick.yaml.",
        ),
        ("mine.yaml", "is not there; Known: recipes/long.yaml, recipes/quick.yaml."),
        ("recipes", "is a folder, not a recipe; Known: recipes/long.yaml, recipes/quick.yaml."),
    ],
)
def test_a_recipe_that_is_not_there_is_named_with_those_that_are(name: str, message: str) -> None:
    make_recipe("quick", "train:\n  lr: 0.5\n")
    assert refuse(Path(name)) == f"{name}: {message}"


def test_says_that_nothing_changed() -> None:
    assert use_recipe(Path("recipes/long.yaml"))
    assert not use_recipe(Path("recipes/long.yaml"))


def test_never_puts_a_recipe_upon_a_recipe() -> None:
    make_recipe("quick", "train:\n  lr: 0.5\n")
    use_recipe(Path("recipes/long.yaml"))
    use_recipe(Path("recipes/quick.yaml"))
    assert read_params()["train"]["epochs"] == 20
    assert read_params()["train"]["lr"] == 0.5


def test_changes_single_values_of_a_nested_section() -> None:
    use_recipe(make_recipe("stride", "train:\n  cnn:\n    stem: stride\n"))
    assert read_params()["train"]["cnn"] == {"base": 16, "stem": "stride", "dropout": 0.0}


@pytest.mark.parametrize(("written", "value"), [("'017'", "017"), ("'no'", "no"), ("'1e5'", "1e5"), ("12:30", "12:30")])
def test_text_that_looks_like_something_else_stays_text(written: str, value: str) -> None:
    use_recipe(make_recipe("odd", f"fetch:\n  name: {written}\n"))
    assert read_params()["fetch"]["name"] == value


def test_keeps_the_run_section() -> None:
    use_recipe(Path("recipes/long.yaml"))
    edit_params("  jobs: 0", "  jobs: 3")
    edit_params("  mirror: ''", "  mirror: /mnt/sets")
    quick = make_recipe("quick", "train:\n  lr: 0.5\nrun:\n  jobs: 8\n")
    assert use_recipe(quick)
    assert read_params()["run"] == make_run(jobs=3, mirror="/mnt/sets").model_dump()
    assert read_params()["train"]["lr"] == 0.5
    assert not use_recipe(quick)


def test_a_run_section_keeps_only_keys_that_the_base_has() -> None:
    written = merge_recipe(Path("recipes/long.yaml"))
    assert keep_run_section(written, "run:\n  jobs: 3\n  old: 1\n") == written.replace("  jobs: 0", "  jobs: 3")


@pytest.mark.parametrize("present", ["", "train:\n  epochs: 1\n", "run: 3\n", "- 1\n"])
def test_params_without_a_run_section_take_that_of_the_base(present: str) -> None:
    written = merge_recipe(Path("recipes/long.yaml"))
    assert keep_run_section(written, present) == written


def test_refuses_to_lose_edits_in_a_folder_without_git() -> None:
    use_recipe(Path("recipes/long.yaml"))
    edit_params("epochs: 99", "epochs: 98")
    assert refuse(Path("recipes/long.yaml")) == (
        "params.yaml: holds edits that are not committed; commit them, put them into a recipe of your own, or give "
        "--force to lose them."
    )


@pytest.mark.parametrize("run", ["", "run: 3\n"])
def test_refuses_to_lose_edits_that_leave_no_run_section(run: str) -> None:
    use_recipe(Path("recipes/long.yaml"))
    PARAMS.write_text(f"train:\n  epochs: 98\n{run}", "utf-8")
    assert "holds edits that are not committed" in refuse(Path("recipes/long.yaml"))


def test_a_base_without_a_run_section_is_refused() -> None:
    use_recipe(Path("recipes/long.yaml"))
    base = Path("recipes/base.yaml")
    text = base.read_text("utf-8")
    base.write_text(text[: text.index("run:")], "utf-8")
    assert "section `run` is missing" in refuse(Path("recipes/long.yaml"), force=True)


def test_refuses_to_lose_edits_after_a_commit(commit: Callable[[], None]) -> None:
    use_recipe(Path("recipes/long.yaml"))
    commit()
    edit_params("  lr: 0.01", "  lr: 0.02")
    assert "holds edits that are not committed" in refuse(Path("recipes/long.yaml"))


def test_refuses_to_lose_a_comment() -> None:
    use_recipe(Path("recipes/long.yaml"))
    PARAMS.write_text(PARAMS.read_text("utf-8") + "# mine\n", "utf-8")
    assert "holds edits" in refuse(Path("recipes/long.yaml"))


def test_loses_edits_when_told_to() -> None:
    use_recipe(Path("recipes/long.yaml"))
    edit_params("epochs: 99", "epochs: 98")
    assert use_recipe(Path("recipes/long.yaml"), force=True)
    assert read_params()["train"]["epochs"] == 99


def test_replaces_edits_that_are_committed(commit: Callable[[], None]) -> None:
    use_recipe(Path("recipes/long.yaml"))
    edit_params("  lr: 0.01", "  lr: 0.02")
    commit()
    assert use_recipe(Path("recipes/long.yaml"))
    assert read_params()["train"]["lr"] == 0.01


def test_replaces_what_a_recipe_made_though_it_is_not_committed(commit: Callable[[], None]) -> None:
    commit()
    use_recipe(Path("recipes/long.yaml"))
    assert use_recipe(make_recipe("quick", "train:\n  lr: 0.5\n"))


@pytest.mark.parametrize("text", ["trian: 1\n", "- 1\n"])
def test_a_wrong_recipe_is_not_in_the_way_of_another(text: str) -> None:
    use_recipe(Path("recipes/long.yaml"))
    make_recipe("aside", text)
    assert is_safe_to_replace(merge_recipe(Path("recipes/long.yaml")))
    edit_params("epochs: 99", "epochs: 98")
    assert "params.yaml: holds edits that are not committed" in refuse(Path("recipes/long.yaml"))


def test_what_no_recipe_made_is_not_safe_to_replace() -> None:
    assert not is_safe_to_replace("train: 1\n")


@pytest.mark.parametrize("content", [b"a:\n\tb: 1\n", b"a: 1\na: 2\n", b"\xff"], ids=["tab", "duplicate", "not UTF-8"])
def test_params_that_cannot_be_read_are_replaced_only_when_told_to(content: bytes) -> None:
    PARAMS.write_bytes(content)
    assert "params.yaml" in refuse(Path("recipes/long.yaml"))
    assert use_recipe(Path("recipes/long.yaml"), force=True)
    assert read_params()["train"]["epochs"] == 99


def test_reads_what_is_committed(commit: Callable[[], None]) -> None:
    PARAMS.write_text("é: 1\n", "utf-8")
    commit()
    PARAMS.write_text("b: 2\n")
    assert read_committed(PARAMS) == "é: 1\n"
    assert read_committed(Path("absent.yaml")) is None


def test_reads_what_is_committed_below_the_root_of_the_repository(
    commit: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("course").mkdir()
    Path("course/params.yaml").write_text("a: 1\n")
    commit()
    monkeypatch.chdir("course")
    assert read_committed(PARAMS) == "a: 1\n"


def test_nothing_is_committed_where_there_is_no_repository() -> None:
    PARAMS.write_text("a: 1\n")
    assert read_committed(PARAMS) is None


def test_says_that_git_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault) as caught:
        read_committed(PARAMS)
    assert str(caught.value) == "git is not installed; it says whether params.yaml holds edits."


def test_names_an_unknown_key_with_a_suggestion() -> None:
    recipe = make_recipe("wrong", "train:\n  epoch: 3\n  mlp:\n    hiden: 5\ntrian: 1\n")
    lines = refuse(recipe).split("\n")
    assert lines[0] == "recipes/wrong.yaml: keys that recipes/base.yaml lacks (3):"
    assert lines[1].startswith("  train.epoch: unknown key; did you mean `epochs`? Known: adagrad, adam, augment,")
    assert lines[2:] == [
        "  train.mlp.hiden: unknown key; did you mean `hidden`? Known: hidden",
        "  trian: unknown key; did you mean `train`? Known: balance, evaluate, fetch, run, split, train",
    ]


@pytest.mark.parametrize(("text", "key"), [("train: 1\n", "train"), ("train:\n  lr:\n    peak: 1\n", "train.lr")])
def test_names_a_section_in_place_of_a_value_and_the_other_way_round(text: str, key: str) -> None:
    assert f"  {key}: is a section in one and a value in the other" in refuse(make_recipe("wrong", text))


def test_refuses_a_wrong_value_before_it_writes() -> None:
    recipe = make_recipe("wrong", "train:\n  epochs: 0\n")
    use_recipe(Path("recipes/long.yaml"))
    assert "train.epochs: found 0; expected greater than or equal to 1" in refuse(recipe)


def test_force_does_not_skip_the_checks() -> None:
    recipe = make_recipe("wrong", "train:\n  epochs: 0\n")
    assert "train.epochs: found 0" in refuse(recipe, force=True)


def test_names_the_recipe_that_holds_a_wrong_value() -> None:
    assert "recipes/wrong.yaml" in refuse(make_recipe("wrong", "train:\n  epochs: 0\n"))


def test_names_params_where_its_own_run_section_holds_the_wrong_value() -> None:
    use_recipe(Path("recipes/long.yaml"))
    PARAMS.write_text("train:\n  epochs: 98\nrun:\n  old: 1\n  jobs: many\n", "utf-8")
    assert refuse(Path("recipes/long.yaml"), force=True) == (
        "wrong parameters (1):\n  params.yaml:5: run.jobs: found many; expected a valid integer"
    )


def test_names_the_recipe_whose_run_section_holds_the_wrong_value() -> None:
    use_recipe(Path("recipes/long.yaml"))
    message = refuse(make_recipe("wrong", "run:\n  jobs: many\n"))
    assert message.startswith("wrong parameters (1):\n  recipes/base.yaml with recipes/wrong.yaml:")
    assert message.endswith(": run.jobs: found many; expected a valid integer")


def test_refuses_a_recipe_that_is_no_mapping() -> None:
    assert refuse(make_recipe("wrong", "- 1\n")) == ("recipes/wrong.yaml:1: expected `key: value` pairs, found list.")


def test_says_that_the_base_is_absent() -> None:
    Path("recipes/base.yaml").unlink()
    message = refuse(Path("recipes/long.yaml"))
    assert message.startswith("recipes/base.yaml: cannot be read: No such file or directory.")


def test_what_use_wrote_from_a_recipe_elsewhere_may_be_replaced() -> None:
    mine = Path("mine.yaml")
    for epochs in (3, 4):  # the recipe itself is edited in between, as people do
        mine.write_text(f"train:\n  epochs: {epochs}\n", "utf-8")
        assert use_recipe(mine)
    edit_params("jobs: 0", "jobs: 2")  # the machine's own section does not count
    assert use_recipe(Path("recipes/long.yaml"))
    use_recipe(mine)
    edit_params("epochs: 4", "epochs: 5")
    assert "holds edits that are not committed" in refuse(Path("recipes/long.yaml"))


def test_places_that_are_not_there_yet_are_said() -> None:
    use_recipe(make_recipe("mine", "fetch:\n  source: folder\n  path: data/pets\n"))
    Path("data/classes").mkdir(parents=True)
    Path("data/classes/all.csv").write_text("class,as\n")
    assert list_missing() == ["fetch.path in params.yaml names data/pets, which is not there yet"]
    Path("data/pets").mkdir()
    assert list_missing() == []
