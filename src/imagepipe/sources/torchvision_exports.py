"""[torch] The sets that torchvision itself must read: exported, when fetched, to PNGs in one tar and a table of labels.

torchvision is imported inside the functions of fetch only; split reads `files.tar` and `labels.csv` without it.
To add a set: one ExportSet in EXPORTS. A set that cannot be classified stands in REFUSED with the reason.

Four things of torchvision's are mended here. Its downloader has no time-out, falls back from https to http, leaves
files of 0 bytes and does not see a truncated one where no MD5 is stated: for as long as a set is built, every URL goes
through `download.py` instead (`route_downloads`), and a download that is complete is kept in the cache. It unpacks
beside the archive and takes a half-unpacked folder for the set: here each fetch unpacks anew, into a folder of its own
that is removed afterwards. It unpacks a tar to wherever the names in it point: here they stay in that folder
(`guard_tars`). And some of its sets follow the order of the file system: here they are sorted.
What comes from Google Drive (PCAM) goes through the package gdown, which cannot be routed: no time-out, nothing kept.
"""

import csv
import errno
import importlib.util
import io
import os
import pickle
import shutil
import string
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from PIL import Image

from imagepipe.core.errors import EnvironmentFault, ImagepipeError, InputError, list_findings
from imagepipe.core.files import report_write_errors
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import order_classes
from imagepipe.core.run import RunParams, expand_home, find_cache_root
from imagepipe.core.tables import read_text_table, share_cells
from imagepipe.core.unfinished import make_unfinished
from imagepipe.sources.archive import Member, list_members, write_members
from imagepipe.sources.download import Terms, download, locate_download, name_download
from imagepipe.sources.params import FetchParams
from imagepipe.sources.records import Record, SourceInfo
from imagepipe.sources.remote import RemoteFault, hide_credentials

GIGABYTE = 10**9
TAR = "files.tar"
TABLE = "labels.csv"
COLUMNS = ("file", "part", "label")
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
# What torchvision, and the readers below it, raise for files that are absent, damaged or laid out in another way.
UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    Image.DecompressionBombError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One word of `fetch.options`: what it may be, in words, and its value as torchvision takes it.

    `read` raises ValueError for what it may not be.
    """

    expected: str
    read: Callable[[str], Any]


def one_of(*values: str) -> Option:
    """One of these words, as it is."""
    return map_words({value: value for value in values})


def map_words(values: Mapping[str, Any]) -> Option:
    """One of these words, each with the value that it stands for."""

    def read(text: str) -> Any:
        if text not in values:
            raise ValueError(text)
        return values[text]

    return Option(f"one of {', '.join(values)}", read)


def whole_number(lowest: int, highest: int) -> Option:
    """A whole number in decimal digits."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and lowest <= int(text) <= highest):
            raise ValueError(text)
        return int(text)

    return Option(f"a whole number from {lowest} to {highest}", read)


def read_image_size(text: str) -> tuple[int, int, int]:
    """`3x32x48` as (channels, height, width)."""
    channels, height, width = map(whole_number(1, 10_000).read, text.split("x"))
    if channels not in (1, 3):
        raise ValueError(text)
    return channels, height, width


FLAG = map_words({"true": True, "false": False})
IMAGE_SIZE = Option("CxHxW with 1 or 3 channels, such as 3x32x32", read_image_size)


def read_options(params: FetchParams, options: Mapping[str, Option]) -> Arguments:
    """The values of `fetch.options`; raises InputError for an unknown, missing or wrong one."""
    where = "params.yaml: fetch.options"
    try:
        words = params.read_options()
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    values: Arguments = {}
    for name, word in words.items():
        if name not in options:
            known = ", ".join(options) or "none"
            raise InputError(f"{where}: {params.name} has no option `{name}`; it has: {known}.")
        try:
            values[name] = options[name].read(word)
        except ValueError as error:
            raise InputError(f"{where}: {name} is {word!r}; expected {options[name].expected}.") from error
    for name, option in options.items():
        if name not in values:
            raise InputError(f"{where}: {params.name} needs {name}=…, {option.expected}.")
    return values


# Parts, class names and orders of torchvision's datasets


def fixed_parts(**parts: Arguments) -> Callable[[Arguments], dict[str, Arguments]]:
    """Parts (train, val, test) that do not depend on the options, each with its constructor arguments."""
    return lambda values: parts


