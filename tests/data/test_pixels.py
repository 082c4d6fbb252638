import errno
import os
import pickle
import re
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from imagepipe.core import parallel
from imagepipe.core.errors import InputError
from imagepipe.core.slices import ImageFiles, list_image_files
from imagepipe.data import pixels as module
from imagepipe.data.pixels import PixelCache, Pixels, decode_pixels, open_cache
from tests.core.made import make_run, name_abandoned
from tests.data.made import hash_images, make_images, pack_shards, write_image, write_images

LARGE = 10**9
MIXED = [(2, 3, 1), (4, 5, 3), (1, 1, 4), (2, 3, 3)]

Images = list[NDArray[np.uint8]]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of about 3 of our images, blocks of 50 bytes and pieces of 7, so that few images meet every border."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 18)
    monkeypatch.setattr(module, "BLOCK", 50)
    monkeypatch.setattr(module, "PIECE", 7)


def open_root(folder: Path, most_bytes: int = LARGE, memory_bytes: int = LARGE) -> PixelCache:
    return PixelCache(folder / "cache", most_bytes, memory_bytes)


def are_same(found: Pixels, expected: Images) -> bool:
    return len(found) == len(expected) and all(
        np.array_equal(found[index], image) for index, image in enumerate(expected)
    )


def list_entries(cache: PixelCache) -> list[Path]:
    """The entries of a cache, in which nothing else may be."""
    entries = sorted(cache.root.iterdir())
    assert all(entry.name.startswith("v1-") for entry in entries)
    return entries


def remove_files(files: ImageFiles) -> None:
    for name in files.names:
        (files.folder / name).unlink()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("shapes", [MIXED[:1], MIXED], ids=["one size", "several"])
def test_images_stand_in_the_order_of_their_files(tmp_path: Path, shapes: list[tuple[int, int, int]]) -> None:
    images = make_images(11, shapes)
    files = write_images(tmp_path / "images", images)
    order = [5, 0, 10, 3, 3, 7]
    found = decode_pixels(files.take(order), None, jobs=1)
    assert are_same(found, [images[index] for index in order])
    assert np.array_equal(found[-1], images[7])
    with pytest.raises(IndexError):
        found[6]


@pytest.mark.slow
@pytest.mark.usefixtures("small_steps")
def test_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PROBES", 0)
    images = make_images(20, MIXED)
    files = write_images(tmp_path / "images", images)
    assert are_same(decode_pixels(files, hash_images(images), jobs=2), images)
    cache = open_root(tmp_path)
    assert are_same(cache.load(files, hash_images(images), jobs=2), images)
    (tmp_path / "images" / "13.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"13\.png: cannot be decoded"):
        decode_pixels(files, None, jobs=2)


def test_images_of_one_size_are_one_array(tmp_path: Path) -> None:
    images = make_images(4, [(2, 3, 3)])
    found = decode_pixels(write_images(tmp_path / "images", images), None, jobs=1)
    assert found.odd is None
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images, np.stack(images))
    assert np.shares_memory(found.images, found[2])


@pytest.mark.parametrize("odd", [1, 3])
@pytest.mark.parametrize("shape", [(2, 4, 1), (3, 2, 1), (2, 3, 3)], ids=["wider", "turned", "colour"])
def test_images_of_several_sizes_are_no_batch(tmp_path: Path, odd: int, shape: tuple[int, int, int]) -> None:
    images = make_images(4)
    images[odd] = np.zeros(shape, np.uint8)
    found = decode_pixels(write_images(tmp_path / "images", images), None, jobs=1)
    message = (
        f"image {odd}: shape (H, W, C) is {shape}, but the first image has (2, 3, 1); a batch needs images of one "
    )
    with pytest.raises(InputError, match=re.escape(message) + "size; give a transform that brings them to one"):
        _ = found.images


def change_images(folder: Path) -> tuple[ImageFiles, NDArray[np.uint8]]:
    """30 images, and hashes that 25 of them do not have any more."""
    images = make_images(30)
    files = write_images(folder / "images", images)
    hashes = hash_images(images)
    for index in range(25):
        write_image(folder / "images" / f"{index}.png", 255 - images[index])
    return files, hashes


