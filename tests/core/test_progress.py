import io

import pytest

from imagepipe.core.progress import describe_progress, describe_time, open_count, open_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stdout; no fixture, since pytest puts its own stdout back before it calls a test."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", stream)
    return stream


def test_quick_work_prints_nothing(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with open_progress("split", 100, clock) as advance:
        for _ in range(4):
            clock.now += 2.4
            advance(25)
    assert capsys.readouterr() == ("", "")


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with open_progress("split", 1_000_000, clock) as advance:
        for _ in range(7):
            clock.now += 4.0
            advance(50_000)
    assert capsys.readouterr().out == (
        "split: 150,000 of 1,000,000 images, 12,500 images/s, 68 s left\n"
        "split: 300,000 of 1,000,000 images, 12,500 images/s, 56 s left\n"
    )


def test_a_line_counts_from_the_start(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """30 images in 10 s, then 10 in 10 s: 2 a second in all, so the other 60 take 30 s."""
    with open_progress("split", 100, clock) as advance:
        for images in (30, 10):
            clock.now += 10.0
            advance(images)
    assert capsys.readouterr().out.splitlines()[1] == "split: 40 of 100 images, 2 images/s, 30 s left"


def test_nothing_done_is_no_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with open_progress("split", 100, clock) as advance:
        clock.now += 60.0
        advance(0)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_that_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with open_progress("split", 200) as advance:
        advance(50)
        advance(50)
    shown = terminal.getvalue()
    assert "split" in shown
    assert "50%" in shown
    assert "images, " not in shown  # no plain line beside it
    assert shown.endswith("\x1b[1A\x1b[2K")  # one line up, wiped


def test_the_bar_ends_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), open_progress("split", 1):
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")


def test_progress_in_words() -> None:
    assert describe_progress(120_000, 1_000_000, 10.0) == "120,000 of 1,000,000 images, 12,000 images/s, 73 s left"
    assert describe_progress(3, 3, 1.0) == "3 of 3 images, 3 images/s, 0 s left"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "0 s"), (119.4, "119 s"), (120.0, "2 min"), (7199.0, "120 min"), (7200.0, "2.0 h"), (90_000.0, "25.0 h")],
)
def test_times_in_words(seconds: float, expected: str) -> None:
    assert describe_time(seconds) == expected


def test_a_count_without_an_end_is_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with open_count("predict", shown=True) as advance:
        advance(1500)
        advance(500)
    assert "predict: 2,000 images" in terminal.getvalue()


@pytest.mark.parametrize(("shown", "kind"), [(False, Terminal), (True, io.StringIO)])
def test_a_count_stays_away(monkeypatch: pytest.MonkeyPatch, shown: bool, kind: type[io.StringIO]) -> None:
    stream = kind()
    monkeypatch.setattr("sys.stderr", stream)
    with open_count("predict", shown) as advance:
        advance(7)
    assert stream.getvalue() == ""
