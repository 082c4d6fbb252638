"""train: fit the model on train, choose the epoch by val."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
# Threads that wait give way soon: spinning, an epoch takes many times as long where other work shares the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Large tensors get large pages: for photographs, touching new memory takes most of the time of normalising them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# cuBLAS repeats its sums bit for bit with a workspace of this kind only
# (https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from imagepipe.core.lifetime import guard_stage

if __name__ == "__main__":
    guard_stage()  # before what takes long to import

from imagepipe.core.config import load_section
from imagepipe.core.run import load_run_params
from imagepipe.core.stage import run_stage
from imagepipe.models.runtime import fix_arithmetic
from imagepipe.training.devices import find_device
from imagepipe.training.group import is_launched, join_group, launch, report_failure
from imagepipe.training.params import TrainParams
from imagepipe.training.train import Trained, train_model


def main(manifests_dir: Path, images_dir: Path, model_path: Path, reports_dir: Path) -> None:
    params, run = load_section("train", TrainParams), load_run_params()
    if params.processes > 1 and not is_launched():
        launch(params.processes, [sys.executable, *sys.argv])
        return
    with report_failure(), join_group(params.processes, find_device(params.device)) as group:
        fix_arithmetic(params.threads, compiles=params.compile)
        trained = train_model(manifests_dir, images_dir, params, run, model_path, reports_dir, group)
        if group.leads:
            describe(trained, params.epochs)


def describe(trained: Trained, epochs: int) -> None:
    kept = trained.kept
    print(
        f"train: epoch {kept['epoch']} of {epochs} is kept: "
        f"train accuracy {100 * kept['train_accuracy']:.2f} %, val accuracy {100 * kept['val_accuracy']:.2f} % "
        f"(always the most frequent class: {100 * trained.baseline:.2f} %)"
    )
    print(f"train: {trained.suggestion}")


if __name__ == "__main__":
    run_stage(main)
