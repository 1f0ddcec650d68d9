"""Every option: its name, default, bounds and help text, once.

The command line, the run folder and the Python interface all read these dataclasses. A field made with
`option()` becomes the flag `--field-name`; its help text is the flag's help text.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from charwright.errors import ConfigError


def option(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    none_word: str | None = None,
) -> Any:
    """Make a dataclass field that knows its bounds and its help text.

    `minimum` and `maximum` belong to the allowed range, `above` and `below` do not. `none_word` is what a person
    types for None (`--keep-checkpoints all`).
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return field(
        default=default,
        metadata={"help": help_text, "choices": choices, "none_word": none_word, **bounds},
    )


def flag(name: str) -> str:
    """The command line's spelling of a field name."""
    return "--" + name.replace("_", "-")


def _kind(annotation: Any) -> tuple[type, bool]:
    """The plain type behind `int`, `float | None`, `tuple[str, ...]` and so on, and whether None is allowed."""
    if isinstance(annotation, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        return inner[0], True
    return typing.get_origin(annotation) or annotation, False


def option_types(cls: type) -> dict[str, tuple[type, bool]]:
    """For each field of a config class: its plain type, and whether None is allowed."""
    hints = typing.get_type_hints(cls)
    return {item.name: _kind(hints[item.name]) for item in fields(cls)}


def _complaint(value: Any, kind: type, metadata: Mapping[str, Any]) -> str | None:
    """Why `value` cannot be, or None when it can."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if kind is tuple:
        right = isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
        return None if right else "must be a tuple of texts, none of them empty"
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return f"must be {'a number' if kind in (int, float) else kind.__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if (choices := metadata.get("choices")) and value not in choices:
        return f"must be one of {', '.join(choices)}"
    if (low := metadata.get("minimum")) is not None and value < low:
        return f"must be at least {low:g}"
    if (high := metadata.get("maximum")) is not None and value > high:
        return f"must be at most {high:g}"
    if (low := metadata.get("above")) is not None and value <= low:
        return f"must be above {low:g}"
    if (high := metadata.get("below")) is not None and value >= high:
        return f"must be below {high:g}"
    return None


class Config:
    """What the config dataclasses share: checking, and the way to and from plain JSON values."""

    def __post_init__(self) -> None:
        """Check every field against its type and bounds.

        Raises:
            ConfigError: naming the flag, what is wrong with it and what it was.
        """
        kinds = option_types(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            kind, optional = kinds[item.name]
            if value is None and optional:
                continue
            if complaint := _complaint(value, kind, item.metadata):
                raise ConfigError(f"{flag(item.name)} {complaint}, not {value!r}")
            if kind is float:
                object.__setattr__(self, item.name, float(value))

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, values: Any, where: str) -> Self:
        """Read what `to_json` wrote; `where` names the place in messages.

        A key that is missing takes its default, so that older files stay readable.

        Raises:
            ConfigError: at a key that this class does not have, or a value out of bounds.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} must be an object, not {type(values).__name__}")
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{where} has the unknown key {unknown[0]!r}; it may come from a later version")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


@dataclass(frozen=True)
class CorpusConfig(Config):
    """How files become text."""

    encoding: str = option("utf-8", "Encoding of the texts; decoding is strict.")
    newlines: str = option("lf", "Turn CRLF and CR into LF, or keep them.", choices=("lf", "keep"))
    normalize: str = option(
        "none", "Unicode normalization of the texts.", choices=("none", "nfc", "nfd", "nfkc", "nfkd")
    )
    glob: str = option("*", "Which files of a folder to read, by name.")


@dataclass(frozen=True)
class VocabularyConfig(Config):
    """What one token is."""

    unit: str = option("character", "What one token is.", choices=("character", "byte"))
    min_count: int = option(1, "Characters that occur less often than this become [UNK].", minimum=1)


@dataclass(frozen=True)
class SplitConfig(Config):
    """Which part of the text is kept for validation."""

    val_fraction: float = option(
        0.1, "Share of the text kept for validation; 0 trains on all of it.", minimum=0, maximum=0.5
    )
    val_limit: int | None = option(
        200_000, "Characters kept for validation at most; the rest is trained on.", minimum=2, none_word="none"
    )
    val_split: str = option(
        "blocks",
        "Where the validation text lies: in 20 blocks spread evenly, or at the tail.",
        choices=("blocks", "tail"),
    )


