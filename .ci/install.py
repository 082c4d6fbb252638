"""Create or repair `.venv` with the exact versions of constraints.txt; standard library only.

    python3 .ci/install.py          what the pipeline needs
    python3 .ci/install.py --dev    also what tests, lint and types need

`.venv/installed-<run|dev>` is written last. It holds the hash of everything that decides the environment
(the project's part of pyproject.toml, the constraints, the interpreter, this folder's path), so a half-made, moved
or outdated environment is redone, never believed.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
# The interpreter behind an activated .venv, by its own name, so that `make` decides the same inside and outside of it.
BASE_PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def fingerprint(constraints: list[str]) -> str:
    """SHA-256 over what is to be installed, the constraints, the interpreter and the place of the checkout."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    installed = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    digest = hashlib.sha256(f"{sys.version}\n{BASE_PYTHON}\n{ROOT}\n{json.dumps(installed)}\n".encode())
    for name in constraints:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run(*command: str | Path) -> None:
    result = subprocess.run(command, cwd=ROOT)
    if result.returncode != 0:
        sys.exit(f"installing failed (exit {result.returncode}); run the same command again once the cause is mended")


def install(kind: str, target: str, constraints: list[str]) -> None:
    """Install `target` under the constraints unless the stamp of `kind` says that just this is there."""
    stamp, wanted = VENV / f"installed-{kind}", fingerprint(constraints)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    if kind == "run":
        print("installing into .venv (about two minutes, several GB: PyTorch is large)", flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        run(BASE_PYTHON, "-m", "venv", VENV)
    python = VENV / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, *[part for name in constraints for part in ("-c", name)], "-e", target)
    stamp.write_text(wanted)


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(
            f"imagepipe needs Python 3.11 or newer, this is {sys.version.split()[0]}; name one with PYTHON=python3.12"
        )
    install("run", ".", ["constraints.txt"])
    if "--dev" in sys.argv[1:]:
        install("dev", ".[dev]", ["constraints.txt", "constraints-dev.txt"])


if __name__ == "__main__":
    main()
