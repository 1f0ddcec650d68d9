"""`--to html`: one page that holds the model with 8-bit weights and writes in the browser, from the disk, offline.

The page is `page/page.html` with its style, its scripts and the model put in. `page/writer.js` does the arithmetic of
docs/explanation/q8.md, so that a seed gives the text that `charwright generate --precision q8` gives.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import GATES
from charwright.generation.quantized import Product, WholeModel
from charwright.run import Run

ALIGNED = 8  # bytes: where an array may begin


def page_bytes(run: Run, card: Mapping[str, Any]) -> bytes:
    """The page as UTF-8."""
    arrays = _Arrays()
    whole = WholeModel.of(run.model, run.weights())
    described = {
        "cell": run.model.cell,
        "layers": run.model.layers,
        "units": run.model.units,
        "gates": GATES[run.model.cell],
        "tokens": len(run.vocabulary),
        "unit": run.vocabulary.unit,
        "characters": run.vocabulary.characters,
        "table": arrays.add(whole.table),
        "recurrent": [arrays.product(product) for product in whole.recurrent],
        "candidateBias": [arrays.add(bias) for bias in whole.candidate_bias],
        "inputs": [arrays.product(product) for product in whole.inputs],
        "inputBias": [arrays.add(bias) for bias in whole.input_bias],
        "head": arrays.product(whole.head),
        "headBias": arrays.add(whole.head_bias),
    }
    filled = {
        "made_by": html.escape(str(card["made_by"])),
        "name": html.escape(str(card["name"])),
        "about": _about(card),
        "style": _source("page.css"),
        "writer": _source("writer.js"),
        "screen": _source("screen.js"),
        # Inside of a script nothing ends it but its own end, so no text may hold that.
        "model": json.dumps(described, ensure_ascii=True).replace("<", "\\u003c"),
        "weights": base64.b64encode(bytes(arrays.held)).decode("ascii"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], _source("page.html")).encode("utf-8")


def _source(name: str) -> str:
    return files("charwright.interop").joinpath("page", name).read_text(encoding="utf-8")


def _about(card: Mapping[str, Any]) -> str:
    """The rows of the model's description."""
    model, corpus, loss = card["model"], card["corpus"], card["validation_nats_per_char"]
    layers = "one layer" if model["layers"] == 1 else f"{model['layers']} layers"
    rows = {
        "Network": f"{model['cell'].upper()}, {layers} of {model['units']:,} units, 8-bit weights",
        "Vocabulary": f"{card['tokens']:,} tokens, unit {card['unit']}",
        "Learned from": f"{corpus['characters']:,} characters" if corpus["characters"] else "not recorded",
        "Validation loss": "not measured" if loss is None else f"{loss:.4f} nats per character",
        "Made by": card["made_by"],
    }
    return "\n".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in rows.items())


class _Arrays:
    """The bytes of all arrays one behind the other, little-endian, and where each lies."""

    def __init__(self) -> None:
        self.held = bytearray()

    def add(self, array: npt.NDArray[Any]) -> dict[str, Any]:
        """Where the array lies now."""
        self.held += bytes(-len(self.held) % ALIGNED)
        at = len(self.held)
        self.held += np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        return {"kind": array.dtype.name, "at": at, "length": array.size}

    def product(self, product: Product) -> dict[str, Any]:
        """Where a matrix and its multipliers lie."""
        return {"weights": self.add(product.weights), "multipliers": self.add(product.multipliers)}
