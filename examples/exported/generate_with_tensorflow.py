"""Generate text with an exported SavedModel, using TensorFlow but not charwright.

    charwright export runs/novel --to saved-model
    python examples/exported/generate_with_tensorflow.py novel-saved-model "ROMEO:" 1000

The loop is the tutorial's.
"""

import sys

import tensorflow as tf

folder, prompt, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
one_step = tf.saved_model.load(folder)
tf.random.set_seed(1)

states = None
next_char = tf.constant([prompt])
result = [next_char]
for _ in range(length):
    next_char, states = one_step.generate_one_step(next_char, states=states)
    result.append(next_char)
print(tf.strings.join(result)[0].numpy().decode("utf-8", "replace"))
