"""Dynamic evaluation (Krause et al., 2018): a model that keeps training on the text that it is evaluated on.

Each segment is scored before it is trained on, so nothing is predicted by a model that has seen it. The result is the
loss of a model that adapts to a text: to its names, its subject, its style.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.data.mapped_ids import MappedIds
from charwright.data.texts import Text, ids_of, in_memory
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, DivergedError
from charwright.evaluation.evaluation import Evaluation
from charwright.evaluation.in_memory import evaluation_of
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel

# Chosen on held-out parts of two training texts, an English and a Chinese one; see docs/how-to/evaluate.md.
SEGMENT = 32  # ids that are scored before they are trained on
RATE = 0.0003
DECAY = 0.002
# A fraction of the mean gradient size, without which weights with rare gradients would take huge steps.
EPSILON = 0.1

SPANS, SEGMENTS_PER_SPAN = 20, 25  # of the training text, for the gradient statistics
WARM_UP = 64  # segments; with fewer, the gradient statistics are too uncertain

Ids = npt.NDArray[np.integer]


def evaluate_dynamically(
    model: LanguageModel,
    vocabulary: Vocabulary,
    text: Text,
    training_text: Text = "",
    *,
    rate: float = RATE,
    decay: float = DECAY,
    progress: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """The loss of a copy of `model` that trains on each segment of `text` after scoring it.

    The text is one stream, in order.

    Args:
        model: not changed.
        vocabulary: the model's.
        text: the text to predict.
        training_text: the source of the gradient statistics, up to 500 segments of 32 ids. If it has fewer than 64, the
            scored segments of `text` are added, and training starts with the 64th.
        rate: how far a weight moves after a segment with a gradient of typical size; 0 disables training.
        decay: the fraction of the way back to its trained value that such a weight moves after a segment.
        progress: called after each segment with the fraction of `text` that is done.

    Raises:
        CorpusError: when the text is too short.
        DivergedError: when the loss is not finite.
    """
    if len(text) < 2:
        raise CorpusError("the text to evaluate has fewer than two characters")
    text = in_memory(text)  # A million characters take ten minutes, so memory is not the limit.
    learner = _Learner(model, rate, decay)
    learner.gather(ids_of(training_text, vocabulary))
    ids = vocabulary.encode(text)
    nats = np.empty(len(ids) - 1, dtype=np.float32)
    done = 0
    for losses in learner.learn_along(ids):
        if not np.isfinite(losses).all():
            raise DivergedError("dynamic evaluation diverges; try a smaller --dynamic-rate")
        nats[done : done + len(losses)] = losses
        done += len(losses)
        progress(done / len(nats))
    return evaluation_of(nats, ids, vocabulary, text, "dynamic")


def adapted_to(
    model: LanguageModel,
    vocabulary: Vocabulary,
    read: str,
    training_text: Text = "",
    *,
    rate: float = RATE,
    decay: float = DECAY,
) -> LanguageModel:
    """A copy of `model` that has trained on a text that it has read, to continue it in its own words.

    The other arguments and errors are as for `evaluate_dynamically`. Nothing is learned from fewer than two ids, and
    without a training text nothing from fewer than 64 segments.
    """
    learner = _Learner(model, rate, decay)
    learner.gather(ids_of(training_text, vocabulary))
    for losses in learner.learn_along(vocabulary.encode(read)):
        if not np.isfinite(losses).all():
            raise DivergedError("the model diverges as it adapts to the text")
    return learner.model


class _Learner:
    """A copy of a model, its trained weights, and the statistics of its gradients."""

    def __init__(self, model: LanguageModel, rate: float, decay: float) -> None:
        self.model, self.rate, self.decay = copy.deepcopy(model).eval(), rate, decay
        self.weights = [weight.requires_grad_() for weight in self.model.parameters()]
        self.trained = [weight.detach().clone() for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.trained]
        self.segments = 0
        self.scales: list[Tensor] = []
        self.returns: list[Tensor] = []

    def gather(self, ids: Ids | MappedIds) -> None:
        """Accumulate squared gradients over segments of a text, in spans spread evenly over it."""
        length = SEGMENT * SEGMENTS_PER_SPAN + 1
        begins = [len(ids) * index // SPANS for index in range(SPANS)]
        if len(ids) <= SPANS * length:
            begins, length = [0], len(ids)
        for begin in begins:
            for _ in self._scored(ids[begin : begin + length]):
                self._count_gradients()
        if self.segments:
            self._set_scales()

    def learn_along(self, ids: Ids) -> Iterator[npt.NDArray[np.float32]]:
        """The losses (T,) of each segment, under a model trained on the segments before it."""
        along = self.segments < WARM_UP
        for losses in self._scored(ids):
            yield losses
            if along:
                self._count_gradients()
                # Between powers of two the statistics hardly change.
                if self.segments >= WARM_UP and self.segments.bit_count() == 1:
                    self._set_scales()
            if not along or self.segments >= WARM_UP:
                self._learn()

    def _scored(self, ids: Ids) -> Iterator[npt.NDArray[np.float32]]:
        """The losses (T,) of each segment of a text; when yielded, the weights have the gradients of their mean."""
        device = self.trained[0].device
        state: State | None = None
        row = torch.from_numpy(ids.astype(np.int64)).to(device)[:, None]
        for begin in range(0, len(ids) - 1, SEGMENT):
            inputs, targets = row[begin : begin + SEGMENT], row[begin + 1 : begin + SEGMENT + 1]
            with torch.enable_grad():
                logits, state = self.model(inputs[: len(targets)], state)
                losses = F.cross_entropy(logits[:, 0], targets[:, 0], reduction="none")
                self.model.zero_grad()
                losses.mean().backward()  # type: ignore[no-untyped-call]
            state = tuple(part.detach() for part in state)
            yield losses.detach().cpu().numpy()

    def _gradients(self) -> list[Tensor]:
        return [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in self.weights]

    def _count_gradients(self) -> None:
        for squares, gradient in zip(self.squares, self._gradients(), strict=True):
            squares.addcmul_(gradient, gradient)
        self.segments += 1

    def _set_scales(self) -> None:
        """Compute each weight's step size, and its rate of return to the trained value."""
        sizes = [(squares / self.segments).sqrt_() for squares in self.squares]
        # Nearly all numbers of n-grams are never read; among them, the others would seem of any size.
        ngrams = self.model.weight("ngrams.weight") if self.model.config.ngram_bits else None
        counted = [size for size, weight in zip(sizes, self.weights, strict=True) if weight is not ngrams]
        mean = sum(float(size.sum()) for size in counted) / sum(size.numel() for size in counted)
        self.scales = [-self.rate / (size + EPSILON * mean) for size in sizes]
        self.returns = [(self.decay * size / mean).clamp_(max=1) for size in sizes]

    @torch.no_grad()
    def _learn(self) -> None:
        """The RMS rule of the paper: a step against the gradient, and one back towards the trained weights.

        theta += -rate * g / (sqrt(MS) + epsilon) + decay * RMS_norm * (theta_0 - theta), with decay * RMS_norm <= 1.
        """
        for weight, gradient, trained, scale, back in zip(
            self.weights, self._gradients(), self.trained, self.scales, self.returns, strict=True
        ):
            weight.lerp_(trained, back).addcmul_(gradient, scale)
