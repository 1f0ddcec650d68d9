"""Read Keras files as plain data with h5py alone: `.weights.h5` and `.keras` of Keras 3, `.h5` of Keras 2.

No class is looked up and no code is run. Only data inside the file is read: links to other files, external data and
shapes larger than the file are refused.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from charwright.errors import ForeignModelError, MissingExtraError, UsageError
from charwright.interop.keras_config import RECURRENT, check_keras2_config, layer_kinds
from charwright.interop.keras_weights import NGRAMS, Array, KerasLayer, natural_key, order_recurrent

if TYPE_CHECKING:
    import h5py

MAX_DEPTH = 20  # of nested groups
MAX_GROUPS = 20_000
ATTRIBUTES_TIMEOUT_S = 20.0
MAX_CONFIG_BYTES = 16 << 20
MAX_EXPANSION = 20
"""The largest accepted size of the weights relative to the archive: Keras does not compress them."""
VARIABLES = {
    "embedding": ("embeddings",),
    "recurrent": ("kernel", "recurrent_kernel", "bias"),
    "dense": ("kernel", "bias"),
}
"""The names of a layer's arrays, which Keras 3 only numbers."""


def is_hdf5(path: Path) -> bool:
    """Whether a file has the HDF5 signature."""
    return _starts_with(path, b"\x89HDF\r\n\x1a\n")


