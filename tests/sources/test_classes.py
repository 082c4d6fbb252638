import unicodedata
from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.sources.classes import check_chosen, check_twins, read_chosen

NFD = unicodedata.normalize("NFD", "é")


def write(folder: Path, text: str) -> Path:
    path = folder / "classes.csv"
    path.write_text(text, "utf-8")
    return path


def test_pairs_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "class,as\nzebra,zebra\ncat,pet\ndog,pet\nNA,007\nno,1e5\n")
    assert read_chosen(path) == [("zebra", "zebra"), ("cat", "pet"), ("dog", "pet"), ("NA", "007"), ("no", "1e5")]


def test_a_file_without_rows_takes_all(tmp_path: Path) -> None:
    assert read_chosen(write(tmp_path, "class,as\n")) == []


def test_names_with_commas_and_quotes_are_quoted(tmp_path: Path) -> None:
    assert read_chosen(write(tmp_path, 'class,as\n"a,b","say ""hi"""\n')) == [("a,b", 'say "hi"')]


def test_the_checkouts_own_file_takes_all(root: Path) -> None:
    assert read_chosen(root / "data/classes/all.csv") == []


@pytest.mark.parametrize("header", ["class", "class,name", "as,class", "class,as,more", "Class,As"])
def test_another_header_is_refused(tmp_path: Path, header: str) -> None:
    found = ", ".join(header.split(","))
    with pytest.raises(InputError, match=rf"classes\.csv: has the columns {found}; expected class, as\."):
        read_chosen(write(tmp_path, header + "\n"))


def test_blank_cells_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_chosen(write(tmp_path, "class,as\ncat,cat\ndog,\n,bird\nemu, \n"))
    assert str(caught.value).splitlines()[1:] == [
        "  row 3: 'dog' as ''",
        "  row 4: '' as 'bird'",
        "  row 5: 'emu' as ' '",
        "Repeat the name in `as` to keep it.",
    ]
    assert "blank cells (3)" in str(caught.value)


def test_a_class_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"classes that stand there twice \(1\):\n  'cat'"):
        read_chosen(write(tmp_path, "class,as\ncat,cat\ndog,dog\ncat,pet\n"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"fetch\.classes: .*gone\.csv is not there; expected a CSV with the columns cl"
    ):
        read_chosen(tmp_path / "gone.csv")


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"classes\.csv: not a CSV with a header"):
        read_chosen(write(tmp_path, ""))


def test_an_unknown_class_gets_a_suggestion() -> None:
    with pytest.raises(InputError) as caught:
        check_chosen(Path("c.csv"), [("cat", "cat"), ("dgo", "dog"), ("x", "x")], ["cat", "dog"])
    assert str(caught.value).splitlines() == [
        "c.csv: classes that the source lacks (2):",
        "  'dgo'; did you mean `dog`? Known: cat, dog",
        "  'x'; Known: cat, dog",
    ]


def test_known_classes_pass() -> None:
    check_chosen(Path("c.csv"), [("dog", "a"), ("cat", "a")], ["cat", "dog", "emu"])
    check_chosen(Path("c.csv"), [], [])


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        (["Cat", "cat"], "'Cat', 'cat'"),
        (["cat", "cat "], "'cat', 'cat '"),
        (["\u00e9", NFD], r"'é', 'e\\u0301'"),
        (["Straße", "STRASSE"], "'Straße', 'STRASSE'"),
    ],
)
def test_twins_are_listed(classes: list[str], shown: str) -> None:
    with pytest.raises(
        InputError, match=rf"differ only in case, spaces or .* \(1\):\n  {shown}\nMake them one, or list"
    ):
        check_twins(["ant", *classes, "dog"], [])


@pytest.mark.parametrize("new", ["cat", "other"])
def test_twins_that_are_all_listed_pass(new: str) -> None:
    check_twins(["Cat", "cat", "dog"], [("Cat", "cat"), ("cat", new)])


def test_half_of_the_twins_is_not_enough() -> None:
    with pytest.raises(InputError, match="'Cat', 'cat'"):
        check_twins(["Cat", "cat", "dog"], [("cat", "cat"), ("dog", "dog")])


def test_twins_that_are_left_out_do_not_matter() -> None:
    check_twins(["Cat", "cat", "dog", "emu"], [("dog", "dog"), ("emu", "emu")])
