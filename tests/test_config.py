"""Options: validation, and conversion to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright import config as configs
from charwright import errors
from charwright.config import (
    CorpusConfig,
    GenerationConfig,
    ModelConfig,
    Recipe,
    SequenceConfig,
    SplitConfig,
    TrainingConfig,
    VocabularyConfig,
)
from charwright.errors import CharwrightError, ConfigError, UsageError
from charwright.schema import flag, option_types, quoted

PARTS = [
    CorpusConfig,
    VocabularyConfig,
    SplitConfig,
    SequenceConfig,
    ModelConfig,
    TrainingConfig,
    GenerationConfig,
]


@pytest.mark.parametrize("part", PARTS)
def test_each_option_has_help_and_a_valid_default(part):
    part()
    for item in dataclasses.fields(part):
        assert item.metadata["help"].endswith("."), item.name


def test_option_names_are_unique():
    # The command line and `with_options` find an option by its name alone. `seed` is also an option of generation.
    recipe_parts = [kind for kind, _ in option_types(Recipe).values()]
    names = [item.name for part in [*recipe_parts, CorpusConfig] for item in dataclasses.fields(part)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        (ModelConfig, "layers", 0, "`layers` must be at least 1, not 0"),
        (ModelConfig, "layers", 33, "`layers` must be at most 32, not 33"),
        (ModelConfig, "dropout", 1.0, "`dropout` must be below 1, not 1.0"),
        (ModelConfig, "dropout", -0.1, "`dropout` must be at least 0"),
        (ModelConfig, "cell", "transformer", "`cell` must be one of gru, igru, lstm, rnn"),
        (ModelConfig, "units", 2.0, "`units` must be a whole number"),
        (ModelConfig, "units", True, "`units` must be a whole number"),
        (ModelConfig, "units", None, "`units` must be a whole number"),
        (ModelConfig, "tied", 1, "`tied` must be true or false"),
        (TrainingConfig, "learning_rate", 0, "`learning_rate` must be above 0, not 0"),
        (TrainingConfig, "learning_rate", math.nan, "`learning_rate` must be a finite number"),
        (TrainingConfig, "learning_rate", math.inf, "`learning_rate` must be a finite number"),
        (TrainingConfig, "checkpoint_minutes", 10**400, "`checkpoint_minutes` must be a finite number"),
        (TrainingConfig, "seed", -1, "`seed` must be at least 0"),
        (TrainingConfig, "seed", 2**63, "`seed` must be at most 9223372036854775807, not 9223372036854775808"),
        (SplitConfig, "val_limit", 2**53 + 1, "`val_limit` must be at most 9007199254740992, not 9007199254740993"),
        (TrainingConfig, "epochs", "3", "`epochs` must be a whole number, not '3'"),
        (SplitConfig, "val_fraction", 0.6, "`val_fraction` must be at most 0.5"),
        (VocabularyConfig, "level", "word", "`level` must be one of character, byte"),
        (CorpusConfig, "encoding", 8, "`encoding` must be text"),
    ],
)
def test_a_value_out_of_bounds_is_named(part, name, value, message):
    with pytest.raises(ConfigError) as caught:
        part(**{name: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_inclusive_bounds_are_allowed():
    assert SplitConfig(val_fraction=0.5).val_fraction == 0.5
    assert SplitConfig(val_fraction=0).val_fraction == 0
    assert TrainingConfig(seed=2**63 - 1).seed == 2**63 - 1
    assert GenerationConfig(top_p=1.0, temperature=0).top_p == 1.0


def test_an_integer_for_a_float_is_converted():
    # Otherwise equal recipes could differ on disk, with 1 or 1.0.
    assert json.dumps(TrainingConfig(minutes=2).to_json()["minutes"]) == "2.0"


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().units = 3


def test_a_tied_embedding_is_as_wide_as_the_layer():
    assert ModelConfig(tied=True, units=64, embedding_size=64).tied
    with pytest.raises(ConfigError, match="not 32 and 64"):
        ModelConfig(tied=True, units=64, embedding_size=32)


@pytest.mark.parametrize("pair", [{"epochs": 1, "steps": 2}, {"steps": 1, "minutes": 1.0}])
def test_only_one_budget_is_allowed(pair):
    with pytest.raises(ConfigError, match="one budget at a time: `"):
        TrainingConfig(**pair)


@pytest.mark.parametrize(("cell", "gates", "arrays_per_layer"), [("gru", 3, 4), ("lstm", 4, 3), ("rnn", 1, 3)])
def test_weight_shapes(cell, gates, arrays_per_layer):
    shapes = ModelConfig(cell=cell, layers=2, units=5, embedding_size=7).weight_shapes(11)
    assert len(shapes) == 3 + 2 * arrays_per_layer
    assert shapes["embedding.weight"] == (11, 7)
    assert shapes["recurrent.0.weight_ih"] == (gates * 5, 7)
    assert shapes["recurrent.1.weight_ih"] == (gates * 5, 5)
    assert shapes["recurrent.1.weight_hh"] == (gates * 5, 5)
    assert shapes["head.weight"] == (11, 5)
    tied = ModelConfig(cell=cell, units=5, embedding_size=5, tied=True).weight_shapes(11)
    assert "head.weight" not in tied
    assert tied["head.bias"] == (11,)


def test_the_number_of_parameters_of_the_tutorial():
    shapes = ModelConfig(cell="gru", units=1024, embedding_size=256).weight_shapes(66)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sizes["embedding.weight"] == 16_896
    assert sum(size for name, size in sizes.items() if name.startswith("recurrent")) == 3_938_304
    assert sizes["head.weight"] + sizes["head.bias"] == 67_650
    assert sum(sizes.values()) == 4_022_850


models = st.builds(
    ModelConfig,
    cell=st.sampled_from(["gru", "lstm", "rnn"]),
    layers=st.integers(1, 32),
    units=st.integers(1, 16384),
    embedding_size=st.integers(1, 16384),
    dropout=st.floats(0, 1, exclude_max=True),
    ngram_bits=st.integers(0, 28),
    ngram_order=st.integers(2, 8),
)
trainings = st.builds(
    TrainingConfig,
    epochs=st.none() | st.integers(1, 1000),
    learning_rate=st.floats(0, 1e4, exclude_min=True),
    clip_norm=st.none() | st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**63 - 1),
)


@given(model=models, training=trainings)
def test_recipes_round_trip_through_json(model, training):
    recipe = Recipe(model=model, training=training)
    text = json.dumps(recipe.to_json(), allow_nan=False)
    assert Recipe.from_json(json.loads(text), "config.json") == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "config.json: recipe must be an object, not list"),
        ({"modl": {}}, "unknown key 'modl'"),
        ({"model": {"unit": 3}}, "config.json: recipe: model has the unknown key 'unit'"),
        ({"model": {"units": "3"}}, "config.json: recipe: model: `units` must be a whole number"),
        ({"model": None}, "must be an object, not NoneType"),
    ],
)
def test_reading_is_strict_and_names_the_place(values, message):
    with pytest.raises(ConfigError) as caught:
        Recipe.from_json(values, "config.json: recipe")
    assert message in str(caught.value)


def test_a_missing_key_takes_its_default():
    assert Recipe.from_json({"model": {"units": 8}}, "here") == Recipe(model=ModelConfig(units=8))


def test_the_order_of_n_grams_is_left_out_where_earlier_versions_have_it():
    assert "ngram_order" not in Recipe(model=ModelConfig(ngram_bits=8)).to_json()["model"]
    assert Recipe(model=ModelConfig(ngram_order=8)).to_json()["model"]["ngram_order"] == 8
    assert Recipe.from_json({"model": {"ngram_bits": 8}}, "here").model.ngram_order == 4


def test_options_are_found_by_name():
    recipe = Recipe().with_options({"units": 7, "val_split": "tail", "batch": 3, "min_count": 2, "seed": 5})
    assert recipe.model.units == 7
    assert recipe.split.val_split == "tail"
    assert recipe.sequences.batch == 3
    assert recipe.vocabulary.min_count == 2
    assert recipe.training.seed == 5
    assert Recipe().model.units == ModelConfig().units


def test_a_new_budget_replaces_the_previous_one():
    recipe = Recipe(training=TrainingConfig(epochs=10)).with_options({"minutes": 2})
    assert (recipe.training.epochs, recipe.training.steps, recipe.training.minutes) == (None, None, 2.0)


def test_other_options_keep_the_budget():
    assert Recipe(training=TrainingConfig(epochs=10)).with_options({"seed": 2}).training.epochs == 10


def test_two_new_budgets_are_refused():
    with pytest.raises(ConfigError, match="one budget"):
        Recipe().with_options({"minutes": 2, "steps": 3})


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match="there is no option `hidden_size`"):
        Recipe().with_options({"hidden_size": 3})


def test_flags_and_types():
    assert flag("val_fraction") == "--val-fraction"
    assert option_types(TrainingConfig)["clip_norm"] == (float, True)
    assert option_types(TrainingConfig)["seed"] == (int, False)
    assert option_types(ModelConfig)["tied"] == (bool, False)


def test_every_cell_has_its_gates_and_states():
    choices = ModelConfig.__dataclass_fields__["cell"].metadata["choices"]
    assert set(configs.GATES) == set(configs.STATES) == set(choices)


def test_the_previous_names_of_options_are_read():
    old = {"model": {"embedding": 7, "state_dropout": 0.1, "weight_dropout": 0.2}, "vocabulary": {"unit": "byte"}}
    old |= {"training": {"zero_state": 0.3, "averaging": 0.4}}
    recipe = Recipe.from_json(old, "config.json")
    assert (recipe.model.embedding_size, recipe.model.recurrent_dropout, recipe.vocabulary.level) == (7, 0.1, "byte")
    assert (recipe.training.state_reset, recipe.training.ema) == (0.3, 0.4)
    renamed = {"embedding": 7, "state_dropout": 0.1, "unit": "byte", "zero_state": 0.3, "averaging": 0.4}
    assert Recipe().with_options(renamed) == recipe


def test_a_slip_that_is_the_old_name_of_another_option_is_named_as_given():
    with pytest.raises(
        ConfigError, match=r"`level` must be text, not 16 \(`unit` is the old name of `level`; did you mean `units`\?\)"
    ):
        Recipe().with_options({"unit": 16})


@pytest.mark.skipif(os.name == "nt", reason="Windows quotes in its own way")
@pytest.mark.parametrize("name", ["runs/novel-2", "runs/詩", "my run", "a'b", "$HOME", "x;y", "a\u3000b", "(1)", "*"])
def test_paths_are_quoted_where_the_shell_needs_it(name):
    assert shlex.split(quoted(name)) == [name]
    assert (quoted(name) == name) == (name in {"runs/novel-2", "runs/詩"})


def test_numbers_of_numpy_are_numbers():
    recipe = Recipe().with_options({"units": np.int64(16), "dropout": np.float32(0.5), "learning_rate": np.int32(1)})
    assert (recipe.model.units, recipe.model.dropout, recipe.training.learning_rate) == (16, 0.5, 1.0)
    assert {type(recipe.model.units), type(recipe.model.dropout)} == {int, float}
    for wrong in (np.float64(16.5), np.bool_(True), True, 16.0):
        with pytest.raises(ConfigError, match="`units` must be a whole number"):
            Recipe().with_options({"units": wrong})


@pytest.mark.parametrize(
    "error",
    [
        errors.OptionError("they differ", "only", "ban"),
        errors.StoppedError("SIGINT"),
        errors.MissingExtraError("plotting", "plot"),
        errors.RankError("gone", 7),
        errors.DamagedRunError("cut"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_reach_another_process_as_they_are(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_code) == (type(error), str(error), error.exit_code)
    assert vars(again) == vars(error)


def test_every_error_is_a_charwright_error():
    assert issubclass(ConfigError, CharwrightError)
    assert UsageError.exit_code == ConfigError.exit_code == 2
    assert CharwrightError.exit_code == 1


@pytest.mark.parametrize("stop", ["end", ["end"], ("end",)])
def test_one_text_or_several_are_given_as_they_are(stop):
    assert GenerationConfig(stop=stop).stop == ("end",)
    for wrong in ("", ["end", ""], ["end", 3], 3):
        with pytest.raises(ConfigError, match="`stop` must be a text that is not empty, or several, not"):
            GenerationConfig(stop=wrong)
