"""The reference of the public Python names, from the source: signatures, docstrings, fields and methods.

The source is parsed and not imported where it can be, so that annotations and defaults stand as they are written.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import operator
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "charwright"
WIDTH = 100
SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "Train a text": ("train", "resume", "plan", "train_ensemble", "RECIPES"),
    "Generate text": ("load", "Generator", "Completion", "Completions", "CopyGuard", "Novelty"),
    "Measure, explain and plot": (
        "evaluate",
        "Evaluation",
        "score",
        "Score",
        "explain",
        "Explanation",
        "plot",
        "LearningCurves",
    ),
    "Texts and vocabularies": (
        "read_corpus",
        "Corpus",
        "split_corpus",
        "Records",
        "make_vocabulary",
        "Vocabulary",
    ),
    "A training loop of your own": (
        "LanguageModel",
        "Streams",
        "Excerpts",
        "Windows",
        "RecordStreams",
        "fit",
        "train_step",
        "Batch",
        "make_optimizer",
        "watch",
    ),
    "The run folder": ("Run",),
    "The engine, step by step": ("Engine", "Session", "Draft", "Fragment"),
    "Options": (
        "Recipe",
        "CorpusConfig",
        "VocabularyConfig",
        "RecordsConfig",
        "SplitConfig",
        "SequenceConfig",
        "ModelConfig",
        "TrainingConfig",
        "GenerationConfig",
    ),
}
"""The names of the package by subject, in the order of the page."""
EVENTS = ("Event", "Start", "Resume", "Step", "Validation", "Epoch", "Rollback", "Sample", "Checkpoint", "End")
FURTHER: Mapping[str, tuple[str, ...]] = {
    "training.events": EVENTS,
    "training.snapshot": ("Snapshot",),
    "training.ranks": ("join", "Ranks"),
    "planning.plan": ("Plan",),
    "data.parts": ("Places",),
}
"""What stands in signatures and is imported from its own module."""
MEMBERS: Mapping[str, tuple[str, ...]] = {"Ranks": ("leave",)}
"""The methods that callers need, of a class whose others are for the training loop."""
_SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Yields:": "Yields", "Raises:": "Raises"}
_BOUND_WORDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}


def reference() -> list[str]:
    """The parts of the page: a table of all names, then each name by subject."""
    import charwright

    listed = [name for names in SUBJECTS.values() for name in names]
    if sorted([*listed, "CharwrightError"]) != sorted(charwright._HOMES):
        raise SystemExit(
            f"docs/python_names.py lists other names than the package: {set(listed) ^ {*charwright._HOMES}}"
        )
    parts = [_contents()]
    for subject, names in SUBJECTS.items():
        parts.append(f"## {subject}")
        for name in names:
            parts += _described(name, charwright._HOMES[name])
    parts += ["## Further types", "What these names take and return, each imported from its own module."]
    for module, names in FURTHER.items():
        for name in names:
            parts += _described(name, module)
    signatures = "\n".join(part for part in parts if part.startswith("```"))
    return [*parts, "## Aliases", "Types that have a short name in the signatures.", _aliases(signatures)]


def first_words(docstring: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


def _contents() -> str:
    import charwright

    lines = ["| | |", "|---|---|"]
    for subject, names in SUBJECTS.items():
        lines.append(f"| **[{subject}](#{_anchor(subject)})** | |")
        for name in names:
            node = _definition(name, charwright._HOMES[name])
            words = first_words(ast.get_docstring(node)) if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
            lines.append(
                f"| [`{name}`](#{_anchor(name)}) | {(words or 'Named recipes.').replace('|', chr(92) + '|')} |"
            )
    return "\n".join(lines)


def _aliases(signatures: str) -> str:
    """The definitions of the aliases that occur in some signatures."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if re.search(rf": .*\b{name}\b", signatures):
                    if name[0].isupper() and not name.isupper() and "TypeVar" not in ast.unparse(value):
                        found.setdefault(name, ast.unparse(value))
    return "\n".join(f"- `{name}`: `{found[name]}`" for name in sorted(found))


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@functools.cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    """What a module defines at its top level, by name."""
    loaded = importlib.import_module(f"charwright.{module}")
    parsed = ast.parse(inspect.getsource(loaded))
    for node in ast.walk(parsed):
        if isinstance(node, ast.arguments):
            node.defaults = [_constant(default, loaded) for default in node.defaults]
            node.kw_defaults = [default and _constant(default, loaded) for default in node.kw_defaults]
    return {name: node for node in parsed.body for name in _defined(node)}


