from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagepipe.core.config import read_yaml
from imagepipe.core.errors import InputError
from imagepipe.core.files import write_csv
from imagepipe.core.manifest import LeakInfo
from imagepipe.core.tables import read_text_table
from imagepipe.prepare.leaks import COLUMNS, Gate, gate_leaks, resolve_policy
from imagepipe.prepare.params import SplitParams
from imagepipe.sources.records import Record
from tests.conftest import ROOT

# key, split, class, pixels, and what may follow: group, fingerprint
Row = tuple[str, ...]
PIXEL = np.zeros((1, 1), np.uint8)
BASE = read_yaml(ROOT / "recipes" / "base.yaml")[0]["split"]


def run_gate(
    rows: Sequence[Row],
    leaks: str = "keep",
    near: int = 3,
    official: Sequence[str] = (),
    published: bool = False,
    unprinted: Sequence[str] = (),
) -> Gate:
    """The gate over the rows; the keys in `unprinted` are left out of the fingerprints."""
    records = [
        Record(row[0], row[2], "", row[4] if len(row) > 4 else "", f"photos/{row[0]}.jpg", PIXEL) for row in rows
    ]
    pixels = {row[0]: row[3] for row in rows}
    fingerprints = {row[0]: row[5] if len(row) > 5 else "0123456789abcdef" for row in rows}
    for key in unprinted:
        del fingerprints[key]
    params = SplitParams.model_validate(BASE | {"leaks": leaks, "near_distance": near})
    splits = {row[0]: row[1] for row in rows}
    return gate_leaks(records, splits, pixels, fingerprints, params, official, published)


def list_rows(gate: Gate, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(row) for row in gate.findings.loc[:, list(columns)].to_numpy().tolist()]


CLEAN: list[Row] = [("a", "train", "cat", "1"), ("b", "val", "cat", "2"), ("c", "test", "dog", "3")]
SHARED: list[Row] = [
    ("a", "train", "cat", "1"),
    ("b", "test", "cat", "1"),
    ("c", "train", "cat", "2"),
    ("d", "val", "cat", "3"),
    ("e", "test", "cat", "4"),
]


def test_a_clean_split_passes_and_its_table_still_has_columns(tmp_path: Path) -> None:
    gate = run_gate(CLEAN, "error", near=-1)
    assert gate.info == LeakInfo(policy="error", duplicates=0, groups=0, labels=0, dropped=0, repeated=0, near=None)
    assert tuple(gate.findings.columns) == COLUMNS
    assert (gate.findings.empty, gate.dropped, gate.notes) == (True, frozenset(), [])
    write_csv(tmp_path / "leaks.csv", gate.findings)
    assert tuple(read_text_table(tmp_path / "leaks.csv").columns) == COLUMNS


def test_equal_pixels_in_two_splits_are_kept_and_said() -> None:
    gate = run_gate(SHARED, near=-1)
    assert list_rows(gate, *COLUMNS) == [
        ("duplicate", "", "kept", "train", "a", "cat", "photos/a.jpg", "test", "b", "cat", "photos/b.jpg")
    ]
    assert (gate.info.duplicates, gate.dropped) == (1, frozenset())
    assert gate.notes == [
        "1 test image with the very pixels of train images (kept, since split.leaks is keep): accuracy on test flatters"
    ]


def test_equal_pixels_in_two_splits_stop_the_stage() -> None:
    with pytest.raises(InputError) as caught:
        run_gate(SHARED, "error")
    assert str(caught.value).splitlines() == [
        "the splits leak: equal pixels in two splits (1):",
        "  photos/a.jpg (train, class 'cat') and photos/b.jpg (test, class 'cat')",
        "Set split.leaks in params.yaml to `drop` (test stays whole, val and train give up what a higher split holds "
        "too; of equal pixels under two classes every image goes) or to `keep` (nothing goes; figures flatter); "
        "leaks.csv then lists all of them.",
    ]


def test_drop_takes_the_copies_of_the_lesser_split() -> None:
    gate = run_gate(SHARED, "drop", near=-1)
    assert gate.dropped == {"a"}
    assert list_rows(gate, "action", "key") == [("dropped", "a")]
    assert (gate.info.duplicates, gate.info.dropped) == (1, 1)
    assert gate.notes == ["1 image left out (1 of train), since split.leaks is drop; leaks.csv says why"]


def test_many_copies_give_one_finding_each() -> None:
    copies: list[Row] = [(f"t{number}", "train", "cat", "1") for number in range(5)]
    rows = [*copies, ("v", "val", "cat", "1"), ("y", "test", "cat", "1"), ("x", "test", "cat", "1")]
    gate = run_gate([*rows, ("u", "train", "cat", "2"), ("w", "val", "cat", "3")], near=-1)
    assert list_rows(gate, "key", "other_key") == [(f"t{n}", "x") for n in range(5)] + [("v", "x")]
    assert gate.info.duplicates == 3  # v, x and y
    assert gate.info.repeated == 4 + 1
    assert gate.notes[0].startswith("2 test images with the very pixels of train images (kept")
    assert gate.notes[1].startswith("1 val image with the very pixels of train images (kept")
    assert gate.notes[2].startswith("2 test images with the very pixels of val images (kept")
    assert gate.notes[2].endswith("what is chosen by val is chosen by test images too")
    assert gate.notes[3] == "5 images with the very pixels of another in the same split (kept)"


