"""Assemble the notebooks from source.md, execute them, and compare what they show.

    python notebooks/assemble.py              execute both notebooks and write them with their outputs
    python notebooks/assemble.py --check      execute both, and exit 1 where an output differs from the one that is kept
    python notebooks/assemble.py --texts      write the texts and the code anew, and keep the outputs
    python notebooks/assemble.py en zh-TW     only these

`source.md` has both languages side by side: `<!-- en -->` and `<!-- zh-TW -->` begin the two versions of a text.
A cell of code is a block of Python whose first line names the cell and says how its outputs are compared:

    fixed     what it prints is equal
    numbers   what it prints is equal, with every number masked
    free      only the kinds of outputs are equal: text, HTML, picture

The block `zh-TW` after it translates: `ENGLISH => CHINESE` replaces a piece of the code, and `label ENGLISH => CHINESE`
a string in a picture, which stays English where no Chinese font is installed. The block `zh-TW append` adds lines.
In a text, `{cell:NAME}` is the number of a cell.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LANGUAGES = {"en": "text_generation.ipynb", "zh-TW": "text_generation.zh-TW.ipynb"}
COMPARED = ("fixed", "numbers", "free")
TIMEOUT_S = 600

_BLOCK = re.compile(
    r"^<!-- (?P<language>en|zh-TW) -->\n(?P<text>.*?)(?=^<!-- (?:en|zh-TW) -->$|^```python \w|\Z)"
    r"|^```python (?P<name>\w+) (?P<compared>\w+)\n(?P<code>.*?)^```$"
    r"|^```zh-TW(?P<append> append)?\n(?P<changes>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_CHINESE_BREAK = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff\uff00-\uffef])")
"""A line break within a Chinese paragraph, which would be shown as a space."""
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_FIELD = re.compile(r"\{[^{}]+\}")


class SourceError(Exception):
    """source.md is not as it should be."""


@dataclass
class Cell:
    """A cell: its text by language, or its code and what Chinese changes in it."""

    name: str
    texts: dict[str, str] = field(default_factory=dict)
    code: str = ""
    compared: str = ""
    changes: list[tuple[str, str]] = field(default_factory=list)
    appended: str = ""

    def source(self, language: str, numbers: Mapping[str, int]) -> str:
        """The cell in a language."""
        if not self.code:
            text = _CHINESE_BREAK.sub("", self.texts[language])
            return re.sub(r"\{cell:(\w+)\}", lambda match: str(numbers[match[1]]), text)
        if language == "en":
            return self.code
        code = self.code
        for english, chinese in self.changes:
            if english not in code:
                raise SourceError(f"the cell {self.name} has no {english}")
            code = code.replace(english, chinese)
        return code + self.appended


def read_source(text: str) -> list[Cell]:
    """The cells of source.md.

    Raises:
        SourceError: where a language is missing, or something lies between the cells.
    """
    cells: list[Cell] = []
    end = text.index("<!-- en -->")
    for match in _BLOCK.finditer(text, end):
        if text[end : match.start()].strip():
            raise SourceError(f"between the cells: {text[end : match.start()].strip()[:60]}")
        end = match.end()
        if language := match["language"]:
            if language == "en":
                cells.append(Cell(f"text-{len(cells)}"))
            cells[-1].texts[language] = match["text"].strip()
        elif match["name"]:
            cells.append(Cell(match["name"], code=match["code"].rstrip("\n"), compared=match["compared"]))
        elif match["append"]:
            cells[-1].appended = "\n\n" + match["changes"].rstrip("\n")
        else:
            cells[-1].changes = [_change(line) for line in match["changes"].splitlines() if line]
    for cell in cells:
        if not cell.code and set(cell.texts) != set(LANGUAGES):
            raise SourceError(f"a cell has only one language: {next(iter(cell.texts.values()))[:60]}")
        if cell.code and cell.compared not in COMPARED:
            raise SourceError(f"the cell {cell.name} is compared {cell.compared!r}, which is not one of {COMPARED}")
    return cells


def _change(line: str) -> tuple[str, str]:
    english, _, chinese = line.partition(" => ")
    if sorted(_FIELD.findall(english)) != sorted(_FIELD.findall(chinese)):
        raise SourceError(f"the fields in braces differ: {line}")
    if english.startswith("label "):
        english = english.removeprefix("label ")
        chinese = f"label({chinese}, {english})"
    return english, chinese


def numbers_of(cells: list[Cell]) -> dict[str, int]:
    """The numbers that the cells of code have when the notebook runs from top to bottom."""
    return {cell.name: number for number, cell in enumerate((cell for cell in cells if cell.code), start=1)}


def assemble(language: str, cells: list[Cell]) -> dict[str, Any]:
    """A notebook without outputs."""
    numbers = numbers_of(cells)
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "cells": [
            {"cell_type": "code", "execution_count": None, "outputs": [], **_part(cell, language, numbers)}
            if cell.code
            else {"cell_type": "markdown", **_part(cell, language, numbers)}
            for cell in cells
        ],
    }


def _part(cell: Cell, language: str, numbers: Mapping[str, int]) -> dict[str, Any]:
    return {"id": cell.name.replace("_", "-"), "metadata": {}, "source": cell.source(language, numbers)}


def execute(notebook: dict[str, Any], folder: Path) -> Any:
    """Run a notebook in a folder; returns it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: where a cell fails.
    """
    import nbclient
    import nbformat

    node = nbformat.from_dict(notebook)
    client = nbclient.NotebookClient(
        node, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        store_widget_state=False, record_timing=False,
    )  # fmt: skip
    # Models this small gain nothing from a second thread, and on a busy machine its thread would wait for others.
    client.execute(env={"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"} | os.environ)
    for cell in node.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = list(_joined(cell.outputs))
    node.metadata = nbformat.from_dict(notebook["metadata"])  # The kernel adds the version of this Python.
    return node


def _joined(outputs: list[Any]) -> Iterator[Any]:
    """The outputs, with what is printed in a row as one: how it was cut into pieces is a matter of time."""
    previous: Any = None
    for output in outputs:
        output.pop("transient", None)
        name = output.get("name")
        if previous is not None and name is not None and previous.get("name") == name:
            previous.text += output.text
            continue
        if previous is not None:
            yield previous
        previous = output
    if previous is not None:
        yield previous


def differences(cells: list[Cell], kept: Any, made: Any) -> Iterator[str]:
    """What a notebook shows otherwise than the one that is kept."""
    for cell, before, now in zip(cells, kept["cells"], made["cells"], strict=True):
        if not cell.code:
            continue
        if errors := [text for kind, text in shown(now) if kind == "stderr"]:
            yield f"[{now['execution_count']}] {cell.name} writes to stderr: {errors[0]}"
        if [kind for kind, _ in shown(before)] != [kind for kind, _ in shown(now)]:
            kinds = " instead of ".join(", ".join(kind for kind, _ in shown(which)) for which in (now, before))
            yield f"[{now['execution_count']}] {cell.name} shows {kinds}"
            continue
        for (_, old), (_, new) in zip(shown(before), shown(now), strict=True):
            if _masked(old, cell.compared) != _masked(new, cell.compared):
                yield f"[{now['execution_count']}] {cell.name}:\n{new}\ninstead of\n{old}"


def shown(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The outputs of a cell: the kind of each, and its text if it is one."""
    found: list[tuple[str, str]] = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            found.append((output["name"], output["text"]))
            continue
        data = output.get("data", {})
        best = next((kind for kind in ("image/png", "text/html", "text/plain") if kind in data), output["output_type"])
        found.append((best, "" if best == "image/png" else data.get(best, "")))
    return found


