"""The engine alone, for comparison with the service: texts of a run, generated together in this process.

    echo '{"streams": 64, "length": 2000, "seed": 1}' | python benchmarks/serving_engine.py runs/demo

Reads a request on each line of standard input and prints characters per second.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from charwright.generation.generator import Generator
from charwright.run import Run
from serving_client import PROMPT, TEMPERATURE


def main() -> None:
    run = Run.open(Path(sys.argv[1]))
    generator = Generator(run.model, run.weights(), run.vocabulary)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        length, num, seed = wanted["length"], wanted["streams"], wanted["seed"]
        began = time.perf_counter()
        texts = generator.generate(PROMPT, length=length, num=num, temperature=TEMPERATURE, seed=seed)
        seconds = time.perf_counter() - began
        print(sum(len(text.continuation) for text in texts) / seconds, flush=True)


if __name__ == "__main__":
    main()
