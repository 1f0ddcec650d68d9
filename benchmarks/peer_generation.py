"""What the two peers of `generation.py` share: reading the model, answering requests, and running as a process.

    python peer_generation_torch.py FOLDER                # answer JSON requests, one per line of standard input
    python peer_generation_torch.py FOLDER --write 1000   # generate this many characters and exit

FOLDER has `weights.npz`, with charwright's names, and `model.json`. A peer does not import charwright and can run in
its own environment.
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
    """The model of a peer; its first token is [UNK], which is never generated."""

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
    """A peer's own loop. A piece is the output of all streams in one step, in the peer's own form."""

    def prepare(self, streams: int) -> str:
        """Warm up for this many streams; returns the name of the implementation, if there are several."""

    def pieces(self, streams: int, length: int) -> Iterator[Any]:
        """Generate from the prompt, step by step."""

    def join(self, pieces: list[Any]) -> list[str]:
        """The text of each stream."""

    def show(self, piece: Any) -> str:
        """The character of a piece with one stream."""

    def logits(self, ids: list[int]) -> dict[str, np.ndarray]:
        """Logits (T, V) after each id, one step at a time, by the name of the implementation."""


def read_model(folder: Path) -> Model:
    """Read the model that `generation.py` stored in a folder."""
    with np.load(folder / "weights.npz") as weights:
        arrays = {name: weights[name] for name in weights.files}
    return Model(**json.loads((folder / "model.json").read_text(encoding="utf-8")), weights=arrays)


def run_peer(make: Callable[[Model], Writer], version: str, threads: int) -> None:
    """Run the peer's program."""
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
    """Characters per second of all streams together, over complete texts."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or count == 0:
        count += sum(map(len, writer.join(list(writer.pieces(streams, length)))))
    return count / spent
