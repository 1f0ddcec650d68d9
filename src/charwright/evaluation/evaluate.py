"""Evaluation of a model on a text: nats and bits per character."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.arguments import require
from charwright.data.carried import MOST_STREAMS, SHORTEST_STREAM, stream_bounds
from charwright.data.records import Records
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import CorpusError, UsageError, VocabularyError
from charwright.evaluation.evaluation import Evaluation, TargetNats
from charwright.evaluation.records import evaluate_records
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel

CHUNK = 128  # time steps per call, fewer if their logits exceed 16 MB; does not change the result
MOST_LOGITS = 2**22
FEWEST_BLOCKS = 16
SHORTEST_BLOCK = 16
MOST_NAME = 200


def evaluate(
    model: LanguageModel, vocabulary: Vocabulary, text: str | Records, protocol: str = "carried"
) -> Evaluation:
    """The loss of `model` on `text`, in the precision of its products.

    Protocols: `carried` is one pass with the state carried, in at most 64 contiguous streams of 1,000 ids or more;
    `windows-N` takes the complete windows of N ids, each from a zero state. Records are evaluated one by one: each
    costs its characters and its end, but not its label.

    A character outside the vocabulary costs -ln p([UNK]) + ln(1,114,112 - V), the cost of identifying it.

    Raises:
        VocabularyError: when the vocabulary is not that of the model.
        CorpusError: when the text is too short for the protocol, or the model has labels and the text has none.
        UsageError: when there is no such protocol, or the text is something else.
    """
    if not hasattr(model, "named_weights"):
        raise UsageError(f"evaluate takes a model and its Vocabulary, not {type(model).__name__} first")
    require(text, (str, Records), "a text to evaluate is a str or Records", "pass its text")
    if isinstance(text, str) and _names_a_file(text):
        raise UsageError(f"{text} is the name of a file: read it first, as read_corpus({text!r}).text")
    return evaluate_in_memory(model, vocabulary, text, protocol)


def evaluate_in_memory(
    model: LanguageModel, vocabulary: Vocabulary, text: str | Records, protocol: str = "carried"
) -> Evaluation:
    """As `evaluate`, for a text that has been read: it may be the name of a file all the same."""
    check_fit(model, vocabulary)
    if isinstance(text, Records):
        if protocol not in ("carried", "records"):
            parse_protocol(protocol)
            raise UsageError(f"records are evaluated one by one; for {protocol}, evaluate the text itself")
        return evaluate_records(partial(target_nats, model), vocabulary, text)
    return evaluate_with(partial(target_nats, model), vocabulary, text, protocol)


def _names_a_file(text: str) -> bool:
    try:
        return len(text) <= MOST_NAME and Path(text).is_file()
    except OSError:  # It is too long for the system.
        return False


def check_fit(model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Check that a vocabulary has as many tokens as a model.

    Raises:
        VocabularyError: when it has not.
    """
    size = len(model.weight("head.bias"))
    if len(vocabulary) != size:
        raise VocabularyError(f"the vocabulary has {len(vocabulary):,} tokens, and the model {size:,}")


def evaluate_with(target_nats: TargetNats, vocabulary: Vocabulary, text: str, protocol: str = "carried") -> Evaluation:
    """The loss on `text` of a model or an engine (`Engine.target_nats`), by a protocol of `evaluate`.

    Raises:
        UsageError: when there is no such protocol.
        CorpusError: when the text is too short for it.
    """
    ids = vocabulary.encode(text)
    if len(text) < 2:  # One character may be several bytes, but none follows it.
        raise CorpusError("the text to evaluate has fewer than two characters")
    inputs, targets = _carried(ids) if protocol == "carried" else _windows(ids, protocol)
    # In the order of the text: stream after stream, window after window.
    nats = target_nats(inputs, targets).T[targets.T >= 0]
    return evaluation_of(nats, vocabulary, text, protocol)


def evaluation_of(nats: npt.NDArray[np.floating[Any]], vocabulary: Vocabulary, text: str, protocol: str) -> Evaluation:
    """The evaluation from -ln p (N,) of the N ids that follow the first id of `text`."""
    ids = vocabulary.encode(text)
    unknown = ids[1 : len(nats) + 1] == UNKNOWN_ID
    exact = nats.astype(np.float64) + unknown * vocabulary.unknown_nats
    # A byte-level text has fewer characters than ids; the predicted fraction is the same.
    chars = round(len(exact) * (len(text) - 1) / (len(ids) - 1))
    mean = float(exact.sum()) / chars
    blocks = _blocks(exact, vocabulary, text[: chars + 1])
    return Evaluation(mean, mean / math.log(2), chars, int(unknown.sum()), protocol, blocks)