@dataclass(frozen=True)
class SequenceConfig(Config):
    """How ids become batches."""

    order: str = option(
        "streams",
        "Shuffled windows that each start from a zero state, or contiguous streams that carry it on.",
        choices=("streams", "windows"),
    )
    batch: int = option(32, "Sequences in a batch.", minimum=1, maximum=65536)
    seq_length: int = option(64, "Characters in a sequence.", minimum=1, maximum=65536)


GATES = {"gru": 3, "lstm": 4, "rnn": 1}
STATES = {"gru": 1, "lstm": 2, "rnn": 1}
"""How many arrays a layer's state is: h, or h and c."""


@dataclass(frozen=True)
class ModelConfig(Config):
    """The shape of the network."""

    cell: str = option("gru", "The recurrent cell.", choices=("gru", "lstm", "rnn"))
    layers: int = option(1, "Recurrent layers.", minimum=1, maximum=32)
    units: int = option(512, "Units in each recurrent layer.", minimum=1, maximum=16384)
    embedding: int = option(128, "Numbers that stand for one character at the input.", minimum=1, maximum=16384)
    dropout: float = option(
        0.0, "Share of each recurrent layer's outputs that is silenced, for a whole sequence.", minimum=0, below=1
    )
    state_dropout: float = option(
        0.0,
        "Share of the state that is silenced inside the recurrent product, for a whole sequence.",
        minimum=0,
        below=1,
    )
    weight_dropout: float = option(
        0.0, "Share of the recurrent weights that is silenced, for a whole batch.", minimum=0, below=1
    )
    tied: bool = option(False, "Use the embedding as the head's weights too (needs embedding = units).")

    def __post_init__(self) -> None:
        """Check the bounds, and that a tied embedding has the width of the units."""
        super().__post_init__()
        if self.tied and self.embedding != self.units:
            raise ConfigError(
                f"--tied needs --embedding and --units to be equal, not {self.embedding} and {self.units}"
            )

    def weight_shapes(self, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight of such a network, in order: what `model.safetensors` holds.

        V is the vocabulary's size, E the embedding, H the units, G the gates, which lie one below the other
        (GRU: r, z, n; LSTM: i, f, g, o).
        """
        gates = GATES[self.cell] * self.units
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary_size, self.embedding)}  # (V, E)
        for layer in range(self.layers):
            shapes[f"recurrent.{layer}.weight_ih"] = (gates, self.units if layer else self.embedding)  # (G * H, E)
            shapes[f"recurrent.{layer}.weight_hh"] = (gates, self.units)  # (G * H, H)
            shapes[f"recurrent.{layer}.bias_ih"] = (gates,)
            if self.cell == "gru":
                shapes[f"recurrent.{layer}.bias_hh"] = (gates,)
        if not self.tied:
            shapes["head.weight"] = (vocabulary_size, self.units)  # (V, H)
        shapes["head.bias"] = (vocabulary_size,)
        return shapes


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How the weights are found. Exactly one of `epochs`, `steps` and `minutes` is the budget."""

    epochs: int | None = option(None, "Train for so many passes over the text.", minimum=1)
    steps: int | None = option(None, "Train for so many batches.", minimum=1)
    minutes: float | None = option(None, "Train for so many minutes.", above=0, maximum=525600)
    target_loss: float | None = option(
        None, "Stop as soon as the validation loss is no more than so many nats per character.", above=0
    )
    patience: int | None = option(
        None,
        "Stop when so many validations in a row are worse than the best one by more than their noise.",
        minimum=1,
        none_word="none",
    )
    optimizer: str = option("adamw", "The optimizer.", choices=("adam", "adamw"))
    learning_rate: float = option(4e-3, "The highest learning rate.", above=0, maximum=1e4)
    schedule: str = option("cosine", "How the learning rate goes over the budget.", choices=("constant", "cosine"))
    warmup: int = option(20, "Steps in which the learning rate rises to its highest; 0 begins with it.", minimum=0)
    beta1: float = option(0.9, "Decay of Adam's mean of the gradients.", minimum=0, below=1)
    beta2: float = option(0.98, "Decay of Adam's mean of their squares.", minimum=0, below=1)
    epsilon: float = option(1e-8, "What keeps Adam from dividing by zero.", above=0, maximum=1)
    weight_decay: float = option(0.1, "Decay of the weights, for adamw.", minimum=0, maximum=1e3)
    clip_norm: float | None = option(
        1.0, "Scale the gradients down to this norm when theirs is larger.", above=0, none_word="none"
    )
    zero_state: float = option(
        0.02,
        "Share of the streams that begin each batch from a zero state, as a prompt does.",
        minimum=0,
        maximum=1,
    )
    embedding_range: float = option(
        0.5, "The embedding begins with numbers between this and its negative.", above=0, maximum=100
    )
    averaging: float = option(
        0.1,
        "Share of the steps so far that the weights to use are a mean of; 0 uses the last ones.",
        minimum=0,
        maximum=1,
    )
    precision: str = option(
        "auto",
        "Arithmetic of the matrix products; auto takes bf16 where the machine is good at it.",
        choices=("auto", "f32", "bf16"),
    )
    seed: int = option(1, "Seed of the weights, the order of the text and the dropout.", minimum=0, maximum=2**63 - 1)
    log_every: int = option(10, "Steps between two lines of log.jsonl.", minimum=1)
    checkpoint_minutes: float = option(10.0, "Minutes between two checkpoints inside an epoch.", above=0)
    keep_checkpoints: int | None = option(2, "Checkpoints to keep: a number, or all.", minimum=1, none_word="all")

    def __post_init__(self) -> None:
        """Check the bounds, and that there is one budget and not two."""
        super().__post_init__()
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"one budget at a time: {flag(given[0])} or {flag(given[1])}, not both")


