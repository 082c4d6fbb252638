import subprocess
import sys
from pathlib import Path

import pytest

STAGE = """
from pathlib import Path
from imagepipe.core.errors import EnvironmentFault, ImagepipeError, InputError
from imagepipe.core.stage import run_stage

def main(raw_dir: Path, images_dir: Path) -> None:
    print(type(raw_dir).__name__ != "str", raw_dir, images_dir)
    {last}

run_stage(main)
"""


def run_script(folder: Path, last: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "stage.py").write_text(STAGE.format(last=last))
    return subprocess.run(
        [sys.executable, "stage.py", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_gives_the_paths_in_order(tmp_path: Path) -> None:
    done = run_script(tmp_path, "pass", "data/raw", "data/images")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True data/raw data/images\n", "")


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"]])
def test_says_how_it_is_used(tmp_path: Path, arguments: list[str]) -> None:
    done = run_script(tmp_path, "pass", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"usage: python stage.py RAW_DIR IMAGES_DIR   ({len(arguments)} arguments given)\n"


@pytest.mark.parametrize(("kind", "code"), [("ImagepipeError", 1), ("InputError", 2), ("EnvironmentFault", 3)])
def test_an_error_is_one_message_and_an_exit_code(tmp_path: Path, kind: str, code: int) -> None:
    done = run_script(tmp_path, f"raise {kind}('a.csv: row 3')", "a", "b")
    assert (done.returncode, done.stdout, done.stderr) == (code, "True a b\n", "error: a.csv: row 3\n")


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    done = run_script(tmp_path, "raise KeyError('x')", "a", "b")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("KeyError: 'x'\n")


def test_lines_arrive_as_they_are_printed(tmp_path: Path) -> None:
    done = run_script(tmp_path, "import os; os._exit(0)", "a", "b")
    assert done.stdout == "True a b\n"


def test_a_warning_is_one_line_without_our_code(tmp_path: Path) -> None:
    done = run_script(tmp_path, "import warnings; warnings.warn('few images')", "a", "b")
    assert (done.returncode, done.stderr) == (0, "warning: few images\n")
