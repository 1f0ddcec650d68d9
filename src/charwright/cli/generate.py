"""`charwright generate`: stream the text that a run's model generates to stdout."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import click

from charwright.cli.generate_output import Output
from charwright.cli.generate_work import Work
from charwright.cli.options import (
    NamedPath,
    SectionedCommand,
    config_options,
    engine_precision_option,
    engine_threads_option,
    fresh_seed,
    given,
    in_section,
    say,
    unescaped,
)
from charwright.cli.prompt import read_prompt
from charwright.config import GenerationConfig
from charwright.errors import CharwrightError, UsageError
from charwright.schema import field_names, flag
from charwright.signals import handling

if TYPE_CHECKING:
    from charwright.data.vocabulary import Vocabulary
    from charwright.generation.generator import Generator
    from charwright.generation.record_search import RecordSearch

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_copy", "num", "seed")
"""Options that have no effect on beam search."""
USELESS_WITH_NEW = {
    "beams": "finds one text only",
    "state_in": "continues texts that have begun",
    "state_out": "keeps every text, and --new throws some away",
    "stop": "ends a record before its end",
    "until": "ends a record before its end",
    "novelty": "counts records of the text, which --new leaves out",
}
"""Options that --new has no use for, and why."""
SHOWN_LABELS = 20
"""Labels listed in a notice, at most."""


@click.command(cls=SectionedCommand, short_help="Generate text with a trained model.")
@click.argument("run", type=NamedPath())
@click.option("--prompt", help="Text to continue; - reads it from standard input, as does a pipe without --prompt.")
@click.option("--no-prompt", "without_prompt", is_flag=True, help="Output only the continuation of the prompt.")
@engine_precision_option
@engine_threads_option
@click.option(
    "--adapt",
    is_flag=True,
    help="Let the model train on the prompt for a moment, to continue it in its own words: for prompts of some hundred"
    " characters or more.",
)
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
    type=NamedPath(dir_okay=False),
    help="Save the state to a file, from which --state-in continues the text.",
)
@click.option(
    "--state-in",
    type=NamedPath(dir_okay=False),
    help="Continue the text saved by --state-out, exactly where it stopped.",
)
@click.option(
    "--novelty",
    is_flag=True,
    help="Report how much of the text is copied verbatim from the training text, or how many records are in it.",
)
@click.option(
    "--corpus",
    multiple=True,
    metavar="TEXT",
    help="The training text, for --novelty, --max-copy, --new and --adapt, if it has moved.",
)
@click.option("--label", cls=in_section("Records"), metavar="NAME", help="The label of the records, as in the text.")
@click.option(
    "--new", is_flag=True, cls=in_section("Records"), help="Different records only, none of which is in the text."
)
@click.option(
    "--distance",
    type=click.IntRange(min=1),
    metavar="N",
    cls=in_section("Records"),
    help="With --new: none within N edits of another or of one in the text; an edit changes one character.",
)
@click.option(
    "--known",
    multiple=True,
    metavar="FILE",
    cls=in_section("Records"),
    help="With --new: none that is in this list either, which is divided as the run's text; repeatable.",
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
    adapt: bool,
    beams: int | None,
    as_json: bool,
    logprobs: bool,
    state_out: Path | None,
    state_in: Path | None,
    novelty: bool,
    corpus: tuple[str, ...],
    label: str | None,
    new: bool,
    distance: int | None,
    known: tuple[str, ...],
    **_: Any,
) -> int:
    r"""Generate text with the model of RUN. Prints the prompt and its continuation.

    If RUN was trained on records, each text is one record, printed with its end. Otherwise a line on standard error
    announces each of several texts (not with --json).

    In --stop, --ban and --only, \n is a newline, \t a tab and \\ a backslash.
    """
    from charwright.generation.endings import check_beginning
    from charwright.run import Run

    config = GenerationConfig(**_unescaped(given(ctx, field_names(GenerationConfig))))
    _refuse_contradictions(ctx)
    if state_in is not None and not state_in.is_file():
        raise UsageError(f"--state-in: there is no file {state_in}")
    if state_out is not None:
        _refuse_bad_place(state_out)
    if state_in is None and config.seed is None:
        config = dataclasses.replace(config, seed=fresh_seed())
    opened = Run.open(run)
    if new and opened.config.records is None:
        raise UsageError(f"{run} was not trained on records, so nothing says what a new one is; train with --records")
    work = Work(opened, precision, threads, corpus, state_in, label, explicit="precision" in given(ctx, ["precision"]))
    text = read_prompt(prompt, opened)
    end = work.generator.record_end
    if end is not None:
        check_beginning(text, end)
    if adapt and not text:
        raise UsageError("--adapt learns from the prompt, and there is none; give one with --prompt")
    if adapt:
        work.adapt_to(text)
    output = Output("" if without_prompt else text, end, as_json=as_json, logprobs=logprobs)
    if novelty:
        from charwright.data.texts import plain

        output.corpus = plain(work.training_text())
        output.known = None if end is None or as_json else set(work.generator.known_records())
    report = partial(_report_oddities, text, work.generator, config, ctx)
    if beams is not None:
        report()
        output.show_completion(work.generator.beam_search(text, config, beams, label=label, record_end=end))
        return 0
    if new or work.many_records(config.num, novelty=novelty, paused=state_out is not None):
        search = work.search(text, config, new=new, distance=distance, further=known, logprobs=logprobs)
        report()
        return _follow_search(search, output)
    session, drafts, labels = work.begin(text, config, logprobs=logprobs, exact=state_out is not None)
    report()
    with _interruptions() as stopped:
        try:
            output.follow(session, drafts, labels, stopped)
        finally:
            # A closed pipe ends the text as Ctrl-C does.
            if state_out is not None:
                work.save(state_out, drafts)
    return 128 + stopped[0] if stopped else 0


def _follow_search(search: RecordSearch, output: Output) -> int:
    """Print the records, and say what became of the other texts."""
    with _interruptions() as stopped:
        output.follow_search(search, stopped)
    if thrown_away := search.report():
        say(thrown_away)
    if not stopped and (shortfall := search.shortfall()):
        raise CharwrightError(shortfall)
    return 128 + stopped[0] if stopped else 0


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """A list that gets the number of the first signal to arrive. A second signal ends the process at once."""
    stopped: list[int] = []

    def note(number: int, _: object) -> None:
        stopped.append(number)
        signal.signal(number, former[number])

    with handling(("SIGINT", "SIGTERM"), note) as former:
        yield stopped


def _refuse_contradictions(ctx: click.Context) -> None:
    """Check that no option needs another one that is missing, or makes no sense with one that is there."""
    params, has = ctx.params, given(ctx, ctx.params)
    if params["logprobs"] and not params["as_json"]:
        raise UsageError("--logprobs requires --json")
    if "beams" in has:
        if useless := [name for name in SAMPLING if name in has]:
            raise UsageError(f"--beams does not sample; remove {flag(useless[0])}")
        if {"state_in", "state_out"} & has.keys():
            raise UsageError("--beams cannot save or continue a state; remove --state-in and --state-out")
    if "corpus" in has and not {"novelty", "new", "max_copy", "adapt"} & has.keys():
        raise UsageError("--corpus requires --novelty, --max-copy, --new or --adapt")
    if params["adapt"] and {"state_in", "state_out"} & has.keys():
        raise UsageError("--adapt changes the weights to which a saved state belongs; remove one of them")
    if not params["new"] and (stray := [name for name in ("distance", "known") if name in has]):
        raise UsageError(f"{flag(stray[0])} requires --new")
    if params["new"] and (useless := [name for name in USELESS_WITH_NEW if name in has]):
        raise UsageError(f"{flag(useless[0])} {USELESS_WITH_NEW[useless[0]]}; remove it, or --new")
    if "state_in" in has and "label" in has:
        raise UsageError("--state-in continues texts that have their labels; remove --label")
    if "state_in" in has and "num" in has:
        raise UsageError("--state-in continues all texts of the file; remove --num")


def _refuse_bad_place(state_out: Path) -> None:
    """Check the path before generating, not after."""
    from charwright.generation.paused import holds_paused

    folder = state_out.parent
    if not state_out.name or (state_out.exists() and not state_out.is_file()):
        raise UsageError(f"--state-out: {state_out} is not a path for a file")
    if not folder.is_dir():
        raise UsageError(f"--state-out: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--state-out: the folder {folder} is not writable")
    if state_out.exists() and state_out.stat().st_size and not holds_paused(state_out):
        raise UsageError(f"--state-out: {state_out} is there and holds no paused text; choose another file")


def _unescaped(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the characters that escapes represent."""
    changed: dict[str, Any] = {name: unescaped(options[name]) for name in ("ban", "only") if name in options}
    if "stop" in options:
        if "" in options["stop"]:
            raise UsageError("--stop must not be empty")
        changed["stop"] = tuple(unescaped(text) for text in options["stop"])
    return options | changed


