"""Speed of the exported page in a browser: characters per second of `charwright export --to html` in Chromium.

    python benchmarks/page.py --chromium /usr/bin/chromium

The models have random weights and the size of those of tiny shakespeare: the speed does not depend on the text. The
page itself reports its speed, which does not include the time that the browser takes to display the text.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import expect, sync_playwright

import charwright as cw
from charwright.config import ModelConfig
from charwright.interop.html_export import page_bytes
from charwright.interop.model_card import model_card
from charwright.run import Run
from machine import describe_machine

CHARACTERS = "\n !$&',-.3:;?" + "".join(map(chr, [*range(65, 91), *range(97, 123)]))
MODELS = {
    "GRU 512": ModelConfig(units=512),
    "GRU 1024": ModelConfig(units=1024, embedding_size=256),
    "LSTM 512": ModelConfig(cell="lstm", units=512),
    "two layers of GRU 256": ModelConfig(layers=2, units=256),
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def write_page(folder: Path, config: ModelConfig) -> Path:
    vocabulary = cw.Vocabulary(CHARACTERS)
    random = np.random.Generator(np.random.Philox(1))
    shapes = config.weight_shapes(len(vocabulary))
    weights = {name: random.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    run = Run.save(folder / "run", config, weights, vocabulary)
    path = folder / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, cw.__version__)))
    return path


def speeds(browser: Any, path: Path, length: int, rounds: int) -> list[int]:
    page = browser.new_page()
    page.goto(path.as_uri())
    page.get_by_label("Characters").fill(str(length))
    found = []
    for seed in range(rounds + 1):
        page.get_by_label("Seed").fill(str(seed))
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("status")).to_contain_text("Done", timeout=120_000)
        said = re.search(r"([\d,]+) characters/s", page.get_by_role("status").inner_text())
        assert said is not None
        found.append(int(said[1].replace(",", "")))
    page.close()
    return found[1:]  # The first round warms up the browser.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--length", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=options.chromium, headless=True, args=FLAGS)
        print(f"{describe_machine()}; Chromium {browser.version}")
        print(f"{options.length:,} characters, {options.rounds} rounds: median (minimum to maximum)\n")
        print("| model | page | characters/s |\n|---|---|---|")
        for name, config in MODELS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = write_page(Path(folder), config)
                found = speeds(browser, path, options.length, options.rounds)
                spread = f"{statistics.median(found):,.0f} ({min(found):,} to {max(found):,})"
                print(f"| {name} | {path.stat().st_size / 1e6:.2f} MB | {spread} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
