"""The shapes of requests and answers, from which the OpenAPI description is made."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import File, Form, UploadFile
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field

from daclip import image


class Found(BaseModel):
    """One degradation and how probable it is."""

    name: str
    probability: float


class Applied(BaseModel):
    """One degradation that was treated, and how far."""

    name: str
    strength: float


class Model(BaseModel):
    """The model of this server."""

    name: str
    sha256: str


class Record(BaseModel):
    """What was found in a photo and done to it."""

    schema_: Literal["daclip.restore/1"] = Field(alias="schema")
    action: Literal["restored", "unchanged"]
    width: int
    height: int
    bits: int
    detected: list[Found]
    applied: list[Applied]
    sampler: str | None
    steps: int
    seed: int
    warnings: list[str]
    model: Model
    engine: str
    precision: str


class Detected(BaseModel):
    """What was found in a photo: all that reaches the threshold, and the probability of every word."""

    schema_: Literal["daclip.detect/1"] = Field(alias="schema")
    width: int
    height: int
    detected: list[Found]
    probabilities: list[Found]
    model: Model


class Error(BaseModel):
    """What is wrong, in the words of RFC 9457, with our kind and what to do."""

    type: str
    title: str
    status: int
    detail: str
    kind: str
    hint: str


class JobState(BaseModel):
    """How far a job is; `record` once it is done, `error` once it has failed."""

    id: str
    state: Literal["waiting", "working", "done", "failed", "cancelled"]
    part: float = Field(ge=0, le=1)
    record: Record | None
    error: dict[str, str] | None


class ModelInfo(Model):
    """A model and the words it knows."""

    kind: Literal["encoder", "one-pass", "diffusion"]
    words: list[str]
    sampler: str | None
    steps: int
    engine: str
    precision: str


class Health(BaseModel):
    """How the server is."""

    status: Literal["alive", "ready"]
    version: str
    waiting: int
    working: int


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The fields of a request, checked against their types."""

    task: str
    strength: str
    seed: int
    sampler: str | None
    steps: int | None
    format: image.Format | None
    quality: int | None
    strip_metadata: bool


def wishes_of(
    task: Annotated[
        str, Form(max_length=200, description="`auto`, or a comma list", examples=["auto"])
    ] = "auto",
    strength: Annotated[
        str,
        Form(max_length=200, description="0 to 1, or one for each degradation", examples=["1", "noisy=0.4"]),
    ] = "1",
    seed: Annotated[int, Form(ge=0, lt=2**32, description="Same seed, same pixels")] = 0,
    sampler: Annotated[
        Literal["posterior", "sde", "ode", "mrs"] | None, Form(description="Of a diffusion model")
    ] = None,
    steps: Annotated[int | None, Form(ge=1, le=1000, description="Of a diffusion model")] = None,
    format: Annotated[image.Format | None, Form(description="Of the result; else as the photo")] = None,
    quality: Annotated[int | None, Form(ge=1, le=100, description="Of JPEG, WebP and AVIF")] = None,
    strip_metadata: Annotated[bool, Form(description="Drop EXIF (with GPS), XMP and IPTC")] = False,
) -> Wishes:
    """The form's fields; they are those of `daclip restore`."""
    return Wishes(
        task=task,
        strength=strength,
        seed=seed,
        sampler=sampler,
        steps=steps,
        format=format,
        quality=quality,
        strip_metadata=strip_metadata,
    )


Upload = Annotated[UploadFile, File(alias="image", description="The photo, as a file")]
JobId = Annotated[str, PathParameter(max_length=64, description="As in `Location`")]