def split_parts(**splits: str) -> Callable[[Arguments], dict[str, Arguments]]:
    """Parts by torchvision's name of the `split` that each is."""
    return fixed_parts(**{part: {"split": split} for part, split in splits.items()})


def whole_set(values: Arguments) -> dict[str, Arguments]:
    """No parts: the set is one."""
    return {"": {}}


def part_places(values: Arguments) -> dict[str, Arguments]:
    """Places365's labelled parts; `split` says which of its two train parts."""
    return {"train": {"split": values["split"]}, "val": {"split": "val"}}


def part_inaturalist(values: Arguments) -> dict[str, Arguments]:
    """iNaturalist 2021 has a validation part, the earlier years are one."""
    if values["version"].startswith("2021_train"):
        return {"train": {}, "val": {"version": "2021_valid"}}
    return {"": {}}


def name_by_classes(dataset: Any, values: Arguments) -> Sequence[str] | None:
    """torchvision's `classes`; of a tuple of synonyms the first; None, which is numbers, where there are none."""
    classes: Sequence[str | tuple[str, ...]] | None = getattr(dataset, "classes", None)
    if classes is None:
        return None
    names = [name if isinstance(name, str) else name[0] for name in classes]
    return tell_apart(names, getattr(dataset, "wnids", [str(number) for number in range(len(names))]))


