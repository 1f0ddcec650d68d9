"""Generate text with exported ONNX graphs, using onnxruntime and NumPy but not charwright.

    charwright export runs/novel --to onnx
    python examples/exported/generate_with_onnx.py novel-onnx "ROMEO:" 1000

It uses both graphs: `generate.onnx` generates a text in one call, `step.onnx` one character at a time.
"""

import argparse
import json

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description="Generate text with exported ONNX graphs.")
parser.add_argument("folder", help="what `charwright export RUN --to onnx` wrote")
parser.add_argument("prompt", help="what the text continues; if it is empty, a newline")
parser.add_argument("length", type=int, help="characters to generate, at least 1")
asked = parser.parse_args()
prompt, length = asked.prompt or "\n", max(1, asked.length)
generate = onnxruntime.InferenceSession(f"{asked.folder}/generate.onnx")
step = onnxruntime.InferenceSession(f"{asked.folder}/step.onnx")

tokens = json.loads(step.get_modelmeta().custom_metadata_map["vocabulary"])
ids_of = {token: number for number, token in enumerate(tokens)}
ids = np.array([[ids_of.get(character, 0) for character in prompt]], dtype=np.int64)
random = np.random.default_rng(1)

uniform = random.random((1, length), dtype=np.float32)
(drawn,) = generate.run(["ids"], {"prompt": ids, "temperature": np.array(0.8, dtype=np.float32), "uniform": uniform})
print(prompt + "".join(tokens[number] for number in drawn[0]))

print("\n--- and step by step, always the most likely character:")
carried = {}  # the state and, for a model with n-grams, its context: zeros in the beginning
for given in step.get_inputs()[1:]:
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    carried[given.name] = np.zeros(shape, dtype=np.float32 if given.type == "tensor(float)" else np.int64)
text = prompt
for _ in range(100):
    logits, *after = step.run(["logits", *(f"next_{name}" for name in carried)], {"ids": ids} | carried)
    carried = dict(zip(carried, after, strict=True))
    best = 1 + int(logits[0, -1, 1:].argmax())  # id 0 is [UNK]
    text += tokens[best]
    ids = np.array([[best]], dtype=np.int64)
print(text)
