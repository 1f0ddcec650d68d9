"""The documentation is correct: generated pages are up to date, links resolve, code and commands work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import pytest

from charwright import __version__
from charwright.cli import COMMANDS, cli
from charwright.cli import run as run_command
from charwright.config import ModelConfig
from charwright.data.labels import LabelledVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.run import Run
from keras_models import write_keras
from writers import save_records, weights_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TRANSLATED = [("README.md", "README.zh-TW.md"), ("docs/tutorial.md", "docs/tutorial.zh-TW.md")]


def blocks(name: str, language: str | None = None) -> list[str]:
    """The code blocks of a page, of one language or of all."""
    found = FENCE.findall((ROOT / name).read_text(encoding="utf-8"))
    return [body for kind, body in found if language in (None, kind)]


def prose(name: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as common renderers make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.relative_to(ROOT).as_posix()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(name: str) -> list[str]:
    """The targets of a page's links within the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def commands(name: str) -> Iterator[list[str]]:
    """The arguments of every `charwright` command that a page shows, in blocks and in the text."""
    inline = re.findall(r"`(charwright [^`]+)`", prose(name))
    shown = [block.replace("\\\n", "") for language in ("sh", "console") for block in blocks(name, language)]
    block_lines = [line for block in shown for line in block.split("\n")]
    for line in [*inline, *block_lines]:
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("|", ";", "&&", "||", "&"):
                if words and words[0] == "charwright":
                    end = words.index(">") if ">" in words else len(words)
                    yield words[1:end]
                words = []
            else:
                words.append(word)


def parse(arguments: list[str]) -> None:
    """Parse a command line as charwright does, without running it."""
    if arguments[0] in ("--help", "--version"):
        return
    if arguments == ["--debug"] or (len(arguments) == 1 and arguments[0] in COMMANDS):
        return  # A mention in the text, not a command to type.
    context = cli.make_context("charwright", list(arguments))
    name, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert name is not None
    assert command is not None
    with suppress(click.exceptions.Exit):  # --help
        command.make_context(name, rest, parent=context)


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name: str) -> None:
    for target in links(name):
        file, _, anchor = target.partition("#")
        path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        assert path.exists(), f"{name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(path), f"{name} links to {target}, which has no such heading"


def test_every_page_is_linked() -> None:
    linked = {((ROOT / name).parent / target.partition("#")[0]).resolve() for name in NAMES for target in links(name)}
    unlinked = [path for path in PAGES if path not in linked and path.name not in ("README.md", "index.md")]
    assert not unlinked


@pytest.mark.parametrize("name", NAMES)
def test_shown_commands_parse(name: str) -> None:
    for arguments in commands(name):
        try:
            parse(arguments)
        except click.ClickException as error:
            pytest.fail(f"{name} shows `charwright {shlex.join(arguments)}`: {error.format_message()}")


def test_commands_are_found_in_pages() -> None:
    assert ["evaluate", "runs/novel", "another.txt"] in list(commands("README.md"))
    assert ["train", "-", "--out", "runs/logs"] in list(commands("docs/how-to/your-own-text.md"))


def test_an_option_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(click.ClickException):
        parse(["train", "novel.txt", "--no-such-option"])


@pytest.mark.parametrize("name", NAMES)
def test_shown_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = re.findall(r"`make ([a-z-]+)", prose(name))
    shown += [word for block in blocks(name, "sh") for word in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)]
    assert set(shown) <= targets


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED)
def test_translations_have_the_same_code(english: str, chinese: str) -> None:
    def code(name: str) -> list[str]:
        return [re.sub(r" *#.*", "", block) for block in blocks(name)]

    assert code(english) == code(chinese)


def test_readme_sample_has_400_characters_and_its_command() -> None:
    for name in ("README.md", "README.zh-TW.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        sample = text.split("<!-- sample:begin -->")[1].split("<!-- sample:end -->")[0]
        (shell, shown), (_, written) = FENCE.findall(sample)
        generate = shlex.split(shown.splitlines()[-1])
        prompt = generate[generate.index("--prompt") + 1]
        assert shell == "sh"
        assert generate[:2] == ["charwright", "generate"]
        assert written.startswith(prompt)
        assert len(written) == len(prompt) + 400 + 1  # and the newline before the fence


def test_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == __version__


IN_TENSORFLOW = ("training_checkpoints", "one_step", "saved-model")
"""Files that only TensorFlow reads or writes; `CHARWRIGHT_TENSORFLOW` names a Python that has it."""


def run_commands(name: str, folder: Path, **environment: str) -> list[str]:
    """Run every command of a page's shell blocks, in order; returns the commands that ran."""
    tensorflow = os.environ.get("CHARWRIGHT_TENSORFLOW")
    lines = [line for block in blocks(name, "sh") for line in block.splitlines() if line]
    run = []
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "charwright"
        needs_tensorflow = any(part in line for part in IN_TENSORFLOW)
        if needs_tensorflow and not tensorflow:
            continue
        python = str(Path(tensorflow).absolute()) if tensorflow and needs_tensorflow else sys.executable
        done = subprocess.run(
            [python, "-m", "charwright", *words[1:]],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
        run.append(line)
    return run


def test_importing_page_runs(tmp_path: Path, shared: Path) -> None:
    pytest.importorskip("h5py")
    fixtures = shared / "fixtures"
    shutil.copy(fixtures / "tutorial-small" / "ckpt_1.weights.h5", tmp_path)
    shutil.copytree(fixtures / "tutorial-small" / "one_step", tmp_path / "one_step")
    shutil.copytree(fixtures / "keras2-gru", tmp_path / "training_checkpoints")
    shutil.copy(fixtures / "keras2-lstm" / "weights_keras2.h5", tmp_path)
    config = {"class_name": "MyModel", "registered_name": "MyModel", "config": {}}
    write_keras(tmp_path / "model.keras", config, (tmp_path / "ckpt_1.weights.h5").read_bytes())
    tokens = np.load(fixtures / "tutorial-small" / "golden.npz")["vocabulary"].tolist()
    (tmp_path / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    labelled = save_records(tmp_path / "labelled", LabelledVocabulary("\nab", ["de", "fr"])).folder
    assert run_command(["export", str(labelled), "--to", "keras", "--out", str(tmp_path / "names.weights.h5")]) == 0
    (tmp_path / "names.tsv").write_text("de\tab\nfr\tba\n", encoding="utf-8")
    assert len(run_commands("docs/how-to/import.md", tmp_path, CHARWRIGHT_DATA=str(shared / "data"))) >= 6


def test_exporting_page_runs(tmp_path: Path) -> None:
    for package in ("h5py", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    vocabulary = Vocabulary("\n abeot")
    config = ModelConfig(units=16, embedding_size=8)
    Run.save(tmp_path / "runs" / "novel", config, weights_of(config, len(vocabulary)), vocabulary)
    assert len(run_commands("docs/how-to/export.md", tmp_path)) >= 5
    for number, block in enumerate(blocks("docs/how-to/export.md", "python")):
        python = os.environ.get("CHARWRIGHT_TENSORFLOW") if "import tensorflow" in block else sys.executable
        if python:
            program = tmp_path / f"block_{number}.py"
            program.write_text(block, encoding="utf-8")
            words = [str(Path(python).absolute()), program.name]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=240)
            assert done.returncode == 0, done.stderr
            assert done.stdout
