"""Run by `test_tensorflow.py` in an environment with TensorFlow: charwright commands, and TensorFlow on their files.

Reads a list of tasks as JSON from standard input, [kind, arguments]; writes a list of results.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"


def charwright(*words: str) -> dict[str, Any]:
    """Run a command; return its exit code and output."""
    from charwright import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(list(words))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def reference(golden: str) -> Any:
    """Return the tutorial's model with built weights, and the golden values."""
    import numpy as np
    import tensorflow as tf

    class MyModel(tf.keras.Model):  # type: ignore[misc]
        """The tutorial's model."""

        def __init__(self, vocab_size: int, embedding_dim: int, rnn_units: int) -> None:
            super().__init__()
            self.embedding = tf.keras.layers.Embedding(vocab_size, embedding_dim)
            self.gru = tf.keras.layers.GRU(rnn_units, return_sequences=True, return_state=True)
            self.dense = tf.keras.layers.Dense(vocab_size)

        def call(self, inputs: Any, states: Any = None, return_state: bool = False, training: bool = False) -> Any:
            """Return logits, and the state on request."""
            x = self.embedding(inputs, training=training)
            if states is None:
                states = self.gru.get_initial_state(tf.shape(x)[0])
            x, states = self.gru(x, initial_state=states, training=training)
            x = self.dense(x, training=training)
            return (x, states) if return_state else x

    recorded = np.load(golden)
    model = MyModel(
        len(recorded["vocabulary"]),
        recorded["embedding"].shape[1],
        recorded["gru_recurrent_kernel"].shape[0],
    )
    model(recorded["ids"])
    return model, recorded


def my_model(weights: str, golden: str) -> dict[str, Any]:
    """Load exported weights into the tutorial's MyModel; return the largest error of its logits."""
    import numpy as np

    model, recorded = reference(golden)
    model.load_weights(weights)
    return {"error": float(np.abs(model(recorded["ids"]).numpy() - recorded["logits"]).max())}


def one_step(exported: str, original: str, golden: str) -> dict[str, Any]:
    """Compare an exported SavedModel with the tutorial's: states, logits and the distribution of samples."""
    import numpy as np
    import tensorflow as tf

    recorded = np.load(golden)
    mine, theirs = tf.saved_model.load(exported), tf.saved_model.load(original)
    states = []
    for loaded in (mine, theirs):
        character, first = loaded.generate_one_step(tf.constant(["ROMEO: \u00e9"]), states=None)
        assert character.shape == (1,)
        assert character.dtype == tf.string
        states.append(loaded.generate_one_step(tf.constant(["x"]), states=first)[1].numpy())
    logits, state = mine.logits(tf.constant(recorded["ids"]), None)

    mine.temperature.assign(0.5)
    text = "".join(recorded["vocabulary"][i] for i in recorded["ids"][0])
    drawn = mine.generate_one_step(tf.constant([text] * 20_000))[0].numpy()
    chances = np.exp(recorded["logits"][0, -1].astype(np.float64) / 0.5)
    chances[0] = 0
    counts = np.array([(drawn == token.encode()).sum() for token in recorded["vocabulary"]])
    expected = chances / chances.sum() * len(drawn)
    often = expected > 5
    return {
        "states": float(np.abs(states[0] - states[1]).max()),
        "logits": float(np.abs(logits.numpy() - recorded["logits"]).max()),
        "state": float(np.abs(state.numpy() - recorded["state"]).max()),
        "chi_square": float(((counts - expected)[often] ** 2 / expected[often]).sum()),
        "kinds": int(often.sum()),
        "unknown": int(counts[0]),
    }


def generate(exported: str, prompt: str, length: str) -> dict[str, Any]:
    """Generate text from a prompt with a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(exported)
    states, text = None, [tf.constant([prompt])]
    for _ in range(int(length)):
        character, states = loaded.generate_one_step(text[-1], states=states)
        text.append(character)
    return {"bytes": list(tf.strings.join(text)[0].numpy())}


def in_pieces(exported: str) -> dict[str, Any]:
    """Read ids at once and in three pieces with a SavedModel: the difference of the logits, and the last context."""
    import numpy as np
    import tensorflow as tf

    loaded = tf.saved_model.load(exported)
    ids = tf.constant([[1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8, 9]], tf.int64)
    whole, _ = loaded.logits(ids, None)
    first, between = loaded.logits(ids[:, :1], None)
    second, between = loaded.logits(ids[:, 1:3], between)
    third, after = loaded.logits(ids[:, 3:], between)
    parts = np.concatenate([first, second, third], axis=1)
    last = tf.nest.flatten(after)[-1]
    return {
        "error": float(np.abs(whole.numpy() - parts).max()),
        "context": last.numpy().tolist() if last.dtype == tf.int64 else None,
    }


def checkpoint(prefix: str, *groups: str) -> dict[str, Any]:
    """Write a checkpoint of a tiny model with recurrent layers of these names, or a normalization layer."""
    import tensorflow as tf

    def holder(**shapes: tuple[int, ...]) -> Any:
        module = tf.Module()
        for name, shape in shapes.items():
            setattr(module, name, tf.Variable(tf.fill(shape, 0.5)))
        return module

    model = tf.Module()
    model.embedding, model.dense = holder(embeddings=(4, 2)), holder(kernel=(2, 4), bias=(4,))
    for group in groups:
        layer = tf.Module()
        if group == "normalization":
            layer = holder(gamma=(2,), beta=(2,))
        else:
            layer.cell = holder(kernel=(2, 6), recurrent_kernel=(2, 6), bias=(2, 6))
        setattr(model, group, layer)
    tf.train.Checkpoint(model=model).write(prefix)
    return {}


TASKS = {
    "checkpoint": checkpoint,
    "charwright": charwright,
    "my_model": my_model,
    "one_step": one_step,
    "generate": generate,
    "in_pieces": in_pieces,
}

if __name__ == "__main__":
    tasks = json.load(sys.stdin)
    results = [TASKS[kind](*arguments) for kind, arguments in tasks]
    json.dump(results, sys.stdout)
