"""Recipe files: reading, writing, refusals, and which names are files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from charwright.config import ModelConfig, Recipe, SplitConfig, TrainingConfig
from charwright.errors import ConfigError, RunError, UsageError
from charwright.planning.recipe_file import is_recipe_file, read_recipe, recipe_of, write_recipe
from charwright.planning.recipes import DEFAULT, TUTORIAL

SAMPLE = Recipe(model=ModelConfig(cell="lstm", units=96), training=TrainingConfig(steps=7, learning_rate=1e-3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.json"


def written(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_a_recipe_file_round_trip(file: Path) -> None:
    write_recipe(file, SAMPLE, "a note")
    assert read_recipe(file) == SAMPLE
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values == {"format": 1, "note": "a note", "recipe": SAMPLE.to_json()}


def test_writing_leaves_no_temporary_file(file: Path, tmp_path: Path) -> None:
    write_recipe(file, SAMPLE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
    with pytest.raises(RunError, match="cannot write"):
        write_recipe(tmp_path / "nowhere" / "mine.json", SAMPLE)


def test_missing_options_take_their_defaults(file: Path) -> None:
    recipe = read_recipe(written(file, {"format": 1, "recipe": {"model": {"units": 64}, "training": {"steps": 5}}}))
    assert recipe == Recipe(model=ModelConfig(units=64), training=TrainingConfig(steps=5))


def test_without_a_budget_a_recipe_gets_that_of_the_default_recipe(file: Path) -> None:
    recipe = read_recipe(written(file, {"format": 1, "recipe": {"model": {"units": 64}}}))
    assert recipe.training == DEFAULT.training
    assert recipe.with_options({"epochs": 2}).training.minutes is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "must hold an object"),
        ({"recipe": {}}, "'format' is missing"),
        ({"format": 1}, "'recipe' is missing"),
        ({"format": 2, "recipe": {}}, "format 2"),
        ({"format": "1", "recipe": {}}, "format must be"),
        ({"format": 1, "recipe": {}, "units": 64}, "'units'"),
        ({"format": 1, "recipe": {}, "note": 3}, "note must be a string"),
        ({"format": 1, "recipe": []}, "recipe must be an object"),
        ({"format": 1, "recipe": {"modell": {}}}, "'modell'"),
        ({"format": 1, "recipe": {"model": {"unit": 64}}}, "recipe: model has the unknown key 'unit'"),
        ({"format": 1, "recipe": {"model": {"units": "64"}}}, "`units` must be a whole number"),
        ({"format": 1, "recipe": {"model": {"units": True}}}, "`units` must be a whole number"),
        ({"format": 1, "recipe": {"training": {"learning_rate": -1}}}, "`learning_rate` must be above 0"),
        ({"format": 1, "recipe": {"training": {"steps": 3, "epochs": 3}}}, "one budget at a time"),
    ],
)
def test_a_refusal_names_the_file_and_the_key(file: Path, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_recipe(written(file, values))
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b'{"format": 1,}', b"", b"\xff", b"\xef\xbb\xbf{}"])
def test_a_file_that_is_not_json(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(ConfigError, match="is not JSON"):
        read_recipe(file)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recipe file"):
        read_recipe(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="folder without a run"):
        read_recipe(tmp_path)


def run_config(folder: Path, recipe: Recipe, validation: list[Any]) -> Path:
    corpus = {"characters": 1, "sha256": "", "reading": {}, "sources": [], "validation": validation}
    values = {"format": 1, "recipe_name": "default", "recipe": recipe.to_json(), "corpus": corpus, "versions": {}}
    return written(folder / "config.json", values)


def test_a_run_can_be_used_as_a_recipe(tmp_path: Path) -> None:
    path = run_config(tmp_path, SAMPLE, [])
    assert read_recipe(path) == read_recipe(tmp_path) == SAMPLE


def test_a_run_with_a_separate_validation_text_gives_the_default_split(tmp_path: Path) -> None:
    without_split = dataclasses.replace(SAMPLE, split=SplitConfig(val_fraction=0.0))
    assert read_recipe(run_config(tmp_path, without_split, [])).split.val_fraction == 0
    assert read_recipe(run_config(tmp_path, without_split, [{}])).split.val_fraction == SplitConfig().val_fraction


def test_which_names_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.json", "here/mine", "./tutorial"):
        assert is_recipe_file(name)
    assert not is_recipe_file("mine")
    write_recipe(Path("mine"), SAMPLE)
    write_recipe(Path("tutorial"), SAMPLE)
    assert recipe_of("mine") == recipe_of("./tutorial") == SAMPLE
    assert recipe_of("tutorial") == TUTORIAL  # A named recipe takes precedence over a file.
    with pytest.raises(UsageError, match="did you mean tutorial"):
        recipe_of("tutoril")
