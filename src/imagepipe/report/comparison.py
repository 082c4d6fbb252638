"""A comparison of runs as Markdown, as JSON, and as a page that shows the images that changed sides."""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from imagepipe.core.errors import InputError
from imagepipe.core.files import round_numbers, write_text
from imagepipe.core.hashes import hash_pixels
from imagepipe.core.manifest import SPLITS, read_manifest
from imagepipe.core.slices import ImageFiles, list_image_files
from imagepipe.data.images import MODES, make_image, read_pixels
from imagepipe.evaluation.compare import Comparison
from imagepipe.evaluation.pairs import ChangedImage, Pair
from imagepipe.evaluation.runs import ParamChange
from imagepipe.report.galleries import encode_picture
from imagepipe.report.page import format_percent, render
from imagepipe.report.plots import shorten

LISTED = 20  # images, classes or params in a table of the Markdown
PICTURED = 60  # images of each kind on the page
NAME = 60  # characters of a name in the Markdown
# What Markdown takes for more than text: in a name of several words, an underscore inside one is none.
MARKUP = re.compile(r"[\\`*\[\]|~]|<(?=[A-Za-z/!?])|&(?=[#\w])|(?<!\w)_|_(?!\w)")
MANIFESTS, IMAGES = Path("data/manifests"), Path("data/images")


