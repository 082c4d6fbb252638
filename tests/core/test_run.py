import json
from pathlib import Path

import joblib
import platformdirs
import pytest

from imagepipe.core.errors import InputError
from imagepipe.core.run import count_jobs, find_cache_root, load_run_params
from tests.core.made import make_run


@pytest.fixture(autouse=True)
def no_cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEPIPE_CACHE", raising=False)


def test_reads_the_section_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {"jobs": 3, "workers": 1, "engine": "ray", "mirror": "/mnt", "cache": "off", "memory_gigabytes": 0.5}
    Path("params.yaml").write_text(json.dumps({"run": make_run(**wanted).model_dump()}))  # which is YAML too
    assert load_run_params() == make_run(**wanted)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("jobs: -1", "params.yaml:2: run.jobs: found -1; expected greater than or equal to 0"),
        ("jobs: 1025", "params.yaml:2: run.jobs: found 1025; expected less than or equal to 1024"),
        ("workers: 257", "params.yaml:2: run.workers: found 257; expected less than or equal to 256"),
        ("engine: spark", "params.yaml:2: run.engine: found spark; expected 'local' or 'ray'"),
        ("cache: no", "params.yaml:2: run.cache: found no; expected 'on' or 'off'"),
        ("cache_gigabytes: 0", "params.yaml:2: run.cache_gigabytes: found 0; expected greater than 0"),
        ("memory_gigabytes: -1", "params.yaml:2: run.memory_gigabytes: found -1; expected greater than or equal to 0"),
        (
            "cache_dir: data/images",
            "params.yaml:2: run.cache_dir: found data/images; expected a place that no stage writes (data/images is an",
        ),
        ("mirror: 8080", "params.yaml:2: run.mirror: found 8080; expected a valid string; put it in quotes to mean te"),
    ],
)
def test_refuses_what_is_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = line.split(":")[0]
    good = [f"{name}: {value!r}" for name, value in make_run().model_dump().items() if name != wrong]
    Path("params.yaml").write_text("\n  ".join(["run:", line, *good]))
    with pytest.raises(InputError) as caught:
        load_run_params()
    assert problem in str(caught.value)


def test_jobs_are_as_many_as_asked() -> None:
    assert count_jobs(make_run(jobs=3)) == 3


def test_no_number_of_jobs_means_every_core() -> None:
    assert count_jobs(make_run(jobs=0)) == joblib.cpu_count()


def test_cache_is_the_users_unless_named() -> None:
    assert find_cache_root(make_run()) == Path(platformdirs.user_cache_dir("imagepipe"))


def test_cache_is_where_params_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache_root(make_run(cache_dir="~/kept")) == tmp_path / "kept"


def test_a_cache_below_an_unknown_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "no home folder is known for ~nosuch; expected a folder: write its full path."
    with pytest.raises(InputError) as caught:
        find_cache_root(make_run(cache_dir="~nosuch/x"))
    assert str(caught.value) == f"params.yaml: run.cache_dir: found ~nosuch/x, but {said}"
    monkeypatch.setenv("IMAGEPIPE_CACHE", "~nosuch")
    with pytest.raises(InputError) as caught:
        find_cache_root(make_run())
    assert str(caught.value) == f"IMAGEPIPE_CACHE: found ~nosuch, but {said}"


def test_the_variable_goes_before_params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(tmp_path))
    assert find_cache_root(make_run(cache_dir="/elsewhere")) == tmp_path


def test_the_variable_names_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEPIPE_CACHE", "data/../models/kept")
    with pytest.raises(InputError) as caught:
        find_cache_root(make_run())
    assert str(caught.value) == (
        "IMAGEPIPE_CACHE: found data/../models/kept; expected a place that no stage writes (models is an output)."
    )
