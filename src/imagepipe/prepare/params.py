"""The `split:` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from imagepipe.core.config import Params

Fraction = Annotated[float, Field(ge=0, le=1)]


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
            raise ValueError(f"train, val and test sum to {total:g}; expected 1")
        if self.train == 0:
            raise ValueError("train is 0; expected more")
        return self


class SplitParams(Params):
    """`split:` in params.yaml; each key is explained there."""

    first: Annotated[int, Field(ge=0)]
    strategy: Literal["stratified", "random", "ordered"]
    fractions: Fractions
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    limit_per_split: Annotated[int, Field(ge=0)]
    limit_choice: Literal["balanced", "random"]
    layout: Literal["single"]