def _written_otherwise(prompt: str, unknown: Sequence[str], vocabulary: Vocabulary) -> str:
    """The hint that the model knows the unknown characters in another form; empty if it does not."""
    if r"\n" in prompt and "\\" in unknown:
        return r" (for a newline, a shell such as Bash has --prompt $'first line\nsecond line')"
    known = set(vocabulary.characters) if vocabulary.level == "character" else set()
    for form in ("NFC", "NFD"):
        if known.issuperset(normalize(form, prompt)):
            return f" (it knows their form {form}: train with --normalize nfc for texts that mix both)"
    return ""


def _report_oddities(prompt: str, generator: Generator, config: GenerationConfig, ctx: click.Context) -> None:
    """Report what works, but perhaps not as intended."""
    vocabulary, end = generator.vocabulary, generator.record_end
    begins = ctx.params["state_in"] is None
    if begins and ctx.params["prompt"] is not None and not prompt:
        say(f"the prompt is empty; starting at the beginning of a {'line' if end is None else 'record'}")
    if begins and vocabulary.labels and ctx.params["label"] is None:
        more = f" and {len(vocabulary.labels) - SHOWN_LABELS:,} more" if len(vocabulary.labels) > SHOWN_LABELS else ""
        say(f"the labels are {', '.join(vocabulary.labels[:SHOWN_LABELS])}{more}; --label NAME chooses one")
    if unknown := vocabulary.unknown_in(prompt):
        shown = " ".join(repr(character) for character in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        none_known = len(unknown) == len(set(prompt))
        which = "any of the prompt's characters" if none_known else shown
        say(f"the model has never seen {which}{_written_otherwise(prompt, unknown, vocabulary)}; continuing anyway")
    if config.temperature == 0 and config.num > 1 and end is None:
        say("at temperature 0 all texts are equal")
    for text in (*config.stop, *([end] if end else [])):
        if unknown := vocabulary.unknown_in(text):
            say(f"the model never generates {unknown[0]!r}: no text will end at {text!r}")
    if banned := set(end or "") & set(config.ban):
        say(f"--ban has {min(banned)!r}: no text will end at {end!r}")
