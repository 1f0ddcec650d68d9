"""Runs of an earlier version are read, generate the same text and resume with the same result.

`fixtures/old_runs/make.py` says which version made them, and how; `expected.json` has that version's results.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from charwright.run import Run
from commands import Terminal

pytestmark = pytest.mark.usefixtures("one_thread")

OLD_RUNS = Path(__file__).parent / "fixtures" / "old_runs"
EXPECTED: dict[str, Any] = json.loads((OLD_RUNS / "expected.json").read_text(encoding="utf-8"))
RUNS: dict[str, dict[str, Any]] = EXPECTED["runs"]
RESUMED = [name for name, run in RUNS.items() if "resumed" in run]

# Integers give the same result on every machine; the order of sums of floats depends on the processor.
SAME = {"q8": 1e-9, "f32": 1e-5}
LEARNED = {"step", "epoch"}
FIGURES = {"event", "step", "epoch", "loss", "learning_rate", "train_loss", "validation_loss"}


def for_run(arguments: list[str], folder: Path) -> list[str]:
    return [str(folder) if argument == "RUN" else argument for argument in arguments]


def logged(folder: Path) -> list[dict[str, Any]]:
    return list(Run.open(folder).log())


def assert_learned(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for event, wanted in zip(found, expected, strict=True):
        different = {
            key: event.get(key) for key in FIGURES & wanted.keys() if not is_close(event.get(key), wanted[key])
        }
        assert not different, wanted


def is_close(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected, rel_tol=1e-4)
    return bool(found == expected)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["q8", "f32", "greedy"])
def test_generation_is_the_same(charwright: Terminal, name: str, kind: str) -> None:
    expected = RUNS[name]["written"][kind]
    result = charwright(*for_run(expected["arguments"], OLD_RUNS / name))
    assert result.code == 0, result.err
    assert json.loads(result.out)["text"] == expected["text"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("precision", ["q8", "f32"])
def test_evaluation_is_the_same(charwright: Terminal, tmp_path: Path, name: str, precision: str) -> None:
    (tmp_path / "measured.txt").write_text(EXPECTED["measured"], encoding="utf-8")
    result = charwright("evaluate", OLD_RUNS / name, tmp_path / "measured.txt", "--precision", precision, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["nats_per_char"]
    assert found == pytest.approx(RUNS[name]["nats"][precision], rel=SAME[precision])


@pytest.mark.parametrize("name", RUNS)
def test_info(charwright: Terminal, name: str) -> None:
    for arguments in (["info", OLD_RUNS / name], ["info", OLD_RUNS / name, "--json"]):
        result = charwright(*arguments)
        assert result.code == 0, result.err
        assert result.out


@pytest.mark.parametrize("name", RESUMED)
def test_a_resume_is_the_same(charwright: Terminal, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(OLD_RUNS / name, tmp_path / name)
    expected = RUNS[name]["resumed"]
    result = charwright(*for_run(expected["arguments"], copy))
    assert result.code == 0, result.err
    events = logged(copy)
    [start] = [i for i, event in enumerate(events) if event["event"] == "resume"]
    assert_learned([event for event in events[start:] if event["event"] in LEARNED], expected["events"])
    for file, stored in expected["weights"].items():
        found, weights = load_file(copy / file), load_file(OLD_RUNS / stored)
        assert found.keys() == weights.keys()
        for key, array in weights.items():
            np.testing.assert_allclose(found[key], array, rtol=1e-4, atol=1e-6, err_msg=f"{file}: {key}")


@pytest.mark.parametrize("name", RESUMED)
def test_training_with_the_same_recipe_is_the_same(charwright: Terminal, tmp_path: Path, name: str) -> None:
    """Every option has kept its meaning."""
    text, new = OLD_RUNS / name / "corpus" / "stdin.txt", tmp_path / "new"
    words = ["--recipe", OLD_RUNS / name, "--out", new, "--core", "fused", "--threads", "1", "--device", "cpu"]
    result = charwright("train", text, *words)
    assert result.code == 0, result.err
    # Later ones differ between machines, because of rounding.
    events = [
        [event for event in logged(folder) if event["event"] in LEARNED][:12] for folder in (new, OLD_RUNS / name)
    ]
    assert_learned(*events)


@pytest.mark.parametrize("name", RESUMED)
def test_a_new_run_continues_from_it(charwright: Terminal, tmp_path: Path, name: str) -> None:
    (tmp_path / "other.txt").write_text(EXPECTED["measured"] * 3, encoding="utf-8")
    words = ["--from", OLD_RUNS / name, "--out", tmp_path / "new", "--steps", "2", "--threads", "1", "--device", "cpu"]
    result = charwright("train", tmp_path / "other.txt", *words)
    assert result.code == 0, result.err
    assert Run.open(tmp_path / "new").weights().keys() == Run.open(OLD_RUNS / name).weights().keys()


# Options that were removed or renamed.


def recipe_on_disk(folder: Path) -> str:
    return json.dumps(json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"])


def test_a_run_with_weight_dropout_generates_but_does_not_resume(charwright: Terminal, tmp_path: Path) -> None:
    copy = shutil.copytree(OLD_RUNS / "byte", tmp_path / "byte")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert Run.open(copy).config.removed == {"weight_dropout": 0.2}
    assert charwright("generate", copy, "--prompt", "a", "--length", "5", "--seed", "7").code == 0
    refused = charwright("train", "--resume", copy, "--steps", "50")
    assert refused.code == 1
    assert "--weight-dropout 0.2" in refused.line
    assert f"--from {copy}" in refused.line
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_run_with_weight_dropout_can_be_continued_from(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(EXPECTED["measured"] * 3, encoding="utf-8")
    new = tmp_path / "new"
    words = ["--from", OLD_RUNS / "byte", "--out", new, "--steps", "2", "--threads", "1", "--device", "cpu"]
    result = charwright("train", tmp_path / "other.txt", *words)
    assert result.code == 0, result.err
    assert "weight_dropout" not in recipe_on_disk(new)
    assert charwright("train", "--resume", new, "--steps", "4", "--threads", "1").code == 0


@pytest.mark.parametrize(("rate", "code"), [(0.2, 1), (0.0, 0)])
def test_only_a_weight_dropout_in_use_prevents_a_resume(
    charwright: Terminal, tmp_path: Path, rate: float, code: int
) -> None:
    """An otherwise complete run, with its checkpoint and its text."""
    copy = shutil.copytree(OLD_RUNS / "gru", tmp_path / "gru")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["recipe"]["model"]["weight_dropout"] = rate
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = for_run(RUNS["gru"]["resumed"]["arguments"], copy)
    result = charwright(*arguments)
    assert result.code == code, result.err
    if code:
        assert "--weight-dropout 0.2" in result.line


def test_the_previous_names_are_replaced_when_the_config_is_written(charwright: Terminal, tmp_path: Path) -> None:
    copy = shutil.copytree(OLD_RUNS / "gru", tmp_path / "gru")
    recipe = Run.open(copy).config.recipe
    arguments = for_run(RUNS["gru"]["resumed"]["arguments"], copy)
    assert charwright(*arguments, "--keep-checkpoints", "3").code == 0
    text = recipe_on_disk(copy)
    for name in ('"embedding"', "state_dropout", "weight_dropout", "zero_state", "averaging", '"unit"'):
        assert name not in text
    assert Run.open(copy).config.recipe.model == recipe.model
