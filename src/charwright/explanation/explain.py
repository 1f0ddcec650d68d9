"""Explain a run: let its network read a text, and look inside."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from charwright.data.parts import Places
from charwright.data.texts import Text
from charwright.errors import CorpusError, RunError, UsageError
from charwright.explanation.explanation import Explanation
from charwright.explanation.inside import Layer, Network
from charwright.explanation.memory import memory_of
from charwright.explanation.neurons import MOST_CHARACTERS, search_neurons
from charwright.explanation.overview import embedding_map, gates_of, temperatures_of
from charwright.explanation.results import FEWEST_CHARACTERS, Activations, NeuronSearch
from charwright.explanation.surprise import last_steps, surprise_of
from charwright.run import Run
from charwright.run_view import layers_in_words
from charwright.webpage.sentence import Sentence
from charwright.workflow.texts import Specs, texts_of_run

LENGTH = 5000
MOST_HELD_OUT = 2_000_000
"""Characters of a validation text that are read: many more than are shown or searched."""
MOST_LENGTH = 50_000
FEWEST = 20


def explain(
    run: Run | str | os.PathLike[str],
    text: Text | None = None,
    *,
    source: str | None = None,
    length: int = LENGTH,
    moved: Specs = (),
    seed: int = 0,
    places: Places | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """What the network of a run does with a text: `explain("runs/novel")` shows itself in a notebook.

    Neurons are searched on the run's validation text, which it was not trained on; on the given text if
    that has fewer than 2,000 characters or is not available.

    Args:
        run: the run, or its folder.
        text: the text to show, of which no more is read than is needed; by default the run's validation text.
        source: what the given text is, for the reader; by default "the given text".
        length: how many characters of the text to show, from its beginning: 20 to 50,000.
        moved: where the run's corpus is now, if it has moved.
        seed: of everything that is drawn.
        places: where corpora are read from; by default the user's folders.
        progress: called with a line before each long part.

    Raises:
        RunError: when there is no run, or it has no intact weights.
        CorpusError: when the text is too short, or none is given and the run's own cannot be found.
        UsageError: when `length` is out of bounds, or the run has labels.
    """
    if not FEWEST <= length <= MOST_LENGTH:
        raise UsageError(f"an explanation shows {FEWEST} to {MOST_LENGTH:,} characters, not {length:,}")
    opened = run if isinstance(run, Run) else Run.open(run)
    if opened.vocabulary.labels:
        raise UsageError(
            f"{opened.folder} was trained with labels, which a text to explain does not have; charwright score shows"
            " the bits of each of its records"
        )
    weights = opened.weights()
    held_out, complaint = _held_out(opened, moved, places)
    notes: list[str] = []
    if text is None:
        if complaint:
            raise CorpusError(f"{complaint}; name a text to explain the run with")
        text, source = held_out, Sentence("the validation text of the run, which it was not trained on")
    elif not complaint and len(held_out) < FEWEST_CHARACTERS <= len(text):
        complaint = Sentence(
            "the validation text of the run has fewer than {least} characters", least=f"{FEWEST_CHARACTERS:,}"
        )
    if complaint:
        notes.append(Sentence("{reason}: neurons are searched on the text that is shown", reason=complaint))
    if len(text) < FEWEST:
        raise CorpusError(f"the text to explain has {len(text)} characters; at least {FEWEST} are needed")
    characters, text = len(text), text[: max(length, MOST_CHARACTERS)]
    shown = text[:length]
    searched = (
        (text, Sentence("the text that is shown"))
        if complaint
        else (held_out, Sentence("the validation text of the run"))
    )

    vocabulary = opened.vocabulary
    network = Network(opened.model, weights)
    ids = torch.from_numpy(vocabulary.encode(shown).astype(np.int64))
    progress("reading the text")
    layers = network.read(ids[:, None])
    surprise = surprise_of(shown, vocabulary, network, layers, ids)
    progress("measuring how far back it remembers")
    unit = "byte" if vocabulary.level == "byte" else "character"
    memory = memory_of(network, layers, ids, unit=unit, seed=seed)
    neurons = search_neurons(
        opened.model,
        network,
        vocabulary,
        *searched,
        embedding_range=opened.config.recipe.training.embedding_range,
        seed=seed,
        progress=progress,
    )
    if opened.model.ngram_bits:
        last = Sentence(f"{{number}} {unit}s", number=opened.model.ngram_order)
        notes.append(
            Sentence(
                "Surprise, memory and temperatures include the n-grams, which see the last {last}; neurons, gates and "
                "embeddings are those of the network alone.",
                last=last,
            )
        )
    known = set(vocabulary.tokens)
    return Explanation(
        name=opened.folder.resolve().name,
        network=_network_line(opened),
        text=shown,
        source=_source(shown, characters, Sentence("the given text") if source is None else source),
        unknown=() if unit == "byte" else tuple(i for i, character in enumerate(shown) if character not in known),
        level=unit,
        surprise=surprise,
        neurons=neurons,
        activations=_activations(layers, last_steps(shown, vocabulary), neurons),
        memory=memory,
        embedding=embedding_map(network, vocabulary, ids),
        gates=gates_of(layers, opened.model.cell),
        temperatures=temperatures_of(network, layers, vocabulary, shown, ids),
        notes=tuple(notes),
    )


def _held_out(run: Run, moved: Specs, places: Places | None) -> tuple[str, str]:
    """The validation text of a run, or why there is none."""
    if not run.config.sources:
        return "", Sentence("{run} has no record of its corpus", run=run.folder)
    try:
        _, held_out = texts_of_run(run, moved, places or Places.of_this_user())
    except (CorpusError, RunError) as error:
        if moved:
            raise
        reason = error.for_shell.partition(";")[0]
        return "", Sentence("the validation text of {run} is not available ({reason})", run=run.folder, reason=reason)
    read = held_out[:MOST_HELD_OUT]
    return read, "" if read else Sentence("{run} has no validation text", run=run.folder)


def _network_line(run: Run) -> str:
    model, tokens = run.model, f"{len(run.vocabulary):,}"
    parts = layers_in_words(model)
    if model.tied:
        parts = Sentence("{network}, tied embedding", network=parts)
    if model.ngram_bits:
        of_two = "{network}, n-grams of 2 tokens ({numbers} numbers)"
        of_more = "{network}, n-grams of 2 to {order} tokens ({numbers} numbers)"
        values = {"order": model.ngram_order, "numbers": f"{1 << model.ngram_bits:,}"}
        parts = Sentence(of_two if model.ngram_order == 2 else of_more, network=parts, **values)
    return Sentence("{network}, {tokens} tokens", network=parts, tokens=tokens)


def _source(shown: str, characters: int, source: str) -> str:
    number = f"{characters:,}"
    if len(shown) == characters:
        return Sentence("all {number} characters of {source}", number=number, source=source)
    some = "the first {shown} of the {number} characters of {source}"
    return Sentence(some, shown=f"{len(shown):,}", number=number, source=source)


def _activations(layers: list[Layer], last: np.ndarray, neurons: NeuronSearch) -> Activations:
    """The activations of all neurons: those found first, then the others, those that vary most first."""
    steps = torch.from_numpy(last)
    values = torch.cat([layer.activations[steps, 0].T for layer in layers]).numpy()
    units = layers[0].hidden.shape[2]
    first = dict.fromkeys((neuron.layer - 1) * units + neuron.unit - 1 for neuron in neurons.found)
    others = np.argsort(-values.std(axis=1), kind="stable").tolist()
    order = [*first, *(row for row in others if row not in first)]
    return Activations(
        tuple(row // units + 1 for row in order), tuple(row % units + 1 for row in order), values[order], len(order)
    )
