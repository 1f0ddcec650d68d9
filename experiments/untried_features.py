"""Prototypes of features that the library does not have, on top of its model, for experiments/untried.py.

A feature is a class with hooks: the model, the optimizers, the schedule, the loss, the sizes of a batch. Its keyword
arguments are its settings. Features that keep the recurrent cell use the library's cores; those that change the cell
are loops in PyTorch, to be compared with `PlainLoop`, which is the same loop with the usual cell.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untried_optimizers as optimizers
from charwright.config import ModelConfig, Recipe
from charwright.model.cells import State
from charwright.model.compute import Compute
from charwright.model.dropout import Dropout
from charwright.model.initialization import start_from_frequencies
from charwright.model.language_model import LanguageModel
from charwright.model.loss import head_loss
from charwright.model.recurrent import Tokens, linear, run_layer
from charwright.training.batch import Batch
from charwright.training.optimizer import make_optimizer


class Net(LanguageModel):
    """The library's model with more weights, in `extras`; those in `sparse` are looked up by row."""

    extras: nn.ParameterDict
    sparse: nn.ParameterDict

    def __init__(self, config: ModelConfig, vocabulary_size: int, **rest: Any) -> None:
        """Arguments as for the library's model."""
        super().__init__(config, vocabulary_size, **rest)
        self.extras, self.sparse = nn.ParameterDict(), nn.ParameterDict()

    def embedded(self, ids: Tensor) -> Tensor:
        """The embedding of each position, (T, B, E)."""
        return F.embedding(ids, self.weight("embedding.weight"))

    def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
        x, mask, after = super()._layers(ids, state, dropout)
        return x if mask is None else x * mask, after

    def _layers(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, Tensor | None, State]:
        # Features change the outputs of `_recurrent`, which the library's loss does not call.
        x, after = self._recurrent(ids, state, dropout)
        return x, None, after


def dropped(x: Tensor, dropout: Dropout | None) -> Tensor:
    """Dropout of outputs (T, B, H)."""
    mask = None if dropout is None else dropout.output_mask(x)
    return x if mask is None else x * mask.to(x.dtype)