def _constant(default: ast.expr, module: ModuleType) -> ast.expr:
    """A default; of a constant its value instead of its name."""
    if not isinstance(default, ast.Name | ast.Attribute):
        return default
    value = operator.attrgetter(ast.unparse(default))(module)
    return ast.Constant(value) if isinstance(value, str | int | float) else default


def _definition(name: str, module: str) -> ast.stmt:
    return _definitions(module)[name]


def _defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def _described(name: str, module: str) -> Iterator[str]:
    """A name: its heading, its signature, its docstring, and what it has."""
    yield f"### `{name}`"
    node, value = _definition(name, module), getattr(importlib.import_module(f"charwright.{module}"), name)
    place = f"In `charwright.{module}`."
    if isinstance(node, ast.FunctionDef):
        yield _fenced(_signature(node.name, node))
        yield from _documented(ast.get_docstring(node))
        yield place
    elif isinstance(node, ast.ClassDef):
        yield from _class(node, value)
        yield place
    else:
        yield f"Holds {', '.join(f'`{key}`' for key in value)}." if isinstance(value, dict) else f"`{value!r}`"
        yield place


def _class(node: ast.ClassDef, value: type) -> Iterator[str]:
    """A class: how it is created, what it is, its fields, its methods and those that it inherits."""
    init = next((item for item in _functions(node) if item.name == "__init__"), None)
    if init is not None:
        yield _fenced(_signature(node.name, init, skip_first=True))
    yield from _documented(ast.get_docstring(node))
    if init is not None and (words := ast.get_docstring(init)):
        yield from _documented(words)
    bases = [base for base in value.__mro__[1:] if base.__module__.startswith("charwright.")]
    if dataclasses.is_dataclass(value):
        yield from _fields(value, [value, *bases])
    else:
        yield from _attributes(node)
    members = {item.name: item for cls in [*reversed(bases), value] for item in _functions(_source(cls))}
    public = [item for item in members.values() if not item.name.startswith("_") and ast.get_docstring(item)]
    public = [item for item in public if item.name in MEMBERS.get(node.name, members)]
    properties = [item for item in public if _decorators(item) & {"property", "cached_property"}]
    if properties:
        yield "\n".join(map(_property, properties))
    for item in public:
        if item not in properties:
            yield from _method(node.name, item)


def _source(value: type) -> ast.ClassDef:
    node = _definition(value.__name__, value.__module__.removeprefix("charwright."))
    assert isinstance(node, ast.ClassDef)
    return node


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [item for item in node.body if isinstance(item, ast.FunctionDef)]


def _decorators(method: ast.FunctionDef) -> set[str]:
    return {ast.unparse(decorator) for decorator in method.decorator_list}


def _property(method: ast.FunctionDef) -> str:
    """A property as an entry of a list; what its docstring says of errors is part of it."""
    kind = f": {ast.unparse(method.returns)}" if method.returns is not None else ""
    return f"- `{method.name}{kind}`: {' '.join((ast.get_docstring(method) or '').split())}"


def _method(owner: str, method: ast.FunctionDef) -> Iterator[str]:
    """A method with its signature and its docstring."""
    decorators = _decorators(method)
    prefix = f"{owner}." if decorators & {"staticmethod", "classmethod"} else ""
    yield f"#### `{owner}.{method.name}`"
    yield _fenced(_signature(prefix + method.name, method, skip_first="staticmethod" not in decorators))
    yield from _documented(ast.get_docstring(method))


# Signatures.


def _signature(name: str, function: ast.FunctionDef, *, skip_first: bool = False) -> str:
    """The call with types and defaults, on one line if it fits."""
    arguments, returns = function.args, function.returns
    parts = list(_parameters(arguments, skip_first=skip_first))
    shown = function.name != "__init__" and returns is not None
    result = f" -> {ast.unparse(returns)}" if shown and returns is not None else ""
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def _parameters(arguments: ast.arguments, *, skip_first: bool) -> Iterator[str]:
    plain = arguments.args
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    yield from [_parameter(*pair) for pair in zip(plain, defaults, strict=True)][skip_first:]
    if arguments.vararg:
        yield f"*{_parameter(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    yield from (_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    if arguments.kwarg:
        yield f"**{_parameter(arguments.kwarg, None)}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    typed = f"{argument.arg}: {ast.unparse(argument.annotation)}" if argument.annotation else argument.arg
    return typed if default is None else f"{typed} = {ast.unparse(default)}"


