import hashlib
import re
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagepipe.sources import keys as module
from imagepipe.sources.keys import SAFE, find_equal, make_keys, make_safe

NFD = unicodedata.normalize("NFD", "é")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
# Names that are likely to be taken for each other, beside any other.
LETTERS = st.sampled_from(
    ["a", "A", "é", "É", NFD, "ß", "ss", ".", " ", "~", "%", "\\", "ſ", "\udce9", "\n", "İ", "CON"]
)
COMPONENTS = st.one_of(
    st.lists(LETTERS, min_size=1, max_size=4).map("".join),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=255),
    st.sampled_from(["con", "Con.jpg", "a.png", "a", "A.PNG", "x" * 255, "x" * 254 + "y", "é" * 127]),
)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join)
PAIRS = st.lists(st.tuples(st.sampled_from(["", "train", "val", "test"]), PATHS), max_size=12, unique=True)


def make_key(path: str) -> str:
    (key,) = list_keys([("", path)])
    return key


def list_keys(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The keys of (part, path below the part), where the part is the folder that holds its files."""
    return list_all_keys([(part, below, f"{part}/{below}") for part, below in pairs])


def list_all_keys(paths: Sequence[tuple[str, str, str]]) -> list[str]:
    """The keys of (part, path below the part, whole path)."""
    parts, below, wholes = ([path[column] for path in paths] for column in range(3))
    return make_keys(parts, below, wholes)


def fold(key: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def make_table(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    return dict(zip(pairs, list_keys(pairs), strict=True))


@pytest.mark.parametrize(
    "path", ["cat/1.jpg", "Cat pics/IMG_0001.JPG", "שלום/😀.png", "é/1", "a~b", "conic", "com10/x"]
)
def test_safe_paths_are_their_own_keys(path: str) -> None:
    assert make_key(path) == path


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a:b/c?.jpg", "a%3Ab/c%3F.jpg"),
        ('say "hi"|<x>*', "say %22hi%22%7C%3Cx%3E%2A"),
        ("100%.jpg", "100%25.jpg"),
        ("back\\slash", "back%5Cslash"),
        ("two\nlines", "two%0Alines"),
        ("..name/.hidden", "%2E.name/%2Ehidden"),
        (" led/trailed ", "%20led/trailed%20"),
        ("dot./x", "dot%2E/x"),
        ("CON/aux.txt", "%43ON/%61ux.txt"),
        ("Com1.tar.gz", "%43om1.tar.gz"),
        ("caf\udce9.jpg", "caf%E9.jpg"),
        (f"caf{NFD}.jpg", "cafe%CC%81.jpg"),
        ("scan.PNG/1.jpg", "scan%2EPNG/1.jpg"),
    ],
)
def test_what_a_disk_may_refuse_is_percent_encoded(path: str, key: str) -> None:
    assert make_key(path) == key


def test_long_names_are_cut_and_told_apart_by_a_hash() -> None:
    first, second = list_keys([("", "x" * 254 + "1"), ("", "x" * 254 + "2")])
    assert re.fullmatch("x{200}~[0-9a-f]{16}", first)
    assert first != second
    assert make_key("é" * 127).startswith("é" * 100 + "~")


def test_a_path_that_several_parts_have_gets_its_part_in_front() -> None:
    pairs = [("train", "cat/1.jpg"), ("val", "cat/1.jpg"), ("val", "cat/2.jpg")]
    assert list_keys(pairs) == ["train/cat/1.jpg", "val/cat/1.jpg", "cat/2.jpg"]


def test_case_twins_of_two_parts_are_told_apart_by_the_part() -> None:
    assert list_keys([("train", "Cat/1.jpg"), ("val", "cat/1.jpg")]) == ["train/Cat/1.jpg", "val/cat/1.jpg"]


def test_a_safe_path_is_no_second_string() -> None:
    path = "cat/" + "1.jpg"
    assert make_keys(["train"], [path], ["train/cat/1.jpg"])[0] is path


def test_names_of_one_hash_are_looked_at_twice() -> None:
    names = ["b", "a", "B", "c", "a"]
    assert find_equal(names) == [1, 4]
    assert find_equal(names, str.lower) == [0, 1, 2, 4]
    assert find_equal([Alike(name) for name in names]) == [1, 4]
    assert find_equal([]) == []


class Alike(str):
    """Text whose hash is that of any other."""

    def __hash__(self) -> int:
        return 1

    def __str__(self) -> "Alike":
        return self


@given(
    PATHS | st.lists(st.sampled_from(["con", ".png", "a", "B", "7", " ", ".", "/", "lpt1", "%", "\x7f"])).map("".join)
)
def test_what_is_safe_at_a_glance_needs_no_change(path: str) -> None:
    assume(all(path.split("/")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAFE", re.compile("(?!)"))
        slowly = make_safe(path)
    assert make_safe(path) == slowly
    assert bool(SAFE.fullmatch(path)) == (path.isascii() and path == slowly)


def test_case_twins_get_a_hash_and_nothing_else_does() -> None:
    upper, lower, other = list_keys([("", "Cat/1.jpg"), ("", "cat/1.jpg"), ("", "cat/2.jpg")])
    assert re.fullmatch(r"Cat/1\.jpg~[0-9a-f]{8}", upper)
    assert re.fullmatch(r"cat/1\.jpg~[0-9a-f]{8}", lower)
    assert upper[-8:] != lower[-8:]
    assert other == "cat/2.jpg"


@pytest.mark.parametrize("part", ["", "test"])
def test_one_path_of_two_folders_in_the_same_part_gets_the_hash_of_the_whole_path(part: str) -> None:
    wholes = ["m_train/1.png", "m_test/1.png"]
    pairs = [(part, "1.png", whole) for whole in wholes]
    first, second, other = list_all_keys([*pairs, (part, "2.png", "m_test/2.png")])
    hashes = [hashlib.sha256(whole.encode()).hexdigest()[:8] for whole in wholes]
    front = f"{part}/" if part else ""
    assert [first, second, other] == [f"{front}1.png~{hashes[0]}", f"{front}1.png~{hashes[1]}", "2.png"]


def test_no_image_lies_where_a_folder_of_others_has_to_be() -> None:
    keys = list_keys([("", "cat/a"), ("", "cat/a.png/b")])
    files = {f"{key}.png" for key in keys}
    folders = {"/".join(key.split("/")[:depth]) for key in keys for depth in range(1, key.count("/") + 1)}
    assert files.isdisjoint(folders)


@given(PAIRS)
def test_keys_are_unique_on_a_disk_that_ignores_case_and_form(pairs: list[tuple[str, str]]) -> None:
    keys = list_keys(pairs)
    assert len({fold(key) for key in keys}) == len(pairs)


@given(st.lists(st.tuples(st.sampled_from(["", "train"]), st.sampled_from("xy"), PATHS), max_size=12, unique=True))
def test_keys_of_several_folders_in_a_part_are_unique(paths: list[tuple[str, str, str]]) -> None:
    # What is in one part twice lies in two folders; the part itself does not show in the path.
    wholes = {f"{folder}/{below}": (part, below, f"{folder}/{below}") for part, folder, below in paths}
    keys = list_all_keys(list(wholes.values()))
    assert len({fold(key) for key in keys}) == len(wholes)


@given(PAIRS)
def test_every_disk_can_hold_every_key(pairs: list[tuple[str, str]]) -> None:
    for key in list_keys(pairs):
        assert not key.startswith("/")
        assert not re.search(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff]', key)
        for component in key.split("/"):
            assert 0 < len(component.encode()) <= 255 - len(".png")
            assert not DEVICES.match(component)
            assert component not in (".", "..")
            assert component[0] not in ". "
            assert component[-1] not in ". "


@given(PAIRS, st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_the_order(pairs: list[tuple[str, str]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert make_table(shuffled) == make_table(pairs)


@given(PAIRS)
def test_files_and_folders_of_keys_never_clash(pairs: list[tuple[str, str]]) -> None:
    keys = [fold(key) for key in list_keys(pairs)]
    files = {f"{key}.png" for key in keys}
    folders = {"/".join(key.split("/")[:depth]) for key in keys for depth in range(1, key.count("/") + 1)}
    assert files.isdisjoint(folders)
