"""The ledger of the experiments: valid options, complete figures, no duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from charwright.config import Recipe

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXPERIMENTS / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", lines_of("ledger.jsonl"), ids=lambda line: f"{line['corpus']}-{line['minutes']:g}")
def test_a_trial_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert 0 < line["train"] < 10
    assert 0 < line["carried"] < 10
    assert line["steps"] > 0
    assert line["passes"] > 0


def test_no_trial_is_listed_twice() -> None:
    keys = [json.dumps([line[key] for key in ("corpus", "minutes", "options")]) for line in lines_of("ledger.jsonl")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("line", lines_of("small_texts.jsonl"), ids=lambda line: line["corpus"])
def test_a_trial_of_a_small_text_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert 0 < line["carried"] < 10
    assert ("input_dropout" in line) != ("teachers" in line)
    if "teachers" in line:  # The logarithm of a mean is at least the mean of the logarithms.
        assert line["ensemble"] <= sum(line["teachers"]) / len(line["teachers"])


def test_the_early_trials_have_the_same_figures() -> None:
    assert {"corpus", "minutes", "options", "steps", "passes", "train", "carried", "windows"} <= set(
        lines_of("early_trials.jsonl")[0]
    )
