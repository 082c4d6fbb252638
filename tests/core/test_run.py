from pathlib import Path

import joblib
import platformdirs
import pytest

from imagepipe.core.errors import InputError
from imagepipe.core.run import RunParams, count_jobs, find_cache_root, load_run_params


def make_run(jobs: int = 0, cache_dir: str = "") -> RunParams:
    return RunParams(jobs=jobs, workers=0, mirror="", cache_dir=cache_dir)


@pytest.fixture(autouse=True)
def no_cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEPIPE_CACHE", raising=False)


def test_reads_the_section_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("run:\n  jobs: 3\n  workers: 1\n  mirror: /mnt\n  cache_dir: ''\n")
    assert load_run_params() == RunParams(jobs=3, workers=1, mirror="/mnt", cache_dir="")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("jobs: -1", "params.yaml:2: run.jobs: found -1; expected greater than or equal to 0"),
        ("jobs: 1025", "params.yaml:2: run.jobs: found 1025; expected less than or equal to 1024"),
        ("workers: 257", "params.yaml:2: run.workers: found 257; expected less than or equal to 256"),
        ("mirror: 8080", "params.yaml:2: run.mirror: found 8080; expected a valid string; put it in quotes to mean te"),
    ],
)
def test_refuses_what_is_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"jobs": "jobs: 0", "workers": "workers: 0", "mirror": "mirror: ''", "cache_dir": "cache_dir: ''"}
    del good[line.split(":")[0]]
    Path("params.yaml").write_text("\n  ".join(["run:", line, *good.values()]))
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


def test_the_variable_goes_before_params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(tmp_path))
    assert find_cache_root(make_run(cache_dir="/elsewhere")) == tmp_path