class Feature:
    """The baseline: the library's model, loss and optimizer, a cosine to zero, and no feature."""

    net: type[Net] = Net
    options: dict[str, Any] = {}  # noqa: RUF012  (of the recipe, changed by the feature)

    def __init__(self, **settings: float) -> None:
        """Keep the settings as attributes; those not given keep the class's values."""
        for name, value in settings.items():
            if not hasattr(type(self), name):
                raise SystemExit(f"{type(self).__name__} has no setting {name}")
            setattr(self, name, value)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the options that the feature changes."""
        return recipe.with_options(self.options)

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model before the first step."""
        spread = recipe.training.embedding_range
        compute = Compute.choose("cpu", precision="f32")
        return self.net(recipe.model, vocabulary_size, seed=seed, embedding_range=spread, compute=compute)

    def optimizers(self, model: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """The library's optimizer for dense weights, and Adam by row for tables."""
        optimizer = make_optimizer(model, recipe.training)
        if model.extras:
            decay = recipe.training.weight_decay
            matrices = [weight for weight in model.extras.values() if weight.ndim > 1]
            vectors = [weight for weight in model.extras.values() if weight.ndim <= 1]
            for params, rate in ((matrices, decay), (vectors, 0.0)):
                if params:
                    optimizer.add_param_group({"params": params, "weight_decay": rate})
        rows = [optimizers.RowAdam(model.sparse.values(), lr=recipe.training.learning_rate)] if model.sparse else []
        return [optimizer, *rows]

    def read(self, model: Net, ids: npt.NDArray[Any]) -> None:
        """Change the model after a look at the training text."""

    def rate(self, fraction: float) -> float:
        """The learning rate as a fraction of its peak, when `fraction` of the budget is spent."""
        return 0.5 * (1 + math.cos(math.pi * fraction))

    def sizes(self, fraction: float) -> tuple[int, int] | None:
        """The rows and the length of a batch; None is as in the recipe."""
        return None

    def before_step(self, model: Net, recipe: Recipe, fraction: float) -> None:
        """Change the model before a step."""

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """The loss that is trained on, and the state after the batch."""
        return model.loss(batch.inputs, batch.targets, batch.state, generator=batch.generator)

    def after_step(self, model: Net, fraction: float, step: int) -> None:
        """Look at the model after a step."""

    def finish(self, model: Net) -> None:
        """Change the model at the end of training."""


# The loss and the head.


def _outputs(model: Net, batch: Batch) -> tuple[Tensor, State]:
    return model._recurrent(batch.inputs, batch.state, Dropout(model.config, batch.generator))


def _head_loss(model: Net, x: Tensor, targets: Tensor) -> Tensor:
    bias = model.weight("head.bias")
    return head_loss(x, model._head, bias, targets, torch.float32, model._core(targets.device), model.compute.kernel)


class UnigramBias(Feature):
    """The bias of the head begins at the logarithm of each character's frequency."""

    def read(self, model: Net, ids: npt.NDArray[Any]) -> None:
        """Set the bias."""
        start_from_frequencies(model.weight("head.bias"), np.bincount(ids, minlength=model.vocabulary_size))


class LabelSmoothing(Feature):
    """A share of each target goes to all characters alike (Szegedy et al., 2016)."""

    share = 0.02

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy with smooth targets."""
        logits, state = model(batch.inputs, batch.state, generator=batch.generator)
        flat, targets = logits.flatten(0, 1), batch.targets.flatten()
        return F.cross_entropy(flat, targets, label_smoothing=self.share), state


class ActivationPenalty(Feature):
    """Penalties on large outputs (AR) and on their changes (TAR) (Merity et al., 2017, arXiv:1708.01009)."""

    ar = 1.0
    tar = 0.5

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy and the penalties."""
        x, state = _outputs(model, batch)
        penalty = self.ar * x.square().mean() + self.tar * (x[1:] - x[:-1]).square().mean()
        return _head_loss(model, x, batch.targets) + penalty, state


class TwoAhead(Feature):
    """A second head, thrown away at the end, predicts the character after the next (Gloeckle et al., 2024)."""

    weight = 0.2

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with a second head of zeros."""
        model = super().model(recipe, vocabulary_size, seed)
        model.extras["second"] = torch.zeros(vocabulary_size, recipe.model.units)
        model.extras["second_bias"] = torch.zeros(vocabulary_size)
        return model

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy of both heads; the weight of the second falls to zero."""
        x, state = _outputs(model, batch)
        second, bias = model.extras["second"], model.extras["second_bias"]
        core, kernel = model._core(x.device), model.compute.kernel
        ahead = head_loss(x[:-1], second, bias, batch.targets[1:], torch.float32, core, kernel)
        return _head_loss(model, x, batch.targets) + self.weight * (1 - fraction) * ahead, state


class InputNoise(Feature):
    """Some input characters are replaced by others of the batch (Xie et al., 2017, arXiv:1703.02573)."""

    share = 0.02

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """The usual loss, after noisy inputs."""
        chosen = torch.rand(batch.inputs.shape, generator=batch.generator) < self.share
        others = batch.inputs.flatten()[torch.randperm(batch.inputs.numel(), generator=batch.generator)]
        inputs = torch.where(chosen, others.view_as(batch.inputs), batch.inputs)
        return model.loss(inputs, batch.targets, batch.state, generator=batch.generator)


class Mixture(Feature):
    """A mixture of softmaxes (Yang et al., 2018, arXiv:1711.03953)."""

    parts = 3

    class net(Net):  # noqa: N801
        """The mixture's log-probabilities are the logits."""

        def forward(
            self, ids: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
        ) -> tuple[Tensor, State]:
            """Log-probabilities (T, B, V), and the state."""
            x, state = self._recurrent(ids, state, Dropout(self.config, generator) if self.training else None)
            latent = F.linear(x, self.extras["latent"], self.extras["latent_bias"]).tanh()
            latent = latent.unflatten(-1, (-1, self.config.units))
            each = F.linear(latent, self._head, self.weight("head.bias")).log_softmax(-1)
            prior = F.linear(x, self.extras["prior"]).log_softmax(-1)
            return (each + prior[..., None]).logsumexp(-2), state

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with the latent layer and the weights of the mixture."""
        model, units = super().model(recipe, vocabulary_size, seed), recipe.model.units
        draw = torch.Generator().manual_seed(seed + 1000)
        latent = torch.cat([torch.eye(units)] * int(self.parts))
        model.extras["latent"] = latent + torch.randn(latent.shape, generator=draw) * 0.3 / math.sqrt(units)
        model.extras["latent_bias"] = torch.zeros(len(latent))
        model.extras["prior"] = torch.randn(int(self.parts), units, generator=draw) / math.sqrt(units)
        return model

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy of the mixture."""
        logits, state = model(batch.inputs, batch.state, generator=batch.generator)
        return F.nll_loss(logits.flatten(0, 1), batch.targets.flatten()), state


class Distillation(Feature):
    """A model learns from the probabilities of one trained before it (Hinton et al., 2015, arXiv:1503.02531).

    The teacher is trained in the same way from another seed, and its time counts.
    """

    share = 0.5
    teacher: Net | None = None
    teacher_state: State | None = None

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy against a mixture of the text and the teacher."""
        assert self.teacher is not None
        with torch.no_grad():
            taught, self.teacher_state = self.teacher.eval()(batch.inputs, self.teacher_state)
        logits, state = model(batch.inputs, batch.state, generator=batch.generator)
        flat = logits.flatten(0, 1)
        own = F.cross_entropy(flat, batch.targets.flatten())
        return (1 - self.share) * own + self.share * F.cross_entropy(flat, taught.flatten(0, 1).softmax(-1)), state


class SelfDistillation(Distillation):
    """The teacher is the average of the model's own last weights (Tarvainen & Valpola, 2017)."""

    share = 0.3
    window = 0.1

    def after_step(self, model: Net, fraction: float, step: int) -> None:
        """Let the teacher follow."""
        if self.teacher is None:
            self.teacher = copy.deepcopy(model)
        if step % 8 == 0:
            with torch.no_grad():
                mine, own = list(self.teacher.parameters()), list(model.parameters())
                torch._foreach_lerp_(mine, own, min(1.0, 8 / max(1.0, self.window * step)))

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """The usual loss while there is no teacher worth listening to."""
        return super().loss(model, batch, fraction) if fraction > 0.1 else Feature.loss(self, model, batch, fraction)


# The input.


class EmbeddingSkip(Feature):
    """The output layer also sees the embedding of the last character."""

    class net(Net):  # noqa: N801
        """A head over outputs and embedding."""

        def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
            x, state = super()._recurrent(ids, state, dropout)
            return torch.cat([x, self.embedded(ids)], dim=-1), state

        @property
        def _head(self) -> Tensor:
            return torch.cat([self.weight("head.weight"), self.extras["skip"]], dim=1)

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with more columns in the head, zero at the start."""
        model = super().model(recipe, vocabulary_size, seed)
        model.extras["skip"] = torch.zeros(vocabulary_size, recipe.model.embedding_size)
        return model


class Ngrams(Feature):
    """Hashed bigrams, trigrams, ... have embeddings that are added to that of the character.

    With `skip` the output layer sees the sum too; without `input` it alone does, and the layer sees the character. The
    last characters of the batch before travel in the state. `drop` is a rate of dropout of whole n-grams.
    """

    order = 3
    bits = 16
    skip = 0
    input = 1
    drop = 0.0
    rate_scale = 1.0

    class net(Net):  # noqa: N801
        """A first layer over sums of embeddings; the feature sets its settings."""

        order, bits, skip, input, drop = 3, 16, 0, 1, 0.0

        def zero_state(self, batch: int) -> State:
            """The usual state, and the ids before."""
            return (*super().zero_state(batch), torch.zeros(1, batch, self.order - 1))

        def occurring(self, ids: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The n-grams that occur (order, U), which of them ends at each position (T, B), and the ids to keep."""
            longer = torch.cat([before.T.long(), ids])  # (T + order - 1, B)
            keys = torch.zeros_like(ids)
            for begin in range(self.order):
                keys = keys * self.vocabulary_size + longer[begin : begin + len(ids)]
            keys, positions = torch.unique(keys, return_inverse=True)
            powers = [self.vocabulary_size**n for n in reversed(range(self.order))]
            grams = torch.stack([keys // power % self.vocabulary_size for power in powers])
            return grams, positions, longer[-(self.order - 1) :].T[None].float()

        def looked_up(self, grams: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
            """The rows (U, columns) of n-grams (order, U), for each n."""
            mixed = grams[-1]
            for n in range(2, self.order + 1):
                mixed = mixed * 0x9E3779B1 + grams[-n] + 1
                rows = (mixed ^ (mixed >> 15)) * 0x85EBCA6B
                rows = ((rows ^ (rows >> 13)) & 0x7FFFFFFF) % (1 << self.bits)
                found = F.embedding(rows, self.sparse[f"ngram{n}"], sparse=True)
                if self.drop and generator is not None:
                    found = found * (torch.rand(len(rows), 1, generator=generator) >= self.drop) / (1 - self.drop)
                yield found

        def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
            h, before = self.zero_state(ids.shape[1]) if state is None else state
            grams, positions, kept = self.occurring(ids, before[0])
            generator = dropout._generator if dropout is not None else None
            sums: Tensor = self.embedded(grams[-1]) + sum(self.looked_up(grams, generator))
            mask = dropout.state_mask(h[0]) if dropout is not None else None
            core, kernel = self._core(ids.device), self.compute.kernel
            seen = Tokens(positions, sums) if self.input else Tokens(ids, self.weight("embedding.weight"))
            x, after = run_layer(core, "gru", seen, (h[0],), self._layer(0), torch.float32, mask, kernel)
            x = dropped(x, dropout)
            x = torch.cat([x, F.embedding(positions, sums)], dim=-1) if self.skip else x
            return x, (after[0][None], kept)

        @property
        def _head(self) -> Tensor:
            head = self.weight("head.weight")
            return torch.cat([head, self.extras["skip"]], dim=1) if self.skip else head

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with tables of zeros."""
        model = super().model(recipe, vocabulary_size, seed)
        assert isinstance(model, Ngrams.net)
        for setting in ("order", "bits", "skip", "input"):
            setattr(model, setting, int(getattr(self, setting)))
        model.drop = self.drop
        size = recipe.model.embedding_size
        for n in range(2, int(self.order) + 1):
            model.sparse[f"ngram{n}"] = torch.zeros(1 << int(self.bits), size)
        if self.skip:
            model.extras["skip"] = torch.zeros(vocabulary_size, size)
        return model

    def optimizers(self, model: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """Adam by row for the tables, at its own rate."""
        made = super().optimizers(model, recipe)
        for group in made[1].param_groups:
            group["lr"] *= self.rate_scale
        return made


class NgramLogits(Ngrams):
    """Hashed n-grams vote for the next character, beside the network (Mikolov et al., 2011, RNNME)."""

    class net(Ngrams.net):  # noqa: N801
        """Logits from the network and from the tables."""

        def forward(
            self, ids: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
        ) -> tuple[Tensor, State]:
            """Logits (T, B, V), and the state."""
            h, before = self.zero_state(ids.shape[1]) if state is None else state
            dropout = Dropout(self.config, generator) if self.training else None
            x, after = Net._recurrent(self, ids, (h,), dropout)
            grams, positions, kept = self.occurring(ids, before[0])
            votes: Tensor = sum(self.looked_up(grams, generator))  # type: ignore[assignment]
            logits = linear(x, self._head, self.weight("head.bias"), torch.float32)
            return logits + F.embedding(positions, votes), (*after, kept)

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with tables of zeros, one column for each character."""
        model = super().model(recipe, vocabulary_size, seed)
        for name in list(model.sparse):
            model.sparse[name] = torch.zeros(1 << int(self.bits), vocabulary_size)
        return model

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy of the sum."""
        logits, state = model(batch.inputs, batch.state, generator=batch.generator)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()), state


class _Rows(torch.autograd.Function):
    """table (D,), offsets (K, N) and their shares (K, N) -> sums (N, V) of the V numbers from each offset on."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, offsets: Tensor, shares: Tensor, columns: int) -> Tensor:
        ctx.save_for_backward(offsets, shares)
        ctx.size = len(table)
        rows = table.as_strided((len(table) - columns + 1, columns), (1, 1))
        total = shares.new_zeros(offsets.shape[1], columns)
        for some, share in zip(offsets, shares, strict=True):
            total += rows[some] * share[:, None]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = grads
        offsets, shares = ctx.saved_tensors
        found = gradient.new_zeros(ctx.size)
        columns = torch.arange(gradient.shape[1])
        for some, share in zip(offsets, shares, strict=True):
            found.index_add_(0, (some[:, None] + columns).flatten(), (gradient * share[:, None]).flatten())
        return found, None, None, None


class Votes(Feature):
    """As NgramLogits, but all n-grams share one array of 2^bits numbers, and each votes with the V from its hash on.

    So did Mikolov et al. (2011, RNNME). Rows overlap, so the array may be small whatever the vocabulary. Adagrad moves
    it. `drop` is a rate of dropout of single votes.
    """

    first, order = 2, 4
    bits = 20
    speed = 0.1
    prior = 10.0
    drop = 0.0

    class net(Net):  # noqa: N801
        """Logits from the network and from the array."""

        first, order, drop = 2, 4, 0.0

        def zero_state(self, batch: int) -> State:
            """The usual state, and the ids before, counted from 1; 0 is none."""
            return (*super().zero_state(batch), torch.zeros(1, batch, self.order - 1))

        def offsets(self, ids: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
            """Where the votes of each n-gram begin (K, T, B), and the ids to keep."""
            longer = torch.cat([before.T.long(), ids + 1])
            mixed, found = ids + 1, []
            for n in range(2, self.order + 1):
                begin = self.order - n
                mixed = (mixed * 0x2545F491 + longer[begin : begin + len(ids)] * 0x9E3779B1 + n) & 0x7FFFFFFF
                if n >= self.first:
                    spread = (mixed ^ (mixed >> 15)) * 0x85EBCA6B & 0x7FFFFFFF
                    found.append((spread ^ (spread >> 13)) % (len(self.extras["table"]) - self.vocabulary_size + 1))
            return torch.stack(found), longer[len(longer) - (self.order - 1) :].T[None].float()

        def forward(
            self, ids: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
        ) -> tuple[Tensor, State]:
            """Logits (T, B, V), and the state."""
            h, before = self.zero_state(ids.shape[1]) if state is None else state
            dropout = Dropout(self.config, generator) if self.training else None
            x, after = Net._recurrent(self, ids, (h,), dropout)
            offsets, kept = self.offsets(ids, before[0])
            shares = torch.ones(offsets.shape)
            if self.training and self.drop:
                shares = (torch.rand(offsets.shape, generator=generator) >= self.drop).float() / (1 - self.drop)
            votes: Any = _Rows.apply(  # type: ignore[no-untyped-call]
                self.extras["table"], offsets.flatten(1), shares.flatten(1), self.vocabulary_size
            )
            logits = linear(x, self._head, self.weight("head.bias"), torch.float32)
            return logits + votes.view(logits.shape), (*after, kept)

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with an array of zeros."""
        model = super().model(recipe, vocabulary_size, seed)
        assert isinstance(model, Votes.net)
        model.first, model.order, model.drop = int(self.first), int(self.order), self.drop
        model.extras["table"] = torch.zeros(1 << int(self.bits))
        return model

    def optimizers(self, model: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """The library's, and Adagrad for the array."""
        table = model.extras.pop("table")
        made = super().optimizers(model, recipe)
        model.extras["table"] = table
        scale = recipe.sequences.batch * recipe.sequences.seq_length
        return [*made, optimizers.Adagrad([model.extras["table"]], lr=self.speed, prior=self.prior, scale=scale)]

    def loss(self, model: Net, batch: Batch, fraction: float) -> tuple[Tensor, State]:
        """Cross-entropy of the sum."""
        logits, state = model(batch.inputs, batch.state, generator=batch.generator)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()), state


# Layers.


class OutputNorm(Feature):
    """Layer normalization (Ba et al., 2016, arXiv:1607.06450) of the outputs, before the head."""

    class net(Net):  # noqa: N801
        """Normalized outputs."""

        def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
            x, state = super()._recurrent(ids, state, None if dropout is None else dropout)
            return F.layer_norm(x, x.shape[-1:], self.extras["gain"]), state

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with a gain for each unit."""
        model = super().model(recipe, vocabulary_size, seed)
        model.extras["gain"] = torch.full((recipe.model.units,), 0.5)
        return model


class Layers(Feature):
    """Several layers; `skip` 1 adds a layer's input to its output, 2 also shows the head all layers."""

    layers = 2
    units = 256
    skip = 1

    class net(Net):  # noqa: N801
        """Layers with ways around them."""

        skip = 1

        def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
            (h,) = self.zero_state(ids.shape[1]) if state is None else state
            x: Any = self.embedded(ids)
            outputs, last = [], []
            for layer in range(self.config.layers):
                mask = dropout.state_mask(h[layer]) if dropout is not None else None
                core, kernel = self._core(ids.device), self.compute.kernel
                y, after = run_layer(core, "gru", x, (h[layer],), self._layer(layer), torch.float32, mask, kernel)
                y = dropped(y, dropout)
                x = x + y if layer and self.skip else y
                outputs.append(y)
                last.append(after[0])
            return (torch.cat(outputs, dim=-1) if self.skip == 2 else x), (torch.stack(last),)

        @property
        def _head(self) -> Tensor:
            head = self.weight("head.weight")
            return torch.cat([self.extras["lower"], head], dim=1) if self.skip == 2 else head

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with more layers of another width."""
        return recipe.with_options({"layers": int(self.layers), "units": int(self.units)})

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model, and a head for the lower layers."""
        model = super().model(recipe, vocabulary_size, seed)
        assert isinstance(model, Layers.net)
        model.skip = int(self.skip)
        if self.skip == 2:
            model.extras["lower"] = torch.zeros(vocabulary_size, recipe.model.units * (recipe.model.layers - 1))
        return model


class PlainLoop(Feature):
    """The usual cell in a loop in PyTorch, with which the features that change the cell are compared."""

    class net(Net):  # noqa: N801
        """One layer, one step at a time."""

        def cell(self, x: Tensor, h: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
            """One step: x (B, E) and h (B, H) -> h."""
            z, n = gates(self, x, h, mask)
            return z * h + (1 - z) * n

        def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
            (h,) = self.zero_state(ids.shape[1]) if state is None else state
            x, last, outputs = self.embedded(ids), h[0], []
            mask = dropout.state_mask(last) if dropout is not None else None
            generator = dropout._generator if dropout is not None else None
            for row in x:
                last = self.cell(row, last, mask, generator)
                outputs.append(last)
            y = torch.stack(outputs)
            return dropped(y, dropout), (last[None],)


def gates(net: Net, x: Tensor, h: Tensor, mask: Tensor | None, *, norm: bool = False) -> tuple[Tensor, Tensor]:
    """The update gate and the candidate of a GRU; `norm` normalizes both products by gate."""
    weights, units = net._layer(0), h.shape[1]
    a = F.linear(x, weights.weight_ih)
    b = F.linear(h if mask is None else h * mask, weights.weight_hh)
    if norm:
        a = F.layer_norm(a.unflatten(1, (3, units)), (units,)).flatten(1) * net.extras["gain_x"]
        b = F.layer_norm(b.unflatten(1, (3, units)), (units,)).flatten(1) * net.extras["gain_h"]
    a, b = a + weights.bias_ih, b + weights.bias_hh
    r = torch.sigmoid(a[:, :units] + b[:, :units])
    z = torch.sigmoid(a[:, units : 2 * units] + b[:, units : 2 * units])
    return z, torch.tanh(a[:, 2 * units :] + r * b[:, 2 * units :])


class LayerNorm(PlainLoop):
    """Layer normalization (Ba et al., 2016) of both products inside the cell, by gate."""

    class net(PlainLoop.net):  # noqa: N801
        """See `gates`."""

        def cell(self, x: Tensor, h: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
            """One step."""
            z, n = gates(self, x, h, mask, norm=True)
            return z * h + (1 - z) * n

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with gains."""
        model = super().model(recipe, vocabulary_size, seed)
        for name in ("gain_x", "gain_h"):
            model.extras[name] = torch.full((3 * recipe.model.units,), 0.5)
        return model


class Mogrifier(PlainLoop):
    """Input and state gate each other before the cell (Melis et al., 2020, arXiv:1909.01792)."""

    rounds = 4

    class net(PlainLoop.net):  # noqa: N801
        """Rounds of gating."""

        rounds = 4

        def cell(self, x: Tensor, h: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
            """One step; the state that is carried on is the one before the gating."""
            gated = h if mask is None else h * mask
            for number in range(self.rounds):
                if number % 2 == 0:
                    x = 2 * torch.sigmoid(F.linear(gated, self.extras[f"q{number}"])) * x
                else:
                    gated = 2 * torch.sigmoid(F.linear(x, self.extras[f"q{number}"])) * gated
            z, n = gates(self, x, gated, None)
            return z * h + (1 - z) * n

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with the matrices of the rounds, zero at the start: gates of one."""
        model = super().model(recipe, vocabulary_size, seed)
        assert isinstance(model, Mogrifier.net)
        model.rounds = int(self.rounds)
        size, units = recipe.model.embedding_size, recipe.model.units
        for number in range(model.rounds):
            model.extras[f"q{number}"] = torch.zeros((size, units) if number % 2 == 0 else (units, size))
        return model


class ScaledLoop(PlainLoop):
    """A multiplicative layer in the same loop: the state is multiplied by 1 + tanh of a projection of the embedding."""

    class net(PlainLoop.net):  # noqa: N801
        """See `scaled`."""

        def scaled(self, x: Tensor, h: Tensor) -> Tensor:
            """The state (B, H) as the gates see it."""
            return h * (1 + torch.tanh(F.linear(x, self.extras["scale"])))

        def cell(self, x: Tensor, h: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
            """One step."""
            z, n = gates(self, x, self.scaled(x, h if mask is None else h * mask), None)
            return z * h + (1 - z) * n

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with the projection, zero at the start."""
        model = super().model(recipe, vocabulary_size, seed)
        model.extras["scale"] = torch.zeros(recipe.model.units, recipe.model.embedding_size)
        return model


class GatedInput(ScaledLoop):
    """A multiplicative layer whose input is gated by the state first, as in the first round of Mogrifier gates."""

    class net(ScaledLoop.net):  # noqa: N801
        """One round more than `ScaledLoop`."""

        def cell(self, x: Tensor, h: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
            """One step."""
            seen = h if mask is None else h * mask
            x = 2 * torch.sigmoid(F.linear(seen, self.extras["gate"])) * x
            z, n = gates(self, x, self.scaled(x, seen), None)
            return z * h + (1 - z) * n

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with the matrix of the gate, zero at the start: a gate of one."""
        model = super().model(recipe, vocabulary_size, seed)
        model.extras["gate"] = torch.zeros(recipe.model.embedding_size, recipe.model.units)
        return model


class Zoneout(PlainLoop):
    """Some units keep their state for a step (Krueger et al., 2017, arXiv:1606.01305)."""

    share = 0.05

    class net(PlainLoop.net):  # noqa: N801
        """Units that sleep."""

        share = 0.05

        def cell(self, x: Tensor, h: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
            """One step; the mean of training at evaluation."""
            z, n = gates(self, x, h, mask)
            after = z * h + (1 - z) * n
            asleep: Any = self.share
            if generator is not None:
                asleep = (torch.rand(h.shape, generator=generator) < self.share).float()
            return after + asleep * (h - after)

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model that knows its share."""
        model = super().model(recipe, vocabulary_size, seed)
        assert isinstance(model, Zoneout.net)
        model.share = self.share
        return model


# Initial values.


class SlowGates(Feature):
    """A bias on the update gate, so that units forget slowly at first; with `longest`, each at its own pace.

    The paces are those of Tallec & Ollivier (2018, arXiv:1804.11188): 1 to `longest` characters.
    """

    bias = 1.0
    longest = 0

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with other biases."""
        model, units = super().model(recipe, vocabulary_size, seed), recipe.model.units
        with torch.no_grad():
            bias = torch.full((units,), float(self.bias))
            if self.longest:
                spans = torch.rand(units, generator=torch.Generator().manual_seed(seed + 2000)) * (self.longest - 2) + 1
                bias = spans.log()
            model.weight("recurrent.0.bias_ih")[units : 2 * units] = bias
        return model


class LearnedStart(Feature):
    """The state from which a text begins is learned."""

    class net(Net):  # noqa: N801
        """A learned zero."""

        def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
            (h,) = self.zero_state(ids.shape[1]) if state is None else state
            fresh = (h == 0).all(dim=-1, keepdim=True)
            return super()._recurrent(ids, (torch.where(fresh, self.extras["start"], h),), dropout)

    def model(self, recipe: Recipe, vocabulary_size: int, seed: int) -> Net:
        """The model with a start of nearly zero."""
        model = super().model(recipe, vocabulary_size, seed)
        model.extras["start"] = torch.full((recipe.model.units,), 1e-3)
        return model


# Optimizers.


class Rates(Feature):
    """Some weights learn faster or slower than others."""

    embedding = 1.0
    input = 1.0
    hidden = 1.0
    head = 1.0
    biases = 1.0
    beta1 = 0.9
    beta2 = 0.98
    epsilon = 1e-8
    decay = 1.0
    clip = 1.0
    learning = 1.0

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with other constants of Adam."""
        return recipe.with_options(
            {
                "beta1": self.beta1,
                "beta2": self.beta2,
                "epsilon": self.epsilon,
                "clip_norm": self.clip,
                "weight_decay": self.decay * recipe.training.weight_decay,
                "learning_rate": self.learning * recipe.training.learning_rate,
            }
        )

    def optimizers(self, model: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """The library's optimizer with a group for each kind of weight."""
        [*made] = super().optimizers(model, recipe)
        groups = []
        for name, weight in model.named_weights().items():
            kind = {"embedding.weight": "embedding", "head.weight": "head"}.get(name)
            kind = kind or ("biases" if "bias" in name else "input" if "weight_ih" in name else "hidden")
            decay = 0.0 if kind in ("embedding", "biases") else recipe.training.weight_decay
            factor = getattr(self, kind)
            # The decay is a rate times the learning rate; the product stays.
            groups.append(
                {"params": [weight], "lr": recipe.training.learning_rate * factor, "weight_decay": decay / factor}
            )
        training = recipe.training
        adam: Any = type(made[0])
        options = {"betas": (training.beta1, training.beta2), "eps": training.epsilon}
        made[0] = adam(groups, loaded=made[0].loaded, lr=training.learning_rate, fused=True, **options)  # type: ignore[attr-defined]
        return made


class OtherOptimizer(Feature):
    """A base of features with another optimizer for the matrices of the layers."""

    scale = 1.0
    decay = 1.0
    head = 1
    embedding = 0

    def make(self, params: list[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """The optimizer of the chosen matrices."""
        raise NotImplementedError

    def chosen(self, name: str) -> bool:
        """Whether a weight belongs to the other optimizer."""
        kinds = ("weight_ih", "weight_hh", *(("head.weight",) if self.head else ()))
        return name.endswith((*kinds, *(("embedding.weight",) if self.embedding else ())))

    def optimizers(self, model: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """Two optimizers."""
        made = super().optimizers(model, recipe)
        training = recipe.training
        ours = [weight for name, weight in model.named_weights().items() if self.chosen(name)]
        taken = {id(weight) for weight in ours}
        for group in made[0].param_groups:
            group["params"] = [weight for weight in group["params"] if id(weight) not in taken]
        made[0].param_groups[:] = [group for group in made[0].param_groups if group["params"]]
        return [self.make(ours, training.learning_rate * self.scale, training.weight_decay * self.decay), *made]


class Muon(OtherOptimizer):
    """Orthogonal updates (Jordan et al., 2024), scaled as in Liu et al. (2025, arXiv:2502.16982)."""

    rounds = 5
    head = 0

    def make(self, params: list[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """Muon."""
        return optimizers.Muon(params, lr=rate, weight_decay=decay, rounds=int(self.rounds))


class Soap(OtherOptimizer):
    """Adam in the eigenbasis of Shampoo's right factor (Vyas et al., 2024, arXiv:2409.11321)."""

    every = 10
    memory = 0.95
    beta2 = 0.98

    def make(self, params: list[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """SOAP on one side."""
        return optimizers.Soap(
            params, lr=rate, weight_decay=decay, every=int(self.every), memory=self.memory, beta2=self.beta2
        )


class Shampoo(OtherOptimizer):
    """Shampoo (Gupta et al., 2018, arXiv:1802.09568), whose steps are as long as Adam's (Anil et al., 2020)."""

    every = 20
    memory = 0.95

    def make(self, params: list[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """Shampoo on both sides."""
        return optimizers.Shampoo(params, lr=rate, weight_decay=decay, every=int(self.every), memory=self.memory)


class Cautious(OtherOptimizer):
    """AdamW that leaves out updates against the gradient (Liang et al., 2024, arXiv:2411.16085).

    With `decays` it also leaves out decay against the update (Chen et al., 2025, arXiv:2510.12402).
    """

    updates = 1
    decays = 0
    nesterov = 0
    touched = 0
    beta1 = 0.9

    def make(self, params: list[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """Cautious AdamW."""
        careful = {"cautious": bool(self.updates), "cautious_decay": bool(self.decays)}
        careful |= {"nesterov": bool(self.nesterov), "touched": bool(self.touched)}
        return optimizers.Adam(params, lr=rate, weight_decay=decay, beta1=self.beta1, **careful)


class HalfMoments(OtherOptimizer):
    """Second moments in bfloat16; with `first` the first moments too. `cautious` is as the library's own step."""

    embedding = 1
    first = 0
    cautious = 0

    def make(self, params: list[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """AdamW with rounded moments."""
        rounded = {"rounded": True, "rounded_mean": bool(self.first), "cautious": bool(self.cautious)}
        return optimizers.Adam(params, lr=rate, weight_decay=decay, **rounded)


# Schedules.


class Schedule(Feature):
    """Other ways to zero: `constant` of the budget at the peak, then down to zero, linearly or as 1 - sqrt."""

    constant = 0.7
    root = 0

    def rate(self, fraction: float) -> float:
        """Constant, then down."""
        down = max(0.0, (fraction - self.constant) / (1 - self.constant))
        return 1 - (math.sqrt(down) if self.root else down)


class LinearTail(Feature):
    """A cosine that ends at `floor` instead of zero, times a linear fall to zero over the last `tail`."""

    floor = 0.1
    tail = 0.15

    def rate(self, fraction: float) -> float:
        """A cosine to the floor, and a line."""
        cosine = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * fraction))
        return cosine * min(1.0, (1 - fraction) / self.tail)


class GrowingBatch(Feature):
    """Small batches at first, large ones at the end; the learning rate follows by a power of the batch."""

    first, middle, last = 16, 32, 64
    power = 0.0

    def sizes(self, fraction: float) -> tuple[int, int]:
        """Thirds of the characters."""
        return int((self.first, self.middle, self.last)[min(2, int(fraction * 3))]), 64

    def rate(self, fraction: float) -> float:
        """The cosine, scaled."""
        return super().rate(fraction) * (self.sizes(fraction)[0] / 32) ** self.power


class GrowingLength(Feature):
    """Short sequences at first, long ones at the end."""

    first, middle, last = 32, 64, 128

    def sizes(self, fraction: float) -> tuple[int, int]:
        """Thirds of the characters."""
        return 32, int((self.first, self.middle, self.last)[min(2, int(fraction * 3))])


class Restarts(Feature):
    """After `begin` there are several cosines, and the model is the average of the weights at their ends.

    Without `last` the average has the end of the first, long cosine instead of that of the last one.
    """

    cycles = 3
    height = 0.5
    begin = 0.4
    last = 0

    def __init__(self, **settings: float) -> None:
        """No averages yet."""
        super().__init__(**settings)
        self.sums: list[Tensor] = []
        self.count = 0
        self.cycle = -1

    def rate(self, fraction: float) -> float:
        """One cosine, then several lower ones."""
        if fraction < self.begin:
            return super().rate(fraction / self.begin)
        within = (fraction - self.begin) / (1 - self.begin) * self.cycles % 1
        return self.height * super().rate(within)

    def after_step(self, model: Net, fraction: float, step: int) -> None:
        """Add the weights at the end of a cycle."""
        cycle = -1 if fraction < self.begin else int((fraction - self.begin) / (1 - self.begin) * self.cycles)
        if cycle > self.cycle and not (self.last and cycle == 0):
            self._add(model)
        self.cycle = cycle

    def _add(self, model: Net) -> None:
        weights = [weight.detach().clone() for weight in model.parameters()]
        self.sums = [a + b for a, b in zip(self.sums, weights, strict=True)] if self.sums else weights
        self.count += 1

    def finish(self, model: Net) -> None:
        """Load the average."""
        if self.last:
            self._add(model)
        with torch.no_grad():
            for weight, total in zip(model.parameters(), self.sums, strict=True):
                weight.copy_(total / self.count)


class Swa(Restarts):
    """Stochastic weight averaging (Izmailov et al., 2018): a cosine to `height`, held from `begin`; its average."""

    height = 0.3
    begin = 0.75

    def rate(self, fraction: float) -> float:
        """A cosine to the height."""
        return self.height + (1 - self.height) * Feature.rate(self, min(1.0, fraction / self.begin))

    def after_step(self, model: Net, fraction: float, step: int) -> None:
        """Add the weights every 8 steps."""
        if fraction >= self.begin and step % 8 == 0:
            self._add(model)


class Ema(Feature):
    """The library's moving average of the weights."""

    window = 0.1

    def __init__(self, **settings: float) -> None:
        """No average yet."""
        super().__init__(**settings)
        self.mean: list[Tensor] = []

    def after_step(self, model: Net, fraction: float, step: int) -> None:
        """Follow the weights."""
        own = list(model.parameters())
        with torch.no_grad():
            if not self.mean:
                self.mean = [weight.detach().clone() for weight in own]
            if step % 8 == 0:
                torch._foreach_lerp_(self.mean, own, min(1.0, 8 / max(1.0, self.window * step)))

    def finish(self, model: Net) -> None:
        """Load the average."""
        with torch.no_grad():
            for weight, mean in zip(model.parameters(), self.mean, strict=True):
                weight.copy_(mean)


class DropoutRamp(Feature):
    """Dropout that grows from `first` to `last` times the planned rates (Morerio et al., 2017, arXiv:1703.06229)."""

    first = 0.0
    last = 2.0

    def before_step(self, model: Net, recipe: Recipe, fraction: float) -> None:
        """Set the rates."""
        factor = self.first + (self.last - self.first) * fraction
        rates = {name: getattr(recipe.model, name) * factor for name in ("dropout", "recurrent_dropout")}
        model.config = dataclasses.replace(recipe.model, **rates)


def _subclasses(kind: type[Feature]) -> Iterator[type[Feature]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def feature_named(name: str, settings: dict[str, float]) -> Feature:
    """A feature by its class name, or several joined by +; `none` is the baseline."""
    known = {kind.__name__: kind for kind in _subclasses(Feature)} | {"none": Feature}
    kinds = tuple(known[part] for part in name.split("+"))
    return kinds[0](**settings) if len(kinds) == 1 else type("Both", kinds, {})(**settings)
