"""`charwright train` without options: the plan, its explanation, and the budget."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from charwright.run import Run
from commands import SMALL, TEXT, Terminal


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT * 2, encoding="utf-8")
    return path


def test_a_plan_is_shown_in_two_lines_and_recorded(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    result = charwright("train", longer, "--out", tmp_path / "run", "--minutes", "0.05", "--units", "16")
    assert result.code == 0
    plan = [line for line in result.err.splitlines() if line.startswith("plan: ")]
    assert len(plan) == 2
    assert "16 multiplicative input-reset GRU units and n-grams for 0.05 minutes" in plan[0]
    config = Run.open(tmp_path / "run").config
    assert config.plan is not None
    assert config.plan["script"] == "Latin"
    assert config.plan["reasons"]["units"] == "given by hand"
    assert config.plan["speeds"], "the machine was measured"
    assert config.recipe.model.units == 16
    assert config.recipe.training.patience == 10
    shown = charwright("info", tmp_path / "run")
    assert "Planned for" in shown.out


def test_explain_plan_shows_every_option_and_trains_nothing(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    result = charwright("train", longer, "--out", tmp_path / "run", "--epochs", "3", "--explain-plan", "--batch", "8")
    assert result.code == 0
    assert not (tmp_path / "run").exists()
    lines = result.out.splitlines()
    assert any(line.split()[:2] == ["--batch", "8"] and line.endswith("given by hand") for line in lines)
    assert any(line.split()[0] == "--dropout" and "3.0 times" in line for line in lines if line)


def test_explain_plan_requires_the_default_recipe(charwright: Terminal, longer: Path) -> None:
    for words in (["--recipe", "tutorial"], ["--from", "nowhere"]):
        result = charwright("train", longer, "--explain-plan", *words)
        assert result.code in (1, 2)
        assert result.err.count("\n") == 1


def test_explain_plan_does_not_resume_a_run(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    charwright("train", longer, "--out", tmp_path / "run", "--steps", "1", *SMALL)
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    result = charwright("train", "--resume", tmp_path / "run", "--explain-plan")
    assert result.code == 2
    assert "--explain-plan" in result.err
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def test_a_start_that_takes_the_whole_budget_is_reported(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    result = charwright("train", longer, "--out", tmp_path / "run", "--minutes", "0.0001", "--units", "16")
    assert result.code == 0
    assert "raise --minutes" in result.err
    assert "loss 0.0000" not in result.err


def test_other_recipes_are_not_planned(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    words = ["--recipe", "tutorial", "--steps", "1", "--units", "8", "--embedding-size", "4"]
    result = charwright("train", longer, "--out", tmp_path / "run", *words)
    assert "plan:" not in result.err
    assert Run.open(tmp_path / "run").config.plan is None


def test_a_budget_in_minutes_is_that_of_the_whole_command(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    """Measuring, training, validating and saving; with some seconds to spare on a busy machine."""
    began = time.monotonic()
    words = ["--minutes", "0.06", "--units", "16", "--embedding-size", "8"]
    assert charwright("train", longer, "--out", tmp_path / "run", *words).code == 0
    assert 3.0 < time.monotonic() - began < 6.6
    log = list(Run.open(tmp_path / "run").log())
    rates = [event["learning_rate"] for event in log if event["event"] == "step"]
    assert rates[-1] < 0.05 * max(rates), "the learning rate is near zero when the time is over"
    assert log[-1]["reason"] == "done"
    again = charwright("train", "--resume", tmp_path / "run")
    assert "the budget was already spent" in again.err


def test_a_text_shorter_than_a_batch(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("道可道，非常道。", encoding="utf-8")
    assert charwright("train", tmp_path / "short.txt", "--out", tmp_path / "run", "--minutes", "0.03").code == 0
    plan = Run.open(tmp_path / "run").config.plan
    assert plan is not None
    assert plan["script"] == "CJK"


def test_a_target_loss(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    words = ["--out", tmp_path / "run", "--epochs", "30", *SMALL, "--target-loss", "2.9"]
    result = charwright("train", longer, *words)
    assert result.code == 0
    assert "the target loss is reached" in result.err
    losses = [event["validation_loss"] for event in Run.open(tmp_path / "run").epochs()]
    assert losses[-1] <= 2.9
    assert all(loss > 2.9 for loss in losses[:-1])
    further = charwright("train", "--resume", tmp_path / "run", "--target-loss", "2.7")
    assert further.code == 0
    assert "the target loss is reached" in further.err
    assert Run.open(tmp_path / "run").epochs()[-1]["validation_loss"] <= 2.7
    unvalidated = charwright("train", longer, "--out", tmp_path / "none", "--target-loss", "1", "--val-fraction", "0")
    assert unvalidated.code == 2
    assert "--val-fraction" in unvalidated.line
    without_validation = ["--out", tmp_path / "all", "--steps", "1", *SMALL, "--val-fraction", "0"]
    assert charwright("train", longer, *without_validation).code == 0
    refused = charwright("train", "--resume", tmp_path / "all", "--steps", "2", "--target-loss", "1")
    assert refused.code == 2
    assert "--target-loss needs validation text" in refused.line
    warned = charwright("train", "--resume", tmp_path / "all", "--steps", "2", "--patience", "3")
    assert warned.code == 0
    assert "--patience has no effect without validation text: start a new run for that" in warned.err


def test_a_learning_rate_ten_thousand_times_too_high(charwright: Terminal, longer: Path, tmp_path: Path) -> None:
    words = ["--out", tmp_path / "run", "--epochs", "20", *SMALL, "--learning-rate", "100", "--warmup", "0"]
    result = charwright("train", longer, *words)
    assert result.code == 0
    log = list(Run.open(tmp_path / "run").log())
    assert "diverged near step" in result.err
    assert [event for event in log if event["event"] == "rollback"]
    assert min(event["validation_loss"] for event in log if event["event"] == "epoch") < 3
    assert all(json.dumps(event, allow_nan=False) for event in log)
