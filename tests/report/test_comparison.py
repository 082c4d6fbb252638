import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imagepipe.core.manifest import read_manifest
from imagepipe.evaluation.compare import Comparison, compare
from imagepipe.report.comparison import find_pictures, format_json, format_markdown, write_comparison
from tests.evaluation.made import make_table, split_right, write_run
from tests.made import make_dataset
from tests.report.test_page import Reader

NASTY = "<script>alert(1)</script>"
LONG = "x" * 300


def make_comparison(
    folder: Path,
    counts: tuple[int, int, int, int],
    classes: Sequence[str] = ("cat", "dog", "NA"),
    params: tuple[str, str] = ("train:\n  lr: 1\n  seed: 1\n", "train:\n  lr: 2\n  seed: 1\n"),
    **columns: object,
) -> Comparison:
    tables = [make_table(right, classes, **columns) for right in split_right(*counts)]
    names = [write_run(folder / name, table, text) for name, table, text in zip("ab", tables, params, strict=True)]
    return compare(names, 0.95)


def format_here(folder: Path, comparison: Comparison) -> str:
    """The Markdown, with the folders called a and b."""
    return format_markdown(comparison).replace(f"{folder}/", "")


SHOWN = """\
| run | test accuracy | 95 % interval | images |
| --- | --- | --- | --- |
| a | 91.00 % | 83.77 % to 95.19 % | 100 |
| b | 99.00 % | 94.55 % to 99.82 % | 100 |

**b is better than a by 8.00 points (95 % interval 1.79 to 15.30), p = 0.0117.**

Right in both: 90; in a alone: 1; in b alone: 9; in neither: 0. McNemar: mid-p 0.0117, exact p 0.0215.

This judges two models. Whether one way of training is better than the other is for several seeds of each to say \
(imagepipe compare A1,A2,A3 B1,B2,B3).

| params.yaml | a | b |
| --- | --- | --- |
| train.lr | 1 | 2 |

| class | images | recall, a | recall, b | lost | won | p (Holm) |
| --- | --- | --- | --- | --- | --- | --- |
| NA | 33 | 90.91 % | 100.00 % | 0 | 3 | 0.375 |
| dog | 33 | 90.91 % | 100.00 % | 0 | 3 | 0.375 |
| cat | 34 | 91.18 % | 97.06 % | 1 | 3 | 0.375 |

| image |  | true class | a | b |
| --- | --- | --- | --- | --- |
| 00099 | won | cat | dog | cat |
| 00098 | won | NA | cat | NA |
| 00097 | won | dog | NA | dog |
| 00096 | won | cat | dog | cat |
| 00095 | won | NA | cat | NA |
| 00094 | won | dog | NA | dog |
| 00093 | won | cat | dog | cat |
| 00092 | won | NA | cat | NA |
| 00091 | won | dog | NA | dog |
| 00090 | lost | cat | cat | dog |
"""


def test_markdown_says_all_in_the_order_of_its_weight(tmp_path: Path) -> None:
    assert format_here(tmp_path, make_comparison(tmp_path, (90, 1, 9, 0))) == SHOWN


def test_markdown_lists_twenty_images_and_counts_the_rest(tmp_path: Path) -> None:
    text = format_markdown(make_comparison(tmp_path, (0, 12, 13, 0)))
    assert len(re.findall(r"^\| 000\d\d \| (won|lost) \|", text, re.MULTILINE)) == 20
    assert text.endswith("\n\n… and 5 more\n")


def test_markdown_says_which_pair_is_meant_where_there_are_several(tmp_path: Path) -> None:
    names = [write_run(tmp_path / name, make_table([True, False])) for name in "abc"]
    text = format_markdown(compare(names, 0.95)).replace(f"{tmp_path}/", "")
    assert "### b against a\n" in text
    assert "### c against a\n" in text


def test_markdown_of_seeds_has_their_mean_and_deviation(tmp_path: Path) -> None:
    group = ",".join(
        write_run(
            tmp_path / str(seed), make_table([True] * right + [False] * (10 - right)), f"train:\n  seed: {seed}\n"
        )
        for seed, right in ((1, 8), (2, 9))
    )
    text = format_markdown(compare([group], 0.95)).replace(f"{tmp_path}/", "")
    assert "| 1,2 | 2 | 85.00 % | 7.07 |" in text


def test_names_are_text_in_markdown_too(tmp_path: Path) -> None:
    text = format_markdown(make_comparison(tmp_path, (0, 3, 0, 0), classes=[NASTY, "a|b", LONG]))
    assert "| \\<script>alert(1)\\</script> |" in text
    assert "| a\\|b |" in text
    assert f"| {'x' * 59}… |" in text
    assert LONG not in text
    for cells in (line for line in text.splitlines() if line.startswith("| 000")):
        assert len(re.findall(r"(?<!\\)\|", cells)) == 6


def test_json_holds_what_was_found(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, (90, 1, 9, 0))
    found = json.loads(format_json(comparison))
    assert found["verdicts"] == comparison.list_verdicts()
    (pair,) = found["pairs"]
    assert (pair["lost"], pair["won"], pair["verdict"], pair["difference"]["value"]) == (1, 9, "better", 0.08)
    assert pair["params"] == [{"base": "1", "name": "train.lr", "other": "2"}]
    assert format_json(comparison) == format_json(comparison)


