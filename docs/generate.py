"""Generate the parts of the documentation that come from the code: help pages, names, the file tree, the sample.

    python docs/generate.py                     write all generated pages
    python docs/generate.py --check             exit 1 if a page is out of date
    python docs/generate.py --sample RUN        also generate the READMEs' sample and figures from a trained run
    python docs/generate.py --picture RUN       also write the READMEs' picture of what a trained run has learned

`make docs` runs the first of these. docs/outputs.py checks the outputs that the other pages show.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_names import reference

if TYPE_CHECKING:
    import click

    from charwright.run import Run

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "charwright"
READMES = ("README.md", "README.zh-TW.md")
ARCHITECTURE = "docs/explanation/architecture.md"
PICTURE = "docs/images/explained.png"
PICTURE_BYTES = 200_000
SAMPLE_LENGTH = 400
NOVELTY_LENGTH = 10_000
TRIALS = "docs/explanation/trials.md"
WIDTH = 100
SUFFIXES = (".py", ".c", ".h")
PACKAGES: tuple[str, ...] = (
    "data",
    "model",
    "kernels",
    "training",
    "generation",
    "evaluation",
    "planning",
    "workflow",
    "tuning",
)
PACKAGES += ("webpage", "explanation", "interop", "plotting", "compose", "serve", "cli")
"""The order of the packages in the tree."""
LEARNERS_PATH: tuple[str, ...] = (
    "data/vocabulary.py",
    "data/sequences.py",
    "model/cells.py",
    "model/language_model.py",
)
LEARNERS_PATH += ("training/loop.py", "generation/sampling.py")
"""The files to read first, in order, after examples/char_rnn.py."""
NOTICE = "<!-- Written by docs/generate.py; change the code, then run `make docs`. -->"

Page = dict[str, str]


def main() -> int:
    """Write the pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    parser.add_argument("--sample", metavar="RUN", help="the run that generates the READMEs' sample")
    parser.add_argument("--picture", metavar="RUN", help="the run that the READMEs' picture explains")
    parser.add_argument("--prompt", default="ROMEO:", help="prompt of the sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the sample (default: %(default)s)")
    parser.add_argument("--machine", default="", help="the machine that trained the run, in words, for the figures")
    parser.add_argument("--machine-chinese", default="", help="the same for the Chinese page")
    arguments = parser.parse_args()
    pages = generated_pages()
    if arguments.sample:
        for name in READMES:
            machine = arguments.machine_chinese if name == READMES[1] else arguments.machine
            blocks = sample_blocks(Path(arguments.sample), arguments.prompt, arguments.seed, machine, name)
            pages[name] = with_blocks(pages[name], blocks)
    if arguments.picture:
        write_picture(Path(arguments.picture))
    stale = [name for name, text in pages.items() if read(name) != text]
    for name in stale:
        if arguments.check:
            print(f"{name} is out of date; run: make docs", file=sys.stderr)
        else:
            (ROOT / name).write_text(pages[name], encoding="utf-8")
            print(f"wrote {name}", file=sys.stderr)
    return 1 if arguments.check and stale else 0


def generated_pages() -> Page:
    """The up-to-date text of each generated page and of each page with generated blocks."""
    return {
        "docs/reference/cli.md": cli_page(),
        "docs/reference/python.md": python_page(),
        TRIALS: with_blocks(
            read(TRIALS),
            {"untried": untried(), "trials": trials("ledger"), "early": trials("early_trials")},
        ),
        ARCHITECTURE: with_blocks(read(ARCHITECTURE), {"tree": fenced(tree()), "learner": learners_path()}),
        **{name: read(name) for name in READMES},
    }


def read(name: str) -> str:
    """The current text of a page; "" if there is none."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """The page with new content between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""
    for name, content in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"a page must contain {begin} and {end} exactly once")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return text


def fenced(text: str, language: str = "text") -> str:
    """The text as a code block."""
    if "```" in text:
        raise SystemExit("a text that contains ``` does not fit in a code block; use another seed")
    return f"```{language}\n{text}\n```"


# The experiments.


