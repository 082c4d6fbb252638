"""The `evaluate:` section of params.yaml, and what of `train:` the curves are called by."""

from typing import Annotated

from pydantic import ConfigDict, Field

from imagepipe.core.config import Params


class EvaluateParams(Params):
    """`evaluate:` in params.yaml; each key is explained there."""

    batch_size: Annotated[int, Field(ge=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100, le=100_000)]
    top_k: Annotated[int, Field(ge=2)]
    gallery: Annotated[int, Field(ge=1, le=400)]
    intended_use: str
    limits: str
    threads: Annotated[int, Field(ge=1, le=1024)]


class LossParams(Params):
    """What of `train:` in params.yaml says which loss the updates were made by."""

    model_config = ConfigDict(extra="ignore")

    loss: str
    imbalance: str
