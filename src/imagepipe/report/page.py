"""`report.html`: one file that stands alone, with its figures inside and no script, font or request from outside."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from imagepipe.core.files import write_text
from imagepipe.core.manifest import SPLITS, DatasetInfo
from imagepipe.core.tables import read_text_table

if TYPE_CHECKING:
    from imagepipe.models.classifier import ModelInfo


def write_page(
    path: Path,
    results_dir: Path,
    balance_dir: Path,
    train_dir: Path,
    info: DatasetInfo,
    model: "ModelInfo",
    confidence: float,
) -> None:
    """Render the page from what the stages left in their folders."""
    figures = {name: results_dir / f"{name}.png" for name in ("curves", "confusion", "mistakes", "examples")}
    figures["balance"] = balance_dir / "balance.png"
    page = render(
        "page.html.jinja",
        metrics=json.loads((results_dir / "metrics.json").read_bytes()),
        info=info,
        source=info.source,
        sizes={split: sum(info.counts[split].values()) for split in SPLITS},
        official=info.split["official"],
        training=json.loads((train_dir / "metrics.json").read_bytes()),
        rows=read_class_rows(results_dir / "per_class.csv"),
        model=model,
        confidence=confidence,
        figures={name: encode_figure(figure.read_bytes()) for name, figure in figures.items()},
    )
    write_text(path, page)


def render(template: str, **values: object) -> str:
    """The page that a template of this folder makes of `values`; what comes from the user is shown as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imagepipe.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = format_percent
    return environment.get_template(template).render(**values)


def read_class_rows(path: Path) -> list[dict[str, Any]]:
    """`per_class.csv` row by row: counts as int, shares as float, None where the cell is empty."""
    rows: list[dict[str, Any]] = []
    for row in read_text_table(path).to_dict("records"):
        shares = {name: float(row[name]) if row[name] else None for name in ("precision", "recall", "f1")}
        rows.append({"class": row["class"], "images": int(row["images"]), "predicted": int(row["predicted"]), **shares})
    return rows


def format_percent(value: float | None, digits: int = 2) -> str:
    """A share in [0, 1] as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def encode_figure(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
