import errno
import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.hashes import hash_file
from imagepipe.core.slices import FileSlice
from imagepipe.sources import torchvision_exports, torchvision_sets
from imagepipe.sources.records import Record, SourceInfo
from imagepipe.sources.torchvision_exports import (
    EXPORTS,
    REFUSED,
    describe_error,
    encode_png,
    explain_error,
    guard_tars,
    keep_download,
    keep_url,
    link_file,
    name_label,
    name_signs,
    part_inaturalist,
    read_options,
    read_records,
    route_downloads,
    tell_apart,
)
from tests.core.made import make_run
from tests.sources.loopback import Handler, LoopbackServer
from tests.sources.made import make_params

FAKE = "size=7 image_size=3x4x5 num_classes=3 random_offset=10"


class Home:
    """A folder laid out as torchvision's `root`, the folder that is fetched into, and the cache."""

    def __init__(self, folder: Path) -> None:
        self.mirror = folder / "mirror"
        self.raw_dir = folder / "raw"
        self.cache = folder / "cache"
        for made in (self.mirror, self.raw_dir, self.cache):
            made.mkdir()

    def fetch(self, name: str, options: str = "", mirror: str | None = None, max_gigabytes: int = 20) -> SourceInfo:
        run = make_run(mirror=str(self.mirror) if mirror is None else mirror, cache_dir=str(self.cache))
        return torchvision_sets.fetch(
            make_params("torchvision", name=name, options=options, max_gigabytes=max_gigabytes), run, self.raw_dir
        )

    def read(self, name: str, options: str = "", mirror: str | None = None) -> tuple[list[Record], SourceInfo]:
        info = self.fetch(name, options, mirror)
        return torchvision_sets.read_records(Path("data/source"), self.raw_dir, info), info

    def put_image(self, path: str, value: int, mode: str = "RGB") -> None:
        """A 4×3 image of one value, in the format that the path's ending says."""
        (self.mirror / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 3), value if mode == "L" else (value,) * len(mode)).save(self.mirror / path)

    def put_text(self, path: str, text: str) -> None:
        (self.mirror / path).parent.mkdir(parents=True, exist_ok=True)
        (self.mirror / path).write_text(text, "utf-8")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("IMAGEPIPE_CACHE", raising=False)
    return Home(tmp_path)


def open_image(record: Record) -> Image.Image:
    assert isinstance(record.image, FileSlice)
    image = Image.open(io.BytesIO(record.image.read()))
    assert image.format == "PNG"
    return image


def get_value(record: Record) -> int:
    """The red or grey of the first pixel."""
    return int(np.atleast_1d(np.asarray(open_image(record))[0, 0])[0])


def list_facts(records: list[Record]) -> list[tuple[str, str, str, int]]:
    return [(record.source, record.part, record.class_name, get_value(record)) for record in records]


# The tables


@pytest.mark.slow
def test_every_public_name_of_torchvision_is_in_just_one_table() -> None:
    from torchvision import datasets

    ours = [*torchvision_sets.SETS, *EXPORTS, *REFUSED]
    assert sorted(ours) == sorted(datasets.__all__)


def test_every_export_is_described() -> None:
    for name, image_set in EXPORTS.items():
        assert image_set.licence, name
        assert image_set.citation, name
        assert image_set.homepage.startswith("http"), name
        assert bool(image_set.layout) == (image_set.origin == "hand"), name
    assert all(REFUSED.values())


