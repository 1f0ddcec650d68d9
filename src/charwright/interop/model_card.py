"""The model card in an exported file: the network, its text, its loss and the version that wrote it.

An import reads back what the weights do not show: what ends a record, and the labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from charwright.config import RecordsConfig
from charwright.data.corpus import Source
from charwright.data.labels import label_ids
from charwright.errors import ConfigError, ForeignModelError, for_shell
from charwright.run import Run

MADE_BY = "charwright "


def model_card(run: Run, version: str) -> dict[str, Any]:
    """Return the model card of a run as plain values, ready for JSON; `version` is charwright's.

    For a model of records it has the `record_end`, which is read before a record, and how the text is divided:
    `records` and `label`. For one with labels it has the `labels` in the order of their ids, of which one comes after
    that; the first id is `first_label_id`. The cell is that of the file: exports turn an input-reset GRU into the equal
    GRU.
    """
    config, labels = run.config, run.vocabulary.labels
    divided = {name: value for name, value in config.recipe.records.to_json().items() if value is not None}
    records = {"record_end": config.records.end, **divided} if config.records else {}
    validated = [event["validation_loss"] for event in run.history() if event.get("validation_loss") is not None]
    return {
        "made_by": f"{MADE_BY}{version}",
        "name": _readable(run.folder.resolve().name),
        "model": run.model.to_json() | ({"cell": "gru"} if run.model.cell == "igru" else {}),
        "tokens": len(run.vocabulary),
        "unit": run.vocabulary.level,
        **records,
        **({"labels": list(labels), "first_label_id": label_ids(run.vocabulary).start} if labels else {}),
        "recipe": _readable(_recipe_of(config.recipe_name)),
        "corpus": {
            "sources": [_readable(_name_of(source)) for source in config.sources],
            "characters": config.characters,
            "sha256": config.sha256,
        },
        "validation_nats_per_char": min(validated, default=None),
    }


def _name_of(source: Source) -> str:
    """The name of a source, without what is nobody else's business: folders, and passwords in addresses."""
    if source.kind == "url" and not source.location.lower().startswith("file:"):
        address = urlsplit(source.location)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
    return source.location if source.kind in ("name", "text") else Path(source.location).name


def _recipe_of(name: str) -> str:
    """The name of a recipe, or of the file of one."""
    begin, found, file = name.rpartition("imported from ")
    return f"{begin}{found}{Path(file).name}"


def _readable(name: str) -> str:
    """The name of a file as text, which it need not be on Linux."""
    return os.fsencode(name).decode("utf-8", "replace")


def find_card(texts: Iterable[bytes]) -> Mapping[str, Any]:
    """Return the model card among the strings of a file, or an empty one."""
    for text in texts:
        if text.startswith(b'{"made_by"'):
            try:
                card = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if str(card["made_by"]).startswith(MADE_BY):
                return dict(card)
    return {}


def labels_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of a card.

    Raises:
        ForeignModelError: when they are not strings.
    """
    labels = card.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ForeignModelError("the model card's labels are not a list of strings")
    return tuple(labels)


def records_of(card: Mapping[str, Any]) -> tuple[RecordsConfig, str] | None:
    """Return how a model's text is divided into records, and what ends each; None if the card has no records.

    Raises:
        ForeignModelError: when the card is damaged.
    """
    end = card.get("record_end")
    if end is None:
        return None
    if not isinstance(end, str) or not end:
        raise ForeignModelError("the model card's record_end is not a text")
    try:
        return RecordsConfig(card["records"], card.get("label")), end
    except (KeyError, ConfigError, TypeError) as error:
        raise ForeignModelError(f"the model card is damaged: {for_shell(error)}") from error


def as_json(values: Any) -> str:
    """Return one line of ASCII JSON, which every metadata format can hold."""
    return json.dumps(values, ensure_ascii=True, allow_nan=False)
