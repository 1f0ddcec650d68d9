"""Keras files made with h5py and zipfile, without Keras."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig

Arrays = dict[str, npt.NDArray[np.float32]]


def ramp(shape: tuple[int, ...], start: int) -> npt.NDArray[np.float32]:
    """Return an array of distinct numbers, so that any permutation is visible."""
    count = int(np.prod(shape))
    return np.sin(np.arange(start, start + count) * 0.7371).astype(np.float32).reshape(shape) * np.float32(0.4)


def ramp_weights(config: ModelConfig, tokens: int) -> Arrays:
    """Return all weights of a charwright network."""
    shapes = config.weight_shapes(tokens)
    return {name: ramp(shape, 1000 * index) for index, (name, shape) in enumerate(shapes.items())}


def write_h5(path: Path | io.BytesIO, groups: Mapping[str, tuple[str, Sequence[npt.NDArray[Any]]]]) -> None:
    """Write a Keras 3 `.weights.h5`: a layer name and variables for each group."""
    h5py = __import__("h5py")
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "my_model"
        for path_in_file, (name, arrays) in groups.items():
            layer = path_in_file.removesuffix("/cell")
            if layer != path_in_file:
                file.require_group(layer).create_group("vars").attrs["name"] = name
            variables = file.require_group(path_in_file).create_group("vars")
            variables.attrs["name"] = "gru_cell" if layer != path_in_file else name
            for index, array in enumerate(arrays):
                variables.create_dataset(str(index), data=array)


def gru_arrays(inputs: int, units: int, start: int) -> list[npt.NDArray[np.float32]]:
    """Return the kernel, recurrent kernel and biases of a GRU."""
    return [ramp((inputs, 3 * units), start), ramp((units, 3 * units), start + 1), ramp((2, 3 * units), start + 2)]


def write_keras(path: Path, config: Mapping[str, Any], weights: bytes, **members: bytes) -> None:
    """Write a `.keras` file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
        for name, data in members.items():
            archive.writestr(name, data)


def layer(kind: str, name: str, before: str | None = None, **options: Any) -> dict[str, Any]:
    """Return a layer's entry in a model configuration."""
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [before, 0, 0]}}
    nodes = [{"args": [tensor], "kwargs": {}}] if before else []
    module = {"module": "keras.layers", "class_name": kind, "registered_name": None}
    return {**module, "name": name, "config": {"name": name, **options}, "inbound_nodes": nodes}
