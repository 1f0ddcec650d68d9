"""The table of the features that were tried: differences from the baseline, costs and verdicts, from untried.jsonl."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

BASELINES = {
    **dict.fromkeys(("PlainLoop", "LayerNorm", "Mogrifier", "Zoneout", "ScaledLoop"), "PlainLoop"),
    "GatedInput": "ScaledLoop",
}
"""The features that are compared with another one than `none`."""

# What a feature is, and what came of it.
VERDICTS: dict[str, tuple[str, str]] = {
    "none": ("no feature", "a control: another learning rate, or more steps"),
    "Cautious": (
        "AdamW that leaves out updates against the gradient",
        "admitted: [in the library](#what-helped)",
    ),
    "HalfMoments": (
        "second moments in bfloat16; first 1: both; cautious 1: cautious steps",
        "no gain in time; half of their memory",
    ),
    "Muon": ("Muon", "worse, and slow"),
    "Soap": ("SOAP, right factor only", "does not pay for its time; worse with strong decay"),
    "Shampoo": (
        "Shampoo, with steps as long as Adam's",
        "does not pay for its time; worse with strong decay",
    ),
    "Rates": ("other learning rates by kind of weight, or another decay", "less than a higher learning rate for all"),
    "SlowGates": ("bias of 1 on the update gate", "no gain"),
    "Ngrams": ("embeddings of hashed n-grams", "gains less than its time would; short texts are memorized"),
    "NgramLogits": (
        "hashed n-grams that add to the logits, a table for each length",
        "as good as one array for all, which is thirteen times smaller",
    ),
    "Votes": ("n-grams that share one array and add to the logits", "admitted: [in the library](#what-helped)"),
    "UnigramBias": ("output bias from the frequencies", "admitted: [in the library](#what-helped)"),
    "UnigramBias+Cautious": ("output bias, and another cautious step", "no gain over the bias alone"),
    "UnigramBias+Rates": ("output bias, and a faster embedding", "worse than the bias alone"),
    "EmbeddingSkip": ("skip connection from the embedding to the head", "gains less than its time would"),
    "TwoAhead": ("a second head for the character after the next", "no gain"),
    "Mixture": ("mixture of softmaxes", "gains less than its time would"),
    "DropoutRamp": ("dropout that grows", "no gain"),
    "LayerNorm": ("layer normalization in the cell", "gains less than its time would"),
    "Mogrifier": (
        "Mogrifier gates",
        "worth its time; [a multiplicative layer](#the-multiplicative-layer), which is one of its rounds, "
        "has about half of the gain for a quarter of what it costs; the rest is below",
    ),
    "PlainLoop": ("no feature, in a loop", "a control: more steps"),
    "ScaledLoop": ("multiplicative layer", "admitted: [in the library](#the-multiplicative-layer)"),
    "GatedInput": (
        "compared with a multiplicative layer: its input is gated by the state",
        "worth its time here, but no gain beside n-grams (below)",
    ),
    "Zoneout": ("zoneout", "worse"),
    "LabelSmoothing": ("label smoothing", "no gain"),
    "ActivationPenalty": ("penalties on activations and their changes", "worse"),
    "SelfDistillation": ("distillation from the average of the model's own weights", "no gain, and slow"),
    "InputNoise": ("random input characters", "worse on one text"),
    "OutputNorm": ("layer normalization before the head", "worse on one text"),
    "Layers": (
        "two or three layers, in the time of one; skip 1: a way around the second, 2: the head sees all",
        "worse: it has 40 to 55 % fewer steps in the same time",
    ),
    "GrowingBatch": ("batches of 16, 32 and 64 rows", "small gain, and slower where small batches are"),
    "GrowingLength": ("sequences of 32, 64 and 128", "with n-grams no gain on two of three texts"),
    "Ema": ("an average over the last tenth of the steps", "no gain where the learning rate ends at zero"),
    "Restarts": ("averages over three restarts of the cosine; last 1: with the end of the last one", "worse"),
    "Swa": ("an average over the last quarter of the steps, at a third of the learning rate", "no gain"),
    "Schedule": (
        "a learning rate that is held for 0.7 of the steps and falls in a line",
        "admitted, with 0.4: [in the library](#what-helped)",
    ),
}

Lines = list[dict[str, Any]]
Key = tuple[str, str, str, float, int, float, float]  # optimizer, feature, settings, minutes, units, rate, share


def table(lines: Lines) -> str:
    """One row for each feature and setting: the differences in all texts, in nats per character."""
    groups: dict[Key, dict[str, list[float]]] = {}
    costs: dict[tuple[str, str, int], list[float]] = {}
    for line in lines:
        settings = ", ".join(f"{name} {value:g}" for name, value in line["settings"].items())
        optimizer = line.get("optimizer", "adamw")
        key = (optimizer, line["feature"], settings, line["minutes"], line["units"], line["rate"], line["share"])
        groups.setdefault(key, {}).setdefault(line["corpus"], []).append(line["carried"])
        costs.setdefault((line["feature"], settings, line["units"]), []).append(line["cost"])
    spread = deviations(groups)
    rows = [
        "| feature | settings | optimizer, minutes, units, learning rate | difference (trials) | cost | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for key, texts in sorted(groups.items(), key=lambda group: (group[0][1:], group[0][0])):
        optimizer, feature, settings, minutes, units, rate, share = key
        # Another learning rate alone is compared with the plan's.
        same = 1.0 if feature == "none" and share == 1.0 else rate
        baseline = groups.get((optimizer, BASELINES.get(feature, "none"), "", minutes, units, same, 1.0), {})
        if not baseline and feature == "none":  # The loop computes the same model.
            baseline = groups.get((optimizer, "PlainLoop", "", minutes, units, same, 1.0), {})
        if texts is baseline:
            continue
        differences = [
            f"{corpus} {difference(losses, baseline[corpus], spread.get(corpus))}"
            for corpus, losses in sorted(texts.items())
            if corpus in baseline
        ]
        if not differences:
            continue
        relative = 1.0 if BASELINES.get(feature) == feature else statistics.median(costs[feature, settings, units])
        name, verdict = VERDICTS.get(feature, (feature, ""))
        given = ", ".join([*([settings] if settings else []), *([f"{share:g} times the steps"] if share != 1 else [])])
        budget = f"{optimizer}, {minutes:g}, {units}, {0.004 * rate:g}"
        rows.append(f"| {name} | {given} | {budget} | {'; '.join(differences)} | {relative * share:.2f} | {verdict} |")
    return "\n".join(rows)


def difference(losses: list[float], baseline: list[float], spread: float | None) -> str:
    """The difference of two means, with its standard error if the deviation between seeds is known."""
    shown = f"{statistics.fmean(losses) - statistics.fmean(baseline):+.4f}".replace("-", "\N{MINUS SIGN}")
    error = f" ± {spread * math.sqrt(1 / len(losses) + 1 / len(baseline)):.4f}" if spread else ""
    return f"{shown}{error} ({len(losses)})"


def deviations(groups: dict[Key, dict[str, list[float]]]) -> dict[str, float]:
    """The standard deviation between seeds of each text, pooled over all that was tried with several seeds."""
    squares: dict[str, list[float]] = {}
    freedom: dict[str, int] = {}
    for texts in groups.values():
        for corpus, losses in texts.items():
            mean = statistics.fmean(losses)
            squares.setdefault(corpus, []).extend((loss - mean) ** 2 for loss in losses)
            freedom[corpus] = freedom.get(corpus, 0) + len(losses) - 1
    return {corpus: math.sqrt(sum(some) / freedom[corpus]) for corpus, some in squares.items() if freedom[corpus]}


def main() -> None:
    """Print the table."""
    ledger = Path(__file__).with_name("untried.jsonl")
    print(table([json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
