import pytest

from imagepipe.sources.names import (
    describe_litter,
    escape,
    find_litter,
    fold_name,
    is_litter,
    is_text,
    name_part,
    show_name,
)


@pytest.mark.parametrize(
    ("text", "part"),
    [("Train", "train"), (" VALID ", "val"), ("dev", "val"), ("testing", "test"), ("tests", ""), ("", "")],
)
def test_parts_by_what_people_call_them(text: str, part: str) -> None:
    assert name_part(text) == part


def test_text_is_what_utf8_can_write() -> None:
    assert is_text("é😀")
    assert not is_text("caf\udce9")
    assert escape("caf\udce9") == "caf\\xe9"


def test_litter_is_told_by_its_name() -> None:
    assert [name for name in (".a", "._a", "__MACOSX", "thumbs.DB", "Desktop.ini", "a.", "db") if is_litter(name)] == [
        ".a",
        "._a",
        "__MACOSX",
        "thumbs.DB",
        "Desktop.ini",
    ]
    assert describe_litter({}) == []
    many = {f".{number:02d}": 1 for number in range(12)} | {"._a": 2, "._b": 1, ".\x07": 1}
    (text,) = describe_litter(many)
    assert text.startswith("left out 16 files that no dataset needs: .\\x07, .00, .01, ")
    assert text.endswith(", .08 and 4 more")


def test_litter_is_found_anywhere_in_a_path() -> None:
    assert find_litter("pets/.git/config") == ".git"
    assert find_litter("pets/cat/1.jpg") == ""


def test_a_disk_may_take_case_and_accents_for_one() -> None:
    assert fold_name("ÅB") == fold_name("a\u030ab") == "\xe5b"
    assert fold_name("A") != fold_name("B")


def test_what_cannot_be_printed_is_escaped_in_messages() -> None:
    assert show_name("a\x07\u2028\udce9é") == "a\\x07\\u2028\\xe9é"
