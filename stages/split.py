"""split: spread the records over train, val and test, as PNGs and CSV manifests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from imagepipe.core.lifetime import guard_stage

if __name__ == "__main__":
    guard_stage()  # before what takes long to import

from imagepipe.core.class_counts import check_several
from imagepipe.core.config import load_section
from imagepipe.core.engines import open_engine
from imagepipe.core.run import load_run_params
from imagepipe.core.stage import run_stage
from imagepipe.prepare.dataset import prepare_dataset
from imagepipe.prepare.params import SplitParams
from imagepipe.sources import read_records
from imagepipe.sources.params import FetchParams


def main(raw_dir: Path, images_dir: Path, manifests_dir: Path) -> None:
    params, source = load_section("split", SplitParams), load_section("fetch", FetchParams).path
    run = load_run_params()
    with open_engine(run) as engine:  # first, since its processes get ready meanwhile
        records, info = read_records(Path(source), raw_dir)
        check_several((record.class_name for record in records), info.name)  # before any image is encoded
        prepared = prepare_dataset(records, info, params, images_dir, manifests_dir, engine)
    counts = {split: sum(classes.values()) for split, classes in prepared.info.counts.items()}
    spread = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"split: {spread}; {prepared.encoded} encoded, {sum(counts.values()) - prepared.encoded} kept as they were")
    if prepared.rejected:
        print(f"split: images that cannot be used: {prepared.rejected}, see {manifests_dir / 'rejected.csv'}")
    for note in prepared.notes:
        print(f"split: {note}")


if __name__ == "__main__":
    run_stage(main)
