"""A run in words, and as a notebook shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charwright import notebook
from charwright.config import ModelConfig
from charwright.run_config import RunConfig
from charwright.webpage.sentence import Sentence


def cell_in_words(model: ModelConfig) -> str:
    """The cell of a model, for people; of a multiplicative model it is the first layer that is so."""
    cell = "input-reset GRU" if model.cell == "igru" else model.cell.upper()
    return f"{'multiplicative ' if model.multiplicative else ''}{cell}"


def layers_in_words(model: ModelConfig) -> Sentence:
    """The cell and the layers of a model, for the web pages."""
    one, several = "{cell}, one layer of {units} units", "{cell}, {layers} layers of {units} units"
    return Sentence(
        one if model.layers == 1 else several, cell=cell_in_words(model), layers=model.layers, units=f"{model.units:,}"
    )


def network(model: ModelConfig, vocabulary_size: int) -> str:
    """The network of a run in words."""
    layers = "1 layer" if model.layers == 1 else f"{model.layers} layers"
    weights = sum(map(math.prod, model.weight_shapes(vocabulary_size).values()))
    return f"{layers} of {model.units:,} {cell_in_words(model)} units, {weights:,} parameters"


def as_html(folder: Path, config: RunConfig, vocabulary_size: int, history: Sequence[Mapping[str, Any]]) -> str:
    """A table of the network, the text and the lowest loss, and the curve of the losses."""
    rows = [("network", network(config.recipe.model, vocabulary_size)), ("recipe", config.recipe_name)]
    if config.characters:
        places = ", ".join(source.location for source in config.sources[:3])
        more = f" and {len(config.sources) - 3} more" if len(config.sources) > 3 else ""
        rows.append(("text", f"{places}{more}, {config.characters:,} characters"))
    if config.records:
        count = config.records.training + config.records.validation
        rows.append(("records", f"{count:,}, each ends with {config.records.end!r}"))
    losses = [
        (event["step"], event["validation_loss"]) for event in history if event.get("validation_loss") is not None
    ]
    kind = "validation loss, nats per character"
    if not losses:
        losses = [(event["step"], event["train_loss"]) for event in history]
        kind = "training loss, nats per token"
    if losses:
        step, lowest = min(losses, key=lambda pair: pair[1])
        rows.append((kind, f"{lowest:.4f} at step {step:,}, the lowest of {len(losses)}"))
    return notebook.facts(f"Run {folder}", rows) + notebook.curve(losses, f"{kind}, by step")
