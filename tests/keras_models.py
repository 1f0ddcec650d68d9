"""Files as Keras writes them, made with h5py and zipfile: no Keras is needed."""

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
    """Numbers of which no two are alike, so that nothing can change places unseen."""
    count = int(np.prod(shape))
    return np.sin(np.arange(start, start + count) * 0.7371).astype(np.float32).reshape(shape) * np.float32(0.4)


def ramp_weights(config: ModelConfig, tokens: int) -> Arrays:
    """All weights of a network of ours."""
    shapes = config.weight_shapes(tokens)
    return {name: ramp(shape, 1000 * index) for index, (name, shape) in enumerate(shapes.items())}


def write_h5(path: Path | io.BytesIO, groups: Mapping[str, tuple[str, Sequence[npt.NDArray[Any]]]]) -> None:
    """A `.weights.h5` of Keras 3: for each group its layer's name and its variables."""
    h5py = __import__("h5py")
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "my_model"
        for place, (given, arrays) in groups.items():
            layer = place.removesuffix("/cell")
            if layer != place:
                file.require_group(layer).create_group("vars").attrs["name"] = given
            variables = file.require_group(place).create_group("vars")
            variables.attrs["name"] = "gru_cell" if layer != place else given
            for index, array in enumerate(arrays):
                variables.create_dataset(str(index), data=array)


def gru_arrays(inputs: int, units: int, start: int) -> list[npt.NDArray[np.float32]]:
    """Kernel, recurrent kernel and biases of a GRU."""
    return [ramp((inputs, 3 * units), start), ramp((units, 3 * units), start + 1), ramp((2, 3 * units), start + 2)]


def write_keras(path: Path, config: Mapping[str, Any], weights: bytes, **members: bytes) -> None:
    """A `.keras` file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
        for name, data in members.items():
            archive.writestr(name, data)


def layer(kind: str, name: str, before: str | None = None, **options: Any) -> dict[str, Any]:
    """A layer's entry in a model's configuration."""
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [before, 0, 0]}}
    nodes = [{"args": [tensor], "kwargs": {}}] if before else []
    module = {"module": "keras.layers", "class_name": kind, "registered_name": None}
    return {**module, "name": name, "config": {"name": name, **options}, "inbound_nodes": nodes}
