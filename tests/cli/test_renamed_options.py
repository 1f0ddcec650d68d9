"""Options of the previous version: the renamed ones still work for now, the removed one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from charwright import cli
from charwright.cli.options import RenamedOption
from charwright.run import Run
from commands import SMALL, Terminal

RENAMED = [
    ("--state-dropout", "--recurrent-dropout", "0.2"),
    ("--zero-state", "--state-reset", "0.5"),
    ("--averaging", "--ema", "0.25"),
    ("--embedding", "--embedding-size", "6"),
    ("--unit", "--level", "byte"),
]
NAMES = {"train": RENAMED, "tune": RENAMED[-1:], "inspect": [RENAMED[0], *RENAMED[3:]]}
LAYER = ["--units", "8", "--batch", "4", "--seq-length", "16"]


def notices(lines: str) -> list[str]:
    return [line for line in lines.splitlines() if "is now" in line]


@pytest.mark.parametrize("command", NAMES)
def test_the_old_names_exist_where_they_did(command: str) -> None:
    found = cli.cli.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    old = {option.opts[0]: "--" + option.new.replace("_", "-") for option in found.params if _is_renamed(option)}
    assert old == {old: new for old, new, _ in NAMES[command]}


def _is_renamed(parameter: Any) -> bool:
    return isinstance(parameter, RenamedOption)


@pytest.mark.parametrize(("old", "new", "value"), RENAMED)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_train_takes_the_old_name_for_the_new(
    charwright: Terminal, corpus: Path, tmp_path: Path, old: str, new: str, value: str, first: bool
) -> None:
    configs = []
    for name in (new, old):
        out = tmp_path / name.strip("-")
        words = [corpus, "--out", out, "--steps", "1", *LAYER]
        words = [name, value, *words] if first else [*words, name, value]
        result = charwright("train", *words)
        assert result.code == 0, result.err
        expected = [f"{old} is now {new}; the old name works in this version only"] if name == old else []
        assert notices(result.err) == expected
        configs.append((out / "config.json").read_bytes())
    assert configs[0] == configs[1]


@pytest.mark.parametrize(("old", "new", "value"), NAMES["inspect"])
def test_inspect_takes_the_old_name_for_the_new(
    charwright: Terminal, corpus: Path, old: str, new: str, value: str
) -> None:
    present, former = (charwright("inspect", corpus, name, value, *LAYER) for name in (new, old))
    assert (present.code, former.code) == (0, 0)
    assert former.out == present.out
    assert former.err == f"{old} is now {new}; the old name works in this version only\n"
    assert present.err == ""


def test_tune_takes_the_old_name_for_the_new(charwright: Terminal, corpus: Path) -> None:
    pytest.importorskip("optuna")
    refused = charwright("tune", corpus, "--trials", "1", "--unit", "byte", "--device", "tpu9")
    assert refused.code == 2
    assert notices(refused.err) == ["--unit is now --level; the old name works in this version only"]


@pytest.mark.parametrize("command", NAMES)
def test_the_old_names_are_not_in_the_help(charwright: Terminal, command: str) -> None:
    shown = charwright(command, "--help").out.split()
    assert not {"--weight-dropout", *(old for old, _, _ in RENAMED)} & set(shown)
    assert {new for _, new, _ in NAMES[command]} <= set(shown)


@pytest.mark.parametrize(("old", "new", "value"), RENAMED)
def test_both_names_at_once_are_refused(
    charwright: Terminal, corpus: Path, tmp_path: Path, old: str, new: str, value: str
) -> None:
    for names in ((old, new), (new, old)):
        words = [word for name in names for word in (name, value)]
        result = charwright("train", corpus, "--out", tmp_path / "run", "--steps", "1", *words)
        assert result.code == 2
        assert f"{old} is now {new}; use only the new name" in result.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "value", "message"),
    [
        ("--state-dropout", "1", "--recurrent-dropout must be below 1"),
        ("--zero-state", "1.5", "--state-reset must be at most 1"),
        ("--averaging", "-1", "--ema must be at least 0"),
        ("--embedding", "0", "--embedding-size must be at least 1"),
    ],
)
def test_bounds_errors_have_the_new_name(
    charwright: Terminal, corpus: Path, old: str, value: str, message: str
) -> None:
    result = charwright("train", corpus, "--steps", "1", old, value)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]


def test_a_resume_refuses_the_old_names_too(charwright: Terminal, copy: Path) -> None:
    result = charwright("train", "--resume", copy, "--zero-state", "0.1")
    assert result.code == 2
    assert "--state-reset belongs to the run" in result.err


@pytest.mark.parametrize("words", [["train", "--steps", "1", *SMALL], ["inspect", *SMALL]])
def test_weight_dropout_is_refused_with_advice(charwright: Terminal, corpus: Path, words: list[str]) -> None:
    result = charwright(*words, corpus, "--weight-dropout", "0.1")
    assert result.code == 2
    assert "--weight-dropout no longer exists" in result.line
    assert "--recurrent-dropout" in result.line


def test_a_config_of_a_run_has_the_new_names(trained: Path) -> None:
    text = (trained / "config.json").read_text(encoding="utf-8")
    for old in ("state_dropout", "zero_state", "averaging", '"embedding"', '"unit"', "weight_dropout"):
        assert old not in text
    assert Run.open(trained).config.removed == {}
