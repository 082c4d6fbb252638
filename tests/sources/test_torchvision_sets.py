import bz2
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from imagepipe import sources
from imagepipe.core.errors import InputError
from imagepipe.sources.records import Record, SourceInfo, write_source_info
from imagepipe.sources.torchvision_sets import SETS, fetch, read_records
from tests.core.made import make_run
from tests.sources.made import make_params

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
IDX_TYPES = {"uint8": 8, "int32": 12}
SOURCE = Path("data/source")  # which no published set reads


# Each set's files in their original format, as small as they can be


def make_images(numbers: list[int], height: int = 2, width: int = 3) -> NDArray[np.uint8]:
    """Grey images (N, H, W), each counting up from its own number, row by row."""
    steps = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.array(numbers, np.uint8)[:, None, None] + steps


def pack_idx(array: NDArray[np.generic]) -> bytes:
    """A gzipped IDX file, made without the code under test."""
    head = bytes([0, 0, IDX_TYPES[array.dtype.name], array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(head + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes(), mtime=0)


def write_mnist(folder: Path) -> None:
    for prefix, numbers, labels in (("train", [10, 20, 30], [9, 0, 3]), ("t10k", [40, 50], [1, 9])):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(pack_idx(make_images(numbers)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(pack_idx(np.array(labels, np.uint8)))


def write_qmnist(folder: Path) -> None:
    for part, numbers, labels in (("train", [10, 20], [7, 0]), ("test", [30], [2])):
        columns = [[label, 4, 3612, 0, 0, 0, 70000, 5] for label in labels]
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(pack_idx(make_images(numbers)))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(pack_idx(np.array(columns, np.int32)))


def write_emnist(folder: Path, labels: dict[str, list[int]]) -> None:
    """`labels` maps each kind to the labels of its two train images; the test part has the second one only."""
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for kind, both in labels.items():
            for part, numbers, chosen in (("train", [10, 20], both), ("test", [30], both[1:])):
                prefix = f"gzip/emnist-{kind}-{part}"
                archive.writestr(f"{prefix}-images-idx3-ubyte.gz", pack_idx(make_images(numbers, 3, 3)))
                archive.writestr(f"{prefix}-labels-idx1-ubyte.gz", pack_idx(np.array(chosen, np.uint8)))


def write_usps(folder: Path) -> None:
    def make_line(label: int, first: str) -> str:
        return f"{label} 1:{first} " + " ".join(f"{index}:-1" for index in range(2, 256)) + " 256:1 \n"

    train = make_line(1, "0") + make_line(10, "-0.5")
    (folder / "usps.bz2").write_bytes(bz2.compress(train.encode("ascii")))
    (folder / "usps.t.bz2").write_bytes(bz2.compress(make_line(8, "1").encode("ascii")))


def write_svhn(folder: Path) -> None:
    for part, labels in (("train", [10, 1, 9]), ("test", [5, 10])):
        images = np.zeros((32, 32, 3, len(labels)), np.uint8)
        for number in range(len(labels)):
            images[0, 0, :, number] = [1, 2, 3]
            images[31, 0, :, number] = [200, 100, number]
        arrays = {"X": images, "y": np.array(labels, np.uint8).reshape(-1, 1)}
        savemat(str(folder / f"{part}_32x32.mat"), arrays, do_compression=True)


def make_row(labels: bytes, red: int, green: int, blue: int) -> bytes:
    """One image of a CIFAR file: labels, then three planes of one value each; red is 255 at row 1, column 0."""
    planes = bytearray(bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024)
    planes[32] = 255
    return labels + bytes(planes)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def list_cifar10() -> dict[str, bytes]:
    """The members of the archive, in an order that is not theirs."""
    numbers = (3, 1, 5, 2, 4)
    batches = {f"data_batch_{number}.bin": make_row(bytes([number]), number, 20, 30) for number in numbers}
    batches["test_batch.bin"] = make_row(b"\x09", 60, 61, 62) + make_row(b"\x00", 70, 71, 72)
    batches["batches.meta.txt"] = b"airplane\n"
    return {f"cifar-10-batches-bin/{name}": content for name, content in batches.items()}


def write_cifar10(folder: Path) -> None:
    write_tar(folder / "cifar-10-binary.tar.gz", list_cifar10())


def write_cifar100(folder: Path) -> None:
    members = {
        "test.bin": make_row(b"\x01\x00", 9, 8, 7),
        "train.bin": make_row(b"\x00\x02", 1, 2, 3) + make_row(b"\x00\x01", 4, 5, 6),
        "fine_label_names.txt": b"apple\naquarium_fish\nbaby\n",
        "coarse_label_names.txt": b"plants\nanimals\n",
    }
    write_tar(folder / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{name}": data for name, data in members.items()})


# From a folder of such files to records


def get_pixels(record: Record) -> NDArray[np.uint8]:
    assert isinstance(record.image, np.ndarray)
    return record.image


class Originals:
    """A folder that plays the publisher's: the checksums of what lies in it count as the set's own."""

    def __init__(self, folder: Path, raw_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.raw_dir = raw_dir
        self._monkeypatch = monkeypatch

    def accept(self, name: str) -> None:
        """Expect the checksums that the files in the folder have now."""
        files = tuple(
            replace(file, md5=hashlib.md5((self.folder / file.name).read_bytes()).hexdigest())
            for file in SETS[name].files
        )
        self._monkeypatch.setitem(SETS, name, replace(SETS[name], files=files))

    def fetch(self, name: str, options: str = "") -> SourceInfo:
        run = make_run(mirror=str(self.folder))
        return fetch(make_params("torchvision", name=name, options=options), run, self.raw_dir)

    def read(self, name: str, options: str = "") -> tuple[list[Record], SourceInfo]:
        self.accept(name)
        info = self.fetch(name, options)
        return read_records(SOURCE, self.raw_dir, info), info


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Originals:
    (tmp_path / "originals").mkdir()
    (tmp_path / "raw").mkdir()
    return Originals(tmp_path / "originals", tmp_path / "raw", monkeypatch)


def list_facts(records: list[Record]) -> list[tuple[str, str, str]]:
    return [(record.key, record.part, record.class_name) for record in records]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("MNIST", DIGITS),
        (
            "FashionMNIST",
            ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
        ),
        ("KMNIST", ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]),
    ],
)
def test_mnist_and_its_replacements(originals: Originals, name: str, classes: list[str]) -> None:
    write_mnist(originals.folder)
    records, info = originals.read(name)
    assert info.classes == classes
    assert (info.source, info.name, info.options, info.published) == ("torchvision", name, {}, True)
    assert list_facts(records) == [
        ("00000", "train", classes[9]),
        ("00001", "train", classes[0]),
        ("00002", "train", classes[3]),
        ("00003", "test", classes[1]),
        ("00004", "test", classes[9]),
    ]
    assert get_pixels(records[1]).tolist() == [[20, 21, 22], [23, 24, 25]]
    assert get_pixels(records[3]).tolist() == [[40, 41, 42], [43, 44, 45]]
    assert records[3].source == "t10k-images-idx3-ubyte.gz#0"


def test_qmnist_takes_the_first_of_eight_columns(originals: Originals) -> None:
    write_qmnist(originals.folder)
    records, info = originals.read("QMNIST")
    assert info.classes == DIGITS
    assert list_facts(records) == [("00000", "train", "7"), ("00001", "train", "0"), ("00002", "test", "2")]
    assert get_pixels(records[2]).tolist() == [[30, 31, 32], [33, 34, 35]]


UPPER = LETTERS.upper()
EMNIST = {
    "byclass": ("0123456789" + UPPER + LETTERS, [10, 61], ["A", "z"]),
    "bymerge": ("0123456789" + UPPER + "abdefghnqrt", [36, 46], ["a", "t"]),
    "balanced": ("0123456789" + UPPER + "abdefghnqrt", [35, 38], ["Z", "d"]),
    "letters": (LETTERS, [1, 26], ["a", "z"]),
    "digits": ("0123456789", [0, 9], ["0", "9"]),
    "mnist": ("0123456789", [9, 0], ["9", "0"]),
}


@pytest.mark.parametrize("kind", EMNIST)
def test_each_kind_of_emnist(originals: Originals, kind: str) -> None:
    classes, _, names = EMNIST[kind]
    write_emnist(originals.folder, {name: labels for name, (_, labels, _) in EMNIST.items()})
    records, info = originals.read("EMNIST", f"split={kind}")
    assert info.classes == list(classes)
    assert info.options == {"split": kind}
    expected = [("00000", "train", names[0]), ("00001", "train", names[1]), ("00002", "test", names[1])]
    assert list_facts(records) == expected


def test_emnist_is_set_upright(originals: Originals) -> None:
    write_emnist(originals.folder, {"digits": [0, 1]})
    records, _ = originals.read("EMNIST", "split=digits")
    # The file holds 10 11 12 / 13 14 15 / 16 17 18: rows and columns are swapped.
    assert get_pixels(records[0]).tolist() == [[10, 13, 16], [11, 14, 17], [12, 15, 18]]


def test_emnist_letters_has_no_label_0(originals: Originals) -> None:
    write_emnist(originals.folder, {"letters": [0, 26]})
    with pytest.raises(InputError, match=r"gzip\.zip/.*: labels from -1 to 25, expected 0 to 25\.$"):
        originals.read("EMNIST", "split=letters")


def test_usps_labels_count_from_1_and_values_from_minus_1(originals: Originals) -> None:
    write_usps(originals.folder)
    records, info = originals.read("USPS")
    assert info.classes == DIGITS
    assert list_facts(records) == [("00000", "train", "0"), ("00001", "train", "9"), ("00002", "test", "7")]
    assert {get_pixels(record).shape for record in records} == {(16, 16)}
    # -1 to 1 becomes 0 to 255, rounded down: 0 is 127, -0.5 is 63.
    assert [int(get_pixels(record)[0, 0]) for record in records] == [127, 63, 255]
    assert [int(get_pixels(record)[15, 15]) for record in records] == [255, 255, 255]
    assert int(get_pixels(records[0]).sum()) == 127 + 255


def test_svhn_calls_the_digit_0_ten(originals: Originals) -> None:
    write_svhn(originals.folder)
    records, info = originals.read("SVHN")
    assert info.classes == DIGITS
    assert list_facts(records) == [
        ("00000", "train", "0"),
        ("00001", "train", "1"),
        ("00002", "train", "9"),
        ("00003", "test", "5"),
        ("00004", "test", "0"),
    ]
    assert get_pixels(records[2]).shape == (32, 32, 3)
    assert get_pixels(records[2])[0, 0].tolist() == [1, 2, 3]
    assert get_pixels(records[2])[31, 0].tolist() == [200, 100, 2]
    assert get_pixels(records[2])[0, 31].tolist() == [0, 0, 0]


def test_cifar10_goes_batch_by_batch(originals: Originals) -> None:
    write_cifar10(originals.folder)
    records, info = originals.read("CIFAR10")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert info.classes == names
    train = [(f"{index:05d}", "train", names[index + 1]) for index in range(5)]
    assert list_facts(records) == [*train, ("00005", "test", "truck"), ("00006", "test", "airplane")]
    assert get_pixels(records[3]).shape == (32, 32, 3)
    assert get_pixels(records[3])[0, 0].tolist() == [4, 20, 30]
    assert get_pixels(records[3])[1, 0].tolist() == [255, 20, 30]
    assert get_pixels(records[3])[0, 1].tolist() == [4, 20, 30]
    assert get_pixels(records[6])[31, 31].tolist() == [70, 71, 72]


def test_cifar100_takes_the_fine_label_and_the_names_in_the_archive(originals: Originals) -> None:
    write_cifar100(originals.folder)
    records, info = originals.read("CIFAR100")
    assert info.classes == ["apple", "aquarium_fish", "baby"]
    assert list_facts(records) == [
        ("00000", "train", "baby"),
        ("00001", "train", "aquarium_fish"),
        ("00002", "test", "apple"),
    ]
    assert get_pixels(records[0])[0, 0].tolist() == [1, 2, 3]
    assert get_pixels(records[0])[1, 0].tolist() == [255, 2, 3]
    assert get_pixels(records[2])[31, 31].tolist() == [9, 8, 7]


def test_cifar100_without_its_names_is_named(originals: Originals) -> None:
    with tarfile.open(originals.folder / "cifar-100-binary.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-100-binary/fine_label_names.txt")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    originals.accept("CIFAR100")
    with pytest.raises(InputError, match=r"cifar-100-binary\.tar\.gz: fine_label_names\.txt is not a file\.$"):
        originals.fetch("CIFAR100")


@pytest.mark.parametrize("lost", ["data_batch_3.bin", "test_batch.bin"])
def test_an_archive_that_lacks_a_batch_is_not_read_as_a_smaller_one(originals: Originals, lost: str) -> None:
    members = {name: data for name, data in list_cifar10().items() if not name.endswith(lost)}
    write_tar(originals.folder / "cifar-10-binary.tar.gz", members)
    with pytest.raises(InputError, match=lost):
        originals.read("CIFAR10")


def test_every_set_can_be_told_and_is_described() -> None:
    assert sorted(SETS) == [
        "CIFAR10",
        "CIFAR100",
        "EMNIST",
        "FashionMNIST",
        "KMNIST",
        "MNIST",
        "QMNIST",
        "SVHN",
        "USPS",
    ]
    for image_set in SETS.values():
        assert image_set.licence
        assert image_set.citation
        assert image_set.homepage.startswith("http")
        for file in image_set.files:
            assert len(file.md5) == 32
            assert file.urls
            assert all(url.startswith("http") and url.endswith(f"/{file.name}") for url in file.urls)


@pytest.mark.slow
def test_checksums_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        theirs = dict(getattr(datasets, name).resources)
        assert {file.name: file.md5 for file in SETS[name].files} == theirs
    qmnist = {Path(url).name: md5 for part in ("train", "test") for url, md5 in datasets.QMNIST.resources[part]}
    assert {file.name: file.md5 for file in SETS["QMNIST"].files} == qmnist
    assert SETS["EMNIST"].files[0].md5 == datasets.EMNIST.md5
    assert [file.md5 for file in SETS["USPS"].files] == [datasets.USPS.split_list[p][2] for p in ("train", "test")]
    assert [file.md5 for file in SETS["SVHN"].files] == [datasets.SVHN.split_list[p][2] for p in ("train", "test")]


# The real thing


def test_the_real_mnist(originals: Originals, mnist_dir: Path) -> None:
    originals.folder = mnist_dir
    info = originals.fetch("MNIST")
    records = read_records(SOURCE, originals.raw_dir, info)
    assert info.files.keys() == {path.name for path in originals.raw_dir.glob("*.gz")}
    train = [record for record in records if record.part == "train"]
    test = [record for record in records if record.part == "test"]
    assert (len(train), len(test), len(records)) == (60_000, 10_000, 70_000)
    counts = Counter(record.class_name for record in train)
    assert [counts[digit] for digit in DIGITS] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (train[-1].key, test[0].key, test[-1].key) == ("59999", "60000", "69999")
    assert (train[0].class_name, test[0].class_name) == ("5", "7")
    assert get_pixels(train[0])[5, 12:24].tolist() == [3, 18, 18, 18, 126, 136, 175, 26, 166, 255, 247, 127]


# What is refused


def test_an_unknown_set_gets_a_suggestion(originals: Originals) -> None:
    expected = r"params\.yaml: fetch\.name: unknown set `mnist`; did you mean `MNIST`\? Known: CIFAR10, CIFAR100, CLE"
    with pytest.raises(InputError, match=expected):
        originals.fetch("mnist")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("MNIST", "split=letters", "MNIST has no option `split`; it has: none."),
        ("EMNIST", "part=letters", "EMNIST has no option `part`; it has: split."),
        (
            "EMNIST",
            "split=letter",
            "split is 'letter'; expected one of byclass, bymerge, balanced, letters, digits, mnist.",
        ),
        ("EMNIST", "", "EMNIST needs split=…, one of byclass, bymerge, balanced, letters, digits, mnist."),
        ("EMNIST", "letters", "found 'letters'; expected words of the form name=value, each name once."),
    ],
)
def test_wrong_options_are_named(originals: Originals, name: str, options: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        originals.fetch(name, options)
    assert str(caught.value) == f"params.yaml: fetch.options: {expected}"
    assert list(originals.raw_dir.iterdir()) == []


def test_a_file_that_the_mirror_lacks_is_named(originals: Originals) -> None:
    write_mnist(originals.folder)
    originals.accept("MNIST")
    (originals.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    expected = r"t10k-labels-idx1-ubyte\.gz: not there; run\.mirror must be a folder that holds the original t10k-lab"
    with pytest.raises(InputError, match=expected):
        originals.fetch("MNIST")


def test_a_file_with_another_checksum_gives_both(originals: Originals) -> None:
    write_mnist(originals.folder)
    path = originals.folder / "train-images-idx3-ubyte.gz"
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(InputError) as caught:
        originals.fetch("MNIST")
    assert str(caught.value).startswith(f"{path}: MD5 is {found}, expected f68b3c2dcbeaaa9fbdd348bbdeb94873; ")
    assert not (originals.raw_dir / "source.json").exists()


def test_a_set_in_the_description_that_is_unknown_is_named(originals: Originals) -> None:
    write_mnist(originals.folder)
    _, info = originals.read("MNIST")
    with pytest.raises(InputError, match=r"source\.json: unknown set `MINST`; did you mean `MNIST`\?"):
        read_records(SOURCE, originals.raw_dir, info.model_copy(update={"name": "MINST"}))


WRITERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "QMNIST": (write_qmnist, "", "qmnist-test-labels-idx2-int.gz"),
    "EMNIST": (lambda folder: write_emnist(folder, {"mnist": [0, 1]}), "split=mnist", "gzip.zip"),
    "USPS": (write_usps, "", "usps.t.bz2"),
    "SVHN": (write_svhn, "", "train_32x32.mat"),
    "CIFAR10": (write_cifar10, "", "cifar-10-binary.tar.gz"),
    "CIFAR100": (write_cifar100, "", "cifar-100-binary.tar.gz"),
}


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scramble(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 30 + data[middle + 30 :]


def replace_by_page(data: bytes) -> bytes:
    return b"<!doctype html>"


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, scramble, replace_by_page, empty])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_damaged_after_fetching_is_an_input_error(
    originals: Originals, name: str, damage: Callable[[bytes], bytes]
) -> None:
    write, options, file = WRITERS[name]
    write(originals.folder)
    _, info = originals.read(name, options)
    write_source_info(originals.raw_dir, info)
    path = originals.raw_dir / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        sources.read_records(SOURCE, originals.raw_dir)
    assert str(originals.raw_dir) in str(caught.value)
    assert "fetch" in str(caught.value)


def test_an_option_lost_from_the_description_is_an_input_error(originals: Originals) -> None:
    write_emnist(originals.folder, {"mnist": [0, 1]})
    _, info = originals.read("EMNIST", "split=mnist")
    with pytest.raises(InputError, match=r"the files of EMNIST cannot be read \('split'\); fetch them again\.$"):
        read_records(SOURCE, originals.raw_dir, info.model_copy(update={"options": {}}))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing either fails now
from dataclasses import replace
from pathlib import Path
from imagepipe.core.hashes import hash_file
from imagepipe.core.run import RunParams
from imagepipe.sources.params import FetchParams
from imagepipe.sources.torchvision_sets import SETS, fetch, read_records

given, given_run, raw_dir = sys.argv[1:]
params = FetchParams.model_validate_json(given)
run, name = RunParams.model_validate_json(given_run), params.name
files = tuple(replace(file, md5=hash_file(Path(run.mirror) / file.name, "md5")) for file in SETS[name].files)
SETS[name] = replace(SETS[name], files=files)
info = fetch(params, run, Path(raw_dir))
records = read_records(Path("data/source"), Path(raw_dir), info)
print(len(records), *sorted(module for module in sys.modules if module.startswith("torch")))
"""


@pytest.mark.parametrize(("name", "count"), [("EMNIST", 3), ("USPS", 3), ("SVHN", 5), ("CIFAR10", 7)])
def test_nothing_of_torch_is_imported(originals: Originals, name: str, count: int) -> None:
    write, options, _ = WRITERS[name]
    write(originals.folder)
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        WITHOUT_TORCH,
        make_params("torchvision", name=name, options=options).model_dump_json(),
    ]
    done = subprocess.run(
        [*command, make_run(mirror=str(originals.folder)).model_dump_json(), str(originals.raw_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [str(count), "torch", "torchvision"]
