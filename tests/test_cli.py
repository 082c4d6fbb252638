import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imagepipe.core.manifest import read_manifest
from imagepipe.evaluation.predictions import read_predictions
from tests.core.test_lifetime import ENDED, read_rest, start, wait_for
from tests.data.made import make_unusable, make_usable, pack_shards
from tests.evaluation.made import make_table, split_right, write_run
from tests.inference.made import make_model
from tests.made import CLASSES, make_dataset

Imagepipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def imagepipe(run_python: Imagepipe, tmp_path: Path) -> Imagepipe:
    """`imagepipe("show", …)`: the command in an empty folder, without colours and 200 characters wide."""
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    program = str(Path(sys.executable).with_name("imagepipe"))
    return lambda *arguments: run_python(tmp_path, program, *arguments, **plain)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A table of four 2×3 images, grey but for the last, none of which imagepipe wrote."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        grey = np.full((2, 3), 10 * number, np.uint8)
        grey[0, 0] = 200
        Image.fromarray(grey).save(tmp_path / "pictures" / f"{number}.png")
    Image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(tmp_path / "pictures" / "3.png")
    (tmp_path / "animals.csv").write_text("Class Label,File Name\ndog,0.png\ncat,1.png\nNA,2.png\ncat,3.png\n")
    return tmp_path


def list_rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.lstrip()[:1].isdigit()]


def test_says_what_it_can_do(imagepipe: Imagepipe) -> None:
    shown = imagepipe("--help")
    assert shown.returncode == 0
    for command in ("use", "show", "lr-find", "compare", "evaluate", "predict", "export", "summary"):
        assert f" {command} " in shown.stdout


