import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagepipe.core.config import load_section
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.manifest import ImageInfo, read_split
from imagepipe.core.parallel import LocalEngine
from imagepipe.core.slices import FileSlice
from imagepipe.data import conversion as module
from imagepipe.data.conversion import (
    CHUNK_BYTES,
    Conversion,
    Converted,
    Foreign,
    bring_batches,
    convert_files,
    cut_chunks,
    inflate_plain,
    read_conversion,
)
from imagepipe.data.dataset import ManifestDataset
from imagepipe.prepare.dataset import prepare_dataset
from imagepipe.prepare.params import ImageParams, SplitParams
from imagepipe.sources.records import Record, SourceInfo
from tests.data.made import draw_noise, encode, make_unusable, make_usable
from tests.made import ROOT, make_conversion

GREY = ImageInfo(mode="L", width=8, height=8)


def make(image: ImageInfo = GREY, **changes: int | str) -> Conversion:
    return Conversion(ImageParams.model_validate(make_conversion(**changes)), image)


def write(folder: Path, files: dict[str, bytes]) -> list[Foreign]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [Foreign(name, FileSlice(str(folder / name), 0, len(data))) for name, data in files.items()]


def split(files: dict[str, bytes], folder: Path, **changes: int | str) -> dict[str, np.ndarray]:
    """What the split stage makes of the files, with these changes of `split.image`: name → (H, W, C)."""
    raw = folder / "raw"
    raw.mkdir()
    for name, data in files.items():
        (raw / name).write_bytes(data)
    records = [
        Record(name, "cat", "", "", name, FileSlice(str(raw / name), 0, len(data))) for name, data in files.items()
    ]
    params = load_section("split", SplitParams, ROOT / "recipes" / "base.yaml")
    image = ImageParams.model_validate(make_conversion(**changes))
    update = {"image": image, "strategy": "random", "leaks": "keep"}
    described = SourceInfo(
        source="folder", name="", options={}, licence="", citation="", homepage="", classes=["cat"], files={}
    )
    engine = LocalEngine(1)
    prepared = prepare_dataset(
        records, described, params.model_copy(update=update), folder / "images", folder / "manifests", engine
    )
    found: dict[str, np.ndarray] = {}
    for part in ("train", "val", "test"):
        table = read_split(folder / "manifests", part, prepared.info)
        dataset = ManifestDataset(folder / f"manifests/{part}.csv", folder / "images", table=table)
        for row, name in enumerate(table["source"]):
            found[name] = dataset[row][0].permute(1, 2, 0).numpy()
    return found


@pytest.mark.parametrize(("mode", "fit", "side"), [("RGB", "crop", 8), ("L", "pad", 7)])
def test_pixels_are_those_that_split_makes(tmp_path: Path, mode: str, fit: str, side: int) -> None:
    changes = {"mode": mode, "fit": fit, "filter": "lanczos", "background": 9, "height": side, "width": side + 1}
    files = make_usable()
    expected = split(files, tmp_path, **changes)
    image = ImageInfo.model_validate({"mode": mode, "height": side, "width": side + 1})
    found = convert_files(write(tmp_path, files), make(image, **changes))
    assert found.reasons == {}
    assert found.remarks == Counter({"16 bits scaled to 8": 1})
    for name, pixels in zip(files, found.pixels, strict=True):
        assert np.array_equal(pixels, expected[name]), name


