"""A program that runs a stage again and again, each time in a forked process that finds all imported.

It reads a line of JSON for each run: folder, script, arguments, environment, and where the process prints and notes
what it has imported. It prints the process's number, when that has stopped itself for whoever wants to trace it, and
at its end its exit code; where a signal ended it, that is negative.
"""

import importlib
import json
import os
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def run_once(order: dict[str, Any]) -> int:
    """Run the script as a process would, in this one; its exit code."""
    os.chdir(order["folder"])
    os.environ |= order["environment"]
    printed = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.argv = [order["script"], *order["arguments"]]
    signal.raise_signal(signal.SIGSTOP)
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        for name in order["modules"]:
            with suppress(Exception):
                importlib.import_module(name)
        process = os.fork()
        if not process:
            code = run_once(order)
            if order["imported"]:
                Path(order["imported"]).write_text(json.dumps(sorted(sys.modules)))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.waitpid(process, os.WUNTRACED)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
