"""Run the blocks of docs/tour.md and write below each what it prints; make the notebook of it.

    python .ci/tour.py                    docs/tour.md, docs/tour/*.png and docs/tour.ipynb anew, by running every block
    python .ci/tour.py --into FOLDER      the same into another folder, where everything else that they make lands too
    python .ci/tour.py --notebook         print the notebook of docs/tour.md as it stands, without running anything

The page is what people edit: Markdown with `python` and `console` blocks. The `text` block right behind a `python`
block, and the lines behind a command, are output, and are replaced. The blocks use a model of the default pipeline,
which has to have run. They see no network, so that everybody gets the same; `--mnist FOLDER` gives them the four files.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, NOTEBOOK, PLACE = "tour.md", "tour.ipynb", "tour"
BLOCK = re.compile(r"```(python|console)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
PICTURE = re.compile(r"\s*!\[[^\]]*\]\((\S+\.png)\)\n")  # right behind a block: what the block has drawn
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def run_page(page: str) -> str:
    """The page with what its blocks print in this folder, all of them with the names of those before."""
    names: dict[str, Any] = {"__name__": "__main__"}
    pieces: list[str] = []
    end = 0
    for found in BLOCK.finditer(page):
        pieces.append(page[end : found.start()])
        end = found.end()
        language, code = found[1], found[2]
        if language == "python":
            printed = run_python(code, page.count("\n", 0, found.start()) + 1, names)
            pieces.append(f"```python\n{code}```\n" + (f"\n```text\n{printed}```\n" if printed else ""))
        else:
            pieces.append("```console\n" + "".join(map(run_command, list_commands(code))) + "```\n")
    return "".join(pieces) + page[end:]


def run_python(code: str, line: int, names: dict[str, Any]) -> str:
    """What a block prints; an error in it names the line of the page. Its figures are closed, as a notebook does."""
    import matplotlib.pyplot as plt

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * line + code, PAGE, "exec"), names)  # noqa: S102
    plt.close("all")
    return printed.getvalue()


def list_commands(block: str) -> list[str]:
    """The commands of a console block."""
    return re.findall(r"^\$ (.*)", block, re.MULTILINE)


def run_command(command: str) -> str:
    """The command behind its prompt, and what it prints on standard output; ends the run where it fails."""
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{PAGE}: `{command}` ended with {done.returncode}")
    return f"$ {command}\n{done.stdout}"


def make_notebook(page: str, read_picture: Callable[[str], bytes]) -> str:
    """The page as a notebook (format 4.5): text as Markdown cells, blocks as cells with their outputs and pictures."""
    cells: list[dict[str, Any]] = []
    end = 0
    for found in BLOCK.finditer(page):
        add_text(cells, page[end : found.start()])
        end = found.end()
        pictures: list[str] = []
        while drawn := PICTURE.match(page, end):
            pictures.append(drawn[1])
            end = drawn.end()
        add_code(cells, *read_block(found), [read_picture(name) for name in pictures])
    add_text(cells, page[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:03d}"
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read_block(found: re.Match[str]) -> tuple[str, str]:
    """What a notebook has of a block: its code, where `!` marks a command, and its output."""
    if found[1] == "python":
        return found[2], found[3] or ""
    outputs = re.sub(r"^\$ .*\n", "", found[2], flags=re.MULTILINE)
    return "".join(f"!{command}\n" for command in list_commands(found[2])), outputs


def add_text(cells: list[dict[str, Any]], text: str) -> None:
    """A Markdown cell, unless there is nothing in it."""
    if text.strip():
        cells.append({"cell_type": "markdown", "metadata": {}, "source": split_lines(text.strip())})


def add_code(cells: list[dict[str, Any]], code: str, printed: str, pictures: list[bytes]) -> None:
    """A code cell with what it printed and drew."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"name": "stdout", "output_type": "stream", "text": split_lines(printed)})
    for picture in pictures:
        data = {"image/png": base64.b64encode(picture).decode("ascii")}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    cells.append(
        {
            "cell_type": "code",
            "execution_count": sum(cell["cell_type"] == "code" for cell in cells) + 1,
            "metadata": {},
            "outputs": outputs,
            "source": split_lines(code.strip()),
        }
    )


def split_lines(text: str) -> list[str]:
    """The lines as a notebook keeps them, each with its end."""
    return text.splitlines(keepends=True)


def prepare_place(folder: Path, mnist: Path | None) -> None:
    """Go to the folder, which gets the files of MNIST where they are given, and cut off the network."""
    os.environ |= {"MPLBACKEND": "agg", "http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": ""}
    (folder / PLACE).mkdir(parents=True, exist_ok=True)
    if mnist is not None:
        shutil.copytree(mnist, folder / PLACE / "MNIST" / "raw")
    os.chdir(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", type=Path, default=DOCS, metavar="FOLDER", help="where to write; else docs/")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="with the four files of MNIST")
    parser.add_argument("--notebook", action="store_true", help="only print the notebook of the page as it stands")
    arguments = parser.parse_args()
    page = (DOCS / PAGE).read_text("utf-8")
    if arguments.notebook:
        sys.stdout.buffer.write(make_notebook(page, lambda name: (DOCS / name).read_bytes()).encode("utf-8"))
        return
    prepare_place(arguments.into, arguments.mnist)
    page = run_page(page)
    Path(PAGE).write_text(page, "utf-8")
    Path(NOTEBOOK).write_text(make_notebook(page, lambda name: Path(name).read_bytes()), "utf-8")


if __name__ == "__main__":
    main()
