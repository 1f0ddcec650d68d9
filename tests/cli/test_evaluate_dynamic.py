"""`charwright evaluate --dynamic`: both losses, the gradient statistics, and refusals."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

import charwright as cw
from charwright import cli
from charwright.evaluation import dynamic
from commands import TEXT, Terminal


@pytest.fixture
def repetitive(tmp_path: Path) -> Path:
    """A repetitive text that the model was not trained on."""
    path = tmp_path / "repetitive.txt"
    path.write_text("in the mind to suffer not " * 150, encoding="utf-8")
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_losses_and_the_difference(charwright: Terminal, trained: Path, repetitive: Path) -> None:
    before = contents(trained)
    result = charwright("evaluate", trained, repetitive, "--dynamic", "--dynamic-rate", "0.01")
    assert (result.code, result.err) == (0, "")
    static, learned, chars, source = result.out.splitlines()
    assert re.fullmatch(r"\d\.\d{4} nats per character \(\d\.\d{4} bits\), carried", static)
    assert re.fullmatch(r"\d\.\d{4} nats .*, dynamic: -\d\.\d{3} ± \d\.\d{3}", learned)
    assert float(learned[:6]) < float(static[:6]) - 0.1
    assert chars == "3,899 characters predicted"
    assert source == "gradient statistics: from the training text"
    assert contents(trained) == before


def test_json_has_both(charwright: Terminal, trained: Path, repetitive: Path) -> None:
    options = ["--json", "--dynamic", "--dynamic-rate", "0.01", "--dynamic-decay", "0.1"]
    values = json.loads(charwright("evaluate", trained, repetitive, *options).out)
    learned = values.pop("dynamic")
    assert values == json.loads(charwright("evaluate", trained, repetitive, "--json").out)
    assert learned.keys() == values.keys() - {"trained_on_text", "validation_text"} | {
        "rate",
        "decay",
        "gradient_sizes_from",
    }
    assert learned["nats_per_char"] < values["nats_per_char"] - 0.1
    assert (learned["protocol"], learned["gradient_sizes_from"]) == ("dynamic", "training text")
    assert (learned["rate"], learned["decay"]) == (0.01, 0.1)


def test_a_missing_training_text_is_reported(charwright: Terminal, copy: Path, trained: Path, repetitive: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["corpus"]["sources"][0]["location"] = str(copy / "gone.txt")
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = charwright("evaluate", copy, repetitive, "--dynamic")
    assert result.code == 0
    assert result.err == f"the training text is not available ({copy / 'gone.txt'} is gone)\n"
    assert result.out.endswith("gradient statistics: from this text\n")
    values = json.loads(charwright("evaluate", copy, repetitive, "--dynamic", "--json").out)
    assert values["dynamic"]["gradient_sizes_from"] == "this text"
    assert (
        values["dynamic"]
        != json.loads(charwright("evaluate", trained, repetitive, "--dynamic", "--json").out)["dynamic"]
    )


def test_the_defaults_are_those_of_the_library() -> None:
    command = cli.cli.get_command(None, "evaluate")  # type: ignore[arg-type]
    assert command is not None
    shown = {parameter.name: parameter.default for parameter in command.params}
    assert (shown["dynamic_rate"], shown["dynamic_decay"]) == (dynamic.RATE, dynamic.DECAY)
    kept = inspect.signature(dynamic.evaluate_dynamically).parameters
    assert (kept["rate"].default, kept["decay"].default) == (dynamic.RATE, dynamic.DECAY)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dynamic", "--precision", "q8"], "q8"),
        (["--dynamic", "--protocol", "windows-32"], "windows-32"),
        (["--dynamic-rate", "0.1"], "--dynamic-rate"),
        (["--dynamic-decay", "0.1"], "--dynamic-decay"),
        (["--dynamic", "--dynamic-rate", "-1"], "--dynamic-rate"),
        (["--dynamic", "--dynamic-rate", "nan"], "--dynamic-rate must be finite, not nan"),
        (["--dynamic", "--dynamic-decay", "nan"], "--dynamic-decay must be finite, not nan"),
        (["--dynamic", "--dynamic-decay", "2"], "--dynamic-decay"),
    ],
)
def test_options_that_contradict_each_other(
    charwright: Terminal, trained: Path, corpus: Path, words: list[str], message: str
) -> None:
    result = charwright("evaluate", trained, corpus, *words)
    assert result.code == 2
    assert message in result.line


def test_a_rate_that_diverges(charwright: Terminal, trained: Path, repetitive: Path) -> None:
    result = charwright("evaluate", trained, repetitive, "--dynamic", "--dynamic-rate", "1e38")
    assert result.code == 3
    assert "smaller --dynamic-rate" in result.line


def test_stopped_by_ctrl_c(
    charwright: Terminal, trained: Path, repetitive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("charwright.evaluation.dynamic._Learner._learn", interrupted)
    result = charwright("evaluate", trained, repetitive, "--dynamic")
    assert (result.code, result.out, result.err.strip()) == (130, "", "")


def test_dynamic_evaluation_in_bf16(charwright: Terminal, trained: Path, repetitive: Path) -> None:
    options = ["--dynamic", "--dynamic-rate", "0.01", "--precision", "bf16", "--json", "--device", "cpu"]
    values = json.loads(charwright("evaluate", trained, repetitive, *options).out)
    assert values["dynamic"]["nats_per_char"] < values["nats_per_char"] - 0.1


def test_the_gradient_statistics_come_from_the_training_part(
    charwright: Terminal, trained: Path, repetitive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the whole corpus: the model must not see its validation text."""
    seen: list[int] = []
    real = dynamic.evaluate_dynamically

    def spied(model: object, vocabulary: object, text: str, training: str, **options: object) -> object:
        seen.append(len(training))
        return real(model, vocabulary, text, training, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dynamic, "evaluate_dynamically", spied)
    assert charwright("evaluate", trained, repetitive, "--dynamic").code == 0
    assert seen == [len(cw.split_corpus(TEXT)[0])]
    assert seen[0] < 0.95 * len(TEXT)