def test_a_group_in_several_splits_is_found_and_the_lesser_rows_dropped() -> None:
    rows: list[Row] = [
        ("a", "train", "cat", "1", "p7"),
        ("b", "val", "cat", "2", "p7"),
        ("c", "val", "cat", "3", "p8"),
        ("d", "train", "cat", "4", ""),
        ("e", "val", "cat", "5", ""),
        ("f", "val", "dog", "6", "p7"),
    ]
    gate = run_gate(rows, "drop", near=-1)
    assert list_rows(gate, "kind", "action", "key", "other_key") == [("group", "dropped", "a", "b")]
    assert (gate.info.groups, gate.info.duplicates, gate.dropped) == (1, 0, {"a"})
    assert run_gate(rows, "keep", near=-1).notes == [
        "groups in several splits: 1 (kept, since split.leaks is keep): accuracy on test may flatter"
    ]


def test_a_group_is_named_once_and_the_group_strategy_suggested() -> None:
    rows: list[Row] = [(f"a{n}", "train", "cat", f"1{n}", "p7") for n in range(30)]
    with pytest.raises(InputError) as caught:
        run_gate([*rows, ("b", "test", "cat", "2", "p7")], "error")
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "the splits leak: groups in several splits (1):",
        "  'p7': photos/a0.jpg (train, class 'cat') and photos/b.jpg (test, class 'cat')",
    ]
    assert lines[2].endswith("Or set split.strategy to `group`, which deals all images anew and keeps each group in "
                             "one split.")  # fmt: skip


TWO_CLASSES: list[Row] = [
    ("a", "test", "cat", "1"),
    ("b", "test", "dog", "1"),
    ("c", "test", "cat", "2"),
    ("d", "train", "cat", "3"),
    ("e", "train", "dog", "4"),
]


def test_equal_pixels_under_two_classes_all_go() -> None:
    gate = run_gate(TWO_CLASSES, "drop", near=-1)
    assert list_rows(gate, "kind", "action", "key", "class", "other_key", "other_class") == [
        ("label", "dropped", "a", "cat", "b", "dog"),
        ("label", "dropped", "b", "dog", "a", "cat"),
    ]
    assert (gate.dropped, gate.info.labels, gate.info.repeated) == ({"a", "b"}, 2, 0)
    assert gate.notes == ["2 images left out (2 of test), since split.leaks is drop; leaks.csv says why"]


def test_equal_pixels_under_two_classes_are_one_pair_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        run_gate(TWO_CLASSES, "error")
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "the splits leak: equal pixels under two classes (1):",
        "  photos/a.jpg (test, class 'cat') and photos/b.jpg (test, class 'dog')",
    ]
    assert lines[2].endswith("Or mend the labels in the source.")


def test_equal_pixels_under_two_classes_that_are_kept() -> None:
    assert run_gate(TWO_CLASSES, "keep", near=-1).notes == [
        "2 images whose pixels stand under another class too (kept, since split.leaks is keep): "
        "no model gets all of them right",
        "1 image with the very pixels of another in the same split (kept)",
    ]


def test_two_classes_across_splits_are_two_kinds_each_with_its_heading_and_count() -> None:
    rows: list[Row] = [(f"a{n:02d}", "train", "cat", f"1{n}") for n in range(25)]
    rows += [(f"b{n:02d}", "test", "cat", f"1{n}") for n in range(24)] + [("b24", "test", "dog", "124")]
    with pytest.raises(InputError) as caught:
        run_gate(rows, "error")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the splits leak: equal pixels in two splits (25):"
    assert lines[21:-1] == [
        "  … and 5 more",
        "equal pixels under two classes (1):",
        "  photos/a24.jpg (train, class 'cat') and photos/b24.jpg (test, class 'dog')",
    ]
    assert run_gate(rows, "keep").info.labels == 2


@pytest.mark.parametrize(
    ("leaks", "official", "published", "expected"),
    [
        ("auto", ["test"], True, "keep"),
        ("auto", ["test"], False, "error"),
        ("auto", [], True, "error"),
        ("error", ["test"], True, "error"),
        ("drop", ["test"], True, "drop"),
        ("keep", [], False, "keep"),
    ],
)
def test_auto_keeps_the_parts_of_a_published_set_alone(
    leaks: str, official: list[str], published: bool, expected: str
) -> None:
    assert resolve_policy(leaks, official, published) == expected  # pyright: ignore[reportArgumentType]
    assert run_gate(CLEAN, leaks, official=official, published=published).info.policy == expected


def test_what_auto_keeps_says_why() -> None:
    gate = run_gate(SHARED, "auto", near=-1, official=["test"], published=True)
    assert "(kept, since these are a published set's own parts and split.leaks is auto)" in gate.notes[0]


