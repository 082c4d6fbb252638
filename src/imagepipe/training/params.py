"""The `train:` section of params.yaml."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, StringConstraints, field_validator, model_validator

from imagepipe.core.config import Params, Sha256, refuse_output
from imagepipe.data.params import AugmentParams

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
MOST = 1e38  # where float32 ends, nearly
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, StringConstraints(min_length=1)]  # of an entry of a table, which says whether there is one


def check_batch_size(value: object) -> object:
    """One message for both of its kinds, where a union of types would give two."""
    if value == "all" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"found {value!r}; expected a whole number of 1 or more, or `all`")


BatchSize = Annotated[int | Literal["all"], PlainValidator(check_batch_size)]


class MlpParams(Params):
    """Choices of the model `mlp`."""

    hidden: Count


class CnnParams(Params):
    """Choices of the model `cnn`."""

    base: Count
    stem: Literal["pool", "stride"]
    dropout: Share


class ResnetSmallParams(Params):
    """Choices of the model `resnet_small`."""

    width: Count
    stem: Literal["full", "pool"]
    blocks: Count
    dropout: Share


class DropoutParams(Params):
    """Choices of models that another package has."""

    dropout: Share


class SgdParams(Params):
    """Arguments of `torch.optim.SGD`, by its names."""

    momentum: Share
    dampening: Share
    nesterov: bool

    @model_validator(mode="after")
    def nesterov_is_possible(self) -> Self:
        """Torch's own condition."""
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                f"nesterov is true with a momentum of {self.momentum} and a dampening of {self.dampening}; it needs "
                "a momentum above 0 and no dampening"
            )
        return self


class RmspropParams(Params):
    """Arguments of `torch.optim.RMSprop`, by its names."""

    alpha: Share
    eps: Positive
    momentum: Share
    centered: bool


class AdagradParams(Params):
    """Arguments of `torch.optim.Adagrad`, by its names."""

    lr_decay: NotNegative
    initial_accumulator_value: NotNegative
    eps: Positive


class AdamParams(Params):
    """Arguments of `torch.optim.Adam` and `AdamW`, by their names; torch has both betas in one."""

    beta1: Share
    beta2: Share
    eps: Positive
    amsgrad: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """As torch takes them."""
        return {"betas": (self.beta1, self.beta2), "eps": self.eps, "amsgrad": self.amsgrad}


class StepParams(Params):
    """Choices of the schedule `step`."""

    steps: Count
    factor: Annotated[float, Field(gt=0, le=1)]


class CosineParams(Params):
    """Choices of the schedule `cosine`."""

    end: Annotated[float, Field(ge=0, le=1)]


class OnecycleParams(Params):
    """Arguments of `torch.optim.lr_scheduler.OneCycleLR`, by its names."""

    pct_start: Annotated[float, Field(gt=0, lt=1)]
    div_factor: Annotated[float, Field(ge=1)]
    final_div_factor: Annotated[float, Field(ge=1)]


class TrainParams(Params):
    """`train:` in params.yaml; each key is explained there."""

    model: Name
    mlp: MlpParams
    cnn: CnnParams
    resnet_small: ResnetSmallParams
    torchvision: DropoutParams
    timm: DropoutParams
    pretrained: Annotated[str, StringConstraints(min_length=1)]
    pretrained_sha256: Sha256
    freeze: Literal["nothing", "body", "batch_norm"]
    normalize: Literal["none", "unit", "dataset", "imagenet"]
    epochs: Count
    batch_size: BatchSize
    eval_batch_size: Count
    train_measured: Annotated[int, Field(ge=0)]
    shuffle: bool
    drop_last: bool
    augment: AugmentParams
    keep: Literal["best", "last"]
    keep_by: Literal["val_accuracy", "val_balanced_accuracy", "val_loss"]
    patience: Annotated[int, Field(ge=0)]
    loss: Name
    label_smoothing: Share
    focal_gamma: NotNegative
    imbalance: Literal["none", "class_weights", "weighted_sampler", "focal"]
    optimizer: Name
    lr: Annotated[float, Field(gt=0, le=MOST)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    decay_norms_and_biases: bool
    sgd: SgdParams
    rmsprop: RmspropParams
    adagrad: AdagradParams
    adam: AdamParams
    schedule: Name
    warmup: Share
    step: StepParams
    cosine: CosineParams
    onecycle: OnecycleParams
    clip_norm: NotNegative
    ema_decay: Share
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["float32", "bfloat16"]
    compile: bool
    processes: Annotated[int, Field(ge=1, le=1024)]
    threads: Annotated[int, Field(ge=1, le=1024)]

    @field_validator("pretrained")
    @classmethod
    def stays_clear(cls, value: str) -> str:
        """The stages write their outputs anew, and the weights would be gone, or others."""
        refuse_output(value)
        return value

    @model_validator(mode="after")
    def every_wish_counts(self) -> Self:
        """A value that another one makes void is refused, not ignored."""
        if self.warmup and self.schedule == "onecycle":
            raise ValueError(
                f"warmup is {self.warmup} but schedule `onecycle` has a rise of its own (onecycle.pct_start); set "
                "warmup to 0, or another schedule"
            )
        loss = "focal" if self.imbalance == "focal" else self.loss
        if self.label_smoothing and loss != "cross_entropy":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} but the loss `{loss}` takes none; set it to 0, or loss to "
                "`cross_entropy`"
            )
        if self.pretrained_sha256 and self.pretrained in ("none", "default"):
            raise ValueError(
                f"pretrained_sha256 is given but pretrained is {self.pretrained}; it goes with the path of a file: set "
                "it to ''"
            )
        if self.freeze == "body" and self.pretrained == "none":
            raise ValueError(
                "freeze is body but pretrained is none: the last layer would read what random weights make; name "
                "weights in pretrained, or set freeze to nothing"
            )
        if self.imbalance == "focal" and self.loss not in ("cross_entropy", "focal"):
            raise ValueError(f"imbalance is focal but loss is `{self.loss}`; choose one of the two")
        return self

    @property
    def choices(self) -> dict[str, int | float | str]:
        """What the chosen model lets the user choose."""
        sections: dict[str, Params] = {
            "mlp": self.mlp,
            "cnn": self.cnn,
            "resnet_small": self.resnet_small,
            "torchvision": self.torchvision,
            "timm": self.timm,
        }
        family = self.model.partition(":")[0]
        return sections[family].model_dump() if family in sections else {}