@pytest.mark.slow
def test_arguments_are_those_of_torchvision() -> None:
    import inspect

    from torchvision import datasets

    chosen = {"INaturalist": {"version": "2021_train"}, "Places365": {"split": "train-standard"}}
    for name, image_set in EXPORTS.items():
        taken = inspect.signature(getattr(datasets, name)).parameters
        given = {*image_set.fixed, *image_set.options}
        for part, arguments in image_set.parts(chosen.get(name, {})).items():
            assert part in ("", "train", "val", "test")
            given |= set(arguments)
        assert given <= set(taken), name
        assert (image_set.origin in ("url", "drive")) <= ("download" in taken), name
        assert (image_set.origin != "none") == ("root" in taken), name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CocoDetection", "boxes"),
        ("CelebA", "use fetch.source: table"),
        ("ImageFolder", "use fetch.source: folder"),
        ("LSUN", "pickle"),
        ("UCF101", "videos"),
    ],
)
def test_a_set_without_one_class_per_image_is_refused_with_the_reason(home: Home, name: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        home.fetch(name)
    message = str(caught.value)
    assert message.startswith(f"params.yaml: fetch.name: `{name}` cannot be used: ")
    assert reason in message
    assert "Known: CIFAR10, CIFAR100, CLEVRClassification, Caltech101" in message
    assert list(home.raw_dir.iterdir()) == []


# Options


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("EuroSAT", "split=train", "EuroSAT has no option `split`; it has: none."),
        ("DTD", "", "DTD needs partition=…, a whole number from 1 to 10."),
        ("DTD", "partition=11", "partition is '11'; expected a whole number from 1 to 10."),
        ("DTD", "partition=²", "partition is '²'; expected a whole number from 1 to 10."),
        ("Imagenette", "size=80px", "size is '80px'; expected one of full, 320px, 160px."),
        ("Omniglot", "background=yes", "background is 'yes'; expected one of true, false."),
        (
            "FakeData",
            FAKE.replace("3x4x5", "4x4x5"),
            "image_size is '4x4x5'; expected CxHxW with 1 or 3 channels, such as 3x32x32.",
        ),
        (
            "FakeData",
            FAKE.replace("3x4x5", "3x4"),
            "image_size is '3x4'; expected CxHxW with 1 or 3 channels, such as 3x32x32.",
        ),
        ("STL10", "folds", "found 'folds'; expected words of the form name=value, each name once."),
    ],
)
def test_wrong_options_are_named(home: Home, name: str, options: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        home.fetch(name, options)
    assert str(caught.value) == f"params.yaml: fetch.options: {expected}"


def test_options_become_what_torchvision_takes() -> None:
    def read(name: str, options: str) -> dict[str, object]:
        return read_options(make_params("torchvision", name=name, options=options), EXPORTS[name].options)

    assert read("FakeData", FAKE) == {"size": 7, "image_size": (3, 4, 5), "num_classes": 3, "random_offset": 10}
    assert read("Places365", "small=true split=train-challenge") == {"small": True, "split": "train-challenge"}
    assert read("STL10", "folds=none") == {"folds": None}
    assert read("STL10", "folds=3") == {"folds": 3}


def test_inaturalist_2021_has_a_validation_part() -> None:
    assert part_inaturalist({"version": "2021_train_mini"}) == {"train": {}, "val": {"version": "2021_valid"}}
    assert part_inaturalist({"version": "2021_valid"}) == {"": {}}
    assert part_inaturalist({"version": "2018"}) == {"": {}}


# FakeData, which needs no files


def test_fakedata_from_fetch_to_records(home: Home) -> None:
    import torch

    records, info = home.read("FakeData", FAKE)
    assert [record.key for record in records] == [f"0000{number}" for number in range(7)]
    assert [record.source for record in records] == [f"FakeData#{number}" for number in range(7)]
    expected: list[str] = []
    for number in range(7):  # as torchvision draws them: the image, then the label
        generator = torch.Generator().manual_seed(number + 10)
        torch.randn(3, 4, 5, generator=generator)
        expected.append(str(int(torch.randint(0, 3, size=(1,), generator=generator))))
    assert [record.class_name for record in records] == expected
    assert open_image(records[0]).size == (5, 4)
    assert {record.part for record in records} == {""}
    assert info.classes == sorted(set(expected))
    assert not info.published
    assert info.options == dict(word.split("=") for word in FAKE.split())
    assert info.files == {name: hash_file(home.raw_dir / name) for name in ("files.tar", "labels.csv")}
    assert sorted(path.name for path in home.raw_dir.iterdir()) == ["files.tar", "labels.csv"]


def test_the_same_bytes_twice_and_nothing_of_this_machine(home: Home) -> None:
    first = home.fetch("FakeData", FAKE).files
    for path in home.raw_dir.iterdir():
        path.unlink()
    assert home.fetch("FakeData", FAKE).files == first
    with tarfile.open(home.raw_dir / "files.tar", "r:") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"0000{number}.png" for number in range(7)]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


