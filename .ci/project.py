"""What the scripts beside this one share: they ask DVC about this project, and say what helps where it is not there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def has_remote() -> bool:
    """Whether the project names a place where its data lie for others; without one, `dvc repro --pull` would fail."""
    listed = subprocess.run(["dvc", "remote", "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return bool(listed.strip())


def run_script(main: Callable[[], None]) -> None:
    """Call `main`; where a command that it runs is not there, say so instead of a traceback."""
    try:
        main()
    except FileNotFoundError as error:
        name = Path(sys.argv[0]).stem
        sys.exit(f"{name}: {error.filename} is not on PATH; activate the environment: source .venv/bin/activate")
