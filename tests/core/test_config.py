import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import parse_yaml as parse_as_dvc
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagepipe.core.config import find_node, list_keys, load_section, parse_yaml, read_pairs, read_yaml, refuse_output
from imagepipe.core.errors import InputError
from imagepipe.recipes import SECTIONS
from imagepipe.report.balance import BalanceParams
from imagepipe.training.params import TrainParams

Load = Callable[..., Any]


@pytest.fixture
def load(root: Path, tmp_path: Path) -> Load:
    """`load("train", old, new, …)`: that section of the base, with the line that begins with `old` begun by `new`."""
    base = (root / "recipes" / "base.yaml").read_text("utf-8")

    def load_changed(section: str, *changes: str) -> Any:
        text = base
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert f"\n{old}" in text
            text = text.replace(f"\n{old}", f"\n{new}", 1)
        path = tmp_path / "params.yaml"
        path.write_text(text, "utf-8")
        return load_section(section, SECTIONS[section], path)

    return load_changed


@pytest.fixture
def find_line(root: Path) -> Callable[[str], int]:
    """The line of the base that begins with a text."""
    lines = (root / "recipes" / "base.yaml").read_text("utf-8").split("\n")
    return lambda start: next(number for number, line in enumerate(lines, start=1) if line.startswith(start))


def refuse(load: Load, *arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        load(*arguments)
    return str(caught.value)


def read(content: bytes | str) -> dict[str, Any]:
    raw = content if isinstance(content, bytes) else content.encode()
    return parse_yaml(raw, Path("params.yaml"))[0]


@pytest.mark.parametrize("section", list(SECTIONS))
def test_the_base_is_valid(load: Load, section: str) -> None:
    assert isinstance(load(section), SECTIONS[section])


def test_params_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("train").epochs = 3


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-3", 0.001),
        ("1E+5", 100000.0),
        ("0o17", 15),
        ("017", 17),
        ("0x1f", 31),
        ("+1", 1),
        ("1_000", 1000),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("12:30:45", "12:30:45"),
        ("NA", "NA"),
        ("'017'", "017"),
        ("true", True),
        ("~", None),
        (".inf", math.inf),
    ],
)
def test_reads_scalars_as_yaml_1_2(scalar: str, value: object) -> None:
    found = read(f"x: {scalar}\n")["x"]
    assert (found, type(found)) == (value, type(value))


ODD_SCALARS = """
0o17 0o8 017 08 1_000 1__0 _1 12:30 12:30:45 -1:30 yes no on off y n Yes NO true True TRUE ~ null Null .inf -.INF +.inf
.nan .NaN +1 -0 +0x1 0x1f 0x_ 0b11 1. .5 1.5e 1e5 1e-3 1E+5 1e400 2024-01-02 2024-02-30 2024-13-01 2024-01-02T25:00:00
2024-01-02T03:04:05Z = << ! !!str !!int !!foo !x & * % @ ` | > - ? : '' [] {} [1 {a 'x "x #x
"""
NUMBERS = st.integers().map(str) | st.floats().map(repr)
NEAR_NUMBERS = st.from_regex(r"[-+]?[0-9._eExob:]{1,8}", fullmatch=True)
NEAR_DATES = st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-9]{2}:[0-9]{2}:[0-9]{2}Z?)?", fullmatch=True)


