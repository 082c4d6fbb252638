"""Whatever comes in, a result or a message comes out: no traceback, no hang, no runaway memory, no file elsewhere.

A few hundred inputs of each kind run with all tests, the many with `make prove`. Examples are the same each time
(`derandomize`, no database): a run judges the change and not its luck, and what fails here fails everywhere. Each input
has HANG seconds of processor time, watched by an alarm, since hypothesis looks at its own deadline only once an example
is over, and goes by the clock; and the process may take MEMORY bytes more than at the start.
"""

import io
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, NoReturn

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagepipe.core.config import check_section, parse_yaml
from imagepipe.core.errors import ImagepipeError
from imagepipe.core.manifest import read_dataset_info, read_split, write_manifests
from imagepipe.core.tables import parse_numbered_table
from imagepipe.data.dataset import ManifestDataset
from imagepipe.evaluation.predictions import parse_predictions
from imagepipe.models.classifier import build_classifier, load_classifier, save_classifier
from imagepipe.recipes import SECTIONS
from imagepipe.sources import fetch_source, read_records
from imagepipe.sources.archive import Member, list_members, repack_archive, write_members
from imagepipe.sources.classes import read_chosen
from imagepipe.sources.idx import parse_idx, read_idx
from imagepipe.sources.table import parse_table
from tests.core.made import make_run
from tests.data.made import pack_shards
from tests.evaluation.made import make_table
from tests.made import ROOT, make_dataset, make_dataset_info, make_model_info
from tests.proof import hostile
from tests.sources.made import make_params

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="alarm and limit of memory are set as on Linux")

FEW = 100  # inputs of each kind in `make test`
EACH = 10  # inputs that are made of one: itself, and others with changes
HANG = 30  # seconds of processor time that one input may take
STUCK = 600  # seconds by the clock, for what waits and takes no processor time
MEMORY = 4 * 2**30  # bytes
MOST_BYTES = 2_000_000  # what an archive may unpack to

Read = Callable[[Path, bytes], object]


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads `inputs`, in a folder that `prepare` has filled; each is changed too, with `words` of its format.

    `many` is how many different ones `make prove` tries.
    """

    inputs: hostile.Inputs
    words: Sequence[bytes]
    read: Read
    many: int
    prepare: Callable[[Path], object] = Path.mkdir


class Hang(BaseException):
    """No Exception, which the code under test might take for one of its own."""


@contextmanager
def watch(given_input: bytes) -> Generator[None]:
    """Raise Hang, with the input, where the block takes longer than HANG or STUCK seconds."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang(f"no answer in {HANG} s of processor time, or {STUCK} s, for {given_input!r}")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, HANG), signal.SIGALRM: (signal.ITIMER_REAL, STUCK)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextmanager
