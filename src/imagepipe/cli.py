"""The command `imagepipe`: what people do beside `dvc repro`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from imagepipe.core.config import load_section
from imagepipe.core.errors import ImagepipeError, InputError

CUT_OFF = 128 + 13  # what a shell says of a program whose reader has gone (SIGPIPE)

app = typer.Typer(
    help="A reproducible image-classification pipeline: recipes, a look at the data, the result, the model at work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def describe() -> None:
    """Keep subcommands as subcommands, however many there are."""


@app.command()
def use(
    recipe: Annotated[Path, typer.Argument(help="a file in recipes/, or one of your own")],
    force: Annotated[bool, typer.Option("--force", help="lose edits of params.yaml that are not committed")] = False,
) -> None:
    """Write base plus RECIPE into params.yaml (never recipe upon recipe); the run: section stays as it is."""
    from imagepipe.recipes import list_missing, use_recipe

    changed = use_recipe(recipe, force)
    print(f"params.yaml {'now holds' if changed else 'already held'} recipes/base.yaml with {recipe}")
    for missing in list_missing():
        print(f"warning: {missing}", file=sys.stderr)


@app.command()
def show(
    csv: Annotated[Path, typer.Argument(help="a manifest, or any CSV that names files and labels")] = Path(
        "data/manifests/train.csv"
    ),
    images: Annotated[Path, typer.Argument(help="the folder that its paths are below")] = Path("data/images"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=400, help="samples to show")] = 16,
    first: Annotated[int, typer.Option("--first", min=0, help="number of the first sample, from 0")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="the picture to write")] = Path("show.png"),
) -> None:
    """Print shape, dtype, pixel range and class of samples, and draw them as a captioned grid."""
    from imagepipe.data.dataset import ManifestDataset
    from imagepipe.report.plots import draw_grid, shorten

    dataset = ManifestDataset(csv, images)
    if first >= len(dataset):
        raise InputError(f"--first: {first}, but {csv} has {len(dataset)} samples, 0 to {len(dataset) - 1}.")
    chosen = range(first, min(first + count, len(dataset)))
    print(f"{csv}: {len(dataset)} samples, {len(dataset.classes)} classes: {', '.join(dataset.classes)}")
    print(f"{'index':>7}  {'shape':<14} {'dtype':<11} {'range':<9} {'label':>5}  class")
    samples = [dataset[index] for index in chosen]
    names = [dataset.classes[label] for _, label in samples]
    for index, (image, label), name in zip(chosen, samples, names, strict=True):
        span = f"{int(image.min())}–{int(image.max())}"
        print(f"{index:>7}  {tuple(image.shape)!s:<14} {image.dtype!s:<11} {span:<9} {label:>5}  {name}")
    draw_grid([image for image, _ in samples], [shorten(name, 14) for name in names], out)
    print(f"drawn: {out}")


@app.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="images, folders of them, glob patterns; - reads paths, one a line"),
    ],
    model: Annotated[Path, typer.Option("--model", help="a file of the train stage")] = Path(
        "models/model.safetensors"
    ),
    kind: Annotated[Literal["csv", "jsonl"], typer.Option("--format", help="of the rows")] = "csv",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the file to write; else standard output")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="classes of each image, the most probable first")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="images that the model gets at once")] = 500,
    jobs: Annotated[int, typer.Option("--jobs", min=0, max=1024, help="processes that decode; 0: every core")] = 0,
) -> None:
    """Print class and probability of images that the model has never seen, converted as its own were.

    What cannot be used is named on stderr, and the exit code is 1 then.
    """
    from imagepipe.inference.inputs import Inputs
    from imagepipe.inference.predict import describe_tally, predict_images

    inputs = Inputs(paths, sys.stdin.buffer)
    tally, classes = predict_images(model, inputs, out, kind, top, batch_size, jobs)
    if tally.cut_off:
        raise typer.Exit(CUT_OFF)
    print("\n".join(describe_tally(tally, classes, inputs.notes)), file=sys.stderr)
    raise typer.Exit(1 if tally.unusable else 0)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="the file to write")] = Path("models/model.onnx"),
    onnx: Annotated[bool, typer.Option("--onnx", help="as ONNX, for any runtime; needs imagepipe[onnx]")] = False,
    model: Annotated[Path, typer.Option("--model", help="a file of the train stage")] = Path(
        "models/model.safetensors"
    ),
    manifests: Annotated[Path, typer.Option("--manifests", help="whose test images it is checked on")] = Path(
        "data/manifests"
    ),
    images: Annotated[Path, typer.Option("--images", help="the folder that they are below")] = Path("data/images"),
) -> None:
    """Write the model for other programs, uint8 pixels in, once it is known to predict what PyTorch predicts."""
    if not onnx:
        raise InputError("export: say in which form: --onnx is the one that there is.")
    from imagepipe.inference.onnx_files import export_onnx

    for line in export_onnx(model, out, manifests, images):
        print(line)


@app.command()
def summary() -> None:
    """Print the result of the last run: test accuracy with its interval, and where the report is."""
    from imagepipe.evaluation.metrics import describe_accuracy
    from imagepipe.evaluation.params import EvaluateParams

    metrics, page = Path("reports/evaluate/metrics.json"), Path("reports/report.html")
    if not metrics.is_file() or not page.is_file():
        raise InputError(f"{metrics if not metrics.is_file() else page}: not there; run `make repro` first.")
    confidence = load_section("evaluate", EvaluateParams).confidence
    try:
        found = json.loads(metrics.read_bytes())["test"]
        print(describe_accuracy(found, confidence))
    except (ValueError, KeyError) as error:
        raise InputError(f"{metrics}: damaged ({error}); run `make repro` again.") from error
    print(f"report: {page}")


def main() -> None:
    """Run the command; an ImagepipeError is one message and its exit code."""
    try:
        app()
    except ImagepipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
