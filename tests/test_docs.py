"""The pages of the Python API: they can be made, and say something of each public name."""

import importlib
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
PUBLIC: tuple[str, ...] = runpy.run_path(str(ROOT / ".ci/docs.py"))["PUBLIC"]


@pytest.mark.slow
def test_the_pages_are_made_without_a_warning(root: Path, tmp_path: Path, run_in: Run) -> None:
    done = run_in(root, sys.executable, "-W", "error", ".ci/docs.py", str(tmp_path / "site"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"docs: {tmp_path / 'site' / 'index.html'}\n"
    page = (tmp_path / "site/imagepipe/data/dataset.html").read_text("utf-8")
    assert "for the rows of a CSV that names a file and a label" in page
    made = {str(path.relative_to(tmp_path / "site").with_suffix("")) for path in (tmp_path / "site").rglob("*.html")}
    assert made == {"index", *(name.replace(".", "/") for name in PUBLIC)}


def list_public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions and classes that a module defines without a leading underscore, and the methods of the classes."""
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", "") != module.__name__:
            continue
        yield f"{module.__name__}.{name}", found
        if inspect.isclass(found):
            methods = [(key, value) for key, value in vars(found).items() if not key.startswith("_")]
            yield from (
                (f"{module.__name__}.{name}.{key}", getattr(found, key)) for key, value in methods if callable(value)
            )


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    public = list(list_public(module))
    assert public
    assert [found for found, thing in public if not inspect.getdoc(thing)] == []


def test_what_the_documents_import_is_public() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    imported = {
        name for page in pages for name in re.findall(r"^from (imagepipe[\w.]*) import", page.read_text("utf-8"), re.M)
    }
    # A source of one's own is registered inside the package itself.
    assert imported - {"imagepipe.sources"} <= set(PUBLIC)
    assert len(imported) >= 5


def test_make_has_a_target_for_them_and_git_ignores_them(root: Path) -> None:
    assert "docs: env-dev\n\tpython .ci/docs.py\n" in (root / "Makefile").read_text("utf-8")
    assert subprocess.run(["git", "check-ignore", "-q", "--no-index", "site/index.html"], cwd=root).returncode == 0
