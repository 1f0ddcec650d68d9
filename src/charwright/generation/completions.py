"""Generated texts, as they are returned and as a notebook shows them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from charwright import notebook
from charwright.generation.draft import Draft


@dataclass(frozen=True)
class Completion:
    """A generated text. `str()` returns the prompt and its continuation."""

    prompt: str
    continuation: str
    seed: int
    stream: int
    ended: str = "length"
    """Why it ended: `length`, `record`, `stop`, `word`, `line`, `paragraph`, `sentence`, or `interrupted`."""
    stop: str | None = None
    """The stop string that ended it, which is not part of the continuation."""
    logprobs: tuple[float, ...] | None = None
    """ln p of each character of the continuation under the model, if requested."""
    label: str | None = None
    """The label that the model was given, if it has labels."""
    end_logprob: float | None = None
    """ln p of the end of the record, if the text ended with it and `logprobs` were requested.

    The sum of `logprobs` and this is ln p of the whole record behind its prompt, as `score` has it.
    """

    def __str__(self) -> str:
        return self.prompt + self.continuation

    def _repr_html_(self) -> str:
        end = "" if self.ended == "length" else f", ended by {self.ended}"
        label = "" if self.label is None else f", label {self.label}"
        note = f"seed {self.seed}, text {self.stream}{label}{end}"
        return notebook.passage(self.continuation, prompt=self.prompt, note=note)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(str(self))


class Completions(list[Completion]):
    """A list of generated texts; `str()` and a notebook show the texts themselves."""

    note: str = ""
    """What was thrown away, and what is missing, if new records were requested."""

    def _repr_html_(self) -> str:
        passages = "".join(completion._repr_html_() for completion in self)
        return passages + (f"<div><small>{html.escape(self.note)}</small></div>" if self.note else "")

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self), *([self.note] if self.note else [])])

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(str(self))


def finished(draft: Draft, *, logprobs: bool = False, label: str | None = None) -> Completion:
    """The completion of a draft on which `pop` was not called. A draft that has not ended was interrupted."""
    sampler = draft.stream.sampler
    scores = tuple(draft.logprobs[: draft.shown]) if logprobs else None
    ended = draft.ended or "interrupted"
    stop = draft.endings.stop
    end = draft.end_logprob if logprobs else None
    return Completion(draft.prompt, draft.pop(), sampler.seed, sampler.stream, ended, stop, scores, label, end)
