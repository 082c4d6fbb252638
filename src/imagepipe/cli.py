"""The command `imagepipe`: what people do beside `dvc repro`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.core.lifetime import answer_signals
from imagepipe.core.run import load_run_params
from imagepipe.core.stage import end_plainly

CUT_OFF = 128 + 13  # what a shell says of a program whose reader has gone (SIGPIPE)

app = typer.Typer(
    help="A reproducible image-classification pipeline: recipes, a look at the data, the result, the model at work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def check_ending(out: Path) -> Path:
    """Raise InputError for the name of a picture that would be no PNG."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out: {out}: the picture is written as PNG; give a name that ends in .png.")
    return out


PngFile = Annotated[Path, typer.Option("--out", "-o", callback=check_ending, help="the picture to write, a .png")]


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
    out: PngFile = Path("show.png"),
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


@app.command("lr-find")
def find_learning_rate(
    manifests: Annotated[Path, typer.Argument(help="the folder of the manifests")] = Path("data/manifests"),
    images: Annotated[Path, typer.Argument(help="the folder that their paths are below")] = Path("data/images"),
    lowest: Annotated[float, typer.Option("--from", help="the learning rate to begin with")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="the learning rate to end with")] = 1.0,
    updates: Annotated[int, typer.Option("--updates", "-n", help="updates between the two, 2 or more")] = 100,
    out: PngFile = Path("lr-find.png"),
) -> None:
    """Draw the loss while the learning rate rises, and suggest a rate; the train section of params.yaml says for what.

    It trains a model of its own for that. No file is written but the picture.
    """
    # As in stages/train.py, before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from imagepipe.models.runtime import fix_arithmetic
    from imagepipe.report.plots import draw_rates
    from imagepipe.training.lr_find import Sweep, suggest_rate, trace_run
    from imagepipe.training.params import TrainParams

    params, run, sweep = load_section("train", TrainParams), load_run_params(), Sweep(lowest, highest, updates)
    fix_arithmetic(params.threads, compiles=False)
    curve = trace_run(manifests, images, params, run, sweep)
    print(f"{params.model}, {params.optimizer}: {len(curve)} of {updates} updates, lr from {lowest:g} to {highest:g}")
    print(f"{'update':>6}  {'lr':>8}  {'loss':>8}  {'smoothed':>8}")
    for row in curve[:: -(-len(curve) // 10)].itertuples():
        print(f"{row.update:>6}  {row.lr:>8.1e}  {row.loss:>8.2f}  {row.smoothed:>8.2f}")
    if len(curve) < updates:
        print("ended early: the smoothed loss rose above four times its least, or the loss was no number any more")
    suggestion = suggest_rate(curve)
    if suggestion is None:
        print("no suggestion: the smoothed loss falls nowhere, or there are too few updates")
    else:
        print(f"suggestion: train.lr: {suggestion:.2g}, the middle of the fifth of the updates with the steepest fall")
    print(f"params.yaml: train.lr: {params.lr:g}")
    draw_rates(curve, suggestion, params.lr, out)
    print(f"drawn: {out}")


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="A [B …]",
            help="Git revisions, DVC experiments, or folders (a project, or one with predictions.csv); a,b,c is a "
            "group of runs that differ in train.seed alone, or in split.fold alone",
        ),
    ],
    form: Annotated[Literal["md", "json"], typer.Option("--format", help="what is printed")] = "md",
    page: Annotated[Path | None, typer.Option("--page", help="an HTML page to write, with the changed images")] = None,
    confidence: Annotated[
        float,
        typer.Option("--confidence", min=0.5, max=0.9999, help="of intervals; p below 1 less this is significant"),
    ] = 0.95,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="exit with 1 where one is significantly worse than A")
    ] = False,
) -> None:
    """Say whether runs differ by more than chance: the first against each other one, on the same test images.

    One run alone is compared with the workspace. Groups (a1,a2,a3 b1,b2,b3) are compared by the spread between their
    seeds or folds.
    """
    from imagepipe.evaluation import compare as comparing
    from imagepipe.report.comparison import format_json, format_markdown, write_comparison

    found = comparing.compare(runs, confidence)
    if page:
        write_comparison(page, found, [Path(), *filter(Path.is_dir, map(Path, runs))])
    print(format_json(found) if form == "json" else format_markdown(found), end="")
    if fail_if_worse and found.is_worse:
        raise typer.Exit(1)


