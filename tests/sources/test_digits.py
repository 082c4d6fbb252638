from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.hashes import hash_file
from imagepipe.sources import digits, read_records
from imagepipe.sources.params import FetchParams
from imagepipe.sources.records import Record, write_source_info
from tests.sources.made import RUN, make_params

SOURCE = Path("data/source")  # which is not read


def get_pixels(record: Record) -> NDArray[np.uint8]:
    assert isinstance(record.image, np.ndarray)
    return record.image


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return digits.read_records(SOURCE, tmp_path, digits.fetch(make_params(), RUN, tmp_path))


def test_the_shipped_file_is_copied_and_its_checksum_recorded(tmp_path: Path) -> None:
    info = digits.fetch(make_params(), RUN, tmp_path)
    assert info.files == {"digits.csv.gz": hash_file(tmp_path / "digits.csv.gz")}
    assert info.classes == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert (info.source, info.name, info.options) == ("digits", "digits", {})
    assert "CC BY" in info.licence
    assert "Alpaydin" in info.citation


def test_there_are_1797_scans_without_parts(records: list[Record]) -> None:
    assert len(records) == 1797
    assert [record.key for record in records[:2]] + [records[-1].key] == ["00000", "00001", "01796"]
    assert {record.part for record in records} == {""}
    assert records[3].source == "digits.csv.gz#3"


def test_scans_per_digit(records: list[Record]) -> None:
    counts = Counter(record.class_name for record in records)
    assert [counts[str(digit)] for digit in range(10)] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_ink_of_0_to_16_becomes_0_to_255(records: list[Record]) -> None:
    # The first scan's first row is 0 0 5 13 9 1 0 0; a step of ink is 255 / 16 = 15.9375.
    assert records[0].class_name == "0"
    assert get_pixels(records[0]).shape == (8, 8)
    assert get_pixels(records[0]).dtype == np.uint8
    assert get_pixels(records[0])[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert max(int(get_pixels(record).max()) for record in records) == 255
    assert len({int(value) for record in records for value in get_pixels(record).flat}) == 17


@pytest.mark.parametrize("params", [make_params(name="MNIST"), make_params(options="split=letters")])
def test_a_name_or_option_is_refused(tmp_path: Path, params: FetchParams) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: fetch\.source is `digits`.*set both to ''"):
        digits.fetch(params, RUN, tmp_path)


def test_other_bytes_in_the_package_give_both_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = digits.SHA256
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(EnvironmentFault, match=rf"digits\.csv\.gz .*SHA-256 {found}, expected {'0' * 64}; install"):
        digits.fetch(make_params(), RUN, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "absent", "not gzip"])
def test_a_damaged_copy_is_named(tmp_path: Path, damage: str) -> None:
    info = digits.fetch(make_params(), RUN, tmp_path)
    path = tmp_path / "digits.csv.gz"
    whole = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"a page")
    write_source_info(tmp_path, info)
    with pytest.raises(InputError, match=r"digits\.csv\.gz: SHA-256 is .*expected 09f66e6d"):
        read_records(SOURCE, tmp_path)
