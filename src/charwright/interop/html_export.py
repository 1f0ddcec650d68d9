"""`--to html`: one page that contains the model with 8-bit weights and generates text in the browser, offline.

The page is `page/page.html` with its style, scripts and model filled in. `page/network.js` implements the arithmetic of
docs/explanation/q8.md and `page/writer.js` the sampling, so that a seed gives the same text as `charwright generate
--precision q8`.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import GATES, ModelConfig
from charwright.generation.quantized import Int8Model, Product
from charwright.run import Run
from charwright.run_view import layers_in_words
from charwright.webpage.sentence import Sentence, in_html
from charwright.webpage.template import filled, shared, source, translations

ALIGNMENT = 8  # bytes


def page_bytes(run: Run, card: Mapping[str, Any]) -> bytes:
    """Return the page as UTF-8."""
    arrays = _Arrays()
    model = Int8Model.of(run.model, run.weights())
    description = {
        "cell": run.model.cell,
        "layers": run.model.layers,
        "units": run.model.units,
        "gates": GATES[run.model.cell],
        "tokens": len(run.vocabulary),
        "unit": run.vocabulary.level,
        "characters": run.vocabulary.characters,
        "labels": run.vocabulary.labels,
        "recordEnd": run.config.record_end or "",
        "table": arrays.add(model.table),
        "scale": None if model.scale is None else arrays.add(model.scale),
        "recurrent": [arrays.product(product) for product in model.recurrent],
        "candidateBias": [arrays.add(bias) for bias in model.candidate_bias],
        "inputs": [arrays.product(product) for product in model.inputs],
        "inputBias": [arrays.add(bias) for bias in model.input_bias],
        "head": arrays.product(model.head),
        "headBias": arrays.add(model.head_bias),
        "ngrams": None
        if model.ngrams is None
        else {"bits": run.model.ngram_bits, "order": run.model.ngram_order, "votes": arrays.add(model.ngrams)},
    }
    values = {
        "made_by": html.escape(str(card["made_by"])),
        "name": html.escape(str(card["name"])),
        "about": _about(run.model, card),
        "style": shared("house.css") + source("interop", "page.css"),
        "network": source("interop", "network.js"),
        "writer": source("interop", "writer.js"),
        "words": translations("interop"),
        "language": shared("language.js"),
        "surprise_text": shared("surprise.js"),
        "see": source("interop", "see.js"),
        "screen": source("interop", "screen.js"),
        # An HTML parser ends a script at the first </script>, so the JSON must contain no <.
        "model": json.dumps(description, ensure_ascii=True).replace("<", "\\u003c"),
        "weights": base64.b64encode(bytes(arrays.buffer)).decode("ascii"),
    }
    return filled(source("interop", "page.html"), values).encode("utf-8")


def _about(model: ModelConfig, card: Mapping[str, Any]) -> str:
    """Return the rows of the model's description; the page has their sentences in other languages too."""
    corpus, loss = card["corpus"], card["validation_nats_per_char"]
    rows = {
        "Network": Sentence("{network}, 8-bit weights", network=layers_in_words(model)),
        **_ngrams(model),
        "Vocabulary": Sentence(
            "{tokens} tokens, {unit} level", tokens=f"{card['tokens']:,}", unit=Sentence(card["unit"])
        ),
        "Training text": Sentence("{characters} characters", characters=f"{corpus['characters']:,}")
        if corpus["characters"]
        else "not recorded",
        "Validation loss": "not measured"
        if loss is None
        else Sentence("{loss} nats per character", loss=f"{loss:.4f}"),
        "Made by": str(card["made_by"]),
    }
    return "\n".join(f"<dt>{name}</dt><dd>{in_html(row)}</dd>" for name, row in rows.items())


def _ngrams(model: ModelConfig) -> dict[str, str]:
    """The row of the n-grams, if there are any."""
    if not model.ngram_bits:
        return {}
    of_two, of_more = "of 2 tokens, {numbers} numbers", "of 2 to {order} tokens, {numbers} numbers"
    values = {"order": model.ngram_order, "numbers": f"{1 << model.ngram_bits:,}"}
    return {"N-grams": Sentence(of_two if model.ngram_order == 2 else of_more, **values)}


class _Arrays:
    """A buffer of all arrays, little-endian, and the offset of each."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def add(self, array: npt.NDArray[Any]) -> dict[str, Any]:
        """Append an array and return its type, offset and length."""
        self.buffer += bytes(-len(self.buffer) % ALIGNMENT)
        at = len(self.buffer)
        self.buffer += np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        return {"kind": array.dtype.name, "at": at, "length": array.size}

    def product(self, product: Product) -> dict[str, Any]:
        """Append a matrix and its multipliers."""
        return {"weights": self.add(product.weights), "multipliers": self.add(product.multipliers)}