def format_json(comparison: Comparison) -> str:
    """All that was found, with sorted keys; the verdicts as sentences under `verdicts`."""
    found = asdict(comparison) | {"verdicts": comparison.list_verdicts()}
    return json.dumps(round_numbers(found, 10), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


# Markdown


def format_markdown(comparison: Comparison) -> str:
    """What a person wants to know first, as GitHub's Markdown: runs, verdicts, and of each pair what changed."""
    blocks = [
        make_table(
            ["run", "test accuracy", f"{100 * comparison.confidence:g} % interval", "images"],
            [
                [
                    escape(run.run),
                    format_percent(run.accuracy.value),
                    f"{format_percent(run.accuracy.low)} to {format_percent(run.accuracy.high)}",
                    f"{run.images:,}",
                ]
                for run in comparison.runs
            ],
        )
    ]
    if comparison.groups:
        rows = [
            [escape(group.name), str(len(group.accuracies)), format_percent(group.mean), f"{100 * group.deviation:.2f}"]
            for group in comparison.groups
        ]
        blocks.append(make_table(["group", "runs", "mean accuracy", "standard deviation, points"], rows))
    blocks += [f"**{escape(verdict)}**" for verdict in comparison.list_verdicts()]
    for pair in comparison.pairs:
        if len(comparison.pairs) > 1:
            blocks.append(f"### {escape(pair.other)} against {escape(pair.base)}")
        blocks += describe_pair(pair)
    for spread in comparison.spreads:
        blocks += describe_params(spread.params, spread.base, spread.other)
    return "\n\n".join(blocks) + "\n"


def describe_pair(pair: Pair) -> list[str]:
    """What changed between two runs: counts, params, classes, images; blocks of Markdown."""
    base, other = escape(pair.base), escape(pair.other)
    blocks = [
        f"Right in both: {pair.both_right:,}; in {base} alone: {pair.lost:,}; in {other} alone: {pair.won:,}; "
        f"in neither: {pair.both_wrong:,}. {pair.test}: mid-p {pair.mid:.3g}, exact p {pair.exact:.3g}.",
        *pair.notes,
        *describe_params(pair.params, pair.base, pair.other),
    ]
    changed = [change for change in pair.classes if change.lost or change.won]
    if changed:
        rows = [
            [
                mark(change.name),
                f"{change.images:,}",
                format_percent(change.base),
                format_percent(change.other),
                f"{change.lost:,}",
                f"{change.won:,}",
                f"{change.corrected:.3g}",
            ]
            for change in changed[:LISTED]
        ]
        blocks.append(
            make_table(
                ["class", "images", f"recall, {base}", f"recall, {other}", "lost", "won", "p (Holm)"],
                rows,
                len(changed),
            )
        )
    if pair.changed:
        rows = [
            [escape(image.key), "won" if image.won else "lost", mark(image.true), mark(image.base), mark(image.other)]
            for image in pair.changed[:LISTED]
        ]
        blocks.append(make_table(["image", "", "true class", base, other], rows, len(pair.changed)))
    return blocks


def describe_params(changes: Sequence[ParamChange], base: str, other: str) -> list[str]:
    """The params that differ, as one table or none."""
    if not changes:
        return []
    rows = [[mark(change.name), mark(change.base), mark(change.other)] for change in changes[:LISTED]]
    return [make_table(["params.yaml", escape(base), escape(other)], rows, len(changes))]


def make_table(header: Sequence[str], rows: Sequence[Sequence[str]], total: int = 0) -> str:
    """A table of cells that are Markdown, and a line below it where `total` rows are more than there are."""
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + (f"\n\n… and {total - len(rows):,} more" if total > len(rows) else "")


def mark(name: str) -> str:
    """The name of a class or a value for a cell: one line, cut where it is long."""
    return escape(shorten(name, NAME))


def escape(text: str) -> str:
    """Text in one line, such that Markdown shows it as it is."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


# The page


def write_comparison(path: Path, comparison: Comparison, projects: Sequence[Path]) -> None:
    """Render the page; the images that changed sides are shown as far as one of the project folders holds them."""
    wanted = {image.pixel_sha256 for pair in comparison.pairs for image in list_pictured(pair)}
    page = render(
        "comparison.html.jinja",
        comparison=comparison,
        verdicts=comparison.list_verdicts(),
        galleries=[sort_changed(pair) for pair in comparison.pairs],
        pictures=find_pictures(wanted, projects),
        shown=PICTURED,
    )
    write_text(path, page)


def sort_changed(pair: Pair) -> list[tuple[str, list[ChangedImage]]]:
    """The images that were lost and those that were won, each under what they are called."""
    return [
        (f"right in {pair.base}, wrong in {pair.other}", [image for image in pair.changed if not image.won]),
        (f"wrong in {pair.base}, right in {pair.other}", [image for image in pair.changed if image.won]),
    ]


def list_pictured(pair: Pair) -> list[ChangedImage]:
    """The images that the page shows."""
    return [image for _, images in sort_changed(pair) for image in images[:PICTURED]]


def find_pictures(wanted: set[str], projects: Sequence[Path]) -> dict[str, str]:
    """Hash of the pixels → data URI, of the images that a project's manifests name and that lie there unchanged.

    A manifest that cannot be read is left out with a warning.
    """
    pictures: dict[str, str] = {}
    for folder in projects:
        for split in SPLITS:
            path = folder / MANIFESTS / f"{split}.csv"
            if not path.is_file() or wanted <= pictures.keys():
                continue
            try:
                table = read_manifest(path)
            except InputError as error:
                warnings.warn(f"the page shows no images of a manifest that cannot be read: {error}", stacklevel=2)
                continue
            rows = table[table["pixel_sha256"].isin(wanted - pictures.keys())].drop_duplicates("pixel_sha256")
            files = list_image_files(rows, folder / IMAGES)
            for index, pixel_sha256 in enumerate(rows["pixel_sha256"].tolist()):
                if picture := make_picture(files, index, pixel_sha256):
                    pictures[pixel_sha256] = picture
    return pictures


def make_picture(files: ImageFiles, index: int, pixel_sha256: str) -> str:
    """A data URI; '' where the image is absent or another."""
    try:
        pixels = read_pixels(files, index)
    except InputError:
        return ""
    mode = MODES[pixels.shape[2]]
    if hash_pixels(mode, pixels) != pixel_sha256:
        return ""
    return encode_picture(make_image(pixels))