BUDGETS = ("epochs", "steps", "minutes")


@dataclass(frozen=True)
class GenerationConfig(Config):
    """How text is drawn from the model's probabilities."""

    length: int = option(1000, "Characters to write.", minimum=1)
    temperature: float = option(
        0.8, "Below 1 likelier, above 1 bolder, 0 always the likeliest character.", minimum=0, maximum=100
    )
    top_k: int | None = option(None, "Draw from the K likeliest characters only.", minimum=1)
    top_p: float | None = option(
        None, "Draw from the likeliest characters that together have this probability.", above=0, maximum=1
    )
    min_p: float | None = option(
        None, "Draw from characters that have this share of the likeliest one's probability.", above=0, maximum=1
    )
    repetition_penalty: float = option(
        1.0,
        "Divide the probability of going on to repeat a passage of 8 characters or more by this, once for each of them"
        " from the 8th on.",
        minimum=1,
        maximum=1000,
    )
    ban: str = option("", "Never write these characters.")
    only: str | None = option(None, "Write these characters alone.")
    stop: tuple[str, ...] = option((), "End where this text would come; may be given several times.")
    until: str | None = option(
        None, "End with a line, a paragraph or a sentence, or so many of them: line, paragraph, '3 sentences'."
    )
    max_copy: int | None = option(
        None, "Never copy more than so many characters in a row from the training text.", minimum=1, maximum=1000
    )
    num: int = option(1, "Texts to write from the prompt.", minimum=1, maximum=65536)
    seed: int | None = option(
        None, "Seed of the draws; the same seed gives the same text.", minimum=0, maximum=2**63 - 1
    )

    def __post_init__(self) -> None:
        """Check the bounds, and that `until` is something that can be waited for."""
        super().__post_init__()
        if self.until is not None and parse_until(self.until) is None:
            raise ConfigError(
                f"--until must be line, paragraph or sentence, or a number of them ('3 sentences'), not {self.until!r}"
            )


def parse_until(until: str) -> tuple[str, int] | None:
    """The unit and how many, of `line`, `paragraph`, `sentence`, `3 sentences`; None when it is none of them."""
    words = until.split()
    counted = len(words) == 2 and words[0].isdecimal() and len(words[0]) < 10
    count = int(words.pop(0)) if counted else 1
    kinds = {"line": "line", "lines": "line", "paragraph": "paragraph", "paragraphs": "paragraph"}
    kinds |= {"sentence": "sentence", "sentences": "sentence"}
    return (kinds[words[0]], count) if len(words) == 1 and words[0] in kinds and count > 0 else None


@dataclass(frozen=True)
class Recipe(Config):
    """Everything that shapes a training run, in five parts."""

    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sequences: SequenceConfig = field(default_factory=SequenceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """The parts have checked themselves."""

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
        """The recipe with some options replaced, by field name; a new budget replaces the old one.

        Raises:
            ConfigError: when a name is unknown, a value out of bounds, or two budgets are given.
        """
        changes = dict(options)
        if any(changes.get(name) is not None for name in BUDGETS):
            changes = dict.fromkeys(BUDGETS) | changes
        parts = {}
        for item in fields(self):
            part = getattr(self, item.name)
            names = {inner.name for inner in fields(part)}
            parts[item.name] = dataclasses.replace(part, **{k: changes.pop(k) for k in names & set(changes)})
        if changes:
            raise ConfigError(f"there is no option {flag(next(iter(changes)))}")
        return type(self)(**parts)