def is_keras(path: Path) -> bool:
    """Whether a file is a `.keras` file, also a damaged one: other zip archives have other members."""
    if not _starts_with(path, b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return path.suffix == ".keras" or bool({"config.json", "model.weights.h5"} & set(archive.namelist()))
    except (zipfile.BadZipFile, RuntimeError):
        return True


def _starts_with(path: Path, signature: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(signature)) == signature


def read_h5(path: Path) -> list[KerasLayer]:
    """Read the layers of a `.weights.h5` (Keras 3) or an `.h5` file with weights or a whole model (Keras 2).

    Raises:
        ForeignModelError: when the file is damaged or is not one of these.
    """
    with path.open("rb") as file:
        return _read_layers(file, str(path), path.stat().st_size)


def read_keras(path: Path) -> list[KerasLayer]:
    """Read the layers of a `.keras` file whose configuration names only supported layers.

    Raises:
        ForeignModelError: when the file is damaged or the model is not supported.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if PurePosixPath(name).is_absolute() or ".." in re.split(r"[/\\]", name) or ":" in name:
                    raise ForeignModelError(
                        f"{where}: the member {name!r} points outside the archive; nothing was read"
                    )
            config = _json_member(archive, "config.json", where)
            weights = _member(archive, "model.weights.h5", where, MAX_EXPANSION * path.stat().st_size)
        kinds = layer_kinds(config, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:  # RecursionError too
        raise ForeignModelError(f"{where} is damaged: {error}") from error
    layers = _read_layers(io.BytesIO(weights), where, len(weights))
    recurrent = [layer for layer in layers if layer.kind == "recurrent"]
    if kinds is not None and len(recurrent) != sum(kind in RECURRENT for kind in kinds):
        raise ForeignModelError(f"{where}: its weights do not match the layers in its config.json")
    return layers


def weights_h5_bytes(layers: Sequence[KerasLayer]) -> bytes:
    """Return a `.weights.h5` file as Keras 3 saves it for a model with these layers as attributes of these names.

    Raises:
        UsageError: when there are n-grams among them, or a multiplicative layer.
        MissingExtraError: when h5py is not installed.
    """
    foreign = ["n-grams"] if any(layer.kind == NGRAMS for layer in layers) else []
    foreign += ["a multiplicative layer"] if any(layer.multiplicative for layer in layers) else []
    if foreign:
        raise UsageError(
            f"--to keras: the model has {' and '.join(foreign)}, which Keras does not have; choose another format, or "
            "train with --ngram-bits 0 --no-multiplicative"
        )
    h5py = _h5py("writing Keras files")
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_group("vars").attrs["name"] = "my_model"
        for layer in layers:
            group, name = file.create_group(layer.name), layer.name
            if layer.kind == "recurrent":
                group.create_group("vars").attrs["name"] = name
                group, name = group.create_group("cell"), f"{layer.name.split('_')[0]}_cell"
            variables = group.create_group("vars")
            variables.attrs["name"] = name
            for index, name in enumerate(VARIABLES[layer.kind]):
                variables.create_dataset(str(index), data=layer.arrays[name])
    return memory.getvalue()


# .keras


def _member(archive: zipfile.ZipFile, name: str, where: str, limit: int) -> bytes:
    """Read a member of at most `limit` bytes."""
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise ForeignModelError(f"{where} is not a Keras model: it has no {name}") from error
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ForeignModelError(f"{where}: {name} uses a compression method that Keras does not use")
    if entry.file_size > limit:
        raise ForeignModelError(f"{where}: {name} claims to be {entry.file_size:,} bytes, more than is plausible")
    return archive.read(entry)


def _json_member(archive: zipfile.ZipFile, name: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(_member(archive, name, where, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise ForeignModelError(f"{where}: {name} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ForeignModelError(f"{where}: {name} is not a JSON object")
    return values


# HDF5


def _h5py(purpose: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(purpose, "keras") from error
    return h5py


def _read_layers(file: Any, where: str, size: int) -> list[KerasLayer]:
    h5py = _h5py("reading Keras files")
    attributes = _Attributes(file, where)
    try:
        with h5py.File(file, "r") as opened:
            reader = _Reader(where, size, attributes)
            root = reader.item(opened, "model_weights") if "model_weights" in opened else opened
            if "layer_names" not in root.attrs:
                return reader.keras_3(root)
            if "model_config" in opened.attrs:
                check_keras2_config(attributes.config, where)
            return reader.keras_2(root)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ForeignModelError(f"{where} is damaged or is not a Keras file: {error}") from error


class _Attributes:
    """The layer names and the configuration in an HDF5 file's attributes, read only when needed.

    HDF5 keeps them in a heap; if the heap is damaged, the library may loop forever and ignore Ctrl-C. They are
    therefore read in a subprocess with a timeout.
    """

    def __init__(self, file: Any, where: str) -> None:
        self._file, self._where = file, where

    @cached_property
    def _values(self) -> dict[str, Any]:
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import print_attributes; print_attributes()"
        self._file.seek(0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                input=self._file.read(),
                capture_output=True,
                timeout=ATTRIBUTES_TIMEOUT_S,
                check=True,
            )
            values = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            raise ForeignModelError(f"{self._where} is damaged: its layer names cannot be read") from error
        return values if isinstance(values, dict) else {}

    @property
    def layers(self) -> list[str]:
        """The layer names in order (Keras 2)."""
        return [str(name) for name in self._values["layers"]]

    @property
    def config(self) -> str:
        """The model's configuration as JSON, or an empty string (Keras 2)."""
        return str(self._values["config"])

    def name_of(self, path: str) -> str:
        """Return the layer name of a group, or an empty string (Keras 3)."""
        return str(self._values["names"].get(path, ""))


def print_attributes() -> None:
    """Read an HDF5 file from standard input and print its attributes as JSON: the subprocess of `_Attributes`."""
    h5py = _h5py("reading Keras files")
    with h5py.File(io.BytesIO(sys.stdin.buffer.read()), "r") as opened:
        root = opened.get("model_weights", opened)
        names: dict[str, str] = {}

        def note(path: str, item: Any) -> None:
            if path.rsplit("/", 1)[-1] == "vars" and "name" in item.attrs:
                names[path] = _text(item.attrs["name"])

        layers = [_text(name) for name in root.attrs["layer_names"]] if "layer_names" in root.attrs else []
        if not layers:
            root.visititems(note)
        config = _text(opened.attrs["model_config"]) if "model_config" in opened.attrs else ""
    print(json.dumps({"layers": layers, "config": config, "names": names}))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


class _Reader:
    """Reads the groups and arrays of one HDF5 file and checks each of them first."""

    def __init__(self, where: str, size: int, attributes: _Attributes) -> None:
        self.where, self.size, self.attributes, self.groups = where, size, attributes, 0

    def keras_2(self, root: h5py.Group) -> list[KerasLayer]:
        """Read the layers of a Keras 2 file: one group per layer, with weights by name."""
        layers = [KerasLayer(name, self._weights(self.item(root, name), {}, 0)) for name in root]
        layers = [layer for layer in layers if layer.arrays]
        recurrent = [layer for layer in layers if layer.kind == "recurrent"]
        if len(recurrent) > 1:
            positions = {name: position for position, name in enumerate(self.attributes.layers)}
            recurrent.sort(key=lambda layer: positions.get(layer.name, len(positions)))
        return [*(layer for layer in layers if layer.kind != "recurrent"), *recurrent]

    def _weights(self, group: h5py.Group, found: dict[str, Array], depth: int) -> dict[str, Array]:
        """Collect all weights below a group by the last part of their names."""
        self._count_group(depth)
        for name in group:
            inner = self.item(group, name)
            if hasattr(inner, "keys"):
                self._weights(inner, found, depth + 1)
                continue
            last = name.removesuffix(":0")
            if last in found:
                raise ForeignModelError(f"{self.where}: {inner.name} is a second {last!r} in one layer")
            found[last] = self.array(group, name)
        return found

    def keras_3(self, root: h5py.Group) -> list[KerasLayer]:
        """Read the layers of a Keras 3 file, recurrent layers in the order of the data flow."""
        found = list(self._variables(root, ()))
        recurrent = [(path, layer) for path, layer in found if layer.kind == "recurrent"]
        others = [layer for _, layer in found if layer.kind != "recurrent"]
        layers = [layer for _, layer in recurrent]
        names = [path[-2] for path, _ in recurrent]  # before "cell"
        lists = {path[:-2] for path, _ in recurrent}
        if len(recurrent) > 1 and (len(lists) > 1 or not all(lists)):
            # Layers that are attributes: groups have the attributes' names, and an HDF5 attribute the layer's own.
            names = [self.attributes.name_of("/".join([*path[:-1], "vars"])) for path, _ in recurrent]
        return [*others, *order_recurrent(layers, names, self.where)]

    def _variables(self, group: h5py.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], KerasLayer]]:
        """Yield every group with variables and its path."""
        self._count_group(len(path))
        if "vars" in group and len(own := self.item(group, "vars")):
            yield path, self._layer(own, path)
        for name in group:
            if name not in {"vars", "seed_generator"} and not (not path and name == "optimizer"):
                inner = self.item(group, name)
                if hasattr(inner, "keys"):
                    yield from self._variables(inner, (*path, name))

    def _count_group(self, depth: int) -> None:
        self.groups += 1
        if self.groups > MAX_GROUPS or depth > MAX_DEPTH:
            raise ForeignModelError(f"{self.where} is not a Keras file: too many groups or nested too deeply")

    def _layer(self, variables: h5py.Group, path: tuple[str, ...]) -> KerasLayer:
        arrays = [self.array(variables, name) for name in sorted(variables, key=natural_key)]
        within_cell = bool(path) and path[-1] == "cell"
        names = VARIABLES["recurrent" if within_cell else _kind(arrays, path)]
        if len(arrays) > len(names) or {"forward_layer", "backward_layer"} & set(path):
            names = tuple(f"variable {index}" for index in range(len(arrays)))  # a layer of unknown kind
        place = "/".join(path[:-1] if within_cell else path) or "the model itself"
        return KerasLayer(place, dict(zip(names, arrays, strict=False)))

    def item(self, group: h5py.Group, name: str) -> Any:
        """Return a member that is stored in this file."""
        import h5py

        here = group
        for part in name.split("/"):
            if not isinstance(here.get(part, getlink=True), h5py.HardLink):
                raise ForeignModelError(f"{self.where}: {part!r} is a link, and links are not followed")
            here = here[part]
        return here

    def array(self, group: h5py.Group, name: str) -> Array:
        """Return a dataset that is stored in this file, as float32."""
        data = self.item(group, name)
        where = f"{self.where}: {data.name}"
        if data.is_virtual or data.external:
            raise ForeignModelError(f"{where} has its data in another file, which is not read")
        if data.dtype.kind != "f":
            raise ForeignModelError(f"{where} has type {data.dtype}, not a floating-point type")
        needed = int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize
        if needed > self.size or data.id.get_storage_size() < needed:
            raise ForeignModelError(f"{where} claims shape {data.shape}, which is larger than the file's data")
        return np.asarray(data[()], dtype=np.float32)


def _kind(arrays: Sequence[Array], path: Sequence[str]) -> str:
    """Infer the kind of a layer from the number of its arrays and its path."""
    if len(arrays) == 1 and not any(name.startswith("dense") for name in path):
        return "embedding"
    return "dense"