def test_without_a_command_shows_help(imagepipe: Imagepipe) -> None:
    shown = imagepipe()
    assert "Usage: imagepipe" in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nope"], "No such command 'nope'"),
        (["use"], "Missing argument 'recipe'"),
        (["show", "--count", "0"], "'--count' / '-n': Input should be greater than or equal to 1"),
        (["show", "--count", "401"], "'--count' / '-n': Input should be less than or equal to 400"),
        (["show", "--first", "-1"], "'--first': Input should be greater than or equal to 0"),
        (["compare"], "Missing argument"),
        (["compare", "a", "--format", "html"], "'--format'"),
        (["compare", "a", "--confidence", "1"], "'--confidence'"),
        (["evaluate"], "Missing argument 'images'"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_refused(imagepipe: Imagepipe, arguments: list[str], named: str) -> None:
    done = imagepipe(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def test_use_writes_params(imagepipe: Imagepipe, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "recipes", tmp_path / "recipes")
    first, second = (imagepipe("use", "recipes/mnist.yaml") for _ in range(2))
    assert (first.returncode, first.stdout) == (0, "params.yaml now holds recipes/base.yaml with recipes/mnist.yaml\n")
    assert second.stdout == "params.yaml already held recipes/base.yaml with recipes/mnist.yaml\n"
    assert "  name: MNIST\n" in (tmp_path / "params.yaml").read_text("utf-8")


def test_use_keeps_edits_unless_forced(imagepipe: Imagepipe, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "recipes", tmp_path / "recipes")
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    refused = imagepipe("use", "recipes/digits.yaml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: params.yaml: holds edits that are not committed;")
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
    assert imagepipe("use", "recipes/digits.yaml", "--force").returncode == 0
    assert (tmp_path / "params.yaml").read_bytes() == (root / "params.yaml").read_bytes()


def test_use_outside_of_the_project_says_where_to_run_it(imagepipe: Imagepipe) -> None:
    done = imagepipe("use", "recipes/mnist.yaml")
    expected = (
        "error: recipes/base.yaml: cannot be read: No such file or directory. Run from the project's root folder."
    )
    assert (done.returncode, done.stderr) == (2, expected + "\n")


@pytest.mark.slow
def test_show_prints_and_draws_samples(imagepipe: Imagepipe, animals: Path) -> None:
    shown = imagepipe("show", "animals.csv", "pictures", "--out", "seen/grid.png")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0] == "animals.csv: 4 samples, 3 classes: NA, cat, dog"
    assert lines[1].split() == ["index", "shape", "dtype", "range", "label", "class"]
    assert list_rows(shown.stdout) == [
        ["0", "(1,", "2,", "3)", "torch.uint8", "0–200", "2", "dog"],
        ["1", "(1,", "2,", "3)", "torch.uint8", "10–200", "1", "cat"],
        ["2", "(1,", "2,", "3)", "torch.uint8", "20–200", "0", "NA"],
        ["3", "(3,", "2,", "3)", "torch.uint8", "7–7", "1", "cat"],
    ]
    assert lines[-1] == "drawn: seen/grid.png"
    with Image.open(animals / "seen" / "grid.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert np.ptp(np.asarray(picture.convert("L"))) > 100


@pytest.mark.slow
def test_show_reads_images_out_of_shards(imagepipe: Imagepipe, animals: Path) -> None:
    columns = pack_shards(["2.png", "0.png", "1.png"], animals / "pictures", animals / "shards", each=2)
    table = pd.DataFrame({"path": ["2.png", "0.png", "1.png"], "label": [0, 1, 1]}).join(columns)
    table.to_csv(animals / "shards.csv", index=False)
    shown = imagepipe("show", "shards.csv", "shards")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [row[5] for row in list_rows(shown.stdout)] == ["20–200", "0–200", "10–200"]


@pytest.mark.slow
def test_show_starts_and_ends_where_asked(imagepipe: Imagepipe, animals: Path) -> None:
    shown = imagepipe("show", "animals.csv", "pictures", "--first", "1", "-n", "2")
    assert [row[0] for row in list_rows(shown.stdout)] == ["1", "2"]
    assert (animals / "show.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["animals.csv", "pictures", "--first", "4"], "--first: 4, but animals.csv has 4 samples, 0 to 3."),
        (["animals.csv", "elsewhere"], "elsewhere/0.png: no such image; is the image folder the right one?"),
        (
            [],
            "data/manifests/train.csv: cannot be read: No such file or directory. Run the stage that writes it first.",
        ),
        (
            ["animals.csv", "pictures", "-o", "x.jpg"],
            "--out: x.jpg: the picture is written as PNG; give a name that ends in .png.",
        ),
    ],
    ids=["beyond the end", "absent images", "absent table", "another ending"],
)
def test_show_names_what_is_wrong(imagepipe: Imagepipe, animals: Path, arguments: list[str], message: str) -> None:
    done = imagepipe("show", *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert not {path.name for path in animals.iterdir()} & {"show.png", "x.jpg"}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_terminal_cannot_show_is_escaped(run_in: Imagepipe, animals: Path, encoding: str) -> None:
    done = run_in(animals, "imagepipe", "show", "animals.csv", "pictures", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0\\u2013200" in done.stdout
    assert done.stdout.endswith("drawn: show.png\n")


COMMAND = """\
import sys, time, warnings
from imagepipe import cli
{before}
sys.argv = ["imagepipe", "summary"]
cli.main()
"""


def test_a_locale_that_reads_file_names_otherwise_is_refused(run_in: Imagepipe, tmp_path: Path) -> None:
    before = "sys.getfilesystemencoding = lambda: 'iso8859-1'  # such a locale need not be installed here"
    done = run_in(tmp_path, sys.executable, "-c", COMMAND.format(before=before))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: this locale reads file names as iso8859-1, expected UTF-8")


WAITS = """\
def wait(path):
    try:
        warnings.warn("waits")
        for _ in range(6000):
            time.sleep(0.1)
    finally:
        print("in good order")

cli.Path = wait
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_command_in_good_order(tmp_path: Path, name: str) -> None:
    """Ctrl-C says nothing, as in any command of Typer's."""
    said = "" if name == "SIGINT" else ENDED.format(name)
    with start(tmp_path, sys.executable, "-c", COMMAND.format(before=WAITS)) as process:
        wait_for(process, "warning: waits")
        process.send_signal(signal.Signals[name])
        assert read_rest(process) == f"{said}in good order\n"
    assert process.returncode == 128 + signal.Signals[name]


@pytest.fixture
def made(root: Path, tmp_path: Path) -> Path:
    """A folder in which split has run, for 12 train images, with a model and reports of an earlier run."""
    (tmp_path / "data").mkdir()
    make_dataset(tmp_path / "data", {"train": 12, "val": 6, "test": 5})
    (tmp_path / "data" / "manifests").mkdir()
    for path in [*tmp_path.glob("data/*.csv"), tmp_path / "data" / "dataset.json"]:
        path.rename(tmp_path / "data" / "manifests" / path.name)
    for name in ("models/model.safetensors", "reports/train/steps.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("of before")
    text = (root / "recipes" / "base.yaml").read_text("utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("  model: cnn\n", "  model: softmax\n"), "utf-8")
    return tmp_path


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_lr_find_prints_and_draws_a_curve_and_writes_nothing_else(imagepipe: Imagepipe, made: Path) -> None:
    before = read_files(made)
    done = imagepipe("lr-find", "--from", "0.001", "--to", "0.1", "--updates", "21")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "softmax, adamw: 21 of 21 updates, lr from 0.001 to 0.1"
    assert lines[1].split() == ["update", "lr", "loss", "smoothed"]
    rows = list_rows(done.stdout)
    assert [row[:2] for row in rows[:3]] == [["1", "1.0e-03"], ["4", "2.0e-03"], ["7", "4.0e-03"]]
    assert len(rows) == 7
    assert re.fullmatch(
        r"suggestion: train\.lr: 0\.0\d+, the middle of the fifth of the updates with the steepest fall", lines[-3]
    )
    assert lines[-2:] == ["params.yaml: train.lr: 0.01", "drawn: lr-find.png"]
    after = read_files(made)
    assert after.pop("lr-find.png").startswith(b"\x89PNG")
    assert after == before


@pytest.mark.slow
def test_lr_find_takes_other_folders_and_another_picture(imagepipe: Imagepipe, made: Path) -> None:
    (made / "data").rename(made / "mine")
    done = imagepipe("lr-find", "mine/manifests", "mine/images", "--to", "1e-5", "-n", "2", "-o", "seen/lr.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no suggestion: the smoothed loss falls nowhere, or there are too few updates\n" in done.stdout
    assert done.stdout.endswith("drawn: seen/lr.png\n")
    assert (made / "seen" / "lr.png").is_file()


@pytest.mark.slow
def test_lr_find_says_that_it_ended_early(imagepipe: Imagepipe, made: Path) -> None:
    done = imagepipe("lr-find", "--from", "1e10", "--to", "1e38", "-n", "30")
    assert (done.returncode, done.stderr) == (0, "")
    said = "ended early: the smoothed loss rose above four times its least, or the loss was no number any more\n"
    assert said in done.stdout


@pytest.mark.slow
def test_lr_find_warns_in_one_line_as_train_does(imagepipe: Imagepipe, made: Path) -> None:
    text = (made / "params.yaml").read_text("utf-8")
    text = text.replace("  imbalance: none", "  imbalance: class_weights").replace(
        "  loss: cross_entropy", "  loss: focal"
    )
    (made / "params.yaml").write_text(text, "utf-8")
    done = imagepipe("lr-find", "--updates", "3")
    assert done.returncode == 0
    assert re.fullmatch(r"warning: train\.imbalance is class_weights and train\.loss is focal: .*\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["absent"],
            "absent/dataset.json: cannot be read: No such file or directory. Run the split stage first.",
        ),
        (["--from", "0.1", "--to", "0.1"], "learning rates from 0.1 to 0.1; expected 0 < from < to <= 1e+38."),
        (["--updates", "1"], "learning rates that rise over 1 updates; expected 2 or more."),
        (["-o", "x.pdf"], "--out: x.pdf: the picture is written as PNG; give a name that ends in .png."),
    ],
    ids=["no manifests", "rates", "updates", "another ending"],
)
def test_lr_find_names_what_is_wrong(imagepipe: Imagepipe, made: Path, arguments: list[str], message: str) -> None:
    done = imagepipe("lr-find", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert not {path.name for path in made.iterdir()} & {"lr-find.png", "x.pdf"}


@pytest.mark.slow
def test_lr_find_names_a_wrong_param_of_train(imagepipe: Imagepipe, made: Path) -> None:
    text = (made / "params.yaml").read_text("utf-8")
    (made / "params.yaml").write_text(text.replace("  optimizer: adamw", "  optimiser: adamw"), "utf-8")
    done = imagepipe("lr-find")
    assert (done.returncode, done.stdout) == (2, "")
    assert "train.optimiser: unknown key; did you mean `optimizer`?" in done.stderr
    assert not (made / "lr-find.png").exists()


@pytest.fixture
def result(root: Path, tmp_path: Path) -> Path:
    """What a run leaves behind, as far as the summary reads it."""
    shutil.copyfile(root / "recipes" / "base.yaml", tmp_path / "params.yaml")
    (tmp_path / "reports" / "evaluate").mkdir(parents=True)
    test = {"accuracy": 0.98765, "accuracy_low": 0.97, "accuracy_high": 0.99501, "images": 1234}
    (tmp_path / "reports" / "evaluate" / "metrics.json").write_text(json.dumps({"test": test}))
    (tmp_path / "reports" / "report.html").write_text("<html>")
    return tmp_path


def test_summary_prints_the_result(imagepipe: Imagepipe, result: Path) -> None:
    done = imagepipe("summary")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "test accuracy 98.77 % (95 % interval 97.00 to 99.50 %, 1,234 images)\nreport: reports/report.html\n"
    )


@pytest.mark.parametrize("absent", ["reports/evaluate/metrics.json", "reports/report.html"])
def test_summary_names_what_is_not_there(imagepipe: Imagepipe, result: Path, absent: str) -> None:
    (result / absent).unlink()
    done = imagepipe("summary")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {absent}: not there; run `make repro` first.\n"


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"test": []}', '{"test": {"accuracy": null}}'])
def test_summary_says_that_the_metrics_are_damaged(imagepipe: Imagepipe, result: Path, content: str) -> None:
    (result / "reports" / "evaluate" / "metrics.json").write_text(content)
    done = imagepipe("summary")
    assert (done.returncode, done.stdout) == (2, "")
    said = r"error: reports/evaluate/metrics\.json: damaged \(.*\); run `make repro` again\.\n"
    assert re.fullmatch(said, done.stderr)


def test_summary_needs_params(imagepipe: Imagepipe, result: Path) -> None:
    (result / "params.yaml").unlink()
    done = imagepipe("summary")
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: cannot be read: No such file or directory.")


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    """Folders `a` and `b` with the predictions of two runs, of which b has 30 of 40 images wrong that a has right."""
    for name, right in zip("ab", split_right(10, 30, 0, 5), strict=True):
        write_run(tmp_path / name, make_table(right))
    return tmp_path


def test_compare_prints_markdown_or_json_and_writes_a_page(imagepipe: Imagepipe, two_runs: Path) -> None:
    shown = imagepipe("compare", "a", "b", "--page", "pages/a-b.html")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "| a | 88.89 % |" in shown.stdout
    assert "**b is worse than a by 66.67 points (95 % interval " in shown.stdout
    assert "b is worse than a" in (two_runs / "pages" / "a-b.html").read_text("utf-8")
    shown = imagepipe("compare", "a", "b", "--format", "json", "--confidence", "0.9")
    found = json.loads(shown.stdout)
    assert (found["confidence"], found["pairs"][0]["lost"]) == (0.9, 30)


def test_compare_fails_on_request_where_one_is_worse(imagepipe: Imagepipe, two_runs: Path) -> None:
    assert imagepipe("compare", "a", "b", "--fail-if-worse").returncode == 1
    assert imagepipe("compare", "b", "a", "--fail-if-worse").returncode == 0


def test_compare_says_what_is_wrong_in_one_line(imagepipe: Imagepipe, two_runs: Path) -> None:
    done = imagepipe("compare", "a", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere: not a folder, and there is no Git repository here")


@pytest.mark.slow
def test_compare_imports_no_torch(run_in: Imagepipe, two_runs: Path) -> None:
    run = "app(['compare', 'a', 'b', '--page', 'p.html'], standalone_mode=False)"
    code = f"import sys; from imagepipe.cli import app; {run}; print('torch' in sys.modules)"
    assert run_in(two_runs, sys.executable, "-c", code).stdout.endswith("\nFalse\n")


@pytest.mark.slow
def test_evaluate_judges_images_from_elsewhere(project: Path, run_in: Imagepipe, tmp_path: Path) -> None:
    test = read_manifest(project / "data/manifests/test.csv").head(40)
    for name, path in zip(test["class"], test["path"], strict=True):
        (tmp_path / "new" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(project / "data/images" / path, tmp_path / "new" / name)
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    out = str(tmp_path / "found")
    done = run_in(project, "imagepipe", "evaluate", str(tmp_path / "new"), "--out", out, **plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert " interval " in done.stdout
    assert ", 40 images)" in done.stdout
    before = read_predictions(project / "reports/evaluate/predictions.csv").set_index("pixel_sha256")
    after = read_predictions(tmp_path / "found" / "predictions.csv").set_index("pixel_sha256")
    assert after["predicted"].equals(before["predicted"].loc[after.index])
    (tmp_path / "new" / "3" / "broken.png").write_text("<html>")
    again = run_in(project, "imagepipe", "evaluate", str(tmp_path / "new"), "--out", out, **plain)
    assert again.returncode == 1
    assert again.stdout == done.stdout
    assert "images that cannot be used (1):\n  3/broken.png: is not an image of a known format" in again.stderr


def test_evaluate_says_what_is_wrong(imagepipe: Imagepipe, root: Path, tmp_path: Path) -> None:
    shutil.copyfile(root / "recipes" / "base.yaml", tmp_path / "params.yaml")
    done = imagepipe("evaluate", "new")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: models/model.safetensors: no such model; run the train stage first.\n"


@pytest.fixture
def predicting(tmp_path: Path) -> Path:
    """A model, and images of every kind below `pictures`, some of which cannot be used."""
    make_model(tmp_path / "models" / "model.safetensors")
    (tmp_path / "pictures").mkdir()
    for name, data in make_usable().items():
        (tmp_path / "pictures" / name).write_bytes(data)
    return tmp_path


@pytest.mark.slow
def test_predict_prints_a_row_for_each_image(imagepipe: Imagepipe, predicting: Path) -> None:
    done = imagepipe("predict", "pictures", "--top", "2")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines(), strict=True))
    assert [row["path"] for row in rows] == [f"pictures/{name}" for name in make_usable()]
    assert all(0 < float(row["probability_2"]) <= float(row["probability"]) <= 1 for row in rows)
    assert {row["class"] for row in rows} <= set(CLASSES)
    said = done.stderr.splitlines()
    assert said[0] == f"predict: {len(rows)} images"
    assert sum(int(line.partition(": ")[2]) for line in said if line.startswith("  ")) == len(rows)
    assert "predict: 1 of them: 16 bits scaled to 8" in said


@pytest.mark.slow
def test_predict_names_what_it_cannot_use_and_predicts_the_rest(imagepipe: Imagepipe, predicting: Path) -> None:
    unusable = make_unusable()
    for name, (data, _) in unusable.items():
        (predicting / "pictures" / name).write_bytes(data)
    os.mkfifo(predicting / "pictures" / "pipe")
    (predicting / "pictures" / "loop").symlink_to(".")
    arguments = [
        "pictures/*",
        "nope.png",
        "--format",
        "jsonl",
        "--out",
        "out.jsonl",
        "--batch-size",
        "4",
        "--jobs",
        "1",
    ]
    done = imagepipe("predict", *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    rows = [json.loads(line) for line in (predicting / "out.jsonl").read_text("utf-8").splitlines()]
    direct = [f"pictures/{name}" for name in make_usable()]
    assert [row["path"] for row in rows if not row["path"].startswith("pictures/loop/")] == direct
    assert all(list(row) == ["path", "classes", "probabilities"] for row in rows)
    for name, (_, reason) in unusable.items():
        assert f"pictures/{name}: {reason}" in done.stderr
    assert "pictures/pipe: is no plain file\n" in done.stderr
    assert "nope.png: cannot be read: there is no such file\n" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("predict: could not be used: ")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_predict_names_a_file_that_it_may_not_read(imagepipe: Imagepipe, predicting: Path) -> None:
    (predicting / "pictures" / "rgb.png").chmod(0)
    done = imagepipe("predict", "pictures/rgb.png", "pictures/large.jpg")
    assert done.returncode == 1
    assert "pictures/rgb.png: cannot be read: Permission denied\n" in done.stderr


@pytest.mark.slow
def test_predict_reads_a_list_whose_names_need_not_be_utf_8(predicting: Path) -> None:
    name = os.fsencode(predicting / "pictures") + b"/caf\xe9.png"
    os.rename(predicting / "pictures" / "rgb.png", name)  # noqa: PTH104 (Path takes no bytes)
    command = [Path(sys.executable).parent / "imagepipe", "predict", "-", "--jobs", "1"]
    done = subprocess.run(command, cwd=predicting, input=name + b"\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(os.fsencode(predicting / "pictures") + b"/caf\\xe9.png,")


@pytest.mark.slow
def test_predict_ends_quietly_when_its_reader_does(predicting: Path) -> None:
    command = [Path(sys.executable).parent / "imagepipe", "predict", "-", "--batch-size", "1", "--jobs", "1"]
    with subprocess.Popen(
        command, cwd=predicting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"pictures/rgb.png\n" * 50)
        process.stdin.flush()
        assert process.stdout.readline() == b"path,class,probability\n"
        process.stdout.close()
        process.stdin.write(b"pictures/rgb.png\n" * 500)
        process.stdin.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.slow
def test_predict_says_that_its_rows_cannot_be_written(predicting: Path) -> None:
    command = [Path(sys.executable).parent / "imagepipe", "predict", "pictures/rgb.png", "--jobs", "1"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=predicting, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr.endswith(b"error: standard output cannot be written: No space left on device.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predict"], "Missing argument"),
        (["predict", "x", "--format", "xml"], "'--format'"),
        (["predict", "x", "--top", "0"], "'--top'"),
        (["predict", "x", "--top", "4"], "error: --top: 4, but models/model.safetensors has 3 classes.\n"),
        (["predict", "x", "--model", "m"], "error: m: no such model; run the train stage first.\n"),
        (["predict", "x"], "error: none of the paths names a file, so there is nothing to predict.\n"),
        (["export"], "error: export: say in which form: --onnx is the one that there is.\n"),
        (["export", "--onnx", "--model", "m"], "error: m: no such model; run the train stage first.\n"),
    ],
    ids=str,
)
def test_a_wrong_wish_for_predictions_is_refused(
    imagepipe: Imagepipe, predicting: Path, arguments: list[str], named: str
) -> None:
    done = imagepipe(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


@pytest.mark.slow
def test_export_writes_the_file_that_it_is_told(imagepipe: Imagepipe, predicting: Path) -> None:
    done = imagepipe("export", "--onnx", "elsewhere/m.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("export: elsewhere/m.onnx: uint8 images (N, 1, 8, 8) in, ")
    assert (predicting / "elsewhere" / "m.onnx").stat().st_size > 1000
