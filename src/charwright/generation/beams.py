"""Beam search: the most likely text, instead of a sampled one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import UsageError
from charwright.generation.draft import incomplete
from charwright.generation.endings import Endings
from charwright.generation.engine import MOST_STEPS, Engine
from charwright.generation.masks import Mask
from charwright.generation.streams import Stream

Ids = npt.NDArray[np.int32]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """The result of a search: the text up to its end, why it ended, and ln p of each character.

    `mean` is ln p per character of everything generated, including the stop string: texts of different lengths are
    compared by it. `end_logprob` is ln p of the end of the record, if the text ended with it.
    """

    text: str
    ended: str
    stop: str | None
    logprobs: list[float]
    mean: float
    end_logprob: float | None = None


def _no_ids() -> Ids:
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class _Beam:
    """One of the most likely prefixes: its last id, and the beam before that."""

    endings: Endings
    before: _Beam | None = None
    token_id: int = UNKNOWN_ID
    logprob: float = 0.0
    total: float = 0.0
    characters: int = 0
    partial: Ids = field(default_factory=_no_ids)  # the bytes of an incomplete character

    def longer(self, vocabulary: Vocabulary, token_id: int, logprob: float, length: int) -> _Beam:
        """The beam extended by one id."""
        ids = np.append(self.partial, np.int32(token_id))
        piece, endings = vocabulary.decoder().feed_all(ids), self.endings
        if piece and endings.waiting:
            endings = copy.copy(endings)  # Other beams continue from here too.
            endings.feed(piece[: length - self.characters])
        characters = min(length, self.characters + len(piece))
        total = self.total + logprob
        return _Beam(endings, self, token_id, logprob, total, characters, incomplete(vocabulary, ids))

    def path(self) -> list[_Beam]:
        """The beam at each of its ids, from the first to the last."""
        path, beam = [], self
        while beam.before is not None:
            path.append(beam)
            beam = beam.before
        return path[::-1]


OF_SAMPLING = ("num", "max_copy", "repetition_penalty", "top_k", "top_p", "min_p")


def check_options(config: GenerationConfig, beams: int) -> None:
    """Check that a search has a beam, and no options of sampling but temperature and seed, which have defaults.

    Raises:
        UsageError: if not.
    """
    if beams < 1:
        raise UsageError(f"a search needs at least one beam, not {beams}")
    for name in OF_SAMPLING:
        if getattr(config, name) != getattr(GenerationConfig(), name):
            raise UsageError(f"beam search finds one text and does not sample; leave out {name}")


def beam_search(
    engine: Engine,
    vocabulary: Vocabulary,
    prompt: Ids,
    masked: Mask,
    *,
    beams: int,
    length: int,
    stop: tuple[str, ...] = (),
    until: str | None = None,
    record_end: str | None = None,
) -> Found:
    """Search for the most likely text of at most `length` characters after the prompt's ids.

    At each id the `beams` most likely prefixes are kept (Lowerre, 1976), one less for each that has ended. `masked`
    (V,) ids are not generated. Texts that end early, at a stop string or at `until`, are compared with the others by
    ln p per character: a longer one is always less likely. Records are compared by ln p of the whole, with the end.
    """
    state, logits = _read(engine, prompt)
    alive, done = [_Beam(Endings(stop, until, record_end))], list[_Beam]()
    while alive:
        # If ended beams gave up their places, very unlikely prefixes would fill them, and end before likely ones.
        parents, kept = _best(alive, _log_softmax(logits), masked, beams - len(done)), list[int]()
        grown = [alive[row].longer(vocabulary, token_id, logprob, length) for row, token_id, logprob in parents]
        alive = []
        for (row, _, _), beam in zip(parents, grown, strict=True):
            if beam.endings.ended or beam.characters == length:
                done.append(beam)
            else:
                alive.append(beam)
                kept.append(row)
        if alive:
            state = np.ascontiguousarray(state[kept])
            logits = engine.step(np.array([beam.token_id for beam in alive]), state)
    best = max(done, key=lambda beam: beam.total if record_end is not None else beam.total / beam.characters)
    return _found(vocabulary, best, length, Endings(stop, until, record_end))


def _read(engine: Engine, prompt: Ids) -> tuple[npt.NDArray[np.generic], Float64s]:
    """The state (1, L, S, H) and the logits (1, V) after the prompt."""
    state, logits = engine.zero_state(1), np.zeros((1, engine.vocabulary_size))
    stream = Stream(state[0], prompt.copy(), len(prompt), drawing=False, logits=logits[0])
    while stream.unread:
        engine.advance([stream], min(stream.unread, MOST_STEPS))
    return state, logits


def _best(beams: list[_Beam], logprobs: Float64s, masked: Mask, count: int) -> list[tuple[int, int, float]]:
    """The most likely extensions, from logprobs (beams, V): the beam's index, the id and its ln p."""
    totals = np.array([beam.total for beam in beams])[:, None] + np.where(masked, -np.inf, logprobs)
    best = np.argsort(-totals.reshape(-1), kind="stable")[:count]
    pairs = [divmod(index, logprobs.shape[1]) for index in best.tolist()]
    return [(row, token_id, float(logprobs[row, token_id])) for row, token_id in pairs if not masked[token_id]]


def _found(vocabulary: Vocabulary, beam: _Beam, length: int, endings: Endings) -> Found:
    """The text of a beam that has ended."""
    written, logprobs, logprob, decoder = "", list[float](), 0.0, vocabulary.decoder()
    for each in beam.path():
        logprob += each.logprob
        if piece := decoder.feed(each.token_id):
            # A broken byte before a character yields two characters at once: the first gets the sum.
            written += piece
            logprobs += [logprob, *([0.0] * (len(piece) - 1))]
            logprob = 0.0
    text = endings.feed(written[:length]) + endings.flush()
    ended, mean = endings.ended or "length", beam.total / beam.characters
    end = None
    if ended == "record" and endings.record_end:
        end = sum(logprobs[len(text) : len(text) + len(endings.record_end)])
    return Found(text, ended, endings.stop, logprobs[: len(text)], mean, end)


def _log_softmax(logits: Float64s) -> Float64s:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Float64s = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
