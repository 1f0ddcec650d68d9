"""Generation speed in characters per second: charwright in each precision, and TensorFlow's and PyTorch's loops.

    python benchmarks/generation.py --tensorflow             # all parts; installs TensorFlow in .peers/ the first time
    python benchmarks/generation.py                          # PyTorch as the only peer
    python benchmarks/generation.py --only tutorial process  # some of the parts
    python benchmarks/generation.py --run runs/shakespeare   # a run's weights instead of random ones
    python benchmarks/generation.py --quick --tensorflow     # a smoke test; its figures are meaningless

All sides generate with the same weights, from the same prompt, at the same temperature, in float32 unless their name
says otherwise; their logits are compared before anything is measured. They take turns, A B C A B C, in one run; a ratio
is the median of the rounds' ratios, with minimum and maximum. Each peer runs in its own process, and ours does not load
PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.generation.generator import Generator
from charwright.run import Run
from machine import TENSORFLOW, describe_machine, ratio_and_spread, take_turns, tensorflow_python

Array = npt.NDArray[np.float32]

HERE = Path(__file__).parent
PRECISIONS = ("f32", "bf16", "q8")
STREAMS = (1, 64)
WEIGHTS_SEED, DRAWS_SEED = 1, 1
TEMPERATURE = 0.8
PROMPT = "ROMEO:"
AGREEMENT = 1e-4

# Standard deviations of random weights, before division by the square root of the number of inputs.
SCALES = {"embedding.weight": 1.0, "weight_ih": 1.5, "weight_hh": 1.0, "head.weight": 4.0}
SCALES |= {"bias_ih": 0.1, "bias_hh": 0.1, "head.bias": 0.1, "weight_mx": 0.5, "ngrams.weight": 0.1}

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

TUTORIAL = ModelConfig(cell="gru", units=1024, embedding_size=256)
GRU_512 = ModelConfig(cell="gru", units=512, embedding_size=128)
LSTM_512 = ModelConfig(cell="lstm", units=512, embedding_size=128)
TWO_LAYERS = ModelConfig(cell="gru", layers=2, units=256, embedding_size=128)


@dataclass(frozen=True)
class Model:
    """A network with its vocabulary."""

    config: ModelConfig
    weights: dict[str, Array]
    vocabulary: Vocabulary

    @property
    def name(self) -> str:
        """Its shape in words."""
        config = self.config
        layers = f"{config.layers} layers of " if config.layers > 1 else ""
        return f"{layers}{config.cell.upper()} {config.units}, vocabulary {len(self.vocabulary):,}"

    @property
    def prompt(self) -> str:
        """The tutorial's prompt, or the first characters that the vocabulary has."""
        return PROMPT if not self.vocabulary.unknown_in(PROMPT) else self.vocabulary.characters[: len(PROMPT)]

    @property
    def bytes(self) -> int:
        """The size of the weights in float32."""
        return sum(array.nbytes for array in self.weights.values())


def random_model(config: ModelConfig, vocabulary_size: int = 66) -> Model:
    """Random weights, scaled so that the text is neither a few repeated characters nor pure noise."""
    random = np.random.Generator(np.random.Philox(WEIGHTS_SEED))
    weights = {}
    for name, shape in config.weight_shapes(vocabulary_size).items():
        scale = SCALES[name.rpartition(".")[2] if name.startswith("recurrent.") else name]
        inputs = shape[1] if len(shape) == 2 and name != "embedding.weight" else 1
        weights[name] = random.normal(scale=scale / np.sqrt(inputs), size=shape).astype(np.float32)
    more = "".join(chr(0x4E00 + i) for i in range(vocabulary_size - 1 - len(SHAKESPEARE)))
    return Model(config, weights, Vocabulary(SHAKESPEARE + more))


def of_run(folder: Path) -> Model:
    """The model of a run, which must be one that the tutorial's program can load."""
    run = Run.open(folder)
    if (run.model.cell, run.model.layers, run.model.tied, run.vocabulary.level) != ("gru", 1, False, "character"):
        raise SystemExit(f"{folder}: the tutorial's model is one GRU layer with an untied head, over characters")
    return Model(run.model, run.weights(), run.vocabulary)


# Our side: every use of charwright's generator.


def our_generator(model: Model, precision: str, threads: int | None = None) -> Generator:
    """A generator that is ready to use."""
    return Generator(model.config, model.weights, model.vocabulary, precision=precision, threads=threads)


