"""Help, and errors: one line, the right exit code, no traceback."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

from charwright import cli
from charwright.cli import COMMANDS
from commands import SMALL, Terminal, process


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(charwright: Terminal, command: str) -> None:
    result = charwright(command, "--help")
    assert result.code == 0
    assert result.err == ""
    assert f"charwright {command}" in result.out
    assert charwright(command, "-h") == result


def test_help_lists_every_command(charwright: Terminal) -> None:
    result = charwright("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", result.out, re.MULTILINE)
    assert "  charwright generate runs/novel       generate text like it\n" in result.out
    assert "\\b" not in result.out


def test_every_option_has_a_help_text() -> None:
    for name in COMMANDS:
        command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.name}"


def test_no_command_shows_the_help(charwright: Terminal) -> None:
    result = charwright()
    assert result.code == 2
    assert "Usage: charwright" in result.err


def test_version(charwright: Terminal) -> None:
    from charwright import __version__

    assert charwright("--version").out == f"charwright {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["generate", "RUN", "--length", "5"]])
def test_quick_commands_do_not_import_torch(trained: Path, arguments: list[str]) -> None:
    """An import of PyTorch fails here."""
    words = [str(trained) if word == "RUN" else word for word in arguments]
    result = process(*words, prelude="sys.modules['torch'] = None")
    assert (result.code, result.err) == (0, "")
    assert result.out


WITH_SEED = {
    "train": ["TEXT", "--out", "FOLDER/run", "--steps", "1"],
    "tune": ["TEXT", "--trials", "1", "--out", "FOLDER/tune"],
    "generate": ["RUN"],
    "compose": ["RUN"],
    "explain": ["RUN"],
    "inspect": ["TEXT"],
}


def has_seed(name: str) -> bool:
    command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    return any("--seed" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize("command", ["evaluate", "explain"])
def test_a_command_that_needs_torch_says_so(trained: Path, corpus: Path, command: str) -> None:
    result = process(command, trained, corpus, prelude="sys.modules['torch'] = None")
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "charwright: this needs PyTorch, which is not installed: python -m pip install torch"
    )


def test_every_command_with_a_seed_is_listed() -> None:
    assert {name for name in COMMANDS if has_seed(name)} == WITH_SEED.keys()


LARGEST_SEED = 2**63 - 1


@pytest.mark.parametrize("command", WITH_SEED)
def test_the_help_says_the_largest_seed(charwright: Terminal, command: str) -> None:
    shown = charwright(command, "--help").out
    assert re.search(rf"--seed [^\n]+(\n {{4,}}[^\n]+)*\b{LARGEST_SEED}\b", shown)


@pytest.mark.parametrize("command", sorted(WITH_SEED.keys() - {"compose"}))  # It looks for a terminal first.
def test_a_seed_out_of_range_is_refused(charwright: Terminal, trained: Path, corpus: Path, command: str) -> None:
    places = {"RUN": str(trained), "TEXT": str(corpus)}
    words = [places.get(word, word.replace("FOLDER", str(corpus.parent))) for word in WITH_SEED[command]]
    for seed in (-1, LARGEST_SEED + 1):
        result = charwright(command, *words, "--seed", str(seed))
        assert result.code == 2
        assert "--seed" in result.line
        assert str(seed) in result.line
        assert "e+" not in result.line
    assert not (corpus.parent / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gen"], "No such command 'gen'; did you mean generate?"),
        (["exprot"], "No such command 'exprot'; did you mean export?"),
        (["qqq"], "No such command 'qqq'; see"),
        (["evaluate", "RUN", "TEXT", "--precision", "q8", "--device", "cuda"], "leave out --device cuda"),
        (["compare", "RUN", "RUN", "TEXT", "--precision", "q8", "--device", "cuda"], "leave out --device cuda"),
        (["generate"], "'RUN'"),
        (["generate", "RUN", "--length", "0"], "--length must be at least 1, not 0"),
        (["generate", "RUN", "--length", "many"], "'many' is not a valid integer"),
        (["generate", "RUN", "--top-p", "1.5"], "--top-p must be at most 1"),
        (["generate", "RUN", "--top-k", "0"], "--top-k must be at least 1"),
        (["generate", "RUN", "--seed", "-1"], "--seed must be at least 0"),
        (["generate", "RUN", "--unheard-of"], "--unheard-of"),
        (["train"], "name a text"),
        (["train", "TEXT", "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "TEXT", "--epochs", "1", "--minutes", "1"], "one budget at a time"),
        (["train", "TEXT", "--cell", "transformer"], "'transformer'"),
        (["train", "TEXT", "--tied", "--units", "5", "--embedding-size", "6"], "--tied requires"),
        (["train", "TEXT", "--recipe", "tutoral"], "did you mean tutorial?"),
        (["train", "TEXT", "--device", "tpu9"], "--device"),
        (["train", "TEXT", "--core", "fast"], "--core"),
        (["train", "TEXT", "--keep-checkpoints", "0"], "--keep-checkpoints must be at least 1"),
        (["train", "TEXT", "--corpus", "TEXT"], "--resume"),
        (["train", "TEXT", "--resume", "RUN"], "--corpus"),
        (["train", "--force", "--resume", "RUN"], "--force"),
        (["train", "--resume", "RUN", "--units", "3"], "--units belongs to the run"),
        (["train", "--resume", "RUN", "--recipe", "tutorial"], "--recipe belongs to the run"),
        (["evaluate", "RUN", "--encoding", "latin-1"], "--encoding applies to a CORPUS; name one after the run"),
        (["evaluate", "RUN", "TEXT", "--protocol", "windows-0"], "--protocol"),
        (["evaluate", "RUN", "TEXT", "--protocol", "record"], "or records for a text in records, not 'record'"),
        (["train", "TEXT", "--minutes", "inf"], "--minutes must be a finite number, not inf"),
        (["train", "TEXT", "--patience", "NONE"], "'NONE' is neither a valid integer nor 'none'"),
        (["train", "TEXT", "--unit", "64"], "(--unit is the old name of --level; did you mean --units?)"),
        (["train", "TEXT", "--dropouts", "1"], "Did you mean '--dropout'?"),
        (["train", "TEXT", "--min-count", "99999"], "--min-count 99,999: no character of the text occurs so often"),
        (["export", "RUN"], "Choose from: onnx, saved-model"),
        (["generate", "RUN", "--adapt", "--prompt", ""], "--adapt learns from the prompt"),
        (["inspect", "TEXT", "--batch", "0"], "--batch must be at least 1"),
        (["info", "RUN", "--machine"], "--machine shows this machine; leave out"),
        (["info", "--machine", "--plot", "x.png"], "leave out --plot"),
        (["generate", ""], "the path is empty"),
        (["train", "TEXT", "--out", ""], "the path is empty"),
    ],
)
def test_usage_errors_exit_with_2(
    charwright: Terminal, trained: Path, corpus: Path, words: list[str], message: str
) -> None:
    places = {"RUN": str(trained), "TEXT": str(corpus)}
    result = charwright(*[places.get(word, word) for word in words])
    assert result.code == 2
    assert message in result.line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "FOLDER/hamlet.tx"], "did you mean FOLDER/hamlet.txt"),
        (["train", "FOLDER/empty.txt"], "empty"),
        (["train", "FOLDER/one.txt"], "one character"),
        (["train", "FOLDER/binary"], "NUL"),
        (["train", "FOLDER/nuls"], "remove the NUL bytes"),
        (["train", "FOLDER/wide"], "try --encoding utf-16-be"),
        (["train", "FOLDER/zz*.txt"], "matches no file"),
        (["train", "FOLDER/latin.txt"], "--encoding"),
        (["train", "FOLDER/nothing"], "no text file"),
        (["train", "FOLDER/hamlet.txt", "--out", "RUN"], "--resume"),
        (["train", "FOLDER/hamlet.txt", "--out", "FOLDER"], "not a run"),
        (["train", "FOLDER/hamlet.txt", "--out", "FOLDER", "--force"], "not a run"),
        (["train", "FOLDER/hamlet.txt", "--out", "FOLDER/hamlet.txt/run"], "--out"),
        (["train", "--resume", "FOLDER"], "no config.json"),
        (["generate", "FOLDER/nowhere"], "no run"),
        (["generate", "RUNN"], "did you mean RUN?"),
        (["generate", "FOLDER/hamlet.txt"], "is a file"),
        (["generate", "FOLDER"], "no config.json"),
        (["info", "FOLDER/nowhere"], "no run"),
        (["evaluate", "FOLDER/nowhere", "FOLDER/hamlet.txt"], "no run"),
        (["evaluate", "RUN", "FOLDER/empty.txt"], "empty"),
        (["evaluate", "RUN", "FOLDER/hamlet.txt", "--protocol", "windows-99999"], "too few"),
        (["inspect", "FOLDER/empty.txt"], "empty"),
        (["info", "RUN", "--plot", "FOLDER/nowhere/x.png"], "x.png"),
    ],
)
def test_other_errors_exit_with_1(
    charwright: Terminal, trained: Path, corpus: Path, words: list[str], message: str
) -> None:
    folder = corpus.parent
    (folder / "empty.txt").write_bytes(b"")
    (folder / "one.txt").write_bytes(b"x")
    (folder / "binary").write_bytes(b"\x7fELF\0\0\0\0" * 50)
    (folder / "latin.txt").write_bytes("déjà vu, déjà lu\n".encode("latin-1") * 50)
    (folder / "nuls").write_bytes(b"abc\0def\n" * 50)
    (folder / "wide").write_bytes("床前明月光，疑是地上霜。\n".encode("utf-16-be") * 50)
    (folder / "nothing").mkdir()
    places = [word.replace("FOLDER", str(folder)).replace("RUN", str(trained)) for word in words]
    result = charwright(*places)
    assert result.code == 1
    assert message.replace("FOLDER", str(folder)).replace("RUN", str(trained)) in result.line


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_to_nothing(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "is a link to nowhere, which does not exist" in charwright("train", tmp_path / "dangling").line


@pytest.mark.parametrize("command", ["generate", "info"])
def test_a_damaged_run(charwright: Terminal, copy: Path, command: str) -> None:
    (copy / "vocabulary.json").write_text("{", encoding="utf-8")
    result = charwright(command, copy)
    assert result.code == 1
    assert str(copy / "vocabulary.json") in result.line


def test_a_run_with_truncated_weights(charwright: Terminal, copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = charwright("generate", copy)
    assert result.code == 1
    assert str(path) in result.line


@pytest.mark.parametrize("words", [["--debug", "generate", "nowhere"], ["generate", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(words: list[str]) -> None:
    result = process(*words)
    assert result.code == 1
    assert "Traceback" in result.err
    assert "RunNotFoundError" in result.err


def test_debug_applies_to_one_command_only(charwright: Terminal) -> None:
    from charwright.errors import RunNotFoundError

    with pytest.raises(RunNotFoundError):
        charwright("--debug", "generate", "nowhere")
    assert charwright("generate", "nowhere").code == 1


def test_divergence_exits_with_3(
    charwright: Terminal, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of every step is not finite, whatever the learning rate."""
    from charwright.training.loop import fit

    monkeypatch.setitem(fit.__kwdefaults__, "train_step", lambda *_: torch.tensor(math.nan))
    result = charwright("train", corpus, "--out", tmp_path / "wild", *SMALL, "--epochs", "9")
    assert result.code == 3
    assert "--learning-rate" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert not (tmp_path / "wild" / "model.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "generate", str(trained), "--length", "9"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert b"No space left" in done.stderr
