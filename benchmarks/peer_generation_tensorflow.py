"""TensorFlow's side of `generation.py`: the tutorial's model and its one-step function, strings in, strings out.

A step is one tf.function: split the strings into characters, look up their ids, run the model with its state, take the
last logits, divide by the temperature, mask [UNK], sample, look up the characters. The loop around it is in Python.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from peer_generation import Model, run_peer


class Network(tf.keras.Model):
    """Embedding, GRU, Dense."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embedding = tf.keras.layers.Embedding(len(model.tokens), model.embedding)
        self.gru = tf.keras.layers.GRU(model.units, return_sequences=True, return_state=True)
        self.dense = tf.keras.layers.Dense(len(model.tokens))

    def call(self, inputs, states=None, training=False):  # type: ignore[no-untyped-def]
        """Logits (B, T, V) and the last state, from ids (B, T)."""
        x = self.embedding(inputs)
        if states is None:
            states = self.gru.get_initial_state(tf.shape(x)[0])
        x, states = self.gru(x, initial_state=states, training=training)
        return self.dense(x), states

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Load weights with charwright's names."""

        def reordered(name: str) -> np.ndarray:  # Stacked gates r, z, n become z, r, n side by side.
            r, z, n = np.split(weights["recurrent.0." + name], 3)
            return np.concatenate([z, r, n]).T

        self.embedding.set_weights([weights["embedding.weight"]])
        biases = np.stack([reordered("bias_ih"), reordered("bias_hh")])
        self.gru.set_weights([reordered("weight_ih"), reordered("weight_hh"), biases])
        self.dense.set_weights([weights["head.weight"].T, weights["head.bias"]])


class TensorFlowWriter(tf.Module):
    """The model with a vocabulary around it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if (model.cell, model.layers) != ("gru", 1):
            raise SystemExit("the tutorial's model is one layer of GRU")
        tf.random.set_seed(model.seed)
        self.model = model
        self.network = Network(model)
        self.network(tf.zeros((1, 1), dtype=tf.int64))
        self.network.load(model.weights)
        characters = model.tokens[1:]
        self.ids_from_chars = tf.keras.layers.StringLookup(vocabulary=characters, mask_token=None)
        self.chars_from_ids = tf.keras.layers.StringLookup(vocabulary=characters, invert=True, mask_token=None)
        mask = np.zeros(len(model.tokens), dtype=np.float32)
        mask[self.ids_from_chars(["[UNK]"]).numpy()] = -np.inf
        self.mask = tf.constant(mask)

    @tf.function
    def one_step(self, texts: tf.Tensor, states: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Strings (B,) and the state -> the next character of each (B,) and the state."""
        ids = self.ids_from_chars(tf.strings.unicode_split(texts, "UTF-8")).to_tensor()
        logits, states = self.network(ids, states=states)
        logits = logits[:, -1, :] / self.model.temperature + self.mask
        drawn = tf.squeeze(tf.random.categorical(logits, num_samples=1), axis=-1)
        return self.chars_from_ids(drawn), states

    def prepare(self, streams: int) -> str:
        """Two steps, so that both forms of the function are traced."""
        list(self.pieces(streams, 3))
        return ""

    def pieces(self, streams: int, length: int) -> Iterator[tf.Tensor]:
        """Strings (B,) of each step."""
        following, states = tf.constant([self.model.prompt] * streams), None
        for _ in range(length):
            following, states = self.one_step(following, states=states)
            yield following

    def join(self, pieces: list[tf.Tensor]) -> list[str]:
        """The characters of each stream, joined."""
        return [text.decode("utf-8") for text in tf.strings.join(pieces).numpy()]

    def show(self, piece: tf.Tensor) -> str:
        """The decoded character."""
        return piece[0].numpy().decode("utf-8")

    def logits(self, ids: list[int]) -> dict[str, np.ndarray]:
        """One id at a time, with the state carried."""
        rows: list[Any] = []
        states = None
        for i in ids:
            logits, states = self.network(tf.constant([[i]], dtype=tf.int64), states=states)
            rows.append(logits[0, -1].numpy())
        return {"tf.keras GRU": np.stack(rows)}


if __name__ == "__main__":
    # 0 means all cores.
    run_peer(TensorFlowWriter, tf.__version__, tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count())
