"""The OpenAPI document of the service, and a page that shows it without outside resources."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from charwright import __version__
from charwright.serve.limits import ServiceConfig
from charwright.serve.pages import Page, page_of
from charwright.serve.requests import CompletionRequest
from charwright.serve.schemas import Completion, ErrorAnswer, Model, ModelList, Status

Schema = dict[str, Any]

ABOUT = (
    "Runs of charwright behind OpenAI's completions API. A token is a character. Errors are OpenAI's error object,"
    " which names the parameter at fault."
)
_TEXT = {"schema": {"type": "string"}}
_DATA = {"type": "string", "description": "A part of the answer as JSON, an error, or [DONE]."}
_EVENTS = {"schema": {"type": "object", "properties": {"data": _DATA}, "required": ["data"]}}
REASONS = {
    "400": "A parameter is wrong; `param` names it.",
    "401": "The API key is missing or wrong.",
    "403": "The host name or the origin is not allowed.",
    "404": "There is no such model or route.",
    "405": "The method is not allowed.",
    "408": "The body did not arrive.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "This caller has too many texts in progress; Retry-After says when to try again.",
    "500": "A defect of the service.",
    "503": "The service is full or ending; Retry-After says when to try again. Or the request took longer than the"
    " service allows; then there is no Retry-After, and `x-should-retry` is false.",
}
SHAPES: tuple[type[BaseModel], ...] = (CompletionRequest, Completion, ErrorAnswer, Model, ModelList, Status)


def document(limits: ServiceConfig, *, keys: bool) -> Schema:
    """The OpenAPI 3.1 document. With `keys`, requests need an API key."""
    _, definitions = models_json_schema(
        [(shape, "validation") for shape in SHAPES], ref_template="#/components/schemas/{model}"
    )
    components: Schema = {"schemas": _limited(definitions["$defs"], limits)}
    described: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "charwright", "version": __version__, "description": ABOUT},
        "paths": dict(_paths(keys=keys)),
        "components": components,
    }
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def _limited(schemas: Schema, limits: ServiceConfig) -> Schema:
    """The schemas with the limits of this service."""
    fields = schemas["CompletionRequest"]["properties"]
    for name, most in (("max_tokens", limits.max_tokens), ("n", limits.max_n)):
        fields[name]["anyOf"][0]["maximum"] = most
    text, several = fields["prompt"]["anyOf"][:2]
    text["maxLength"] = several["items"]["maxLength"] = limits.max_prompt
    several["maxItems"] = limits.max_prompts
    return schemas


def _paths(*, keys: bool) -> Iterator[tuple[str, Schema]]:
    common = ["403", "405"] + (["401"] if keys else [])
    completion = {
        "summary": "Continue texts",
        "operationId": "complete",
        "requestBody": {"required": True, "content": _content("application/json", CompletionRequest)},
        "responses": {
            "200": {
                "description": "The texts, or with `stream` their parts as server-sent events that end with [DONE].",
                "content": _content("application/json", Completion) | {"text/event-stream": _EVENTS},
            },
            **_problems("400", "404", "408", "413", "415", "429", "500", "503", *common),
        },
    }
    yield "/v1/completions", {"post": completion}
    yield "/v1/models", {"get": _get("List the models", "listModels", ModelList, common)}
    model = _get("Describe a model", "getModel", Model, [*common, "404"])
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    yield "/v1/models/{model}", {"get": model | {"parameters": [name]}}
    health = _get("Whether the process is alive", "health", Status, ["403", "405"])
    yield "/healthz", {"get": health | {"security": []}}
    ready = _get("Whether requests are accepted", "readiness", Status, ["403", "405"])
    ready["responses"]["503"] = {"description": "Not now.", "content": _content("application/json", Status)}
    yield "/readyz", {"get": ready | {"security": []}}
    metrics = _get("Metrics for Prometheus", "metrics", Status, common)
    metrics["responses"]["200"]["content"] = {"text/plain": _TEXT}
    yield "/metrics", {"get": metrics}


def _get(summary: str, name: str, shape: type[BaseModel], problems: list[str]) -> Schema:
    done = {"description": "Done.", "content": _content("application/json", shape)}
    return {"summary": summary, "operationId": name, "responses": {"200": done, **_problems(*problems)}}


def _content(media_type: str, shape: type[BaseModel]) -> Schema:
    return {media_type: {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}}


def _problems(*statuses: str) -> Schema:
    content = _content("application/json", ErrorAnswer)
    return {status: {"description": REASONS[status], "content": content} for status in sorted(statuses)}


def reference_page(described: Schema) -> Page:
    """The document as a page."""
    routes = "\n".join(_route(path, methods) for path, methods in described["paths"].items())
    fields = described["components"]["schemas"]["CompletionRequest"]
    title = html.escape(f"{described['info']['title']} {described['info']['version']}")
    return page_of(
        "reference.html", {"title": title, "about": _prose(ABOUT), "routes": routes, "fields": _rows(fields)}
    )


def _route(path: str, methods: Mapping[str, Any]) -> str:
    [(method, about)] = methods.items()
    answers = "".join(
        f"<dt>{status}</dt><dd>{_prose(answer['description'])}</dd>" for status, answer in about["responses"].items()
    )
    return (
        f"<section><h3><code>{method.upper()} {html.escape(path)}</code></h3>"
        f"<p>{_prose(about['summary'])}.</p><dl>{answers}</dl></section>"
    )


def _rows(schema: Schema) -> str:
    """A row for each parameter of a completion."""
    return "\n".join(
        f"<tr><th scope=row><code>{html.escape(name)}</code></th><td>{html.escape(_kind(field))}</td>"
        f"<td>{html.escape(_default(name, field, schema))}</td><td>{_prose(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    )


def _default(name: str, field: Schema, schema: Schema) -> str:
    if name in schema["required"]:
        return "required"
    value = field.get("default")
    if value == [""]:
        value = ""
    return "" if value is None else json.dumps(value)


def _kind(field: Schema) -> str:
    """The type of a parameter and its bounds, in words."""
    if "enum" in field:
        return ", ".join(map(json.dumps, field["enum"]))
    if "anyOf" in field:
        return " or ".join(_kind(part) for part in field["anyOf"] if part.get("type") != "null")
    if "$ref" in field:
        return "object"
    words = [f"list of {field['items']['type']}s" if field.get("type") == "array" else str(field.get("type", ""))]
    bounds = {
        "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "maxLength": "up to {} characters",
        "maxItems": "up to {}",
    }  # fmt: skip
    words += [wording.format(f"{field[name]:,}") for name, wording in bounds.items() if name in field]
    return " ".join(words)


def _prose(text: str) -> str:
    """A description as HTML: what is in backticks is code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
