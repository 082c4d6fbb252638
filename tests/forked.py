"""Python that has imported what takes long, and runs each script in a forked process of its own.

As a program it reads a line of JSON for each run, and prints the process's number once that has stopped itself, for
whoever wants to trace it, and its exit code at its end; where a signal ended it, that is negative.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self


class Forking:
    """Runs scripts; after each that ends by itself, what it imported is imported for the next ones."""

    def __init__(self, **environment: str) -> None:
        self.program = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.notes = TemporaryDirectory()
        self.imported = Path(self.notes.name, "imported")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.program.__exit__(kind, error, at)
        self.notes.cleanup()

    def begin(self, folder: Path, command: list[str], out: Path, err: Path, **environment: str) -> int:
        """Start a script with its arguments in `folder`; the number of its process, which waits for SIGCONT."""
        assert self.program.stdin is not None
        order = {
            "folder": str(folder),
            "command": command,
            "out": str(out),
            "err": str(err),
            "environment": environment,
            "imported": str(self.imported),
        }
        self.program.stdin.write(f"{json.dumps(order)}\n")
        self.program.stdin.flush()
        return self._read()

    def end(self) -> int:
        """Wait for the end of what has begun; its exit code."""
        return self._read()

    def _read(self) -> int:
        assert self.program.stdout is not None
        return int(self.program.stdout.readline())


def run_once(order: dict[str, Any]) -> int:
    """Run the script as a process would, in this one; its exit code."""
    os.chdir(order["folder"])
    os.environ |= order["environment"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.argv = order["command"]
    signal.raise_signal(signal.SIGSTOP)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def main() -> None:
    known: set[str] = set()
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if not process:
            try:
                code = run_once(order)
            finally:
                Path(order["imported"]).write_text(json.dumps(sorted(sys.modules)))
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.waitpid(process, os.WUNTRACED)
        print(process, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code >= 0:
            names = set(json.loads(Path(order["imported"]).read_bytes()))
            for name in sorted(names - known):
                with suppress(Exception):
                    importlib.import_module(name)
            known |= names
        print(code, flush=True)


if __name__ == "__main__":
    main()
