"""The model card in an exported file: the network, its text, its loss and the version that wrote it."""

from __future__ import annotations

import json
from typing import Any

from charwright.run import Run


def model_card(run: Run, version: str) -> dict[str, Any]:
    """Return the model card of a run as plain values, ready for JSON; `version` is charwright's."""
    config = run.config
    validated = [event["validation_loss"] for event in run.history() if event.get("validation_loss") is not None]
    return {
        "made_by": f"charwright {version}",
        "name": run.folder.resolve().name,
        "model": run.model.to_json(),
        "tokens": len(run.vocabulary),
        "unit": run.vocabulary.level,
        "recipe": config.recipe_name,
        "corpus": {
            "sources": [source.location for source in config.sources],
            "characters": config.characters,
            "sha256": config.sha256,
        },
        "validation_nats_per_char": min(validated, default=None),
    }


def as_json(values: Any) -> str:
    """Return one line of ASCII JSON, which every metadata format can hold."""
    return json.dumps(values, ensure_ascii=True, allow_nan=False)