# Docstrings.


def _documented(docstring: str | None) -> Iterator[str]:
    """A docstring as paragraphs and lists: its sections are lists of what they name."""
    paragraphs = [paragraph for paragraph in (docstring or "").split("\n\n") if paragraph.strip()]
    for paragraph in paragraphs:
        title, *lines = paragraph.strip("\n").splitlines()
        if title in _SECTIONS:
            yield _section(_SECTIONS[title], textwrap.dedent("\n".join(lines)).splitlines())
        elif title.startswith(">>>"):
            yield _fenced("\n".join(line.partition("# doctest:")[0].rstrip() for line in [title, *lines]))
        elif all(line.startswith("    ") for line in [title, *lines]):
            yield _fenced(textwrap.dedent("\n".join([title, *lines])))
        else:
            yield "\n".join([title, *lines])


def _section(title: str, lines: Sequence[str]) -> str:
    """A section of a docstring: a sentence, or a list whose entries are `name: words`."""
    if title in ("Returns", "Yields"):
        return f"{title}: {' '.join(line.strip() for line in lines)}"
    entries: list[str] = []
    for line in lines:
        if line.startswith(" "):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    return "\n".join([f"{title}:", "", *(f"- {_entry(entry)}" for entry in entries)])


def _entry(entry: str) -> str:
    name, divider, words = entry.partition(": ")
    return f"`{name}`: {words}" if divider else entry


# Fields.


def _fields(value: Any, classes: Sequence[type]) -> Iterator[str]:
    """The public fields of a dataclass: a table of options with their bounds, or a list with their docstrings."""
    public = [item for item in dataclasses.fields(value) if not item.name.startswith("_")]
    if any(item.metadata.get("help") for item in public):
        yield _option_table(public)
        return
    words: dict[str, str] = {}
    for cls in reversed(classes):
        words |= _attribute_docstrings(_source(cls))
    yield "\n".join(_field_line(item, words.get(item.name, "")) for item in public)


def _field_line(item: dataclasses.Field[Any], words: str) -> str:
    default = "" if item.default is dataclasses.MISSING else f" = {item.default!r}"
    typed = f"- `{item.name}: {item.type}{default}`"
    return f"{typed}: {' '.join(words.split())}" if words else typed


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    """The public attributes of a class that its body declares with a docstring."""
    words = {name: text for name, text in _attribute_docstrings(node).items() if not name.startswith("_")}
    if words:
        yield "\n".join(f"- `{name}`: {' '.join(text.split())}" for name, text in words.items())


def _attribute_docstrings(node: ast.ClassDef) -> dict[str, str]:
    """The strings that follow the annotated names in the body of a class."""
    found = {}
    for item, following in zip(node.body, node.body[1:], strict=False):
        match item, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found


def _option_table(fields: Sequence[dataclasses.Field[Any]]) -> str:
    rows = ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
    for item in fields:
        default = "" if item.default is dataclasses.MISSING else f"`{item.default!r}`"
        kind = str(item.type).replace("|", "\\|")
        rows.append(
            f"| `{item.name}` | `{kind}` | {default} | {item.metadata.get('help', '')}{_bounds(item.metadata)} |"
        )
    return "\n".join(rows)


def _bounds(metadata: Mapping[str, Any]) -> str:
    """The bounds in words; the limits of 64-bit integers are left out."""
    bounds = {key: metadata.get(key) for key in _BOUND_WORDS}
    words = [
        f"{_BOUND_WORDS[key]} {_number(bound)}" for key, bound in bounds.items() if bound is not None and bound < 2**62
    ]
    if metadata.get("choices"):
        words.append(", ".join(metadata["choices"]))
    return f" ({'; '.join(words)})" if words else ""


def _number(bound: float) -> str:
    """A bound as it is, the largest by their powers of two."""
    for bits in (31, 32, 53):
        if bound in (2**bits, 2**bits - 1):
            return f"2^{bits}" + (" - 1" if bound < 2**bits else "")
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"
