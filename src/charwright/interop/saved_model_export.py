"""`--to saved-model`: the tutorial's one-step generator for plain TensorFlow, strings in and strings out.

    one_step = tf.saved_model.load("novel-saved-model")
    text, states = one_step.generate_one_step(tf.constant(["ROMEO:"]), states=None)

`generate_one_step` does the same as the tutorial's: split the text, look up ids ([UNK] for unknown characters), run the
network from `states`, divide the last logits by the temperature, mask [UNK], sample, look up characters. `temperature`
is a variable, so that it can be changed after loading. `logits(ids, states)` is the network alone, and `card()` the
model card as JSON.

The states of a GRU or a simple RNN are a tensor (B, H), those of an LSTM a pair (h, c); several layers have a tuple of
these. A model with n-grams has a tuple with one more element, the context (B, K) int64: the last K tokens that were
read, the most recent first, each 1 + its id, and 0 where there is none. K is the order of the n-grams less one.

The variables have Keras's names, shapes and gate order, and `charwright import` reads them back:
`keras_weights.py` reorders the gates, and `_gru` and `_lstm` split them in that order. A multiplicative layer has one
more, `scale_kernel` (E, H), which no layer of Keras has.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig
from charwright.data.vocabulary import UNKNOWN, Vocabulary
from charwright.errors import ForeignModelError
from charwright.generation.engine import Engine
from charwright.generation.layout import as_gru
from charwright.interop.keras_weights import SCALE, KerasLayer, keras_name, numbered, to_keras
from charwright.interop.model_card import as_json
from charwright.interop.tensorflow_import import first_line, load_tensorflow
from charwright.ngrams import MULTIPLIERS
from charwright.run import Run

TOLERANCE = 1e-4
CHECKED_SIZES = ((1, 1), (3, 7), (2, 40))
"""The batch sizes and sequence lengths that the network is checked at."""

Array = npt.NDArray[np.float32]


def write_saved_model(run: Run, folder: Path, card: Mapping[str, Any], temperature: float) -> None:
    """Write a SavedModel into a folder, after loading it and comparing it with the model.

    Raises:
        ForeignModelError: when the SavedModel differs from the model by more than `TOLERANCE`.
        MissingExtraError: when TensorFlow is not installed.
    """
    tf = load_tensorflow("exporting to a SavedModel")
    weights = run.weights()
    # TensorFlow treats brackets and asterisks in a path as a glob pattern; a temporary folder has none.
    with tempfile.TemporaryDirectory() as plain:
        try:
            tf.saved_model.save(_one_step(tf, run, weights, card, temperature), plain)
            loaded = tf.saved_model.load(plain)
        except tf.errors.OpError as error:
            raise ForeignModelError(f"cannot write a SavedModel: {first_line(error)}") from error
        worst = max(_error(tf, loaded, run.model, weights, *sizes) for sizes in CHECKED_SIZES)
        if not worst <= TOLERANCE:
            raise ForeignModelError(f"the SavedModel differs from the model by {worst:.2g}")
        shutil.copytree(plain, folder, dirs_exist_ok=True)


def _error(tf: Any, loaded: Any, config: ModelConfig, weights: Mapping[str, Array], batch: int, time: int) -> float:
    """Return the largest difference of a logit after ids (batch, time) from zero states."""
    engine = Engine(config, weights, precision="f32")
    random = np.random.Generator(np.random.Philox(key=np.array([0, 0], dtype=np.uint64)))
    ids = random.integers(0, engine.vocabulary_size, (batch, time))
    logits, _ = loaded.logits(tf.constant(ids), None)
    state = engine.zero_state(batch)
    expected = np.stack([engine.step(column, state) for column in ids.T], axis=1)
    return float(np.abs(logits.numpy() - expected).max())


def _one_step(tf: Any, run: Run, weights: Mapping[str, Array], card: Mapping[str, Any], temperature: float) -> Any:
    """Return the module to save."""
    config, weights = as_gru(run.model, weights)  # TensorFlow's names and kernels are those of Keras's layers.
    network = _Network(tf, config, to_keras(config, weights))
    tables = _Tables(tf, run.vocabulary)
    size, labels = len(run.vocabulary), len(run.vocabulary.labels)
    hidden = np.zeros(size, dtype=np.float32)  # [UNK] and the labels, which are the last ids
    hidden[0] = hidden[size - labels :] = -np.inf

    class OneStep(tf.Module):  # type: ignore[misc]
        """The SavedModel: variables, lookup table and two functions."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.ids_from_chars = network.module, tables.table
            self.temperature = tf.Variable(temperature, dtype=tf.float32, trainable=False, name="temperature")
            self._card = tf.constant(as_json(card))

        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def card(self) -> Any:
            """Return the model card, as JSON; a constant is saved only where a function returns it."""
            return tf.identity(self._card)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def logits(self, ids: Any, states: Any = None) -> Any:
            """Return logits (B, T, V) and states for ids (B, T)."""
            return network.run(ids, states)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def generate_one_step(self, inputs: Any, states: Any = None) -> Any:
            """Return the next character of each text (B), and the states after the texts."""
            logits, states = network.run(tables.ids(inputs), states)
            scores = logits[:, -1, :] / self.temperature
            scores += tf.constant(hidden)
            drawn = tf.squeeze(tf.random.categorical(scores, num_samples=1), axis=-1)
            return tf.gather(tables.tokens, drawn), states

    module = OneStep()
    for states in (None, network.state_spec()):
        module.logits.get_concrete_function(tf.TensorSpec([None, None], tf.int64), states)
        module.generate_one_step.get_concrete_function(tf.TensorSpec([None], tf.string), states)
    return module