def _masked(text: str, compared: str) -> str:
    """What of a text is compared."""
    if compared == "free":
        return ""
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r" +", " ", _NUMBER.sub("0", text)) if compared == "numbers" else text


def text_is_missing() -> str:
    """Why the notebooks would go on with another text than the one whose outputs they keep; "" if they would not."""
    import charwright as cw

    try:
        cw.read_corpus("shakespeare")
    except cw.CharwrightError as error:
        return str(error)
    return ""


def with_outputs(notebook: dict[str, Any], kept: Any) -> Any:
    """A notebook with the outputs of the one that is kept, cell by cell."""
    found = {cell["id"]: cell for cell in kept["cells"] if cell["cell_type"] == "code"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and cell["id"] in found:
            cell |= {key: found[cell["id"]][key] for key in ("outputs", "execution_count")}
    return notebook


def main() -> int:
    """Write or check the notebooks."""
    import tempfile

    import nbformat

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where an output differs")
    parser.add_argument("--texts", action="store_true", help="write the texts and the code, and keep the outputs")
    parser.add_argument("languages", nargs="*", choices=[*LANGUAGES, []], help="en, zh-TW (default: both)")
    arguments = parser.parse_args()
    cells = read_source((HERE / "source.md").read_text(encoding="utf-8"))
    if shared := os.environ.get("CHARWRIGHT_SHARED"):
        os.environ["CHARWRIGHT_DATA"] = str(Path(shared) / "data")
    if not arguments.texts and (reason := text_is_missing()):
        print(f"{'skipped' if arguments.check else 'not written'}: {reason}", file=sys.stderr)
        return 0 if arguments.check else 1
    found = 0
    for language in arguments.languages or LANGUAGES:
        path, began = HERE / LANGUAGES[language], time.monotonic()
        kept = nbformat.read(path, as_version=4) if path.exists() else {"cells": []}
        if arguments.texts:
            nbformat.write(nbformat.from_dict(with_outputs(assemble(language, cells), kept)), path)
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = execute(assemble(language, cells), Path(folder))
        print(f"{path.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        if not arguments.check:
            nbformat.write(made, path)
            continue
        for difference in differences(cells, kept, made):
            found += 1
            print(f"{path.name} {difference}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
