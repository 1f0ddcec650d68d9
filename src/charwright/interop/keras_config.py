"""Check the layer configuration of a Keras model, which is JSON: only networks that charwright has are accepted.

No class is looked up and no code is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from charwright.errors import ForeignModelError

KNOWN_LAYERS = {"InputLayer", "Embedding", "GRU", "LSTM", "SimpleRNN", "Dense", "Dropout"}
"""The layer classes that a configuration may name."""
WEIGHTLESS = {"InputLayer", "Dropout"}
RECURRENT = {"GRU", "LSTM", "SimpleRNN"}
ALLOWED_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "GRU": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "go_backwards": (False,)},
    "LSTM": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "go_backwards": (False,)},
    "SimpleRNN": {"activation": ("tanh",), "go_backwards": (False,)},
    "Dense": {"activation": ("linear", "softmax", None)},
}
"""The accepted values of each option, the default first. A softmax after the dense layer leaves the probabilities
unchanged."""


def layer_kinds(config: Mapping[str, Any], where: str) -> list[str] | None:
    """Return the layer classes of a model in order, or None for a custom class, whose layers are unknown.

    Raises:
        ForeignModelError: when a layer class, an option or the layer order is not supported.
    """
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    kind = str(config.get("class_name"))
    if kind not in {"Sequential", "Functional", "Model"}:
        for entry in _nested_layers(inner):
            _check_layer(entry, where)
        return None
    layers = inner.get("layers")
    if not isinstance(layers, list) or not all(isinstance(entry, dict) for entry in layers):
        raise ForeignModelError(f"{where}: config.json lists no layers")
    for entry in layers:
        _check_layer(entry, where)
    if kind != "Sequential":
        _check_chain(layers, where)
    kinds = [str(entry["class_name"]) for entry in layers]
    weighted = [kind for kind in kinds if kind not in WEIGHTLESS]
    if weighted[:1] != ["Embedding"] or weighted[-1:] != ["Dense"] or not set(weighted[1:-1]) <= RECURRENT:
        raise ForeignModelError(
            f"{where}: the layers are {', '.join(weighted)}; expected Embedding, recurrent layers, Dense"
        )
    return kinds


def check_keras2_config(text: str, where: str) -> None:
    """Check the JSON configuration of a whole Keras 2 model.

    Raises:
        ForeignModelError: when a layer class, an option or the layer order is not supported.
    """
    config = json.loads(text)
    config = config if isinstance(config, dict) else {}
    inner = config.get("config")
    listed = inner.get("layers") if isinstance(inner, dict) else inner
    layers = [entry if isinstance(entry, dict) else {} for entry in (listed if isinstance(listed, list) else [])]
    for entry in layers:
        _check_layer(entry, where)
    if str(config.get("class_name")) in {"Functional", "Model"}:
        _check_chain(layers, where)


def _nested_layers(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the Keras layers at any depth of a configuration."""
    if isinstance(value, dict):
        if "class_name" in value and str(value.get("module", "")).startswith("keras.layers"):
            yield value
        for inner in value.values():
            yield from _nested_layers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nested_layers(inner)


def _check_layer(entry: Mapping[str, Any], where: str) -> None:
    kind, options = str(entry.get("class_name")), entry.get("config")
    options = options if isinstance(options, dict) else {}
    registered = entry.get("registered_name")
    if kind not in KNOWN_LAYERS or not (registered is None or registered == kind):
        supported = ", ".join(sorted(KNOWN_LAYERS))
        raise ForeignModelError(f"{where} has an unsupported {kind} layer; supported are {supported}; no code is run")
    if options.get("reset_after") is False:
        raise ForeignModelError(
            f"{where}: {options.get('name')} is a GRU with reset_after=False, which is not supported"
        )
    for name, allowed in ALLOWED_OPTIONS.get(kind, {}).items():
        if (value := options.get(name, allowed[0])) not in allowed:
            raise ForeignModelError(
                f"{where}: the {kind} layer {options.get('name')} has {name}={value!r}, which is not supported"
            )


def _check_chain(layers: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check that the only input of each layer is the layer before it."""
    before: str | None = None
    for entry in layers:
        options = entry.get("config")
        name = str(entry.get("name", options.get("name") if isinstance(options, dict) else None))
        if set(_sources(entry.get("inbound_nodes"))) != ({before} if before is not None else set()):
            raise ForeignModelError(f"{where}: the input of layer {name} is not the layer before it alone")
        before = name


def _sources(value: Any) -> Iterator[str]:
    """Yield the names of a node's input layers, at any depth of its configuration."""
    if isinstance(value, dict):
        history = value.get("keras_history")
        if isinstance(history, list) and history:
            yield str(history[0])
        for inner in value.values():
            yield from _sources(inner)
    elif isinstance(value, list):
        if [type(part) for part in value[:3]] == [str, int, int]:  # Keras 2's format
            yield str(value[0])
        for inner in value:
            yield from _sources(inner)
