"""`dvc repro`, with what others have pushed where the project has a remote.

python .ci/reproduce.py
"""

import subprocess
import sys

from project import has_remote, run_script


def main() -> None:
    pull = ["--pull"] if has_remote() else []
    sys.exit(subprocess.run(["dvc", "repro", *pull], check=False).returncode)


if __name__ == "__main__":
    run_script(main)
