import errno
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagepipe.core.config import load_section
from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.hashes import hash_bytes, hash_pixels
from imagepipe.core.slices import FileSlice
from imagepipe.prepare import examination
from imagepipe.prepare.examination import (
    Examined,
    Known,
    New,
    Staging,
    State,
    Work,
    examine_images,
    hash_source,
    load_work,
    read_intact,
    settle_images,
    stage_pngs,
)
from imagepipe.prepare.images import encode_png
from imagepipe.prepare.params import SplitParams

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_section("split", SplitParams, ROOT / "recipes" / "base.yaml").image
PIXELS = np.arange(20, dtype=np.uint8).reshape(4, 5)
PNG = encode_png(PIXELS)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path / "staging", False, tmp_path)


def make_work(image: object, known: Known | None = None, row: int = 7) -> Work:
    return Work(row, "a/b.c", "made#7", image, known)  # pyright: ignore[reportArgumentType]


def make_known(folder: Path, sharded: bool = False, data: bytes = PNG) -> Known:
    """What the index says of PIXELS, whose PNG holds `data`."""
    (folder / "kept.png").write_bytes(b"x" * 512 * sharded + data)
    place = ("kept.png", 512 * sharded, len(PNG))
    return Known(hash_source(PIXELS), bytes.fromhex(hash_bytes(PNG)), place, sharded)


def test_new_pixels_are_measured_and_encoded(tmp_path: Path, staging: Staging) -> None:
    found = examine_images([make_work(PIXELS)], staging, PARAMS, encode=True)
    assert found.states.tolist() == [State.ENCODED]
    assert (tmp_path / "staging" / "7.png").read_bytes() == PNG
    row = found.rows[0]
    assert row["pixel_sha256"].tobytes().hex() == hash_pixels("L", PIXELS)
    assert row["png_sha256"].tobytes().hex() == hash_bytes(PNG)
    assert row["source_sha256"].tobytes() == hash_source(PIXELS)
    assert (row["width"], row["height"], row["length"]) == (5, 4, len(PNG))
    assert row["pixel_sums"].tolist() == [190, 0, 0]


def test_without_encoding_nothing_is_staged(tmp_path: Path, staging: Staging) -> None:
    found = examine_images([make_work(PNG)], staging, PARAMS, encode=False)
    assert found.states.tolist() == [State.MEASURED]
    assert found.rows["length"].tolist() == [0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sharded", "shards", "state"),
    [
        (False, False, State.KEPT),
        (True, True, State.KEPT),
        (True, False, State.CARRIED),
        (False, True, State.CARRIED),
    ],
)
def test_what_is_known_and_intact_is_kept_or_carried(
    tmp_path: Path, staging: Staging, sharded: bool, shards: bool, state: State
) -> None:
    work = make_work(PIXELS, make_known(tmp_path, sharded))
    found = examine_images([work], replace(staging, shards=shards), PARAMS, encode=True)
    assert found.states.tolist() == [state]
    assert bool(found.offsets) == (state == State.CARRIED)


@pytest.mark.parametrize("data", [PNG[:-1], PNG[:-1] + b"x", PNG + b"x"])
def test_a_damaged_png_is_encoded_again(tmp_path: Path, staging: Staging, data: bytes) -> None:
    work = make_work(PIXELS, make_known(tmp_path, data=data))
    assert examine_images([work], staging, PARAMS, encode=True).states.tolist() == [State.ENCODED]
    assert examine_images([work], staging, PARAMS, encode=False).states.tolist() == [State.KNOWN]


def test_what_is_known_without_a_png_is_not_decoded(staging: Staging) -> None:
    known = Known(hash_source(b"no image at all"), bytes(32), None, False)
    found = examine_images([make_work(b"no image at all", known)], staging, PARAMS, encode=True)
    assert found.states.tolist() == [State.KNOWN]


def test_a_changed_source_is_looked_at_anew(tmp_path: Path, staging: Staging) -> None:
    found = examine_images([make_work(PIXELS + 1, make_known(tmp_path))], staging, PARAMS, encode=True)
    assert found.states.tolist() == [State.ENCODED]