def our_texts(generator: Generator, prompt: str, streams: int, length: int, seed: int) -> list[str]:
    """The text of each stream."""
    texts = generator.generate(prompt, length=length, num=streams, temperature=TEMPERATURE, seed=seed)
    return [text.continuation for text in texts]


def our_logits(generator: Generator, ids: Sequence[int]) -> Array:
    """Logits (T, V) after each id, one step at a time."""
    state = generator.engine.zero_state(1)
    return np.stack([generator.engine.step(np.array([i]), state)[0] for i in ids])


def our_command(run: Path, length: int) -> list[str]:
    """The command that a user types."""
    return [str(Path(sys.executable).with_name("charwright")), "generate", str(run), "--length", str(length)]


def our_speed(generator: Generator, prompt: str, streams: int, length: int, seconds: float) -> float:
    """Characters per second of all streams together, over complete texts."""
    count, passes, began = 0, 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or passes == 0:
        count += sum(map(len, our_texts(generator, prompt, streams, length, DRAWS_SEED + passes)))
        passes += 1
    return count / spent


# The peers, each in its own process.


class Peer:
    """A peer's process, which answers requests."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=peer_environment(),
        )
        self.about = self._answer()

    def ask(self, what: str, **request: Any) -> Any:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **request}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._errors.seek(0)
        raise SystemExit("a peer ended:\n" + self._errors.read()[-2000:])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def peer_environment() -> dict[str, str]:
    """The environment of a peer: no log messages, CPU only."""
    return os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def peer_commands(tensorflow: Path | None) -> dict[str, list[str]]:
    """The commands of the available peers."""
    commands = {}
    if tensorflow is not None:
        commands["TensorFlow"] = [str(tensorflow_python(tensorflow)), str(HERE / "peer_generation_tensorflow.py")]
    if find_spec("torch"):
        commands["PyTorch"] = [sys.executable, str(HERE / "peer_generation_torch.py")]
    return commands


def write_for_peers(model: Model, folder: Path) -> None:
    """Write the files that a peer reads."""
    about = {
        "cell": model.config.cell,
        "layers": model.config.layers,
        "units": model.config.units,
        "embedding": model.config.embedding_size,
        "tokens": model.vocabulary.tokens,
        "prompt": model.prompt,
        "temperature": TEMPERATURE,
        "seed": DRAWS_SEED,
    }
    np.savez(folder / "weights.npz", **model.weights)  # type: ignore[arg-type]
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")


@contextmanager
def peers_for(model: Model, commands: Mapping[str, list[str]]) -> Iterator[dict[str, Peer]]:
    """Start the peers with a model, and stop them at the end."""
    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_for_peers(model, Path(folder))
        try:
            for name, command in commands.items():
                peers[name] = Peer(command, Path(folder))
            yield peers
        finally:
            for peer in peers.values():
                peer.close()


# Measuring.

Side = tuple[str, int]  # A name and a number of streams.
Speeds = dict[Side, list[float]]
Ratio = tuple[str, Callable[[Side], Side]]  # A column's title, and the side to divide by.


def check_agreement(model: Model, generators: Mapping[str, Generator], peers: Mapping[str, Peer]) -> None:
    """Compare the logits of all sides with those of our f32 engine; exit if a float32 side is a different model."""
    ids = model.vocabulary.encode(model.prompt + model.vocabulary.characters[:10]).tolist()
    wanted = our_logits(generators["f32"], ids)
    found = {f"charwright {name}": our_logits(one, ids) for name, one in generators.items() if name != "f32"}
    strict = {}
    for name, peer in peers.items():
        for way, logits in peer.ask("logits", ids=ids).items():
            strict[f"{name}'s {way}"] = np.array(logits)
    differences = {name: float(np.abs(logits - wanted).max()) for name, logits in (found | strict).items()}
    listed = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    text = our_texts(generators["f32"], model.prompt, 1, 1000, DRAWS_SEED)[0]
    print(f"Logits of {len(ids)} steps, largest {np.abs(wanted).max():.1f}, differences from charwright f32: {listed}.")
    groups = len({text[i : i + 4] for i in range(len(text) - 3)})
    print(f"1,000 characters of charwright f32 have {len(set(text))} different ones, and {groups} different 4-grams.")
    if wrong := [name for name in strict if not differences[name] <= AGREEMENT]:
        raise SystemExit(f"not the same model: {', '.join(wrong)}")


def compare(
    model: Model, options: argparse.Namespace, peer_streams: Mapping[str, Sequence[int]], streams: Sequence[int]
) -> Speeds:
    """Measure all precisions and the peers, with the given numbers of streams."""
    commands = {name: command for name, command in options.commands.items() if name in peer_streams}
    generators = {precision: our_generator(model, precision) for precision in PRECISIONS}
    sides: dict[Side, Callable[[float], float]] = {}

    def add_ours(precision: str, count: int) -> None:
        text = (model.prompt, count, length_for(count, options))
        sides[precision, count] = partial(our_speed, generators[precision], *text)

    def add_peer(name: str, peer: Peer, count: int) -> str:
        way = peer.ask("prepare", streams=count)
        length = length_for(count, options)
        sides[name, count] = lambda seconds: float(peer.ask("speed", streams=count, length=length, seconds=seconds))
        return f"{name} for {count}: {way}" if way else ""

    print(f"\n### {model.name}\n")
    with peers_for(model, commands) as peers:
        check_agreement(model, generators, peers)
        ways = []
        for count in sorted({*streams, *(one for counts in peer_streams.values() for one in counts)}):
            for precision in PRECISIONS if count in streams else ():
                add_ours(precision, count)
            ways += [add_peer(name, peer, count) for name, peer in peers.items() if count in peer_streams[name]]
        if any(ways):
            print(f"The faster implementation, used here: {', '.join(filter(None, ways))}.")
        return take_turns(sides, options.rounds, options.seconds)


def length_for(streams: int, options: argparse.Namespace) -> int:
    """Characters of each stream's text; fewer if there are several streams."""
    return options.length if streams == 1 else max(options.length // 4, 1)


def print_speeds(speeds: Speeds, ratios: Sequence[Ratio], targets: Mapping[int, str]) -> None:
    """Print a row for each side: its speed, its ratios to others, and its target."""
    print("\n| side | streams | characters/s | " + "".join(f"/ {title} | " for title, _ in ratios) + "target |")
    print("|---|---|---|" + "---|" * len(ratios) + "---|")
    for (name, streams), found in speeds.items():
        ours = name in PRECISIONS
        cells = [f"charwright {name}" if ours else name, str(streams), spread(found)]
        for _, against in ratios:
            other = speeds.get(against((name, streams))) if ours else None
            cells.append(times(ratio_and_spread(found, other)) if other else "")
        cells.append(targets.get(streams, "") if ours else "")
        print("| " + " | ".join(cells) + " |", flush=True)


def spread(found: Sequence[float], digits: int = 0) -> str:
    """The median, minimum and maximum."""
    return f"{statistics.median(found):,.{digits}f} ({min(found):,.{digits}f} to {max(found):,.{digits}f})"


def times(ratio: tuple[float, float, float]) -> str:
    """A ratio with minimum and maximum."""
    median, least, most = ratio
    return f"{median:.2f} ({least:.2f} to {most:.2f})"


def ratio_to(name: str) -> Ratio:
    """A column with the ratio to a peer with as many streams."""
    return f"{name}, as many streams", lambda side: (name, side[1])


# The parts.


def tutorial(options: argparse.Namespace) -> None:
    """The tutorial's model with 1 and 64 streams, and both peers."""
    speeds = compare(options.model, options, {"TensorFlow": (1, 5, 64), "PyTorch": STREAMS}, STREAMS)
    ratios: list[Ratio] = [("TensorFlow, 1 stream", lambda _: ("TensorFlow", 1))]
    ratios += [ratio_to("TensorFlow"), ratio_to("PyTorch")]
    config = options.model.config
    same_shape = (config.units, config.embedding_size) == (TUTORIAL.units, TUTORIAL.embedding_size)
    targets = {1: "20 x TensorFlow, 1 stream", 64: "40 x TensorFlow, 1 stream"} if same_shape else {}
    print_speeds(speeds, ratios, targets)


def gru_512(options: argparse.Namespace) -> None:
    """Half as many units, one stream."""
    speeds = compare(random_model(GRU_512), options, {"PyTorch": (1,)}, (1,))
    print_speeds(speeds, [ratio_to("PyTorch")], {1: "60,000 characters/s"})


def others(options: argparse.Namespace) -> None:
    """Other cells, layers and vocabularies, for information."""
    for model in (random_model(LSTM_512), random_model(TWO_LAYERS), random_model(GRU_512, 6000)):
        print_speeds(compare(model, options, {"PyTorch": STREAMS}, STREAMS), [ratio_to("PyTorch")], {})


def threads(options: argparse.Namespace) -> None:
    """All cores against one, charwright alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        print("\nOne core: no threads to compare.")
        return
    print(f"\n### {cores} threads against 1, charwright alone\n")
    print(f"| model | precision | streams | 1 thread, characters/s | {cores} threads, characters/s | ratio |")
    print("|---|---|---|---|---|---|")
    for model in (options.model, random_model(GRU_512)):
        for precision in PRECISIONS:
            generators = {count: our_generator(model, precision, count) for count in (1, cores)}
            for streams in STREAMS:
                settings = (model.prompt, streams, length_for(streams, options))
                sides = {
                    (str(count), streams): partial(our_speed, generators[count], *settings) for count in (1, cores)
                }
                one, all_cores = take_turns(sides, options.rounds, options.seconds).values()
                ratio = times(ratio_and_spread(all_cores, one))
                row = [model.name, precision, str(streams), spread(one), spread(all_cores), ratio]
                print("| " + " | ".join(row) + " |", flush=True)


def process(options: argparse.Namespace) -> None:
    """Whole processes, from start to exit, with the tutorial's model: what a user types, and the peers' scripts."""
    model, length = options.model, options.length
    print(f"\n### The whole process, {length:,} characters, {model.name}; charwright in q8, its default\n")
    with tempfile.TemporaryDirectory() as temporary:
        for_peers, run = Path(temporary, "peer"), options.run or Path(temporary, "run")
        for_peers.mkdir()
        write_for_peers(model, for_peers)
        if not options.run:
            Run.save(run, model.config, model.weights, model.vocabulary)
        commands = {"charwright": our_command(run, length)}
        for name, command in options.commands.items():
            commands[name] = [*command, str(for_peers), "--write", str(length)]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for turn in range(options.rounds + 1):
            for name, command in commands.items():
                measured = measure_process(command)
                if turn:  # The first one reads the files from disk.
                    found[name].append(measured)
    print("| process | wall, s | first character, s | peak memory, MB | wall, peer's / ours |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        wall, first, peak = ([one[key] for one in runs] for key in ("wall_s", "first_s", "peak_mb"))
        ours = [one["wall_s"] for one in found["charwright"]]
        ratio = times(ratio_and_spread(wall, ours)) if name != "charwright" else ""
        print(f"| {name} | {spread(wall, 2)} | {spread(first, 2)} | {spread(peak)} | {ratio} |")
    print(f"| target | under 0.6 | under 0.4 | under {100 + 2 * model.bytes / 1e6:.0f} | |", flush=True)


def measure_process(command: list[str]) -> dict[str, float]:
    """Run a command under `process.py`."""
    measuring = [sys.executable, "-I", "-S", str(HERE / "process.py"), *command]
    done = subprocess.run(measuring, capture_output=True, text=True, env=peer_environment(), check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "tutorial": tutorial,
    "gru-512": gru_512,
    "others": others,
    "process": process,
    "threads": threads,
}


def describe_sides(options: argparse.Namespace) -> None:
    """Print the versions and the settings."""
    versions = [f"Python {platform.python_version()}", f"numpy {np.__version__}"]
    with peers_for(options.model, options.commands) as peers:
        for name, peer in peers.items():
            versions.append(f"{name} {peer.about['version']} ({peer.about['threads']} threads)")
    print(describe_machine())
    print(", ".join(versions))
    weights = f"weights of {options.run}" if options.run else f"weights of seed {WEIGHTS_SEED}"
    print(
        f"{weights}, sampling seed {DRAWS_SEED}, temperature {TEMPERATURE}; texts of {options.length:,} characters "
        f"({length_for(2, options):,} with several streams), rounds: {options.rounds}, of "
        f"{options.seconds:g} s for each side"
    )
    if "TensorFlow" not in options.commands:
        print(f"Without TensorFlow: --tensorflow adds it, and installs {TENSORFLOW} in {options.peers} if needed.")
    if "PyTorch" not in options.commands:
        print("Without PyTorch: it is not installed.")


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per side and round")
    parser.add_argument("--length", type=int, default=1000, help="characters of a text")
    parser.add_argument("--run", type=Path, help="use the weights of a run instead of random ones")
    parser.add_argument("--tensorflow", action="store_true")
    parser.add_argument("--peers", type=Path, default=Path(".peers/tensorflow"), help="environment of TensorFlow")
    parser.add_argument("--quick", action="store_true", help="one short round of each, as a smoke test")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.length = 1, 0.01, 40
    options.model = of_run(options.run) if options.run else random_model(TUTORIAL)
    options.commands = peer_commands(options.peers if options.tensorflow else None)
    describe_sides(options)
    for name in options.only or PARTS:
        PARTS[name](options)


if __name__ == "__main__":
    main()
