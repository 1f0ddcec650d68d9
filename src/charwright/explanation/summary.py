"""A summary of an explanation: as text for a terminal, and as HTML without scripts for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from charwright.explanation.charts import memory_chart, visible
from charwright.explanation.results import Findings, Neuron

SHOWN_CHARACTERS = 600
SHOWN_NEURONS = 8
BOUNDS = (1, 2, 4, 8)
LABELS = ("under 1", "1 to 2", "2 to 4", "4 to 8", "8 or more")
COLOURS = ("transparent", "#fcefdc", "#f7d6ae", "#f0b37c", "#e78f52")
INK = "; color: #1d1c1a"
"""Dark letters on the light colours, whatever the notebook's theme is."""
STYLE = """<style>
.charwright-explanation svg text { fill: currentColor; font: 11px sans-serif }
.charwright-explanation .axis, .charwright-explanation .grid { stroke: currentColor; stroke-width: .5 }
.charwright-explanation .grid { opacity: .3 }
.charwright-explanation .curve { fill: none; stroke: #b5541c; stroke-width: 2 }
.charwright-explanation .band { fill: #b5541c; opacity: .2 }
.charwright-explanation .chart { width: 30rem; max-width: 100% }
</style>"""


def strongest(found: Sequence[Neuron], most: int) -> list[Neuron]:
    """The strongest finding of each neuron."""
    best: dict[tuple[int, int], Neuron] = {}
    for neuron in found:
        best.setdefault((neuron.layer, neuron.unit), neuron)
    return list(best.values())[:most]


def summary_text(findings: Findings) -> str:
    """The main findings in a few lines."""
    memory, lines = findings.memory, [f"{findings.name}: {findings.network}", findings.source]
    lines.append(f"{findings.surprise.bits_per_char:.3f} bits per character")
    lines += [
        f"layer {n.layer} neuron {n.unit}: {n.feature}, r {n.correlation:+.2f}, confirmed {n.confirmed:+.2f}"
        for n in strongest(findings.neurons.found, SHOWN_NEURONS)
    ]
    lines += [] if findings.neurons.found else [_none_found(findings)]
    if memory.positions:
        reach, half = memory.in_words(memory.reach), memory.in_words(memory.half)
        lines.append(f"remembers {reach} back (0.01 bits); half is gone after {half}")
    lines += [f"layer {g.layer} {g.name} gate: mean {g.mean:.2f}" for g in findings.gates]
    return "\n".join(lines)


def _none_found(findings: Findings) -> str:
    return findings.neurons.unsearched or "no neuron follows a feature of the text"


def summary_html(findings: Findings) -> str:
    """The beginning of the text coloured by surprise, the neurons, the memory and the gates."""
    shown = findings.text[:SHOWN_CHARACTERS]
    spans = "".join(
        _span(character, bits, [token for token, _ in choices])
        for character, bits, choices in zip(
            shown, findings.surprise.bits.tolist(), findings.surprise.choices, strict=False
        )
    )
    neurons = "".join(
        f"<tr><td>{n.layer}</td><td>{n.unit}</td><td>{html.escape(n.feature)}</td><td>{n.correlation:+.2f}</td>"
        f"<td>{n.confirmed:+.2f}</td><td>{n.untrained:.2f}</td></tr>"
        for n in strongest(findings.neurons.found, SHOWN_NEURONS)
    )
    found = (
        "<table><caption>Neurons that follow a feature</caption><thead><tr><th>layer</th><th>neuron</th>"
        f"<th>feature</th><th>r</th><th>confirmed</th><th>untrained, at most</th></tr></thead><tbody>{neurons}</tbody>"
        "</table>"
        if neurons
        else f"<p>{html.escape(_none_found(findings))}</p>"
    )
    legend = " ".join(
        f'<span style="background: {colour}{INK if level else ""}; padding: 0 .4em">{label}</span>'
        for level, (colour, label) in enumerate(zip(COLOURS, LABELS, strict=True))
    )
    gates = ", ".join(f"layer {g.layer} {g.name} {g.mean:.2f}" for g in findings.gates)
    return (
        f'{STYLE}<div class="charwright-explanation"><p><b>{html.escape(findings.name)}</b>: '
        f"{html.escape(findings.network)}; {html.escape(findings.source)}; "
        f"{findings.surprise.bits_per_char:.3f} bits per character.</p>"
        f"<p>Surprise in bits: {legend}</p>"
        f'<pre dir="auto" style="white-space: pre-wrap">\n{spans}</pre>{found}'
        f"<p>The effect of the {findings.memory.unit} k back, in bits:</p>{memory_chart(findings.memory)}"
        f"<p>{'Gates: ' + gates if gates else 'No gates'}. The whole page: <code>.save('page.html')</code>.</p></div>"
    )


def _span(character: str, bits: float, expected: Sequence[str]) -> str:
    if math.isnan(bits):
        return html.escape(character)
    level = sum(bits >= bound for bound in BOUNDS)
    title = html.escape(f"{bits:.2f} bits; expected {' '.join(map(visible, expected))}")
    ink = INK if level else ""
    return f'<span title="{title}" style="background: {COLOURS[level]}{ink}">{html.escape(character)}</span>'
