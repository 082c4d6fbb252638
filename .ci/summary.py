"""What changed since another revision, as Markdown: params, metrics, and whether that is more than chance.

    python .ci/summary.py REVISION >> "$GITHUB_STEP_SUMMARY"

Run it where the pipeline has run. The comparison needs the other revision's predictions, from DVC's cache or remote;
where nobody has them it says so. CI gives zeros, or nothing, where there is no other revision: on the first push of a
branch, and where somebody starts a pipeline by hand.
"""

import subprocess
import sys

from project import run_script


def ask(*command: str) -> str:
    """What a command prints, `no change` for a table without rows; where it fails, why."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"`{' '.join(command)}`: {done.stderr.strip()}"
    said = done.stdout.strip()
    return said if len(said.splitlines()) > 2 else "no change"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python .ci/summary.py REVISION")
    revision = sys.argv[1]
    if not revision.strip("0"):
        print("## What changed\n\nCI names no revision before this one (a first push, say): nothing to compare with.\n")
        return
    for heading, command in {
        "Parameters": ("dvc", "params", "diff", revision, "--md"),
        "Metrics": ("dvc", "metrics", "diff", revision, "--md"),
        "More than chance?": ("imagepipe", "compare", revision),
    }.items():
        print(f"## {heading}\n\n{ask(*command)}\n")


if __name__ == "__main__":
    run_script(main)