def test_images_that_are_not_those_of_the_manifest_are_listed(tmp_path: Path) -> None:
    files, hashes = change_images(tmp_path)
    cache = open_root(tmp_path)
    for load in (decode_pixels, cache.load):
        with pytest.raises(InputError) as caught:
            load(files, hashes, 1)
        lines = str(caught.value).splitlines()
        assert lines[0] == "images differ from their manifest's pixel_sha256 (25):"
        assert lines[1] == f"  {tmp_path / 'images' / '0.png'}"
        assert lines[21:] == ["  … and 5 more", "Run the split stage again."]
    assert list_entries(cache) == []


def test_the_mode_belongs_to_what_the_manifest_promises(tmp_path: Path) -> None:
    """A grey image of three columns and a colour image of one hold the same bytes."""
    grey = make_images(1, [(2, 3, 1)])
    files = write_images(tmp_path / "images", [grey[0].reshape(2, 1, 3)])
    with pytest.raises(InputError, match="images differ"):
        decode_pixels(files, hash_images(grey), jobs=1)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("memory_bytes", [LARGE, 0], ids=["in memory", "mapped"])
@pytest.mark.parametrize("shapes", [MIXED[:1], MIXED], ids=["one size", "several"])
def test_what_is_kept_needs_no_file(tmp_path: Path, shapes: list[tuple[int, int, int]], memory_bytes: int) -> None:
    images = make_images(11, shapes)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path, memory_bytes=memory_bytes)
    first = cache.load(files, hash_images(images), jobs=1)
    remove_files(files)
    again = open_root(tmp_path, memory_bytes=memory_bytes).load(files, hash_images(images), jobs=2)
    for found in (first, again):
        assert are_same(found, images)
        assert isinstance(found.data, np.memmap) == (memory_bytes == 0)
    assert len(list_entries(cache)) == 1


def test_as_much_as_memory_may_hold_is_read_into_it(tmp_path: Path) -> None:
    images = make_images(10)  # of 6 bytes
    files = write_images(tmp_path / "images", images)
    found = [open_root(tmp_path, memory_bytes=size).load(files, hash_images(images), 1) for size in (59, 60)]
    assert [isinstance(one.data, np.memmap) for one in found] == [True, False]


def test_slices_of_shards_are_the_entry_of_the_same_images_as_files(tmp_path: Path) -> None:
    images = make_images(10)
    files = write_images(tmp_path / "images", images)
    columns = pack_shards(list(files.names), tmp_path / "images", tmp_path / "shards", each=4)
    slices = list_image_files(pd.DataFrame({"path": files.names}).join(columns), tmp_path / "shards")
    assert are_same(decode_pixels(slices, hash_images(images), jobs=1), images)
    cache = open_root(tmp_path)
    assert are_same(cache.load(slices, hash_images(images), jobs=1), images)
    remove_files(files)
    assert are_same(cache.load(files, hash_images(images), jobs=1), images)


@pytest.mark.parametrize("shapes", [MIXED[:1], MIXED], ids=["one size", "several"])
def test_a_map_goes_to_another_process_by_name(tmp_path: Path, shapes: list[tuple[int, int, int]]) -> None:
    images = make_images(1000, shapes)
    files = write_images(tmp_path / "images", images)
    found = [open_root(tmp_path, memory_bytes=size).load(files, hash_images(images), 1) for size in (0, LARGE)]
    pickled = [pickle.dumps(one) for one in found]
    assert len(pickled[1]) - len(pickled[0]) > sum(image.nbytes for image in images) - 1000
    assert all(are_same(pickle.loads(one), images) for one in pickled)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("shapes", [MIXED[:1], MIXED], ids=["one size", "several"])
