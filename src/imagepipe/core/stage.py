"""What all stages and commands share: what they print is readable, an error ends in one message and an exit code.

A stage's paths come as arguments.
"""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from imagepipe.core.errors import EnvironmentFault, ImagepipeError
from imagepipe.core.garbage import collect_no_more, collect_seldom
from imagepipe.core.lifetime import stop_answering
from imagepipe.core.lock import lock_stage


def run_stage(main: Callable[..., None]) -> None:
    """Call `main` with the command line's paths, one for each of its parameters, in order.

    An error ends it as `end_plainly` says; another run of the same stage here is one.
    """
    names = list(inspect.signature(main).parameters)
    arguments = sys.argv[1:]
    if len(arguments) != len(names):
        usage = " ".join(name.upper() for name in names)
        print(f"usage: python {sys.argv[0]} {usage}   ({len(arguments)} arguments given)", file=sys.stderr)
        sys.exit(2)
    with end_plainly(), lock_stage(Path(sys.argv[0]).stem):
        main(*map(Path, arguments))


@contextmanager
def end_plainly() -> Generator[None]:
    """For a program of ours, around all that it does: lines come as they are printed, a warning is one of them.

    An ImagepipeError is printed without a traceback and ends the process with its exit code; a locale that does not
    read file names as UTF-8 is one. What the terminal cannot show is escaped.
    """
    collect_seldom()
    warnings.showwarning = print_warning
    open_streams()
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the program
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    try:
        check_encoding(sys.getfilesystemencoding())
        yield
    except ImagepipeError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        stop_answering()
        collect_no_more()


def open_streams() -> None:
    """Let a standard stream that was closed before Python began (`<&-`, `>&-`) be empty, or go nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - kept open


def check_encoding(encoding: str) -> None:
    """Raise EnvironmentFault where file names are not read as UTF-8: the same folder would have other class names."""
    if encoding.lower().replace("-", "") != "utf8":
        raise EnvironmentFault(
            f"this locale reads file names as {encoding}, expected UTF-8; set PYTHONUTF8=1, or LC_ALL to a locale of "
            "UTF-8."
        )


def print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line for the user, without the place in our code that gave it."""
    print(f"warning: {message}", file=sys.stderr)
