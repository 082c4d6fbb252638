"""The slow proofs, group by group, and how long each took beside the minutes that CONTRIBUTING.md allows it.

    python .ci/prove.py

Exits with 1 where a proof fails. A group that takes longer than it may is marked and fails nothing.
"""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
ROW = re.compile(r"\| (?P<group>[^|]+) \| `(?P<command>pytest [^`]*-m proof [^`]+)` \| [^|]+ \| (?P<minutes>\d+) \|")


def main() -> None:
    groups = [found.group("group", "command", "minutes") for found in ROW.finditer(TABLE.read_text("utf-8"))]
    lines: list[str] = []
    failed: list[str] = []
    for group, command, minutes in groups:
        print(f"prove: {group}: {command}", flush=True)
        started = time.monotonic()
        if subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=TABLE.parent, check=False).returncode:
            failed.append(group)
        taken = (time.monotonic() - started) / 60
        over = ", more than it may" if taken > int(minutes) else ""
        lines.append(f"  {group}: {taken:.1f} of {minutes} minutes{over}")
    print("\n".join(["prove: time of each group, and what CONTRIBUTING.md allows it:", *lines]))
    if failed:
        sys.exit(f"prove: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