def test_an_unusable_image_is_rejected_with_its_reason(staging: Staging) -> None:
    found = examine_images([make_work(b"<html>"), make_work(PNG)], staging, PARAMS, encode=True)
    assert found.states.tolist() == [State.REJECTED, State.ENCODED]
    assert found.reasons == {0: "is not an image of a known format: it begins with b'<html>'"}


def draw_works() -> list[Work]:
    """Two shapes of grey and one of RGB, mixed, among PNGs, one of them in colours, and what is no image."""
    generator = np.random.default_rng(0)
    shapes = [(4, 5), (3, 2, 3), (4, 5), (5, 4), (70, 66, 3), (3, 2, 3)]
    images: list[object] = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    images[2:2] = [PNG, b"<html>", encode_png(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))]
    return [make_work(image, row=row) for row, image in enumerate(images)]


@pytest.mark.parametrize("run_bytes", [1, 50, 2**20])
@pytest.mark.parametrize("encode", [True, False])
def test_images_of_mixed_shapes_come_out_as_each_alone(
    tmp_path: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch, run_bytes: int, encode: bool
) -> None:
    works = draw_works()
    alone = [examine_images([work], staging, PARAMS, encode) for work in works]
    pngs = read_files(tmp_path / "staging")
    monkeypatch.setattr("imagepipe.prepare.examination.RUN_BYTES", run_bytes)
    found = examine_images(works, replace(staging, folder=tmp_path / "together"), PARAMS, encode)
    assert found.states.tolist() == [one.states[0] for one in alone]
    assert np.array_equal(found.rows, np.concatenate([one.rows for one in alone]))
    assert list(found.reasons) == [3]
    assert read_files(tmp_path / "together") == pngs
    assert len(pngs) == encode * (len(works) - 1)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


@pytest.mark.parametrize(
    ("run_bytes", "runs"), [(39, [2, 2, 1]), (40, [2, 2, 1]), (41, [3, 2]), (100, [5]), (20, [1] * 5)]
)
def test_a_run_ends_with_the_image_that_fills_it(
    staging: Staging, monkeypatch: pytest.MonkeyPatch, run_bytes: int, runs: list[int]
) -> None:
    settled: list[int] = []

    def settle(run: Sequence[New], found: Examined, encode: bool) -> None:
        settled.append(len(run))
        settle_images(run, found, encode)

    monkeypatch.setattr("imagepipe.prepare.examination.settle_images", settle)
    monkeypatch.setattr("imagepipe.prepare.examination.RUN_BYTES", run_bytes)
    found = examine_images([make_work(PIXELS + row, row=row) for row in range(5)], staging, PARAMS, encode=True)
    assert [count for count in settled if count] == runs
    assert found.states.tolist() == [State.ENCODED] * 5


