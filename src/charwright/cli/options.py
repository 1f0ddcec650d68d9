"""Config dataclasses become command line options: name, help, default and choices all come from the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from charwright.config import flag, option_types

Command = TypeVar("Command", bound=Callable[..., Any])


class SectionedOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    section: str | None = None


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the plain options first, then each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # The usage line and the text above speak of the arguments.
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", None) or "Options", []).append(record)
        plain = sections.pop("Options", [])
        for name, records in {"Options": plain, **sections}.items():
            with formatter.section(name):
                formatter.write_dl(records)


class _WordOr(click.ParamType[Any]):
    """A number, or the word that stands for None."""

    def __init__(self, inner: click.ParamType[Any], word: str) -> None:
        self.inner, self.word = inner, word
        self.name = f"{inner.name}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == self.word else self.inner.convert(value, param, ctx)


def config_options(
    config: Any, section: str, *, only: Iterable[str] | None = None, planned: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """Give a command an option for each field of `config`, an instance whose values are shown as the defaults.

    Those that are `planned` have no default of their own.
    """
    kinds = option_types(type(config))
    names = [item for item in dataclasses.fields(config) if only is None or item.name in set(only)]

    def decorate(command: Command) -> Command:
        for item in reversed(names):
            default = "planned" if item.name in set(planned) else getattr(config, item.name)
            command = _option(item, kinds[item.name][0], default, section)(command)
        return command

    return decorate


def _option(item: dataclasses.Field[Any], kind: type, default: Any, section: str) -> Callable[[Command], Command]:
    word = item.metadata["none_word"]
    shown = word if default is None else default
    help_text = item.metadata["help"]
    if shown not in {None, "", ()} and kind is not bool:
        help_text += f"  [default: {shown:g}]" if isinstance(shown, float) else f"  [default: {shown}]"
    choices = item.metadata["choices"]
    plain: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, str: click.STRING}
    plain[tuple] = click.STRING
    type_ = plain.get(kind)
    if choices:
        type_ = click.Choice(choices)
    elif word and type_ is not None:
        type_ = _WordOr(type_, word)
    spelling = f"{flag(item.name)}/{flag('no_' + item.name)}" if kind is bool else flag(item.name)

    class Option(SectionedOption):
        pass

    Option.section = section
    several = kind is tuple
    return click.option(spelling, item.name, cls=Option, type=type_, multiple=several, default=None, help=help_text)


def given(ctx: click.Context, names: Iterable[str]) -> dict[str, Any]:
    """Those of the named options that the user gave."""
    default = (ParameterSource.DEFAULT, None)
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) not in default}


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
core_option = click.option(
    "--core", default="auto", show_default=True, help="The recurrent core: auto, native, fused, torch or plain."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the CPU to use.  [default: all cores]"
)


def say(line: str) -> None:
    """A word to the person at the terminal, on stderr; the work goes on when nobody listens."""
    with suppress(BrokenPipeError):
        click.echo(line, err=True)


def fresh_seed(below: int = 2**32) -> int:
    """A seed for who named none: another one each time."""
    import secrets

    return secrets.randbelow(below)


def field_names(*configs: type) -> list[str]:
    """The names of all fields of some config classes."""
    return [item.name for config in configs for item in dataclasses.fields(config)]
