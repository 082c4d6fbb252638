"""`dvc repro`, with what others have pushed where the project has a remote.

python .ci/reproduce.py
"""

import subprocess
import sys


def main() -> None:
    listed = subprocess.run(["dvc", "remote", "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    pull = ["--pull"] if listed.strip() else []
    sys.exit(subprocess.run(["dvc", "repro", *pull], check=False).returncode)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"reproduce: {error.filename} is not on PATH; activate the environment: source .venv/bin/activate")
