"""`report.html`: one file that stands alone, with its figures inside and no script, font or request from outside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from imagepipe.core.files import write_text
from imagepipe.core.manifest import SPLITS, read_dataset_info
from imagepipe.core.tables import read_text_table
from imagepipe.evaluation.metrics import count_confusions, list_confusions, list_predicted_classes
from imagepipe.evaluation.params import EvaluateParams
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.report.galleries import encode, make_cards, pick_examples, pick_mistakes

if TYPE_CHECKING:
    from imagepipe.models.classifier import ModelInfo

FIGURES = ("confusion", "curves", "ranking", "reliability")
CONFUSIONS = 12  # most frequent mistakes that are listed
SCORES = {  # what is said of each figure that stands in the table of all
    "accuracy": "accuracy",
    "macro_precision": "precision, mean over classes",
    "balanced_accuracy": "recall, mean over classes (balanced accuracy)",
    "macro_f1": "F1, mean over classes",
    "matthews": "Matthews correlation",
    "log_loss": "log loss (nats)",
    "log_loss_scaled": "log loss, scaled",
    "brier": "Brier score (0 to 2)",
    "brier_scaled": "Brier score, scaled",
    "roc_auc": "area under the ROC curve, mean over classes",
    "average_precision": "average precision, mean over classes",
    "calibration_error": "expected calibration error",
    "calibration_error_scaled": "expected calibration error, scaled",
}
NUMBERS = {
    "matthews",
    "log_loss",
    "log_loss_scaled",
    "brier",
    "brier_scaled",
    "roc_auc",
    "average_precision",
}  # no shares


def write_page(
    path: Path,
    results_dir: Path,
    balance_dir: Path,
    train_dir: Path,
    manifests_dir: Path,
    images_dir: Path,
    model: "ModelInfo",
    params: EvaluateParams,
    values: Mapping[str, Mapping[str, Any]],
) -> None:
    """Render the page from what the stages left in their folders; `values` is what params.yaml says, by section."""
    info = read_dataset_info(manifests_dir / "dataset.json")
    predictions = read_predictions(results_dir / "predictions.csv")
    test = predictions[predictions["split"] == "test"]
    mistakes = make_cards(pick_mistakes(test, params.gallery), images_dir)
    page = render(
        "page.html.jinja",
        metrics=json.loads((results_dir / "metrics.json").read_bytes()),
        scores=read_scores(results_dir / "scores.csv"),
        info=info,
        source=info.source,
        sizes={split: sum(info.counts[split].values()) for split in SPLITS},
        official=info.split["official"],
        rejected=len(read_text_table(manifests_dir / "rejected.csv")),
        training=json.loads((train_dir / "metrics.json").read_bytes()),
        classes=read_class_rows(results_dir / "per_class.csv"),
        confusions=list_confusions(count_confusions(test), list_predicted_classes(test), CONFUSIONS),
        wrong=int((test["class"] != test["predicted"]).sum()),
        mistakes=mistakes,
        examples=make_cards(pick_examples(test, params.gallery), images_dir),
        model=model,
        params=params,
        values=flatten_values(values),
        figures=read_figures(results_dir, balance_dir),
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
    environment.filters |= {"percent": format_percent, "points": format_points, "number": format_number}
    return environment.get_template(template).render(**values)


def read_figures(results_dir: Path, balance_dir: Path) -> dict[str, str]:
    """The drawn figures as data URIs."""
    paths = {name: results_dir / f"{name}.png" for name in FIGURES} | {"balance": balance_dir / "balance.png"}
    return {name: encode("image/png", path.read_bytes()) for name, path in paths.items()}


def read_scores(path: Path) -> list[dict[str, Any]]:
    """`scores.csv` as rows of `name`, and for val and test `value`, `low` and `high`, in the order of SCORES."""
    table = pd.read_csv(path).set_index(["split", "metric"])
    found = list(dict.fromkeys(name for _, name in table.index))
    tops = {name: f"right class among the {name.split('_')[1]} most probable" for name in found if name[:4] == "top_"}
    rows: list[dict[str, Any]] = []
    known = SCORES | tops
    for name, text in (known | {name: name for name in found if name not in known}).items():
        kind = "share" if name in known and name not in NUMBERS else "number"
        row: dict[str, Any] = {"metric": name, "name": text, "kind": kind}
        for split in ("val", "test"):
            if (split, name) in table.index:
                value, low, high = table.loc[[(split, name)]].to_numpy(np.float64)[0].tolist()
                row[split] = {"value": value, "low": low, "high": high}
        rows.append(row)
    return rows


def read_class_rows(path: Path) -> list[dict[str, Any]]:
    """`per_class.csv` row by row: names as text, counts as int, other figures as float, None where a cell is empty."""
    rows: list[dict[str, Any]] = []
    for row in read_text_table(path).to_dict("records"):
        figures = {str(name): float(cell) if cell else None for name, cell in row.items() if name != "class"}
        counts = {name: int(row[name]) for name in ("images", "predicted")}
        rows.append({"class": row["class"], **figures, **counts})
    return rows


def flatten_values(values: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Of each section the keys with dots in between, and their values as text."""

    def flatten(section: Mapping[str, Any], before: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for name, value in section.items():
            key = f"{before}{name}"
            found += flatten(value, f"{key}.") if isinstance(value, Mapping) else [(key, format_value(value))]
        return found

    return {name: flatten(section, "") for name, section in values.items()}


def format_value(value: object) -> str:
    """A value as params.yaml has it: true and false, and quotes around text that is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def format_percent(value: float | None, digits: int = 2) -> str:
    """A share in [0, 1] as a percentage; a dash where there is none."""
    return "–" if value is None or value != value else f"{100 * value:.{digits}f} %"


def format_points(value: float) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    return f"{100 * value:+.1f} points"


def format_number(value: float | None) -> str:
    """A figure that is no share; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.4f}"
