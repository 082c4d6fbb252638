import gzip
from pathlib import Path

import numpy as np
import pytest

from imagepipe.core.errors import InputError
from imagepipe.sources.idx import parse_idx, read_idx

HERE = Path("made-idx")


@pytest.mark.parametrize(
    ("code", "values", "dtype", "expected"),
    [
        (0x08, "00 7f ff", "uint8", [0, 127, 255]),
        (0x09, "00 7f ff", "int8", [0, 127, -1]),
        (0x0B, "01 00 ff fe 00 02", "int16", [256, -2, 2]),
        (0x0C, "00 00 00 07 00 01 00 00 ff ff ff ff", "int32", [7, 65536, -1]),
        (0x0D, "3f 80 00 00 c0 00 00 00 3f 00 00 00", "float32", [1.0, -2.0, 0.5]),
        (0x0E, "3f f0 00 00 00 00 00 00 bf e0 00 00 00 00 00 00 00 00 00 00 00 00 00 00", "float64", [1.0, -0.5, 0.0]),
    ],
)
def test_each_type_of_value(code: int, values: str, dtype: str, expected: list[float]) -> None:
    data = bytes([0, 0, code, 1, 0, 0, 0, 3]) + bytes.fromhex(values)
    array = parse_idx(data, HERE)
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert array.tolist() == expected


def test_a_rank_of_0_is_one_number() -> None:
    assert parse_idx(bytes([0, 0, 8, 0, 42]), HERE).tolist() == 42


def test_a_rank_of_3_goes_row_by_row() -> None:
    sizes = bytes([0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3])
    assert parse_idx(bytes([0, 0, 8, 3]) + sizes + bytes(range(6)), HERE).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


def test_a_size_above_255_is_big_endian() -> None:
    assert parse_idx(bytes([0, 0, 8, 2, 0, 0, 1, 0, 0, 0, 0, 1]) + bytes(256), HERE).shape == (256, 1)


def test_no_items_is_an_empty_array() -> None:
    assert parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 5]), HERE).shape == (0, 5)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"<htm", "3c 68 74 6d"),
        (bytes([0, 0, 0x0A, 1]), "00 00 0a 01"),
        (bytes([0, 1, 0x08, 1]), "00 01 08 01"),
        (bytes([0, 0, 8]), "00 00 08"),
        (b"", "begins with ,"),
    ],
)
def test_a_wrong_magic_number_is_shown(data: bytes, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_idx(data, HERE)
    assert str(caught.value).startswith("made-idx: begins with")
    assert shown in str(caught.value)
    assert "is not IDX; fetch it again" in str(caught.value)


def test_a_cut_header_is_named() -> None:
    with pytest.raises(InputError, match=r"^made-idx: ends inside its header; fetch it again\.$"):
        parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0]), HERE)


@pytest.mark.parametrize("found", [0, 5, 7])
def test_too_few_or_too_many_values_give_both_lengths(found: int) -> None:
    data = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(found)
    with pytest.raises(InputError, match=rf"^made-idx: holds {found} bytes of values, expected 6 for \(2, 3\)\.$"):
        parse_idx(data, HERE)


@pytest.mark.parametrize(
    ("sizes", "values"), [([1] * 200, b"x"), ([0, 2**32 - 1, 2**32 - 1, 2**32 - 1], b"")], ids=["axes", "bytes"]
)
def test_sizes_that_no_array_can_have_are_refused(sizes: list[int], values: bytes) -> None:
    header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    with pytest.raises(InputError, match=r"^made-idx: has the sizes \(.*\), which no array can have \(.*\); fetch it"):
        parse_idx(header + values, HERE)


def test_lengths_count_bytes_not_values() -> None:
    with pytest.raises(InputError, match=r"holds 6 bytes of values, expected 12 for \(3,\)"):
        parse_idx(bytes([0, 0, 0x0C, 1, 0, 0, 0, 3]) + bytes(6), HERE)


def test_a_gzipped_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6])))
    assert read_idx(path).tolist() == [5, 6]


def test_files_that_cannot_be_unpacked_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 1, 0]) + bytes(range(256)))
    flipped = bytearray(whole)
    flipped[-6] ^= 0xFF  # inside the checksum at the end
    cases = {
        "plain": (bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6]), "Not a gzipped file"),
        "cut": (whole[: len(whole) // 2], "ended before the end"),
        "flipped": (bytes(flipped), "CRC check failed"),
        "scrambled": (whole[:10] + b"\xff" * 40, "invalid block type"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / f"{name}.gz"
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_idx(path)
        assert str(caught.value).startswith(f"{path}: cannot be unpacked (")
        assert reason in str(caught.value)
        assert str(caught.value).endswith("; fetch it again.")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.gz: cannot be unpacked .*No such file"):
        read_idx(tmp_path / "absent.gz")
