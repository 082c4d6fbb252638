"""The `train:` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from imagepipe.core.config import Params
from imagepipe.data.params import AugmentParams

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class MlpParams(Params):
    """Choices of the model `mlp`."""

    hidden: Count


class CnnParams(Params):
    """Choices of the model `cnn`."""

    base: Count
    stem: Literal["pool", "stride"]
    dropout: Share


class TrainParams(Params):
    """`train:` in params.yaml; each key is explained there."""

    model: Annotated[str, StringConstraints(min_length=1)]
    mlp: MlpParams
    cnn: CnnParams
    normalize: Literal["none", "unit", "dataset", "imagenet"]
    epochs: Count
    batch_size: Count
    eval_batch_size: Count
    train_measured: Annotated[int, Field(ge=0)]
    shuffle: bool
    drop_last: bool
    augment: AugmentParams
    keep: Literal["best", "last"]
    optimizer: Literal["sgd", "rmsprop", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "onecycle"]
    label_smoothing: Share
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["cpu"]
    threads: Annotated[int, Field(ge=1, le=1024)]

    @model_validator(mode="after")
    def momentum_is_used(self) -> Self:
        """A momentum that the optimiser would ignore is refused, not ignored."""
        if self.momentum and self.optimizer in ("adam", "adamw"):
            raise ValueError(
                f"momentum is {self.momentum} but optimizer `{self.optimizer}` takes none (it has its own averages); "
                "set momentum to 0, or optimizer to `sgd` or `rmsprop`"
            )
        return self

    @property
    def choices(self) -> dict[str, int | float | str]:
        """What the chosen model lets the user choose."""
        sections: dict[str, Params] = {"mlp": self.mlp, "cnn": self.cnn}
        return sections[self.model].model_dump() if self.model in sections else {}
