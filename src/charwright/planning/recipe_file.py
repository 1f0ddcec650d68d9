"""Recipe files: read by `--recipe FILE.json`, written by a search."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charwright.config import BUDGETS, Recipe, SplitConfig
from charwright.errors import ConfigError, DamagedRunError
from charwright.planning.recipes import DEFAULT, RECIPES, find_recipe
from charwright.storage import FORMAT, check_format, read_json, write_json

OF_A_RUN = {"recipe_name", "recipe", "corpus", "versions"}
"""The keys that identify the config.json of a run."""


def recipe_of(name: str | os.PathLike[str]) -> Recipe:
    """The recipe that `--recipe` names: a named recipe or a file.

    Raises:
        UsageError: when there is no such recipe.
        ConfigError: when the file is not a recipe, naming the file and the key.
    """
    name = os.fspath(name)
    return read_recipe(name) if is_recipe_file(name) else find_recipe(name)


def is_recipe_file(name: str) -> bool:
    """Whether a name is a file: it looks like a path, or exists. A named recipe takes precedence."""
    if name in RECIPES:
        return False
    separators = {os.sep, os.altsep or os.sep, "/"}
    return name.endswith(".json") or any(part in name for part in separators) or Path(name).is_file()


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe file, or the recipe of a run from its folder or config.json.

    A missing key takes its default; a recipe without a budget gets that of the default recipe.

    Raises:
        ConfigError: naming the file and the unknown or invalid key.
    """
    place = Path(path)
    if (place / "config.json").is_file():
        place = place / "config.json"
    values = _read_object(place)
    if set(values) >= OF_A_RUN:
        recipe = _recipe_of_run(values, str(place))
    else:
        _check_keys(values, str(place))
        recipe = Recipe.from_json(values["recipe"], f"{place}: recipe")
    if all(getattr(recipe.training, name) is None for name in BUDGETS):
        recipe = recipe.with_options({"minutes": DEFAULT.training.minutes})
    return recipe


def write_recipe(path: Path, recipe: Recipe, note: str = "") -> None:
    """Write a recipe file atomically.

    Raises:
        RunError: when the system refuses.
    """
    write_json(path, {"format": FORMAT, **({"note": note} if note else {}), "recipe": recipe.to_json()})


def _read_object(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder without a run, not a recipe file")
    if not path.exists():
        raise ConfigError(f"there is no recipe file {str(path)!r}")
    try:
        values = read_json(path)
        check_format(values, str(path))
    except DamagedRunError as error:
        # People edit these files: a syntax error is not damage.
        raise ConfigError(f"{path} is not JSON: {error.__cause__}" if error.__cause__ else error.for_shell) from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path} must hold an object like {{"format": {FORMAT}, "recipe": {{...}}}}')
    return values


def _check_keys(values: Mapping[str, Any], where: str) -> None:
    for key in ("format", "recipe"):
        if key not in values:
            raise ConfigError(f"{where}: the key {key!r} is missing")
    for key in sorted(set(values) - {"format", "recipe", "note"}):
        raise ConfigError(f"{where} has the unknown key {key!r}; options belong inside 'recipe'")
    if not isinstance(values.get("note", ""), str):
        raise ConfigError(f"{where}: note must be a string, not {json.dumps(values['note'])[:40]}")


def _recipe_of_run(values: Mapping[str, Any], where: str) -> Recipe:
    recipe = Recipe.from_json(values["recipe"], f"{where}: recipe")
    corpus = values["corpus"]
    if isinstance(corpus, dict) and corpus.get("validation"):
        # It held nothing out of its corpus, having a separate validation text, which a recipe does not include.
        recipe = recipe.with_options({"val_fraction": SplitConfig().val_fraction})
    return recipe
