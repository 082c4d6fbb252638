import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imagepipe.core.hashes import hash_bytes, hash_file
from imagepipe.core.shards import (
    BLOCK,
    LARGEST,
    SMALLEST,
    cut_shards,
    fits_header,
    join_segments,
    make_header,
    make_member,
    make_tar_info,
    measure_members,
    name_member,
    name_shard,
    write_shard,
)

MIB = 2**20
NEVER, ALWAYS = 2**64 - 1, 0  # hashes behind which no shard ends, or every shard that may


# Names


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("00017", "00017.png"),
        ("cats/IMG_001.jpg", "cats/IMG_001%2Ejpg.png"),
        ("v1.2/2024.01.05", "v1.2/2024%2E01%2E05.png"),
        ("ä", "ä.png"),
        ("a" * 96, "a" * 96 + ".png"),
        ("a" * 97, hash_bytes(b"a" * 97) + ".png"),
        ("d" * 155 + "/" + "a" * 96, "d" * 155 + "/" + "a" * 96 + ".png"),
        ("d" * 156 + "/a", hash_bytes(b"d" * 156 + b"/a") + ".png"),
    ],
)
def test_members_are_called_by_the_key(key: str, name: str) -> None:
    assert name_member(key) == name


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=300))
def test_what_is_said_to_fit_does(name: str) -> None:
    try:
        make_tar_info(name, 1)
        fits = True
    except ValueError:
        fits = False
    assert fits_header(name) == fits


@given(
    st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), max_size=100), st.integers(0, 8**12)
)
def test_a_header_is_that_of_tarfile(name: str, length: int) -> None:
    if fits_header(name) and length < 8**11:
        assert make_header(name, length) == make_tar_info(name, length)


# Cuts


def cut(sizes: list[int], hashes: list[int]) -> list[tuple[int, int]]:
    """Cut members of just these many MiB, header included."""
    lengths = np.array([size * MIB - BLOCK for size in sizes], np.int64)
    return cut_shards(lengths, np.array(hashes, np.uint64))


def test_a_shard_ends_behind_the_first_image_that_closes_it_from_the_smallest_size_on() -> None:
    assert cut([16] * 6, [NEVER, ALWAYS, NEVER, NEVER, ALWAYS, NEVER]) == [(0, 2), (2, 5), (5, 6)]
    assert cut([16] * 6, [ALWAYS] * 6) == [(0, 2), (2, 4), (4, 6)]


def test_a_shard_ends_at_the_largest_size() -> None:
    assert cut([16] * 17, [NEVER] * 17) == [(0, 8), (8, 16), (16, 17)]
    assert cut([100, 28, 1], [NEVER] * 3) == [(0, 2), (2, 3)]
    assert cut([100, 29], [NEVER] * 2) == [(0, 1), (1, 2)]


def test_an_image_larger_than_a_shard_has_its_own() -> None:
    assert cut([1, 500, 1], [NEVER] * 3) == [(0, 1), (1, 2), (2, 3)]
    assert cut([500], [NEVER]) == [(0, 1)]


def test_nothing_is_no_shard() -> None:
    assert cut([], []) == []


def test_an_image_closes_a_shard_with_the_probability_that_its_bytes_have() -> None:
    """Of members of 8 MiB, a quarter of the smallest shard, those close whose hash is in the first quarter."""
    quarter = 2**62
    assert cut([8] * 6, [NEVER] * 4 + [quarter - 2**52, NEVER]) == [(0, 5), (5, 6)]
    assert cut([8] * 6, [NEVER] * 4 + [quarter + 2**52, NEVER]) == [(0, 6)]


def draw_images(count: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    generator = np.random.default_rng(seed)
    return generator.integers(1, 2**18, count), generator.integers(0, 2**64, count, np.uint64)


def test_shards_are_of_32_to_128_mib_and_hold_every_image_once() -> None:
    lengths, hashes = draw_images(20_000)
    cuts = cut_shards(lengths, hashes)
    assert [first for first, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == 20_000
    sizes = [int(measure_members(lengths[slice(*one)]).sum()) for one in cuts]
    assert all(SMALLEST <= size <= LARGEST for size in sizes[:-1])
    assert 55 * MIB < np.mean(sizes) < 75 * MIB


@pytest.mark.parametrize("place", [0, 7000, 20_000])
def test_one_image_more_changes_few_shards(place: int) -> None:
    lengths, hashes = draw_images(20_000)
    before = {hashes[slice(*one)].tobytes() for one in cut_shards(lengths, hashes)}
    lengths, hashes = np.insert(lengths, place, 1000), np.insert(hashes, place, np.uint64(2**63))
    after = {hashes[slice(*one)].tobytes() for one in cut_shards(lengths, hashes)}
    assert len(before) > 30
    assert len(after - before) <= 3


# Files


def make_png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), grey).save(buffer, "PNG")
    return buffer.getvalue()


def write_three(folder: Path) -> Path:
    members = [make_member(name_member(key), make_png(grey)) for key, grey in (("a/1.x", 1), ("a/1.y", 2), ("b", 3))]
    (folder / "some").write_bytes(b"xx" + members[1] + b"yy")
    path = folder / "new.tar"
    sha256 = write_shard(path, [members[0], (folder / "some", 2, len(members[1])), members[2]])
    assert sha256 == hash_file(path)
    return path


def test_tar_reads_a_shard(tmp_path: Path) -> None:
    path = write_three(tmp_path)
    listed = subprocess.run(["tar", "-tvf", path], capture_output=True, text=True, check=True, env={"TZ": "UTC"})
    assert [line.split() for line in listed.stdout.splitlines()] == [
        ["-rw-r--r--", "0/0", str(len(make_png(1))), "1970-01-01", "00:00", name]
        for name in ("a/1%2Ex.png", "a/1%2Ey.png", "b.png")
    ]
    with tarfile.open(path) as tar:
        assert [info.name for info in tar] == ["a/1%2Ex.png", "a/1%2Ey.png", "b.png"]
        assert tar.extractfile("b.png").read() == make_png(3)  # pyright: ignore[reportOptionalMemberAccess]
    assert path.stat().st_size % tarfile.RECORDSIZE == 0


# webdataset leaves the file for the garbage collector to close.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_a_shard(tmp_path: Path) -> None:
    path = write_three(tmp_path)
    reader = webdataset.WebDataset(str(path), shardshuffle=False).decode("l8")  # pyright: ignore
    samples = list(reader)
    assert [sample["__key__"] for sample in samples] == ["a/1%2Ex", "a/1%2Ey", "b"]
    assert [sample["png"].tolist() for sample in samples] == [[[grey] * 4] * 3 for grey in (1, 2, 3)]


def test_a_segment_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "some").write_bytes(b"x" * 10)
    with pytest.raises(OSError, match="some ends too early: it was cut while it was read"):
        write_shard(tmp_path / "new.tar", [(tmp_path / "some", 5, 6)])


def test_segments_that_follow_on_each_other_are_one() -> None:
    one, other = Path("one"), Path("other")
    segments = [(one, 0, 3), (one, 3, 4), b"x", (one, 7, 1), (other, 8, 1), (other, 9, 2), (other, 0, 1)]
    assert [segment for segment in join_segments(segments) if segment] == [
        (one, 0, 7),
        b"x",
        (one, 7, 1),
        (other, 8, 3),
        (other, 0, 1),
    ]
    assert [segment for segment in join_segments([]) if segment] == []


def test_a_shard_is_called_by_its_content() -> None:
    assert name_shard("0123456789abcdef" * 4) == "0123456789abcdef0123456789abcdef.tar"
