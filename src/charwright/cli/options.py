"""Turns the config dataclasses into command line options: name, help, default and choices come from the field."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from charwright.arguments import MOST_THREADS
from charwright.errors import UsageError
from charwright.schema import SEEDS, flag, old_name, option_types

END_OF_INPUT = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
"""What ends the text that is typed."""
WEIGHT_DROPOUT_ADVICE = "it made every trial worse; try --recurrent-dropout"

Command = TypeVar("Command", bound=Callable[..., Any])


class SectionedOption(click.Option):
    """An option with a section in the help."""

    section: str | None = None


def in_section(name: str) -> type[SectionedOption]:
    """The class of the options in a section."""
    return type("Option", (SectionedOption,), {"section": name})


class RenamedOption(click.Option):
    """A hidden option with the name of the previous version, which sets the present one."""

    new: str

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert the value; a wrong one may be meant for an option with a similar name."""
        try:
            return super().type_cast_value(ctx, value)
        except click.BadParameter as error:
            names = [item.name or "" for item in ctx.command.params if not getattr(item, "hidden", False)]
            old = self.opts[0].removeprefix("--").replace("-", "_")
            said = f"{error.message.rstrip('.')} ({old_name(old, self.new, names)})"
            raise click.BadParameter(said, ctx, self) from error

    def apply(self, ctx: click.Context) -> None:
        """Move the value to the present name, with a notice.

        Raises:
            UsageError: when both names are given.
        """
        value = ctx.params.pop(self.name)
        if value is None:
            return
        old = self.opts[0]
        if ctx.get_parameter_source(self.new) == ParameterSource.COMMANDLINE:
            raise UsageError(f"{old} is now {flag(self.new)}; use only the new name")
        say(f"{old} is now {flag(self.new)}; the old name works in this version only")
        ctx.params[self.new] = value
        ctx.set_parameter_source(self.new, ParameterSource.COMMANDLINE)


