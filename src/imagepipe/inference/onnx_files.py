"""[torch] `imagepipe export --onnx`: a model as an ONNX file, written only once it predicts what PyTorch predicts.

| | name | type | shape |
|---|---|---|---|
| input | `images` | uint8 | (N, C, H, W), any N |
| output | `logits` | float32 | (N, classes) |
| output | `probabilities` | float32 | (N, classes), the softmax of the logits |

Both outputs, since programs want the one or the other, and those that make probabilities themselves are the ones that
take the softmax twice, or of the wrong axis. Normalising is inside, as in the model file. The file's metadata hold, as
JSON, `classes` (names in the order of the outputs), `image` (mode, height, width), `conversion` (`split.image`, for
what is to be done to an image before), `manifests` (SHA-256 of the train and val manifests); and `model_sha256`.
"""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import write_bytes
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import read_dataset_info, read_split
from imagepipe.data.dataset import ManifestDataset
from imagepipe.evaluation.predictions import check_fit
from imagepipe.models.classifier import Classifier, ModelInfo, load_classifier

PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # torch's exporter needs the last
OPSET = 18  # the least that torch's exporter writes without converting: the most runtimes read it
MOST_BYTES = 2**31 - 2**20  # a file of protocol buffers holds 2 GiB
CHECKED = 256  # images, at most
ALONE = 16  # of them, that are checked in batches of one, too
BATCH = 64
# Of the largest logit. The sums are taken in another order, in float32: measured, that gives 1e-7 to 1e-6. A layer that
# is missing, or means something else, gives 1e-2 and more. In between nothing is known to lie.
TOLERANCE = 1e-4
REMEDY = f"nothing was written. Are torch, {', '.join(PACKAGES)} of the versions that constraints.txt names?"


@dataclass(frozen=True, slots=True)
class Sample:
    """uint8 images (N, C, H, W) to check on, and what they are, in words."""

    images: Tensor
    words: str


@dataclass(frozen=True, slots=True)
class Compared:
    """The largest difference of two sets of logits, the largest of the logits, and how many images got another class,
    which are ties."""

    difference: float
    largest: float
    ties: int

    def describe(self) -> str:
        """One line."""
        ties = f"{self.ties} other classes, in ties" if self.ties else "the same classes"
        return (
            f"{ties}, and logits that differ by {self.difference:.1e} at most, {self.difference / self.largest:.1e} of "
            f"the largest ({TOLERANCE:g} is allowed)"
        )


class Exported(nn.Module):
    """The classifier with both outputs: logits and probabilities, (N, classes) each."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.model(images)
        return logits, torch.softmax(logits, dim=1)


def export_onnx(model_path: Path, out: Path, manifests_dir: Path, images_dir: Path) -> list[str]:
    """Write the model at `model_path` to `out`, and return what is to be said of it, in lines.

    It is checked on the test images of the manifests, on random ones where they are not at hand or not the model's.

    Raises InputError where the model cannot be read or exported, EnvironmentFault where the packages are not installed,
    the file predicts anything else than the model, or cannot be written. Nothing is written then.
    """
    onnx, runtime = import_onnx()
    model = load_classifier(model_path)
    check_size(model, model_path)
    data = make_file(onnx, model, model_path)
    sample = choose_sample(model.info, model_path, manifests_dir, images_dir)
    compared = compare_logits(open_session(runtime, data), model, sample.images)
    write_bytes(out, data)
    channels, height, width = sample.images.shape[1:]
    return [
        f"export: {out}: uint8 images (N, {channels}, {height}, {width}) in, logits and probabilities of "
        f"{len(model.info.classes)} classes out",
        f"export: checked against PyTorch on {sample.words}, in batches of {BATCH} and of 1: {compared.describe()}",
    ]


def import_onnx() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime; raises EnvironmentFault where what the extra brings is not installed."""
    try:
        onnx, runtime, _ = map(importlib.import_module, PACKAGES)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise EnvironmentFault(
            f"`imagepipe export --onnx` needs the package {error.name}, which is not installed; "
            "in the project's folder, `pip install -c constraints.txt -e '.[onnx]'` brings it."
        ) from error
    return onnx, runtime


