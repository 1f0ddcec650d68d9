"""TensorFlow's checkpoints and SavedModels: their variables through TensorFlow's own reader, never their graphs.

A SavedModel may also hold the vocabulary: a table of strings among the constants of its graph, which are read as data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from charwright.errors import ForeignModelError, MissingExtraError
from charwright.interop.keras_files import natural
from charwright.interop.keras_layout import Array, KerasLayer

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
NAMES = {"embeddings", "kernel", "recurrent_kernel", "bias"}
LARGEST_GRAPH = 1 << 30  # bytes


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
        reader = tensorflow.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        kinds = reader.get_variable_to_dtype_map()
        _check_size(prefix, {name: (shapes[name], kinds[name].size) for name in shapes if kinds[name].is_floating})
        variables: dict[str, dict[str, Array]] = {}
        for name in sorted(shapes, key=natural):
            layer, _, variable = name.removesuffix(SUFFIX).rpartition("/")
            variable = variable.removeprefix("_")
            if name.endswith(SUFFIX) and variable in NAMES and "optimizer" not in layer.split("/"):
                place = layer.removesuffix("/cell")
                variables.setdefault(place, {})[variable] = np.asarray(reader.get_tensor(name), dtype=np.float32)
    except (tensorflow.errors.OpError, ValueError, OSError) as error:
        raise ForeignModelError(f"{prefix} is damaged or no checkpoint: {_first_line(error)}") from error
    return [KerasLayer(place, arrays) for place, arrays in variables.items()]


def read_characters(folder: Path) -> str | None:
    """The characters of a SavedModel's vocabulary in the order of their ids; None where it holds none.

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
    found = {characters for node in nodes if (characters := _characters(node.attr["value"].tensor)) is not None}
    if len(found) > 1:
        raise ForeignModelError(f"{file} holds {len(found)} vocabularies; say which with --vocabulary FILE")
    return found.pop() if found else None


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
    held = sum(file.stat().st_size for file in prefix.parent.glob(f"{_escaped(prefix.name)}.data-*"))
    needed = sum(int(np.prod(shape, dtype=object)) * size for shape, size in claimed.values())
    if needed > held:
        raise ForeignModelError(f"{prefix} is damaged: its index promises {needed:,} bytes, its data has {held:,}")


def _escaped(name: str) -> str:
    from glob import escape

    return escape(name)


def _first_line(error: BaseException) -> str:
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
