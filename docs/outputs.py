"""Run the commands and programs that the pages show, and compare the output that they show with the real one.

    python docs/outputs.py PAGE...            run the pages; exit 1 if an output differs, and show the real one
    python docs/outputs.py --write PAGE...    also replace the lines that differ

An output is a fenced block marked `text`, `console` or `json`. It belongs to the closest `sh` or `python` block, or
`run:` comment, before it. These comments, which a rendered page does not show, stand alone before a block:

    <!-- run -->                    run the sh block that follows, although no output follows it
    <!-- run: COMMANDS -->          run these commands as well; an output may follow
    <!-- run instead: COMMANDS -->  run these commands in place of the sh block that follows
    <!-- numbers vary -->           compare the output that follows with every number masked
    <!-- file: NAME -->             the block that follows is a file of this name, not an output
    <!-- illustration: WHAT -->     the block that follows is a formula, diagram or the like, not an output

In an output, `...` matches the rest of a line, and a line of `...` alone any number of lines.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS = ("text", "console", "json")
WORDS = ["the", "a", "of", "and", "to", "in", "that", "it", "was", "his", "her", "with", "as", "for", "had", "you"]
WORDS += ["not", "be", "on", "at", "by", "which", "have", "or", "from", "this", "river", "house", "morning", "letter"]
WORDS += ["garden", "winter", "captain", "window", "silence", "story", "evening", "water", "stone", "light"]
ACCENTED = ["déjà", "façon", "être", "île", "hôtel", "où", "ú", "ü", "œuvre", "—", "très"]
GENERATED = "<!-- Written by docs/generate.py"
"""The first words of the notice on a page that docs/generate.py writes as a whole."""

_ELEMENT = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^ *```$"
    r"|^<!-- (?P<comment>[^\n]*?)(?P<more>\n.*?)? ?-->$"
    r"|^(?P<heading>#+ [^\n]*)$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


@dataclass
class Step:
    """Commands or a program to run, in the order of the page."""

    language: str
    source: str
    output: Output | None = None


@dataclass(frozen=True)
class Output:
    """An output that a page shows; `start` and `end` delimit its text within the page."""

    text: str
    line: int
    start: int
    end: int
    numbers_vary: bool

    def matches(self, real: str) -> bool:
        """Whether the real output is the one shown, but for the placeholders."""
        lines = [_pattern(line, self.numbers_vary) for line in self.text.splitlines()]
        return re.fullmatch("".join(lines), _clean(real)) is not None

    def merged_with(self, real: str) -> str:
        """The real output, with the lines that are shown already kept as they are."""
        shown = [(re.compile(_pattern(line, self.numbers_vary)), line) for line in self.text.splitlines()]
        shown = [(pattern, line) for pattern, line in shown if line.strip() != "..."]
        found = []
        for line in _clean(real).splitlines():
            found.append(next((old for pattern, old in shown if pattern.fullmatch(line + "\n")), line))
        return "\n".join(found) + "\n"


@dataclass
class Page:
    """What a page runs, the files that it shows, and the output blocks that nothing produces."""

    steps: list[Step] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    uncovered: list[int] = field(default_factory=list)

    @property
    def checked(self) -> list[Step]:
        """The steps whose output the page shows."""
        return [step for step in self.steps if step.output is not None]


def read_page(text: str) -> Page:
    """Parse a page. Only what produces an output, or is marked to run, becomes a step."""
    return _Reader(text).read()


class _Reader:
    """Reads a page from top to bottom."""

    def __init__(self, text: str) -> None:
        self.text, self.page = text, Page()
        self.steps: list[tuple[Step, bool]] = []
        """The steps so far, each with whether a comment says to run it."""
        self.producer: Step | None = None
        self.comment, self.comment_end = "", 0
        self.generated = GENERATED in text

    def read(self) -> Page:
        """The whole page."""
        for match in _ELEMENT.finditer(self.text):
            if match["heading"]:
                self.producer = None
            elif match["comment"] is not None:
                self._comment(match)
            else:
                self._block(match)
        in_python = any(step.language == "python" and step.output for step, _ in self.steps)
        self.page.steps = [
            step
            for step, marked in self.steps
            if marked or step.output is not None or (in_python and step.language == "python")
        ]
        return self.page

    def _comment(self, match: re.Match[str]) -> None:
        words = match["comment"].strip()
        if words.endswith((":begin", ":end")):
            self.generated = words.endswith(":begin")
            return
        if run := re.match(r"run( instead)?:", words):
            commands = words[run.end() :] + (match["more"] or "")
            self._step("sh", commands.strip() + "\n", marked=True)
            words = run[0]
        self.comment, self.comment_end = words, match.end()

    def _block(self, match: re.Match[str]) -> None:
        language, body = match["language"], match["body"]
        comment = "" if self.text[self.comment_end : match.start()].strip() else self.comment
        kind, _, name = comment.partition(": ")
        if language == "sh" and comment != "run instead:":
            self._step("sh", body, marked=comment == "run")
        elif language == "python":
            self._step("python", body, marked=False)
        elif kind == "file":
            self.page.files[name] = body
        elif language in OUTPUTS and not self.generated and not (kind == "illustration" and name):
            self._output(match, numbers_vary=comment == "numbers vary")

    def _step(self, language: str, source: str, *, marked: bool) -> None:
        self.producer = Step(language, source)
        self.steps.append((self.producer, marked))

    def _output(self, match: re.Match[str], *, numbers_vary: bool) -> None:
        line = self.text.count("\n", 0, match.start()) + 1
        if self.producer is None or self.producer.output is not None:
            self.page.uncovered.append(line)
        else:
            start, end = match.span("body")
            self.producer.output = Output(match["body"], line, start, end, numbers_vary)


def _clean(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def _pattern(line: str, numbers_vary: bool) -> str:
    """A regular expression for a line as a page shows it."""
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*?"
    pieces = line.rstrip().split("...")
    if not numbers_vary:
        return r"[^\n]*?".join(map(re.escape, pieces)) + r"\n"
    masked = [re.sub(r"(?:\\ )+", r" +", _NUMBER.sub("0", re.escape(piece))) for piece in pieces]
    return r"[^\n]*?".join(piece.replace("0", _NUMBER.pattern) for piece in masked) + r" *\n"


# Running.


def run_page(page: Page, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Run a page's steps in a folder; returns what each printed, errors and all.

    Raises:
        RuntimeError: where a program fails, or a command whose output the page does not show.
    """
    for name, body in page.files.items():
        (folder / name).write_text(body, encoding="utf-8")
    commands = Path(tempfile.mkdtemp())
    charwright = commands / "charwright"
    charwright.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m charwright "$@"\n', encoding="utf-8")
    charwright.chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    sources = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    steps = [[step.language, step.source, step.output is not None] for step in page.steps]
    done = subprocess.run(
        [sys.executable, __file__, "--drive"],
        input=json.dumps(steps),
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1", "PATH": path, "PYTHONPATH": sources, "CURL_HOME": "."} | dict(environment),
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    shutil.rmtree(commands)
    if done.returncode:
        raise RuntimeError(done.stderr)
    printed: list[str] = json.loads(done.stdout)
    return printed


def _drive() -> None:
    """Run the steps on standard input, and print as JSON what they printed. Programs share their names."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = []
    for language, source, shown in json.load(sys.stdin):
        if language == "python":
            stream = io.StringIO()
            with contextlib.redirect_stdout(stream):
                exec(compile(source, "<page>", "exec"), names)
            printed.append(stream.getvalue())
            continue
        command = ["bash", "-c", source] if shown else ["bash", "-e", "-c", source]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        if done.returncode and not shown:
            sys.exit(f"{source}failed:\n{done.stdout}")
        printed.append(done.stdout)
    print(json.dumps(printed))


def write_corpora(folder: Path) -> None:
    """Write the small texts that pages use in their commands."""
    for seed, (name, length) in enumerate({"novel": 40_000, "another": 12_000, "more": 20_000}.items()):
        (folder / f"{name}.txt").write_text(_prose(WORDS, Random(seed), length), encoding="utf-8")
    letters = _prose([*WORDS, *ACCENTED], Random(9), 20_000)
    (folder / "letters.txt").write_text(letters, encoding="utf-8")


def _prose(words: Sequence[str], random: Random, length: int) -> str:
    sentences: list[str] = []
    while sum(map(len, sentences)) < length:
        first, rest = random.choice(words[:20]), random.choices(words, k=random.randint(2, 11))
        sentences.append(" ".join([first.capitalize(), *rest]) + random.choice([". ", "? ", ".\n"]))
    return "".join(sentences)[:length]


def check_page(path: Path, folder: Path, environment: Mapping[str, str] | None = None) -> list[tuple[Output, str]]:
    """The outputs of a page that are not what they show, each with the real one."""
    page = read_page(path.read_text(encoding="utf-8"))
    write_corpora(folder)
    printed = run_page(page, folder, environment or {})
    shown = [(step.output, real) for step, real in zip(page.steps, printed, strict=True) if step.output]
    return [(output, real) for output, real in shown if not output.matches(real)]


def main() -> int:
    """Check pages, or write their outputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the lines that differ")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("pages", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.drive:
        _drive()
        return 0
    differ = False
    for path in arguments.pages:
        with tempfile.TemporaryDirectory() as folder:
            found = check_page(path, Path(folder))
        text = path.read_text(encoding="utf-8")
        for output, real in reversed(found):
            differ = True
            print(f"{path}:{output.line}: the output is\n{real}", file=sys.stderr)
            text = text[: output.start] + output.merged_with(real) + text[output.end :]
        if arguments.write:
            path.write_text(text, encoding="utf-8")
    return int(differ and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
