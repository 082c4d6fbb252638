import re

import pytest

from imagepipe.training.progress import Progress

ROW = {
    "epoch": 2,
    "updates": 6,
    "train_loss": 0.12345,
    "train_accuracy": 0.9,
    "val_loss": 1.5,
    "val_accuracy": 0.62501,
}


def open_bar(epochs: int, images_per_epoch: int) -> Progress:
    """As on a terminal, but never drawn."""
    progress = Progress(epochs, images_per_epoch)
    progress.bar.disable = False
    return progress


def test_an_epoch_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(epochs=12, images_per_epoch=10) as progress:
        progress.advance(4, 0.5)
        progress.finish_epoch(ROW)
    out = capsys.readouterr().out
    line = r"train: epoch 2/12  train loss 0\.1235  val loss 1\.5000  val accuracy 62\.50 %  "
    assert re.fullmatch(line + r"\([\d,]+ images/s, \d+\.\d s\)\n", out)


def test_updates_print_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(epochs=1, images_per_epoch=10) as progress:
        progress.advance(4, 0.5)
    assert capsys.readouterr().out == ""


def test_images_are_counted_through_all_epochs() -> None:
    progress = open_bar(epochs=2, images_per_epoch=10)
    for images in (4, 4, 2, 4):
        progress.advance(images, 0.5)
    (task,) = progress.bar.tasks
    assert progress.images == 14
    assert (task.completed, task.total) == (14, 20)
    assert task.description == "epoch 1/2, loss 0.5000"


def test_the_bar_says_the_last_epochs_accuracy() -> None:
    progress = open_bar(epochs=12, images_per_epoch=10)
    progress.finish_epoch(ROW)
    progress.advance(4, 0.25)
    assert progress.bar.tasks[0].description == "epoch 3/12, loss 0.2500, val accuracy 62.50 %"


def test_without_a_terminal_a_long_epoch_prints_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(epochs=2, images_per_epoch=10) as progress:
        progress.lines.printed -= 11
        progress.advance(4, 0.5)
        progress.advance(4, 0.5)
    line = r"train: epoch 1/2, loss 0\.5000: 4 of 20 images, [\d,]+ images/s, \d+ s left\n"
    assert re.fullmatch(line, capsys.readouterr().out)


def test_what_an_earlier_process_did_is_taken_up(capsys: pytest.CaptureFixture[str]) -> None:
    progress = open_bar(epochs=5, images_per_epoch=10)
    progress.resume(epochs=2, updates=7)
    progress.advance(4, 0.5)
    (task,) = progress.bar.tasks
    assert capsys.readouterr().out == "train: goes on after epoch 2, update 7 of a run that was interrupted\n"
    assert (task.completed, task.total, task.description) == (24, 50, "epoch 3/5, loss 0.5000")
    assert progress.lines.total == 30


def test_one_of_several_processes_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(epochs=5, images_per_epoch=10, shown=False) as progress:
        progress.resume(epochs=1, updates=7)
        progress.lines.printed -= 11
        progress.advance(4, 0.5)
        progress.finish_epoch(ROW)
    assert capsys.readouterr().out == ""


def test_the_bar_stops_where_training_fails() -> None:
    progress = Progress(epochs=1, images_per_epoch=1)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert not progress.bar.live.is_started
