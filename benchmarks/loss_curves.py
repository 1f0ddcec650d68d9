"""Compare the training losses of two recurrent cores: the tutorial's recipe with several seeds.

    CHARWRIGHT_DATA=folder/with/the/text python benchmarks/loss_curves.py --epochs 2 --seeds 1 2 3

Prints the mean training loss of each epoch, a row for each core and seed, and for each core the mean of the last epoch
and its range over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch

import charwright as cw
from charwright.model.compute import Compute
from charwright.training.events import Epoch
from machine import describe_machine


def losses(core: str, precision: torch.dtype, seed: int, epochs: int, units: int, text: str) -> list[float]:
    """The mean training loss of each epoch."""
    recipe = cw.RECIPES["tutorial"]
    vocabulary = cw.Vocabulary.from_text(text)
    sequences = recipe.sequences
    dataset = cw.Windows(vocabulary.encode(text), sequences.seq_length, sequences.batch, seed)
    shape = replace(recipe.model, units=units)
    model = cw.LanguageModel(shape, len(vocabulary), seed=seed, compute=Compute(precision=precision, core=core))
    training = replace(recipe.training, epochs=epochs, seed=seed)
    return [event.train_loss for event in cw.fit(model, dataset, training) if isinstance(event, Epoch)]


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", nargs="+", default=["native/bf16", "torch/bf16"], help="CORE/PRECISION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--corpus", default="shakespeare")
    options = parser.parse_args()
    text = cw.read_corpus(options.corpus).text
    print(describe_machine())
    print(f"tutorial recipe, {options.units} units, {options.corpus}\n")
    print("| core | seed | " + " | ".join(f"epoch {i + 1}" for i in range(options.epochs)) + " |")
    print("|---|---" * 1 + "|---" * options.epochs + "|")
    last: dict[str, list[float]] = {name: [] for name in options.cores}
    for seed in options.seeds:
        for name in options.cores:
            core, _, kind = name.partition("/")
            precision = {"bf16": torch.bfloat16, "f32": torch.float32}[kind]
            curve = losses(core, precision, seed, options.epochs, options.units, text)
            last[name].append(curve[-1])
            print(f"| {name} | {seed} | " + " | ".join(f"{loss:.4f}" for loss in curve) + " |", flush=True)
    print()
    for name, found in last.items():
        spread = max(found) - min(found)
        print(f"{name}: last epoch {statistics.mean(found):.4f}, between seeds {spread:.4f}")


if __name__ == "__main__":
    main()
