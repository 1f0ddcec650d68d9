"""`POST /v1/completions`: reads the request, waits for its turn, and sends the text, whole or as it grows."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from charwright.config import GenerationConfig
from charwright.data.labels import label_id, listed_labels
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CharwrightError, OptionError, UsageError, for_shell
from charwright.generation.draft import Guard
from charwright.generation.masks import allowed
from charwright.serve.answers import Answer, Collected
from charwright.serve.bodies import read_body
from charwright.serve.jobs import ClientGoneError, Job
from charwright.serve.refusals import Refusal, bad, busy, json_bytes
from charwright.serve.requests import CompletionRequest, parse
from charwright.serve.service import ServedModel, Service

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise.
]
SEEDS = 2**32
"""Random seeds are below this, as on the command line."""

logger = logging.getLogger(__name__)


class Completions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        """Answer with the models of the service."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            Refusal: if it cannot be carried out. Nothing has been sent then.
        """
        try:
            await self._answer(scope, receive, send)
        except ClientGoneError:
            self._service.metrics.abandoned.inc()
            scope["state"]["abandoned"] = True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, and carry it out if there is room."""
        began = asyncio.get_running_loop().time()
        service = self._service
        request = parse(await read_body(scope, receive, service.limits), service.limits)
        if service.draining:
            raise busy(503, "the service is ending", 1, "drain")
        served = service.model(request.model)
        job = Job(service, served, request, _checked(request, served), caller=scope["state"]["caller"], began=began)
        scope["state"]["job"] = job
        with job.admitted():
            async with _watched(receive):
                await self._carry_out(job, scope, receive, send, began + service.limits.total_s)

    async def _carry_out(self, job: Job, scope: Scope, receive: Receive, send: Send, deadline: float) -> None:
        """Wait for the turn of the job, and send its text."""
        guard, preparing = None, job.request.max_copy is not None
        try:
            async with asyncio.timeout(self._service.limits.wait_s):
                if preparing:
                    guard = await job.result_of(_guard(job))
                    preparing = False
                job.submit(guard)
                await job.turn()
        except TimeoutError:
            if preparing:
                raise busy(503, "the service is reading the training text for max_copy", 1, "guard") from None
            raise job.served.admission.full("wait") from None
        if job.request.stream:
            await self._stream(job, scope, send, deadline)
        else:
            answer = await _whole(job, deadline)
            await Response(answer, media_type="application/json")(scope, receive, send)

    async def _stream(self, job: Job, scope: Scope, send: Send, deadline: float) -> None:
        """Send the text as it grows. From here on, problems are reported inside the stream."""
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        metrics = self._service.metrics
        metrics.streams.inc()
        try:
            async with asyncio.timeout_at(deadline):
                await _send_events(job, send)
        except (TimeoutError, Refusal) as problem:
            refusal = problem if isinstance(problem, Refusal) else _late()
            scope["state"]["refusal"] = refusal
            metrics.refusals.labels(refusal.reason).inc()
            await _send_part(send, b"data: " + json_bytes(refusal.body()) + b"\n\n", more=False)
        finally:
            metrics.streams.dec()


async def _send_events(job: Job, send: Send) -> None:
    answer = Answer(job)
    while news := await job.news():
        choices = [answer.choice(index, delivery) for index, delivery in news]
        events = b"".join(answer.chunk(choice) for choice in choices if choice is not None)
        if job.finished:
            await _send_part(send, events + answer.last_chunks(), more=False)
        elif events:
            await _send_part(send, events, more=True)


async def _send_part(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _whole(job: Job, deadline: float) -> bytes:
    """The answer when all texts have ended."""
    answer = Answer(job)
    collected = [Collected(index, job.request.logprobs) for index in range(len(job.prompts))]
    try:
        async with asyncio.timeout_at(deadline):
            while news := await job.news():
                for index, delivery in news:
                    if (choice := answer.choice(index, delivery)) is not None:
                        collected[index].add(choice)
                        await asyncio.sleep(0)  # Long texts with many scores take a while: others come in between.
    except TimeoutError:
        raise _late() from None
    return answer.whole(collected)


def _late() -> Refusal:
    message = "the request took too long; ask for fewer characters or texts"
    # OpenAI's clients would repeat the request, which would take as long again.
    return Refusal(503, message, code="timeout", headers=[(b"x-should-retry", b"false")], reason="time")


@asynccontextmanager
async def _watched(receive: Receive) -> AsyncIterator[None]:
    """Interrupt the block when the client closes the connection.

    Raises:
        ClientGoneError: if it does.
    """
    block, gone = asyncio.current_task(), False
    assert block is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        block.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        block.uncancel()
        raise ClientGoneError from None
    finally:
        watcher.cancel()


def _checked(request: CompletionRequest, served: ServedModel) -> GenerationConfig:
    """The options of the request, checked against the model.

    Raises:
        Refusal: 400, which names the parameter.
    """
    seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed
    config, vocabulary = request.generation(seed), served.hosted.vocabulary
    if request.logprobs and vocabulary.level != "character":
        raise bad("logprobs", "must be 0, since this model generates bytes, which are not characters")
    _check_label(request, vocabulary)
    _check_record(request, served.hosted.generator.record_end)
    try:
        allowed(vocabulary, config)
    except OptionError as error:
        name, *others = error.options
        raise bad(name, f"with {' and '.join(others)}, {error.problem}" if others else error.problem) from error
    except UsageError as error:
        raise bad(None, str(error)) from error
    return config


def _check_label(request: CompletionRequest, vocabulary: Vocabulary) -> None:
    if request.label is not None:
        try:
            label_id(vocabulary, request.label)
        except UsageError as error:
            raise bad("label", str(error)) from error
    elif vocabulary.labels and request.echo and request.logprobs is not None:
        # One that is drawn would make the scores of a prompt differ from request to request.
        message = f"is required to score a prompt (echo with logprobs); the model has {listed_labels(vocabulary)}"
        raise bad("label", message)


def _check_record(request: CompletionRequest, end: str | None) -> None:
    """Check that each prompt is the beginning of one record; a prompt that is only scored may have its end too."""
    if end is None:
        return
    only_read = request.echo and request.length == 0
    for prompt in request.prompt:
        at = prompt.find(end)
        if at >= 0 and not (only_read and at + len(end) == len(prompt)):
            raise bad("prompt", f"has the end of a record, {end!r}; give the beginning of one record")


async def _guard(job: Job) -> Guard:
    assert job.request.max_copy is not None
    try:
        return await job.served.guards.get(job.request.max_copy, job.caller)
    except (CharwrightError, ImportError) as error:
        # The message names a path of this machine, which is nobody's business.
        logger.warning("max_copy: %s", for_shell(error))
        raise bad("max_copy", "the training text of this model is not at hand") from error
