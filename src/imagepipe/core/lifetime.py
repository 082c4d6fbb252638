"""How long a process of ours lives: no longer than the one that started it, and until a signal ends it in good order.

POSIX only; on Windows no signal is answered and no parent followed.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from imagepipe.core.garbage import collect_seldom

PULSE = 0.5  # seconds between two looks at the parent
PATIENCE = 5.0  # seconds until a process that was told to end, and works on, is told so again
ENDING = ("SIGHUP", "SIGINT", "SIGTERM")
TORCHRUN = "TORCHELASTIC_RUN_ID"
STARTED_BY = ("DVC_STAGE", TORCHRUN)  # set by DVC and by torchrun for what they start


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
        parent = os.getppid()
        if TORCHRUN not in os.environ and is_orphan(parent):
            signal.raise_signal(signal.SIGTERM)
        follow_parent(parent, lambda: os.kill(os.getpid(), signal.SIGTERM))


def answer_signals(names: Sequence[str] = ENDING) -> None:
    """Exit with 128 + n on signal n, by an exception, so that what is half-written is removed on its way out.

    Python loses an exception that is raised while it calls a `__del__` or a weakref's callback: where the process works
    on, a further signal after PATIENCE raises again. A signal that is ignored stays so: that is how nohup works. Forked
    processes answer as Python's always do. On Windows nothing is changed.
    """
    if os.name == "nt":
        return
    found = {number: signal.getsignal(number) for number in (signal.Signals[name] for name in names)}
    before = {number: answer for number, answer in found.items() if answer not in (signal.SIG_IGN, None)}
    answered = threading.Lock()  # taken in one step: another signal may come between any two steps of `end`
    raised = math.inf

    def end(number: int, _: FrameType | None) -> None:
        nonlocal raised
        now = time.monotonic()
        is_first = answered.acquire(blocking=False)
        # Removing what is half-written must not be cut short. SIG_IGN would be an error for a signal on its way.
        if not is_first and (now - raised < PATIENCE or is_leaving()):
            return
        raised = now
        if is_first:
            line = f"error: ended by {signal.Signals(number).name}; nothing half-written is left. Run it again.\n"
            with suppress(OSError):  # the terminal may be gone; and print must not be called in the midst of a print
                os.write(2, line.encode())
        sys.exit(128 + number)

    set_answers(dict.fromkeys(before, end))
    os.register_at_fork(after_in_child=lambda: set_answers(before))


def is_leaving() -> bool:
    """Whether the caller runs in what an exit on its way out has still to do (`finally`, the end of a `with`)."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, SystemExit):
            return True
        error = error.__context__
    return False


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
    """Call `leave`, in a thread, when `parent`, which started this process, has ended; every PATIENCE seconds.

    The kernel's own way (PR_SET_PDEATHSIG) is Linux's alone, and knows neither grandparents nor a parent that ended
    before it was asked.
    """
    threading.Thread(target=wait_for_end, args=(parent, list_starters(parent), leave), daemon=True).start()


def wait_for_end(parent: int, starters: Sequence[int], leave: Callable[[], None]) -> None:
    """Look at the parent until it has ended, then leave until this process has."""
    while os.getppid() == parent and list_starters(parent) == starters:
        time.sleep(PULSE)
    while True:
        leave()
        time.sleep(PATIENCE)


def is_orphan(parent: int) -> bool:
    """Whether the DVC that started this process had ended before it could be looked at, as far as that can be told.

    Then process 1 has taken its place, which is of another session. In a container process 1 may be what started this
    process: what DVC starts stays in its session, while torchrun gives each process one of its own.
    """
    with suppress(OSError):  # not every system says it of another session
        return parent == 1 and os.getsid(1) != os.getsid(0)
    return False


def list_starters(parent: int) -> list[int]:
    """The parent; and its own, where it is but the shell by which DVC runs a command.

    Most shells become the command that they are given, others (fish) wait for it.
    """
    import psutil  # once the parent is known: it may end while this is imported

    with suppress(psutil.Error):  # it has just ended
        process = psutil.Process(parent)
        if process.name() == Path(os.environ.get("SHELL") or "/bin/sh").name:
            return [parent, process.ppid()]
    return [parent]
