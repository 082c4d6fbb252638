"""[torch] The train stage: manifests and images in, a model file and its history out. The test split is never read."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.run import RunParams, find_cache_root
from imagepipe.data.batches import make_eval_loader
from imagepipe.models.classifier import Classifier, save_classifier
from imagepipe.models.runtime import report_memory
from imagepipe.training.checkpoints import Checkpoints
from imagepipe.training.diagnosis import suggest_remedy
from imagepipe.training.group import ALONE, Group
from imagepipe.training.identity import identify_run
from imagepipe.training.loop import Fit, Row, fit
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress
from imagepipe.training.reports import measure_baseline, summarise, write_reports
from imagepipe.training.setup import choose_options, open_loaders, sample_positions, set_up, weigh_classes


@dataclass(frozen=True, slots=True)
class Trained:
    """The model of the epoch that is kept, and that epoch's row of the history: how it did on train and on val.

    `baseline` is the accuracy on val of always saying the class that is most frequent in train.
    """

    model: Classifier
    kept: Row
    baseline: float

    @property
    def suggestion(self) -> str:
        """What to try next."""
        return suggest_remedy(self.kept["train_accuracy"], self.kept["val_accuracy"], self.baseline)


def train_model(
    manifests_dir: Path,
    images_dir: Path,
    params: TrainParams,
    run: RunParams,
    model_path: Path,
    reports_dir: Path,
    group: Group = ALONE,
) -> Trained:
    """Train on the manifests, write the model file, `history.csv`, `steps.csv` and `metrics.json`.

    What became of pretrained weights is printed first, when there is still time to stop for it.
    The tables and metrics are rewritten after each epoch, so that plots can be followed while it runs. What is
    measured, train images too, is not augmented. A run that was interrupted goes on from its last checkpoint, and
    leaves the same bytes. Of a `group`, the leading process writes.
    """
    setup = set_up(manifests_dir, images_dir, params, group)
    info, train, model, device = setup.info, setup.train, setup.model, setup.device
    options = choose_options(run, device, group)
    if group.leads:
        for note in setup.notes:
            print(f"train: {note}", flush=True)
    else:
        group.take_turns()  # the leading process decodes what is not in the cache
    # The first loader: what it decodes is shared by the others, and by the images that go through a transform.
    train_sample = make_eval_loader(train, params.eval_batch_size, options, sample_positions(len(train), params))
    if group.leads:
        group.take_turns()
    loaders = open_loaders(setup, setup.val, params, options)

    model.to(device)
    if params.compile:
        model.compile()
    class_weights = weigh_classes(params, info, device)
    weights, baseline = sum(weight.numel() for weight in model.parameters()), measure_baseline(info)

    def write(result: Fit, durable: bool = False) -> None:
        if group.leads:
            write_reports(reports_dir, result, summarise(result, baseline, weights), durable)

    key = identify_run(params, info, manifests_dir, device)
    checkpoints = Checkpoints(find_cache_root(run) / "checkpoints", key, 60 * run.checkpoint_minutes, group)
    images_per_epoch = min(len(train), len(loaders.train) * setup.batch_size)
    with report_faults(), Progress(params.epochs, images_per_epoch, shown=group.leads) as progress:
        result = fit(model, loaders, train_sample, params, progress, write, class_weights, checkpoints, group)
    model.load_state_dict(result.kept_weights)
    if group.leads:
        save_classifier(model, model_path)
        write(result, durable=True)
        checkpoints.remove()
    return Trained(model, result.kept, baseline)


@contextmanager
def report_faults() -> Generator[None]:
    """Say what helps where memory is short, or a process that loads batches has ended."""
    remedy = "reduce train.batch_size or train.eval_batch_size, or the size of the model"
    try:
        with report_memory("training", remedy):
            yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # one that dies as it hands a batch over breaks a pipe
        said = str(error).partition("\n")[0] or type(error).__name__
        if "DataLoader worker" in said or isinstance(error, ConnectionError | EOFError):
            if threading.current_thread() is threading.main_thread():
                # torch's handler raises at every further sign of that process's end, and would cut this message short
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise EnvironmentFault(
                f"a process that loads batches has ended ({said}); memory may have been short: reduce run.workers "
                "(0 loads in the main process), or train.batch_size."
            ) from error
        raise
