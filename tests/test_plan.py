"""The planner's rule, for any text, machine and budget, and the reasons it gives."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright.config import ModelConfig, SequenceConfig, TrainingConfig, VocabularyConfig
from charwright.data.vocabularies import make_vocabulary
from charwright.planning.plan import Plan, make_plan, planned_parts
from charwright.planning.profile import TextProfile
from charwright.planning.recipes import DEFAULT
from charwright.planning.regularization import regularization

SPEEDS = {128: 350e3, 256: 220e3, 512: 100e3, 1024: 39e3}
SHAKESPEARE = TextProfile(1_003_854, 66, "Latin", 1_003_854)


def plan(text: TextProfile = SHAKESPEARE, speeds: dict[int, float] | None = None, **options: Any) -> Plan:
    return make_plan(text, {"minutes": 5.0, **options}, SPEEDS if speeds is None else speeds)


@given(
    characters=st.integers(2, 10**10),
    vocabulary=st.integers(2, 20_000),
    minutes=st.floats(0.01, 525_600),
    speed=st.floats(10, 1e8),
)
def test_there_is_a_plan_for_any_input(characters: int, vocabulary: int, minutes: float, speed: float) -> None:
    planned = plan(
        TextProfile(characters, vocabulary, "Latin", characters), {128: speed, 256: speed / 3}, minutes=minutes
    )
    assert planned.recipe.training.minutes == minutes
    assert planned.recipe.model.units <= 2048
    assert planned.recipe.training.learning_rate <= 1.5 * DEFAULT.training.learning_rate
    assert planned.passes > 0
    json.dumps(planned.to_json(), allow_nan=False)
    assert len(planned.summary()) == 2
    assert all("\n" not in line for line in planned.summary())


def test_the_summary_has_the_speed_of_the_planned_model() -> None:
    """Two layers are slower than the one that was measured."""
    assert "at 100,000 characters/s" in plan(units=512).summary()[1]
    assert "at 47,000 characters/s" in plan(units=512, layers=2).summary()[1]


def test_a_plan_has_the_cell_with_the_fewest_products_unless_another_is_wanted() -> None:
    assert plan().recipe.model.cell == "igru"
    assert plan(cell="gru").recipe.model.cell == "gru"


def test_a_budget_of_one_is_in_the_singular() -> None:
    assert "for 1 minute," in plan(minutes=1.0).summary()[0]
    assert "for 1 epoch," in make_plan(SHAKESPEARE, {"epochs": 1}, {}).summary()[0]


@given(minutes=st.floats(0.1, 1_000), times=st.floats(1, 100))
def test_more_time_lowers_neither_the_width_nor_the_regularization(minutes: float, times: float) -> None:
    short, long = plan(minutes=minutes).recipe, plan(minutes=minutes * times).recipe
    assert long.model.units >= short.model.units
    if long.model.units == short.model.units:
        assert long.model.dropout >= short.model.dropout
        assert long.model.recurrent_dropout >= short.model.recurrent_dropout
        assert long.training.weight_decay >= short.training.weight_decay


@pytest.mark.parametrize(
    ("characters", "records", "bits", "order", "rate"),
    [
        (1_999, 0, 0, 4, 0.03),
        (2_000, 0, 18, 4, 0.03),
        (99_999, 0, 18, 4, 0.03),
        (100_000, 0, 20, 8, 0.12),
        (399_999, 0, 20, 8, 0.12),
        (400_000, 0, 22, 8, 0.12),
        (10**9, 0, 22, 8, 0.12),
        (10**6, 50_000, 0, 8, 0.12),
    ],
)
def test_n_grams_are_for_running_text_that_is_long_enough(
    characters: int, records: int, bits: int, order: int, rate: float
) -> None:
    text = TextProfile(characters, 66, "Latin", characters, records)
    planned = plan(text)
    assert planned_parts(text, {}) == {"ngram_bits": bits, "ngram_order": order, "multiplicative": True}
    assert planned.recipe.model.ngram_bits == bits
    assert planned.recipe.model.ngram_order == (order if bits else 4)
    assert planned.recipe.training.ngram_rate == (rate if bits else 0.03)
    for option in ("ngram_order", "ngram_rate", "ngram_decay"):
        assert (option in planned.reasons) == (bits > 0)
    assert ("and n-grams" in planned.summary()[0]) == (bits > 0)


@pytest.mark.parametrize(
    ("epochs", "repetition", "occurrences"),
    [(1, 0.27, 0.36), (9, 0.27, 3.24), (9, 0.12, 9.68), (9, 0.54, 1.3), (36, 0.27, 10), (36, 0.54, 5.1), (9, 0, 10)],
)
def test_what_a_text_says_once_counts_less_the_more_often_it_is_read(
    epochs: int, repetition: float, occurrences: float
) -> None:
    """Unless the text repeats itself, so that its n-grams hold elsewhere too."""
    planned = plan(TextProfile(10**6, 66, "Latin", 10**6, repetition=repetition), minutes=None, epochs=epochs)
    assert planned.recipe.training.ngram_decay == pytest.approx(occurrences / 10**6, rel=0.02)
    assert f"{repetition:.0%} of its passages recur" in planned.reasons["ngram_decay"]


def test_running_text_is_read_in_excerpts() -> None:
    planned = plan()
    assert planned.recipe.sequences.order == "excerpts"
    assert "from all over the text" in planned.reasons["order"]
    assert plan(order="streams").recipe.sequences.order == "streams"
    for other in (dataclasses.replace(SHAKESPEARE, records=10**5), dataclasses.replace(SHAKESPEARE, beside=10**6)):
        streams = plan(other)
        assert streams.recipe.sequences.order == "streams"
        assert "order" not in streams.reasons


def test_a_layer_is_multiplicative_unless_it_is_not_wanted() -> None:
    planned = plan()
    assert planned.recipe.model.multiplicative
    assert "multiplicative input-reset GRU units and n-grams" in planned.summary()[0]
    assert ("--multiplicative", "") in [row[:2] for row in planned.explanation()]
    plain = plan(multiplicative=False)
    assert plain.recipe.model == dataclasses.replace(planned.recipe.model, multiplicative=False)
    assert "multiplicative" not in plain.summary()[0]
    assert ("--no-multiplicative", "") in [row[:2] for row in plain.explanation()]


def test_n_grams_given_by_hand_are_kept() -> None:
    without = plan(ngram_bits=0)
    assert without.recipe.model.ngram_bits == planned_parts(SHAKESPEARE, {"ngram_bits": 0})["ngram_bits"] == 0
    assert "ngram_decay" not in without.reasons
    assert planned_parts(SHAKESPEARE, {"ngram_order": 5, "multiplicative": False}) == {
        "ngram_bits": 22,
        "ngram_order": 5,
        "multiplicative": False,
    }
    short = plan(TextProfile(500, 20, "Latin", 500), ngram_bits=8, ngram_order=3)
    assert (short.recipe.model.ngram_bits, short.recipe.model.ngram_order) == (8, 3)
    assert 0 < short.recipe.training.ngram_decay < 10 / 500, "no step forgets all"


def test_n_grams_learn_more_slowly_in_larger_batches() -> None:
    rates = [plan(batch=batch, seq_length=64).recipe.training.ngram_rate for batch in (8, 32, 128, 512)]
    assert rates == [0.12, 0.12, 0.06, 0.03]


def test_a_faster_machine_trains_a_wider_model() -> None:
    ten_times = {units: 10 * speed for units, speed in SPEEDS.items()}
    assert plan(minutes=1.0, speeds=ten_times).recipe.model.units > plan(minutes=1.0).recipe.model.units


def test_a_small_text_gets_a_small_model_and_much_regularization() -> None:
    small, large = (
        plan(TextProfile(20_000, 60, "Latin", 20_000)).recipe,
        plan(TextProfile(20_000_000, 60, "Latin", 20_000_000)).recipe,
    )
    assert small.model.units < large.model.units
    assert small.model.dropout > 3 * large.model.dropout
    assert small.training.weight_decay > large.training.weight_decay


def of_tokens(tokens: int, repetition: float = 1.0, *, teaches: bool = False) -> TextProfile:
    return TextProfile(tokens, 60, "Latin", tokens, repetition=repetition, teaches=teaches)


def test_with_n_grams_dropout_follows_the_load() -> None:
    """The recurrent weights times the passes for each token; without n-grams the passes alone count."""
    wide, narrow = (ModelConfig(cell="igru", units=units, ngram_bits=22) for units in (512, 256))
    million, short = of_tokens(1_000_000), of_tokens(20_000)
    assert regularization(narrow, 5, million).dropout == pytest.approx(0.1 * 2 * 256**2 * 5 / 1e6 / 8)
    assert regularization(wide, 5, million).dropout == pytest.approx(4 * regularization(narrow, 5, million).dropout)
    assert regularization(narrow, 3, of_tokens(10_000_000)).dropout == 0, "less than 0.005 is none"
    high = regularization(wide, 4, of_tokens(131_072))  # a load of 16
    assert (high.dropout, high.recurrent_dropout) == (pytest.approx(0.2), pytest.approx(0.16))
    assert regularization(wide, 12, of_tokens(131_072)).dropout == pytest.approx(0.2 * 3**0.3), "a high load adds less"
    alone = dataclasses.replace(narrow, ngram_bits=0)
    assert regularization(alone, 28, million).dropout == 0.2
    assert regularization(narrow, 28, short).dropout == 0.35, "the most by load"
    often = regularization(narrow, 400, short)
    assert (often.dropout, often.recurrent_dropout) == (0.5, 0.35)
    gru, igru = (regularization(dataclasses.replace(narrow, cell=cell), 5, million) for cell in ("gru", "igru"))
    assert gru.dropout == pytest.approx(1.5 * igru.dropout)


def test_weight_decay_replaces_dropout_where_a_long_text_hardly_repeats_itself() -> None:
    wide = ModelConfig(cell="igru", units=512, ngram_bits=20)
    fresh = regularization(wide, 28, of_tokens(250_000, repetition=0.1))
    assert (fresh.dropout, fresh.recurrent_dropout, fresh.weight_decay) == pytest.approx((0.12, 0.2, 0.8))
    repeating = regularization(wide, 28, of_tokens(250_000, repetition=0.5))
    assert (repeating.dropout, repeating.weight_decay) == pytest.approx((0.2 * 3.67**0.3, 0.4), rel=1e-3)
    between = regularization(wide, 28, of_tokens(250_000, repetition=0.425))
    assert between.weight_decay == pytest.approx(0.6)
    assert fresh.dropout < between.dropout < repeating.dropout
    short, alike = (regularization(wide, 28, of_tokens(90_000, repetition)) for repetition in (0.1, 0.5))
    assert short.dropout == alike.dropout, "a pass has too few steps"
    assert alike.weight_decay == pytest.approx(0.4 * (3 - 2 * 50 / 80)), "as every short text"
    assert short.weight_decay == pytest.approx(0.8)
    teacher = regularization(wide, 28, of_tokens(90_000, repetition=0.1, teaches=True))
    assert teacher.weight_decay == pytest.approx(0.4)
    assert regularization(wide, 28, of_tokens(150_000, 0.1)).weight_decay == pytest.approx(0.8)
    assert regularization(wide, 28, of_tokens(150_000, 0.1, teaches=True)).weight_decay == pytest.approx(0.4 * 13 / 7)
    long = regularization(wide, 28, of_tokens(1_000_000, repetition=0.1))
    assert long.weight_decay == pytest.approx(0.4), "the steps of a long text are enough"
    low = regularization(wide, 28, of_tokens(1_900_000, repetition=0.1))
    assert low.dropout == pytest.approx(0.0125 * 2 * 512**2 * 28 / 1.9e6), "a low load has less than that anyway"


@pytest.mark.parametrize("bits", [0, 18])
def test_a_short_text_has_more_weight_decay(bits: int) -> None:
    """Three or five times as much; teachers and what learns from them have no more than others."""
    model = ModelConfig(cell="igru", units=128, ngram_bits=bits)
    lengths = (3_000, 7_000, 9_500, 12_000, 40_000, 120_000)

    def of(passes: float, tokens: int, **changed: Any) -> float:
        return regularization(model, passes, dataclasses.replace(of_tokens(tokens), **changed)).weight_decay

    assert [of(28, tokens) for tokens in lengths] == pytest.approx([2.0, 2.0, 1.6, 1.2, 1.2, 0.4])
    assert of(28, 80_000) == pytest.approx(0.8)
    assert [of(10_000, tokens) for tokens in lengths] == pytest.approx([6.0, 6.0, 4.25, 2.5, 2.5, 1.2])
    for tokens in lengths:
        assert of(28, tokens, teaches=True) == of(28, tokens, beside=300_000) == pytest.approx(0.4)
        assert of(28, tokens, once=1_000) == pytest.approx(0.4), "teachers that write nothing"
        assert of(10_000, tokens, teaches=True) == pytest.approx(1.2)


def test_what_teachers_write_makes_no_text_longer() -> None:
    wide = ModelConfig(cell="igru", units=512, ngram_bits=20)
    taught = dataclasses.replace(of_tokens(90_000, repetition=0.1), beside=160_000)
    alike = dataclasses.replace(of_tokens(90_000, repetition=0.9), beside=160_000)
    assert regularization(wide, 28, taught) == regularization(wide, 28, alike)


@pytest.mark.parametrize(
    ("name", "value"),
    [("units", 96), ("dropout", 0.07), ("weight_decay", 0.3), ("learning_rate", 0.001), ("cell", "lstm")],
)
def test_options_given_by_hand_are_kept(name: str, value: Any) -> None:
    planned = plan(**{name: value})
    [(_, shown, reason)] = [row for row in planned.explanation() if row[0] == "--" + name.replace("_", "-")]
    assert (shown, reason) == (str(value), "given by hand")


def test_a_width_given_by_hand_changes_the_options_derived_from_it() -> None:
    """A narrow model reads the text more often in the same time, so it needs more weight decay."""
    assert plan(units=128).passes > 3 * plan(units=1024).passes
    assert plan(units=128).recipe.training.weight_decay > plan(units=1024).recipe.training.weight_decay
    without = [plan(units=units, ngram_bits=0).recipe.model.dropout for units in (128, 1024)]
    assert without[0] > without[1], "and without n-grams more dropout"
    rates = [plan(units=units).recipe.training.learning_rate for units in (2048, 1024, 512, 64)]
    assert rates == [0.0042, 0.006, 0.006, 0.006]


def test_the_learning_rate_is_held_unless_given_by_hand() -> None:
    assert plan().recipe.training.schedule == "trapezoid"
    assert plan(schedule="cosine").recipe.training.schedule == "cosine"


def test_the_optimizer_is_cautious_unless_given_by_hand() -> None:
    assert plan().recipe.training.optimizer == "cautious-adamw"
    assert plan(optimizer="adamw").recipe.training.optimizer == "adamw"


def test_tied_weights_have_one_width() -> None:
    free, fixed = plan(tied=True).recipe.model, plan(tied=True, embedding_size=200).recipe.model
    assert free.embedding_size == free.units
    assert (fixed.embedding_size, fixed.units) == (200, 200)


def test_passes_over_bytes() -> None:
    """With three bytes per character the same steps read the text a third as often."""
    text = "道可道，非常道。" * 1000
    of_characters = TextProfile.of(text, make_vocabulary(text, VocabularyConfig()))
    of_bytes = TextProfile.of(text, make_vocabulary(text, VocabularyConfig(level="byte")))
    assert of_bytes.tokens == 3 * of_characters.tokens
    assert plan(of_bytes, units=64).passes == pytest.approx(plan(of_characters, units=64).passes / 3)


@pytest.mark.parametrize("budget", [{"epochs": 7}, {"steps": 3430}])
def test_a_budget_in_epochs_or_steps_needs_no_measurement(budget: dict[str, int]) -> None:
    planned = make_plan(SHAKESPEARE, budget, {})
    assert planned.passes == pytest.approx(7, rel=0.01)
    assert planned.recipe.model.units == 512
    assert "measured" not in " ".join(planned.summary())


def test_options_that_are_not_planned_keep_their_defaults() -> None:
    planned = plan()
    untouched = {"beta1", "beta2", "clip_norm", "epsilon", "precision", "seed", "log_every"}
    for name in untouched:
        assert getattr(planned.recipe.training, name) == getattr(TrainingConfig(), name)
    assert planned.recipe.sequences == SequenceConfig(order="excerpts")
    assert planned.recipe.model.tied is ModelConfig().tied
    assert {row[0] for row in planned.explanation()} >= {"--units", "--dropout", "--learning-rate", "--patience"}
