"""[torch] What decides the bytes of a run, by which its checkpoints are told from those of another."""

import json
import platform
from importlib import metadata
from pathlib import Path

import torch

from imagepipe.core.hashes import hash_bytes, hash_file
from imagepipe.core.manifest import DatasetInfo
from imagepipe.training.params import TrainParams


def identify_run(params: TrainParams, info: DatasetInfo, manifests_dir: Path, device: str) -> dict[str, str]:
    """All that decides the bytes of a run, by name: a checkpoint of another run is of no use.

    The manifests hold the hashes of all pixels. Processors are told apart by what torch makes use of.
    """
    kept = {name: find_version(name) for name in ("torch", "torchvision", "numpy", "pillow", "timm")}
    processor = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    if device.startswith("cuda"):
        processor.append(torch.cuda.get_device_name(device))
    data = [hash_file(manifests_dir / name) for name in ("dataset.json", "train.csv", "val.csv")]
    return {
        "params": params.model_dump_json(),
        "data": " ".join(data),
        "classes": json.dumps(info.classes),
        "code": hash_code(),
        "versions": json.dumps(kept),
        "processor": " ".join([*processor, device.partition(":")[0]]),
    }


def find_version(package: str) -> str:
    """The version that is installed; '' where none is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def hash_code() -> str:
    """SHA-256 over the code of the packages that training runs."""
    package = Path(__file__).resolve().parents[1]
    files = [path for room in ("core", "data", "models", "training") for path in (package / room).glob("*.py")]
    return hash_bytes("".join(f"{path.name} {hash_file(path)}\n" for path in sorted(files)).encode())
