"""Write the pages of the Python API into site/, from the docstrings: the modules that are for others to import.

    python .ci/docs.py [FOLDER]

A name that README, docs/ or the tour import is in one of these modules; a test checks it. What is in other modules may
change without a word.
"""

import sys
from pathlib import Path

import pdoc

SITE = Path(__file__).resolve().parents[1] / "site"
PUBLIC = (
    "imagepipe.core.errors",
    "imagepipe.core.manifest",
    "imagepipe.core.run",
    "imagepipe.data.batches",
    "imagepipe.data.dataset",
    "imagepipe.data.pixels",
    "imagepipe.evaluation.intervals",
    "imagepipe.evaluation.predictions",
    "imagepipe.models",
    "imagepipe.models.classifier",
    "imagepipe.sources.params",
    "imagepipe.sources.records",
    "imagepipe.training.imbalance",
)


def main() -> None:
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE
    # A package brings the modules in it along, unless they are taken out again.
    pdoc.pdoc(*[spec for name in PUBLIC for spec in (name, rf"!{name}\..+")], output_directory=site)
    print(f"docs: {site / 'index.html'}")


if __name__ == "__main__":
    main()