@given(
    st.sampled_from(ODD_SCALARS.split())
    | NUMBERS
    | NEAR_NUMBERS
    | NEAR_DATES
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
@example("2024-02-30")
@settings(max_examples=300)
def test_reads_what_dvc_reads(scalar: str) -> None:
    text = f"x: {scalar}\n"
    try:
        as_dvc = repr(parse_as_dvc(text, "params.yaml"))
    except Exception:  # noqa: BLE001  (DVC lets some of ruamel.yaml's errors through as they are)
        as_dvc = "an error"
    try:
        ours = repr(read(text))
    except InputError:
        ours = "an error"
    assert ours == as_dvc


@pytest.mark.parametrize("scalar", ["2024-02-30", "0x_", "!!int a"])
def test_names_the_line_of_a_value_that_cannot_be_made(scalar: str) -> None:
    with pytest.raises(InputError, match=r"^params\.yaml:2: "):
        read(f"a: 1\nx: {scalar}\n")


def test_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\r\nb: \xc3\xa9\r\n")
    assert read_yaml(tmp_path / "a.yaml")[0] == {"a": 1, "b": "é"}


def test_says_that_the_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "params.yaml")
    expected = (
        f"{tmp_path / 'params.yaml'}: cannot be read: No such file or directory. Run from the project's root folder."
    )
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 'params.yaml:3: found duplicate key "a".'),
        ("a: {b: 1,\n b: 2}\n", 'params.yaml:2: found duplicate key "b".'),
        (
            "a:\n\tb: 1\n",
            "params.yaml:2: found character '\\t' that cannot start any token. Indent with spaces, not tabs.",
        ),
        ("", "params.yaml:1: expected `key: value` pairs, found nothing."),
        ("# a comment\n", "params.yaml:1: expected `key: value` pairs, found nothing."),
        ("- 1\n", "params.yaml:1: expected `key: value` pairs, found list."),
        ("text\n", "params.yaml:1: expected `key: value` pairs, found str."),
        (b"\xef\xbb\xbfa: 1\n", "params.yaml:1: begins with a byte-order mark; save it as plain UTF-8."),
        (b"a: 1\nb: \xe9\n", "params.yaml: byte 8 is not UTF-8; save the file as UTF-8."),
        ("a: 1\n b: 2\n", "params.yaml:2: mapping values are not allowed here."),
        ("a: 1\nb: *c\n", "params.yaml:2: found undefined alias 'c'."),
        ("a: !!python/object:os.system 1\n", "params.yaml:1: could not determine a constructor for the tag"),
    ],
    ids=str,
)
def test_refuses_a_file_that_is_no_mapping(content: bytes | str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(content)
    assert str(caught.value).startswith(message)


def test_refuses_a_second_document() -> None:
    with pytest.raises(InputError, match=r"params\.yaml:2: .*another document"):
        read("a: 1\n---\nb: 2\n")


def test_names_the_line_of_a_control_character() -> None:
    with pytest.raises(InputError, match=r"^params\.yaml:2: .*a control character, .*x07"):
        read("a: 1\nb: \x07\n")


@pytest.mark.parametrize("text", [r'a: "\UFFFFFFFF"', r'a: "\U00110000"', f"%YAML {'9' * 5000}.1\n---\na: 1"])
def test_refuses_what_is_no_character_or_number(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^params\.yaml: an escape in double quotes .* is out of range \(.*\); mend it"
    ):
        read(text)


def test_refuses_a_list_of_lists_for_a_key() -> None:
    with pytest.raises(InputError, match=r"^params\.yaml: has a key that is a list or a mapping; expected text\.$"):
        read("? - - 1\n: 2\n")


@pytest.mark.parametrize("text", ["a: " + "[" * 900 + "]" * 900, "\n".join(" " * depth + "a:" for depth in range(900))])
def test_refuses_what_is_nested_too_deeply(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^params\.yaml: is nested too deeply; expected sections of `key: value` pairs"
    ):
        read(text)


def test_aliases_that_multiply_are_neither_walked_nor_shown_in_full(load: Load) -> None:
    """Thirty lines that stand for 9^30 values, and a list that holds itself."""
    lines = [f"      - &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 31)]
    message = refuse(load, "train", "  lr: 0.01", "\n".join(["  lr:", "      - &a0 [x]", *lines]))
    assert "train.lr: found [['x'], [[...], [...], " in message
    assert len(message) < 1000
    assert "train.lr: found [[[" in refuse(load, "train", "  lr: 0.01", "  lr: &a [*a]")


@pytest.mark.parametrize("number", ["1e-3", "0.001", "1", "1_0.5"])
def test_accepts_any_number_for_a_learning_rate(load: Load, number: str) -> None:
    assert load("train", "  lr: 0.01", f"  lr: {number}").lr == float(number)


@pytest.mark.parametrize("name", ["no", "12:30", "NA", "yes", "'017'", '"1e5"'])
def test_text_stays_text(load: Load, name: str) -> None:
    assert load("fetch", "  name: ''", f"  name: {name}").name == name.strip("'\"")


@pytest.mark.parametrize("name", ["017", "1e5", "true", "2024-01-02", "~"])
def test_says_to_quote_what_is_not_text(load: Load, find_line: Callable[[str], int], name: str) -> None:
    message = refuse(load, "fetch", "  name: ''", f"  name: {name}")
    line = find_line("  name:")
    hint = f'fetch.name: found {name}; expected a valid string; put it in quotes to mean text: "{name}"'
    assert message.startswith("wrong parameters (1):\n")
    assert message.endswith(f"params.yaml:{line}: {hint}")


def test_names_the_nearest_of_an_unknown_key(load: Load, find_line: Callable[[str], int]) -> None:
    message = refuse(load, "train", "  epochs: 20", "  epochs: 20\n  epoch: 20")
    line = find_line("  epochs:") + 1
    assert f"params.yaml:{line}: train.epoch: unknown key; did you mean `epochs`? Known: adagrad," in message


def test_names_the_nearest_of_an_unknown_key_in_a_section(load: Load, find_line: Callable[[str], int]) -> None:
    message = refuse(load, "train", "    hidden: 100", "    hiden: 100")
    line = find_line("    hidden:")
    assert "wrong parameters (2):" in message
    assert f"params.yaml:{line}: train.mlp.hiden: unknown key; did you mean `hidden`? Known: hidden" in message


def test_names_a_missing_key(load: Load, find_line: Callable[[str], int]) -> None:
    message = refuse(load, "train", "  epochs: 20\n", "")
    problem = "train.epochs: is missing (every key is always present; see recipes/base.yaml)"
    assert message.endswith(f"params.yaml:{find_line('train:')}: {problem}")


def test_names_a_missing_section(load: Load) -> None:
    message = refuse(load, "train", "train:\n", "trian:\n")
    expected = (
        "params.yaml: section `train` is missing; did you mean `trian`? Known: balance, evaluate, fetch, run, split,"
    )
    assert expected in message


@pytest.mark.parametrize(
    ("section", "old", "new", "problem"),
    [
        ("train", "  epochs: 20", "  epochs: true", "train.epochs: found true; expected a valid integer"),
        ("train", "  epochs: 20", "  epochs: 1e3", "train.epochs: found 1e3; expected a valid integer"),
        ("train", "  epochs: 20", "  epochs: 0", "train.epochs: found 0; expected greater than or equal to 1"),
        ("train", "  batch_size: 64", "  batch_size: -1", "train.batch_size: found -1; expected a whole"),
        ("train", "  lr: 0.01", "  lr: true", "train.lr: found true; expected a valid number"),
        ("train", "  lr: 0.01", "  lr: .nan", "train.lr: found .nan; expected a finite number"),
        ("train", "  lr: 0.01", "  lr: 1e400", "train.lr: found 1e400; expected a finite number"),
        ("train", "  lr: 0.01", "  lr: 0", "train.lr: found 0; expected greater than 0"),
        ("train", "  lr: 0.01", "  lr: -0.1", "train.lr: found -0.1; expected greater than 0"),
        ("train", "  lr: 0.01", "  lr: [0.1]", "train.lr: found [0.1]; expected a valid number"),
        ("train", "  shuffle: true", "  shuffle: yes", "train.shuffle: found yes; expected a valid boolean"),
        ("train", "  shuffle: true", "  shuffle: 1", "train.shuffle: found 1; expected a valid boolean"),
        ("train", "  keep: best", "  keep: bset", "train.keep: found bset; expected 'best' or 'last'"),
        ("train", "  device: cpu", "  device: gpu", "train.device: found gpu; expected 'auto', 'cpu', 'cuda' or"),
        ("split", "  seed: 1", "  seed: -1", "split.seed: found -1; expected greater than or equal to 0"),
        ("split", "  seed: 1", "  seed: 1.5", "split.seed: found 1.5; expected a valid integer"),
        ("split", "  seed: 1", f"  seed: {2**63}", f"split.seed: found {2**63}; expected less than {2**63}"),
        ("split", "    train: 0.7", "    train: -0.7", "split.fractions.train: found -0.7; expected greater than or"),
        (
            "balance",
            "  max_ratio: 1.5",
            "  max_ratio: 0.5",
            "balance.max_ratio: found 0.5; expected greater than or equal to 1",
        ),
        ("evaluate", "  confidence: 0.95", "  confidence: 95", "evaluate.confidence: found 95; expected less than 1"),
        ("run", "  jobs: 0", "  jobs: -1", "run.jobs: found -1; expected greater than or equal to 0"),
    ],
    ids=str,
)
def test_names_line_key_found_and_expected(
    load: Load, find_line: Callable[[str], int], section: str, old: str, new: str, problem: str
) -> None:
    assert f"params.yaml:{find_line(old)}: {problem}" in refuse(load, section, old, new)


def test_the_largest_seed_is_in_range(load: Load) -> None:
    assert load("split", "  seed: 1", f"  seed: {2**63 - 1}").seed == 2**63 - 1


def test_reports_every_wrong_key_at_once(load: Load) -> None:
    message = refuse(load, "train", "  epochs: 20\n", "  epochs: 0\n  epoch: 1\n  dropout: 1\n")
    assert message.startswith("wrong parameters (3):\n")


def test_a_number_in_quotes_is_shown_with_them(load: Load) -> None:
    assert "train.lr: found '0.1'; expected a valid number" in refuse(load, "train", "  lr: 0.01", "  lr: '0.1'")


@pytest.mark.parametrize(("section", "key", "old"), [("train", "lr", "  lr: 0.01"), ("fetch", "name", "  name: ''")])
def test_a_key_without_a_value_is_said_to_hold_nothing(load: Load, section: str, key: str, old: str) -> None:
    assert f"{section}.{key}: found nothing; expected" in refuse(load, section, old, f"  {key}:")


def test_a_value_in_place_of_a_section_is_named(load: Load) -> None:
    message = refuse(load, "train", "  mlp:\n    hidden: 100", "  mlp: 100")
    assert "train.mlp: found 100; expected `key: value` pairs" in message


@pytest.mark.parametrize(
    ("fractions", "problem"),
    [
        ("    train: 0.8\n", "train, val and test sum to 1.1; expected 1"),
        ("    train: 0.6\n", "train, val and test sum to 0.9; expected 1"),
    ],
)
def test_refuses_fractions_that_do_not_sum_to_one(
    load: Load, find_line: Callable[[str], int], fractions: str, problem: str
) -> None:
    message = refuse(load, "split", "    train: 0.7\n", fractions)
    assert message.endswith(f"params.yaml:{find_line('  fractions:')}: split.fractions: {problem}")


def test_refuses_an_empty_train_split(load: Load) -> None:
    message = refuse(load, "split", "    train: 0.7\n    val: 0.1", "    train: 0\n    val: 0.8")
    assert message.endswith("split.fractions: train is 0; expected more")


def test_accepts_whole_fractions(load: Load) -> None:
    fractions = load(
        "split", "    train: 0.7\n    val: 0.1\n    test: 0.2", "    train: 1\n    val: 0\n    test: 0"
    ).fractions
    assert (fractions.train, fractions.val, fractions.test) == (1, 0, 0)


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("data/raw", "data/raw"),
        ("./data/raw", "data/raw"),
        ("data//images/cats", "data/images"),
        ("data/manifests", "data/manifests"),
        ("models", "models"),
        ("reports/train", "reports"),
    ],
)
def test_refuses_a_source_that_is_an_output(
    load: Load, find_line: Callable[[str], int], path: str, output: str
) -> None:
    problem = f"fetch.path: found {path}; expected a place that no stage writes ({output} is an output)"
    message = refuse(load, "fetch", "  path: data/source", f"  path: {path}")
    assert message.endswith(f"params.yaml:{find_line('  path:')}: {problem}")