def tell_apart(names: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Names that several classes share (ImageNet's two cranes) get their tag behind them."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({tag})" for name, tag in zip(names, tags, strict=True)]


def name_by_categories(dataset: Any, values: Arguments) -> Sequence[str]:
    """The category folders of the Caltech sets."""
    return dataset.categories


def name_by_index(dataset: Any, values: Arguments) -> Sequence[str]:
    """The keys of `class_to_idx`, in the order of their numbers, which need not be that of `classes`."""
    return sorted(dataset.class_to_idx, key=dataset.class_to_idx.__getitem__)


def name_by_number(dataset: Any, values: Arguments) -> None:
    """The label itself, as text."""


def name_signs(dataset: Any, values: Arguments) -> Sequence[str] | None:
    """GTSRB: its train part counts the folders that are there (`00007`), its test part names the sign's own number."""
    if dataset._split == "test":
        return None
    return [str(int(path.name)) for path in sorted(dataset._target_folder.iterdir()) if path.is_dir()]


def name_pets(dataset: Any, values: Arguments) -> Sequence[str]:
    """Breeds, or cat and dog."""
    return dataset.bin_classes if values["target_types"] == "binary-category" else dataset.classes


def name_inaturalist(dataset: Any, values: Arguments) -> Sequence[str]:
    """The names on the level of the taxonomy that `target_type` asks for."""
    kind = values["target_type"]
    if kind == "full":
        return [name.replace(os.sep, "/") for name in dataset.all_categories]
    index: dict[str, int] = dataset.categories_index[kind]
    return sorted(index, key=index.__getitem__)


def name_characters(dataset: Any, values: Arguments) -> Sequence[str]:
    """Omniglot: `Alphabet/character01`."""
    return [name.replace(os.sep, "/") for name in dataset._characters]


def keep_order(dataset: Any) -> Iterable[int]:
    """The dataset's own order, where it does not depend on the file system."""
    return range(len(dataset))


def order_sun(dataset: Any) -> Iterable[int]:
    """SUN397 lists its files as the file system gives them."""
    return sorted(range(len(dataset)), key=lambda index: dataset._image_files[index].as_posix())


def order_inaturalist(dataset: Any) -> Iterable[int]:
    """iNaturalist lists each folder as the file system gives it."""
    return sorted(range(len(dataset)), key=dataset.index.__getitem__)


def order_characters(dataset: Any) -> Iterable[int]:
    """Omniglot lists alphabets, characters and drawings as the file system gives them."""

    def get_path(index: int) -> tuple[str, str]:
        drawing, character = dataset._flat_character_images[index]
        return dataset._characters[character], drawing

    return sorted(range(len(dataset)), key=get_path)


@dataclass(frozen=True, slots=True)
class ExportSet:
    """A set of torchvision's: its parts with their constructor arguments, its class names and where it comes from.

    `origin`: `url` is downloaded (routed), `drive` too (by gdown, not routed), `hand` must be put into a folder by the
    user as `layout` says, `none` has no files. `packages` are needed beyond our own; `fixed` goes to all parts.
    """

    licence: str
    citation: str
    homepage: str
    parts: Callable[[Arguments], dict[str, Arguments]] = whole_set
    options: dict[str, Option] = field(default_factory=dict[str, Option])
    names: Callable[[Any, Arguments], Sequence[str] | None] = name_by_classes
    order: Callable[[Any], Iterable[int]] = keep_order
    fixed: Arguments = field(default_factory=dict[str, Any])
    origin: Literal["url", "drive", "hand", "none"] = "url"
    layout: str = ""
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One of torchvision's datasets, the names of its labels (None: numbers) and the order in which it is read."""

    dataset: Any
    names: Sequence[str] | None
    order: Sequence[int]


@dataclass(frozen=True, slots=True)
class Root:
    """Where torchvision finds or puts a set: `folder` is None for a set without files.

    `downloads` are the files of the cache that were used so far; None where nothing is downloaded.
    """

    folder: Path | None
    downloads: list[Path] | None = None


def fetch(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Export the set `fetch.name`, which must be in EXPORTS, to `files.tar` and `labels.csv` in `raw_dir`.

    Raises InputError for wrong options and for files of the user's that torchvision cannot read, EnvironmentFault for
    the network, damaged downloads and packages that are not installed.
    """
    image_set = EXPORTS[params.name]
    values = read_options(params, image_set.options)
    with guard_tars(), open_root(params, image_set, run) as root:
        classes, notes = write_export(params, image_set, values, root, raw_dir)
    return SourceInfo(
        source="torchvision",
        name=params.name,
        options=params.read_options(),
        licence=image_set.licence,
        citation=image_set.citation,
        homepage=image_set.homepage,
        classes=classes,
        files={name: hash_file(raw_dir / name) for name in (TAR, TABLE)},
        published=image_set.origin != "none",
        notes=notes,
    )


@contextmanager
def guard_tars() -> Generator[None]:
    """Let a bare `tar.extractall`, which is torchvision's, refuse what points out of the folder that it unpacks into.

    Names, links and devices are Python's `data` filter's to judge. Before 3.11.4 Python has none, and every tar is
    refused.
    """
    name, guard = "extractall", refuse_tar
    if hasattr(tarfile, "data_filter"):
        name, guard = "extraction_filter", staticmethod(tarfile.data_filter)
    original = vars(tarfile.TarFile)[name]
    setattr(tarfile.TarFile, name, guard)
    try:
        yield
    finally:
        setattr(tarfile.TarFile, name, original)


def refuse_tar(tar: tarfile.TarFile, *arguments: Any, **more: Any) -> NoReturn:
    """In place of `extractall` where it cannot be made safe."""
    version = ".".join(map(str, sys.version_info[:3]))
    raise EnvironmentFault(
        f"{tar.name}: not unpacked: Python {version} writes the members of a tar wherever their names point. Use "
        "Python 3.11.4 or newer, or unpack the set yourself and name its folder in run.mirror in params.yaml."
    )


@contextmanager
def open_root(params: FetchParams, image_set: ExportSet, run: RunParams) -> Generator[Root]:
    """The folder of `run.mirror`, as it is; else a folder to download and unpack into, removed afterwards."""
    mirror = expand_home(run.mirror, "params.yaml: run.mirror")
    downloaded = image_set.origin in ("url", "drive")
    local = bool(run.mirror) and "://" not in run.mirror
    check_packages(params.name, image_set, downloaded and not local)
    if image_set.origin == "none":
        yield Root(None)
    elif local:
        if not mirror.is_dir():
            raise InputError(
                f"params.yaml: run.mirror: {mirror} is no folder; expected the one that holds {params.name}."
            )
        yield Root(mirror)
    elif downloaded:
        cache_root = find_cache_root(run)
        with report_write_errors(cache_root):
            folder = make_unfinished(cache_root / "torchvision")
        try:
            with route_downloads(run.mirror, cache_root, params.max_gigabytes) as downloads:
                yield Root(folder, downloads)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        raise InputError(
            f"params.yaml: fetch.name: torchvision cannot download {params.name}. Get it from {image_set.homepage}, "
            f"put {image_set.layout} into a folder, and set run.mirror to that folder."
        )


def check_packages(name: str, image_set: ExportSet, downloaded: bool) -> None:
    """Raise EnvironmentFault where a package that torchvision needs for this set is not installed."""
    needed = image_set.packages + (("gdown",) if downloaded and image_set.origin == "drive" else ())
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        remedy = f"python -m pip install {' '.join(missing)}"
        hint = "; without gdown, set run.mirror to a folder that holds the set" if "gdown" in missing else ""
        raise EnvironmentFault(f"{name} needs what is not installed: {', '.join(missing)}. Run `{remedy}`{hint}.")


def write_export(
    params: FetchParams, image_set: ExportSet, values: Arguments, root: Root, raw_dir: Path
) -> tuple[list[str], list[str]]:
    """Write every part's images and labels, one image in memory; gives the classes that occur and the notes."""
    tally = Tally()
    with report_write_errors(raw_dir / TABLE), (raw_dir / TABLE).open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        rows.writerow(COLUMNS)

        def make_members() -> Iterator[Member]:
            written = 0
            for part, arguments in image_set.parts(values).items():
                where = f"{params.name}/{part}".rstrip("/")
                built = build_dataset(params.name, image_set, values, arguments, root)
                tally.known |= dict.fromkeys(built.names or ())
                for number, (image, label) in enumerate(list_images(built, where, image_set, root)):
                    class_name = name_label(label, built.names, f"{where}#{number}")
                    tally.count(class_name, image.mode)
                    data = encode_png(image)
                    written += len(data)
                    check_size(written, params)
                    file = f"{part}/{number:05d}.png".lstrip("/")
                    rows.writerow((file, part, class_name))
                    yield Member(file, len(data), iter([data]))

        write_members(make_members(), raw_dir / TAR)
    return tally.list_classes(), tally.list_notes()


@dataclass(slots=True)
class Tally:
    """What was seen while a set was exported: its class names in torchvision's order, those that occur, the modes."""

    known: dict[str, None] = field(default_factory=dict[str, None])
    used: set[str] = field(default_factory=set[str])
    modes: Counter[str] = field(default_factory=Counter[str])

    def count(self, class_name: str, mode: str) -> None:
        """Note one image."""
        self.used.add(class_name)
        self.modes[mode] += 1

    def list_classes(self) -> list[str]:
        """The classes that occur, in torchvision's order; numbers by size."""
        return [name for name in self.known if name in self.used] + order_classes(self.used - self.known.keys())

    def list_notes(self) -> list[str]:
        """What the export changed."""
        return [
            f"{count} images in {mode}, which PNG cannot hold, became RGB"
            for mode, count in sorted(self.modes.items())
            if mode not in PNG_MODES
        ]


def build_dataset(name: str, image_set: ExportSet, values: Arguments, arguments: Arguments, root: Root) -> Part:
    """One part as torchvision has it; a download that it cannot use is forgotten."""
    from torchvision import datasets

    arguments = {**image_set.fixed, **values, **arguments}
    if root.folder is not None:
        arguments["root"] = str(root.folder)
    if root.downloads is not None:
        arguments["download"] = True
    try:
        dataset = getattr(datasets, name)(**arguments)
        return Part(dataset, image_set.names(dataset, values), list(image_set.order(dataset)))
    except UNREADABLE as error:
        if root.downloads and not is_disk_fault(error):
            root.downloads[-1].unlink(missing_ok=True)
        raise explain_error(name, error, image_set, root) from error


def list_images(part: Part, where: str, image_set: ExportSet, root: Root) -> Iterator[tuple[Image.Image, Any]]:
    """Each image, decoded, with its label; an image that cannot be read ends the fetch."""
    for index in part.order:
        try:
            image, label = part.dataset[index]
            image.load()
        except UNREADABLE as error:
            raise explain_error(f"{where}#{index}", error, image_set, root) from error
        yield image, label
        image.close()


def explain_error(where: str, error: Exception, image_set: ExportSet, root: Root) -> ImagepipeError:
    """Our error for one of torchvision's: the user's folder is the user's, a download is the environment's."""
    cause = describe_error(error)
    if is_disk_fault(error):
        return EnvironmentFault(f"{where}: {cause}. Make room or change the permissions, then run the stage again.")
    if root.downloads is not None:
        return EnvironmentFault(
            f"{where}: what was downloaded cannot be used ({cause}). Run the stage again; if that does not help, get "
            f"the set from {image_set.homepage} and set run.mirror to its folder."
        )
    layout = "the folder that torchvision calls `root`, with the set unpacked; an empty run.mirror downloads it"
    if image_set.origin == "hand":
        layout = f"{image_set.layout}, from {image_set.homepage}"
    return InputError(f"{where}: not readable in run.mirror, which is {root.folder} ({cause}). Expected {layout}.")


def is_disk_fault(error: BaseException) -> bool:
    """Whether the system refused, rather than that something was absent or damaged."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR)


def describe_error(error: BaseException) -> str:
    """The first line of an error, without torchvision's advice to set an argument that nobody here can set."""
    text = str(error).strip().partition("\n")[0].partition(" You can use download=True")[0]
    return text.rstrip(".") or type(error).__name__


def name_label(label: Any, names: Sequence[str] | None, where: str) -> str:
    """The class name of a label; raises InputError where there is none."""
    if label is None:
        raise InputError(f"{where}: torchvision gives no label for it; this variant of the set has images only.")
    if names is None:
        return str(int(label))
    if not 0 <= int(label) < len(names):
        raise InputError(
            f"{where}: its label is {int(label)}, but there are {len(names)} class names; get the set anew."
        )
    return names[int(label)]


def encode_png(image: Image.Image) -> bytes:
    """The pixels as PNG, and nothing of what the file said about itself (EXIF, colour profile) but transparency.

    torchvision does not turn images by their EXIF orientation, and figures on these sets are known without it.
    """
    if image.mode not in PNG_MODES:
        image = image.convert("RGB")
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def check_size(written: int, params: FetchParams) -> None:
    """Raise InputError where the export passes `fetch.max_gigabytes`."""
    if written > params.max_gigabytes * GIGABYTE:
        raise InputError(
            f"params.yaml: fetch.max_gigabytes: as PNGs {params.name} passes {params.max_gigabytes} · 10^9 "
            "bytes; raise it where the disk has the room."
        )


# torchvision's downloads, through ours


@contextmanager
def route_downloads(mirror: str, cache_root: Path, max_gigabytes: int) -> Generator[list[Path]]:
    """Let torchvision get every URL through `download.py`; yields the list that the files of the cache are added to.

    Replaces two functions of `torchvision.datasets.utils`: `_urlretrieve`, which has no time-out and does not check the
    length, and `_get_redirect_url`, which follows from https to http. Our own errors are no OSErrors, so its second
    attempt over http does not happen. `mirror` is a URL that holds the files under their own names, or ''.

    Raises EnvironmentFault where torchvision has no such functions.
    """
    from torchvision import datasets

    utils: Any = datasets.utils
    replaced = ("_urlretrieve", "_get_redirect_url")
    if not all(hasattr(utils, name) for name in replaced):
        raise EnvironmentFault(
            "torchvision.datasets.utils lacks _urlretrieve or _get_redirect_url, so that its downloads cannot be made "
            "safe; install the version that constraints.txt names, or set run.mirror to a folder that holds the set."
        )
    originals = {name: getattr(utils, name) for name in replaced}
    kept: list[Path] = []

    def retrieve(url: str, filename: str | Path, chunk_size: int = 0) -> None:
        source = f"{mirror.rstrip('/')}/{name_download(url)}" if mirror else url
        kept.append(keep_download(source, cache_root, max_gigabytes))
        link_file(kept[-1], Path(filename))

    utils._urlretrieve = retrieve
    utils._get_redirect_url = keep_url
    try:
        yield kept
    finally:
        for name, original in originals.items():
            setattr(utils, name, original)


def keep_url(url: str, max_hops: int = 0) -> str:
    """In place of torchvision's look ahead: redirects are followed, and checked, when the file is fetched."""
    return url


@hide_credentials()
def keep_download(url: str, cache_root: Path, max_gigabytes: int) -> Path:
    """The file of `url` in the cache, downloaded if it is not there; it is complete, but only torchvision checks more.

    Raises EnvironmentFault, with the way without a network where that is at fault.
    """
    cached = locate_download(url, name_download(url), cache_root)
    if cached.is_file():
        return cached
    enlarge = f"; fetch.max_gigabytes in params.yaml allows {max_gigabytes}: raise it if the set is that large"
    try:
        download(url, cached, Terms("md5", "", max_gigabytes * GIGABYTE, enlarge=enlarge))
    except RemoteFault as error:
        raise EnvironmentFault(
            f"{error}\nWithout a network: set run.mirror in params.yaml to a folder that holds the set as torchvision "
            "lays it out."
        ) from error
    return cached


def link_file(source: Path, target: Path) -> None:
    """`target` is the same file as `source`, or a copy where the file system has no links."""
    with report_write_errors(target):
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, target)


# What split reads


def read_records(raw_dir: Path, info: SourceInfo) -> list[Record]:
    """Every exported image, train part first, numbered through all parts (`00017`; at least five digits).

    Raises InputError where the table and the tar do not name the same files.
    """
    table = read_text_table(raw_dir / TABLE)
    if tuple(table.columns) != COLUMNS:
        raise InputError(f"{raw_dir / TABLE}: expected the columns {', '.join(COLUMNS)}; fetch it again.")
    members = list_members(raw_dir / TAR)
    files = table["file"].tolist()
    differing = sorted(set(files) ^ members.keys())
    if differing or len(files) != len(members):
        raise InputError(
            list_findings(
                f"{raw_dir}: in {TAR} or in {TABLE}, but not in both", differing, "Run the fetch stage again."
            )
        )
    digits = max(5, len(str(len(files) - 1)))
    rows = zip(files, share_cells(table["part"]), share_cells(table["label"]), strict=True)
    return [
        Record(f"{number:0{digits}d}", label, part, "", describe_source(info.name, file), members[file])
        for number, (file, part, label) in enumerate(rows)
    ]


def describe_source(name: str, file: str) -> str:
    """`EuroSAT/train#17` for the member `train/00017.png`."""
    part, slash, stem = file.removesuffix(".png").rpartition("/")
    return f"{name}{slash}{part}#{int(stem)}"


# The tables

DIGIT_HOME = "https://archive.ics.uci.edu/dataset/178/semeion+handwritten+digit"
CLIP_CITATION = (
    "A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv:2103.00020"
)

EXPORTS: dict[str, ExportSet] = {
    "Caltech101": ExportSet(
        licence="CC BY 4.0",
        citation="L. Fei-Fei, R. Fergus, P. Perona: Learning Generative Visual Models from Few Training Examples, 2004",
        homepage="https://data.caltech.edu/records/mzrjq-6wc02",
        names=name_by_categories,
        fixed={"target_type": "category"},
    ),
    "Caltech256": ExportSet(
        licence="CC BY 4.0",
        citation="G. Griffin, A. Holub, P. Perona: Caltech-256 Object Category Dataset, 2007",
        homepage="https://data.caltech.edu/records/nyy15-4j048",
        names=name_by_categories,
    ),
    "CLEVRClassification": ExportSet(
        licence="CC BY 4.0",
        citation="J. Johnson et al.: CLEVR, CVPR 2017, arXiv:1612.06890",
        homepage="https://cs.stanford.edu/people/jcjohns/clevr/",
        parts=split_parts(train="train", val="val"),  # its test part has no labels
        names=name_by_number,
    ),
    "Country211": ExportSet(
        licence="not stated",
        citation=CLIP_CITATION,
        homepage="https://github.com/openai/CLIP/blob/main/data/country211.md",
        parts=split_parts(train="train", val="valid", test="test"),
    ),
    "DTD": ExportSet(
        licence="research use",
        citation="M. Cimpoi et al.: Describing Textures in the Wild, CVPR 2014, arXiv:1311.3618",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        parts=split_parts(train="train", val="val", test="test"),
        options={"partition": whole_number(1, 10)},
    ),
    "EuroSAT": ExportSet(
        licence="MIT",
        citation="P. Helber et al.: EuroSAT, IEEE JSTARS 12(7), 2019, arXiv:1709.00029",
        homepage="https://github.com/phelber/EuroSAT",
    ),
    "FakeData": ExportSet(
        licence="none (random numbers)",
        citation="torchvision.datasets.FakeData",
        homepage="https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.FakeData.html",
        options={
            "size": whole_number(1, 10_000_000),
            "image_size": IMAGE_SIZE,
            "num_classes": whole_number(1, 100_000),
            "random_offset": whole_number(0, 2**31),
        },
        names=name_by_number,
        origin="none",
    ),
    "FER2013": ExportSet(
        licence="not stated",
        citation="I. Goodfellow et al.: Challenges in Representation Learning, 2013, arXiv:1307.0414",
        homepage="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        parts=split_parts(train="train", test="test"),
        names=name_by_number,
        origin="hand",
        layout="fer2013.csv or icml_face_data.csv (train.csv and test.csv lack the test labels) in a folder `fer2013`",
    ),
    "FGVCAircraft": ExportSet(
        licence="non-commercial research",
        citation="S. Maji et al.: Fine-Grained Visual Classification of Aircraft, 2013, arXiv:1306.5151",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        parts=split_parts(train="train", val="val", test="test"),
        options={"annotation_level": one_of("variant", "family", "manufacturer")},
    ),
    "Flowers102": ExportSet(
        licence="not stated",
        citation="M.-E. Nilsback, A. Zisserman: Automated Flower Classification over a Large Number of Classes, 2008",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        parts=split_parts(train="train", val="val", test="test"),
    ),
    "Food101": ExportSet(
        licence="not stated",
        citation="L. Bossard, M. Guillaumin, L. Van Gool: Food-101, ECCV 2014",
        homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        parts=split_parts(train="train", test="test"),
    ),
    "GTSRB": ExportSet(
        licence="not stated",
        citation="J. Stallkamp et al.: Man vs. computer, Neural Networks 32, 2012",
        homepage="https://benchmark.ini.rub.de/",
        parts=split_parts(train="train", test="test"),
        names=name_signs,
    ),
    "ImageNet": ExportSet(
        licence="non-commercial research and education",
        citation="O. Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, 2015, arXiv:1409.0575",
        homepage="https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
        parts=split_parts(train="train", val="val"),
        origin="hand",
        layout="ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (unpacked there)",
    ),
    "Imagenette": ExportSet(
        licence="Apache 2.0 (the images are ImageNet's)",
        citation="J. Howard: Imagenette, 2019",
        homepage="https://github.com/fastai/imagenette",
        parts=split_parts(train="train", val="val"),
        options={"size": one_of("full", "320px", "160px")},
    ),
    "INaturalist": ExportSet(
        licence="non-commercial research and education",
        citation="G. Van Horn et al.: The iNaturalist Classification and Detection Dataset, 2018, arXiv:1707.06642",
        homepage="https://github.com/visipedia/inat_comp",
        parts=part_inaturalist,
        options={
            "version": one_of("2017", "2018", "2019", "2021_train", "2021_train_mini", "2021_valid"),
            "target_type": one_of("full", "kingdom", "phylum", "class", "order", "family", "genus", "super"),
        },
        names=name_inaturalist,
        order=order_inaturalist,
    ),
    "LFWPeople": ExportSet(
        licence="not stated",
        citation="G. B. Huang et al.: Labeled Faces in the Wild, University of Massachusetts, report 07-49, 2007",
        homepage="http://vis-www.cs.umass.edu/lfw/",
        # Its train and test people are not the same people, so they are no parts of one classification task.
        options={
            "split": one_of("10fold", "train", "test"),
            "image_set": one_of("original", "funneled", "deepfunneled"),
        },
        names=name_by_index,
        origin="hand",
        layout="the .tgz of the image set, unpacked too, people.txt, peopleDevTrain.txt, peopleDevTest.txt and "
        "lfw-names.txt in a folder `lfw-py`",
    ),
    "Omniglot": ExportSet(
        licence="MIT",
        citation="B. M. Lake et al.: Human-level concept learning through probabilistic program induction, 2015",
        homepage="https://github.com/brendenlake/omniglot",
        options={"background": FLAG},  # the two halves share no character: they are no parts of one task
        names=name_characters,
        order=order_characters,
    ),
    "OxfordIIITPet": ExportSet(
        licence="CC BY-SA 4.0",
        citation="O. M. Parkhi et al.: Cats and Dogs, CVPR 2012",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        parts=split_parts(train="trainval", test="test"),
        options={"target_types": one_of("category", "binary-category")},
        names=name_pets,
    ),
    "PCAM": ExportSet(
        licence="CC0",
        citation="B. S. Veeling et al.: Rotation Equivariant CNNs for Digital Pathology, 2018, arXiv:1806.03962",
        homepage="https://github.com/basveeling/pcam",
        parts=split_parts(train="train", val="val", test="test"),
        names=name_by_number,
        origin="drive",
        packages=("h5py",),
    ),
    "Places365": ExportSet(
        licence="CC BY (the labels)",
        citation="B. Zhou et al.: Places: A 10 Million Image Database for Scene Recognition, IEEE PAMI, 2017",
        homepage="http://places2.csail.mit.edu/index.html",
        parts=part_places,  # its test part has no labels
        options={"split": one_of("train-standard", "train-challenge"), "small": FLAG},
        names=name_by_index,
    ),
    "RenderedSST2": ExportSet(
        licence="not stated",
        citation=CLIP_CITATION,
        homepage="https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md",
        parts=split_parts(train="train", val="val", test="test"),
    ),
    "SEMEION": ExportSet(
        licence="CC BY 4.0",
        citation="M. Buscema et al.: Semeion Handwritten Digit, UCI Machine Learning Repository",
        homepage=DIGIT_HOME,
        names=name_by_number,
    ),
    "StanfordCars": ExportSet(
        licence="not stated",
        citation="J. Krause et al.: 3D Object Representations for Fine-Grained Categorization, 2013",
        homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        parts=split_parts(train="train", test="test"),
        origin="hand",
        layout="the folders devkit, cars_train and cars_test and the file cars_test_annos_withlabels.mat in a folder "
        "`stanford_cars`",
    ),
    "STL10": ExportSet(
        licence="not stated",
        citation="A. Coates et al.: An Analysis of Single-Layer Networks in Unsupervised Feature Learning, 2011",
        homepage="https://cs.stanford.edu/~acoates/stl10/",
        parts=split_parts(train="train", test="test"),  # the unlabelled part is left out
        options={"folds": map_words({"none": None} | {digit: int(digit) for digit in string.digits})},
    ),
    "SUN397": ExportSet(
        licence="not stated",
        citation="J. Xiao et al.: SUN Database, CVPR 2010",
        homepage="https://vision.princeton.edu/projects/2010/SUN/",
        order=order_sun,
    ),
}

BOXES = "its labels are boxes around several objects"
CAPTIONS = "its labels are sentences"
MASKS = "its labels are masks of pixels"
VIDEO = "it holds videos, not images"
FLOW = "its labels are optical flow between two images"
STEREO = "its labels are disparities of an image pair"

REFUSED: dict[str, str] = {
    "CarlaStereo": STEREO,
    "CelebA": "each image has forty attributes, not one class; export one of them to a CSV and use fetch.source: table",
    "Cityscapes": MASKS,
    "CocoCaptions": CAPTIONS,
    "CocoDetection": BOXES,
    "CREStereo": STEREO,
    "DatasetFolder": "it reads folders of one's own; use fetch.source: folder",
    "ETH3DStereo": STEREO,
    "FallingThingsStereo": STEREO,
    "Flickr30k": CAPTIONS,
    "Flickr8k": CAPTIONS,
    "FlyingChairs": FLOW,
    "FlyingThings3D": FLOW,
    "HD1K": FLOW,
    "HMDB51": VIDEO,
    "ImageFolder": "it reads folders of one's own; use fetch.source: folder",
    "InStereo2k": STEREO,
    "Kinetics": VIDEO,
    "Kitti": BOXES,
    "Kitti2012Stereo": STEREO,
    "Kitti2015Stereo": STEREO,
    "KittiFlow": FLOW,
    "LFWPairs": "its labels say whether two images show one person; LFWPeople has one person per image",
    "LSUN": "torchvision keeps its index as a pickle in the working folder, and nothing is unpickled here; "
    "write its images to class folders and use fetch.source: folder",
    "LSUNClass": "it is one class alone, without labels",
    "Middlebury2014Stereo": STEREO,
    "MovingMNIST": VIDEO,
    "PhotoTour": "its labels say which pairs of patches match",
    "SBDataset": MASKS,
    "SBU": CAPTIONS,
    "SceneFlowStereo": STEREO,
    "Sintel": FLOW,
    "SintelStereo": STEREO,
    "UCF101": VIDEO,
    "VisionDataset": "it is the base class of the others",
    "VOCDetection": BOXES,
    "VOCSegmentation": MASKS,
    "WIDERFace": BOXES,
    "wrap_dataset_for_transforms_v2": "it is a function, not a set",
}
