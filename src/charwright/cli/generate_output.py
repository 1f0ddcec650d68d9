"""The output of `charwright generate`: texts as they grow, records, or lines of JSON; and their novelty, on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from charwright.data.mapped_text import MappedText
    from charwright.generation.completions import Completion
    from charwright.generation.draft import Draft
    from charwright.generation.record_search import RecordSearch
    from charwright.generation.session import Session


class Output:
    """Print texts as they grow, or lines of JSON, and their novelty. Records are printed with their ends."""

    def __init__(self, prompt: str, record_end: str | None = None, *, as_json: bool, logprobs: bool) -> None:
        self.corpus: str | MappedText | None = None
        """The training text, if novelty is to be reported."""
        self.known: set[str] | None = None
        """The records of the text, if it has some: then these are compared, and not passages of them."""
        self._records: list[str] = []
        self._unended = 0
        self._prompt, self._record_end, self._json, self._logprobs = prompt, record_end, as_json, logprobs

    def follow(
        self, session: Session, drafts: list[Draft], labels: Sequence[str | None], stopped: Sequence[int]
    ) -> None:
        """Run the session until all texts have ended, or a signal arrives; print them in order.

        All are generated in one batch: the first is printed as it grows, the others when the ones before have ended.
        """
        for number, (draft, label) in enumerate(zip(drafts, labels, strict=True)):
            if self._json:
                while draft.ended is None and not stopped and session.advance():
                    pass
                self._line(self._finished(draft, label))
                continue
            if self._record_end is not None and stopped and draft.ended is None:
                continue  # The beginning of a record would be taken for one.
            if len(drafts) > 1 and self._record_end is None:
                _heading(number, len(drafts))
            _write(self._prompt)
            pieces = []
            for piece in _pieces(session, draft, stopped):
                _write(piece)
                if self.corpus is not None:
                    pieces.append(piece)
            _write("\n" if self._record_end is None or draft.ended is None else self._record_end)
            self._note_novelty(draft, "".join(pieces))
        self._end_line()
        self._report_cut([draft for draft in drafts if draft.ended == "length"], len(drafts))
        self._report_records()

    def follow_search(self, search: RecordSearch, stopped: Sequence[int]) -> None:
        """Go on with a search until it is done, or a signal arrives; print the records that it finds."""
        while not search.done and not stopped:
            found = search.advance()
            if self._json:
                for completion in found:
                    self._line(completion)
            else:
                _write("".join(f"{self._prompt}{each.continuation}{self._record_end}" for each in found))
        if search.found:
            self._end_line()

    def show_completion(self, completion: Completion) -> None:
        """Print the result of a beam search."""
        if self._json:
            self._line(completion, sampled=False)
            return
        _write(self._prompt + completion.continuation + (self._record_end or "\n"))
        self._end_line()
        self._report_novelty(completion.continuation)

    def _end_line(self) -> None:
        """End the last line, if the end of a record does not. A list of records may have an empty one at its end."""
        if not self._json and self._record_end is not None and not self._record_end.endswith("\n"):
            _write("\n")

    def _finished(self, draft: Draft, label: str | None) -> Completion:
        from charwright.generation.completions import finished

        return finished(draft, logprobs=self._logprobs, label=label)

    def _line(self, completion: Completion, *, sampled: bool = True) -> None:
        continuation = completion.continuation
        values: dict[str, Any] = {"text": self._prompt + continuation, "continuation": continuation}
        if completion.label is not None:
            values["label"] = completion.label
        if sampled:
            values |= {"seed": completion.seed, "stream": completion.stream}
        values["ended"] = completion.ended
        if completion.stop is not None:
            values["stop"] = completion.stop
        if self._logprobs:
            values["logprobs"] = [_rounded(value) for value in completion.logprobs or ()]
            if completion.end_logprob is not None:
                values["end_logprob"] = _rounded(completion.end_logprob)
        if self.corpus is not None:
            from charwright.generation.novelty import measure_novelty

            values["novelty"] = measure_novelty(self.corpus, continuation).to_json()
        # If the output's encoding lacks characters, JSON can escape them.
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        _write(json.dumps(values, ensure_ascii=not unicode) + "\n")

    def _note_novelty(self, draft: Draft, written: str) -> None:
        if self.known is None:
            self._report_novelty(written)
        elif draft.ended == "record":
            self._records.append(draft.prompt + written)
        else:
            self._unended += 1

    def _report_cut(self, cut: Sequence[Draft], count: int) -> None:
        """How many records are only beginnings."""
        if cut and self._record_end is not None and not self._json:
            sys.stdout.flush()
            which = f"{len(cut):,} of {count:,} records" if count > 1 else "the record"
            is_cut = "are" if len(cut) > 1 else "is"
            click.echo(f"{which} {is_cut} cut off at {cut[0].config.length:,} characters; raise --length", err=True)

    def _report_records(self) -> None:
        """How many of the records are also in the text, and how many were written before."""
        if self.known is None:
            return
        count, copied = len(self._records), sum(record in self.known for record in self._records)
        different = f"{len(set(self._records)):,} of {count:,} records are different"
        unended = f"; {self._unended:,} did not end and do not count" if self._unended else ""
        sys.stdout.flush()
        found = f"{copied:,} of {count:,} records are in the text, and {different}{unended}"
        click.echo(f"{found}; --new writes others", err=True)

    def _report_novelty(self, written: str) -> None:
        if self.corpus is None:
            return
        from charwright.generation.novelty import measure_novelty

        found = measure_novelty(self.corpus, written)
        sys.stdout.flush()
        click.echo(
            f"{found.copied_share:.1%} of {found.characters:,} characters are in passages of {found.shortest} or more"
            f" copied verbatim from the training text; the longest has {len(found.longest)}: {found.longest!r}",
            err=True,
        )


def _pieces(session: Session, draft: Draft, stopped: Sequence[int]) -> Iterator[str]:
    """Yield one of the session's texts as it grows."""
    yield draft.pop()
    while draft.ended is None and not stopped and session.advance():
        yield draft.pop()


def _rounded(logprob: float) -> float | None:
    return None if math.isnan(logprob) else round(logprob, 6)


def _heading(index: int, count: int) -> None:
    """Announce the next text on stderr; stdout is for generated text only."""
    sys.stdout.flush()
    click.echo(f"--- {index + 1} of {count} ---", err=True)


def _write(piece: str) -> None:
    if piece:
        sys.stdout.write(piece)
        sys.stdout.flush()
