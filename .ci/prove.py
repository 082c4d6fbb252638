"""The slow proofs, group by group, and how long each took beside the minutes that CONTRIBUTING.md allows it.

    python .ci/prove.py

Exits with 1 where a proof fails and, where the environment has CI, where all of a group were skipped: nobody reads
there what is missing. A group that takes longer than it may is marked and fails nothing.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

TABLE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
ROW = re.compile(r"\| (?P<group>[^|]+) \| `(?P<command>pytest [^`]*-m proof [^`]+)` \| [^|]+ \| (?P<minutes>\d+) \|")


def run_group(command: str) -> tuple[bool, int, int]:
    """Run a group, which says why it skips what it skips: whether it failed, how many tests ran, how many did not."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        asked = [sys.executable, "-m", *shlex.split(command), "-rs", f"--junitxml={report}"]
        failed = subprocess.run(asked, cwd=TABLE.parent, check=False).returncode != 0
        if not report.is_file():  # pytest did not get so far
            return True, 0, 0
        suites = ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314, pytest has just written it
        counts = [(int(suite.get("tests", 0)), int(suite.get("skipped", 0))) for suite in suites]
    skipped = sum(count for _, count in counts)
    return failed, sum(count for count, _ in counts) - skipped, skipped


def main() -> None:
    groups = [found.group("group", "command", "minutes") for found in ROW.finditer(TABLE.read_text("utf-8"))]
    lines: list[str] = []
    failed: list[str] = []
    idle: list[str] = []
    for group, command, minutes in groups:
        print(f"prove: {group}: {command}", flush=True)
        started = time.monotonic()
        broken, ran, skipped = run_group(command)
        if broken:
            failed.append(group)
        elif not ran:
            idle.append(group)
        taken = (time.monotonic() - started) / 60
        over = ", more than it may" if taken > int(minutes) else ""
        lines.append(f"  {group}: {taken:.1f} of {minutes} minutes{over}; {ran} ran, {skipped} skipped")
    print("\n".join(["prove: time of each group, what CONTRIBUTING.md allows it, and its tests:", *lines]))
    faults = [f"prove: failed: {', '.join(failed)}"] if failed else []
    if idle and os.environ.get("CI"):
        faults.append(
            f"prove: every test was skipped: {', '.join(idle)}; CI is set, where each group has to run: install what "
            "the reasons above name"
        )
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
