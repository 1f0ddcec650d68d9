"""What a model of Keras says of its layers in JSON: whether they are a network that charwright has. No code is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from charwright.errors import ForeignModelError

PLAIN = {"InputLayer", "Embedding", "GRU", "LSTM", "SimpleRNN", "Dense", "Dropout"}
"""The layers that a `.keras` file may name; the first and the last of them have no weights."""
WEIGHTLESS = {"InputLayer", "Dropout"}
RECURRENT = {"GRU", "LSTM", "SimpleRNN"}
DEFAULTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "GRU": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "go_backwards": (False,)},
    "LSTM": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "go_backwards": (False,)},
    "SimpleRNN": {"activation": ("tanh",), "go_backwards": (False,)},
    "Dense": {"activation": ("linear", "softmax", None)},
}
"""What a layer's options must be; a softmax behind the dense layer changes no probability."""


def layer_kinds(config: Mapping[str, Any], where: str) -> list[str] | None:
    """The kinds of a model's layers, in their order; None for a class of somebody's own, which tells none.

    Raises:
        ForeignModelError: at a layer that is not known here, or one with other options.
    """
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    kind = str(config.get("class_name"))
    if kind not in {"Sequential", "Functional", "Model"}:
        for entry in _described(inner):
            _check_layer(entry, where)
        return None
    layers = inner.get("layers")
    if not isinstance(layers, list) or not all(isinstance(entry, dict) for entry in layers):
        raise ForeignModelError(f"{where}: config.json names no layers")
    for entry in layers:
        _check_layer(entry, where)
    if kind != "Sequential":
        _check_chain(layers, where)
    kinds = [str(entry["class_name"]) for entry in layers]
    middle = [kind for kind in kinds if kind not in WEIGHTLESS]
    if middle[:1] != ["Embedding"] or middle[-1:] != ["Dense"] or not set(middle[1:-1]) <= RECURRENT:
        raise ForeignModelError(f"{where}: its layers are {', '.join(middle)}, not Embedding, recurrent ones and Dense")
    return kinds


def check_old_config(text: str, where: str) -> None:
    """See that a whole model of Keras 2 has no layer that is not known here; `text` is its configuration as JSON.

    Raises:
        ForeignModelError: at a layer that is not known here, or one with other options.
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


def _described(value: Any) -> Iterator[dict[str, Any]]:
    """The layers that stand anywhere inside of a configuration."""
    if isinstance(value, dict):
        if "class_name" in value and str(value.get("module", "")).startswith("keras.layers"):
            yield value
        for inner in value.values():
            yield from _described(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _described(inner)


def _check_layer(entry: Mapping[str, Any], where: str) -> None:
    kind, options = str(entry.get("class_name")), entry.get("config")
    options = options if isinstance(options, dict) else {}
    registered = entry.get("registered_name")
    if kind not in PLAIN or not (registered is None or registered == kind):
        known = ", ".join(sorted(PLAIN))
        raise ForeignModelError(f"{where} has a layer of the class {kind}; known are {known}, and no code is run")
    if options.get("reset_after") is False:
        raise ForeignModelError(f"{where}: {options.get('name')} is a GRU with reset_after=False, another network")
    for name, allowed in DEFAULTS.get(kind, {}).items():
        if (value := options.get(name, allowed[0])) not in allowed:
            raise ForeignModelError(f"{where}: the {kind} layer {options.get('name')} has {name}={value!r}")


def _check_chain(layers: Sequence[Mapping[str, Any]], where: str) -> None:
    """See that each layer reads the one before it and nothing else."""
    before: str | None = None
    for entry in layers:
        options = entry.get("config")
        name = str(entry.get("name", options.get("name") if isinstance(options, dict) else None))
        if set(_sources(entry.get("inbound_nodes"))) != ({before} if before is not None else set()):
            raise ForeignModelError(f"{where}: the layer {name} does not read the one before it alone")
        before = name


def _sources(value: Any) -> Iterator[str]:
    """The names of the layers whose outputs are the inputs of a node, wherever they stand in it."""
    if isinstance(value, dict):
        history = value.get("keras_history")
        if isinstance(history, list) and history:
            yield str(history[0])
        for inner in value.values():
            yield from _sources(inner)
    elif isinstance(value, list):
        if [type(part) for part in value[:3]] == [str, int, int]:  # how Keras 2 says it
            yield str(value[0])
        for inner in value:
            yield from _sources(inner)