def test_rows_that_other_entries_hold_are_not_decoded(tmp_path: Path, shapes: list[tuple[int, int, int]]) -> None:
    images = make_images(30, shapes)
    files = write_images(tmp_path / "images", images)
    hashes = hash_images(images)
    cache = open_root(tmp_path)
    for part in (slice(0, 10), slice(5, 20)):
        cache.load(files.take(part), hashes[part], jobs=1)
    remove_files(files.take(slice(0, 20)))
    for number in (20, 19):  # with some to decode between them, and with none
        order = np.random.default_rng(1).permutation(30 if number == 20 else 20)[:number]
        found = cache.load(files.take(order), hashes[order], jobs=1)
        assert are_same(found, [images[index] for index in order])
    assert len(list_entries(cache)) == 4


def test_equal_images_share_a_row(tmp_path: Path) -> None:
    images = make_images(3)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    cache.load(files, hash_images(images), jobs=1)
    remove_files(files)
    twice = [0, 2, 2, 0]
    found = cache.load(files.take(twice), hash_images(images)[twice], jobs=1)
    assert are_same(found, [images[index] for index in twice])


def test_without_hashes_in_the_table_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    images = make_images(6)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    assert are_same(cache.load(files, None, jobs=1), images)
    kept = list_entries(cache)
    assert are_same(cache.load(files, None, jobs=1), images)
    assert list_entries(cache) == kept
    images[4] = 255 - images[4]
    write_image(tmp_path / "images" / "4.png", images[4])
    assert are_same(cache.load(files, None, jobs=1), images)
    assert len(list_entries(cache)) == 2


def test_a_file_that_changes_between_hashing_and_decoding_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_images(tmp_path / "images", make_images(3))

    hash_files = module.hash_files

    def hash_then_change(files: ImageFiles, jobs: int) -> object:
        known = hash_files(files, jobs)
        write_image(tmp_path / "images" / "1.png", np.zeros((2, 3, 1), np.uint8))
        return known

    monkeypatch.setattr(module, "hash_files", hash_then_change)
    with pytest.raises(InputError, match=r"images changed while they were read \(1\):\n  .*1\.png\nRun it again"):
        open_root(tmp_path).load(files, None, jobs=1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = [(name, damage) for name in ("pixels.bin", "hashes.bin", "shapes.bin") for damage in (flip, cut, Path.unlink)]
DAMAGES += [(name, damage) for name in ("entry.json", "entry.json.sha256") for damage in (flip, cut, Path.unlink)]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("memory_bytes", [LARGE, 0], ids=["in memory", "mapped"])
@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_entry_is_made_anew(
    tmp_path: Path, memory_bytes: int, name: str, damage: Callable[[Path], None]
) -> None:
    images = make_images(11, MIXED)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path, memory_bytes=memory_bytes)
    cache.load(files, hash_images(images), jobs=1)
    (entry,) = list_entries(cache)
    damage(entry / name)
    with pytest.warns(UserWarning, match=rf"{entry.name}: damaged \(.+\); its images are decoded again"):
        assert are_same(cache.load(files, hash_images(images), jobs=1), images)
    assert list_entries(cache) == [entry]
    remove_files(files)
    assert are_same(cache.load(files, hash_images(images), jobs=1), images)


@pytest.mark.parametrize("memory_bytes", [LARGE, 0], ids=["in memory", "mapped"])
def test_bytes_behind_the_last_image_harm_nobody(tmp_path: Path, memory_bytes: int) -> None:
    images = make_images(4)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path, memory_bytes=memory_bytes)
    cache.load(files, hash_images(images), jobs=1)
    with (list_entries(cache)[0] / "pixels.bin").open("ab") as file:
        file.write(b"more")
    assert are_same(cache.load(files, hash_images(images), jobs=1), images)
    assert are_same(cache.load(files.take([2]), hash_images(images)[[2]], jobs=1), [images[2]])


def test_the_damage_is_described(tmp_path: Path) -> None:
    images = make_images(5)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    cache.load(files, hash_images(images), jobs=1)
    flip(list_entries(cache)[0] / "pixels.bin")
    with pytest.warns(UserWarning, match=r"damaged \(block 0 of pixels\.bin has another hash\)"):
        cache.load(files, hash_images(images), jobs=1)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("name", ["pixels.bin", "hashes.bin", "entry.json"])
