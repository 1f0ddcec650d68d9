"""The page of an explanation: one file without outside resources, whose policy allows only its own style and script."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from charwright import __version__
from charwright.explanation.charts import bar, embedding_chart, memory_chart, named, shown_lags
from charwright.explanation.results import Findings, Neuron
from charwright.explanation.surprise import CHOICES
from charwright.webpage.sentence import Sentence, in_attribute, in_html
from charwright.webpage.template import filled, hash_of, shared, source, translations

MOST_BYTES = 2_800_000
"""The size of a page up to which the activations of further neurons are added."""
MOST_FOUND = 64
"""Neurons that mean something whose activations are on a page whatever its size."""
COLOURS: tuple[str, ...] = ("#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78")
COLOURS += ("#948e77", "#aea371", "#c8b866", "#e5cf52", "#fee838")
"""The colour map cividis (Nuñez, Anderton & Renslow, 2018) in 11 steps: its lightness rises all the way, also in grey
and to colour-blind eyes."""

SPACE, SEMICOLON = Sentence(" "), Sentence("; ")

Row = tuple[int, int]


def page_bytes(findings: Findings) -> bytes:
    """The page as UTF-8."""
    grouped = by_neuron(findings.neurons.found)
    title = Sentence("What {name} has learned", name=findings.name)
    values = {
        "made_by": f"charwright {__version__}",
        "footer": in_html(
            Sentence(
                "Made by {program}. The page needs no network and sends nothing.", program=f"charwright {__version__}"
            )
        ),
        "name": html.escape(findings.name),
        "title": in_html(title, "title"),
        "heading": in_html(title),
        "shown": in_html(Sentence("{network}. Shown: {source}.", network=findings.network, source=findings.source)),
        "notes": "".join(f"<p>{in_html(note)}</p>" for note in findings.notes),
        "words": translations("explanation"),
        "reading": _reading(findings),
        "text": html.escape(findings.text),
        "memory": _memory(findings),
        "temperatures": _temperatures(findings),
        "gates": _gates(findings),
        "embedding": _embedding(findings),
        "style": shared("house.css") + filled(source("explanation", "page.css"), {"neuron_colours": _neuron_colours()}),
        "script": shared("language.js") + source("explanation", "see.js"),
        "activations": "",
        "data": "",
        "neurons": "",
    }
    values["policy"] = _policy(values["style"], values["script"])
    template = source("explanation", "page.html")
    size = sum(len(value.encode("utf-8", "replace")) for value in values.values()) + len(template)
    size += len(findings.text) * (8 + 4 * CHOICES)
    room = max(MOST_BYTES - size, 0) // max(1, 4 * len(findings.text) // 3)
    kept = max(min(len(grouped), MOST_FOUND), min(room, len(findings.activations.units)))
    order = list(zip(findings.activations.layers[:kept], findings.activations.units[:kept], strict=True))
    values["neurons"] = _neurons(findings, grouped, order)
    values["data"] = _data(findings, grouped, order)
    values["activations"] = _base64(np.rint(findings.activations.values[:kept] * 127).astype(np.int8))
    return filled(template, values).encode("utf-8", "replace")  # A name of a file need not be text.


def by_neuron(found: Sequence[Neuron]) -> dict[Row, list[Neuron]]:
    """The findings of each neuron (layer, unit), the strongest first."""
    grouped: dict[Row, list[Neuron]] = {}
    for neuron in found:
        grouped.setdefault((neuron.layer, neuron.unit), []).append(neuron)
    return grouped


def _policy(style: str, script: str) -> str:
    """Nothing is allowed but the page's own style and script, by their hashes; both fill the lines between tags."""
    allowed = f"script-src {_hash(script)}; style-src {_hash(style)}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return hash_of(f"\n{text}\n")


def _neuron_colours() -> str:
    return "\n".join(
        f".n{step} {{ background: {colour}; color: {_ink_on(colour)}; }}" for step, colour in enumerate(COLOURS)
    )


def _ink_on(colour: str) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2.2, relative luminance); at least 4.5 on any colour."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def _base64(array: npt.NDArray[np.generic]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def _data(findings: Findings, grouped: dict[Row, list[Neuron]], order: Sequence[Row]) -> str:
    tokens, shares = [], []
    for choices in findings.surprise.choices:
        padded = [*choices, *[("\0", 0.0)] * (CHOICES - len(choices))]
        tokens += [token for token, _ in padded]
        shares += [round(65535 * min(p, 1.0)) for _, p in padded]
    data = {
        "text": findings.text,
        "bits": [None if math.isnan(bits) else round(bits, 2) for bits in findings.surprise.bits.tolist()],
        "width": CHOICES,
        "tokens": "".join(tokens),
        "shares": _base64(np.array(shares, dtype=np.uint16)),
        "unknown": list(findings.unknown),
        "found": sum(row in grouped for row in order),
        "numbers": [_number_of(row, findings) for row in order],
        "features": [[neuron.feature for neuron in grouped.get(row, [])] for row in order],
    }
    # An HTML parser ends a script at the first </script>, so the JSON must contain no <.
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def neuron_name(row: Row, findings: Findings) -> str:
    """A neuron by its number, and its layer if there are several."""
    return Sentence("Neuron {number}", number=_number_of(row, findings))


