"""The answers to a completion request: whole, or in the chunks of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from charwright.generation.draft import Fragment
from charwright.generation.scoring import Choices
from charwright.serve.jobs import Job
from charwright.serve.refusals import json_bytes
from charwright.serve.scheduler import Delivery

MOST_UNKNOWN = 20
"""Unknown characters that an answer lists."""


class Answer:
    """Turns the deliveries of a job into choices."""

    def __init__(self, job: Job) -> None:
        """Start with empty texts."""
        self._job, request = job, job.request
        self._logprobs, self._echo = request.logprobs is not None, bool(request.echo)
        self._top = request.logprobs or 0
        self._labelled = bool(job.served.hosted.vocabulary.labels)
        self._offsets = [0] * len(job.prompts)  # characters of each text so far
        self._head = {"id": job.id, "object": "text_completion", "created": job.created, "model": request.model}
        assert job.config.seed is not None
        self._head["seed"] = job.config.seed
        if unknown := job.served.hosted.vocabulary.unknown_in("".join(request.prompt)):
            self._head["unknown_characters"] = "".join(unknown[:MOST_UNKNOWN])
        include = request.stream_options is not None and request.stream_options.include_usage
        self._tail: dict[str, Any] = {"usage": None} if include else {}

    def choice(self, index: int, delivery: Delivery) -> dict[str, Any] | None:
        """What is new about a text, or None if that is nothing to send."""
        fragment = delivery.fragment
        if not fragment.text and delivery.ended is None:
            return None
        if self._echo and self._offsets[index] == 0:
            fragment = self._with_prompt(index, fragment)
        at = self._offsets[index]
        self._offsets[index] += len(fragment.text)
        choice = {
            "index": index,
            "text": fragment.text,
            "logprobs": self._scores(fragment, at) if self._logprobs else None,
            "finish_reason": _finish_reason(delivery.ended),
        }
        return choice | {"label": self._job.label(index)} if self._labelled else choice

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """An event of the stream with one choice."""
        return b"data: " + json_bytes(self._head | {"choices": [choice]} | self._tail) + b"\n\n"

    def last_chunks(self) -> bytes:
        """The end of the stream, with the usage if it was requested."""
        done = b"data: [DONE]\n\n"
        if not self._tail:
            return done
        return b"data: " + json_bytes(self._head | {"choices": [], "usage": self._usage()}) + b"\n\n" + done

    def whole(self, choices: Iterable[Collected]) -> bytes:
        """The answer without a stream."""
        head = json_bytes(self._head)[:-1]
        listed = b",".join(choice.json() for choice in choices)
        return head + b',"choices":[' + listed + b'],"usage":' + json_bytes(self._usage()) + b"}"

    def _with_prompt(self, index: int, fragment: Fragment) -> Fragment:
        draft, prompt = self._job.draft(index), self._job.prompts[index]
        if not self._logprobs:
            return Fragment(prompt + fragment.text)
        return Fragment(
            prompt + fragment.text,
            [*draft.prompt_logprobs[: len(prompt)], *fragment.logprobs],
            [*draft.prompt_alternatives[: len(prompt)], *fragment.alternatives],
        )

    def _scores(self, fragment: Fragment, at: int) -> dict[str, Any]:
        """OpenAI's `logprobs`: one token for each character."""
        logprobs = [None if math.isnan(value) else round(value, 6) for value in fragment.logprobs]
        top = None
        if self._top:
            top = [
                None if logprob is None else _top(character, logprob, alternatives)
                for character, logprob, alternatives in zip(fragment.text, logprobs, fragment.alternatives, strict=True)
            ]
        return {
            "tokens": list(fragment.text),
            "token_logprobs": logprobs,
            "top_logprobs": top,
            "text_offset": list(range(at, at + len(fragment.text))),
        }

    def _usage(self) -> dict[str, int]:
        """Characters; each prompt counts once."""
        prompt = sum(map(len, self._job.request.prompt))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._job.generated,
            "total_tokens": prompt + self._job.generated,
        }


def _top(character: str, logprob: float, alternatives: Choices) -> dict[str, float]:
    """The most likely alternatives, and the character itself."""
    return {text: round(value, 6) for text, value in alternatives} | {character: logprob}


def _finish_reason(ended: str | None) -> str | None:
    if ended is None:
        return None
    return "length" if ended == "length" else "stop"


class Collected:
    """A choice of an answer without a stream. Its parts are kept as JSON, which takes less memory than their values."""

    def __init__(self, index: int, logprobs: int | None) -> None:
        """Start empty; `logprobs` as in the request."""
        self._index = index
        self._text: list[str] = []
        self._end: dict[str, Any] = {"finish_reason": None}
        self._scores: dict[str, list[bytes] | None] | None = None
        if logprobs is not None:
            names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            self._scores = {name: None if name == "top_logprobs" and not logprobs else [] for name in names}

    def add(self, choice: dict[str, Any]) -> None:
        """Append a part of the choice."""
        self._text.append(choice["text"])
        self._end = {name: choice[name] for name in ("finish_reason", "label") if name in choice}
        for name, parts in (self._scores or {}).items():
            if parts is not None and (values := choice["logprobs"][name]):
                parts.append(json_bytes(values)[1:-1])

    def json(self) -> bytes:
        """The whole choice."""
        head = json_bytes({"index": self._index, "text": "".join(self._text)})[:-1]
        return head + b',"logprobs":' + self._scores_json() + b"," + json_bytes(self._end)[1:]

    def _scores_json(self) -> bytes:
        if self._scores is None:
            return b"null"
        fields = [
            json_bytes(name) + b":" + (b"null" if parts is None else b"[" + b",".join(parts) + b"]")
            for name, parts in self._scores.items()
        ]
        return b"{" + b",".join(fields) + b"}"
