"""The body of a completion request, as OpenAI defines it, with the sampling options of charwright as further fields.

Nothing is ignored: a parameter that has no meaning here is refused, unless it has its neutral value.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from charwright.config import GenerationConfig
from charwright.passages import parse_until
from charwright.serve.hosting import LONGEST_NAME
from charwright.serve.limits import ServiceConfig
from charwright.serve.refusals import Refusal, bad

MOST_STOPS = 4
MOST_LOGPROBS = 5
LONGEST_STRING = 1000
SMALLEST_NUCLEUS = 1e-12
"""OpenAI allows a top_p of 0: the most likely character only, as with this."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
"""The values of unsupported parameters that change nothing."""
ADVICE = {
    "suffix": "the model reads forward only",
    "best_of": "request n texts and choose one by its logprobs",
    "logit_bias": "use ban or only",
    "presence_penalty": "use repetition_penalty",
    "frequency_penalty": "use repetition_penalty",
}

_FIELDS = {item.name: item for item in dataclasses.fields(GenerationConfig)}


def _bounds(name: str, **more: Any) -> Any:
    """The bounds and the help text of a generation option, as a field of the request."""
    metadata = _FIELDS[name].metadata
    names = {"minimum": "ge", "maximum": "le", "above": "gt", "below": "lt"}
    bounds = {short: metadata[long] for long, short in names.items() if metadata[long] is not None}
    return Field(description=metadata["help"], **(bounds | more))


def _neutral(name: str) -> Any:
    values = NEUTRAL[name]

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not any(value == neutral for neutral in values):
            raise PydanticCustomError("unsupported", f"is not supported: {ADVICE[name]}")
        return value

    described = Field(description=f"Not supported: {ADVICE[name]}.")
    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(values)}), described]


def _listed(value: Any) -> Any:
    """A string as a list of one."""
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """The prompts as a list; token ids are refused by name."""
    if value is None:
        return [""]
    value = _listed(value)
    if not isinstance(value, list) or not value or not all(isinstance(prompt, str) for prompt in value):
        tokens = isinstance(value, list) and any(isinstance(item, int | list) for item in value)
        hint = "; token ids are not supported" if tokens else ""
        raise PydanticCustomError("prompt", f"must be a string or a list of strings{hint}")
    return value


def _until(value: str | None) -> str | None:
    if value is not None and parse_until(value) is None:
        raise PydanticCustomError(
            "until", "must be word, line, paragraph or sentence, or a number of them such as '3 sentences'"
        )
    return value


def _or_list(**items: Any) -> dict[str, Any]:
    string = {"type": "string", **items}
    return {
        "anyOf": [string, {"type": "array", "items": string, "minItems": 1, "maxItems": MOST_STOPS}, {"type": "null"}]
    }


_PROMPT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "null"}]
}
_Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]
Stops = Annotated[
    Annotated[list[_Stop], Field(min_length=1, max_length=MOST_STOPS)] | None,
    BeforeValidator(_listed),
    WithJsonSchema(_or_list(minLength=1, maxLength=LONGEST_STRING)),
]


