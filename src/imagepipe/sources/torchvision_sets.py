"""Every classification set that torchvision offers, by its name there.

The classic ones are read from their original files with NumPy, without importing torch: they are in SETS. All others
are exported through torchvision when they are fetched: they are in `torchvision_exports.py`.

File names and MD5 sums are those that torchvision 0.29 checks, but for the CIFARs, whose binary archives are used
(sums from https://www.cs.toronto.edu/~kriz/cifar.html) because the Python ones are pickles.
To add a set: one ImageSet in SETS, with a reader if its format is new.
"""

import bz2
import gzip
import io
import string
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imagepipe.core.errors import InputError, suggest_name
from imagepipe.core.hashes import hash_file
from imagepipe.core.run import RunParams, find_cache_root
from imagepipe.sources import torchvision_exports
from imagepipe.sources.download import RemoteFile, obtain_file
from imagepipe.sources.idx import parse_idx, read_idx
from imagepipe.sources.params import FetchParams
from imagepipe.sources.records import ArrayPart, Record, SourceInfo, make_array_records
from imagepipe.sources.torchvision_exports import Option, one_of, read_options

Options = dict[str, str]
Reader = Callable[[Path, Options], list[ArrayPart]]

DIGITS = tuple(string.digits)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A published set: its files, how they are read, its class names (given its options) and where it comes from.

    Every one of its options must be given.
    """

    files: tuple[RemoteFile, ...]
    read: Reader
    classes: Callable[[Path, Options], tuple[str, ...]]
    licence: str
    citation: str
    homepage: str
    options: dict[str, Option] = field(default_factory=dict[str, Option])


def fetch(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Put the original files of the set `fetch.name` into `raw_dir`, verified; or what torchvision makes of them.

    Raises InputError for an unknown or refused name and for wrong options, and whatever `obtain_file` and
    `torchvision_exports.fetch` raise.
    """
    check_name(params.name, "params.yaml: fetch.name")
    if params.name in torchvision_exports.EXPORTS:
        return torchvision_exports.fetch(params, run, raw_dir)
    image_set = SETS[params.name]
    options: Options = read_options(params, image_set.options)
    for file in image_set.files:
        obtain_file(file, raw_dir / file.name, run.mirror, find_cache_root(run))
    return SourceInfo(
        source="torchvision",
        name=params.name,
        options=options,
        licence=image_set.licence,
        citation=image_set.citation,
        homepage=image_set.homepage,
        classes=list(image_set.classes(raw_dir, options)),
        files={file.name: hash_file(raw_dir / file.name) for file in image_set.files},
        published=True,
    )


def check_name(name: str, where: str) -> None:
    """Raise InputError, naming `where`, for a set that is refused or unknown."""
    known = [*SETS, *torchvision_exports.EXPORTS]
    if name in torchvision_exports.REFUSED:
        reason = torchvision_exports.REFUSED[name]
        raise InputError(f"{where}: `{name}` cannot be used: {reason}. Known: {', '.join(sorted(known))}.")
    if name not in known:
        raise InputError(f"{where}: unknown set `{name}`; {suggest_name(name, known)}.")


def read_records(source: Path, raw_dir: Path, info: SourceInfo) -> list[Record]:
    """Every image of the set, train part first, with its official part; `source` is not read."""
    check_name(info.name, f"{raw_dir}/source.json")
    if info.name in torchvision_exports.EXPORTS:
        return torchvision_exports.read_records(raw_dir, info)
    try:
        parts = SETS[info.name].read(raw_dir, info.options)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{raw_dir}: the files of {info.name} cannot be read ({error}); fetch them again.") from error
    return make_array_records(parts, info.classes, raw_dir)