def trials(ledger: str) -> str:
    """A ledger of the experiments as a table, grouped by text and budget, best first."""
    path = ROOT / "experiments" / f"{ledger}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines.sort(key=lambda line: (line["corpus"], line["minutes"], line["carried"]))
    table = [
        "| text | minutes | options | passes | training | carried | windows of 256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        options = ", ".join(f"{name} {value:g}" if name != "cell" else value for name, value in _plain(line["options"]))
        figures = " | ".join(
            f"{line[key]:.4f}" if line[key] is not None else "" for key in ("train", "carried", "windows")
        )
        table.append(f"| {line['corpus']} | {line['minutes']:g} | {options} | {line['passes']:.1f} | {figures} |")
    return "\n".join(table)


def untried() -> str:
    """The ledger of features that the library does not have, as a table."""
    sys.path.insert(0, str(ROOT / "experiments"))
    from untried_table import table

    lines = (ROOT / "experiments" / "untried.jsonl").read_text(encoding="utf-8").splitlines()
    return table([json.loads(line) for line in lines])


def _plain(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of a trial by their present names, without underscores; the cell needs no name."""
    from charwright.config import RENAMED

    for name, value in options.items():
        yield ("cell", value) if isinstance(value, str) else (RENAMED.get(name, name).replace("_", " "), value)


# The command line.


def cli_page() -> str:
    """The help of every command, at a fixed width."""
    from charwright.cli import cli

    commands: dict[str, click.Command] = {"charwright": cli}
    for name in cli.list_commands(_context(cli, "charwright")):
        command = cli.get_command(_context(cli, "charwright"), name)
        assert command is not None
        commands[f"charwright {name}"] = command
    parts = [
        "# The command line",
        NOTICE,
        "Results go to standard output: generated text, tables, plots, JSON. Progress, notes and errors go to\n"
        "standard error. `python -m charwright` is the same command.",
        "Exit codes: 0, success; 1, failure, with one line that gives the reason; 2, wrong usage; 3, training\n"
        "diverged; 129, 130 or 143, stopped by SIGHUP, Ctrl-C or SIGTERM (`train` saves first; `serve` completes its\n"
        "requests and exits with 0). With `--debug` before the command, an error shows its traceback.",
        "Environment variables: `CHARWRIGHT_DATA` names a folder that is searched first for the file of a named\n"
        "corpus; the file may have any name. `CHARWRIGHT_CORE` sets what `--core auto` selects. `CHARWRIGHT_KERNELS`\n"
        "selects a variant of the C kernels, or `none`. `CHARWRIGHT_CACHE` names the folder of downloads and prepared\n"
        "texts. `CHARWRIGHT_RANKS_TIMEOUT` is how many seconds a process under torchrun waits for another (300).\n"
        "`NO_COLOR` disables colours.",
    ]
    for name, command in commands.items():
        lines = command.get_help(_context(command, name)).splitlines()
        parts += [f"## `{name}`", fenced("\n".join(line.rstrip() for line in lines))]
    return "\n\n".join(parts) + "\n"


def _context(command: click.Command, name: str) -> click.Context:
    import click

    names = {"help_option_names": ["-h", "--help"]}
    return click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH, **names)  # type: ignore[arg-type]


# The Python names.


def python_page() -> str:
    """Every public name, by subject, with its signature and its documentation."""
    parts = [
        "# The Python names",
        NOTICE,
        "These names are attributes of `charwright` itself: `charwright.Vocabulary` and so on. A name is loaded on\n"
        "first use, so `import charwright` is fast. What users get wrong raises a `CharwrightError`, whose\n"
        "subclasses, [below](#errors), are in `charwright.errors`; a tensor of a wrong type or shape raises a\n"
        "`ValueError`. In shapes, T is steps, B rows of a batch, V tokens of the vocabulary, L layers, S states of a\n"
        "layer and H hidden units.",
        *reference(),
        "## Errors",
        fenced(_error_tree()),
        "`CharwrightError.for_shell` is the message with options as the command line has them: `--val-fraction`.",
    ]
    return "\n\n".join(parts) + "\n"


def _error_tree() -> str:
    from charwright import errors

    lines = inspect.cleandoc(errors.__doc__ or "").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))


# The file tree and the learner's path.


def learners_path() -> str:
    """The files to read first as a table, with the lines of each and their sum."""
    files = [ROOT / "examples" / "char_rnn.py", *(PACKAGE / name for name in LEARNERS_PATH)]
    counts = {path: len(read(path.relative_to(ROOT).as_posix()).splitlines()) for path in files}
    lines = ["| | file | subject | lines |", "|---|---|---|---|"]
    for number, path in enumerate(files, start=1):
        link = f"[{path.name}](../../{path.relative_to(ROOT).as_posix()})"
        lines.append(f"| {number} | {link} | {_first_line(path)} | {counts[path]} |")
    return "\n".join([*lines, f"| | | | {sum(counts.values()):,} |"])


def tree() -> str:
    """One line for each file of the package: its name and the first line of its docstring or opening comment."""
    lines = ["src/charwright/"]
    lines += [_file_line(path, "  ") for path in sorted(PACKAGE.glob("*.py"))]
    found = {path.parent for path in PACKAGE.glob("*/*") if path.suffix in SUFFIXES}
    order = {name: number for number, name in enumerate(PACKAGES)}
    for package in sorted(found, key=lambda path: (order.get(path.name, len(order)), path.name)):
        lines.append(f"  {package.name + '/':24} {_first_line(package / '__init__.py')}".rstrip())
        files = [path for path in sorted(package.iterdir()) if path.suffix in SUFFIXES and path.name != "__init__.py"]
        lines += [_file_line(path, "    ") for path in files]
    return "\n".join(lines)


def _file_line(path: Path, indent: str) -> str:
    return f"{indent + path.name:26} {_first_line(path)}".rstrip()


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    opening = source.split("\n")[0]
    return opening.removeprefix("/*").removesuffix("*/").strip() if opening.startswith("/*") else ""


# The READMEs' sample.


def write_picture(folder: Path) -> None:
    """What a run has learned, as `charwright explain RUN --png` draws it; the READMEs show it."""
    import charwright

    picture = charwright.explain(folder).picture(dpi=110)
    if len(picture) > PICTURE_BYTES:
        raise SystemExit(f"the picture has {len(picture):,} bytes, more than {PICTURE_BYTES:,}")
    (ROOT / PICTURE).parent.mkdir(exist_ok=True)
    (ROOT / PICTURE).write_bytes(picture)
    print(f"wrote {PICTURE}", file=sys.stderr)


def sample_blocks(folder: Path, prompt: str, seed: int, machine: str, readme: str) -> dict[str, str]:
    """A sample generated by a run, the commands behind it, and the run's figures."""
    from charwright.run import Run

    run = Run.open(folder)
    options = ["--prompt", prompt, "--length", str(SAMPLE_LENGTH), "--seed", str(seed)]
    written = _generate(folder, *options)
    shown = f'--prompt "{prompt}" {shlex.join(options[2:])}'
    commands = f"{train_command(run)}\ncharwright generate {folder.as_posix()} {shown}"
    sample = f"{fenced(commands, 'sh')}\n\n{fenced(written.removesuffix(chr(10)))}"
    return {"sample": sample, "figures": figures(run, machine, readme)}


def _generate(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "charwright", "generate", str(folder), *options]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout


def train_command(run: Run) -> str:
    """The command that trains such a run: the options given beyond its recipe."""
    from charwright.planning.recipe_file import recipe_of
    from charwright.schema import flag

    base = recipe_of(run.config.recipe_name)
    reasons = (run.config.plan or {}).get("reasons", {})
    planned = {name for name, reason in reasons.items() if reason != "given by hand"}
    words = ["charwright", "train", *(source.location for source in run.config.sources)]
    if run.config.recipe_name != "default":
        words += ["--recipe", run.config.recipe_name]
    for part in dataclasses.fields(base):
        usual, taken = getattr(base, part.name), getattr(run.config.recipe, part.name)
        for item in dataclasses.fields(usual):
            value = getattr(taken, item.name)
            if value == getattr(usual, item.name) or value is None or item.name in planned:
                continue
            words += [flag(item.name), f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*words, "--out", run.folder.as_posix()])


_LABELS = {
    "README.md": {
        "what": "what",
        "figure": "figure",
        "parameters": "parameters",
        "bytes": "size of `model.safetensors`",
        "minutes": "training time",
        "validation": "validation loss, carried",
        "train": "training loss, last epoch",
        "novelty": "copied verbatim, out of 10,000 generated characters",
        "machine": "trained on",
        "values": "{:.1f} MB|{:.1f} minutes|{:.3f} nats ({:.3f} bits) per character|{:.3f} nats per token"
        "|{:.1f} % in passages of 20 or more; the longest has {}",
    },
    "README.zh-TW.md": {
        "what": "項目",
        "figure": "數值",
        "parameters": "參數數量",
        "bytes": "`model.safetensors` 的大小",
        "minutes": "訓練時間",
        "validation": "驗證損失（隱藏狀態連續傳遞）",
        "train": "訓練損失（最後一個 epoch）",
        "novelty": "產生的一萬個字元中照抄原文的部分",
        "machine": "訓練用的機器",
        "values": "{:.1f} MB|{:.1f} 分鐘|每字元 {:.3f} nats（{:.3f} bits）|每個 token {:.3f} nats"
        "|{:.1f} %，只計 20 個字元以上的相同段落；最長的一段有 {} 個字元",
    },
}


def figures(run: Run, machine: str, readme: str) -> str:
    """A table of the run's size, training time and losses, from its own files."""
    words = _LABELS[readme]
    size, minutes, validation, train, novelty = words["values"].split("|")
    start = next(event for event in run.log() if event["event"] in ("start", "resume"))
    epochs, ended = run.epochs(), max(event["time_s"] for event in run.log())
    rows = {
        "parameters": f"{start['parameters']:,}",
        "bytes": size.format((run.folder / "model.safetensors").stat().st_size / 1e6),
        "minutes": minutes.format(ended / 60),
    }
    validated = [epoch for epoch in epochs if epoch["validation_loss"] is not None]
    if validated:
        best = min(validated, key=lambda epoch: float(epoch["validation_loss"]))
        rows["validation"] = validation.format(best["validation_loss"], best["bits_per_char"])
    elif epochs:
        rows["train"] = train.format(epochs[-1]["train_loss"])
    copied, longest = _copied(run)
    rows["novelty"] = novelty.format(100 * copied, longest)
    if machine:
        rows["machine"] = machine
    lines = [f"| {words['what']} | {words['figure']} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {words[key]} | {value} |" for key, value in rows.items())])


def _copied(run: Run) -> tuple[float, int]:
    """The share of a long sample copied from the training text, and the length of the longest copied passage."""
    from charwright.cli.corpora import training_text
    from charwright.generation.novelty import measure_novelty

    written = _generate(run.folder, "--length", str(NOVELTY_LENGTH), "--seed", "1")
    found = measure_novelty(training_text(run, ()), written)
    return found.copied_share, len(found.longest)


if __name__ == "__main__":
    sys.exit(main())