def test_nothing_is_copied_from_a_damaged_entry(tmp_path: Path, name: str) -> None:
    images = make_images(12)
    files = write_images(tmp_path / "images", images)
    hashes = hash_images(images)
    cache = open_root(tmp_path)
    cache.load(files, hashes, jobs=1)
    (damaged,) = list_entries(cache)
    flip(damaged / name)
    with pytest.warns(UserWarning, match=rf"{damaged.name}: damaged"):
        assert are_same(cache.load(files.take(slice(2, 9)), hashes[2:9], jobs=1), images[2:9])
    assert damaged not in list_entries(cache)


@pytest.mark.usefixtures("small_steps")
def test_only_the_blocks_that_are_copied_from_need_be_intact(tmp_path: Path) -> None:
    """Images of 6 bytes in blocks of 50: image 8 reaches over the border at 50, images 9 to 15 lie in block 1."""
    images = make_images(25)
    files = write_images(tmp_path / "images", images)
    hashes = hash_images(images)
    cache = open_root(tmp_path)
    cache.load(files, hashes, jobs=1)
    (entry,) = list_entries(cache)
    data = bytearray((entry / "pixels.bin").read_bytes())
    data[0] ^= 1
    (entry / "pixels.bin").write_bytes(data)
    remove_files(files)
    assert are_same(cache.load(files.take(slice(9, 16)), hashes[9:16], jobs=1), images[9:16])
    with pytest.warns(UserWarning, match="block 0"), pytest.raises(InputError, match=r"8\.png: no such image"):
        cache.load(files.take([8]), hashes[[8]], jobs=1)


@pytest.mark.usefixtures("small_steps")
def test_nothing_is_copied_from_a_cut_entry_though_the_block_is_there(tmp_path: Path) -> None:
    images = make_images(25)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    cache.load(files, hash_images(images), jobs=1)
    cut(list_entries(cache)[0] / "pixels.bin")
    with pytest.warns(UserWarning, match=r"damaged \(pixels\.bin was cut\)"):
        assert are_same(cache.load(files.take([0]), hash_images(images)[:1], jobs=1), images[:1])


def test_those_used_least_recently_go_first_and_never_the_one_in_use(tmp_path: Path) -> None:
    images = make_images(8, [(10, 10, 1)])
    files = write_images(tmp_path / "images", images)
    hashes = hash_images(images)
    parts = [slice(first, first + 2) for first in (0, 2, 4, 6)]
    cache = open_root(tmp_path)
    entries: list[Path] = []
    for age, part in zip((400, 300, 200), parts, strict=False):
        cache.load(files.take(part), hashes[part], jobs=1)
        entries += [entry for entry in list_entries(cache) if entry not in entries]
        stamp = time.time() - age
        os.utime(entries[-1] / "entry.json", (stamp, stamp))
    size = sum(path.stat().st_size for path in entries[0].iterdir())
    cache.load(files.take(parts[0]), hashes[parts[0]], jobs=1)  # so that the second is the oldest now
    open_root(tmp_path, most_bytes=3 * size + 100).load(files.take(parts[3]), hashes[parts[3]], jobs=1)
    kept = list_entries(cache)
    assert len(kept) == 3
    assert entries[1] not in kept
    open_root(tmp_path, most_bytes=size - 1).load(files.take(parts[1]), hashes[parts[1]], jobs=1)
    assert list_entries(cache) == [entries[1]]


def test_what_this_cache_has_opened_stays_though_all_together_are_too_large(tmp_path: Path) -> None:
    """A worker process maps the train images after the val images have been loaded."""
    images = make_images(6, [(10, 10, 1)])
    files = write_images(tmp_path / "images", images)
    hashes = hash_images(images)
    old, train, val = (slice(first, first + 2) for first in (0, 2, 4))
    open_root(tmp_path).load(files.take(old), hashes[old], jobs=1)
    (left,) = list_entries(open_root(tmp_path))
    cache = open_root(tmp_path, most_bytes=sum(path.stat().st_size for path in left.iterdir()), memory_bytes=0)
    pickled = pickle.dumps(cache.load(files.take(train), hashes[train], jobs=1))
    cache.load(files.take(val), hashes[val], jobs=1)
    assert are_same(pickle.loads(pickled), images[train])
    assert len(list_entries(cache)) == 2
    assert left not in list_entries(cache)


