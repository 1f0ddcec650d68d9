"""Read TensorFlow checkpoints and SavedModels: variables through TensorFlow's own reader, never the graph.

A SavedModel may also contain the vocabulary and a model card as string constants of its graph, which are read as data.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ForeignModelError, MissingExtraError
from charwright.interop.keras_weights import Array, KerasLayer, natural_key, order_recurrent, unknown_layer

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
MAX_GRAPH_BYTES = 1 << 30
BYTES = [bytes([byte]) for byte in range(256)]


def checkpoint_prefix(path: Path) -> Path | None:
    """Return the prefix of the checkpoint at a path, or None: a prefix, one of its files, or a folder (its newest)."""
    if path.is_dir():
        if (path / "variables" / "variables.index").is_file():
            return path / "variables" / "variables"
        found = sorted(path.glob("*.index"), key=lambda file: natural_key(file.name))
        newest = _newest(path / "checkpoint")
        if newest is not None and newest in found:
            return newest.with_suffix("")
        return found[-1].with_suffix("") if found else None
    name = path.name.split(".data-")[0].removesuffix(".index")
    prefix = path.with_name(name)
    return prefix if prefix.with_name(f"{name}.index").is_file() else None


def read_checkpoint(prefix: Path) -> list[KerasLayer]:
    """Read the layers of a Keras model's checkpoint, recurrent layers in the order of the data flow.

    Raises:
        ForeignModelError: when the checkpoint is damaged or has layers that are not supported.
        MissingExtraError: when TensorFlow is not installed.
    """
    tensorflow = load_tensorflow("reading TensorFlow checkpoints")
    try:
        with _without_glob_characters(prefix) as readable:
            reader = tensorflow.train.load_checkpoint(str(readable))
            return _read(reader, prefix)
    except (tensorflow.errors.OpError, ValueError, OSError, RuntimeError) as error:
        raise ForeignModelError(f"{prefix} is damaged or is not a checkpoint: {first_line(error)}") from error


@contextmanager
def _without_glob_characters(prefix: Path) -> Iterator[Path]:
    """Yield a path to the checkpoint that TensorFlow does not treat as a glob pattern."""
    if not set("[]*?\\") & set(str(prefix)):
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in prefix.parent.glob(f"{escape(prefix.name)}.*"):
            (Path(folder) / f"checkpoint{file.name.removeprefix(prefix.name)}").symlink_to(file.absolute())
        yield Path(folder) / "checkpoint"


def _read(reader: Any, prefix: Path) -> list[KerasLayer]:
    """Group a checkpoint's variables into layers."""
    shapes = reader.get_variable_to_shape_map()
    kinds = reader.get_variable_to_dtype_map()
    _check_size(prefix, {name: (shapes[name], kinds[name].size) for name in shapes if kinds[name].is_floating})
    variables: dict[str, dict[str, Array]] = {}
    for name in sorted(shapes):
        if _is_weight(name, shapes[name], kinds[name]):
            layer, _, variable = name.removesuffix(SUFFIX).rpartition("/")
            place = layer.removesuffix("/cell")
            array = np.asarray(reader.get_tensor(name), dtype=np.float32)
            variables.setdefault(place, {})[variable.removeprefix("_")] = array
    layers = [KerasLayer(place, arrays) for place, arrays in variables.items()]
    for layer in layers:
        # Leaving out an unknown layer would import another network.
        if layer.kind == "unknown" or {"forward_layer", "backward_layer"} & set(layer.name.split("/")):
            raise ForeignModelError(unknown_layer(layer, str(prefix)))
    recurrent = [layer for layer in layers if layer.kind == "recurrent"]
    names = [layer.name.rpartition("/")[2] for layer in recurrent]
    others = [layer for layer in layers if layer.kind != "recurrent"]
    return [*others, *order_recurrent(recurrent, names, str(prefix))]


def _is_weight(name: str, shape: list[int], kind: Any) -> bool:
    """Whether a variable is a layer's weight rather than a counter or optimizer state."""
    parts = name.removesuffix(SUFFIX).split("/")
    excluded = {"optimizer", ".OPTIMIZER_SLOT", "keras_api", "seed_generator"} & set(parts)
    return name.endswith(SUFFIX) and bool(shape) and kind.is_floating and not excluded


def read_strings(folder: Path) -> list[list[bytes]]:
    """Read the string constants of a SavedModel's graph.

    Raises:
        ForeignModelError: when the graph is damaged.
    """
    load_tensorflow("reading SavedModels")
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    if file.stat().st_size > MAX_GRAPH_BYTES:
        raise ForeignModelError(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_GRAPH_BYTES:,} are read")
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ForeignModelError(f"{file} is damaged: {error}") from error
    nodes = [node for graph in model.meta_graphs for node in graph.graph_def.node if node.op == "Const"]
    return [list(node.attr["value"].tensor.string_val) for node in nodes]


def find_tokens(constants: Sequence[Sequence[bytes]], folder: Path) -> Vocabulary | list[str] | None:
    """Return a SavedModel's vocabulary: its characters in id order, a byte vocabulary, or None if it contains none.

    Raises:
        ForeignModelError: when it contains more than one.
    """
    if any(list(constant) == BYTES for constant in constants):
        return ByteVocabulary()
    found = {characters for constant in constants if (characters := _characters(constant)) is not None}
    if len(found) > 1:
        raise ForeignModelError(f"{folder} contains {len(found)} vocabularies; choose one with --vocabulary FILE")
    return list(found.pop()) if found else None


def _characters(constant: Sequence[bytes]) -> str | None:
    """Return the text of a constant that lists two or more distinct characters, else None."""
    try:
        texts = [value.decode("utf-8") for value in constant]
    except UnicodeDecodeError:
        return None
    if len(texts) < 2 or any(len(text) != 1 for text in texts) or len(set(texts)) != len(texts):
        return None
    return "".join(texts)


def _newest(state: Path) -> Path | None:
    """Return the index file of the newest checkpoint according to a folder's `checkpoint` file."""
    try:
        first = state.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return None
    name = first.partition('"')[2].rpartition('"')[0]
    return state.with_name(f"{Path(name).name}.index")


def _check_size(prefix: Path, claimed: dict[str, tuple[list[int], int]]) -> None:
    """Check that the data files are as large as the index claims, before memory is allocated."""
    held = sum(file.stat().st_size for file in prefix.parent.glob(f"{escape(prefix.name)}.data-*"))
    needed = sum(int(np.prod(shape, dtype=object)) * size for shape, size in claimed.values())
    if needed > held:
        raise ForeignModelError(
            f"{prefix} is damaged: its index claims {needed:,} bytes and its data files have {held:,}"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of a TensorFlow error message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def load_tensorflow(purpose: str) -> Any:
    """Import TensorFlow without its startup messages.

    Raises:
        MissingExtraError: when TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ImportError as error:
        raise MissingExtraError(purpose, "tensorflow") from error
    return tensorflow
