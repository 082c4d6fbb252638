"""`train.augment` in params.yaml: how train images are changed before the model sees them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from imagepipe.core.config import Params

Chance = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0)]

# The values that change nothing; `interpolation` and `transform` are no kinds of change by themselves.
NEUTRAL = {
    "crop_padding": 0,
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "degrees": 0.0,
    "translate": 0.0,
    "scale_min": 1.0,
    "scale_max": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "erasing": 0.0,
}


class AugmentParams(Params):
    """`train.augment`; each key is explained in params.yaml."""

    crop_padding: Annotated[int, Field(ge=0)]
    horizontal_flip: Chance
    vertical_flip: Chance
    degrees: Annotated[float, Field(ge=0, le=180)]
    translate: Chance
    scale_min: Factor
    scale_max: Factor
    interpolation: Literal["nearest", "bilinear"]
    brightness: Annotated[float, Field(ge=0)]
    contrast: Annotated[float, Field(ge=0)]
    erasing: Chance
    transform: str

    @model_validator(mode="after")
    def scales_are_a_range(self) -> Self:
        """The smaller scale comes first."""
        if self.scale_min > self.scale_max:
            raise ValueError(
                f"scale_min is {self.scale_min} and scale_max is {self.scale_max}; expected scale_min to be at most "
                "scale_max (both 1.0 change nothing)"
            )
        return self

    @model_validator(mode="after")
    def one_of_the_two(self) -> Self:
        """A transform takes the place of our own augmentation."""
        if self.transform.strip() and self.changes:
            raise ValueError(
                f"transform is {self.transform!r} and {', '.join(self.changes)} too would change the images; set one "
                "of the two: transform to '', or these to what changes nothing (see recipes/base.yaml)"
            )
        return self

    @property
    def changes(self) -> list[str]:
        """The keys whose values change images, in the order of params.yaml."""
        return [name for name, neutral in NEUTRAL.items() if getattr(self, name) != neutral]
