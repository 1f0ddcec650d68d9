"""Trials of sets of n-gram lengths, recorded in ngram_orders.jsonl; the library has all of them from 2 on.

    python experiments/ngram_orders.py --orders 3,5,7 --corpus docs-2m --minutes 0.25 units=256 ngram_bits=22

runs one trial of sweep.py with n-grams of these lengths and no others, and adds its line to the ledger. The multipliers
of the first trials there were other random numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from charwright.model import language_model
from charwright.model.votes import offsets_of
from sweep import run_trial, value_of

LEDGER = Path(__file__).with_name("ngram_orders.jsonl")


@contextmanager
def only_orders(orders: Sequence[int]) -> Iterator[None]:
    """Within the block models use n-grams of these lengths; their option is the longest."""
    rows = [order - 2 for order in orders]

    def some_offsets(contexts: Tensor, bits: int) -> Tensor:
        return offsets_of(contexts, bits)[rows]

    before, language_model.offsets_of = language_model.offsets_of, some_offsets
    try:
        yield
    finally:
        language_model.offsets_of = before


def main() -> None:
    """Run a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", required=True, help="lengths of n-grams, separated by commas")
    parser.add_argument("--corpus", required=True, help="a name from corpora.py")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    orders = [int(order) for order in asked.orders.split(",")]
    options = {name: value_of(value) for name, _, value in (item.partition("=") for item in asked.options)}
    with only_orders(orders):
        line = run_trial(asked.corpus, asked.minutes, options | {"ngram_order": max(orders)}).line | {"orders": orders}
    with asked.ledger.open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