@pytest.fixture
def dataset(tmp_path: Path) -> pd.DataFrame:
    """A project folder with images; gives the manifest of test."""
    (tmp_path / "project" / "data" / "manifests").mkdir(parents=True)
    make_dataset(tmp_path / "project" / "data" / "manifests", {"train": 2, "val": 1, "test": 6})
    (tmp_path / "project" / "data" / "manifests" / "images").rename(tmp_path / "project" / "data" / "images")
    return read_manifest(tmp_path / "project" / "data" / "manifests" / "test.csv")


def compare_dataset(folder: Path, manifest: pd.DataFrame) -> Comparison:
    return make_comparison(folder, (2, 2, 2, 0), pixel_sha256=manifest["pixel_sha256"].tolist())


def read_page(folder: Path, comparison: Comparison, projects: Sequence[Path] = ()) -> tuple[Reader, str]:
    write_comparison(folder / "page.html", comparison, projects)
    page = (folder / "page.html").read_text("utf-8")
    return Reader(page), page


def test_the_page_shows_the_images_that_changed_sides(tmp_path: Path, dataset: pd.DataFrame) -> None:
    comparison = compare_dataset(tmp_path, dataset)
    reader, _ = read_page(tmp_path, comparison, [tmp_path / "nowhere", tmp_path / "project"])
    assert reader.alternatives == ["00003", "00002", "00005", "00004"]
    pictures = [address for address in reader.addresses if address.startswith("data:image/png;base64,")]
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))) as picture:
        shown = np.asarray(picture)
    with Image.open(tmp_path / "project" / "data" / "images" / dataset["path"].iloc[3]) as image:
        assert np.array_equal(shown, np.asarray(image))
    assert all(address.startswith("data:") for address in reader.addresses)
    assert not {"script", "iframe", "object"} & set(reader.tags)


def test_a_picture_is_found_by_its_pixels_and_not_believed_where_they_have_changed(
    tmp_path: Path, dataset: pd.DataFrame
) -> None:
    images = tmp_path / "project" / "data" / "images"
    first, second, third = dataset["pixel_sha256"].head(3)
    (images / dataset["path"].iloc[1]).unlink()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / dataset["path"].iloc[2])
    assert find_pictures({first, second, third, "0" * 64}, [tmp_path / "project"]).keys() == {first}


def test_a_damaged_manifest_costs_its_pictures_alone(tmp_path: Path, dataset: pd.DataFrame) -> None:
    path = tmp_path / "project" / "data" / "manifests" / "train.csv"
    path.write_text("path,label\na.png,0\n")
    said = rf"the page shows no images of a manifest that cannot be read: {re.escape(str(path))}: the columns class, .*"
    with pytest.warns(UserWarning, match=said):
        reader, _ = read_page(tmp_path, compare_dataset(tmp_path, dataset), [tmp_path / "project"])
    assert reader.alternatives == ["00003", "00002", "00005", "00004"]


def test_images_that_are_not_at_hand_have_their_key_alone(tmp_path: Path) -> None:
    reader, _ = read_page(tmp_path, make_comparison(tmp_path, (2, 2, 2, 0)))
    assert "img" not in reader.tags
    assert reader.text.count("not at hand") == 4


def test_the_page_says_how_many_images_it_does_not_show(tmp_path: Path) -> None:
    reader, _ = read_page(tmp_path, make_comparison(tmp_path, (0, 63, 2, 0)))
    assert reader.text.count("not at hand") == 62
    assert "3 more are not shown; those shown are the ones whose loss changed most." in reader.text


def test_names_that_look_like_markup_are_text_on_the_page(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, (0, 3, 0, 0), classes=[NASTY, LONG, "&amp;"])
    reader, page = read_page(tmp_path, comparison)
    assert "script" not in reader.tags
    assert all(name in reader.text for name in (NASTY, LONG, "&amp;"))
    assert "overflow-wrap: anywhere" in page


def test_the_same_comparison_gives_the_same_page(tmp_path: Path, dataset: pd.DataFrame) -> None:
    pages = [read_page(tmp_path, compare_dataset(tmp_path, dataset), [tmp_path / "project"])[1] for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_page_of_seeds_has_their_spread(tmp_path: Path) -> None:
    group = ",".join(
        write_run(
            tmp_path / str(seed), make_table([True] * right + [False] * (10 - right)), f"train:\n  seed: {seed}\n"
        )
        for seed, right in ((1, 8), (2, 9))
    )
    reader, _ = read_page(tmp_path, compare([group, group], 0.95))
    assert "7.07" in reader.text
    assert f"{group} against {group}" in reader.text


def test_tests_over_groups_are_called_so(tmp_path: Path) -> None:
    tables = [make_table(right).assign(group=["", "p", "p", "q"]) for right in ([True] * 3, [False, False, True])]
    found = compare([write_run(tmp_path / name, table) for name, table in zip("ab", tables, strict=True)], 0.95)
    assert "Randomisation test over groups: mid-p" in format_markdown(found)
    reader, _ = read_page(tmp_path, found)
    assert "Randomisation test over groups, on the images" in reader.text
    assert "McNemar" not in reader.text
