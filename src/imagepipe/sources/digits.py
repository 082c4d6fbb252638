"""scikit-learn's digits: 1,797 real 8×8 scans that come inside the package, so that nothing is downloaded."""

import gzip
import io
from importlib import resources
from pathlib import Path

import numpy as np

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import copy_file
from imagepipe.core.hashes import hash_file
from imagepipe.core.run import RunParams
from imagepipe.sources.params import FetchParams
from imagepipe.sources.records import ArrayPart, Record, SourceInfo, make_array_records

FILE = "digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
CLASSES = [str(digit) for digit in range(10)]
BRIGHTEST = 16  # the scans count the ink in 4×4 blocks, so a pixel is 0 to 16


def fetch(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Copy the file that scikit-learn ships into `raw_dir` and verify it.

    Raises InputError where `fetch.name` or `fetch.options` ask for something, EnvironmentFault where the installed
    scikit-learn ships other bytes.
    """
    if params.name or params.options:
        raise InputError("params.yaml: fetch.source is `digits`, which has no name and no options; set both to ''.")
    target = raw_dir / FILE
    with resources.as_file(resources.files("sklearn.datasets.data") / FILE) as shipped:
        copy_file(shipped, target)
    found = hash_file(target)
    if found != SHA256:
        raise EnvironmentFault(
            f"{FILE} of the installed scikit-learn has SHA-256 {found}, expected {SHA256}; "
            "install the versions of constraints.txt."
        )
    return SourceInfo(
        source="digits",
        name="digits",
        options={},
        licence="CC BY 4.0",
        citation="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, "
        "1998 (the test part, as shipped with scikit-learn)",
        homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        classes=CLASSES,
        files={FILE: SHA256},
    )


def read_records(source: Path, raw_dir: Path, info: SourceInfo) -> list[Record]:
    """The 1,797 scans in the order of the file, 0 to 16 stretched to 0 to 255; no official parts."""
    with gzip.open(raw_dir / FILE) as file:
        table = np.loadtxt(io.TextIOWrapper(file, "ascii"), delimiter=",", dtype=np.float64)
    ink = table[:, :-1].reshape(-1, 8, 8)
    images = np.rint(ink * (255 / BRIGHTEST)).astype(np.uint8)
    return make_array_records([ArrayPart("", FILE, images, table[:, -1].astype(np.int64))], info.classes, raw_dir)