@pytest.mark.parametrize("step", ["encode_png", "convert_array", "put_facts"])
def test_an_image_that_memory_does_not_suffice_for_is_rejected_alone(
    staging: Staging, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The image of row 2, whatever others are in its run."""
    works = [make_work(PIXELS + row, row=row) for row in range(5)]
    done = getattr(examination, step)

    def fail(first: Any, second: Any = None) -> object:
        images = second if step == "put_facts" else [first]
        if any(image is works[2].image for image in images):
            raise MemoryError
        return done(first) if second is None else done(first, second)

    monkeypatch.setattr(examination, step, fail)
    found = examine_images(works, replace(staging, shards=True), PARAMS, encode=True)
    assert found.states.tolist() == [State.ENCODED] * 2 + [State.REJECTED] + [State.ENCODED] * 2
    assert found.reasons == {2: "needs more memory than its process may have"}
    assert found.offsets == {0: 512, 1: 1536, 3: 2560, 4: 3584}
    assert (found.rows["length"] > 0).tolist() == [True, True, False, True, True]


def test_pngs_are_staged_in_the_order_of_the_images(tmp_path: Path, staging: Staging) -> None:
    """Though that which is only carried is there before the new ones of its run."""
    works = [make_work(PIXELS + 1, row=0), make_work(PIXELS, make_known(tmp_path), row=1), make_work(PNG, row=2)]
    found = examine_images(works, replace(staging, shards=True), PARAMS, encode=True)
    assert found.states.tolist() == [State.ENCODED, State.CARRIED, State.ENCODED]
    assert list(found.offsets.items()) == [(0, 512), (1, 1536), (2, 2560)]


def test_in_shards_a_chunk_is_one_file_of_members(tmp_path: Path, staging: Staging) -> None:
    works = [make_work(PNG, row=1), make_work(b"", row=2), make_work(PIXELS + 1, row=3)]
    found = examine_images(works, replace(staging, shards=True), PARAMS, encode=True)
    data = (tmp_path / "staging").read_bytes()
    assert found.offsets == {0: 512, 2: 1536}
    assert data[512:].startswith(PNG)
    assert data[1536:].startswith(encode_png(PIXELS + 1))
    (tmp_path / "whole.tar").write_bytes(data + bytes(1024))
    with tarfile.open(tmp_path / "whole.tar") as tar:
        assert tar.getnames() == ["a/b%2Ec.png", "a/b%2Ec.png"]


def test_a_process_elsewhere_gets_bytes_and_gives_pngs_back(tmp_path: Path, staging: Staging) -> None:
    (tmp_path / "source.png").write_bytes(PNG)
    here = make_work(FileSlice(tmp_path / "source.png", 0, len(PNG)), make_known(tmp_path, data=b"damaged"))
    away = load_work(here, tmp_path)
    assert (away.image, away.away) == (PNG, True)
    assert away.known == here.known._replace(png=b"")  # pyright: ignore[reportOptionalMemberAccess]
    for path in (tmp_path / "source.png", tmp_path / "kept.png"):
        path.unlink()
    known = make_known(tmp_path)
    carried = load_work(make_work(PIXELS, known), tmp_path)
    assert carried.known == known._replace(png=PNG)
    (tmp_path / "kept.png").unlink()
    found = examine_images([carried], replace(staging, shards=True), PARAMS, encode=True)
    assert found.states.tolist() == [State.CARRIED]
    assert found.pngs == {0: PNG}
    assert list(tmp_path.iterdir()) == []
    assert stage_pngs([carried], found.pngs, staging) == {0: 0}
    assert (tmp_path / "staging" / "7.png").read_bytes() == PNG


def test_a_damaged_png_is_encoded_elsewhere_too(tmp_path: Path, staging: Staging) -> None:
    away = load_work(make_work(PIXELS, make_known(tmp_path, data=b"damaged")), tmp_path)
    assert examine_images([away], staging, PARAMS, encode=True).states.tolist() == [State.ENCODED]


def test_a_file_that_cannot_be_read_is_rejected_elsewhere_as_here(tmp_path: Path, staging: Staging) -> None:
    work = make_work(FileSlice(tmp_path / "absent.png", 0, 10))
    here, away = (examine_images([one], staging, PARAMS, encode=True) for one in (work, load_work(work, tmp_path)))
    assert here.reasons == away.reasons == {0: "cannot be read: No such file or directory"}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_no_image_is_rejected_for_a_fault_of_the_machine(
    tmp_path: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: FileSlice) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileSlice, "read", fail)
    work = make_work(FileSlice(tmp_path / "a.png", 0, 10))
    expected = rf"a\.png: cannot be read: {os.strerror(number)}\. "
    with pytest.raises(EnvironmentFault, match=expected):
        examine_images([work], staging, PARAMS, encode=True)
    with pytest.raises(EnvironmentFault, match=expected):
        load_work(work, tmp_path)


def test_what_is_nowhere_is_not_intact(tmp_path: Path) -> None:
    assert read_intact(Known(bytes(32), bytes(32), ("absent", 0, 1), False), tmp_path) is None
    assert read_intact(Known(bytes(32), bytes.fromhex(hash_bytes(PNG)), PNG, False), tmp_path) == PNG
    assert read_intact(Known(bytes(32), bytes(32), PNG, False), tmp_path) is None


def test_a_staging_folder_that_cannot_be_written_is_told_with_the_image_folder(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "absent" / "deeper", False, Path("data/images"))
    with pytest.raises(EnvironmentFault, match=r"^data/images: cannot be written: No such file or directory"):
        stage_pngs([make_work(PNG)], {0: PNG}, staging)


def test_each_chunk_has_a_place_of_its_own(staging: Staging) -> None:
    assert staging.name_chunk([make_work(PNG, row=5), make_work(PNG, row=6)]).folder.name == "staging-5"