@pytest.mark.parametrize("path", [".", "data"])
def test_refuses_a_source_that_holds_an_output(load: Load, path: str) -> None:
    assert f"fetch.path: found {path}; expected" in refuse(load, "fetch", "  path: data/source", f"  path: {path}")


@pytest.mark.parametrize("path", ["..", "../images", "data/../../images", "data/source/.."])
def test_refuses_a_source_that_leaves_through_dots(load: Load, path: str) -> None:
    problem = f"found {path}; expected a path inside the project or an absolute one, without `..`"
    assert refuse(load, "fetch", "  path: data/source", f"  path: {path}").endswith(f"fetch.path: {problem}")


@pytest.mark.parametrize("path", ["data/source/cats", "/mnt/images", "data/rawer", "pictures..old"])
def test_accepts_any_other_source(load: Load, path: str) -> None:
    assert load("fetch", "  path: data/source", f"  path: {path}").path == path


def test_names_both_of_an_incompatible_pair(load: Load, find_line: Callable[[str], int]) -> None:
    problem = "train: warmup is 0.5 but schedule `onecycle` has a rise of its own (onecycle.pct_start); set warmup to 0"
    assert f"params.yaml:{find_line('train:')}: {problem}" in refuse(load, "train", "  warmup: 0.0", "  warmup: 0.5")