def read_mnist_files(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """The four IDX files that MNIST, Fashion-MNIST and KMNIST all have."""
    return [
        read_idx_pair(raw_dir, part, f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        for part, prefix in (("train", "train"), ("test", "t10k"))
    ]


def read_idx_pair(raw_dir: Path, part: str, images: str, labels: str) -> ArrayPart:
    """Images and labels from two IDX files; of labels with several columns (QMNIST) the first is the class."""
    values = read_idx(raw_dir / labels)
    return ArrayPart(part, images, read_idx(raw_dir / images), values if values.ndim == 1 else values[:, 0])


def read_qmnist(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """60,000 train and 60,000 test images; labels are eight columns (class, writer, …)."""
    return [
        read_idx_pair(raw_dir, part, f"qmnist-{part}-images-idx3-ubyte.gz", f"qmnist-{part}-labels-idx2-int.gz")
        for part in ("train", "test")
    ]


def read_emnist(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """One of the six splits inside gzip.zip; its images are stored transposed and are set upright here.

    `letters` counts its labels from 1 (torchvision keeps a class `N/A` for 0); here they start at 0.
    """
    split = options["split"]
    parts: list[ArrayPart] = []
    with zipfile.ZipFile(raw_dir / "gzip.zip") as archive:
        for part in ("train", "test"):
            names = [f"gzip/emnist-{split}-{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
            images, labels = (parse_idx(gzip.decompress(archive.read(name)), raw_dir / name) for name in names)
            first = 1 if split == "letters" else 0
            upright = np.ascontiguousarray(images.transpose(0, 2, 1))
            parts.append(ArrayPart(part, f"gzip.zip/{names[0]}", upright, labels.astype(np.int64) - first))
    return parts


def name_emnist_classes(raw_dir: Path, options: Options) -> tuple[str, ...]:
    """Class names of an EMNIST split, in label order; merged sets lack the small letters that look like capitals."""
    merged = "".join(letter for letter in string.ascii_lowercase if letter not in "cijklmopsuvwxyz")
    names = {
        "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
        "bymerge": string.digits + string.ascii_uppercase + merged,
        "balanced": string.digits + string.ascii_uppercase + merged,
        "letters": string.ascii_lowercase,
        "digits": string.digits,
        "mnist": string.digits,
    }
    return tuple(names[options["split"]])


def read_usps(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """LIBSVM text: `label index:value …` with labels 1 to 10 and values -1 to 1, 16×16, scaled as torchvision does."""
    parts: list[ArrayPart] = []
    for part, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        rows = [line.split() for line in bz2.decompress((raw_dir / file).read_bytes()).decode("ascii").splitlines()]
        labels = np.array([int(row[0]) for row in rows]) - 1
        values = np.array([[float(pair.partition(":")[2]) for pair in row[1:]] for row in rows], dtype=np.float32)
        images = ((values + 1) / 2 * 255).astype(np.uint8).reshape(-1, 16, 16)
        parts.append(ArrayPart(part, file, images, labels))
    return parts


def read_svhn(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """MATLAB files: X is (32, 32, 3, N), y is 1 to 10 where 10 means the digit 0."""
    from scipy.io import loadmat  # a heavy import that only this set needs

    parts: list[ArrayPart] = []
    for part in ("train", "test"):
        file = f"{part}_32x32.mat"
        arrays = loadmat(str(raw_dir / file))
        images = np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2))
        parts.append(ArrayPart(part, file, images, arrays["y"].reshape(-1).astype(np.int64) % 10))
    return parts


def read_cifar10(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """Five train files and one test file of rows: 1 label byte, 3072 pixel bytes."""
    archive = "cifar-10-binary.tar.gz"
    train = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
    return read_cifar(raw_dir / archive, {"train": train, "test": ["cifar-10-batches-bin/test_batch.bin"]}, 1)


def read_cifar100(raw_dir: Path, options: Options) -> list[ArrayPart]:
    """One train and one test file of rows: coarse label, fine label (used), 3072 pixel bytes."""
    archive = "cifar-100-binary.tar.gz"
    members = {"train": ["cifar-100-binary/train.bin"], "test": ["cifar-100-binary/test.bin"]}
    return read_cifar(raw_dir / archive, members, 2)


def read_cifar(path: Path, members: dict[str, list[str]], label_bytes: int) -> list[ArrayPart]:
    """Rows of `label_bytes` labels (the last one counts) and 3×32×32 planes, red first, from members of the archive."""
    wanted = {name: bytearray() for names in members.values() for name in names}
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name in wanted else None
            if content:
                with content:
                    wanted[member.name] += content.read()
    missing = [name for name, content in wanted.items() if not content]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; fetch it again.")
    parts: list[ArrayPart] = []
    for part, names in members.items():
        rows = np.frombuffer(b"".join(wanted[name] for name in names), np.uint8).reshape(-1, label_bytes + 3072)
        planes = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
        images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        parts.append(ArrayPart(part, f"{path.name}/{part}", images, rows[:, label_bytes - 1].astype(np.int64)))
    return parts


def name_cifar100_classes(raw_dir: Path, options: Options) -> tuple[str, ...]:
    """The 100 fine names, one a line, that stand in the archive itself."""
    with tarfile.open(raw_dir / "cifar-100-binary.tar.gz") as archive:
        content = archive.extractfile("cifar-100-binary/fine_label_names.txt")
        if content is None:
            raise InputError(f"{raw_dir}/cifar-100-binary.tar.gz: fine_label_names.txt is not a file.")
        with io.TextIOWrapper(content, "ascii") as text:
            return tuple(line.strip() for line in text if line.strip())


def fixed(*names: str) -> Callable[[Path, Options], tuple[str, ...]]:
    """Class names that do not depend on files or options."""
    return lambda raw_dir, options: names


def mnist_files(md5s: tuple[str, str, str, str], *homes: str) -> tuple[RemoteFile, ...]:
    """The four files that MNIST and its drop-in replacements share, with their MD5 sums in this order."""
    names = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    return tuple(
        RemoteFile(name, md5, tuple(f"{home}/{name}" for home in homes)) for name, md5 in zip(names, md5s, strict=True)
    )


QMNIST_HOME = "https://raw.githubusercontent.com/facebookresearch/qmnist/master"
USPS_HOME = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass"
SVHN_HOME = "http://ufldl.stanford.edu/housenumbers"
CIFAR_HOME = "https://www.cs.toronto.edu/~kriz"
CIFAR_CITATION = "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"

SETS: dict[str, ImageSet] = {
    "MNIST": ImageSet(
        files=mnist_files(
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
        read=read_mnist_files,
        classes=fixed(*DIGITS),
        licence="CC BY-SA 3.0",
        citation="Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits, 1998",
        homepage="http://yann.lecun.com/exdb/mnist/",
    ),
    "FashionMNIST": ImageSet(
        files=mnist_files(
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        read=read_mnist_files,
        classes=fixed(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        licence="MIT",
        citation="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, 2017, arXiv:1708.07747",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
    ),
    "KMNIST": ImageSet(
        files=mnist_files(
            (
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
        ),
        read=read_mnist_files,
        classes=fixed("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        licence="CC BY-SA 4.0",
        citation="T. Clanuwat et al.: Deep Learning for Classical Japanese Literature, 2018, arXiv:1812.01718",
        homepage="https://github.com/rois-codh/kmnist",
    ),
    "QMNIST": ImageSet(
        files=tuple(
            RemoteFile(name, md5, (f"{QMNIST_HOME}/{name}",))
            for name, md5 in (
                ("qmnist-train-images-idx3-ubyte.gz", "ed72d4157d28c017586c42bc6afe6370"),
                ("qmnist-train-labels-idx2-int.gz", "0058f8dd561b90ffdd0f734c6a30e5e4"),
                ("qmnist-test-images-idx3-ubyte.gz", "1394631089c404de565df7b7aeaf9412"),
                ("qmnist-test-labels-idx2-int.gz", "5b5b05890a5e13444e108efe57b788aa"),
            )
        ),
        read=read_qmnist,
        classes=fixed(*DIGITS),
        licence="BSD 3-Clause",
        citation="C. Yadav, L. Bottou: Cold Case: The Lost MNIST Digits, 2019, arXiv:1905.10498",
        homepage="https://github.com/facebookresearch/qmnist",
    ),
    "EMNIST": ImageSet(
        files=(
            RemoteFile(
                "gzip.zip",
                "58c8d27c78d21e728a6bc7b3cc06412e",
                ("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",),
            ),
        ),
        read=read_emnist,
        classes=name_emnist_classes,
        licence="public domain (NIST)",
        citation="G. Cohen, S. Afshar, J. Tapson, A. van Schaik: EMNIST, 2017, arXiv:1702.05373",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        options={"split": one_of("byclass", "bymerge", "balanced", "letters", "digits", "mnist")},
    ),
    "USPS": ImageSet(
        files=(
            RemoteFile("usps.bz2", "ec16c51db3855ca6c91edd34d0e9b197", (f"{USPS_HOME}/usps.bz2",)),
            RemoteFile("usps.t.bz2", "8ea070ee2aca1ac39742fdd1ef5ed118", (f"{USPS_HOME}/usps.t.bz2",)),
        ),
        read=read_usps,
        classes=fixed(*DIGITS),
        licence="not stated",
        citation="J. J. Hull: A database for handwritten text recognition research, IEEE PAMI 16(5), 1994",
        homepage=f"{USPS_HOME}.html",
    ),
    "SVHN": ImageSet(
        files=(
            RemoteFile("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", (f"{SVHN_HOME}/train_32x32.mat",)),
            RemoteFile("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", (f"{SVHN_HOME}/test_32x32.mat",)),
        ),
        read=read_svhn,
        classes=fixed(*DIGITS),
        licence="non-commercial use",
        citation="Y. Netzer et al.: Reading Digits in Natural Images with Unsupervised Feature Learning, 2011",
        homepage=f"{SVHN_HOME}/",
    ),
    "CIFAR10": ImageSet(
        files=(
            RemoteFile(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                (f"{CIFAR_HOME}/cifar-10-binary.tar.gz",),
            ),
        ),
        read=read_cifar10,
        classes=fixed(*CIFAR10),
        licence="not stated",
        citation=CIFAR_CITATION,
        homepage=f"{CIFAR_HOME}/cifar.html",
    ),
    "CIFAR100": ImageSet(
        files=(
            RemoteFile(
                "cifar-100-binary.tar.gz",
                "03b5dce01913d631647c71ecec9e9cb8",
                (f"{CIFAR_HOME}/cifar-100-binary.tar.gz",),
            ),
        ),
        read=read_cifar100,
        classes=name_cifar100_classes,
        licence="not stated",
        citation=CIFAR_CITATION,
        homepage=f"{CIFAR_HOME}/cifar.html",
    ),
}
