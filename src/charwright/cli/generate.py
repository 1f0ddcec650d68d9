"""`charwright generate`: stream the text that a run's model generates to stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    SectionedCommand,
    config_options,
    engine_precision_option,
    engine_threads_option,
    fresh_seed,
    given,
)
from charwright.config import GenerationConfig
from charwright.errors import CharwrightError, UsageError
from charwright.schema import field_names, flag
from charwright.signals import handling

if TYPE_CHECKING:
    from charwright.data.texts import Text
    from charwright.data.vocabulary import Vocabulary
    from charwright.generation.draft import Draft, Guard, Paused
    from charwright.generation.generator import Completion, Generator
    from charwright.generation.session import Session
    from charwright.run import Run

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_copy", "num", "seed")
"""Options that have no effect on beam search."""


@click.command(cls=SectionedCommand, short_help="Generate text with a trained model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue; - reads it from standard input.")
@click.option("--no-prompt", "without_prompt", is_flag=True, help="Output only the continuation of the prompt.")
@engine_precision_option
@engine_threads_option
@click.option(
    "--beams",
    type=click.IntRange(1, 1024),
    help="Beam search for the most likely text, with this number of beams, instead of sampling.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Output one line of JSON per text: the text, its seed, why it ended."
)
@click.option("--logprobs", is_flag=True, help="With --json: add the log-probability of each character.")
@click.option(
    "--state-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save the state to a file, from which --state-in continues the text.",
)
@click.option(
    "--state-in",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Continue the text saved by --state-out, exactly where it stopped.",
)
@click.option("--novelty", is_flag=True, help="Report how much of the text is copied verbatim from the training text.")
@click.option(
    "--corpus", multiple=True, metavar="TEXT", help="The training text, for --novelty and --max-copy, if it has moved."
)
@config_options(GenerationConfig(), "Generation")
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    run: Path,
    prompt: str | None,
    without_prompt: bool,
    precision: str,
    threads: int | None,
    beams: int | None,
    as_json: bool,
    logprobs: bool,
    state_out: Path | None,
    state_in: Path | None,
    novelty: bool,
    corpus: tuple[str, ...],
    **_: Any,
) -> int:
    r"""Generate text with the model of RUN. Prints the prompt and its continuation.

    In --stop, --ban and --only, \n is a newline, \t a tab and \\ a backslash.
    """
    from charwright.run import Run

    options = given(ctx, field_names(GenerationConfig))
    config = GenerationConfig(**_unescaped(options))
    if logprobs and not as_json:
        raise UsageError("--logprobs requires --json")
    if beams is not None:
        _refuse_with_beams(options, state_in, state_out)
    if corpus and not novelty and config.max_copy is None:
        raise UsageError("--corpus requires --novelty or --max-copy")
    if state_in is not None and "num" in options:
        raise UsageError("--state-in continues all texts of the file; remove --num")
    if state_in is not None and not state_in.is_file():
        raise UsageError(f"--state-in: there is no file {state_in}")
    if state_out is not None:
        _refuse_bad_place(state_out)
    if state_in is None and config.seed is None:
        config = dataclasses.replace(config, seed=fresh_seed())
    opened = Run.open(run)
    work = _Work(opened, precision, threads, corpus, state_in, explicit="precision" in given(ctx, ["precision"]))
    text = _read_prompt(prompt, opened)
    output = Output("" if without_prompt else text, as_json=as_json, logprobs=logprobs)
    if novelty:
        output.corpus = work.training_text()
    empty = prompt is not None and not text and state_in is None
    if beams is not None:
        _report_oddities(text, opened.vocabulary, config.stop, empty=empty)
        output.show_completion(work.generator.beam_search(text, config, beams))
        return 0
    session, drafts = work.begin(text, config, logprobs=logprobs, exact=state_out is not None)
    _report_oddities(text, opened.vocabulary, config.stop, empty=empty)
    with _interruptions() as stopped:
        try:
            output.follow(session, drafts, stopped)
        finally:
            # A closed pipe ends the text as Ctrl-C does.
            if state_out is not None:
                work.save(state_out, drafts)
    return 128 + stopped[0] if stopped else 0


class _Work:
    """A run and its generator; loads what only some options need on demand."""

    def __init__(
        self,
        run: Run,
        precision: str,
        threads: int | None,
        corpus: Sequence[str],
        state_in: Path | None,
        *,
        explicit: bool,
    ) -> None:
        from charwright.generation.generator import Generator
        from charwright.generation.paused import paused_precision

        self._run, self._corpus, self._state_in = run, corpus, state_in
        if state_in is not None and not explicit:
            precision = paused_precision(state_in)
        self.generator: Generator = Generator(run.model, run.weights(), run.vocabulary, precision, threads=threads)
        self._text: Text | None = None

    def training_text(self) -> Text:
        """The text that the run was trained on, read again."""
        if self._text is None:
            from charwright.cli.corpora import training_text

            self._text = training_text(self._run, self._corpus)
        return self._text

    def begin(
        self, prompt: str, config: GenerationConfig, *, logprobs: bool, exact: bool
    ) -> tuple[Session, list[Draft]]:
        """Start a session and join its texts."""
        from charwright.generation.paused import fingerprint, read_paused
        from charwright.generation.session import Session

        session = Session(self.generator.engine, self.generator.vocabulary, one_by_one=exact)
        guard = self._guard(config)
        starts: Sequence[Paused | None] = [None] * config.num
        if self._state_in is not None:
            starts = read_paused(self._state_in, self.generator.engine, fingerprint(self._run.weights()))
        drafts = [
            session.join(prompt, config, index, guard=guard, logprobs=logprobs, start=start)
            for index, start in enumerate(starts)
        ]
        return session, drafts

    def _guard(self, config: GenerationConfig) -> Guard | None:
        if config.max_copy is None:
            return None
        from charwright.data.texts import ids_of
        from charwright.generation.novelty import CopyGuard

        vocabulary = self.generator.vocabulary
        return CopyGuard(ids_of(self.training_text(), vocabulary), len(vocabulary), config.max_copy).forbidden

    def save(self, path: Path, drafts: Sequence[Draft]) -> None:
        """Write the file that --state-in reads."""
        from charwright.generation.paused import fingerprint, write_paused

        write_paused(
            path, self.generator.engine, fingerprint(self._run.weights()), [draft.paused() for draft in drafts]
        )


class Output:
    """Print text as it grows, or lines of JSON, and its novelty."""

    def __init__(self, prompt: str, *, as_json: bool, logprobs: bool) -> None:
        self.corpus: Text | None = None
        """The training text, if novelty is to be reported."""
        self._prompt, self._json, self._logprobs = prompt, as_json, logprobs

    def follow(self, session: Session, drafts: list[Draft], stopped: Sequence[int]) -> None:
        """Run the session until all texts have ended, or a signal arrives; print them in order.

        All are generated in one batch: the first is printed as it grows, the others when the ones before have ended.
        """
        for number, draft in enumerate(drafts):
            if self._json:
                while draft.ended is None and not stopped and session.advance():
                    pass
                self._line(self._finished(draft))
                continue
            if len(drafts) > 1:
                _heading(number, len(drafts))
            _write(self._prompt)
            pieces = []
            for piece in _pieces(session, draft, stopped):
                _write(piece)
                if self.corpus is not None:
                    pieces.append(piece)
            _write("\n")
            self._report_novelty("".join(pieces))

    def show_completion(self, completion: Completion) -> None:
        """Print the result of a beam search."""
        if self._json:
            self._line(completion, sampled=False)
            return
        _write(self._prompt + completion.continuation + "\n")
        self._report_novelty(completion.continuation)

    def _finished(self, draft: Draft) -> Completion:
        from charwright.generation.generator import finished

        return finished(draft, logprobs=self._logprobs)

    def _line(self, completion: Completion, *, sampled: bool = True) -> None:
        continuation = completion.continuation
        values: dict[str, Any] = {"text": self._prompt + continuation, "continuation": continuation}
        if sampled:
            values |= {"seed": completion.seed, "stream": completion.stream}
        values["ended"] = completion.ended
        if completion.stop is not None:
            values["stop"] = completion.stop
        if self._logprobs:
            values["logprobs"] = [None if math.isnan(value) else round(value, 6) for value in completion.logprobs or ()]
        if self.corpus is not None:
            from charwright.data.texts import plain
            from charwright.generation.novelty import measure_novelty

            values["novelty"] = measure_novelty(plain(self.corpus), continuation).to_json()
        # If the output's encoding lacks characters, JSON can escape them.
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        _write(json.dumps(values, ensure_ascii=not unicode) + "\n")

    def _report_novelty(self, written: str) -> None:
        if self.corpus is None:
            return
        from charwright.data.texts import plain
        from charwright.generation.novelty import measure_novelty

        found = measure_novelty(plain(self.corpus), written)
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


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """A list that gets the number of the first signal to arrive. A second signal ends the process at once."""
    stopped: list[int] = []

    def note(number: int, _: object) -> None:
        stopped.append(number)
        signal.signal(number, former[number])

    with handling(("SIGINT", "SIGTERM"), note) as former:
        yield stopped


def _refuse_with_beams(options: dict[str, Any], state_in: Path | None, state_out: Path | None) -> None:
    if useless := [name for name in SAMPLING if name in options]:
        raise UsageError(f"--beams does not sample; remove {flag(useless[0])}")
    if state_in is not None or state_out is not None:
        raise UsageError("--beams cannot save or continue a state; remove --state-in and --state-out")


def _refuse_bad_place(state_out: Path) -> None:
    """Check the path before generating, not after."""
    folder = state_out.parent
    if not state_out.name or (state_out.exists() and not state_out.is_file()):
        raise UsageError(f"--state-out: {state_out} is not a path for a file")
    if not folder.is_dir():
        raise UsageError(f"--state-out: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--state-out: the folder {folder} is not writable")


def _unescaped(options: dict[str, Any]) -> dict[str, Any]:
    r"""Replace \n, \t and \\ in the options by the characters they represent."""

    def plain(text: str) -> str:
        return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)

    changed: dict[str, Any] = {name: plain(options[name]) for name in ("ban", "only") if name in options}
    if "stop" in options:
        if "" in options["stop"]:
            raise UsageError("--stop must not be empty")
        changed["stop"] = tuple(plain(text) for text in options["stop"])
    return options | changed


def _heading(index: int, count: int) -> None:
    """Announce the next text on stderr; stdout is for generated text only."""
    sys.stdout.flush()
    click.echo(f"--- {index + 1} of {count} ---", err=True)


def _write(piece: str) -> None:
    if piece:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _report_oddities(prompt: str, vocabulary: Vocabulary, stop: Sequence[str], *, empty: bool) -> None:
    """Report what works, but perhaps not as intended."""
    if empty:
        click.echo("the prompt is empty; starting at the beginning of a line", err=True)
    if unknown := vocabulary.unknown_in(prompt):
        shown = " ".join(repr(character) for character in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        none_known = len(unknown) == len(set(prompt))
        which = "any of the prompt's characters" if none_known else shown
        click.echo(f"the model has never seen {which}; continuing anyway", err=True)
    for text in stop:
        if unknown := vocabulary.unknown_in(text):
            click.echo(f"the model never generates {unknown[0]!r}: no text will end at {text!r}", err=True)


def _read_prompt(given_prompt: str | None, run: Run) -> str:
    """Read the prompt from the option, or from standard input if requested or piped."""
    if given_prompt not in {None, "-"}:
        text = given_prompt or ""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("the prompt is not UTF-8")
        return text
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if sys.stdin is None or (at_terminal and given_prompt is None):
        return ""
    if at_terminal:
        click.echo("type the prompt; end it with Ctrl-D on a new line", err=True)
    from charwright.generation.session import MOST_PROMPT, prompt_is_too_long

    data = sys.stdin.buffer.read(4 * MOST_PROMPT + 1)
    if len(data) > 4 * MOST_PROMPT:
        raise prompt_is_too_long()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CharwrightError(f"the prompt on standard input is not UTF-8: byte {error.start} is invalid") from error
    if run.config.corpus.newlines == "lf":
        text = text.replace("\r\n", "\n")
    # The final newline comes from the shell; it is not part of the prompt.
    return re.sub(r"\r?\n\Z", "", text)