@app.command()
def evaluate(
    images: Annotated[Path, typer.Argument(help="class folders, an archive of them, or a table of files and labels")],
    model: Annotated[Path, typer.Option("--model", "-m", help="the model file")] = Path("models/model.safetensors"),
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder to write")] = Path("evaluation"),
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="leave out images of classes that the model does not know")
    ] = False,
    allow_train: Annotated[
        bool, typer.Option("--allow-train", help="let images count that the model was trained on")
    ] = False,
) -> None:
    """Judge the model by labelled images from elsewhere, converted as its own were.

    Exits with 1 where some of them cannot be read; the others are judged all the same.
    """
    from imagepipe.core.errors import list_findings
    from imagepipe.evaluation.elsewhere import check_replaceable, format_classes, judge_images, write_judged
    from imagepipe.evaluation.metrics import describe_accuracy
    from imagepipe.evaluation.params import EvaluateParams
    from imagepipe.models.runtime import fix_arithmetic

    params = load_section("evaluate", EvaluateParams)
    check_replaceable(out)
    fix_arithmetic(params.threads, compiles=False)
    judged = judge_images(images, model, out.parent, params, ignore_unknown, allow_train)
    metrics, classes = write_judged(out, judged, params)
    for note in judged.notes:
        print(f"{images}: {note}")
    if judged.ignored:
        print(f"{images}: images of classes that the model does not know: {judged.ignored.total():,}, left out")
    print(f"{images}: {describe_accuracy(metrics['test'], params.confidence)}")
    print(format_classes(classes))
    print(f"written: {out}")
    if judged.unreadable:
        print(list_findings(f"{images}: images that cannot be used", judged.unreadable), file=sys.stderr)
        raise typer.Exit(1)


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
    onnx: Annotated[bool, typer.Option("--onnx", help="as ONNX, for any runtime; needs the extra `onnx`")] = False,
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
def fsck(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say it: move no corrupt object away")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="rehash nothing: are all objects there?")] = False,
) -> None:
    """Rehash DVC's cache and the outputs in the workspace, and say what is corrupt, missing or edited, and what helps.

    Corrupt objects are moved out of the cache, since DVC would believe them. Exits with 1 where something was found.
    """
    from imagepipe.proof.fsck import check_project, find_gaps

    if quick:
        needed, findings = find_gaps()
        counted, well = f"{needed:,} objects needed", "all are in DVC's cache"
    else:
        checked = check_project(quarantine=not dry_run)
        findings = checked.findings
        counted = f"{checked.objects:,} objects, {checked.runs:,} runs, {checked.outputs:,} outputs rehashed"
        well = "all as they were made"
    for finding in findings:
        print(finding)
    print(f"fsck: {counted}; {f'findings: {len(findings)}' if findings else well}")
    raise typer.Exit(1 if findings else 0)


@app.command()
def verify(
    revision: Annotated[str, typer.Argument(help="a commit, branch or tag whose dvc.lock is to be proved")] = "HEAD",
) -> None:
    """Run the pipeline of a commit again, in a scratch clone with empty caches, and compare each output with its lock.

    Exits with 1 where an output is different: neither the same bytes nor, for the model and what it says, an accuracy
    within the interval.
    """
    from imagepipe.proof.verify import describe as describe_proof
    from imagepipe.proof.verify import verify_commit

    compared = verify_commit(revision)
    print("\n".join(describe_proof(compared)))
    raise typer.Exit(0 if compared.is_reproduced else 1)


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
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{metrics}: damaged ({error}); run `make repro` again.") from error
    print(f"report: {page}")


def main() -> None:
    """Run the command; errors, warnings and streams are as in a stage, and a signal ends it in good order, too."""
    answer_signals(("SIGHUP", "SIGTERM"))  # Ctrl-C is Typer's
    with end_plainly():
        app()
