"""Keras's files as plain data: `.weights.h5` and `.keras` of Keras 3, `.h5` of Keras 2, read with h5py alone.

No class is looked up and nothing is executed. Of an HDF5 file only what lies in the file itself is read: links to other
files, data kept elsewhere and shapes that promise more than the file holds are refused.
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

from charwright.errors import ForeignModelError, MissingExtraError
from charwright.interop.keras_config import RECURRENT, check_old_config, layer_kinds
from charwright.interop.keras_layout import Array, KerasLayer

if TYPE_CHECKING:
    import h5py

DEEPEST = 20  # groups inside groups
MOST_GROUPS = 20_000
PATIENCE_S = 20.0  # for the names in a file
LARGEST_CONFIG = 16 << 20  # bytes
MOST_PACKED = 20
"""How many times as large as its archive a member may be: Keras compresses nothing, and weights hardly can be."""
ORDER = {
    "embedding": ("embeddings",),
    "recurrent": ("kernel", "recurrent_kernel", "bias"),
    "dense": ("kernel", "bias"),
}
"""The names of the arrays that Keras 3 only counts."""


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    return _begins(path, b"\x89HDF\r\n\x1a\n")


def is_zip(path: Path) -> bool:
    """Whether a file begins as zip files do, `.keras` files among them."""
    return _begins(path, b"PK\x03\x04")


def _begins(path: Path, signature: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(signature)) == signature


def read_h5(path: Path) -> list[KerasLayer]:
    """The layers of a `.weights.h5` (Keras 3) or of an `.h5` file with weights or a whole model (Keras 2).

    Raises:
        ForeignModelError: when it is damaged or none of these.
    """
    with path.open("rb") as file:
        return _layers_of(file, str(path), path.stat().st_size)


def read_keras(path: Path) -> list[KerasLayer]:
    """The layers of a `.keras` file whose configuration names only layers that are known here.

    Raises:
        ForeignModelError: when it is damaged, or is any other model.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if PurePosixPath(name).is_absolute() or ".." in re.split(r"[/\\]", name) or ":" in name:
                    raise ForeignModelError(f"{where} has a member {name!r}, which leads out of it; nothing was read")
            config = _json_member(archive, "config.json", where)
            weights = _member(archive, "model.weights.h5", where, MOST_PACKED * path.stat().st_size)
        kinds = layer_kinds(config, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:  # also of endless nesting
        raise ForeignModelError(f"{where} is damaged: {error}") from error
    layers = _layers_of(io.BytesIO(weights), where, len(weights))
    recurrent = [layer for layer in layers if layer.kind == "recurrent"]
    if kinds is not None and len(recurrent) != sum(kind in RECURRENT for kind in kinds):
        raise ForeignModelError(f"{where}: its weights are not those of the layers that its config.json names")
    return layers


def weights_h5_bytes(layers: Sequence[KerasLayer]) -> bytes:
    """A `.weights.h5` file as Keras 3 saves a model that has these layers as attributes of these names."""
    h5py = _h5py("writing Keras's files")
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
            for index, name in enumerate(ORDER[layer.kind]):
                variables.create_dataset(str(index), data=layer.arrays[name])
    return memory.getvalue()


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which gru_2 comes before gru_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


# .keras


def _member(archive: zipfile.ZipFile, name: str, where: str, most: int) -> bytes:
    """A member's bytes, which must be no more than `most`."""
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise ForeignModelError(f"{where} is no Keras model: it has no {name}") from error
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ForeignModelError(f"{where}: {name} is compressed in a way that Keras does not use")
    if entry.file_size > most:
        raise ForeignModelError(f"{where}: {name} claims to be {entry.file_size:,} bytes, more than there can be")
    return archive.read(entry)


def _json_member(archive: zipfile.ZipFile, name: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(_member(archive, name, where, LARGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise ForeignModelError(f"{where}: {name} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ForeignModelError(f"{where}: {name} is no object")
    return values


# HDF5


def _h5py(purpose: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(purpose, "keras") from error
    return h5py


def _layers_of(file: Any, where: str, size: int) -> list[KerasLayer]:
    h5py = _h5py("reading Keras's files")
    told = _Told(file, where)
    try:
        with h5py.File(file, "r") as opened:
            reader = _Reader(where, size, told)
            root = reader.item(opened, "model_weights") if "model_weights" in opened else opened
            if "layer_names" not in root.attrs:
                return reader.keras_3(root)
            if "model_config" in opened.attrs:
                check_old_config(told.config, where)
            return reader.keras_2(root)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ForeignModelError(f"{where} is damaged or no file of Keras: {error}") from error


class _Told:
    """What a file says in attributes: names and a configuration, read only where they are needed.

    They lie in a heap of the file, and where that is damaged the library may look through it for ever, deaf to Ctrl-C.
    So another process reads them, which can be given up.
    """

    def __init__(self, file: Any, where: str) -> None:
        self._file, self._where = file, where

    @cached_property
    def _read(self) -> dict[str, Any]:
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import print_attributes; print_attributes()"
        self._file.seek(0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                input=self._file.read(),
                capture_output=True,
                timeout=PATIENCE_S,
                check=True,
            )
            values = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            raise ForeignModelError(f"{self._where} is damaged: the names in it cannot be read") from error
        return values if isinstance(values, dict) else {}

    @property
    def layers(self) -> list[str]:
        """The layers' names in their order (Keras 2)."""
        return [str(name) for name in self._read["layers"]]

    @property
    def config(self) -> str:
        """The model's configuration as JSON, empty where there is none (Keras 2)."""
        return str(self._read["config"])

    def name_of(self, path: str) -> str:
        """The name that the layer of a group had, empty where it has none (Keras 3)."""
        return str(self._read["names"].get(path, ""))


def print_attributes() -> None:
    """Read an HDF5 file from standard input and print what `_Told` tells, as JSON: run in a process of its own."""
    h5py = _h5py("reading Keras's files")
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


def in_order(layers: Sequence[KerasLayer], names: Sequence[str], where: str) -> list[KerasLayer]:
    """Recurrent layers as the text goes through them, by the names that they had.

    Files sort attributes by their names. But Keras numbers the layers that got no name in the order in which they were
    made (gru, gru_1), and layers of a list have its numbers.

    Raises:
        ForeignModelError: where neither helps nor the width of the embedding, which only the first layer reads.
    """
    if len(layers) < 2:
        return list(layers)
    if len({re.sub(r"[_-]?\d+$", "", name) for name in names}) == 1:
        return [layer for _, layer in sorted(zip(names, layers, strict=True), key=lambda pair: natural(pair[0]))]
    reads_layer = [len(layer.arrays["kernel"]) == len(layer.arrays["recurrent_kernel"]) for layer in layers]
    if sorted(reads_layer) != [False, True]:
        listed = ", ".join(layer.name for layer in layers)
        raise ForeignModelError(
            f"{where} does not tell which of the recurrent layers {listed} comes first; save a Sequential model of the "
            "same layers"
        )
    return list(layers)[:: -1 if reads_layer[0] else 1]


class _Reader:
    """Groups and arrays of one HDF5 file, each looked at before it is read."""

    def __init__(self, where: str, size: int, told: _Told) -> None:
        self.where, self.size, self.told, self.groups = where, size, told, 0

    def keras_2(self, root: h5py.Group) -> list[KerasLayer]:
        """The layers: a group for each, and in it the weights under their names."""
        layers = [KerasLayer(name, self._below(self.item(root, name), {}, 0)) for name in root]
        layers = [layer for layer in layers if layer.arrays]
        recurrent = [layer for layer in layers if layer.kind == "recurrent"]
        if len(recurrent) > 1:
            places = {name: place for place, name in enumerate(self.told.layers)}
            recurrent.sort(key=lambda layer: places.get(layer.name, len(places)))
        return [*(layer for layer in layers if layer.kind != "recurrent"), *recurrent]

    def _below(self, group: h5py.Group, found: dict[str, Array], depth: int) -> dict[str, Array]:
        """All weights below a group, by the last parts of their names."""
        self._count(depth)
        for name in group:
            inner = self.item(group, name)
            if hasattr(inner, "keys"):
                self._below(inner, found, depth + 1)
                continue
            last = name.removesuffix(":0")
            if last in found:
                raise ForeignModelError(f"{self.where}: {inner.name} is a second {last!r} in one layer")
            found[last] = self.array(group, name)
        return found

    def keras_3(self, root: h5py.Group) -> list[KerasLayer]:
        """The layers, recurrent ones in the order in which the text goes through them."""
        found = list(self._variables(root, ()))
        recurrent = [(path, layer) for path, layer in found if layer.kind == "recurrent"]
        others = [layer for _, layer in found if layer.kind != "recurrent"]
        layers = [layer for _, layer in recurrent]
        names = [path[-2] for path, _ in recurrent]  # before "cell"
        lists = {path[:-2] for path, _ in recurrent}
        if len(recurrent) > 1 and (len(lists) > 1 or not all(lists)):
            # Attributes: the file has them by the names of a class, and beside them the layers' own.
            names = [self.told.name_of("/".join([*path[:-1], "vars"])) for path, _ in recurrent]
        return [*others, *in_order(layers, names, self.where)]

    def _variables(self, group: h5py.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], KerasLayer]]:
        """All groups with variables, and their places."""
        self._count(len(path))
        if "vars" in group and len(own := self.item(group, "vars")):
            yield path, self._layer(own, path)
        for name in group:
            if name not in {"vars", "seed_generator"} and not (not path and name == "optimizer"):
                inner = self.item(group, name)
                if hasattr(inner, "keys"):
                    yield from self._variables(inner, (*path, name))

    def _count(self, depth: int) -> None:
        self.groups += 1
        if self.groups > MOST_GROUPS or depth > DEEPEST:
            raise ForeignModelError(f"{self.where} is no file of Keras: its groups go on without end")

    def _layer(self, variables: h5py.Group, path: tuple[str, ...]) -> KerasLayer:
        arrays = [self.array(variables, name) for name in sorted(variables, key=natural)]
        within_cell = bool(path) and path[-1] == "cell"
        names = ORDER["recurrent" if within_cell else _kind(arrays, path)]
        if len(arrays) > len(names) or {"forward_layer", "backward_layer"} & set(path):
            names = tuple(f"variable {index}" for index in range(len(arrays)))  # of no layer that is known
        place = "/".join(path[:-1] if within_cell else path) or "the model itself"
        return KerasLayer(place, dict(zip(names, arrays, strict=False)))

    def item(self, group: h5py.Group, name: str) -> Any:
        """A member that lies in this file."""
        import h5py

        here = group
        for part in name.split("/"):
            if not isinstance(here.get(part, getlink=True), h5py.HardLink):
                raise ForeignModelError(f"{self.where}: {part!r} is a link to somewhere else, which is not followed")
            here = here[part]
        return here

    def array(self, group: h5py.Group, name: str) -> Array:
        """A dataset whose numbers lie in this file, as float32."""
        data = self.item(group, name)
        told = f"{self.where}: {data.name}"
        if data.is_virtual or data.external:
            raise ForeignModelError(f"{told} keeps its numbers in another file, which is not read")
        if data.dtype.kind != "f":
            raise ForeignModelError(f"{told} is of the type {data.dtype}, not of numbers with a fraction")
        needed = int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize
        if needed > self.size or data.id.get_storage_size() < needed:
            raise ForeignModelError(f"{told} claims the shape {data.shape}, and the file does not hold so much")
        return np.asarray(data[()], dtype=np.float32)


def _kind(arrays: Sequence[Array], path: Sequence[str]) -> str:
    """What a layer is whose arrays are only counted."""
    if len(arrays) == 1 and not any(name.startswith("dense") for name in path):
        return "embedding"
    return "dense"
