import pytest

from imagepipe.core.errors import EnvironmentFault, ImagepipeError, InputError, list_findings, suggest_name


@pytest.mark.parametrize(("kind", "code"), [(ImagepipeError, 1), (InputError, 2), (EnvironmentFault, 3)])
def test_each_kind_has_its_exit_code(kind: type[ImagepipeError], code: int) -> None:
    with pytest.raises(ImagepipeError) as caught:
        raise kind("why")
    assert caught.value.exit_code == code


def test_lists_all_of_twenty_findings() -> None:
    lines = list_findings("bad rows", [f"row {number}" for number in range(20)]).split("\n")
    assert lines == ["bad rows (20):", *(f"  row {number}" for number in range(20))]


def test_lists_the_first_twenty_and_counts_the_rest() -> None:
    lines = list_findings("bad rows", [f"row {number}" for number in range(23)], "Mend them.").split("\n")
    assert lines[0] == "bad rows (23):"
    assert lines[20:] == ["  row 19", "  … and 3 more", "Mend them."]


def test_shows_as_many_findings_as_asked() -> None:
    assert list_findings("bad", ["a", "b"], shown=1) == "bad (2):\n  a\n  … and 1 more"


def test_suggests_the_nearest_name_and_lists_all() -> None:
    assert suggest_name("epoch", ["seed", "epochs"]) == "did you mean `epochs`? Known: epochs, seed"


def test_suggests_nothing_where_no_name_is_near() -> None:
    assert suggest_name("zzz", ["seed", "epochs"]) == "Known: epochs, seed"


def test_a_long_list_of_names_is_cut() -> None:
    assert suggest_name("zzz", ["a", "b", "c"], shown=2) == "Known: a, b … and 1 more"
