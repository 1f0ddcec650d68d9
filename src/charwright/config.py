"""The options of texts, models, training and generation: the name, default, bounds and help text of each.

The command line, the run folder and the Python interface all read these dataclasses. A field made with
`option()` becomes the flag `--field-name`; its help text is the flag's help text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from charwright.errors import ConfigError
from charwright.passages import parse_until
from charwright.schema import (
    LARGEST,
    Config,
    field_names,
    flag,
    option,
    option_types,
    random_seed,
    refuse_unknown,
    with_old_name,
)


@dataclass(frozen=True)
class CorpusConfig(Config):
    """How files are decoded."""

    encoding: str = option("utf-8", "Text encoding.")
    errors: str = option(
        "strict",
        "What is not text in this encoding: an error, or replaced by U+FFFD, also NUL bytes.",
        choices=("strict", "replace"),
    )
    newlines: str = option("lf", "Convert CRLF and CR to LF, or keep them.", choices=("lf", "keep"))
    normalize: str = option("none", "Unicode normalization form.", choices=("none", "nfc", "nfd", "nfkc", "nfkd"))
    glob: str = option("*", "Glob pattern for the files of a folder.")

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON; without `errors` where it changes nothing, for earlier versions to read."""
        return {name: value for name, value in super().to_json().items() if (name, value) != ("errors", "strict")}


@dataclass(frozen=True)
class VocabularyConfig(Config):
    """What one token is: a character or a byte."""

    RENAMED = {"unit": "level"}  # noqa: RUF012 (a class variable of the base)

    level: str = option("character", "Token level: characters or UTF-8 bytes.", choices=("character", "byte"))
    min_count: int = option(1, "Map characters that occur less often than this to [UNK].", minimum=1)


@dataclass(frozen=True)
class SplitConfig(Config):
    """Which part of the text is held out for validation."""

    val_fraction: float = option(
        0.1, "Fraction of the text held out for validation; 0 trains on all of it.", minimum=0, maximum=0.5
    )
    val_limit: int | None = option(
        200_000, "Maximum number of validation characters.", minimum=2, maximum=LARGEST, none_word="none"
    )
    val_split: str = option(
        "lines", "Hold out 20 blocks of lines or of characters, or the tail.", choices=("lines", "blocks", "tail")
    )


@dataclass(frozen=True)
class RecordsConfig(Config):
    """Whether the text is a list of records: what ends each of them, and what names its kind."""

    records: str = option(
        "none",
        "What ends a record, if the text is a list: line, blank (a blank line), a TEXT, or a /REGEX/; or none.",
    )
    label: str | None = option(
        None,
        "Column of the label of each record: first or last. Tabs divide the columns.",
        choices=("first", "last"),
    )

    def __post_init__(self) -> None:
        """Check the bounds, that the expression is one, and that only a record has a label."""
        super().__post_init__()
        if not self.records:
            raise ConfigError("--records must not be empty")
        if (expression := self.expression) is not None:
            try:
                empty = re.compile(expression).match("")
            except (re.error, OverflowError, RecursionError) as error:
                raise ConfigError(f"--records {self.records} is not a regular expression: {error}") from error
            if empty:
                raise ConfigError(f"--records {self.records} matches nothing at all, and so ends no record")
        if self.label is not None and self.records == "none":
            raise ConfigError(
                f"--label {self.label} is a column of records, and running text has none; add --records line (or "
                "blank, TEXT, /REGEX/)"
            )

    @property
    def expression(self) -> str | None:
        """The regular expression between the slashes; None for what is not one."""
        slashes = len(self.records) > 2 and self.records[0] == self.records[-1] == "/"
        return self.records[1:-1] if slashes else None


@dataclass(frozen=True)
class SequenceConfig(Config):
    """How token ids are batched."""

    order: str = option(
        "streams",
        "Streams that carry the hidden state across batches, streams of shuffled excerpts, or shuffled windows.",
        choices=("streams", "excerpts", "windows"),
    )
    batch: int = option(32, "Sequences per batch.", minimum=1, maximum=65536)
    seq_length: int = option(64, "Characters per sequence.", minimum=1, maximum=65536)