class NamedPath(click.Path):
    """A path; an empty one, such as that of a variable which is not set, would be the current folder."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's own, of a path that is not empty."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class SectionedCommand(click.Command):
    """A command whose help groups its options into sections, and which accepts renamed options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; the values of renamed options move when all others are in place."""
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hidden = {name for item in self.params if getattr(item, "hidden", False) for name in item.opts}
            similar = [name for name in error.possibilities or () if name not in hidden]
            raise click.NoSuchOption(error.option_name, possibilities=similar, ctx=ctx) from error
        for parameter in self.params:
            if isinstance(parameter, RenamedOption):
                parameter.apply(ctx)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options without a section first, then each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # Arguments are described by the usage line and the text.
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", None) or "Options", []).append(record)
        plain = sections.pop("Options", [])
        for name, records in {"Options": plain, **sections}.items():
            with formatter.section(name):
                formatter.write_dl(records)


class _WordOr(click.ParamType[Any]):
    """A number, or the word for None."""

    def __init__(self, inner: click.ParamType[Any], word: str) -> None:
        self.inner, self.word = inner, word
        self.name = f"{inner.name}|{word}"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  (of the interface)
        return f"{self.inner.name.upper()}|{self.word}"  # The word is in lower case, as it is to be typed.

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == self.word:
            return None
        try:
            return self.inner.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither a valid {self.inner.name} nor {self.word!r}", param, ctx)


def config_options(
    config: Any, section: str, *, only: Iterable[str] | None = None, planned: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """Add an option for each field of `config`, an instance whose values are shown as the defaults.

    `planned` options show "planned" instead of a default. Names of the previous version still work, with a notice.
    """
    kinds = option_types(type(config))
    fields = [item for item in dataclasses.fields(config) if only is None or item.name in set(only)]
    old_names = {new: old for old, new in config.RENAMED.items()}

    def decorate(command: Command) -> Command:
        for item in reversed(fields):
            default = "planned" if item.name in set(planned) else getattr(config, item.name)
            command = _option(item, kinds[item.name][0], default, section)(command)
            if item.name in old_names:
                command = _renamed_option(old_names[item.name], item, kinds[item.name][0])(command)
        return command

    return decorate


def _option(item: dataclasses.Field[Any], kind: type, default: Any, section: str) -> Callable[[Command], Command]:
    shown = item.metadata["none_word"] if default is None else default
    help_text = item.metadata["help"]
    if shown not in {None, "", ()} and (kind is not bool or shown == "planned"):
        help_text += f"  [default: {shown:g}]" if isinstance(shown, float) else f"  [default: {shown}]"
    spelling = f"{flag(item.name)}/{flag('no_' + item.name)}" if kind is bool else flag(item.name)
    several = kind is tuple
    type_ = _click_type(item, kind)
    return click.option(
        spelling, item.name, cls=in_section(section), type=type_, multiple=several, default=None, help=help_text
    )


def _click_type(item: dataclasses.Field[Any], kind: type) -> click.ParamType[Any] | None:
    plain: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, str: click.STRING}
    plain[tuple] = click.STRING
    type_ = plain.get(kind)
    if choices := item.metadata["choices"]:
        return click.Choice(choices)
    word = item.metadata["none_word"]
    return _WordOr(type_, word) if word and type_ is not None else type_


def _renamed_option(old: str, item: dataclasses.Field[Any], kind: type) -> Callable[[Command], Command]:
    class Option(RenamedOption):
        new = item.name

    return click.option(flag(old), f"old_{old}", cls=Option, type=_click_type(item, kind), hidden=True)


def removed_option(spelling: str, advice: str) -> Callable[[Command], Command]:
    """A hidden option that no longer exists: it is refused with advice."""

    def refuse(_: click.Context, __: click.Parameter, value: Any) -> None:
        if value is not None:
            raise UsageError(f"{spelling} no longer exists: {advice}")

    return click.option(spelling, hidden=True, expose_value=False, callback=refuse)


def given(ctx: click.Context, names: Iterable[str]) -> dict[str, Any]:
    """The named options that the user gave, with their values."""
    default = (ParameterSource.DEFAULT, None)
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) not in default}


device_option = click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda or mps.")
core_option = click.option(
    "--core", default="auto", show_default=True, help="Recurrent core: auto, native, fused, torch or plain."
)
_threads = click.IntRange(min=1, max=MOST_THREADS)
threads_option = click.option("--threads", type=_threads, help="Number of CPU threads.  [default: all cores]")

engine_precision_option = click.option(
    "--precision",
    type=click.Choice(["q8", "bf16", "f32"]),
    default="q8",
    show_default=True,
    help="Arithmetic: 8-bit integers, which give the same text on every machine, or floating point.",
)
engine_threads_option = click.option(
    "--threads", type=_threads, help="Maximum number of CPU threads.  [default: all cores]"
)


def seed_option(default: int, help_text: str) -> Callable[[Command], Command]:
    """Add `--seed`; click shows its range."""
    return click.option("--seed", type=click.IntRange(0, SEEDS - 1), default=default, show_default=True, help=help_text)


def say(line: str) -> None:
    """Print a line for the user on stderr; a closed pipe or terminal is ignored."""
    with suppress(OSError):
        click.echo(line, err=True)


def unescaped(text: str) -> str:
    r"""Replace \n, \t and \\ by the characters they represent."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)


def fresh_seed(below: int = 2**32) -> int:
    """A random seed, for when none is given."""
    import secrets

    return secrets.randbelow(below)


def without_teachers(words: Iterable[str]) -> list[str]:
    """The arguments without the folders of teachers, which `runs/*` names too, and a line about each."""
    from charwright.run_place import holds_teachers

    kept = []
    for word in words:
        if holds_teachers(Path(word)):
            say(f"{word} holds teachers, which are left out; name one as {word}/1")
        else:
            kept.append(word)
    return kept