def test_accepts_one_of_the_pair_alone(load: Load) -> None:
    changes = ("  schedule: onecycle", "  schedule: cosine", "  warmup: 0.0", "  warmup: 0.5")
    assert load("train", *changes).warmup == 0.5


def test_finds_the_deepest_part_that_the_file_has() -> None:
    tree = parse_yaml(b"a:\n  b:\n    c: 1\n", Path("params.yaml"))[1]
    key, value = find_node(tree, ["a", "b", "absent", "c"])
    assert (key.value, key.start_mark.line) == ("b", 1)
    assert value.start_mark.line == 2


@pytest.mark.parametrize(
    ("path", "names"), [(["mlp"], ["hidden"]), (["cnn"], ["base", "stem", "dropout"]), (["lr"], []), (["absent"], [])]
)
def test_lists_the_keys_of_a_section(path: list[str], names: list[str]) -> None:
    assert list_keys(TrainParams, path) == names


def test_names_an_unknown_section_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("balance:\n  max_ratio: 1.5\nseed: 5\nbalnce: {}\n")
    with pytest.raises(InputError) as caught:
        load_section("balance", BalanceParams, tmp_path / "params.yaml")
    assert "params.yaml:3: seed: unknown section" in str(caught.value)
    assert "params.yaml:4: balnce: unknown section; did you mean `balance`?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", {}), ("a=1 b=2", {"a": "1", "b": "2"}), (" a=x=y ", {"a": "x=y"}), ("a=007", {"a": "007"})],
)
def test_pairs_are_words_with_an_equals_sign(text: str, expected: dict[str, str]) -> None:
    assert read_pairs(text) == expected


@pytest.mark.parametrize(("text", "word"), [("a", "a"), ("=1", "=1"), ("a=", "a="), ("a=1 a=2", "a=2"), ("a = 1", "a")])
def test_a_word_of_another_form_is_shown(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"found '{word}'; expected words of the form name=value, each name once"):
        read_pairs(text)


@pytest.mark.parametrize(
    ("place", "output"),
    [
        ("data/raw", "data/raw"),
        ("./data/images/", "data/images"),
        ("data/source/../manifests/x", "data/manifests"),
        ("~/models", "models"),
        ("kept/x", "reports"),
    ],
)
def test_an_output_is_known_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kept").symlink_to("reports")
    with pytest.raises(ValueError, match=re.escape(f"found {place}; expected a place that no stage writes ({output} ")):
        refuse_output(place)


@pytest.mark.parametrize("place", ["data", ".", "..", "data/rawest", "/srv/models", "~nobody-of-this-name/models"])
def test_what_no_stage_writes_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_output(place)
