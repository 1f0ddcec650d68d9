"""TensorFlow's checkpoints and SavedModels: their variables through TensorFlow's own reader, never their graphs.

A SavedModel may also hold the vocabulary: a table of strings among the constants of its graph, which are read as data.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from charwright.data.vocabulary import ByteVocabulary, Vocabulary
from charwright.errors import ForeignModelError, MissingExtraError
from charwright.interop.keras_files import in_order, natural
from charwright.interop.keras_layout import Array, KerasLayer

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
LARGEST_GRAPH = 1 << 30  # bytes
BYTES = [bytes([byte]) for byte in range(256)]


def checkpoint_prefix(path: Path) -> Path | None:
    """The checkpoint that a path means: its prefix, one of its files, or the folder of several, the newest of them.

    None where there is none.
    """
    if path.is_dir():
        if (path / "variables" / "variables.index").is_file():
            return path / "variables" / "variables"
        found = sorted(path.glob("*.index"), key=lambda file: natural(file.name))
        newest = _newest(path / "checkpoint")
        if newest is not None and newest in found:
            return newest.with_suffix("")
        return found[-1].with_suffix("") if found else None
    name = path.name.split(".data-")[0].removesuffix(".index")
    prefix = path.with_name(name)
    return prefix if prefix.with_name(f"{name}.index").is_file() else None


def read_checkpoint(prefix: Path) -> list[KerasLayer]:
    """The layers of a checkpoint that a model of Keras was saved in, recurrent ones in the order of their names.

    Raises:
        ForeignModelError: when it is damaged, or holds no such layers.
        MissingExtraError: when TensorFlow is not installed.
    """
    tensorflow = load_tensorflow("reading TensorFlow's checkpoints")
    try:
        with _named_plainly(prefix) as readable:
            reader = tensorflow.train.load_checkpoint(str(readable))
            return _read(reader, prefix)
    except (tensorflow.errors.OpError, ValueError, OSError, RuntimeError) as error:
        raise ForeignModelError(f"{prefix} is damaged or no checkpoint: {first_line(error)}") from error


@contextmanager
def _named_plainly(prefix: Path) -> Iterator[Path]:
    """The same checkpoint under a name that TensorFlow does not take for a pattern."""
    if not set("[]*?\\") & set(str(prefix)):
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in prefix.parent.glob(f"{escape(prefix.name)}.*"):
            (Path(folder) / f"checkpoint{file.name.removeprefix(prefix.name)}").symlink_to(file.absolute())
        yield Path(folder) / "checkpoint"


def _read(reader: Any, prefix: Path) -> list[KerasLayer]:
    """The layers that a checkpoint's variables make."""
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
        # What has no place in a known layer is not left out: it would be another network.
        if layer.kind == "unknown" or {"forward_layer", "backward_layer"} & set(layer.name.split("/")):
            raise ForeignModelError(f"{prefix}: {layer.name} is no embedding, no recurrent and no dense layer")
    recurrent = [layer for layer in layers if layer.kind == "recurrent"]
    names = [layer.name.rpartition("/")[2] for layer in recurrent]
    others = [layer for layer in layers if layer.kind != "recurrent"]
    return [*others, *in_order(recurrent, names, str(prefix))]


def _is_weight(name: str, shape: list[int], kind: Any) -> bool:
    """Whether a variable is a weight of a layer; the others are counters and what an optimizer remembers."""
    parts = name.removesuffix(SUFFIX).split("/")
    apart = {"optimizer", ".OPTIMIZER_SLOT", "keras_api", "seed_generator"} & set(parts)
    return name.endswith(SUFFIX) and bool(shape) and kind.is_floating and not apart


def read_tokens(folder: Path) -> Vocabulary | list[str] | None:
    """The characters of a SavedModel's vocabulary in the order of their ids, or bytes; None where it holds none.

    Raises:
        ForeignModelError: when the folder's graph is damaged, or holds more than one vocabulary.
    """
    load_tensorflow("reading SavedModels")
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    if file.stat().st_size > LARGEST_GRAPH:
        raise ForeignModelError(f"{file} has {file.stat().st_size:,} bytes, more than a graph like this takes")
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ForeignModelError(f"{file} is damaged: {error}") from error
    nodes = [node for graph in model.meta_graphs for node in graph.graph_def.node if node.op == "Const"]
    constants = [node.attr["value"].tensor for node in nodes]
    if any(list(tensor.string_val) == BYTES for tensor in constants):
        return ByteVocabulary()
    found = {characters for tensor in constants if (characters := _characters(tensor)) is not None}
    if len(found) > 1:
        raise ForeignModelError(f"{file} holds {len(found)} vocabularies; say which with --vocabulary FILE")
    return list(found.pop()) if found else None


def _characters(tensor: Any) -> str | None:
    """A constant's text, if it is a list of two characters or more, each another one."""
    try:
        texts = [value.decode("utf-8") for value in tensor.string_val]
    except UnicodeDecodeError:
        return None
    if len(texts) < 2 or any(len(text) != 1 for text in texts) or len(set(texts)) != len(texts):
        return None
    return "".join(texts)


def _newest(state: Path) -> Path | None:
    """The index file of the checkpoint that a folder's `checkpoint` file names as the newest."""
    try:
        first = state.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return None
    name = first.partition('"')[2].rpartition('"')[0]
    return state.with_name(f"{Path(name).name}.index")


def _check_size(prefix: Path, claimed: dict[str, tuple[list[int], int]]) -> None:
    """See that the files hold as many bytes as the index promises, before room is made for them."""
    held = sum(file.stat().st_size for file in prefix.parent.glob(f"{escape(prefix.name)}.data-*"))
    needed = sum(int(np.prod(shape, dtype=object)) * size for shape, size in claimed.values())
    if needed > held:
        raise ForeignModelError(f"{prefix} is damaged: its index promises {needed:,} bytes, its data has {held:,}")


def first_line(error: BaseException) -> str:
    """What an error of TensorFlow says, without the many lines below it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def load_tensorflow(purpose: str) -> Any:
    """TensorFlow, or the line that says how to install it."""
    # Its notes on the machine are nothing for the user of a command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ImportError as error:
        raise MissingExtraError(purpose, "tensorflow") from error
    return tensorflow
