"""The shapes of the answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Logprobs(_Shape):
    """One entry for each character; null where the model has nothing before it to predict from."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(_Shape):
    """One text."""

    index: int = Field(description="The number of the prompt times n, plus the number of the text.")
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]
    label: str | None = Field(None, description="The label, given or drawn; only of models with labels.")


class Usage(_Shape):
    """Characters. Each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(_Shape):
    """The texts of a request. A stream has the same in parts, each with one choice."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    seed: int = Field(description="The seed, given or drawn: the same one gives the same texts again.")
    unknown_characters: str | None = Field(
        default=None,
        description="The characters of the prompts that the model has never seen, each once, the first 20; absent if"
        " there are none.",
    )
    choices: list[Choice]
    usage: Usage


class Model(_Shape):
    """A run that the service generates with."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    labels: list[str] = Field(description="What `label` may be; empty for most models.")


class ModelList(_Shape):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class Problem(_Shape):
    """What is wrong."""

    message: str
    type: str
    param: str | None = Field(description="The parameter at fault.")
    code: str | None


class ErrorAnswer(_Shape):
    """The answer when a request is refused."""

    error: Problem


class Status(_Shape):
    """The state of the service."""

    status: Literal["alive", "ready", "ending", "failed"]