def limit_memory() -> Generator[None]:
    """Let this process take MEMORY bytes more than it has."""
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def list_around(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all that lies around the folder in which an input is read, and what must not be."""
    found: dict[str, tuple[int, int]] = {}
    waiting = [str(place)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if entry.name != "work":
                    found[entry.path] = (status.st_size, status.st_mtime_ns)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    for root in (tempfile.gettempdir(), "/"):
        if os.path.lexists(os.path.join(root, hostile.OUTSIDE)):  # noqa: PTH118
            found[root] = (0, 0)
    return found


def fuzz(reader: Reader, many: int, place: Path) -> Counter[str]:
    """Try so many different inputs; how many were taken and how many were refused."""
    work = place / "one" / "two" / "work"
    for folder in (work.parent, place / "here"):
        folder.mkdir(parents=True)
        (folder / "neighbour").write_text("as it was")
    reader.prepare(work)
    around = list_around(place)
    outcomes: Counter[str] = Counter()
    tried: set[int] = set()

    @settings(
        max_examples=many // (EACH // 4) + 1,  # hypothesis draws many of them twice
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.inputs, st.integers(0, 2**32 - 1))
    def check(original: bytes, seed: int) -> None:
        for given_input in hostile.vary(original, reader.words, seed, EACH):
            if hash(given_input) in tried or len(tried) >= many:
                continue
            try:
                with watch(given_input):
                    reader.read(work, given_input)
                outcomes["taken"] += 1
            except ImagepipeError:
                outcomes["refused"] += 1
            except Exception as error:
                error.add_note(f"given {given_input!r}")
                raise
            assert list_around(place) == around, given_input
            tried.add(hash(given_input))

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), limit_memory():
        patch.chdir(place / "here")
        warnings.simplefilter("ignore")  # of a duplicate name in a zip, of a layer without weights: told, not raised
        check()
    return outcomes


# Tables


def read_any_table(work: Path, data: bytes) -> None:
    table, lines = parse_numbered_table(data, Path("in.tsv" if b"\t" in data[:200] else "in.csv"))
    assert len(table) == len(lines)


def prepare_pets(work: Path) -> None:
    """A folder of images for a table, which DVC is said to have; where no table lies yet."""
    for name in ("a.png", "cats/b.png", "cats/é.png", "b.png"):
        path = work / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (work / "pets.dvc").touch()
    (work / "all.csv").write_text("class,as\n")
    (work / "raw").mkdir()


def read_pets(work: Path, data: bytes) -> None:
    (work / "pets" / "labels.csv").write_bytes(data)
    fetch_source(make_params("table", work / "pets", classes=str(work / "all.csv")), make_run(), work / "raw")
    records, _ = read_records(work / "pets", work / "raw")
    keys = [PurePosixPath(record.key) for record in records]
    assert len(set(keys)) == len(keys) > 0
    assert not any(key.is_absolute() or ".." in key.parts for key in keys)


def prepare_manifests(work: Path) -> None:
    """Manifests of single images, and the same images in shards."""
    work.mkdir()
    info = make_dataset(work, {"train": 3, "val": 1, "test": 1})
    table = pd.concat([pd.read_csv(work / f"{split}.csv", dtype=str, keep_default_na=False) for split in info.counts])
    packed = pack_shards(table["path"].tolist(), work / "images", work / "shards", each=2)
    (work / "packed").mkdir()
    write_manifests(work / "packed", pd.concat([table.reset_index(drop=True), packed], axis=1), info)


def read_samples(dataset: ManifestDataset) -> None:
    for index in range(len(dataset)):
        pixels, label = dataset[index]
        assert pixels.ndim == 3
        assert 0 <= label < len(dataset.classes)


def read_own_csv(work: Path, data: bytes) -> None:
    """As in a notebook: any CSV, beside no dataset.json."""
    path = work / "images" / "own.csv"
    path.write_bytes(data)
    read_samples(ManifestDataset(path, work / "images"))


def read_own_manifest(work: Path, data: bytes) -> None:
    (work / "train.csv").write_bytes(data)
    read_split(work, "train", read_dataset_info(work / "dataset.json"))
    read_samples(ManifestDataset(work / "train.csv", work / "images"))


def read_own_shards(work: Path, data: bytes) -> None:
    (work / "packed" / "train.csv").write_bytes(data)
    read_split(work / "packed", "train", read_dataset_info(work / "packed" / "dataset.json"))
    dataset = ManifestDataset(work / "packed" / "train.csv", work / "shards")
    dataset.load_pixels()
    read_samples(dataset)


def read_damaged_shard(work: Path, data: bytes) -> None:
    """The first shard is damaged, its manifest is not."""
    (work / "shards" / "00000.tar").write_bytes(data)
    dataset = ManifestDataset(work / "packed" / "train.csv", work / "shards")
    dataset.load_pixels()
    read_samples(dataset)


def make_manifest(part: str, name: str) -> bytes:
    """A file of a folder that `prepare_manifests` filled."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_manifests(Path(folder) / "work")
        return (Path(folder) / "work" / part / name).read_bytes()


def read_predictions(work: Path, data: bytes) -> None:
    parse_predictions(data, Path("predictions.csv"))


def read_classes(work: Path, data: bytes) -> None:
    (work / "some.csv").write_bytes(data)
    read_chosen(work / "some.csv")


def describe_with_pandas() -> bytes:
    """What pandas writes beside a table that has an index."""
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": ["cat", "é"]}, index=[5, 7])
    return pa.Table.from_pandas(table).schema.metadata[b"pandas"]


def read_parquet(work: Path, data: bytes) -> None:
    parse_table(data, "in.parquet")


# Params


def read_params(work: Path, data: bytes) -> None:
    values, tree = parse_yaml(data, Path("params.yaml"))
    for name, model in SECTIONS.items():
        if name in values:
            check_section(name, model, values, tree, Path("params.yaml"))


def cut_sections() -> list[bytes]:
    """The sections of the base without comments, the long ones in parts: reading YAML takes a millisecond a line."""
    text = (ROOT / "recipes" / "base.yaml").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    starts = [number for number, line in enumerate(lines) if not line.startswith(" ")] + [len(lines)]
    sections = [lines[first:end] for first, end in pairwise(starts)]
    return ["\n".join(section[:20]).encode() for section in sections]


# Archives


def read_archive(work: Path, data: bytes) -> None:
    (work / "in").write_bytes(data)
    try:
        repack_archive(work / "in", work / "files.tar", MOST_BYTES)
        names = [PurePosixPath(name) for name in list_members(work / "files.tar")]
        assert names
        assert not any(name.is_absolute() or ".." in name.parts or not name.parts for name in names)
        (work / "files.tar").unlink()
    finally:
        assert os.listdir(work) == ["in"]  # noqa: PTH208


def read_own_tar(work: Path, data: bytes) -> None:
    (work / "files.tar").write_bytes(data)
    list_members(work / "files.tar")


def make_own_tar() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        members = [Member(name, size, iter([bytes(size)])) for name, size in (("a.png", 3), ("é.png", 600), ("b", 0))]
        write_members(iter(members), Path(folder) / "files.tar")
        return (Path(folder) / "files.tar").read_bytes()


def make_pax_tar(size: bytes, name: bytes) -> bytes:
    """A tar with the kind of extended header that is ours, which states another size."""
    records = hostile.make_records([(0, b"path", name), (0, b"size", size)])
    blocks = [(b"././@PaxHeader", b"%011o" % len(records), b"x"), (b"a", b"00000000000", b"0")]
    heads = [hostile.make_block(one, length, kind, b"", b"ustar\x0000", True) for one, length, kind in blocks]
    return heads[0] + records + bytes(-len(records) % 512) + heads[1] + bytes(1024)


# Arrays, descriptions, models


def read_array(work: Path, data: bytes) -> None:
    parse_idx(data, Path("in.idx"))


def read_packed_array(work: Path, data: bytes) -> None:
    (work / "in.gz").write_bytes(data)
    read_idx(work / "in.gz")


def read_description(work: Path, data: bytes) -> None:
    (work / "dataset.json").write_bytes(data)
    info = read_dataset_info(work / "dataset.json")
    assert info.classes


def read_source(work: Path, data: bytes) -> None:
    (work / "raw" / "source.json").write_bytes(data)
    read_records(work / "pets", work / "raw")[1].list_classes()


def make_source() -> bytes:
    """The `source.json` of a table."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = Path(folder) / "work"
        prepare_pets(work)
        read_pets(work, b"path,label\na.png,cat\nb.png,dog\n")
        return (work / "raw" / "source.json").read_bytes()


def prepare_source(work: Path) -> None:
    prepare_pets(work)
    (work / "pets" / "labels.csv").write_text("path,label\na.png,cat\nb.png,dog\n")


def read_model(work: Path, data: bytes) -> None:
    (work / "model.safetensors").write_bytes(data)
    load_classifier(work / "model.safetensors")


def make_model() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_classifier(build_classifier(make_model_info(), 0), path)
        return path.read_bytes()


def swap_value(model: bytes, key: str, value: Any) -> bytes:
    """The model file with another value in its description, and a header that is right."""
    length = int.from_bytes(model[:8], "little")
    header = json.loads(model[8 : 8 + length])
    description = json.loads(header["__metadata__"]["imagepipe"])
    header["__metadata__"]["imagepipe"] = json.dumps(description | {key: value})
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + model[8 + length :]


MODEL_KEYS = ["format", "model", "choices", "normalize", "classes", "image", "mean", "std", "manifests", "conversion"]
MODEL_VALUES = [
    *(None, True, 0, 1, -1, 2**70, 1.5, "", "x", "none", "imagenet", "softmax", "mlp", "cnn", "resnet_small"),
    *("simplenet", [], [0], [0.5, 0.5], [0.0], ["a"], ["a", "a", "a"], ["a"] * 50, [[]], {}, {"hidden": 3}),
    *({"hidden": -1}, {"hidden": 0}, {"hidden": "x"}, {"hidden": 1.5}, {"hidden": 2**70}),
    *({"base": 0, "stem": "pool", "dropout": 0.5}, {"base": 4, "stem": "x", "dropout": 2}),
    *({"base": 4, "stem": "stride", "dropout": "x"}, {"x": 1}),
    *({"width": 4, "stem": "full", "blocks": 0, "dropout": 0},),
    *({"width": 4, "stem": "x", "blocks": 1, "dropout": 0},),
    *({"width": 4, "stem": "pool", "blocks": -1, "dropout": -1}, {"mode": "L", "width": 0, "height": 0}),
    *({"mode": "L", "width": -8, "height": 8}, {"mode": "RGB", "width": 8, "height": 8}),
    *({"mode": "L", "width": 2**40, "height": 1}, {"mode": "L", "width": 2**70, "height": 1}),
    *({"mode": "CMYK", "width": 8, "height": 8}, {"mode": "L", "width": 64, "height": 1}),
]


def draw_models() -> hostile.Inputs:
    """The model file with a few values of its description swapped."""
    model = make_model()
    pairs = st.lists(st.tuples(st.sampled_from(MODEL_KEYS), st.sampled_from(MODEL_VALUES)), max_size=3)
    return pairs.map(lambda swaps: swap_all(model, swaps))


def swap_all(model: bytes, swaps: list[tuple[str, Any]]) -> bytes:
    for key, value in swaps:
        model = swap_value(model, key, value)
    return model


def make_png() -> bytes:
    out = io.BytesIO()
    Image.new("L", (2, 2)).save(out, "PNG")
    return out.getvalue()


PETS = ["a.png", "cats/b.png", "cats/é.png", "b.png", "a", "./a.png", "cats\\b.png", "gone.png"]
PARTS = ["", "train", "val", "test"] * 6 + ["Testing", "x", " "]
OWN = [f"0000{number}.png" for number in range(5)]


def list_table_readers() -> dict[str, Reader]:
    tables, words = hostile.draw_tables(), hostile.TABLE_WORDS
    labels = ["cat"] * 40 + hostile.CELLS
    pets = st.one_of(tables, hostile.draw_filled({"path": PETS * 4 + hostile.CELLS, "label": labels, "split": PARTS}))
    own = st.one_of(tables, hostile.draw_filled({"file": OWN * 8 + hostile.CELLS, "label": labels}))
    classes = st.one_of(hostile.draw_tables(["class", "as", "x"]), st.just(b"class,as\ncat,feline\n"))
    predictions = make_table([True, False, True]).to_csv(index=False, lineterminator="\n").encode()
    manifest, packed = make_manifest("", "train.csv"), make_manifest("packed", "train.csv")
    cells = [*words, *(cell.encode() for cell in hostile.CELLS)]
    parquets = hostile.draw_parquets(describe_with_pandas())
    return {
        "csv": Reader(tables, words, read_any_table, 12_000),
        "source-table": Reader(pets, cells, read_pets, 8_000, prepare_pets),
        "dataset-csv": Reader(own, cells, read_own_csv, 10_000, prepare_manifests),
        "manifest": Reader(st.just(manifest), cells, read_own_manifest, 6_000, prepare_manifests),
        "shard-manifest": Reader(st.just(packed), cells, read_own_shards, 6_000, prepare_manifests),
        "predictions": Reader(st.just(predictions), cells, read_predictions, 5_000),
        "classes": Reader(classes, cells, read_classes, 5_000),
        "parquet": Reader(parquets, hostile.JSON_WORDS, read_parquet, 5_000),
    }


def list_archive_readers() -> dict[str, Reader]:
    words = hostile.PACK_WORDS
    stated = [(size, name) for size in (b"-1536", b"5", b"9" * 30) for name in (b"a", "é".encode())]
    own = st.sampled_from([make_own_tar(), *(make_pax_tar(size, name) for size, name in stated)])
    shard = st.just(make_manifest("shards", "00000.tar"))
    return {
        "tar": Reader(hostile.draw_tars(""), words, read_archive, 8_000),
        "tar.gz": Reader(hostile.draw_tars("gz"), words, read_archive, 4_000),
        "tar.xz": Reader(hostile.draw_tars("xz"), words, read_archive, 4_000),
        "tar.bz2": Reader(hostile.draw_tars("bz2"), words, read_archive, 4_000),
        "zip": Reader(hostile.draw_zips(), hostile.ZIP_WORDS, read_archive, 10_000),
        "files.tar": Reader(own, words, read_own_tar, 5_000),
        "shard": Reader(shard, [*words, make_png()], read_damaged_shard, 4_000, prepare_manifests),
    }


def list_readers() -> dict[str, Reader]:
    idx, packed = hostile.draw_idx(), hostile.draw_idx().map(hostile.PACKERS["gz"])
    info = st.just(make_dataset_info().model_dump_json(indent=1).encode())
    source, words = st.just(make_source()), hostile.JSON_WORDS
    return {
        **list_table_readers(),
        **list_archive_readers(),
        "params": Reader(hostile.draw_yaml(cut_sections()), hostile.YAML_WORDS, read_params, 12_000),
        "idx": Reader(idx, hostile.IDX_WORDS, read_array, 6_000),
        "idx.gz": Reader(packed, hostile.PACK_WORDS, read_packed_array, 4_000),
        "dataset.json": Reader(info, words, read_description, 4_000),
        "source.json": Reader(source, words, read_source, 4_000, prepare_source),
        "model": Reader(draw_models(), words, read_model, 6_000),
    }


NAMES = [
    *("csv", "source-table", "dataset-csv", "manifest", "shard-manifest", "predictions", "classes", "parquet"),
    *("tar", "tar.gz", "tar.xz", "tar.bz2", "zip", "files.tar", "shard"),
    *("params", "idx", "idx.gz", "dataset.json", "source.json", "model"),
]


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    return list_readers()


def test_there_are_a_hundred_thousand_inputs(readers: dict[str, Reader]) -> None:
    assert list(readers) == NAMES
    assert sum(reader.many for reader in readers.values()) >= 100_000


def wait(work: Path, data: bytes) -> None:
    time.sleep(60)


def count_on(work: Path, data: bytes) -> None:
    while True:
        pass


def stumble(work: Path, data: bytes) -> None:
    raise KeyError(data)


def write_elsewhere(work: Path, data: bytes) -> None:
    (work / ".." / "new").write_bytes(data)


@pytest.mark.parametrize(
    ("read", "found"), [(wait, Hang), (count_on, Hang), (stumble, KeyError), (write_elsewhere, AssertionError)]
)
def test_a_reader_that_does_what_it_must_not_would_be_found(
    read: Read, found: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.HANG", 0.3)
    monkeypatch.setattr(f"{__name__}.STUCK", 3)
    with pytest.raises(found):
        fuzz(Reader(st.just(b"x"), [b"y"], read, 1), 1, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_inputs_give_a_result_or_a_message(name: str, readers: dict[str, Reader], tmp_path: Path) -> None:
    assert fuzz(readers[name], FEW, tmp_path).total() == FEW


@pytest.mark.proof
@pytest.mark.parametrize("name", NAMES)
def test_many_inputs_give_a_result_or_a_message(
    name: str, readers: dict[str, Reader], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outcomes = fuzz(readers[name], readers[name].many, tmp_path)
    assert outcomes.total() == readers[name].many
    assert min(outcomes["taken"], outcomes["refused"]) > 0
    record_property("fuzzed inputs", outcomes.total())
    record_property("taken", outcomes["taken"])
    record_property("refused", outcomes["refused"])