def test_more_than_the_wanted_bytes_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_exports, "GIGABYTE", 100)
    with pytest.raises(InputError, match=r"^params\.yaml: fetch\.max_gigabytes: as PNGs FakeData passes 1 · 10\^9 byt"):
        home.fetch("FakeData", FAKE, max_gigabytes=1)
    assert not (home.raw_dir / "files.tar").exists()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing either fails now
from pathlib import Path
from imagepipe.sources.records import SourceInfo
from imagepipe.sources.torchvision_sets import read_records

raw_dir, info = sys.argv[1:]
print(len(read_records(Path("data/source"), Path(raw_dir), SourceInfo.model_validate_json(info))))
"""


def test_reading_needs_no_torch(home: Home) -> None:
    info = home.fetch("FakeData", FAKE)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(home.raw_dir), info.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("7\n", "")


# Sets laid out on disk as torchvision's `root`


def test_eurosat_has_no_parts(home: Home) -> None:
    home.put_image("eurosat/2750/River/River_1.png", 10)
    home.put_image("eurosat/2750/Forest/Forest_2.png", 30)
    home.put_image("eurosat/2750/Forest/Forest_1.png", 20)
    records, info = home.read("EuroSAT")
    assert list_facts(records) == [
        ("EuroSAT#0", "", "Forest", 20),
        ("EuroSAT#1", "", "Forest", 30),
        ("EuroSAT#2", "", "River", 10),
    ]
    assert info.classes == ["Forest", "River"]
    assert (info.source, info.name, info.licence, info.published) == ("torchvision", "EuroSAT", "MIT", True)
    assert info.notes == []


def test_the_parts_of_dtd_follow_the_partition(home: Home) -> None:
    for number, name in enumerate(["banded/a.png", "banded/b.png", "dotted/c.png"]):
        home.put_image(f"dtd/dtd/images/{name}", number)
    for part, lines in (("train", "dotted/c.png\nbanded/a.png\n"), ("val", "banded/b.png\n"), ("test", "")):
        home.put_text(f"dtd/dtd/labels/{part}3.txt", lines)
    records, info = home.read("DTD", "partition=3")
    assert list_facts(records) == [
        ("DTD/train#0", "train", "dotted", 2),
        ("DTD/train#1", "train", "banded", 0),
        ("DTD/val#0", "val", "banded", 1),
    ]
    assert [record.key for record in records] == ["00000", "00001", "00002"]
    assert info.options == {"partition": "3"}


def test_gtsrb_names_signs_by_their_own_number(home: Home) -> None:
    home.put_image("gtsrb/GTSRB/Training/00002/a.ppm", 5)
    home.put_image("gtsrb/GTSRB/Training/00014/b.ppm", 6)
    home.put_image("gtsrb/GTSRB/Final_Test/Images/c.ppm", 7)
    home.put_text("gtsrb/GT-final_test.csv", "Filename;ClassId\nc.ppm;14\n")
    records, info = home.read("GTSRB")
    assert list_facts(records) == [
        ("GTSRB/train#0", "train", "2", 5),
        ("GTSRB/train#1", "train", "14", 6),
        ("GTSRB/test#0", "test", "14", 7),
    ]
    assert info.classes == ["2", "14"]


def test_imagenette_takes_the_first_of_its_synonyms(home: Home) -> None:
    for part in ("train", "val"):
        home.put_image(f"imagenette2-160/{part}/n02102040/a.jpeg", 100)
        home.put_image(f"imagenette2-160/{part}/n01440764/a.jpeg", 200)
    records, info = home.read("Imagenette", "size=160px")
    assert [(record.part, record.class_name) for record in records] == [
        ("train", "tench"),
        ("train", "English springer"),
        ("val", "tench"),
        ("val", "English springer"),
    ]
    assert info.classes == ["tench", "English springer"]


def test_pets_are_breeds_or_cat_and_dog(home: Home) -> None:
    for name in ("Abyssinian_1", "beagle_2", "beagle_3"):
        home.put_image(f"oxford-iiit-pet/images/{name}.jpg", 100)
    home.put_text("oxford-iiit-pet/annotations/trainval.txt", "beagle_2 2 2 1\nAbyssinian_1 1 1 1\n")
    home.put_text("oxford-iiit-pet/annotations/test.txt", "Abyssinian_1 1 1 1\nbeagle_3 2 2 2\n")
    records, info = home.read("OxfordIIITPet", "target_types=category")
    assert [(record.part, record.class_name) for record in records] == [
        ("train", "Beagle"),
        ("train", "Abyssinian"),
        ("test", "Abyssinian"),
        ("test", "Beagle"),
    ]
    assert info.classes == ["Abyssinian", "Beagle"]
    assert home.fetch("OxfordIIITPet", "target_types=binary-category").classes == ["Cat", "Dog"]


def test_country211_calls_its_validation_part_valid(home: Home) -> None:
    for number, part in enumerate(["train", "valid", "test"]):
        home.put_image(f"country211/{part}/AD/{number}.jpg", 50)
    records, _ = home.read("Country211")
    assert [(record.part, record.class_name) for record in records] == [("train", "AD"), ("val", "AD"), ("test", "AD")]


def test_caltech_keeps_grey_and_converts_what_png_cannot_hold(home: Home) -> None:
    folder = "caltech101/101_ObjectCategories"
    home.put_image(f"{folder}/ant/image_0001.jpg", 40, "L")
    home.put_image(f"{folder}/ant/image_0002.jpg", 0, "CMYK")
    (home.mirror / folder / "BACKGROUND_Google").mkdir()
    records, info = home.read("Caltech101")
    assert [open_image(record).mode for record in records] == ["L", "RGB"]
    assert get_value(records[0]) == 40
    assert info.notes == ["1 images in CMYK, which PNG cannot hold, became RGB"]
    assert info.classes == ["ant"]


def test_sun397_is_sorted_whatever_the_file_system_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(["a/abbey/sun_b", "a/abbey/sun_a", "b/bar/indoor/sun_c"]):
        home.put_image(f"SUN397/{name}.jpg", number * 40)
    home.put_text("SUN397/ClassName.txt", "/a/abbey\n/b/bar/indoor\n")
    once, info = home.read("SUN397")
    assert [record.class_name for record in once] == ["abbey", "abbey", "bar/indoor"]
    assert [get_value(record) for record in once] == [40, 0, 80]
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: reversed(list(rglob(path, pattern))))
    assert home.fetch("SUN397").files == info.files


def test_inaturalist_names_the_level_that_is_asked_for(home: Home) -> None:
    insect = "00000_Animalia_Arthropoda_Insecta_Coleoptera_Cleridae_Trichodes_apiarius"
    bird = "00001_Animalia_Chordata_Aves_Piciformes_Picidae_Dryocopus_martius"
    for version in ("2021_train_mini", "2021_valid"):
        for number, folder in enumerate([insect, bird]):
            for name in "ba":
                home.put_image(f"{version}/{folder}/{name}.png", number * 10 + (name == "b"))
    records, info = home.read("INaturalist", "version=2021_train_mini target_type=class")
    assert info.classes == ["Insecta", "Aves"]
    assert list_facts(records)[:3] == [
        ("INaturalist/train#0", "train", "Insecta", 0),
        ("INaturalist/train#1", "train", "Insecta", 1),
        ("INaturalist/train#2", "train", "Aves", 10),
    ]
    assert [record.part for record in records] == ["train"] * 4 + ["val"] * 4
    assert home.fetch("INaturalist", "version=2021_valid target_type=full").classes == [insect, bird]


def test_cars_are_named_by_their_description(home: Home) -> None:
    base = home.mirror / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    for part, path, number in (
        ("train", "devkit/cars_train_annos.mat", 2),
        ("test", "cars_test_annos_withlabels.mat", 1),
    ):
        home.put_image(f"stanford_cars/cars_{part}/0.jpg", 100)
        rows = np.array([("0.jpg", number), ("0.jpg", number)], dtype=[("fname", object), ("class", object)])
        savemat(str(base / path), {"annotations": rows})
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    savemat(str(base / "devkit/cars_meta.mat"), {"class_names": names})
    records, info = home.read("StanfordCars")
    assert [(record.part, record.class_name) for record in records] == [
        ("train", "Acura RL"),
        ("train", "Acura RL"),
        ("test", "AM General Hummer"),
        ("test", "AM General Hummer"),
    ]
    assert info.classes == ["AM General Hummer", "Acura RL"]


def test_clevr_counts_objects_and_leaves_out_its_test_part(home: Home) -> None:
    base = "clevr/CLEVR_v1.0"
    for part, count in (("train", 3), ("val", 10)):
        home.put_image(f"{base}/images/{part}/a.png", 100)
        scenes = {"scenes": [{"image_filename": "a.png", "objects": [{}] * count}]}
        home.put_text(f"{base}/scenes/CLEVR_{part}_scenes.json", json.dumps(scenes))
    records, info = home.read("CLEVRClassification")
    assert [(record.part, record.class_name) for record in records] == [("train", "3"), ("val", "10")]
    assert info.classes == ["3", "10"]


# What the user's folder may lack


def test_a_mirror_that_is_absent_or_holds_something_else_is_named(home: Home) -> None:
    with pytest.raises(
        InputError, match=r"^params\.yaml: run\.mirror: .*absent is no folder; expected the one that ho"
    ):
        home.fetch("EuroSAT", mirror=str(home.mirror / "absent"))
    with pytest.raises(InputError, match=r"^params\.yaml: run\.mirror: found ~nosuch/x, but no home folder is known"):
        home.fetch("EuroSAT", mirror="~nosuch/x")
    expected = (
        f"EuroSAT: not readable in run.mirror, which is {home.mirror} (Dataset not found). Expected the folder that "
        "torchvision calls `root`, with the set unpacked; an empty run.mirror downloads it."
    )
    with pytest.raises(InputError) as caught:
        home.fetch("EuroSAT")
    assert str(caught.value) == expected
    assert list(home.mirror.iterdir()) == []


def test_what_cannot_be_downloaded_says_how_to_get_it(home: Home) -> None:
    with pytest.raises(InputError) as caught:
        home.fetch("StanfordCars", mirror="")
    message = str(caught.value)
    assert message.startswith(
        "params.yaml: fetch.name: torchvision cannot download StanfordCars. Get it from https://ai"
    )
    assert "put the folders devkit, cars_train" in message
    assert message.endswith("into a folder, and set run.mirror to that folder.")
    with pytest.raises(InputError, match=r"Expected fer2013\.csv or icml_face_data\.csv .*, from https://www\.kaggle"):
        home.fetch("FER2013")


def test_packages_that_are_not_installed_are_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_exports.importlib.util, "find_spec", lambda name: None)
    expected = (
        r"^PCAM needs what is not installed: h5py, gdown\. Run `python -m pip install h5py gdown`; without gdown, "
    )
    with pytest.raises(EnvironmentFault, match=expected):
        home.fetch("PCAM", mirror="")
    with pytest.raises(
        EnvironmentFault, match=r"^PCAM needs what is not installed: h5py\. Run `python .*install h5py`\.$"
    ):
        home.fetch("PCAM")


def test_an_image_that_cannot_be_read_is_named(home: Home) -> None:
    home.put_image("eurosat/2750/River/a.png", 10)
    home.put_text("eurosat/2750/River/b.png", "<html>not found</html>")
    with pytest.raises(InputError, match=r"^EuroSAT#1: not readable in run\.mirror, .*cannot identify image file"):
        home.fetch("EuroSAT")
    assert not (home.raw_dir / "files.tar").exists()


def test_a_label_that_is_absent_or_has_no_name_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"^FER2013/test#0: torchvision gives no label for it; this variant of the set"
    ):
        name_label(None, None, "FER2013/test#0")
    with pytest.raises(InputError, match=r"^DTD#3: its label is 2, but there are 2 class names; get the set anew\.$"):
        name_label(2, ["a", "b"], "DTD#3")
    assert name_label(np.uint8(1), ["a", "b"], "") == "b"
    assert name_label(7, None, "") == "7"


def test_names_that_classes_share_are_told_apart() -> None:
    assert tell_apart(["crane", "dog", "crane"], ["n1", "n2", "n3"]) == ["crane (n1)", "dog", "crane (n3)"]


def test_a_full_disk_is_not_taken_for_a_damaged_set(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/x")
    for downloads in (None, []):
        error = explain_error("DTD", full, EXPORTS["DTD"], torchvision_exports.Root(tmp_path, downloads))
        assert isinstance(error, EnvironmentFault)
        assert "No space left on device: '/x'. Make room" in str(error)


def test_torchvisions_own_advice_is_left_out() -> None:
    assert (
        describe_error(RuntimeError("Dataset not found. You can use download=True to download it"))
        == "Dataset not found"
    )
    assert describe_error(EOFError()) == "EOFError"


def test_png_keeps_pixels_and_nothing_else() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.info = {"icc_profile": b"x" * 200, "exif": b"Exif\0\0", "dpi": (72, 72)}
    written = Image.open(io.BytesIO(encode_png(image)))
    written.load()
    assert written.info == {}
    assert np.asarray(written).tolist() == [[[1, 2, 3], [1, 2, 3]]]


# What split reads


def test_a_table_and_a_tar_that_differ_are_named(home: Home) -> None:
    info = home.fetch("FakeData", FAKE)
    table = home.raw_dir / "labels.csv"
    text = table.read_text("utf-8")
    assert text.splitlines()[0] == '"file","part","label"'
    table.write_text(text.replace("00003.png", "00033.png"), "utf-8")
    with pytest.raises(InputError) as caught:
        read_records(home.raw_dir, info)
    assert "in files.tar or in labels.csv, but not in both (2):\n  00003.png\n  00033.png\n" in str(caught.value)
    table.write_text("file,label\na,b\n", "utf-8")
    with pytest.raises(InputError, match=r"labels\.csv: expected the columns file, part, label; fetch it again\.$"):
        read_records(home.raw_dir, info)


# Downloads


BODY = bytes(range(256)) * 300


def send(body: bytes) -> Callable[[Handler], object]:
    return lambda handler: handler.answer(200, body)


def cut(handler: Handler) -> None:
    handler.answer(200, BODY[:1000], Content_Length=str(len(BODY)))
    handler.close_connection = True


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def pack_aircraft(home: Home, classes: str) -> bytes:
    """FGVC-Aircraft, which states no checksum, as its publisher packs it."""
    base = "fgvc-aircraft-2013b/data"
    home.put_text(f"{base}/families.txt", classes)
    for number, part in enumerate(["train", "val", "test"]):
        home.put_image(f"{base}/images/000{number}.jpg", 100)
        home.put_text(f"{base}/images_family_{part}.txt", f"000{number} Boeing 737\n")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(home.mirror / "fgvc-aircraft-2013b", "fgvc-aircraft-2013b")
    shutil.rmtree(home.mirror / "fgvc-aircraft-2013b")
    return buffer.getvalue()


AIRCRAFT = "fgvc-aircraft-2013b.tar.gz"


def test_a_download_is_kept_and_what_was_unpacked_is_not(home: Home, server: LoopbackServer) -> None:
    server.answers[f"/{AIRCRAFT}"] = send(pack_aircraft(home, "Boeing 737\nDash 8\n"))
    records, info = home.read("FGVCAircraft", "annotation_level=family", mirror=server.url)
    assert [(record.part, record.class_name) for record in records] == [
        ("train", "Boeing 737"),
        ("val", "Boeing 737"),
        ("test", "Boeing 737"),
    ]
    assert info.classes == ["Boeing 737"]  # the other occurs nowhere
    (kept,) = list_names(home.cache)
    assert kept.endswith(f"-{AIRCRAFT}")
    again = home.fetch("FGVCAircraft", "annotation_level=family", mirror=server.url)
    assert again == info
    assert server.asked == [f"/{AIRCRAFT}"]


def test_a_download_that_torchvision_cannot_use_is_forgotten(home: Home, server: LoopbackServer) -> None:
    whole = pack_aircraft(home, "Boeing 737\n")
    server.answers[f"/{AIRCRAFT}"] = send(whole[: len(whole) // 2])
    with pytest.raises(
        EnvironmentFault, match=r"^FGVCAircraft: what was downloaded cannot be used \(Compressed file end"
    ):
        home.fetch("FGVCAircraft", "annotation_level=family", mirror=server.url)
    assert list_names(home.cache) == []
    server.answers[f"/{AIRCRAFT}"] = send(whole)
    assert home.fetch("FGVCAircraft", "annotation_level=family", mirror=server.url).classes == ["Boeing 737"]


def add_file(archive: bytes, name: str) -> bytes:
    """The archive, packed with gzip, with one more file in it."""
    buffer = io.BytesIO(gzip.decompress(archive))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"owned"))
    return gzip.compress(buffer.getvalue())


def test_a_tar_that_points_out_of_its_folder_is_refused_and_forgotten(home: Home, server: LoopbackServer) -> None:
    server.answers[f"/{AIRCRAFT}"] = send(add_file(pack_aircraft(home, "Boeing 737\n"), "../../x"))
    with pytest.raises(
        EnvironmentFault, match=r"^FGVCAircraft: what was downloaded cannot be used \('\.\./\.\./x' would"
    ):
        home.fetch("FGVCAircraft", "annotation_level=family", mirror=server.url)
    assert not list(home.cache.parent.rglob("x"))
    assert list_names(home.cache) == []


def test_a_python_that_unpacks_wherever_names_point_unpacks_no_tar(
    home: Home, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    server.answers[f"/{AIRCRAFT}"] = send(pack_aircraft(home, "Boeing 737\n"))
    with pytest.raises(EnvironmentFault) as caught:
        home.fetch("FGVCAircraft", "annotation_level=family", mirror=server.url)
    message = str(caught.value)
    assert f"{AIRCRAFT}: not unpacked: Python 3." in message
    assert message.endswith(
        " writes the members of a tar wherever their names point. Use Python 3.11.4 or newer, or unpack the set "
        "yourself and name its folder in run.mirror in params.yaml."
    )


@pytest.mark.parametrize("old", [False, True], ids=["filter", "none"])
def test_tars_are_what_they_were_once_torchvision_has_read(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        monkeypatch.delattr(tarfile, "data_filter")
    before = dict(vars(tarfile.TarFile))
    guarded = guard_tars()
    guarded.__enter__()
    assert dict(vars(tarfile.TarFile)) != before
    assert not guarded.__exit__(ValueError, ValueError(), None)
    assert dict(vars(tarfile.TarFile)) == before


def test_a_wrong_checksum_is_torchvisions_to_find(home: Home, server: LoopbackServer) -> None:
    server.answers["/semeion.data"] = send(BODY)
    with pytest.raises(EnvironmentFault) as caught:
        home.fetch("SEMEION", mirror=server.url)
    message = str(caught.value)
    assert message.startswith(
        "SEMEION: what was downloaded cannot be used (File not found or corrupted). Run the stage "
    )
    assert message.endswith("and set run.mirror to its folder.")
    assert list_names(home.cache) == []


@pytest.mark.parametrize(
    ("answer", "expected", "attempts"),
    [
        (cut, r"data\.bin: the connection failed: .*3 attempts\)\.\nWithout a network: set run\.mirror in params", 3),
        (lambda handler: handler.answer(404), r"data\.bin: the server answers 404", 1),
        (lambda handler: handler.answer(503), r"data\.bin: the server answers 503 .*3 attempts\)", 3),
        (send(b"<!doctype html><p>Sign in"), r"data\.bin: it is a web page, not the file\.\nWithout", 1),
        (
            lambda handler: handler.answer(302, Location="file:///etc/passwd"),
            r"is not http or https; refused\.\nWithout",
            1,
        ),
    ],
    ids=["cut", "404", "503", "page", "file"],
)
def test_only_a_complete_file_gets_its_name(
    tmp_path: Path, server: LoopbackServer, answer: Callable[[Handler], object], expected: str, attempts: int
) -> None:
    from torchvision.datasets import utils

    server.answers["/data.bin"] = answer
    with route_downloads("", tmp_path / "cache", 20) as kept, pytest.raises(EnvironmentFault, match=expected):
        utils.download_url(f"{server.url}/data.bin", str(tmp_path / "root"))
    assert server.asked == ["/data.bin"] * attempts
    assert kept == []
    assert list_names(tmp_path) == []


def test_what_fails_over_https_is_not_tried_over_http(tmp_path: Path, server: LoopbackServer) -> None:
    from torchvision.datasets import utils

    server.answers["/data.bin"] = send(BODY)  # in plain http, as torchvision's own second attempt would find
    address = f"https://127.0.0.1:{server.server_port}/data.bin"
    with route_downloads("", tmp_path / "cache", 20), pytest.raises(EnvironmentFault, match=f"^{address}: "):
        utils.download_url(address, str(tmp_path / "root"))
    assert server.asked == []
    assert list_names(tmp_path) == []
    assert keep_url("https://example.org/x", 3) == "https://example.org/x"


def test_a_download_above_the_wanted_size_is_given_up(
    tmp_path: Path, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_exports, "GIGABYTE", 50)
    server.answers["/data.bin"] = send(BODY)
    with pytest.raises(EnvironmentFault) as caught:
        keep_download(f"{server.url}/data.bin", tmp_path, 2)
    assert "the body passes 100 bytes and was given up; fetch.max_gigabytes in params.yaml allows 2: " in str(
        caught.value
    )
    assert list_names(tmp_path) == []


def test_torchvision_has_its_own_downloader_back(tmp_path: Path) -> None:
    from torchvision.datasets import utils

    before = (utils._urlretrieve, utils._get_redirect_url)
    routed = route_downloads("", tmp_path, 20)
    routed.__enter__()
    assert utils._urlretrieve is not before[0]
    assert not routed.__exit__(ValueError, ValueError(), None)
    assert (utils._urlretrieve, utils._get_redirect_url) == before


def test_a_torchvision_that_cannot_be_routed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    monkeypatch.delattr(utils, "_urlretrieve")
    with pytest.raises(EnvironmentFault, match=r"lacks _urlretrieve or _get_redirect_url, .*constraints\.txt names"):
        route_downloads("", tmp_path, 20).__enter__()


def test_two_urls_of_one_base_name_are_kept_apart(tmp_path: Path, server: LoopbackServer) -> None:
    server.answers |= {"/a/data.bin": send(b"a"), "/b/data.bin": send(b"b")}
    kept = [keep_download(f"{server.url}/{name}/data.bin", tmp_path, 20) for name in "ab"]
    assert [path.read_bytes() for path in kept] == [b"a", b"b"]
    link_file(kept[1], tmp_path / "here.bin")
    assert (tmp_path / "here.bin").samefile(kept[1])


def test_a_sign_folder_is_read_by_its_number(tmp_path: Path) -> None:
    class Signs:
        _split = "train"
        _target_folder = tmp_path

    (tmp_path / "00007").mkdir()
    (tmp_path / "notes.txt").touch()
    assert name_signs(Signs(), {}) == ["7"]