GATES = {"gru": 3, "igru": 3, "lstm": 4, "rnn": 1}
PRODUCTS = {"gru": 3, "igru": 2, "lstm": 4, "rnn": 1}
"""Gates that read the state too; the reset gate of an igru, its first gate, reads the input alone."""
GRUS = ("gru", "igru")
"""The cells with a bias inside the product of the candidate."""
STATES = {"gru": 1, "igru": 1, "lstm": 2, "rnn": 1}
"""Arrays in the state of a layer: h, or h and c."""


@dataclass(frozen=True)
class ModelConfig(Config):
    """The network: cell, layers, sizes and dropout."""

    RENAMED = {"embedding": "embedding_size", "state_dropout": "recurrent_dropout"}  # noqa: RUF012
    REMOVED = frozenset({"weight_dropout"})

    cell: str = option(
        "gru", "Recurrent cell; igru is a GRU whose reset gate reads the input alone.", choices=tuple(GATES)
    )
    layers: int = option(1, "Number of recurrent layers.", minimum=1, maximum=32)
    units: int = option(512, "Hidden units per recurrent layer.", minimum=1, maximum=16384)
    embedding_size: int = option(128, "Embedding size.", minimum=1, maximum=16384)
    dropout: float = option(
        0.0, "Dropout rate on the outputs of each recurrent layer, one mask per sequence.", minimum=0, below=1
    )
    recurrent_dropout: float = option(
        0.0, "Dropout rate on the hidden state inside the recurrent product, one mask per sequence.", minimum=0, below=1
    )
    ngram_bits: int = option(
        0, "Hashed n-grams of the last tokens that add to the logits: an array of 2^N numbers; 0 is none.",
        minimum=0, maximum=28,
    )  # fmt: skip
    ngram_order: int = option(
        4, "Tokens in the longest n-gram: the last 2, the last 3 and so on, up to the last N.", minimum=2, maximum=8
    )
    multiplicative: bool = option(
        False, "Multiplicative layer: each token scales the hidden state inside the first layer's recurrent product."
    )
    tied: bool = option(False, "Tie the output weights to the embedding (requires embedding size = units).")

    def __post_init__(self) -> None:
        """Check the bounds, and that a tied embedding is as wide as the hidden state."""
        super().__post_init__()
        if self.tied and self.embedding_size != self.units:
            raise ConfigError(
                f"--tied requires --embedding-size and --units to be equal, not {self.embedding_size} and {self.units}"
            )

    def weight_shapes(self, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight, in order, as `model.safetensors` holds them.

        V is the vocabulary size, E the embedding size, H the number of units and G the number of gates, which are
        stacked (GRU: r, z, n; LSTM: i, f, g, o). P of them read the state too: all, but r of an igru.
        """
        gates, products = GATES[self.cell] * self.units, PRODUCTS[self.cell] * self.units
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary_size, self.embedding_size)}  # (V, E)
        for layer in range(self.layers):
            shapes[f"recurrent.{layer}.weight_ih"] = (gates, self.units if layer else self.embedding_size)  # (G * H, E)
            shapes[f"recurrent.{layer}.weight_hh"] = (products, self.units)  # (P * H, H)
            shapes[f"recurrent.{layer}.bias_ih"] = (gates,)
            if self.cell in GRUS:
                shapes[f"recurrent.{layer}.bias_hh"] = (products,)
        if self.multiplicative:
            shapes["recurrent.0.weight_mx"] = (self.units, self.embedding_size)  # (H, E)
        if not self.tied:
            shapes["head.weight"] = (vocabulary_size, self.units)  # (V, H)
        shapes["head.bias"] = (vocabulary_size,)
        if self.ngram_bits:
            shapes["ngrams.weight"] = ((1 << self.ngram_bits) + vocabulary_size,)
        return shapes


@dataclass(frozen=True)
class TrainingConfig(Config):
    """Budget, optimizer and logging. At most one of `epochs`, `steps` and `minutes` is set; `fit` needs one."""

    RENAMED = {"zero_state": "state_reset", "averaging": "ema"}  # noqa: RUF012

    epochs: int | None = option(None, "Train for this many passes over the text.", minimum=1, maximum=LARGEST)
    steps: int | None = option(None, "Train for this many batches.", minimum=1, maximum=LARGEST)
    minutes: float | None = option(None, "Train for this many minutes.", above=0, maximum=525600)
    target_loss: float | None = option(
        None, "Stop when the validation loss reaches this many nats per character.", above=0
    )
    patience: int | None = option(
        None,
        "Early stopping: stop after this many consecutive validations significantly worse than the best.",
        minimum=1,
        none_word="none",
    )
    optimizer: str = option("adamw", "Optimizer.", choices=("adam", "adamw", "cautious-adamw"))
    learning_rate: float = option(4e-3, "Peak learning rate.", above=0, maximum=1e4)
    schedule: str = option("cosine", "Learning rate over the budget.", choices=("constant", "cosine", "trapezoid"))
    warmup: int = option(
        20, "Warm-up steps: the learning rate rises to its peak; at most a tenth of --steps or --epochs.", minimum=0
    )
    beta1: float = option(0.9, "Adam: decay rate of the mean gradient.", minimum=0, below=1)
    beta2: float = option(0.98, "Adam: decay rate of the mean squared gradient.", minimum=0, below=1)
    epsilon: float = option(1e-8, "Adam: term added to the denominator.", above=0, maximum=1)
    weight_decay: float = option(0.1, "Weight decay (adamw and cautious-adamw).", minimum=0, maximum=1e3)
    ngram_rate: float = option(
        0.03, "Peak learning rate of the n-grams, per prediction (plain SGD).", above=0, maximum=10
    )
    ngram_decay: float = option(
        0.0,
        "Weight decay of the n-grams, per prediction: with K divided by the tokens of the text, what occurs fewer than"
        " K times hardly counts.",
        minimum=0,
        maximum=1,
    )
    clip_norm: float | None = option(1.0, "Clip the gradients to this norm.", above=0, none_word="none")
    state_reset: float = option(
        0.02,
        "State reset probability: how often a stream starts a batch from a zero state, as a prompt does.",
        minimum=0,
        maximum=1,
    )
    embedding_range: float = option(
        0.5, "Initialize the embedding uniformly between minus this value and this value.", above=0, maximum=100
    )
    output_bias: str = option(
        "zeros",
        "Initial bias of the output layer: zeros, or the logarithms of the characters' frequencies in the text.",
        choices=("zeros", "frequencies"),
    )
    ema: float = option(
        0.1, "EMA window, as a fraction of the steps so far; 0 uses the last weights.", minimum=0, maximum=1
    )
    written: int | None = option(
        None, "Tokens that teachers write for the model to read; auto is 300,000, or fewer in less than two minutes.",
        minimum=0, none_word="auto",
    )  # fmt: skip
    precision: str = option(
        "auto",
        "Precision of the matrix products; auto selects bf16 where it is faster.",
        choices=("auto", "f32", "bf16"),
    )
    seed: int = random_seed(1, "Random seed for weights, batch order and dropout.")
    log_every: int = option(10, "Steps between entries in log.jsonl.", minimum=1)
    checkpoint_minutes: float = option(10.0, "Minutes between checkpoints within an epoch.", above=0)
    keep_checkpoints: int | None = option(2, "Number of checkpoints to keep, or all.", minimum=1, none_word="all")

    def __post_init__(self) -> None:
        """Check the bounds, and that at most one budget is set."""
        super().__post_init__()
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"one budget at a time: {flag(given[0])} or {flag(given[1])}, not both")


BUDGETS = ("epochs", "steps", "minutes")


@dataclass(frozen=True)
class GenerationConfig(Config):
    """How text is sampled from the model."""

    length: int = option(1000, "Number of characters to generate.", minimum=1, maximum=LARGEST)
    temperature: float = option(
        0.8,
        "Sampling temperature: lower is more predictable, higher more diverse; 0 is greedy.",
        minimum=0,
        maximum=100,
    )
    top_k: int | None = option(None, "Sample from the K most likely characters only.", minimum=1, maximum=2**31 - 1)
    top_p: float | None = option(
        None,
        "Nucleus sampling: sample from the most likely characters whose probabilities add up to this.",
        above=0,
        maximum=1,
    )
    min_p: float | None = option(
        None, "Sample from characters with at least this fraction of the highest probability.", minimum=0, maximum=1
    )
    repetition_penalty: float = option(
        1.0,
        "Divide the probability of continuing a repeated passage by this, once per character from the 8th on.",
        minimum=1,
        maximum=1000,
    )
    ban: str = option("", "Never generate these characters.")
    only: str | None = option(None, "Generate these characters only.")
    stop: tuple[str, ...] = option((), "Stop before this text; repeatable.")
    until: str | None = option(
        None, "Stop at the end of a word, line, sentence or paragraph (a blank line), or of several: line, '3 words'."
    )
    max_copy: int | None = option(
        None,
        "Most consecutive characters to copy from the training text, as long as others are possible.",
        minimum=1,
        maximum=1000,
    )
    num: int = option(1, "Number of texts to generate from the prompt.", minimum=1, maximum=65536)
    seed: int | None = random_seed(None, "Random seed; the same seed gives the same text.")

    def __post_init__(self) -> None:
        """Check the bounds and the form of `until`."""
        super().__post_init__()
        if self.until is not None and parse_until(self.until) is None:
            raise ConfigError(
                f"--until must be word, line, paragraph or sentence, or some ('3 sentences'), not {self.until!r}"
            )


@dataclass(frozen=True)
class Recipe(Config):
    """Every option that affects a training run, in six parts."""

    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sequences: SequenceConfig = field(default_factory=SequenceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Check that the parts fit: records are read in streams. Each part has checked itself."""
        if self.records.records != "none" and self.sequences.order == "windows":
            raise ConfigError("--records reads in streams: add --order streams, or remove --records")

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON; without later options that change nothing, for earlier versions to read."""
        values = super().to_json()
        if self.records == RecordsConfig():
            del values["records"]
        for part, name in LATER:
            if values[part][name] == getattr(type(getattr(self, part)), name):
                del values[part][name]
        return values

    @classmethod
    def from_json(cls, values: Any, where: str) -> Self:
        """Read what `to_json` wrote, part by part."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} must be an object, not {type(values).__name__}")
        parts: dict[str, Any] = {name: kind for name, (kind, _) in option_types(cls).items()}
        if unknown := sorted(set(values) - set(parts)):
            raise ConfigError(f"{where} has the unknown key {unknown[0]!r}; it may come from a later version")
        return cls(**{name: kind.from_json(values.get(name, {}), f"{where}: {name}") for name, kind in parts.items()})

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """The recipe with some options replaced, by field name; a new budget replaces the previous one.

        Raises:
            ConfigError: for an unknown name, a value out of bounds or two budgets.
        """
        changes = {RENAMED.get(name, name): value for name, value in options.items()}
        if any(changes.get(name) is not None for name in BUDGETS):
            changes = dict.fromkeys(BUDGETS) | changes
        parts = {}
        for item in fields(self):
            part = getattr(self, item.name)
            own = set(field_names(type(part)))
            try:
                parts[item.name] = dataclasses.replace(part, **{k: changes.pop(k) for k in own & set(changes)})
            except ConfigError as error:
                raise ConfigError(with_old_name(error.for_shell, options, RENAMED, RECIPE_OPTIONS)) from error
        refuse_unknown(changes, RECIPE_OPTIONS)
        return type(self)(**parts)


RECIPE_OPTIONS = tuple(field_names(*(kind for kind, _ in option_types(Recipe).values())))
"""The names of all options of a recipe."""

RENAMED: Mapping[str, str] = {
    old: new for config in (VocabularyConfig, ModelConfig, TrainingConfig) for old, new in config.RENAMED.items()
}
"""Option names of the previous version and their present names."""

LATER = (
    *(("model", name) for name in ("ngram_bits", "ngram_order", "multiplicative")),
    *(("training", name) for name in ("ngram_rate", "ngram_decay", "output_bias", "written")),
)
"""Options that earlier versions do not know; their defaults are what those versions do."""
