"""[torch] Weights that a model starts from (`train.pretrained`), and those that stay as they are (`train.freeze`).

Files are safetensors, or torch files read with `weights_only`: no code that a file holds is ever run.
"""

import http.client
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import Tensor, nn

from imagepipe.core.errors import EnvironmentFault, InputError, suggest_name
from imagepipe.core.hashes import hash_file
from imagepipe.models.classifier import Classifier
from imagepipe.models.timm_models import import_timm
from imagepipe.models.torchvision_models import find_first_convolution

Freeze = Literal["nothing", "body", "batch_norm"]
Tensors = dict[str, Tensor]

# DenseNet's published weights have names of before torch refused dots in them: `norm.1.weight` for `norm1.weight`.
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
# What torch.load raises for damaged files, found by damaging some 3,000.
DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def load_pretrained(model: Classifier, pretrained: str) -> list[str]:
    """Give `model` the weights that `train.pretrained` names; returns what is worth saying about it, in lines.

    `pretrained` is `none`, `default` (what torchvision or timm publish for the model) or the path of a file. What fits
    by name and shape is loaded, the rest stays as it was initialised. Raises InputError where nothing fits or the file
    cannot be used, EnvironmentFault where published weights cannot be had.
    """
    if pretrained == "none":
        return []
    tensors = fetch_default(model.info.model) if pretrained == "default" else read_tensors(Path(pretrained))
    own = model.body.state_dict()
    tensors = match_channels(model, strip_names(tensors))
    fitting = {name: tensors[name] for name in own if name in tensors and tensors[name].shape == own[name].shape}
    if not any(tensor.dim() for tensor in fitting.values()):  # batch norm's counter of batches fits everywhere
        raise InputError(
            f"train.pretrained: `{pretrained}` holds no tensor that fits `{model.info.model}` by name and shape; it "
            f"has {shorten(tensors)}, the model {shorten(own)}. Are they the weights of this model?"
        )
    model.body.load_state_dict(fitting, strict=False)
    line = f"pretrained: {len(fitting)} of {len(own)} tensors of the model were loaded"
    left = [name for name in own if name not in fitting]
    return [f"{line}; not in the file or of another shape: {', '.join(left)}" if left else line]


def check_pretrained(pretrained: str, sha256: str) -> None:
    """Raise InputError where the file that `pretrained` names is not the one of that SHA-256, or none is given.

    The hash is a value of the params, so that other weights of the same name are another run.
    """
    if pretrained in ("none", "default"):
        return
    path = Path(pretrained)
    check_file(path)
    found = hash_file(path)
    if not sha256:
        raise InputError(
            f"params.yaml: train.pretrained_sha256: is not given for {path}; if this is the file that you mean, set it "
            f"to\n    pretrained_sha256: {found}"
        )
    if found != sha256:
        raise InputError(
            f"train.pretrained: {path}: its SHA-256 is {found}, expected {sha256} (train.pretrained_sha256); bring the "
            "file that was meant, or set the hash to that of the new one."
        )


def shorten(tensors: Mapping[str, Tensor], shown: int = 3) -> str:
    """The first few names and shapes, for a message."""
    names = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:shown]]
    return ", ".join(names) + (", …" if len(tensors) > shown else "")


def fetch_default(name: str) -> Tensors:
    """The weights that torchvision or timm publish for the model `name`; they keep them in their own cache folders.

    Raises InputError where there are none, EnvironmentFault where they cannot be downloaded.
    """
    family, _, rest = name.partition(":")
    try:
        if family == "torchvision":
            return fetch_torchvision(rest)
        if family == "timm":
            return fetch_timm(rest)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise EnvironmentFault(
            f"train.pretrained is default, but the weights of `{name}` cannot be downloaded: there is no network, or "
            f"the server did not answer with the right file ({error}). Give the path of a file in train.pretrained, or "
            "set it to `none`."
        ) from error
    raise InputError(
        f"train.pretrained is default, but `{name}` has no published weights; only torchvision:<name> and timm:<name> "
        "have. Give the path of a file, or set it to `none`."
    )


def fetch_torchvision(name: str) -> Tensors:
    """torchvision's best weights for the model `name`, checked against the digits of their SHA-256 in the file name."""
    from torchvision import models

    weights: Any = models.get_model_weights(name)
    found = weights.DEFAULT.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    return {DENSENET.sub(r"\1", key): tensor for key, tensor in found.items()}


