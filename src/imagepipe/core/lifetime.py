"""How long a process of ours lives: no longer than the one that started it, and until a signal ends it in good order.

POSIX only; on Windows no signal is answered and no parent followed.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from imagepipe.core.garbage import collect_seldom

PULSE = 0.5  # seconds between two looks at the parent
ENDING = ("SIGHUP", "SIGINT", "SIGTERM")
STARTED_BY = ("DVC_STAGE", "TORCHELASTIC_RUN_ID")  # set by DVC and by torchrun for what they start


def guard_stage() -> None:
    """Let a signal end this stage in good order, and the end of what started it, too; let Python collect seldom.

    What a person started by hand may outlive the terminal, as under nohup. To be called first in a stage's script,
    since what is imported after that takes seconds.
    """
    collect_seldom()
    if os.name == "nt":
        return
    answer_signals()
    if any(name in os.environ for name in STARTED_BY):
        follow_parent(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))


def answer_signals() -> None:
    """Exit with 128 + n on signal n, by an exception, so that what is half-written is removed on its way out.

    A signal that is ignored stays so: that is how nohup works. Forked processes answer as Python's always do.
    """
    found = {number: signal.getsignal(number) for number in (signal.Signals[name] for name in ENDING)}
    before = {number: answer for number, answer in found.items() if answer not in (signal.SIG_IGN, None)}

    def end(number: int, _: FrameType | None) -> None:
        # Removing what is half-written must not be cut short. SIG_IGN would be an error for a signal on its way.
        set_answers(dict.fromkeys(before, lambda *_: None))
        line = f"error: ended by {signal.Signals(number).name}; nothing half-written is left. Run it again.\n"
        with suppress(OSError):  # the terminal may be gone; and print must not be called in the midst of a print
            os.write(2, line.encode())
        sys.exit(128 + number)

    set_answers(dict.fromkeys(before, end))
    os.register_at_fork(after_in_child=lambda: set_answers(before))


def stop_answering() -> None:
    """Let a signal end this process at once: all that had to be removed is, and in the interpreter's own end an
    exception would be but noise."""
    for number in (signal.Signals[name] for name in ENDING if name in signal.Signals.__members__):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def set_answers(answers: Mapping[signal.Signals, Any]) -> None:
    """Set what is done on each signal."""
    for number, answer in answers.items():
        signal.signal(number, answer)


def follow_parent(parent: int, leave: Callable[[], None]) -> None:
    """Call `leave`, in a thread, when `parent`, which started this process, has ended.

    The kernel's own way (PR_SET_PDEATHSIG) is Linux's alone, and knows neither grandparents nor a parent that ended
    before it was asked.
    """
    threading.Thread(target=wait_for_end, args=(parent, leave), daemon=True).start()


def wait_for_end(parent: int, leave: Callable[[], None]) -> None:
    """Look at the parent until it has ended."""
    starters = list_starters(parent)
    while os.getppid() == parent and list_starters(parent) == starters:
        time.sleep(PULSE)
    leave()


def list_starters(parent: int) -> list[int]:
    """The parent; and its own, where it is but the shell by which DVC runs a command.

    Most shells become the command that they are given, others (fish) wait for it.
    """
    with suppress(psutil.Error):  # it has just ended
        process = psutil.Process(parent)
        if process.name() == Path(os.environ.get("SHELL") or "/bin/sh").name:
            return [parent, process.ppid()]
    return [parent]