class StreamOptions(BaseModel):
    """What a stream contains besides the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(None, description="End the stream with the usage of the whole request.")
    include_obfuscation: Literal[False] | None = Field(None, description="Padding against observers is not supported.")


class CompletionRequest(BaseModel):
    """Continue one prompt or several. Tokens are characters."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, title="CompletionRequest")

    model: str = Field(max_length=LONGEST_NAME, description="The name of a model, from `GET /v1/models`.")
    prompt: Annotated[list[str], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)] = Field(
        [""], description="The text to continue, or several; an empty one starts at the beginning of a line or record."
    )
    max_tokens: int | None = Field(16, ge=0, description="Most characters of each continuation.")
    temperature: float | None = _bounds("temperature", default=1.0)
    top_p: float | None = _bounds("top_p", default=None, gt=None, ge=0)
    n: int | None = Field(1, ge=1, description="Texts for each prompt.")
    stop: Stops = Field(None, description="Stop before one of these texts, at most four.")
    seed: int | None = _bounds("seed", default=None)
    echo: bool | None = Field(False, description="Begin each text with its prompt.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MOST_LOGPROBS,
        description="Add ln p of each character, and as many of the most likely alternatives at its place.",
    )
    stream: bool | None = Field(False, description="Send the text as it grows, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    user: str | None = Field(None, max_length=LONGEST_NAME, description="A name for your user; it has no effect.")
    suffix: _neutral("suffix") = None  # type: ignore[valid-type]
    best_of: _neutral("best_of") = None  # type: ignore[valid-type]
    logit_bias: _neutral("logit_bias") = None  # type: ignore[valid-type]
    presence_penalty: _neutral("presence_penalty") = None  # type: ignore[valid-type]
    frequency_penalty: _neutral("frequency_penalty") = None  # type: ignore[valid-type]
    top_k: int | None = _bounds("top_k", default=None)
    min_p: float | None = _bounds("min_p", default=None)
    repetition_penalty: float | None = _bounds("repetition_penalty", default=1.0)
    until: Annotated[str | None, AfterValidator(_until)] = _bounds("until", default=None, max_length=LONGEST_STRING)
    max_copy: int | None = _bounds("max_copy", default=None)
    only: str | None = _bounds("only", default=None, max_length=65536)
    ban: str | None = _bounds("ban", default="", max_length=65536)
    label: str | None = Field(
        None,
        max_length=LONGEST_STRING,
        description="A label of the model, if it has labels. By default it is drawn; to score a prompt (`echo` with"
        " `logprobs`) it is required.",
    )

    @property
    def texts(self) -> int:
        """The number of texts requested."""
        return len(self.prompt) * (self.n or 1)

    @property
    def size(self) -> int:
        """The most characters that the answer can have, counted once more for each score."""
        prompts = sum(map(len, self.prompt)) if self.echo else 0
        characters = (self.length * len(self.prompt) + prompts) * (self.n or 1)
        return characters if self.logprobs is None else characters * (2 + self.logprobs)

    def generation(self, seed: int) -> GenerationConfig:
        """The options as those of the command line, with a seed that is given or drawn."""
        return GenerationConfig(
            length=max(1, self.length),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=None if self.top_p is None else max(self.top_p, SMALLEST_NUCLEUS),
            min_p=self.min_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            ban=self.ban or "",
            only=self.only,
            stop=tuple(self.stop or ()),
            until=self.until,
            max_copy=self.max_copy,
            seed=seed,
        )

    @property
    def length(self) -> int:
        """Most characters of each continuation."""
        return 16 if self.max_tokens is None else self.max_tokens


def parse(body: bytes, limits: ServiceConfig) -> CompletionRequest:
    """Read and check the body of a request.

    Raises:
        Refusal: 400, which names the parameter.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    _check_limits(request, limits)
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options", "requires stream")
    return request


def _check_limits(request: CompletionRequest, limits: ServiceConfig) -> None:
    if len(request.prompt) > limits.max_prompts:
        raise bad("prompt", f"has {len(request.prompt)} prompts; the limit is {limits.max_prompts}")
    if (longest := max(map(len, request.prompt))) > limits.max_prompt:
        message = f"has {longest:,} characters; the limit is {limits.max_prompt:,}"
        raise bad("prompt", message, "string_above_max_length")
    if (request.n or 1) > limits.max_n:
        raise bad("n", f"must be at most {limits.max_n}")
    if request.length > limits.max_tokens:
        raise bad("max_tokens", f"must be at most {limits.max_tokens:,} characters")
    if request.texts > limits.max_per_caller:
        raise bad("n", f"the request asks for {request.texts} texts; the limit is {limits.max_per_caller}")
    if request.size > limits.max_request:
        message = f"the answer could have {request.size:,} characters and scores; the limit is {limits.max_request:,}"
        raise bad("max_tokens", message)


def _refusal(error: ValidationError) -> Refusal:
    """The first problem of a body that is not valid."""
    problem = error.errors(include_url=False, include_context=True, include_input=False)[0]
    place, kind, message = [str(part) for part in problem["loc"]], problem["type"], problem["msg"]
    if kind == "json_invalid":
        return bad(None, f"the body is not valid JSON: {message.removeprefix('Invalid JSON: ')}")
    if not place:
        return bad(None, "the body must be a JSON object")
    name = ".".join(place if place[0] == "stream_options" else place[:1])
    if kind == "extra_forbidden":
        return bad(name, "is not a parameter of this API", "unknown_parameter")
    if kind == "missing":
        return bad(name, "is required", "missing_required_parameter")
    return bad(name, _plain(message))


def _plain(message: str) -> str:
    """Pydantic's message in the style of ours: `must be at most ...`."""
    message = re.sub(r"^(Input|String|List|Value|Dictionary) should", "must", message)
    return message.removesuffix(" after validation").split(" after validation, not")[0]