class _Tables:
    """Lookup tables between characters and ids, for texts as string tensors."""

    def __init__(self, tf: Any, vocabulary: Vocabulary) -> None:
        self.tf, self.level = tf, vocabulary.level
        tokens: list[bytes] = [character.encode("utf-8") for character in vocabulary.characters]
        if self.level == "byte":
            tokens = [bytes([byte]) for byte in range(256)]
        ids = tf.range(1, len(tokens) + 1, dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(tokens), ids), 0)
        self.tokens = tf.constant([UNKNOWN.encode(), *tokens])

    def ids(self, texts: Any) -> Any:
        """Return ids (B, T) of texts (B); shorter ones are padded with [UNK], as in the tutorial."""
        tf = self.tf
        by_byte = self.level == "byte"
        split = tf.strings.bytes_split(texts) if by_byte else tf.strings.unicode_split(texts, "UTF-8")
        return tf.ragged.map_flat_values(self.table.lookup, split).to_tensor()


class _Network:
    """The network in TensorFlow operations, on variables with Keras's names, shapes and gate order."""

    def __init__(self, tf: Any, config: ModelConfig, layers: list[KerasLayer]) -> None:
        self.tf, self.config = tf, config
        self.module = tf.Module()
        for layer in layers:
            holder = inner = tf.Module()
            if layer.kind == "recurrent":
                holder.cell = inner = tf.Module()
            for name, array in layer.arrays.items():
                setattr(inner, name, tf.Variable(array, name=name))
            setattr(self.module, layer.name, holder)
        names = [numbered(keras_name(config.cell), index) for index in range(config.layers)]
        self.cells = [getattr(self.module, name).cell for name in names]

    def state_spec(self) -> Any:
        """Return the nested spec of the states."""
        one = self.tf.TensorSpec([None, self.config.units], self.tf.float32)
        parts: list[Any] = [(one, one) if self.config.cell == "lstm" else one] * self.config.layers
        if self.config.ngram_bits:
            parts.append(self.tf.TensorSpec([None, self.config.ngram_order - 1], self.tf.int64))
        return parts[0] if len(parts) == 1 else tuple(parts)

    def run(self, ids: Any, states: Any) -> Any:
        """Return logits (B, T, V) and the last states for ids (B, T) and initial states; None means zeros."""
        tf, config = self.tf, self.config
        values = tf.gather(self.module.embedding.embeddings, tf.transpose(ids))  # (T, B, E)
        if states is None:
            batch = tf.shape(ids)[0]
            states = tf.nest.map_structure(lambda s: tf.zeros([batch, s.shape[1]], s.dtype), self.state_spec())
        before = list(states) if config.layers > 1 or config.ngram_bits else [states]
        context = before.pop() if config.ngram_bits else None
        after = []
        for cell, state in zip(self.cells, before, strict=True):
            values, last = self._layer(cell, values, state)
            after.append(last)
        dense = self.module.dense
        logits = tf.linalg.matmul(values, dense.kernel) + dense.bias
        if config.ngram_bits:
            votes, context = self._ngrams(tf.transpose(ids), context)
            logits += votes
            after.append(context)
        return tf.transpose(logits, [1, 0, 2]), after[0] if len(after) == 1 else tuple(after)

    def _ngrams(self, ids: Any, context: Any) -> tuple[Any, Any]:
        """Return what the n-grams add (T, B, V) for ids (T, B) after a context (B, K), and the context after them."""
        tf, bits, before = self.tf, self.config.ngram_bits, self.config.ngram_order - 1
        marks = tf.concat([tf.reverse(tf.transpose(context), [0]), ids + 1], axis=0)  # (K + T, B)
        places = tf.range(self.module.dense.bias.shape[0], dtype=tf.int64)
        votes = 0.0
        for row in MULTIPLIERS[:before]:
            last = [marks[before - back : tf.shape(marks)[0] - back] for back in range(len(row))]
            sums = tf.add_n([part * tf.constant(number, tf.int64) for part, number in zip(last, row, strict=True)])
            offsets = tf.bitwise.right_shift(sums % (1 << 32), tf.constant(32 - bits, tf.int64))
            offsets = tf.where(last[-1] == 0, tf.constant(1 << bits, tf.int64), offsets)
            votes += tf.gather(self.module.ngrams.weight, offsets[..., None] + places)
        return votes, tf.transpose(tf.reverse(marks[-before:], [0]))

    def _layer(self, cell: Any, values: Any, state: Any) -> tuple[Any, Any]:
        """Return outputs (T, B, H) for inputs (T, B, E), and the last state."""
        tf = self.tf
        bias = cell.bias[0] if self.config.cell == "gru" else cell.bias
        gates = tf.linalg.matmul(values, cell.kernel) + bias  # (T, B, G * H)
        # Each input of a multiplicative layer scales the state that the recurrent kernel is multiplied with.
        scaled = hasattr(cell, SCALE)
        scales = 1 + tf.tanh(tf.linalg.matmul(values, cell.scale_kernel)) if scaled else None  # (T, B, H)
        steps = tf.shape(gates)[0]
        outputs = tf.TensorArray(tf.float32, size=steps, element_shape=[None, self.config.units])
        step = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}[self.config.cell]

        def iterate(time: Any, outputs: Any, state: Any) -> Any:
            h = state[0] if isinstance(state, tuple) else state
            product = tf.linalg.matmul(h if scales is None else scales[time] * h, cell.recurrent_kernel)
            state = step(tf, gates[time], product, cell, state)
            return time + 1, outputs.write(time, state[0] if isinstance(state, tuple) else state), state

        _, outputs, state = tf.while_loop(lambda time, *_: time < steps, iterate, (0, outputs, state))
        return outputs.stack(), state


def _gru(tf: Any, gates: Any, product: Any, cell: Any, h: Any) -> Any:
    """A GRU step: gates in Keras's order z, r, n; the reset gate is applied after the recurrent product."""
    z, r, n = tf.split(gates, 3, axis=-1)
    by_z, by_r, by_n = tf.split(product + cell.bias[1], 3, axis=-1)
    z, r = tf.sigmoid(z + by_z), tf.sigmoid(r + by_r)
    n = tf.tanh(n + r * by_n)
    return z * h + (1 - z) * n


def _lstm(tf: Any, gates: Any, product: Any, _: Any, state: Any) -> Any:
    """An LSTM step: gates in the order i, f, g, o."""
    _, c = state
    i, f, g, o = tf.split(gates + product, 4, axis=-1)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c


def _rnn(tf: Any, gates: Any, product: Any, _: Any, __: Any) -> Any:
    return tf.tanh(gates + product)
