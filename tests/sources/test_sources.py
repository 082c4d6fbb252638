import json
from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.core.run import RunParams
from imagepipe.sources import SOURCES, fetch_source, read_records
from imagepipe.sources.params import FetchParams

RUN = RunParams(jobs=1, workers=0, mirror="", cache_dir="")


def make_params(source: str) -> FetchParams:
    return FetchParams(source=source, name="", options="", path="data/source")


def test_every_source_can_fetch_and_read() -> None:
    assert set(SOURCES) >= {"digits", "torchvision"}
    for module in SOURCES.values():
        assert callable(module.fetch)
        assert callable(module.read_records)


def test_what_is_fetched_is_described_and_can_be_read(tmp_path: Path) -> None:
    fetched = fetch_source(make_params("digits"), RUN, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.csv.gz", "source.json"]
    records, info = read_records(tmp_path)
    assert info == fetched
    assert len(records) == 1797


def test_two_fetches_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fetch_source(make_params("digits"), RUN, tmp_path / name)
    for name in ("digits.csv.gz", "source.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_unknown_source_in_the_params_gets_a_suggestion(tmp_path: Path) -> None:
    expected = r"fetch\.source: unknown source `digit`; did you mean `digits`\? Known: digits, .*torchvision"
    with pytest.raises(InputError, match=expected):
        fetch_source(make_params("digit"), RUN, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_in_the_description_names_the_file(tmp_path: Path) -> None:
    info = fetch_source(make_params("digits"), RUN, tmp_path)
    (tmp_path / "source.json").write_text(json.dumps(info.model_dump() | {"source": "folders"}), "utf-8")
    with pytest.raises(InputError, match=r"source\.json: source: unknown source `folders`; .*Known: digits"):
        read_records(tmp_path)


def test_a_folder_that_the_source_would_not_read_is_refused(tmp_path: Path) -> None:
    params = FetchParams(source="digits", name="", options="", path="photos")
    with pytest.raises(InputError, match=r"fetch\.path: found photos, but the source `digits` reads no folder; exp"):
        fetch_source(params, RunParams(jobs=1, workers=0, mirror="", cache_dir=""), tmp_path)