def test_pixels_are_those_that_split_keeps(tmp_path: Path) -> None:
    files = {f"{number}.png": encode(Image.fromarray(draw_noise(8, 8) // (number + 1)), "PNG") for number in range(9)}
    expected = split(files, tmp_path)
    found = convert_files(write(tmp_path, files), make())
    assert (found.reasons, found.remarks) == ({}, Counter())
    assert np.array_equal(found.pixels, np.stack([expected[name] for name in files]))


def test_other_sizes_than_split_kept_are_brought_to_the_models_and_that_is_said(tmp_path: Path) -> None:
    files = {
        "a.png": encode(Image.new("RGB", (4, 2), (255, 255, 255)), "PNG"),
        "b.png": encode(Image.new("L", (8, 8)), "PNG"),
    }
    found = convert_files(write(tmp_path, files), make(fit="pad", background=0))
    assert found.remarks == Counter({"brought to L 8×8, as all were that the model was made from": 1})
    assert found.pixels[0, :, 4, 0].tolist() == [0, 0, 255, 255, 255, 255, 0, 0]


def test_what_cannot_be_used_is_left_out_with_the_reason_that_split_gives(tmp_path: Path) -> None:
    unusable = make_unusable()
    files = {"a.png": encode(Image.new("L", (8, 8), 1), "PNG")}
    files |= {name: data for name, (data, _) in unusable.items()}
    files |= {"z.png": encode(Image.new("L", (8, 8), 2), "PNG")}
    images = [*write(tmp_path, files), Foreign("pipe", "is no plain file"), Foreign("x", FileSlice("x", 0, None))]
    found = convert_files(images, make())
    assert found.pixels.shape == (2, 8, 8, 1)
    assert found.pixels[:, 0, 0, 0].tolist() == [1, 2]
    for place, (_, reason) in enumerate(unusable.values(), start=1):
        assert found.reasons[place].startswith(reason)
    last = len(files)
    assert found.reasons[last] == "is no plain file"
    assert found.reasons[last + 1] == "cannot be read: there is no such file"
    assert len(found.reasons) == len(unusable) + 2


def test_no_image_is_left_out_for_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: FileSlice) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    images = write(tmp_path, {"a.png": encode(Image.new("L", (8, 8)), "PNG")})
    monkeypatch.setattr(FileSlice, "read", fail)
    with pytest.raises(EnvironmentFault, match=r"a\.png: cannot be read: Too many open files\. "):
        convert_files(images, make())


def test_an_animated_gif_is_taken_where_split_took_first_frames(tmp_path: Path) -> None:
    images = write(tmp_path, {"frames.gif": make_unusable()["frames.gif"][0]})
    found = convert_files(images, make(formats="GIF", animation="first", mode="L"))
    assert (found.reasons, found.remarks) == ({}, Counter({"first of several frames": 1}))
    refused = convert_files(images, make(formats="GIF"))
    assert refused.reasons == {0: "has several frames, which split.image.animation refuses"}


def test_memory_that_is_short_costs_the_image_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_too_much(data: bytes, params: ImageParams) -> Converted:
        raise MemoryError

    monkeypatch.setattr(module, "decode_image", ask_too_much)
    found = convert_files(write(tmp_path, {"a.bmp": b"BM"}), make())
    assert found.reasons == {0: "needs more memory than its process may have"}


def test_only_what_is_plain_is_inflated_here(tmp_path: Path) -> None:
    png, damaged = encode(Image.fromarray(draw_noise(8, 8)), "PNG"), make_unusable()["damaged.png"][0]
    assert inflate_plain(png, make()) is not None
    assert inflate_plain(damaged, make()) is None
    assert inflate_plain(png, make(formats="JPEG")) is None
    assert inflate_plain(png, make(max_pixels=63)) is None
    assert inflate_plain(png, make(ImageInfo(mode="L", width=9, height=8))) is None
    assert inflate_plain(png, make(ImageInfo(mode="RGB", width=8, height=8))) is None


def test_the_model_file_says_what_split_did() -> None:
    found = read_conversion(make_conversion(fit="crop", max_pixels=99), GREY, "m")
    assert found == make(fit="crop", max_pixels=99)


@pytest.mark.parametrize(
    ("changes", "named"), [({"fit": "fold"}, "split.image.fit: "), ({"colour": 1}, "split.image.colour: ")]
)
def test_a_conversion_that_is_not_understood_is_refused(changes: dict[str, int | str], named: str) -> None:
    expected = f"^m: how its images were converted cannot be read: {named}.*; train it again\\.$"
    with pytest.raises(InputError, match=expected):
        read_conversion(make_conversion(**changes), GREY, "m")


def make_foreign(length: int | None) -> Foreign:
    return Foreign("x", FileSlice("x", 0, length))


def test_chunks_hold_so_many_images_and_so_many_bytes() -> None:
    small, large, none = make_foreign(1), make_foreign(CHUNK_BYTES), Foreign("x", "is no plain file")
    assert [len(chunk) for chunk in cut_chunks([small] * 5, 2)] == [2, 2, 1]
    assert [len(chunk) for chunk in cut_chunks([small, large, small, none, none, make_foreign(None)], 9)] == [1, 1, 4]
    assert list(cut_chunks([], 9)) == []


def test_batches_are_full_whatever_the_chunks_and_whatever_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LocalEngine, "map_contained", lambda engine, work, chunks, limits: ((c, work(c)) for c in chunks)
    )
    files = {f"{number}.png": encode(Image.new("L", (8, 8), number), "PNG") for number in range(9)}
    images = write(tmp_path, files | {"3.png": b"no image"})
    reported: list[tuple[str, str]] = []
    found = bring_batches(
        images, make(), LocalEngine(1), 3, lambda *said: reported.append(said), remarks := Counter[str]()
    )
    assert [(names, pixels[:, 0, 0, 0].tolist()) for names, pixels in found] == [
        (["0.png", "1.png", "2.png"], [0, 1, 2]),
        (["4.png", "5.png", "6.png"], [4, 5, 6]),
        (["7.png", "8.png"], [7, 8]),
    ]
    assert reported == [("3.png", "is not an image of a known format: it begins with b'no image'")]
    assert remarks == Counter()
