"""What an exported file tells about its model: where it came from, what it learned, how well it does."""

from __future__ import annotations

import json
from typing import Any

from charwright.run import Run


def model_card(run: Run, version: str) -> dict[str, Any]:
    """Plain values, ready for JSON: the network, its text, its loss, and the version of charwright that wrote them."""
    config = run.config
    validated = [event["validation_loss"] for event in run.history() if event.get("validation_loss") is not None]
    return {
        "made_by": f"charwright {version}",
        "name": run.folder.resolve().name,
        "model": run.model.to_json(),
        "tokens": len(run.vocabulary),
        "unit": run.vocabulary.unit,
        "recipe": config.recipe_name,
        "corpus": {
            "sources": [source.location for source in config.sources],
            "characters": config.characters,
            "sha256": config.sha256,
        },
        "validation_nats_per_char": min(validated, default=None),
    }


def as_json(values: Any) -> str:
    """One line of JSON in plain ASCII, which every reader of metadata can hold."""
    return json.dumps(values, ensure_ascii=True, allow_nan=False)
