"""`dvc repro`, with what others have pushed where the project has a remote; then, whether DVC's cache has all of it.

    python .ci/reproduce.py

Where the cache's disk is full, DVC exits with 0 and writes a lock that points to objects that are not there.
"""

import subprocess
import sys

from project import has_remote, run_script


def main() -> None:
    pull = ["--pull"] if has_remote() else []
    for command in (["dvc", "repro", *pull], ["imagepipe", "fsck", "--quick"]):
        done = subprocess.run(command, check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    run_script(main)
