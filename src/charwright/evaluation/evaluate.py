"""Evaluation of a model on a text: nats and bits per character."""

from __future__ import annotations

from pathlib import Path

from charwright.arguments import require
from charwright.data.mapped_text import MappedText
from charwright.data.records import Records
from charwright.data.texts import Text
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError, VocabularyError
from charwright.evaluation.evaluation import Evaluation
from charwright.evaluation.in_memory import evaluate_string
from charwright.evaluation.mapped import evaluate_mapped
from charwright.evaluation.protocols import parse_protocol
from charwright.evaluation.readers import ModelReader, Reader
from charwright.evaluation.records import evaluate_records
from charwright.model.language_model import LanguageModel

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
    check_fit(model, vocabulary)
    return evaluate_text(ModelReader(model), vocabulary, text, protocol)


def evaluate_text(reader: Reader, vocabulary: Vocabulary, text: Text, protocol: str = "carried") -> Evaluation:
    """The loss of a model, an engine or a group of ranks on a text in memory, on disk or in records.

    Protocols, costs and errors are those of `evaluate`; of a text on disk up to the rounding of sums.
    """
    if isinstance(text, Records):
        if protocol not in ("carried", "records"):
            parse_protocol(protocol)
            raise UsageError(f"records are evaluated one by one; for {protocol}, evaluate the text itself")
        return evaluate_records(reader.target_nats, vocabulary, text)
    if isinstance(text, MappedText):
        return evaluate_mapped(reader.continued_nats, vocabulary, text, protocol)
    return evaluate_string(reader.target_nats, vocabulary, text, protocol)


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
