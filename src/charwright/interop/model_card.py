"""The model card in an exported file: the network, its text, its loss and the version that wrote it."""

from __future__ import annotations

import json
import os
from typing import Any

from charwright.data.labels import label_ids
from charwright.run import Run


def model_card(run: Run, version: str) -> dict[str, Any]:
    """Return the model card of a run as plain values, ready for JSON; `version` is charwright's.

    For a model of records it has the `record_end`, which is read before a record, and for one with labels the `labels`
    in the order of their ids, of which one comes after that; the first id is `first_label_id`. The cell is that of the
    file: exports turn an input-reset GRU into the equal GRU.
    """
    config, labels = run.config, run.vocabulary.labels
    validated = [event["validation_loss"] for event in run.history() if event.get("validation_loss") is not None]
    return {
        "made_by": f"charwright {version}",
        "name": _readable(run.folder.resolve().name),
        "model": run.model.to_json() | ({"cell": "gru"} if run.model.cell == "igru" else {}),
        "tokens": len(run.vocabulary),
        "unit": run.vocabulary.level,
        **({"record_end": config.records.end} if config.records else {}),
        **({"labels": list(labels), "first_label_id": label_ids(run.vocabulary).start} if labels else {}),
        "recipe": config.recipe_name,
        "corpus": {
            "sources": [_readable(source.location) for source in config.sources],
            "characters": config.characters,
            "sha256": config.sha256,
        },
        "validation_nats_per_char": min(validated, default=None),
    }


def _readable(name: str) -> str:
    """The name of a file as text, which it need not be on Linux."""
    return os.fsencode(name).decode("utf-8", "replace")


def as_json(values: Any) -> str:
    """Return one line of ASCII JSON, which every metadata format can hold."""
    return json.dumps(values, ensure_ascii=True, allow_nan=False)
