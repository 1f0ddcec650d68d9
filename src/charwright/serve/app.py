"""The ASGI application: the routes, and the layers around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from charwright.serve.access import HostCheck, KeyCheck, OriginCheck
from charwright.serve.completions import Completions
from charwright.serve.journal import Journal, Log, RefusalAnswers
from charwright.serve.keys import Keys
from charwright.serve.metrics import MEDIA_TYPE
from charwright.serve.pages import Page
from charwright.serve.playground import playground
from charwright.serve.refusals import Headers, Refusal, json_bytes
from charwright.serve.service import ServedModel, Service

SAME_ORIGIN = (b"cross-origin-resource-policy", b"same-origin")
SAFE: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), SAME_ORIGIN]
"""Headers of every answer."""


@dataclass(frozen=True)
class Access:
    """Who may use the service. Without keys, everyone who reaches it."""

    keys: Keys | None = None
    hosts: Sequence[str] = ()
    """Allowed host names besides the loopback ones; `*` allows all."""
    addresses: bool = False
    """Whether any IP address is allowed as the host name."""
    origins: Sequence[str] = ()
    """Origins whose pages may use the service (CORS)."""


def create_app(service: Service, access: Access, *, log: Log | None = None) -> ASGIApp:
    """The application, for any ASGI server. `service.start` must be called in its event loop."""
    app: ASGIApp = Routes(service, keys=access.keys is not None)
    app = KeyCheck(app, keys=access.keys)
    app = RefusalAnswers(OriginCheck(app, origins=access.origins), metrics=service.metrics)
    headers = SAFE
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-should-retry"],
        )
        headers = [item for item in SAFE if item != SAME_ORIGIN]
    app = RefusalAnswers(HostCheck(app, names=access.hosts, addresses=access.addresses), metrics=service.metrics)
    return Journal(app, metrics=service.metrics, log=log, headers=headers, ending=lambda: service.draining)


class Routes:
    """The routes of the service."""

    def __init__(self, service: Service, *, keys: bool) -> None:
        """Find the handlers; `keys` says whether requests need an API key."""
        self._service, self._keys = service, keys
        self._router = Router(
            [
                Route("/v1/completions", Completions(service), methods=["POST"]),
                Route("/", self._playground_page),
                Route("/docs", self._reference_page),
                Route("/openapi.json", self._openapi),
                Route("/healthz", self._health),
                Route("/readyz", self._readiness),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
            ],
            redirect_slashes=False,
            default=_no_route,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            Refusal: 404 for an unknown path, 405 for a wrong method.
        """
        try:
            await self._router({**scope, "app": self}, receive, send)
        except HTTPException as problem:
            headers = [(name.lower().encode(), value.encode()) for name, value in (problem.headers or {}).items()]
            message = f"{scope['method']} is not allowed here" if problem.status_code == 405 else problem.detail
            raise Refusal(problem.status_code, message, headers=headers) from problem

    async def _health(self, _: Request) -> Response:
        return _json({"status": "alive"})

    async def _readiness(self, _: Request) -> Response:
        if self._service.ready:
            return _json({"status": "ready"})
        return _json({"status": "ending" if self._service.draining else "failed"}, 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._service.metrics_text(), media_type=MEDIA_TYPE)

    async def _models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [_described(model) for model in self._service.models.values()]})

    async def _model(self, request: Request) -> Response:
        return _json(_described(self._service.model(request.path_params["model"])))

    async def _openapi(self, _: Request) -> Response:
        return _json(self._described)

    async def _playground_page(self, _: Request) -> Response:
        return _page(self._playground)

    async def _reference_page(self, _: Request) -> Response:
        return _page(self._reference)

    # The pages do not change, and are made when they are first requested: the service starts sooner.

    @cached_property
    def _described(self) -> dict[str, Any]:
        from charwright.serve.openapi import document

        return document(self._service.limits, keys=self._keys)

    @cached_property
    def _reference(self) -> Page:
        from charwright.serve.openapi import reference_page

        return reference_page(self._described)

    @cached_property
    def _playground(self) -> Page:
        return playground(keys=self._keys)


def _json(value: object, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")


def _page(page: Page) -> Response:
    return Response(page.body, headers={"content-security-policy": page.policy}, media_type="text/html")


def _described(model: ServedModel) -> dict[str, object]:
    hosted = model.hosted
    labels = list(hosted.vocabulary.labels)
    return {
        "id": hosted.name,
        "object": "model",
        "created": hosted.created,
        "owned_by": "charwright",
        "labels": labels,
    }


async def _no_route(scope: Scope, _receive: Receive, _send: Send) -> None:
    if scope["path"].startswith(("/v1/chat", "/v1/responses")):
        message = "these models continue text and do not chat; use POST /v1/completions"
    else:
        message = "there is nothing here; the routes are listed at /docs"
    raise Refusal(404, message, code="not_found")
