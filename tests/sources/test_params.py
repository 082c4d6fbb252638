from pathlib import Path

import pytest

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.sources.params import FetchParams

PARAMS = """\
fetch:
  source: torchvision
  name: EMNIST
  options: split=letters
  path: data/source
  url: ''
  sha256: ''
  max_gigabytes: 20
  classes: data/classes/all.csv
  table:
    file: ''
    images: ''
    path: ''
    label: ''
    split: ''
    group: ''
"""


def load(tmp_path: Path, old: str = "", new: str = "") -> FetchParams:
    """The section above, with `old` replaced by `new`."""
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace(old, new) if old else PARAMS, "utf-8")
    return load_section("fetch", FetchParams, path)


def test_the_section_is_read(tmp_path: Path) -> None:
    params = load(tmp_path)
    assert (params.source, params.name, params.path) == ("torchvision", "EMNIST", "data/source")
    assert params.read_options() == {"split": "letters"}
    assert (params.max_gigabytes, params.classes, params.table.label) == (20, "data/classes/all.csv", "")


def test_the_checkouts_own_section_is_read(root: Path) -> None:
    assert load_section("fetch", FetchParams, root / "params.yaml").read_options() == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("''", {}), ("a=1 b=2", {"a": "1", "b": "2"}), ("' a=x=y '", {"a": "x=y"}), ("a=007", {"a": "007"})],
)
def test_options_are_words_with_an_equals_sign(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    assert load(tmp_path, "split=letters", text).read_options() == expected


@pytest.mark.parametrize(("text", "word"), [("a", "a"), ("=1", "=1"), ("a=", "a="), ("a=1 a=2", "a=2"), ("a = 1", "a")])
def test_a_word_of_another_form_is_shown(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"found '{word}'; expected words of the form name=value, each name once"):
        load(tmp_path, "split=letters", text).read_options()


def test_a_hash_may_be_written_in_capitals(tmp_path: Path) -> None:
    assert load(tmp_path, "sha256: ''", f"sha256: {'0A' * 32}").sha256 == "0a" * 32


@pytest.mark.parametrize("path", ["data/source", "photos", "./data/source", "/srv/photos", "database", "data/rawest"])
def test_folders_that_no_stage_writes_are_accepted(tmp_path: Path, path: str) -> None:
    assert load(tmp_path, "data/source", path).path == path


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("data/raw", "data/raw"),
        ("./data/raw/", "data/raw"),
        ("data/images/cats", "data/images"),
        ("data/manifests", "data/manifests"),
        ("models", "models"),
        ("reports/evaluate", "reports"),
        ("data", "data/raw"),
        (".", "data/raw"),
        ("/", "data/raw"),
        (Path.cwd().as_posix(), "data/raw"),
        (f"{Path.cwd().as_posix()}/models/x", "models"),
        (Path.cwd().parent.as_posix(), "data/raw"),
    ],
)
def test_a_folder_that_a_stage_writes_is_refused(tmp_path: Path, path: str, output: str) -> None:
    expected = rf"params\.yaml:5: fetch\.path: found {path}; expected a place that no stage writes \({output} is"
    with pytest.raises(InputError, match=expected):
        load(tmp_path, "data/source", path)


def test_a_link_to_a_folder_that_stages_write_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("d2").symlink_to("data")
    with pytest.raises(InputError) as caught:
        load(tmp_path, "data/source", "d2")
    assert str(caught.value) == (
        f"wrong parameters (1):\n  {tmp_path}/params.yaml:5: fetch.path: found d2; expected a place that no stage "
        "writes (data/raw is an output)"
    )


def test_a_folder_beside_what_a_linked_output_holds_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("disk/images", "disk/photos", "data"):
        Path(folder).mkdir(parents=True)
    Path("data/images").symlink_to("../disk/images")
    assert load(tmp_path, "data/source", "disk/photos").path == "disk/photos"
    with pytest.raises(InputError, match=r"found disk; expected a place that no stage writes \(data/images is an outp"):
        load(tmp_path, "data/source", "disk")


@pytest.mark.parametrize("path", ["../photos", "data/../../photos", ".."])
def test_a_folder_above_the_project_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=r"params\.yaml:5: fetch\.path: found .*without `\.\.`") as caught:
        load(tmp_path, "data/source", path)
    assert f"found {path};" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("source: torchvision", "source: ''", r"params\.yaml:2: fetch\.source: found ''; .*at least 1 character"),
        ("path: data/source", "path: ''", r"params\.yaml:5: fetch\.path: found ''; .*at least 1 character"),
        ("name: EMNIST", "name: 7", r"params\.yaml:3: fetch\.name: found 7; expected a valid string; put it in quotes"),
        (
            "sha256: ''",
            "sha256: abc",
            r"params\.yaml:7: fetch\.sha256: found 'abc'; expected 64 hexadecimal digits, or ''$",
        ),
        (
            "gigabytes: 20",
            "gigabytes: 0",
            r"params\.yaml:8: fetch\.max_gigabytes: found 0; .*greater than or equal to 1",
        ),
        (
            "classes: data/classes/all.csv",
            "classes: ../c.csv",
            r"params\.yaml:9: fetch\.classes: found \.\./c\.csv; .*`\.\.`",
        ),
        (
            "classes: data/classes/all.csv",
            "classes: data/raw/c.csv",
            r"params\.yaml:9: fetch\.classes: found data/raw/c",
        ),
        ("label: ''", "label: 7", r"params\.yaml:14: fetch\.table\.label: found 7; expected a valid string"),
        ("label: ''", "lable: ''", r"params\.yaml:14: fetch\.table\.lable: unknown key; did you mean `label`\?"),
        ("name: EMNIST", "nam: EMNIST", r"params\.yaml:3: fetch\.nam: unknown key; did you mean `name`\?"),
        ("  name: EMNIST\n", "", r"fetch\.name: is missing"),
    ],
)
def test_wrong_keys_and_values_give_line_and_key(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load(tmp_path, old, new)