def fetch_timm(name: str) -> Tensors:
    """timm's weights for the model `name`, of three channels; InputError where timm has none."""
    timm = import_timm(name)
    if not timm.is_model_pretrained(name):
        raise InputError(
            f"train.pretrained is default, but timm has no weights for `{name}`; "
            f"{suggest_name(name, timm.list_models(pretrained=True))}."
        )
    return dict(timm.create_model(name, pretrained=True).state_dict())


def check_file(path: Path) -> None:
    """Raise InputError where there is no such file."""
    if not path.is_file():
        raise InputError(
            f"train.pretrained: {path}: no such file; give the path of a .safetensors or torch file, `none` or "
            "`default`."
        )


def read_tensors(path: Path) -> Tensors:
    """The tensors by name in a safetensors file (its name ends in .safetensors) or a torch file."""
    check_file(path)
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownMemberType]
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"train.pretrained: {path}: not a readable safetensors file ({error}).") from error
    found = read_torch_file(path)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = found if isinstance(found, Mapping) else {}
    tensors = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise InputError(
            f"train.pretrained: {path}: holds no tensors by name (a state dict, or one under `state_dict` or `model`)."
        )
    return tensors


def read_torch_file(path: Path) -> Any:
    """What torch saved in the file; raises InputError where it is no such file, or holds more than plain data."""
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip, or a pickle of the protocol that torch writes
        raise InputError(
            f"train.pretrained: {path}: not a readable torch or safetensors file; is it another's, or damaged?"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"train.pretrained: {path}: the file holds code (objects other than tensors), which reading it would run; "
            "it is refused. Save the state dict alone, best as .safetensors."
        ) from error
    except DAMAGED as error:
        raise InputError(f"train.pretrained: {path}: not a readable torch file ({error}); is it damaged?") from error


def strip_names(tensors: Tensors) -> Tensors:
    """Without `module.` (DataParallel's) and `body.` (our own model file's) before the names.

    What stands beside the body in our own file, mean and deviation, is never loaded: that follows train.normalize.
    """
    stripped = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("body.") for name in stripped):
        return {name.removeprefix("body."): tensor for name, tensor in stripped.items() if name.startswith("body.")}
    return stripped


def match_channels(model: Classifier, tensors: Tensors) -> Tensors:
    """For grey images, sum the first convolution's weights over red, green and blue."""
    if model.info.image.channels != 1 or not any(isinstance(module, nn.Conv2d) for module in model.body.modules()):
        return tensors
    first = find_first_convolution(model.body)
    name = f"{find_name(model.body, first)}.weight"
    if name in tensors and tensors[name].dim() == 4 and tensors[name].shape[1] == 3:
        return tensors | {name: tensors[name].sum(dim=1, keepdim=True)}
    return tensors


def find_name(body: nn.Module, wanted: nn.Module) -> str:
    """The name that `wanted` has inside `body`."""
    return next(name for name, module in body.named_modules() if module is wanted)


def find_heads(body: Any) -> list[nn.Module]:
    """The layers that give the logits: the last linear one or convolution, in the order of putting together.

    Some of timm's networks have several heads, for distillation or for several scales, whose mean are the logits.
    """
    layers = [module for module in body.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise InputError(f"train.freeze: {type(body).__name__} has no linear layer or convolution to train.")
    last = layers[-1]
    if not hasattr(body, "get_classifier"):  # what timm's networks have
        return [last]
    found = body.get_classifier()
    inside = {module for head in (found if isinstance(found, tuple) else (found,)) for module in head.modules()}
    return [layer for layer in layers if layer in inside and len(layer.weight) == len(last.weight)]


def freeze(model: Classifier, what: Freeze) -> None:
    """Keep from training what `train.freeze` names: `nothing`, `body` (all but the heads) or `batch_norm`.

    With the last two, batch norm stays in evaluation mode while the model trains: its running mean and variance are
    used, and stay. Dropout and stochastic depth go on, since they are choices of their own and keep no state. Raises
    InputError where `batch_norm` is asked of a model without any.
    """
    if what == "nothing":
        return
    norms = [module for module in model.body.modules() if isinstance(module, BATCH_NORMS)]
    if what == "batch_norm" and not norms:
        raise InputError(f"train.freeze: `batch_norm`, but `{model.info.model}` has none; set it to `nothing`.")
    set_trainable(norms if what == "batch_norm" else [model.body], False)
    if what == "body":
        set_trainable(find_heads(model.body), True)
    model.frozen = norms


def set_trainable(modules: Iterable[nn.Module], trainable: bool) -> None:
    """Let the weights of `modules` be trained, or not."""
    for module in modules:
        module.requires_grad_(trainable)
