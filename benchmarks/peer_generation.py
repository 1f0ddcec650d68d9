"""What the two peers of `generation.py` share: the model they are given, the requests they answer, the whole process.

    python peer_generation_torch.py FOLDER                # a request on each line of standard input, as JSON
    python peer_generation_torch.py FOLDER --write 1000   # write so many characters, and end

FOLDER has `weights.npz`, by charwright's names, and `model.json`. Nothing of charwright is imported here: a peer may
run in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Model:
    """What a peer writes with; the first token is [UNK], which is never written."""

    cell: str
    layers: int
    units: int
    embedding: int
    tokens: list[str]
    prompt: str
    temperature: float
    seed: int
    weights: dict[str, np.ndarray]


class Writer(Protocol):
    """A peer's own loop. A piece is what all streams write in one step, in whatever form the peer has it."""

    def prepare(self, streams: int) -> str:
        """Warm up for so many streams, and say which way of several is taken, if there are several."""

    def pieces(self, streams: int, length: int) -> Iterator[Any]:
        """Write from the prompt, step by step."""

    def join(self, pieces: list[Any]) -> list[str]:
        """The text of each stream."""

    def show(self, piece: Any) -> str:
        """The one character of a piece, where there is one stream."""

    def logits(self, ids: list[int]) -> dict[str, np.ndarray]:
        """Logits (T, V) after each id, by the name of each way, one step at a time."""


def read_model(folder: Path) -> Model:
    """What `generation.py` has put into a folder."""
    with np.load(folder / "weights.npz") as weights:
        arrays = {name: weights[name] for name in weights.files}
    return Model(**json.loads((folder / "model.json").read_text(encoding="utf-8")), weights=arrays)


def run_peer(make: Callable[[Model], Writer], version: str, threads: int) -> None:
    """The peer's whole program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=int, metavar="LENGTH")
    options = parser.parse_args()
    writer = make(read_model(options.folder))
    if options.write:
        for piece in writer.pieces(1, options.write):
            sys.stdout.write(writer.show(piece))
            sys.stdout.flush()
        return
    print(json.dumps({"version": version, "threads": threads}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(writer, json.loads(line))), flush=True)


def _answer(writer: Writer, request: dict[str, Any]) -> Any:
    match request.pop("do"):
        case "prepare":
            return writer.prepare(**request)
        case "logits":
            return {name: logits.tolist() for name, logits in writer.logits(**request).items()}
        case "speed":
            return _speed(writer, **request)
        case other:
            raise ValueError(other)


def _speed(writer: Writer, streams: int, length: int, seconds: float) -> float:
    """Characters a second of all streams together, over whole texts."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or count == 0:
        count += sum(map(len, writer.join(list(writer.pieces(streams, length)))))
    return count / spent