def _number_of(row: Row, findings: Findings) -> str:
    several = max(findings.activations.layers, default=1) > 1
    return f"{row[0]}.{row[1]}" if several else str(row[1])


# The sections.


def _reading(findings: Findings) -> str:
    unknown = len(findings.unknown)
    words = Sentence(
        "It costs {bits} bits per character: the less, the better it is predicted. Surprise is −log₂ of the "
        "probability that the model gave the character before it read it; a neuron is coloured by its activation "
        "after the character, from the least in the text to the largest.",
        bits=f"{findings.surprise.bits_per_char:.3f}",
    )
    if not unknown:
        return in_html(words)
    one = "1 of the characters is outside the vocabulary."
    several = Sentence("{number} of the characters are outside the vocabulary.", number=f"{unknown:,}")
    return f"{in_html(words)}{in_html(SPACE)}<span>{in_html(one if unknown == 1 else several)}</span>"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; the cells are HTML, the first of each row is its heading, `numbers` are columns of numbers.

    The caption and the headings are texts.
    """

    def css(column: int) -> str:
        return ' class="number"' if column in numbers else ""

    head = "".join(f'<th scope="col"{css(column)}>{in_html(text)}</th>' for column, text in enumerate(heads))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{css(column)}>{cell}</td>" for column, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="group" {in_attribute("aria-label", caption)}><table>'
        f"<caption>{in_html(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float, digits: int = 2) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _neurons(findings: Findings, grouped: dict[Row, list[Neuron]], order: Sequence[Row]) -> str:
    search = findings.neurons
    places = {row: index for index, row in enumerate(order)}
    words = search.unsearched or Sentence(
        "All {neurons} neurons were compared with {features} features of {characters} characters of {text}. A neuron "
        "is listed if its correlation with a feature on the first half of that text is larger than chance explains "
        "(the text is shifted against itself, which keeps its own regularity, and the largest value of all neurons "
        "and features under each shift is the measure), if the second half confirms it, if no neuron of untrained "
        "networks of this shape comes close to it, and if it is at least 0.2 on either half. Chance passes the first "
        "of these tests with a probability of about {level}; more for features that change slowly.",
        neurons=f"{search.neurons:,}",
        features=sum(not t.reason for t in search.tested),
        characters=f"{search.characters:,}",
        text=search.text,
        level=f"{search.level:g}",
    )
    rows = []
    for row, neurons in grouped.items():
        best = neurons[0]
        shown = ""
        if row in places:
            said = Sentence("Show {name} in the text", name=neuron_name(row, findings))
            shown = (
                f'<button class="small" type="button" data-neuron="{places[row]}" aria-pressed="false" '
                f"{in_attribute('aria-label', said)}>Show</button>"
            )
        also = in_html(SEMICOLON).join(
            f"<span>{in_html(n.feature)}</span> ({_number(n.confirmed)})" for n in neurons[1:4]
        )
        rows.append(
            (
                in_html(neuron_name(row, findings)),
                in_html(best.feature),
                _number(best.correlation),
                _number(best.confirmed),
                _number(best.untrained),
                _number(best.inside),
                _number(best.outside),
                also,
                shown,
            )
        )
    heads: tuple[str, ...] = (
        "Neuron",
        "Feature",
        "r, first half",
        "r, second half",
        "Untrained, at most",
        "Mean inside",
    )
    heads += ("Mean outside", "Also (r)", "In the text")
    parts = [f"<p>{in_html(words)}</p>"]
    if rows:
        caption = "Neurons that follow a feature, the strongest first; r is the correlation"
        parts.append(table(caption, heads, rows, range(2, 7)))
    elif not search.unsearched:
        why = "<span>The network may be too small, or trained too little.</span>"
        parts.append(f"<p><b>No neuron passes.</b>{in_html(SPACE)}{why}</p>")
    tested = [
        (
            in_html(t.feature),
            in_html(t.meaning),
            "" if t.reason else _number(t.best),
            "" if t.reason else _number(t.untrained),
            in_html(t.reason) or str(t.found),
        )
        for t in search.tested
    ]
    heads = ("Feature", "What it is", "Largest |r|", "Untrained, at most", "Neurons found")
    parts.append(
        "<details><summary>All features that were tested</summary>"
        + table("Features, and their best neuron on the first half", heads, tested, (2, 3))
        + "</details>"
    )
    left_out = len(findings.activations.units) - len(order)
    if left_out:
        said = Sentence(
            "The page has the activations of {number} neurons; {others} that vary less are left out to keep it small.",
            number=f"{len(order):,}",
            others=f"{left_out:,}",
        )
        parts.append(f"<p>{in_html(said)}</p>")
    return "\n".join(parts)


def _memory(findings: Findings) -> str:
    memory = findings.memory
    if not memory.positions:
        return "<p>The text is too short to measure this.</p>"
    words = Sentence(
        "At {positions} places a {unit} of the text was replaced by another one, and the network read on. The curve "
        "shows how much its prediction k {unit}s later differs from the one without the replacement: the "
        "Kullback-Leibler divergence in bits, with two standard errors. Half of the largest effect is gone after "
        "{half}; it stays above 0.01 bits for {reach}.",
        positions=memory.positions,
        unit=Sentence(memory.unit),
        half=memory.in_words(memory.half),
        reach=memory.in_words(memory.reach),
    )
    rows = [(str(memory.lags[i]), f"{memory.bits[i]:.4f}", f"{memory.errors[i]:.4f}") for i in shown_lags(memory)]
    heads = (f"{memory.unit.capitalize()}s back", "Bits", "Standard error")
    return (
        f"<p>{in_html(words)}</p>{memory_chart(memory)}<details><summary>The numbers</summary>"
        f"{table('The effect of one replacement', heads, rows, (1, 2))}</details>"
    )


def _temperatures(findings: Findings) -> str:
    shown = findings.temperatures
    tail = shown.before[-40:].replace("\n", "↵")
    behind = Sentence(
        "({unit} {number} of the text), at several temperatures. The last column is how many equally likely characters "
        "would be as uncertain.",
        unit=Sentence(findings.level),
        number=f"{shown.position + 1:,}",
    )
    words = (
        f'<span>The prediction after</span> <code dir="auto" lang="" translate="no">{html.escape(tail)}</code> '
        f"{in_html(behind)}"
    )
    heads = ["Temperature", *(named(token) for token in shown.tokens), "all others", "Choices"]
    rows = [
        (
            f"{temperature:g}",
            *(f"{100 * share:.1f} % {bar(share, 40)}" for share in shares),
            f"{choices:.1f}",
        )
        for temperature, shares, choices in zip(shown.temperatures, shown.shares.tolist(), shown.choices, strict=True)
    ]
    caption = "The probability of the likeliest characters at each temperature"
    return f"<p>{words}</p>{table(caption, heads, rows, range(1, len(heads)))}"


def _gates(findings: Findings) -> str:
    if not findings.gates:
        return "<p>A plain recurrent network has no gates: every step replaces the whole state.</p>"
    rows = [
        (
            in_html(Sentence("Layer {layer}: {name}", layer=gate.layer, name=Sentence(gate.name))),
            in_html(gate.meaning),
            f"{gate.mean:.2f} {bar(gate.mean)}",
            f"{100 * gate.closed:.0f} %",
            f"{100 * gate.open:.0f} %",
        )
        for gate in findings.gates
    ]
    heads = ("Gate", "What it is", "Mean", "Below 0.1", "Above 0.9")
    words = "A gate is a number between 0, closed, and 1, open, for every unit and character."
    return f"<p>{words}</p>{table('Gates over all units and characters of the text', heads, rows, (2, 3, 4))}"


def _embedding(findings: Findings) -> str:
    found = findings.embedding
    if len(found.tokens) < 3:
        return "<p>The text has fewer than three characters of the vocabulary.</p>"
    words = Sentence(
        "The embeddings of the {number} {unit}s that are most frequent in the text, on their first two principal "
        "components, which hold {first} % and {second} % of the variance. What is used alike lies close together; a "
        "dot is a character that another one would cover.",
        number=f"{len(found.tokens):,}",
        unit=Sentence(findings.level),
        first=f"{100 * found.explained[0]:.0f}",
        second=f"{100 * found.explained[1]:.0f}",
    )
    rows = [
        (in_html(named(token)), "  ".join(f"<span>{in_html(named(other))}</span>" for other in others))
        for token, others in zip(found.tokens, found.neighbours, strict=True)
    ]
    neighbours = table("The closest neighbours of each by cosine, the closest first", ("Character", "Neighbours"), rows)
    return (
        f'<p>{in_html(words)}</p><div class="wide" tabindex="0" role="group" aria-label="Map, scrolls sideways">'
        f"{embedding_chart(found)}</div><details><summary>The neighbours of each character</summary>{neighbours}"
        "</details>"
    )