def test_an_older_entry_that_fits_outlives_a_later_one_that_does_not(tmp_path: Path) -> None:
    """Of 1,600, 100 and 100 bytes of pixels, and some 400 more each; the small ones fit into 1,500."""
    images = make_images(3, [(10, 10, 1), (40, 40, 1), (10, 10, 1)])
    files = write_images(tmp_path / "images", images)
    kept: list[Path] = []
    for row, most_bytes in enumerate([LARGE, LARGE, 1500]):
        cache = open_root(tmp_path, most_bytes)
        cache.load(files.take([row]), hash_images(images)[[row]], jobs=1)
        kept += [entry for entry in list_entries(cache) if entry not in kept]
        os.utime(kept[-1] / "entry.json", (time.time() + row, time.time() + row))
    assert list_entries(cache) == sorted([kept[0], kept[2]])


@pytest.mark.parametrize("shapes", [[(10, 10, 1)], [(1, 1, 1)] * 17 + [(40, 40, 1)]], ids=["foreseen", "noticed"])
def test_what_alone_is_larger_than_the_cache_is_held_in_memory(
    tmp_path: Path, shapes: list[tuple[int, int, int]]
) -> None:
    images = make_images(18, shapes)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path, most_bytes=1500, memory_bytes=0)
    message = (
        r"held in memory and not kept in .*cache: they take 1\.\d+e-06 GB or more, and run\.cache_gigabytes allows"
    )
    with pytest.warns(UserWarning, match=message):
        found = cache.load(files, hash_images(images), jobs=1)
    assert are_same(found, images)
    assert not isinstance(found.data, np.memmap)
    assert list_entries(cache) == []


