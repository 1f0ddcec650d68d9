"""Dynamic evaluation (Krause et al., 2018): a model that goes on learning from the text that it is measured on.

Each segment is scored first and learned from afterwards, so nothing is predicted by a model that has seen it. The loss
is that of a model which may adapt itself to a text: to its names, its subject, its habits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, DivergedError
from charwright.evaluate import Evaluation, evaluation_of
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel

# What suited held-out parts of two training texts, an English and a Chinese one: docs/how-to/evaluate.md has figures.
SEGMENT = 32  # ids that are scored before they are learned from
RATE = 0.0003
DECAY = 0.002
# A share of the mean size: without it, weights that hardly ever had a gradient would fly away at their first one.
EPSILON = 0.1

SPANS, SEGMENTS_PER_SPAN = 20, 25  # of the training text, for the sizes of the gradients
WARM_UP = 64  # segments; from fewer, the sizes are too uncertain to learn with

Ids = npt.NDArray[np.integer]


def evaluate_dynamically(
    model: LanguageModel,
    vocabulary: Vocabulary,
    text: str,
    training_text: str = "",
    *,
    rate: float = RATE,
    decay: float = DECAY,
    progress: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """Measure the loss of a copy of `model` that learns on from each segment of `text` once it has been scored.

    The text is one stream, in its order: what is learned here is used there.

    Args:
        model: stays as it is.
        vocabulary: the model's.
        text: what to predict.
        training_text: where the usual size of each weight's gradients comes from, by up to 500 segments of 32 ids.
            From a text with fewer than 64, or none, the segments of `text` that have been scored come to them, and
            learning begins with the 64th.
        rate: how far a weight moves after a segment whose gradient is of the usual size; with 0 nothing is learned.
        decay: the share of the way back to its trained value that a weight with such gradients goes after a segment.
        progress: told after each segment which share of `text` is done.

    Raises:
        CorpusError: when the text is too short.
        DivergedError: when the loss is no longer a finite number.
    """
    if len(text) < 2:
        raise CorpusError("the text to evaluate on has fewer than two characters")
    learner = _Learner(model, rate, decay)
    learner.gather(vocabulary.encode(training_text))
    ids = vocabulary.encode(text)
    nats = np.empty(len(ids) - 1, dtype=np.float32)
    done = 0
    for losses in learner.learn_along(ids):
        if not np.isfinite(losses).all():
            raise DivergedError("the model came apart as it learned on; try a smaller --dynamic-rate")
        nats[done : done + len(losses)] = losses
        done += len(losses)
        progress(done / len(nats))
    return evaluation_of(nats, vocabulary, text, "dynamic")


class _Learner:
    """A copy of a model, the weights that it began with, and how large its gradients are."""

    def __init__(self, model: LanguageModel, rate: float, decay: float) -> None:
        self.model, self.rate, self.decay = copy.deepcopy(model).eval(), rate, decay
        self.weights = [weight.requires_grad_() for weight in self.model.parameters()]
        self.trained = [weight.detach().clone() for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.trained]
        self.segments = 0
        self.scales: list[Tensor] = []
        self.returns: list[Tensor] = []

    def gather(self, ids: Ids) -> None:
        """Add up the squared gradients over segments of a text, in spans that are spread over it evenly."""
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
        """The losses (T,) of each segment, under a model that has learned from those before it."""
        along = self.segments < WARM_UP
        for losses in self._scored(ids):
            yield losses
            if along:
                self._count_gradients()
                # Between the powers of two the sizes hardly change.
                if self.segments >= WARM_UP and self.segments.bit_count() == 1:
                    self._set_scales()
            if not along or self.segments >= WARM_UP:
                self._learn()

    def _scored(self, ids: Ids) -> Iterator[npt.NDArray[np.float32]]:
        """The losses (T,) of each segment of a text; meanwhile the weights hold the gradients of their mean."""
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
        """What each weight's gradient is multiplied with, and its share of the way back."""
        sizes = [(squares / self.segments).sqrt_() for squares in self.squares]
        mean = sum(float(size.sum()) for size in sizes) / sum(size.numel() for size in sizes)
        self.scales = [-self.rate / (size + EPSILON * mean) for size in sizes]
        self.returns = [(self.decay * size / mean).clamp_(max=1) for size in sizes]

    @torch.no_grad()
    def _learn(self) -> None:
        """The paper's RMS rule: a step against the gradient, and one back to what training had found.

        theta += -rate * g / (sqrt(MS) + epsilon) + decay * RMS_norm * (theta_0 - theta), with decay * RMS_norm <= 1.
        """
        for weight, gradient, trained, scale, back in zip(
            self.weights, self._gradients(), self.trained, self.scales, self.returns, strict=True
        ):
            weight.lerp_(trained, back).addcmul_(gradient, scale)