def test_dropping_that_leaves_a_split_or_a_class_empty_is_refused() -> None:
    rows: list[Row] = [
        ("a", "train", "cat", "1"),
        ("b", "val", "cat", "1"),
        ("c", "test", "cat", "1"),
        ("d", "train", "dog", "2"),
    ]
    with pytest.raises(InputError) as caught:
        run_gate(rows, "drop")
    assert str(caught.value).splitlines() == [
        "params.yaml: split.leaks is `drop`, and that leaves nothing of (2):",
        "  class 'cat' of train: 1, all dropped",
        "  split val: 1, all dropped",
        "Bring images that the splits do not share, mend the labels, or set split.leaks to `keep`.",
    ]


LOOKALIKES: list[Row] = [
    ("a", "train", "cat", "1", "", "0123456789abcdef"),
    ("b", "test", "dog", "2", "", "0123456789abcdee"),
    ("c", "val", "cat", "1", "", "0123456789abcdef"),
    ("d", "train", "dog", "3", "", "fedcba9876543210"),
    ("e", "val", "dog", "4", "", ""),
]


def test_lookalikes_are_reported_and_never_dropped() -> None:
    gate = run_gate(LOOKALIKES[:2] + LOOKALIKES[3:], "drop")
    assert list_rows(gate, "kind", "distance", "action", "split", "key", "other_split", "other_key") == [
        ("lookalike", "1", "reported", "train", "a", "test", "b")
    ]
    assert (gate.info.near, gate.dropped) == (1, frozenset())
    assert gate.notes == ["look-alikes across splits: 1 (at most 3 of 64 bits differ; reported in leaks.csv, all kept)"]
    assert run_gate([CLEAN[0], ("z", "val", "cat", "9", "", "")], near=0).info.near == 0


def test_equal_pixels_are_duplicates_and_not_lookalikes() -> None:
    gate = run_gate(LOOKALIKES, "keep")
    assert list_rows(gate, "kind", "key", "other_key") == [
        ("duplicate", "a", "c"),
        ("lookalike", "a", "b"),
        ("lookalike", "c", "b"),
    ]


def test_what_is_dropped_is_no_lookalike() -> None:
    gate = run_gate([*LOOKALIKES, ("f", "train", "cat", "5", "", "")], "drop")
    assert gate.dropped == {"a"}
    assert list_rows(gate, "kind", "key", "other_key") == [("duplicate", "a", "c"), ("lookalike", "c", "b")]


def test_lookalikes_are_not_looked_for_when_told_so_or_when_all_images_are_small() -> None:
    assert run_gate(LOOKALIKES, near=-1).info.near is None
    assert run_gate([(*row[:5], "") for row in LOOKALIKES]).info.near is None
    assert run_gate(LOOKALIKES, unprinted="abcde").info.near is None


def test_an_image_without_a_fingerprint_is_no_lookalike() -> None:
    gate = run_gate(LOOKALIKES, unprinted="ae")
    assert list_rows(gate, "kind", "key", "other_key") == [("duplicate", "a", "c"), ("lookalike", "c", "b")]


def test_more_lookalikes_than_are_listed_are_said_to_be_more() -> None:
    rows: list[Row] = [(f"a{n:03d}", "train", "cat", f"a{n}") for n in range(120)]
    gate = run_gate([*rows, ("b", "test", "cat", "b")])
    assert gate.info.near == 100
    assert gate.notes == [
        "look-alikes across splits: at least 100 (at most 3 of 64 bits differ; reported in leaks.csv, all kept); "
        "where very many images look alike, not all were compared or listed"
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["train", "val", "test"]),
            st.sampled_from(["cat", "dog"]),
            st.sampled_from([str(number) for number in range(12)]),
            st.sampled_from(["", "", "", "g", "h"]),
        ),
        max_size=12,
    )
)
def test_after_dropping_nothing_leaks_and_the_order_does_not_matter(drawn: list[tuple[str, str, str, str]]) -> None:
    # One more of every split and class, which nothing drops, so that none becomes empty.
    firm = [(split, name, f"{split} {name}", "") for split in ("train", "val", "test") for name in ("cat", "dog")]
    rows: list[Row] = [(f"{number:02d}", *row) for number, row in enumerate([*drawn, *firm])]
    gate = run_gate(rows, "drop")
    rest = [row for row in rows if row[0] not in gate.dropped]
    again = run_gate(rest, "error", near=-1)
    assert again.findings.empty
    assert again.info.duplicates == again.info.groups == again.info.labels == 0
    assert again.info.repeated == gate.info.repeated
    assert gate.info.dropped == len(rows) - len(rest)
    turned = run_gate(rows[::-1], "drop")
    pd.testing.assert_frame_equal(turned.findings, gate.findings)
    assert (turned.dropped, turned.info, turned.notes) == (gate.dropped, gate.info, gate.notes)
    kept = {row[0] for row in rest}
    classes = {pixels: {row[2] for row in rows if row[3] == pixels} for pixels in {row[3] for row in rows}}
    assert all(row[0] in kept for row in rows if row[1] == "test" and len(classes[row[3]]) == 1)