def check_size(model: Classifier, model_path: Path) -> None:
    """Raise InputError for a model that no single ONNX file can hold."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > MOST_BYTES:
        raise InputError(f"{model_path}: its weights take {size / 2**30:.1f} GiB; an ONNX file can hold 2 GiB.")


def make_file(onnx: Any, model: Classifier, model_path: Path) -> bytes:
    """The bytes of the ONNX file: the same for the same model and the same versions of torch, onnx and onnxscript."""
    image = model.info.image
    example = torch.zeros(2, image.channels, image.height, image.width, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            Exported(model).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{model_path}: torch cannot export `{model.info.model}` as ONNX: {said}") from error
    if program is None:
        raise InputError(f"{model_path}: torch cannot export `{model.info.model}` as ONNX.")
    proto = program.model_proto
    remove_traces(proto.graph)
    onnx.helper.set_model_props(proto, describe_file(model.info, hash_file(model_path)))
    onnx.checker.check_model(proto)
    return proto.SerializeToString(deterministic=True)


def remove_traces(graph: Any) -> None:
    """Take out what the exporter notes about where each node comes from: places in the code of this machine."""
    parts = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def describe_file(info: ModelInfo, model_sha256: str) -> dict[str, str]:
    """What the metadata say."""
    described: dict[str, object] = {
        "classes": info.classes,
        "image": info.image.model_dump(),
        "conversion": info.conversion,
        "manifests": info.manifests,
    }
    texts = {name: json.dumps(value, sort_keys=True, ensure_ascii=False) for name, value in described.items()}
    return texts | {"model_sha256": model_sha256}


def choose_sample(info: ModelInfo, model_path: Path, manifests_dir: Path, images_dir: Path) -> Sample:
    """Test images, evenly spread over the manifest; random ones, and why, where there are none that fit the model."""
    try:
        dataset_info = read_dataset_info(manifests_dir / "dataset.json")
        check_fit(info, dataset_info, model_path)
        table = read_split(manifests_dir, "test", dataset_info)
        dataset = ManifestDataset(manifests_dir / "test.csv", images_dir, classes=info.classes, table=table)
        count = min(CHECKED, len(dataset))
        images = [dataset[index][0] for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist()]
        return Sample(torch.stack(images), f"{count} of {len(dataset)} test images")
    except InputError as error:
        shape = (BATCH, info.image.channels, info.image.height, info.image.width)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        reason = str(error).partition("\n")[0]
        return Sample(images, f"{BATCH} random images, since there are no test images that fit ({reason})")


def open_session(runtime: Any, data: bytes) -> Any:
    """The file, in onnxruntime on the processor."""
    return runtime.InferenceSession(data, providers=["CPUExecutionProvider"])


def compare_logits(session: Any, model: Classifier, images: Tensor) -> Compared:
    """Run both on the images, the file in batches of BATCH, and on the first of them in batches of one.

    Raises EnvironmentFault where the logits differ by more than TOLERANCE of the largest one, or the probabilities are
    not their softmax. Where they do not, another class can only be one whose logit lies within twice the tolerance of
    the model's own: a tie, for arithmetic of that precision.
    """
    with torch.inference_mode():
        expected = torch.cat([model(batch) for batch in images.split(BATCH)])
    largest = float(expected.abs().max())
    difference, ties = 0.0, 0
    for logits, probabilities in (run_file(session, images, BATCH), run_file(session, images[:ALONE], 1)):
        part = expected[: len(logits)]
        if not bool(torch.allclose(probabilities, torch.softmax(logits, dim=1), rtol=0, atol=TOLERANCE)):
            raise EnvironmentFault(f"the exported file's probabilities are not the softmax of its logits; {REMEDY}")
        # The larger of the two, and a NaN where there is one, which `max` would lose.
        difference = float(torch.tensor([difference, float((logits - part).abs().max())]).max())
        ties = max(ties, int((logits.argmax(dim=1) != part.argmax(dim=1)).sum()))
    if not difference <= TOLERANCE * largest:  # nor is a NaN
        raise EnvironmentFault(
            f"the exported file gives other logits than PyTorch: they differ by {difference:.1e}, which is "
            f"{difference / largest:.1e} of the largest, where {TOLERANCE:g} is allowed; {REMEDY}"
        )
    return Compared(difference, largest, ties)


def run_file(session: Any, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Logits and probabilities (N, classes) of uint8 images (N, C, H, W)."""
    names = ["logits", "probabilities"]
    parts = [session.run(names, {"images": batch.numpy()}) for batch in images.split(batch_size)]
    logits, probabilities = (torch.from_numpy(np.concatenate(found)) for found in zip(*parts, strict=True))
    return logits, probabilities
