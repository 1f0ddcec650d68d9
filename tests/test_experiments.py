"""The ledger of the experiments: valid options, complete figures, no duplicates."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.config import Recipe
from charwright.data.sequences import make_dataset
from charwright.model.compute import Compute
from charwright.training import events

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXPERIMENTS / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", lines_of("ledger.jsonl"), ids=lambda line: f"{line['corpus']}-{line['minutes']:g}")
def test_a_trial_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert 0 < line["train"] < 10
    assert 0 < line["carried"] < 10
    assert line["steps"] > 0
    assert line["passes"] > 0


def test_no_trial_is_listed_twice() -> None:
    keys = [json.dumps([line[key] for key in ("corpus", "minutes", "options")]) for line in lines_of("ledger.jsonl")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("line", lines_of("small_texts.jsonl"), ids=lambda line: line["corpus"])
def test_a_trial_of_a_small_text_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert 0 < line["carried"] < 10
    assert ("input_dropout" in line) != ("teachers" in line)
    if "teachers" in line:  # The logarithm of a mean is at least the mean of the logarithms.
        assert line["ensemble"] <= sum(line["teachers"]) / len(line["teachers"])


@pytest.mark.parametrize("line", lines_of("held_rates.jsonl"), ids=lambda line: line["text"])
def test_a_trial_of_a_held_rate_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert 0 < line["loss"] < 10
    assert line["steps"] > 0
    assert not {"decay", "chance"} <= set(line), "one of both"


@pytest.mark.parametrize("line", lines_of("excerpts.jsonl"), ids=lambda line: f"{line['text']}-{line['length']}")
def test_a_trial_of_excerpts_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"]).sequences.order == ("excerpts" if line["length"] else "streams")
    assert 0 < line["loss"] < 10
    assert line["steps"] > 0


@pytest.mark.parametrize("line", lines_of("other_plays.jsonl"), ids=lambda line: str(line["characters"]))
def test_a_trial_of_other_plays_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert 0 < line["loss"] < 10
    assert line["steps"] == pytest.approx(line["characters"] / 2_048 * line["passes"], rel=0.05)


@pytest.mark.parametrize("line", lines_of("small_distillation.jsonl"), ids=lambda line: line["text"])
def test_a_trial_of_teachers_has_its_figures(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert line["ensemble"] <= sum(line["teachers"]) / len(line["teachers"])
    assert line["written"] >= 0
    assert line["student"] == pytest.approx(min(loss for _, loss in line["curve"]))


def test_the_early_trials_have_the_same_figures() -> None:
    assert {"corpus", "minutes", "options", "steps", "passes", "train", "carried", "windows"} <= set(
        lines_of("early_trials.jsonl")[0]
    )


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("untried")


class Letters:
    """A text of random letters, as the trials read theirs."""

    ids = np.random.default_rng(1).integers(1, 30, size=20_000).astype(np.int32)
    vocabulary = range(30)


def test_the_baseline_of_the_untried_features_trains_as_the_library_does(untried: Any) -> None:
    options = {"units": 32, "dropout": 0.1, "recurrent_dropout": 0.1, "steps": 12, "warmup": 0, "ema": 0}
    recipe = Recipe().with_options({**options, "seed": 3, "log_every": 1})
    training = untried.Training(untried.feature_named("none", {}), Letters, recipe, 12 * 32 * 64, 3)
    model = cw.LanguageModel(recipe.model, 30, seed=3, compute=Compute.choose("cpu", precision="f32"))
    fitted = cw.fit(model, make_dataset(Letters.ids, recipe.sequences, 3), recipe.training)
    losses = [event.loss for event in fitted if isinstance(event, events.Step)]
    assert [training.step() for _ in range(12)] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("name", sorted({line["feature"] for line in lines_of("untried.jsonl")}))
def test_an_untried_feature_still_trains(untried: Any, name: str) -> None:
    recipe = Recipe().with_options({"units": 32, "embedding_size": 32, "seq_length": 16})
    settings = {"units": 32.0} if name == "Layers" else {}
    feature = untried.feature_named(name, settings)
    if isinstance(feature, untried.Distillation):
        feature.teacher = untried.Training(untried.Feature(), Letters, recipe, 1e5, 2).model
    training = untried.Training(feature, Letters, recipe, 1e5, 1)
    losses = [training.step() for _ in range(4)]
    assert all(0 < loss < 6 for loss in losses)


@pytest.mark.parametrize("line", lines_of("untried.jsonl"), ids=lambda line: f"{line['corpus']}-{line['feature']}")
def test_the_trial_of_an_untried_feature_is_complete(untried: Any, line: dict[str, Any]) -> None:
    assert untried.feature_named(line["feature"], line["settings"])
    assert 0 < line["carried"] < 10
    assert line["steps"] > 0
    assert line["cost"] > 0


def test_no_trial_of_an_untried_feature_is_listed_twice(untried: Any) -> None:
    keys = [untried.key_of(line) for line in lines_of("untried.jsonl")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("line", lines_of("ngram_orders.jsonl"), ids=lambda line: f"{line['corpus']}-{line['orders']}")
def test_a_trial_of_n_gram_lengths_can_be_repeated(line: dict[str, Any]) -> None:
    assert Recipe().with_options(line["options"])
    assert line["orders"] == sorted(set(line["orders"]))
    assert line["orders"][0] >= 2
    assert 0 < line["carried"] < 10


def test_a_trial_has_only_its_lengths_of_n_grams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    only_orders = importlib.import_module("ngram_orders").only_orders
    model = cw.LanguageModel(cw.ModelConfig(units=4, ngram_bits=10, ngram_order=5), 9)
    torch.nn.init.normal_(model.weight("ngrams.weight"))
    ids = torch.arange(14).view(7, 2) % 9
    with torch.no_grad():
        whole = model(ids)[0]
        with only_orders([2, 3, 4, 5]):
            assert torch.equal(model(ids)[0], whole)
        with only_orders([3, 5]):
            parts = model(ids)[0]
        with only_orders([2, 4]):
            parts = parts + model(ids)[0]
        with only_orders([]):
            network = model(ids)[0]
        torch.testing.assert_close(parts - network, whole)
        assert torch.equal(model(ids)[0], whole)
