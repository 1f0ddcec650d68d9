"""The page of an explanation: one file without outside resources, whose policy allows only its own style and script."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from charwright import __version__
from charwright.explanation.charts import bar, embedding_chart, memory_chart, named, shown_lags
from charwright.explanation.results import Findings, Neuron
from charwright.explanation.surprise import CHOICES
from charwright.webpage.template import filled, hash_of, shared, source

MOST_BYTES = 2_800_000
"""The size of a page up to which the activations of further neurons are added."""
MOST_FOUND = 64
"""Neurons that mean something whose activations are on a page whatever its size."""
COLOURS: tuple[str, ...] = ("#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78")
COLOURS += ("#948e77", "#aea371", "#c8b866", "#e5cf52", "#fee838")
"""The colour map cividis (Nuñez, Anderton & Renslow, 2018) in 11 steps: its lightness rises all the way, also in grey
and to colour-blind eyes."""

Row = tuple[int, int]


def page_bytes(findings: Findings) -> bytes:
    """The page as UTF-8."""
    grouped = by_neuron(findings.neurons.found)
    values = {
        "made_by": f"charwright {__version__}",
        "name": html.escape(findings.name),
        "network": html.escape(findings.network),
        "source": html.escape(findings.source),
        "notes": "".join(f"<p>{html.escape(note)}</p>" for note in findings.notes),
        "reading": _reading(findings),
        "text": html.escape(findings.text),
        "memory": _memory(findings),
        "temperatures": _temperatures(findings),
        "gates": _gates(findings),
        "embedding": _embedding(findings),
        "style": shared("house.css") + filled(source("explanation", "page.css"), {"neuron_colours": _neuron_colours()}),
        "script": source("explanation", "see.js"),
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
        "names": [neuron_name(row, findings) for row in order],
        "labels": [", ".join(neuron.feature for neuron in grouped.get(row, [])) for row in order],
    }
    # An HTML parser ends a script at the first </script>, so the JSON must contain no <.
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def neuron_name(row: Row, findings: Findings) -> str:
    """A neuron by its number, and its layer if there are several."""
    several = max(findings.activations.layers, default=1) > 1
    return f"Neuron {row[0]}.{row[1]}" if several else f"Neuron {row[1]}"


# The sections.


def _reading(findings: Findings) -> str:
    unknown = len(findings.unknown)
    words = (
        f"It costs {findings.surprise.bits_per_char:.3f} bits per character: the less, the better it is predicted. "
        "Surprise is −log<sub>2</sub> of the probability that the model gave the character before it read it; a "
        "neuron is coloured by its activation after the character, from the least in the text to the largest."
    )
    if unknown:
        is_are = "is" if unknown == 1 else "are"
        words += f" {unknown:,} of the characters {is_are} outside the vocabulary."
    return words


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; the cells are HTML, the first of each row is its heading, `numbers` are columns of numbers."""

    def css(column: int) -> str:
        return ' class="number"' if column in numbers else ""

    head = "".join(f'<th scope="col"{css(column)}>{text}</th>' for column, text in enumerate(heads))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{css(column)}>{cell}</td>" for column, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    label = html.escape(re.sub(r"<[^>]*>", "", caption))
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{label}"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float, digits: int = 2) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _neurons(findings: Findings, grouped: dict[Row, list[Neuron]], order: Sequence[Row]) -> str:
    search = findings.neurons
    places = {row: index for index, row in enumerate(order)}
    words = search.unsearched or (
        f"All {search.neurons:,} neurons were compared with {sum(not t.reason for t in search.tested)} features of "
        f"{search.characters:,} characters of {html.escape(search.text)}. A neuron is listed if its correlation with a "
        "feature on the first half of that text is larger than chance explains (the text is shifted against itself, "
        "which keeps its own regularity, and the largest value of all neurons and features under each shift is the "
        "measure), if the second half confirms it, if no neuron of untrained networks of this shape comes close to "
        "it, and if it is at least 0.2 on either half. Chance passes the first of these tests with a probability of "
        f"about {search.level:g}; more for features that change slowly."
    )
    rows = []
    for row, neurons in grouped.items():
        best = neurons[0]
        shown = ""
        if row in places:
            name = neuron_name(row, findings)
            shown = (
                f'<button class="small" type="button" data-neuron="{places[row]}" aria-pressed="false" '
                f'aria-label="Show {name} in the text">Show</button>'
            )
        also = ", ".join(f"{n.feature} ({_number(n.confirmed)})" for n in neurons[1:4])
        rows.append(
            (
                neuron_name(row, findings),
                html.escape(best.feature),
                _number(best.correlation),
                _number(best.confirmed),
                _number(best.untrained),
                _number(best.inside),
                _number(best.outside),
                html.escape(also),
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
    parts = [f"<p>{words}</p>"]
    if rows:
        caption = "Neurons that follow a feature, the strongest first; r is the correlation"
        parts.append(table(caption, heads, rows, range(2, 7)))
    elif not search.unsearched:
        parts.append("<p><b>No neuron passes.</b> The network may be too small, or trained too little.</p>")
    tested = [
        (
            html.escape(t.feature),
            html.escape(t.meaning),
            "" if t.reason else _number(t.best),
            "" if t.reason else _number(t.untrained),
            html.escape(t.reason) or str(t.found),
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
        parts.append(
            f"<p>The page has the activations of {len(order):,} neurons; {left_out:,} that vary less are left out to "
            "keep it small.</p>"
        )
    return "\n".join(parts)


def _memory(findings: Findings) -> str:
    memory = findings.memory
    if not memory.positions:
        return "<p>The text is too short to measure this.</p>"
    words = (
        f"At {memory.positions} places a {memory.unit} of the text was replaced by another one, and the network read "
        f"on. The curve shows how much its prediction k {memory.unit}s later differs from the one without the "
        "replacement: the Kullback-Leibler divergence in bits, with two standard errors. "
        f"Half of the largest effect is gone after {memory.in_words(memory.half)}; it stays above 0.01 bits for "
        f"{memory.in_words(memory.reach)}."
    )
    rows = [(str(memory.lags[i]), f"{memory.bits[i]:.4f}", f"{memory.errors[i]:.4f}") for i in shown_lags(memory)]
    heads = (f"{memory.unit.capitalize()}s back", "Bits", "Standard error")
    return (
        f"<p>{words}</p>{memory_chart(memory)}<details><summary>The numbers</summary>"
        f"{table('The effect of one replacement', heads, rows, (1, 2))}</details>"
    )


def _temperatures(findings: Findings) -> str:
    shown = findings.temperatures
    tail = shown.before[-40:].replace("\n", "↵")
    words = (
        f'The prediction after <code dir="auto">{html.escape(tail)}</code> ({findings.level} {shown.position + 1:,} of '
        "the text), at several temperatures. The last column is how many equally likely characters would be as "
        "uncertain."
    )
    heads = ["Temperature", *(html.escape(named(token)) for token in shown.tokens), "all others", "Choices"]
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
            f"Layer {gate.layer}: {gate.name}",
            gate.meaning,
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
    kind = "bytes" if findings.level == "byte" else "characters"
    words = (
        f"The embeddings of the {len(found.tokens):,} {kind} that are most frequent in the text, on their first two "
        f"principal components, which hold {100 * found.explained[0]:.0f} % and {100 * found.explained[1]:.0f} % of "
        "the variance. What is used alike lies close together; a dot is a character that another one would cover."
    )
    rows = [
        (html.escape(named(token)), html.escape("  ".join(named(other) for other in others)))
        for token, others in zip(found.tokens, found.neighbours, strict=True)
    ]
    neighbours = table("The closest neighbours of each by cosine, the closest first", ("Character", "Neighbours"), rows)
    return (
        f'<p>{words}</p><div class="wide" tabindex="0" role="group" aria-label="Map, scrolls sideways">'
        f"{embedding_chart(found)}</div><details><summary>The neighbours of each character</summary>{neighbours}"
        "</details>"
    )
