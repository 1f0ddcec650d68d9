"""Generate text with an exported SavedModel, using TensorFlow but not charwright.

    charwright export runs/novel --to saved-model
    python examples/exported/generate_with_tensorflow.py novel-saved-model "ROMEO:" 1000

The loop is the tutorial's.
"""

import argparse

import tensorflow as tf

parser = argparse.ArgumentParser(description="Generate text with an exported SavedModel.")
parser.add_argument("folder", help="what `charwright export RUN --to saved-model` wrote")
parser.add_argument("prompt", help="what the text continues; if it is empty, a newline")
parser.add_argument("length", type=int, help="characters to generate")
asked = parser.parse_args()
one_step = tf.saved_model.load(asked.folder)
tf.random.set_seed(1)

states = None
next_char = tf.constant([asked.prompt or "\n"])
result = [next_char]
for _ in range(asked.length):
    next_char, states = one_step.generate_one_step(next_char, states=states)
    result.append(next_char)
print(tf.strings.join(result)[0].numpy().decode("utf-8", "replace"))