def _blocks(nats: npt.NDArray[np.float64], vocabulary: Vocabulary, text: str) -> tuple[float, ...]:
    """The nats per character of each block of the text, whose first character is not predicted.

    Blocks are cut at characters, so that byte-level and character-level models have the same ones. With 16 streams or
    more, `carried` streams are the blocks.
    """
    cuts = block_cuts(len(text) - 1)
    ends = np.cumsum([len(vocabulary.encode(text[begin:end])) for begin, end in pairwise(cuts)]) - 1
    ends[-1] = len(nats)
    sums = np.diff(np.concatenate([[0.0], np.cumsum(nats)[np.minimum(ends, len(nats)) - 1]]))
    lengths = np.diff(cuts)
    lengths[0] -= 1
    return tuple((sums / lengths).tolist())


def block_cuts(chars: int) -> list[int]:
    """Where blocks begin in a text of which `chars` characters are predicted, and where the last one ends."""
    count = max(1, min(MOST_STREAMS, max(FEWEST_BLOCKS, chars // SHORTEST_STREAM), chars // SHORTEST_BLOCK))
    return [0, *(1 + chars * i // count for i in range(1, count + 1))]


def parse_protocol(protocol: str) -> int | None:
    """The N of `windows-N`, or None for `carried`.

    Raises:
        UsageError: for anything else.
    """
    if protocol == "carried":
        return None
    kind, _, number = protocol.partition("-")
    if kind != "windows" or not number.isdecimal() or len(number) > 9 or int(number) < 1:
        raise UsageError(
            "--protocol must be carried, windows-N (windows-256, say), or records for a text in records, "
            f"not {protocol!r}"
        )
    return int(number)


def _carried(ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets (T, B) in streams of nearly equal length; a target of -1 is ignored."""
    bounds = stream_bounds(len(ids) - 1)
    streams, length = len(bounds) - 1, max(np.diff(bounds))
    inputs = np.zeros((streams, length), dtype=np.int64)
    targets = np.full((streams, length), -1, dtype=np.int64)
    for row, (begin, end) in enumerate(pairwise(bounds)):
        inputs[row, : end - begin] = ids[begin:end]
        targets[row, : end - begin] = ids[begin + 1 : end + 1]
    return inputs.T, targets.T


def _windows(ids: npt.NDArray[np.int32], protocol: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets (N, windows)."""
    length = parse_protocol(protocol) or 1
    count = (len(ids) - 1) // length
    if count < 1:
        raise CorpusError(f"the text has {len(ids):,} ids, too few for one window of {length}")
    inputs = ids[: count * length].reshape(count, length)
    targets = ids[1 : count * length + 1].reshape(count, length)
    return inputs.T.astype(np.int64), targets.T.astype(np.int64)


def target_nats(
    model: LanguageModel, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """-ln p of all targets (T, B), 0 for negative ones; 64 columns and one chunk of time per call."""
    nats = np.empty(targets.shape, dtype=np.float32)
    for column in range(0, inputs.shape[1], MOST_STREAMS):
        columns = slice(column, column + MOST_STREAMS)
        nats[:, columns], _ = continued_nats(model, inputs[:, columns], targets[:, columns], None)
    return nats


@torch.no_grad()
def continued_nats(
    model: LanguageModel, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], state: State | None
) -> tuple[npt.NDArray[np.float32], State | None]:
    """-ln p of targets (T, B), 0 for negative ones, after a state (None is zero), and the state after the inputs."""
    device = model.weight("head.bias").device
    was_training = model.training
    model.eval()
    nats = np.empty(targets.shape, dtype=np.float32)
    chunk = max(1, min(CHUNK, MOST_LOGITS // (MOST_STREAMS * model.vocabulary_size)))
    try:
        for begin in range(0, len(inputs), chunk):
            piece = slice(begin, begin + chunk)
            x, y = _tensor(inputs[piece], device), _tensor(targets[piece], device)
            logits, state = model(x, state)
            losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
            nats[piece] = losses.view(y.shape).cpu().numpy()
    finally:
        model.train(was_training)
    return nats, state


def _tensor(array: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