def test_where_nothing_can_be_kept_images_are_held_in_memory(tmp_path: Path) -> None:
    images = make_images(3)
    files = write_images(tmp_path / "images", images)
    (tmp_path / "cache").write_text("no folder")
    message = r"not kept in .*cache: File exists\. Make room there, or name another folder in run\.cache_dir"
    with pytest.warns(UserWarning, match=message):
        assert are_same(open_root(tmp_path).load(files, hash_images(images), jobs=1), images)


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path, *methods: str) -> None:
    """Let methods of `Path` fail at and below a folder, as permissions do, which bind everybody but root."""

    def guard(method: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(self: Path, *arguments: Any, **more: Any) -> Any:
            if self.is_relative_to(folder):
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return method(self, *arguments, **more)

        return refuse

    for name in methods:
        monkeypatch.setattr(Path, name, guard(getattr(Path, name)))


@pytest.mark.parametrize("closed", ["the cache", "the entry"])
def test_what_may_not_be_read_is_decoded_into_memory_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    images = make_images(3)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    cache.load(files, hash_images(images), jobs=1)
    (entry,) = list_entries(cache)
    with monkeypatch.context() as patch:
        if closed == "the cache":
            forbid(patch, cache.root, "stat", "iterdir", "read_bytes", "mkdir", "rename")
        else:
            forbid(patch, entry, "iterdir", "read_bytes")
        message = r"not kept in .*cache: Permission denied\. Make room there, or name another folder in run\.cache_dir$"
        with pytest.warns(UserWarning, match=message) as warned:
            assert are_same(cache.load(files, hash_images(images), jobs=1), images)
    assert len(warned) == 1
    assert list_entries(cache) == [entry]
    remove_files(files)
    assert are_same(cache.load(files, hash_images(images), jobs=1), images)


def test_beside_an_entry_that_may_not_be_read_another_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(3)
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    cache.load(files, hash_images(images), jobs=1)
    (entry,) = list_entries(cache)
    forbid(monkeypatch, entry, "iterdir", "read_bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert are_same(cache.load(files.take([1]), hash_images(images)[[1]], jobs=1), images[1:2])
    assert len(list_entries(cache)) == 2
    assert entry in list_entries(cache)


def test_a_full_disk_leaves_the_images_in_memory_and_nothing_behind(tmp_path: Path) -> None:
    images = make_images(20, [(30, 30, 1)])
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.warns(UserWarning, match="not kept in .*cache: File too large. Make room there"):
            found = cache.load(files, hash_images(images), jobs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert are_same(found, images)
    assert list_entries(cache) == []


def test_what_a_killed_process_began_is_removed(tmp_path: Path) -> None:
    cache, images = open_root(tmp_path), make_images(2)
    (cache.root / name_abandoned()).mkdir(parents=True)
    cache.load(write_images(tmp_path / "images", images), hash_images(images), jobs=1)
    assert len(list_entries(cache)) == 1


def test_an_entry_without_its_description_does_not_outlive_the_others(tmp_path: Path) -> None:
    images = make_images(2, [(10, 10, 1)])
    files = write_images(tmp_path / "images", images)
    cache = open_root(tmp_path, most_bytes=700)
    cache.load(files.take([0]), hash_images(images)[:1], jobs=1)
    left = cache.root / ("v0-" + "0" * 64)
    left.mkdir()
    (left / "pixels.bin").write_bytes(bytes(600))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.load(files.take([1]), hash_images(images)[1:], jobs=1)
    assert left not in list_entries(cache)


def test_whoever_comes_second_uses_the_entry_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(5)
    files = write_images(tmp_path / "images", images)
    write = module.write_images
    inodes: list[int] = []

    def be_overtaken(*arguments: Any) -> object:
        monkeypatch.setattr(module, "write_images", write)
        assert are_same(open_root(tmp_path).load(files, hash_images(images), jobs=1), images)
        inodes.extend((entry / "pixels.bin").stat().st_ino for entry in (tmp_path / "cache").glob("v1-*"))
        return write(*arguments)

    monkeypatch.setattr(module, "write_images", be_overtaken)
    cache = open_root(tmp_path)
    assert are_same(cache.load(files, hash_images(images), jobs=1), images)
    (entry,) = list_entries(cache)
    assert inodes == [(entry / "pixels.bin").stat().st_ino]


LOAD = """
import sys, time
from pathlib import Path
import numpy as np
from imagepipe.core.slices import ImageFiles
from imagepipe.data.pixels import PixelCache

folder = Path(sys.argv[1])
names = np.array([f"{number}.png" for number in range(500)], dtype=object)
cache = PixelCache(folder / "cache", 10**9, int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    found = cache.load(ImageFiles(folder / "images", names), np.load(folder / "hashes.npy"), 1)
    assert np.array_equal(found.images, np.load(folder / "expected.npy"))
    if sys.argv[2] == "0":  # one of the two keeps taking the entry away
        for entry in cache.root.glob("v1-*"):
            try:
                entry.rename(entry.with_name(f"{time.monotonic_ns()}"))
            except FileNotFoundError:
                pass
"""


@pytest.mark.slow
def test_two_processes_build_one_entry(tmp_path: Path) -> None:
    images = make_images(500)
    write_images(tmp_path / "images", images)
    np.save(tmp_path / "hashes.npy", hash_images(images))
    np.save(tmp_path / "expected.npy", np.stack(images))
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path), memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for memory in ("0", "1000000")
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert not list((tmp_path / "cache").glob(".*"))


def test_the_run_section_opens_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEPIPE_CACHE", raising=False)
    cache = open_cache(make_run(cache_dir=str(tmp_path), cache_gigabytes=1.5, memory_gigabytes=0.25))
    assert cache is not None
    assert (cache.root, cache.most_bytes, cache.memory_bytes) == (tmp_path / "pixels", 1_500_000_000, 250_000_000)
    assert open_cache(make_run(cache="off")) is None
    assert list(tmp_path.iterdir()) == []
