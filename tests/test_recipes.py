"""The planner's rule: what it promises for every text, machine and budget, and what it says of itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright.config import ModelConfig, SequenceConfig, TrainingConfig, VocabularyConfig
from charwright.data.vocabulary import Vocabulary
from charwright.training.recipes import DEFAULT, Plan, Text, make_plan, script_of, speed_at

SPEEDS = {128: 350e3, 256: 220e3, 512: 100e3, 1024: 39e3}
SHAKESPEARE = Text(1_003_854, 66, "Latin", 1_003_854)


def plan(text: Text = SHAKESPEARE, speeds: dict[int, float] | None = None, **options: Any) -> Plan:
    return make_plan(text, {"minutes": 5.0, **options}, SPEEDS if speeds is None else speeds)


@given(
    characters=st.integers(2, 10**10),
    vocabulary=st.integers(2, 20_000),
    minutes=st.floats(0.01, 525_600),
    speed=st.floats(10, 1e8),
)
def test_there_is_a_plan_for_everything(characters: int, vocabulary: int, minutes: float, speed: float) -> None:
    made = plan(Text(characters, vocabulary, "Latin", characters), {128: speed, 256: speed / 3}, minutes=minutes)
    assert made.recipe.training.minutes == minutes
    assert made.recipe.model.units <= 2048
    assert made.recipe.training.learning_rate <= DEFAULT.training.learning_rate
    assert made.passes > 0
    json.dumps(made.to_json(), allow_nan=False)
    assert len(made.summary()) == 2
    assert all("\n" not in line for line in made.summary())


def test_the_speed_that_is_said_is_that_of_the_model() -> None:
    """Two LSTM layers are slower than the GRU layer that was measured."""
    assert "at 100,000 characters/s" in plan(units=512).summary()[1]
    assert "at 39,000 characters/s" in plan(units=512, cell="lstm", layers=2).summary()[1]


def test_one_of_something_is_one() -> None:
    assert "for 1 minute," in plan(minutes=1.0).summary()[0]
    assert "for 1 epoch," in make_plan(SHAKESPEARE, {"epochs": 1}, {}).summary()[0]


@given(minutes=st.floats(0.1, 1_000), times=st.floats(1, 100))
def test_more_time_makes_no_model_smaller_and_no_silence_less(minutes: float, times: float) -> None:
    short, long = plan(minutes=minutes).recipe, plan(minutes=minutes * times).recipe
    assert long.model.units >= short.model.units
    if long.model.units == short.model.units:
        assert long.model.dropout >= short.model.dropout
        assert long.model.state_dropout >= short.model.state_dropout
        assert long.training.weight_decay >= short.training.weight_decay


def test_a_faster_machine_trains_a_wider_model() -> None:
    ten_times = {units: 10 * speed for units, speed in SPEEDS.items()}
    assert plan(minutes=1.0, speeds=ten_times).recipe.model.units > plan(minutes=1.0).recipe.model.units


def test_a_small_text_gets_a_small_model_and_much_silence() -> None:
    small, large = (
        plan(Text(20_000, 60, "Latin", 20_000)).recipe,
        plan(Text(20_000_000, 60, "Latin", 20_000_000)).recipe,
    )
    assert small.model.units < large.model.units
    assert small.model.dropout > 3 * large.model.dropout
    assert small.training.weight_decay > large.training.weight_decay


@pytest.mark.parametrize(
    ("name", "value"),
    [("units", 96), ("dropout", 0.07), ("weight_decay", 0.3), ("learning_rate", 0.001), ("cell", "lstm")],
)
def test_what_is_given_by_hand_stands(name: str, value: Any) -> None:
    made = plan(**{name: value})
    [(_, shown, reason)] = [row for row in made.explanation() if row[0] == "--" + name.replace("_", "-")]
    assert (shown, reason) == (str(value), "given by hand")


def test_a_width_by_hand_changes_what_follows_from_it() -> None:
    """A narrow model reads the text more often in the same time, and is kept from learning it by heart."""
    assert plan(units=128).passes > 3 * plan(units=1024).passes
    assert plan(units=128).recipe.model.dropout > plan(units=1024).recipe.model.dropout
    assert plan(units=1024).recipe.training.learning_rate < plan(units=128).recipe.training.learning_rate


def test_tied_weights_bring_their_width_along() -> None:
    free, fixed = plan(tied=True).recipe.model, plan(tied=True, embedding=200).recipe.model
    assert free.embedding == free.units
    assert (fixed.embedding, fixed.units) == (200, 200)


def test_bytes_are_counted_as_what_is_read() -> None:
    """Three bytes a character: the same steps read the text a third as often."""
    text = "道可道，非常道。" * 1000
    of_characters = Text.of(text, Vocabulary.from_text(text, VocabularyConfig()))
    of_bytes = Text.of(text, Vocabulary.from_text(text, VocabularyConfig(unit="byte")))
    assert of_bytes.tokens == 3 * of_characters.tokens
    assert plan(of_bytes, units=64).passes == pytest.approx(plan(of_characters, units=64).passes / 3)


def test_a_single_measured_width_is_enough_for_the_others() -> None:
    """A machine half as fast as that of the trials, of which only the narrowest width was measured."""
    for units in (128, 256, 512, 1024):
        assert speed_at({128: 175e3}, units) == pytest.approx(SPEEDS[units] / 2)
    assert speed_at({128: 175e3}, 2048) == pytest.approx(SPEEDS[1024] / 8)
    assert speed_at(SPEEDS, 16) == pytest.approx(400e3)


@pytest.mark.parametrize("budget", [{"epochs": 7}, {"steps": 3430}])
def test_a_budget_without_a_clock_needs_no_measuring(budget: dict[str, int]) -> None:
    made = make_plan(SHAKESPEARE, budget, {})
    assert made.passes == pytest.approx(7, rel=0.01)
    assert made.recipe.model.units == 512
    assert "as measured" not in " ".join(made.summary())


def test_nothing_but_what_was_asked_for_leaves_the_defaults() -> None:
    """The plan speaks of these options; of all others the dataclasses' defaults hold."""
    made = plan()
    untouched = {"beta1", "beta2", "clip_norm", "epsilon", "optimizer", "precision", "seed", "log_every"}
    for name in untouched:
        assert getattr(made.recipe.training, name) == getattr(TrainingConfig(), name)
    assert made.recipe.sequences == SequenceConfig()
    assert made.recipe.model.tied is ModelConfig().tied
    assert {row[0] for row in made.explanation()} >= {"--units", "--dropout", "--learning-rate", "--patience"}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("To be, or not to be", "Latin"),
        ("Быть или не быть, to be", "Cyrillic"),
        ("道可道，非常道", "CJK"),
        ("すべての人は、ひとしく", "Hiragana"),
        ("1234 +-* 5", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script
