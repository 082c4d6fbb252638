"""The `split:` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from imagepipe.core.config import Params

Fraction = Annotated[float, Field(ge=0, le=1)]
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # what `image.formats` may name; PPM is PGM and PBM too


class Fractions(Params):
    """Shares of the three splits; they sum to 1."""

    train: Fraction
    val: Fraction
    test: Fraction

    @model_validator(mode="after")
    def sum_to_one(self) -> Self:
        """Shares that do not sum to 1 are a mistake, not something to rescale."""
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train, val and test sum to {total:.10g}; expected 1")
        if self.train == 0:
            raise ValueError("train is 0; expected more")
        return self


class ImageParams(Params):
    """`split.image`: which images are taken, and what is made of them."""

    formats: str
    max_pixels: Annotated[int, Field(ge=1, le=1_000_000_000)]
    mode: Literal["keep", "L", "RGB"]
    height: Annotated[int, Field(ge=0, le=65_535)]
    width: Annotated[int, Field(ge=0, le=65_535)]
    fit: Literal["resize", "crop", "pad"]
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    background: Annotated[int, Field(ge=0, le=255)]
    animation: Literal["refuse", "first"]

    @field_validator("formats")
    @classmethod
    def names_formats(cls, value: str) -> str:
        """At least one word, each a format that we open."""
        unknown = [name for name in value.split() if name not in FORMATS]
        if unknown or not value.split():
            raise ValueError(f"found {value!r}; expected words out of {', '.join(FORMATS)}")
        return value

    @model_validator(mode="after")
    def both_sides(self) -> Self:
        """One side alone would leave the images at different sizes."""
        if (self.height == 0) != (self.width == 0):
            raise ValueError(f"height is {self.height} and width {self.width}; expected both 0 or both above 0")
        return self


class SplitParams(Params):
    """`split:` in params.yaml; each key is explained there."""

    first: Annotated[int, Field(ge=0)]
    image: ImageParams
    max_rejected: Annotated[int, Field(ge=0)]
    strategy: Literal["official", "stratified", "group", "hash", "kfold", "random", "ordered"]
    fractions: Fractions
    val_as_test: bool
    folds: Annotated[int, Field(ge=2, le=1000)]
    fold: Annotated[int, Field(ge=0)]
    order_column: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    limit_per_split: Annotated[int, Field(ge=0)]
    limit_choice: Literal["balanced", "random"]
    leaks: Literal["auto", "error", "drop", "keep"]
    near_distance: Annotated[int, Field(ge=-1, le=8)]
    layout: Literal["single", "folders", "shards"]

    @model_validator(mode="after")
    def fold_exists(self) -> Self:
        """Folds count from 0."""
        if self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}; expected 0 to {self.folds - 1} (split.folds is {self.folds})")
        return self
