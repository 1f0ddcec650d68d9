"""Beam search: the likeliest text instead of a drawn one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.generation.endings import Endings
from charwright.generation.engine import Engine

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What the search found: ids, the text up to its end, why it ended, and ln p of each id."""

    text: str
    ended: str
    stop: str | None
    logprobs: list[float]

    @property
    def mean(self) -> float:
        """The ln p per character, by which texts of different lengths are compared."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass(frozen=True)
class _Beam:
    """One of the likeliest beginnings: its last id, and what stands before that."""

    before: _Beam | None = None
    token_id: int = UNKNOWN_ID
    logprob: float = 0.0
    total: float = 0.0
    size: int = 0

    def path(self) -> list[_Beam]:
        """What the beginning was at each of its ids."""
        path, beam = [], self
        while beam.before is not None:
            path.append(beam)
            beam = beam.before
        return path[::-1]


def beam_search(
    engine: Engine,
    vocabulary: Vocabulary,
    prompt: Ids,
    masked: npt.NDArray[np.bool_],
    *,
    beams: int,
    length: int,
    stop: tuple[str, ...] = (),
    until: str | None = None,
) -> Found:
    """The likeliest text of `length` characters after the prompt's ids that is found, or one that ends before.

    At each character the `beams` likeliest beginnings are kept (Lowerre, 1976); `masked` (V,) ids are not written.
    Texts that met a stop text, or the end of `until`, are compared with the others by ln p per character.
    """
    state = engine.zero_state(1)
    logits = np.zeros((1, engine.vocabulary_size))
    for token_id in prompt:
        logits = engine.step(np.array([token_id]), state)
    alive, done = [_Beam()], list[Found]()
    while alive and len(done) < beams:
        alive, parents = _extended(alive, _log_softmax(logits), masked, beams)
        kept: list[int] = []
        for row, beam in enumerate(alive):
            found = _ended(vocabulary, beam, length, stop, until)
            if found is None:
                kept.append(row)
            else:
                done.append(found)
        alive, parents = [alive[row] for row in kept], [parents[row] for row in kept]
        if alive:
            state = np.ascontiguousarray(state[parents])
            logits = engine.step(np.array([beam.token_id for beam in alive]), state)
    return max(done, key=lambda found: found.mean)


def _extended(
    beams: list[_Beam], logprobs: Floats, masked: npt.NDArray[np.bool_], count: int
) -> tuple[list[_Beam], list[int]]:
    """The likeliest beginnings one id longer, and which beam each comes from; logprobs (beams, V)."""
    totals = np.array([beam.total for beam in beams])[:, None] + np.where(masked, -np.inf, logprobs)
    flat = totals.reshape(-1)
    best = np.argsort(-flat, kind="stable")[:count]
    longer, parents = [], []
    for index in best[np.isfinite(flat[best])].tolist():
        parent, token_id = divmod(index, logprobs.shape[1])
        logprob = float(logprobs[parent, token_id])
        longer.append(_Beam(beams[parent], token_id, logprob, float(flat[index]), beams[parent].size + 1))
        parents.append(parent)
    return longer, parents


def _ended(vocabulary: Vocabulary, beam: _Beam, length: int, stop: tuple[str, ...], until: str | None) -> Found | None:
    """The text of a beam that has ended, None while it goes on."""
    endings = Endings(stop, until)
    if beam.size < length and not endings.waiting:  # A character has one id at least.
        return None
    path = beam.path()
    written = vocabulary.decoder().feed_all(np.array([each.token_id for each in path], dtype=np.int32))
    text = endings.feed(written[:length])
    if endings.ended is None and len(written) < length:
        return None
    shown = text + endings.flush()
    counted = path[: len(shown)] if vocabulary.unit == "character" else path
    return Found(shown, endings.ended or "length", endings.stop, [each.logprob for each in counted])


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
