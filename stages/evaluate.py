"""evaluate: predict val and test once, derive every figure from the predictions, and write the page."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
# As in train: threads that wait give way soon, and large tensors get large pages.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from imagepipe.core.lifetime import guard_stage

if __name__ == "__main__":
    guard_stage()  # before what takes long to import

from imagepipe.core.config import PARAMS_FILE, SECTIONS, AnyParams, check_section, read_yaml
from imagepipe.core.run import count_jobs, load_run_params
from imagepipe.core.stage import run_stage
from imagepipe.data.pixels import open_cache
from imagepipe.evaluation.metrics import describe_accuracy
from imagepipe.evaluation.params import EvaluateParams, LossParams
from imagepipe.evaluation.predictions import predict_splits
from imagepipe.models.runtime import fix_arithmetic
from imagepipe.report.page import write_page
from imagepipe.report.results import check_reports, write_results


def main(
    model_path: Path,
    manifests_dir: Path,
    images_dir: Path,
    balance_dir: Path,
    train_dir: Path,
    results_dir: Path,
    page_path: Path,
) -> None:
    document, run = read_yaml(PARAMS_FILE), load_run_params()  # once: it may be edited while images are predicted
    params = check_section("evaluate", EvaluateParams, *document, PARAMS_FILE)
    loss = check_section("train", LossParams, *document, PARAMS_FILE)
    values = {name: check_section(name, AnyParams, *document, PARAMS_FILE).values for name in SECTIONS if name != "run"}
    check_reports(balance_dir, train_dir)
    fix_arithmetic(params.threads, compiles=False)
    predictions, model = predict_splits(
        model_path, manifests_dir, images_dir, params.batch_size, count_jobs(run), open_cache(run)
    )
    metrics = write_results(predictions, images_dir, balance_dir, train_dir, results_dir, params, loss)
    del predictions  # of a million images they are half a gigabyte, and the page reads those that were written
    write_page(page_path, results_dir, balance_dir, train_dir, manifests_dir, images_dir, model, params, values)
    print(f"evaluate: {describe_accuracy(metrics['test'], params.confidence)}; see {page_path}")


if __name__ == "__main__":
    run_stage(main)
