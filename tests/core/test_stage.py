import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.stage import check_encoding

STAGE = """
from pathlib import Path
from imagepipe.core.errors import EnvironmentFault, ImagepipeError, InputError
from imagepipe.core.stage import run_stage

def main(raw_dir: Path, images_dir: Path) -> None:
    print(type(raw_dir).__name__ != "str", raw_dir, images_dir)
    {last}

run_stage(main)
"""


def run_script(folder: Path, last: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "stage.py").write_text(STAGE.format(last=last), "utf-8")
    return subprocess.run(
        [sys.executable, "stage.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
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


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stage_whose_standard_streams_are_closed_works_all_the_same(tmp_path: Path, closed: str) -> None:
    run_script(tmp_path, "import sys; sys.stdin.buffer.read(); sys.exit(7)")
    command = f'exec "{sys.executable}" stage.py a b {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


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


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1:strict"])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path, encoding: str) -> None:
    last = "print('…', '\\udce9'); import warnings; warnings.warn('…'); raise InputError('… \\udce9')"
    done = run_script(tmp_path, last, "a", "b", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert done.stdout == "True a b\n\\u2026 \\udce9\n"
    assert done.stderr == "warning: \\u2026\nerror: \\u2026 \\udce9\n"


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf8"])
def test_file_names_are_read_as_utf8(encoding: str) -> None:
    check_encoding(encoding)


@pytest.mark.parametrize("encoding", ["latin-1", "iso8859-1", "ascii", "cp1252"])
def test_a_locale_that_reads_file_names_otherwise_is_refused(encoding: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        check_encoding(encoding)
    assert str(caught.value) == (
        f"this locale reads file names as {encoding}, expected UTF-8; set PYTHONUTF8=1, or LC_ALL to a locale of UTF-8."
    )


def test_such_a_locale_ends_the_stage_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(
        "import sys\n"
        "from imagepipe.core.stage import run_stage\n"
        "sys.getfilesystemencoding = lambda: 'iso8859-1'  # such a locale need not be installed here\n"
        "run_stage(lambda: print('began'))\n"
    )
    done = subprocess.run([sys.executable, "stage.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: this locale reads file names as iso8859-1, expected UTF-8")
