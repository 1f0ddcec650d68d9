"""`charwright generate`: a run and a prompt in, text on stdout as it is made."""

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

from charwright.cli.options import SectionedCommand, config_options, field_names, fresh_seed, given
from charwright.cli.signals import handling
from charwright.config import GenerationConfig, flag
from charwright.errors import CharwrightError, UsageError

if TYPE_CHECKING:
    from charwright.data.vocabulary import Vocabulary
    from charwright.generation.generator import Generator, Text
    from charwright.generation.session import Draft, Guard, Paused, Session
    from charwright.run import Run

DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_copy", "num", "seed")
"""What means nothing to a beam search."""


@click.command(cls=SectionedCommand, short_help="Write like a run's text.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="What the text begins with; - reads it from standard input.")
@click.option("--no-prompt", "without_prompt", is_flag=True, help="Write only what follows the prompt.")
@click.option(
    "--precision",
    type=click.Choice(["q8", "bf16", "f32"]),
    default="q8",
    show_default=True,
    help="Arithmetic: 8-bit whole numbers, which give the same text on every machine, or floating point.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to use at most.  [default: all cores]")
@click.option(
    "--beams",
    type=click.IntRange(1, 1024),
    help="Draw nothing: search for the likeliest text, keeping so many beginnings of it at a time.",
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each text: text, seed, why it ended.")
@click.option("--logprobs", is_flag=True, help="With --json: the log-probability of each character.")
@click.option(
    "--state-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Put the text aside in a file, for --state-in to go on with later.",
)
@click.option(
    "--state-in",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Go on with the text that --state-out put aside, exactly where it stopped.",
)
@click.option("--novelty", is_flag=True, help="Say how much of the text stands word for word in the training text.")
@click.option(
    "--corpus", multiple=True, metavar="TEXT", help="With --novelty and --max-copy: where the training text is now."
)
@config_options(GenerationConfig(), "Writing")
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
    r"""Write like RUN's text. The prompt comes first, then what the model makes of it.

    In --stop, --ban and --only, \n stands for a new line, \t for a tab and \\ for a backslash.
    """
    from charwright.run import Run

    options = given(ctx, field_names(GenerationConfig))
    config = GenerationConfig(**_unescaped(options))
    if logprobs and not as_json:
        raise UsageError("--logprobs come with --json")
    if beams is not None:
        _refuse_with_beams(options, state_in, state_out)
    if corpus and not novelty and config.max_copy is None:
        raise UsageError("--corpus says where the training text is, for --novelty and --max-copy; add one of them")
    if state_in is not None and "num" in options:
        raise UsageError("--state-in goes on with as many texts as were put aside; leave --num out")
    if state_in is not None and not state_in.is_file():
        raise UsageError(f"--state-in: there is no file {state_in}")
    if state_out is not None:
        _refuse_bad_place(state_out)
    if state_in is None and config.seed is None:
        config = dataclasses.replace(config, seed=fresh_seed())
    opened = Run.open(run)
    work = _Work(opened, precision, threads, corpus, state_in, explicit="precision" in given(ctx, ["precision"]))
    text = _read_prompt(prompt, opened)
    shown = Shown("" if without_prompt else text, as_json=as_json, logprobs=logprobs)
    if novelty:
        shown.corpus = work.training_text()
    empty = prompt is not None and not text and state_in is None
    if beams is not None:
        _say_what_is_odd(text, opened.vocabulary, config.stop, empty=empty)
        shown.whole(work.writer.likeliest(text, config, beams))
        return 0
    session, drafts = work.begin(text, config, logprobs=logprobs, exact=state_out is not None)
    _say_what_is_odd(text, opened.vocabulary, config.stop, empty=empty)
    with _interruptions() as stopped:
        try:
            shown.follow(session, drafts, stopped)
        finally:
            # Whoever reads the text may have seen enough of it; that is an end like Ctrl-C.
            if state_out is not None:
                work.put_aside(state_out, drafts)
    return 128 + stopped[0] if stopped else 0


class _Work:
    """A run that is about to write, with what only some options ask for made when it is asked for."""

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
        self.writer: Generator = Generator(run.model, run.weights(), run.vocabulary, precision, threads=threads)
        self._text: str | None = None

    def training_text(self) -> str:
        """What the run was trained on, found again."""
        if self._text is None:
            from charwright.cli.corpora import training_text

            self._text = training_text(self._run, self._corpus)
        return self._text

    def begin(
        self, prompt: str, config: GenerationConfig, *, logprobs: bool, exact: bool
    ) -> tuple[Session, list[Draft]]:
        """The session, with its texts joined."""
        from charwright.generation.paused import fingerprint, read_paused
        from charwright.generation.session import Session

        session = Session(self.writer.engine, self.writer.vocabulary, one_by_one=exact)
        guard = self._guard(config)
        starts: Sequence[Paused | None] = [None] * config.num
        if self._state_in is not None:
            starts = read_paused(self._state_in, self.writer.engine, fingerprint(self._run.weights()))
        drafts = [
            session.join(prompt, config, index, guard=guard, logprobs=logprobs, start=start)
            for index, start in enumerate(starts)
        ]
        return session, drafts

    def _guard(self, config: GenerationConfig) -> Guard | None:
        if config.max_copy is None:
            return None
        from charwright.generation.novelty import CopyGuard

        vocabulary = self.writer.vocabulary
        ids = vocabulary.encode(self.training_text())
        return CopyGuard(ids, len(vocabulary), config.max_copy).forbidden

    def put_aside(self, path: Path, drafts: Sequence[Draft]) -> None:
        """Write the file that --state-in reads."""
        from charwright.generation.paused import fingerprint, write_paused

        write_paused(path, self.writer.engine, fingerprint(self._run.weights()), [draft.paused() for draft in drafts])


class Shown:
    """What the person sees: text as it grows, or JSON lines; and how new it is."""

    def __init__(self, prompt: str, *, as_json: bool, logprobs: bool) -> None:
        self.corpus: str | None = None
        """The training text, when it is to be said how much was copied from it."""
        self._prompt, self._json, self._logprobs = prompt, as_json, logprobs

    def follow(self, session: Session, drafts: list[Draft], stopped: Sequence[int]) -> None:
        """Let the session write until all texts have ended, or a signal came; show them in order.

        All are made together: the first is shown as it grows, the others when their turn comes.
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
            self._say_novelty("".join(pieces))

    def whole(self, text: Text) -> None:
        """Show a text that was searched for, with nothing drawn."""
        if self._json:
            self._line(text, drawn=False)
            return
        _write(self._prompt + text.continuation + "\n")
        self._say_novelty(text.continuation)

    def _finished(self, draft: Draft) -> Text:
        from charwright.generation.generator import finished

        return finished(draft, logprobs=self._logprobs)

    def _line(self, text: Text, *, drawn: bool = True) -> None:
        values: dict[str, Any] = {"text": self._prompt + text.continuation, "continuation": text.continuation}
        if drawn:
            values |= {"seed": text.seed, "stream": text.stream}
        values["ended"] = text.ended
        if text.stop is not None:
            values["stop"] = text.stop
        if self._logprobs:
            values["logprobs"] = [None if math.isnan(value) else round(value, 6) for value in text.logprobs or ()]
        if self.corpus is not None:
            from charwright.generation.novelty import measure

            values["novelty"] = measure(self.corpus, text.continuation).to_json()
        # Where the output has not all characters, JSON can still say them.
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        _write(json.dumps(values, ensure_ascii=not unicode) + "\n")

    def _say_novelty(self, written: str) -> None:
        if self.corpus is None:
            return
        from charwright.generation.novelty import measure

        found = measure(self.corpus, written)
        sys.stdout.flush()
        click.echo(
            f"{found.copied_share:.1%} of {found.characters:,} characters stand in passages of {found.shortest} or more"
            f" that the training text has word for word; the longest has {len(found.longest)}: {found.longest!r}",
            err=True,
        )


def _pieces(session: Session, draft: Draft, stopped: Sequence[int]) -> Iterator[str]:
    """One of the session's texts, as it grows."""
    yield draft.pop()
    while draft.ended is None and not stopped and session.advance():
        yield draft.pop()


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """A list that holds the signal's number once somebody wants an end; a second one ends the process at once."""
    stopped: list[int] = []

    def note(number: int, _: object) -> None:
        stopped.append(number)
        signal.signal(number, former[number])

    with handling(("SIGINT", "SIGTERM"), note) as former:
        yield stopped


def _refuse_with_beams(options: dict[str, Any], state_in: Path | None, state_out: Path | None) -> None:
    if useless := [name for name in DRAWING if name in options]:
        raise UsageError(f"--beams draws nothing: leave {flag(useless[0])} out")
    if state_in is not None or state_out is not None:
        raise UsageError("--beams searches from the beginning: leave --state-in and --state-out out")


def _refuse_bad_place(state_out: Path) -> None:
    """Before the text is written, not after."""
    folder = state_out.parent
    if not state_out.name or (state_out.exists() and not state_out.is_file()):
        raise UsageError(f"--state-out: {state_out} is no place for a file")
    if not folder.is_dir():
        raise UsageError(f"--state-out: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--state-out: the folder {folder} may not be written to")


def _unescaped(options: dict[str, Any]) -> dict[str, Any]:
    r"""Options with \n, \t and \\ in texts and characters as what they stand for."""

    def plain(text: str) -> str:
        return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)

    changed: dict[str, Any] = {name: plain(options[name]) for name in ("ban", "only") if name in options}
    if "stop" in options:
        if "" in options["stop"]:
            raise UsageError("--stop needs a text: nothing is met everywhere")
        changed["stop"] = tuple(plain(text) for text in options["stop"])
    return options | changed


def _heading(index: int, count: int) -> None:
    """Which text comes now; on stderr, so that stdout holds generated text alone."""
    sys.stdout.flush()
    click.echo(f"--- {index + 1} of {count} ---", err=True)


def _write(piece: str) -> None:
    if piece:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _say_what_is_odd(prompt: str, vocabulary: Vocabulary, stop: Sequence[str], *, empty: bool) -> None:
    """What works, but perhaps not as it was meant."""
    if empty:
        click.echo("the prompt is empty; beginning as a line does", err=True)
    if unknown := vocabulary.unknown_in(prompt):
        shown = " ".join(repr(character) for character in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        nothing = len(unknown) == len(set(prompt))
        which = "any of the prompt's characters" if nothing else shown
        click.echo(f"the model has never seen {which}; going on all the same", err=True)
    for text in stop:
        if unknown := vocabulary.unknown_in(text):
            click.echo(f"the model never writes {unknown[0]!r}: no text will end at {text!r}", err=True)


def _read_prompt(given_prompt: str | None, run: Run) -> str:
    """The prompt from the option, or from standard input when it is asked for or something is piped in."""
    if given_prompt not in {None, "-"}:
        text = given_prompt or ""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("the prompt is not UTF-8")
        return text
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if sys.stdin is None or (at_terminal and given_prompt is None):
        return ""
    if at_terminal:
        click.echo("type the prompt; Ctrl-D on a line of its own ends it", err=True)
    from charwright.generation.session import MOST_PROMPT, prompt_is_too_long

    data = sys.stdin.buffer.read(4 * MOST_PROMPT + 1)
    if len(data) > 4 * MOST_PROMPT:
        raise prompt_is_too_long()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CharwrightError(f"the prompt on standard input is not UTF-8: byte {error.start} does not fit") from error
    if run.config.corpus.newlines == "lf":
        text = text.replace("\r\n", "\n")
    # A shell's last newline belongs to the pipe, not to the prompt.
    return re.sub(r"\r?\n\Z", "", text)
