import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.data.made import pack_shards
from tests.inference.made import make_model, make_unusable, make_usable
from tests.made import CLASSES

Imagepipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def imagepipe(run_in: Imagepipe, tmp_path: Path) -> Imagepipe:
    """`imagepipe("show", …)`: the command in an empty folder, without colours and 200 characters wide."""
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    return lambda *arguments: run_in(tmp_path, "imagepipe", *arguments, **plain)


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
    for command in ("use", "show", "predict", "export", "summary"):
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
    assert (tmp_path / "params.yaml").read_bytes() == (root / "recipes" / "base.yaml").read_bytes()


def test_use_names_an_absent_recipe(imagepipe: Imagepipe) -> None:
    done = imagepipe("use", "recipes/absent.yaml")
    expected = (
        "error: recipes/absent.yaml: cannot be read: No such file or directory. Run from the project's root folder."
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
    ],
    ids=["beyond the end", "absent images", "absent table"],
)
def test_show_names_what_is_wrong(imagepipe: Imagepipe, animals: Path, arguments: list[str], message: str) -> None:
    done = imagepipe("show", *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert not (animals / "show.png").exists()


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


def test_summary_needs_params(imagepipe: Imagepipe, result: Path) -> None:
    (result / "params.yaml").unlink()
    done = imagepipe("summary")
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: cannot be read: No such file or directory.")


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
