"""fetch: put what the source ships into data/raw, verified, with source.json."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from imagepipe.core.lifetime import guard_stage

if __name__ == "__main__":
    guard_stage()  # before what takes long to import

from imagepipe.core.config import load_section
from imagepipe.core.files import replace_directory
from imagepipe.core.run import load_run_params
from imagepipe.core.stage import run_stage
from imagepipe.sources import fetch_source
from imagepipe.sources.params import FetchParams


def main(raw_dir: Path) -> None:
    params = load_section("fetch", FetchParams)
    with replace_directory(raw_dir) as staging:
        info = fetch_source(params, load_run_params(), staging)
    classes = info.list_classes()
    shown = ", ".join(map(repr, classes[:10])) + (f" … and {len(classes) - 10} more" if len(classes) > 10 else "")
    print(f"fetch: {info.name}: classes: {len(classes)} ({shown}); licence: {info.licence}")
    for note in info.notes:
        print(f"fetch: {note}")


if __name__ == "__main__":
    run_stage(main)
