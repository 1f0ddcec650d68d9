"""TensorFlow's side of `training.py`: the tutorial's model; prints a figure for every line on standard input.

`training.py` runs it in an environment with TensorFlow alone; it does not import charwright.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import tensorflow as tf

VOCABULARY, EMBEDDING, UNITS, BATCH, LENGTH = 66, 256, 1024, 64, 100


class MyModel(tf.keras.Model):
    """Embedding, GRU, Dense, as in the tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = tf.keras.layers.Embedding(VOCABULARY, EMBEDDING)
        self.gru = tf.keras.layers.GRU(UNITS, return_sequences=True, return_state=True)
        self.dense = tf.keras.layers.Dense(VOCABULARY)

    def call(self, inputs, training=False):  # type: ignore[no-untyped-def]
        """Logits for the character after each position."""
        outputs, _ = self.gru(self.embedding(inputs), training=training)
        return self.dense(outputs)


def main() -> None:
    """Warm up, then measure on request."""
    seconds = json.loads(sys.argv[1])["seconds"]
    steps = 4
    ids = np.random.default_rng(1).integers(1, VOCABULARY, size=(steps * BATCH, LENGTH + 1))
    dataset = tf.data.Dataset.from_tensor_slices((ids[:, :-1], ids[:, 1:])).batch(BATCH).prefetch(2)
    model = MyModel()
    model.compile(optimizer="adam", loss=tf.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset, epochs=1, verbose=0)
    print("ready", flush=True)
    for _ in sys.stdin:
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds or count < 1:
            model.fit(dataset, epochs=1, verbose=0)
            count += steps
        print(count * BATCH * LENGTH / spent, flush=True)


if __name__ == "__main__":
    main()
