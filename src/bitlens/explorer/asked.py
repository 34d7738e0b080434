"""What the page may ask of the language model: the form of every question, strictly."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field

MOST = 256  # latents or positions in one question

Latent = Annotated[int, Field(ge=0, le=1 << 31)]
Value = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Position = Annotated[int, Field(ge=-(1 << 31), le=1 << 31)]
Latents = Annotated[list[Latent], Field(max_length=MOST)]
Digits = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Asked(BaseModel):
    """Nothing is taken for something else, and nothing beside what is known."""

    model_config = ConfigDict(strict=True, extra="forbid")


class TextAsked(Asked):
    """A text to be read."""

    text: str


class ContinueAsked(Asked):
    """How a text is to be gone on with. temperature 0: always by the likeliest token."""

    tokens: Annotated[int, Field(ge=0, le=200)] = 30
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.8
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] = 0


class HoldAsked(TextAsked):
    """A text, and latents to be held in it."""

    holds: Annotated[dict[Digits, Value], Field(max_length=MOST)]
    positions: Annotated[list[Position], Field(max_length=MOST)] | None = None
    others: Literal["kept", "searched"] = "kept"
    continue_: Annotated[ContinueAsked | None, Field(alias="continue")] = None


class NearAsked(TextAsked):
    """A token of a text."""

    position: Annotated[int, Field(ge=0, le=1 << 31)]
    limit: Annotated[int, Field(ge=1, le=50)] = 10


class FindAsked(Asked):
    """Latents that are to be on, and off."""

    on: Latents = Field(default_factory=list)
    off: Latents = Field(default_factory=list)
    limit: Annotated[int, Field(ge=1, le=50)] = 10


def sentence(error: RequestValidationError) -> str:
    """What is wrong with a question."""
    first = error.errors()[0]
    parts = (str(part) for part in first["loc"] if part != "body")
    # whoever asks may name a field anything: what is no name is not said again
    place = ".".join(part for part in parts if part.isidentifier() or part.isdecimal())[:80]
    if first["type"] in ("json_invalid", "model_attributes_type"):
        return "The question is not JSON of the form that is expected."
    message = str(first["msg"])[:200].rstrip(".")
    where = f"In the question, '{place}'" if place else "The question"
    return f"{where} is not as it should be: {message[:1].lower()}{message[1:]}."
