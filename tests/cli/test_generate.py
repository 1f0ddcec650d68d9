"""`charwright generate`: text on stdout, everything else on stderr; stop conditions, signals, saved states."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import charwright as cw
from charwright.cli import prompt
from charwright.config import CorpusConfig, ModelConfig, Recipe, SplitConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.corpus import read_corpus
from charwright.data.split import split_corpus
from charwright.data.vocabulary import Vocabulary
from charwright.generation.generator import Generator
from charwright.generation.novelty import measure_novelty
from charwright.run import Run
from charwright.run_config import RunConfig
from commands import SMALL, TEXT, Result, Terminal, process
from writers import LETTERS, weights_of

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals and shells")
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc what the process is doing")


def run_of(folder: Path, vocabulary: Vocabulary, cell: str = "gru") -> Path:
    """A run with random weights: its text is meaningless, but differs for each seed."""
    model = ModelConfig(cell=cell, units=16, embedding_size=8)
    Run.save(folder, model, weights_of(model, len(vocabulary)), vocabulary)
    return folder


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("letters") / "run", LETTERS)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("bytes") / "run", ByteVocabulary(), "lstm")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("chinese") / "run", Vocabulary("\n。，一上不人大天我是有的🙂"), "lstm")


def writer_of(run: Path, precision: str = "q8") -> Generator:
    opened = Run.open(run)
    return Generator(opened.model, opened.weights(), opened.vocabulary, precision)


def lines_of(result: Result) -> list[dict]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


# Prompts.


def test_stdout_holds_the_text_and_nothing_else(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", "To be", "--length", "50", "--seed", "7")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{writer_of(trained).generate('To be', length=50, seed=7)[0]}\n"


@pytest.mark.parametrize("precision", ["q8", "bf16", "f32"])
def test_precisions(charwright: Terminal, letters: Path, precision: str) -> None:
    result = charwright("generate", letters, "--prompt", "a", "--length", "50", "--seed", "7", "--precision", precision)
    assert result.out == f"{writer_of(letters, precision).generate('a', length=50, seed=7)[0]}\n"


def test_the_same_seed_in_a_new_process(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "50", "--seed", "7"]
    assert process(*words) == charwright(*words)


def test_the_same_seed_without_the_kernels(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--prompt", "a", "--length", "200", "--seed", "7", "--num", "2", "--stop", "zz"]
    assert process(*words, CHARWRIGHT_KERNELS="none") == charwright(*words)


def test_without_a_seed_each_text_is_new(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "80"]
    assert charwright(*words).out != charwright(*words).out


def test_no_prompt_leaves_the_prompt_out(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "20", "--seed", "7"]
    assert "To be" + charwright(*words, "--no-prompt").out == charwright(*words).out


@pytest.mark.parametrize("option", [[], ["--prompt", "-"]])
@pytest.mark.parametrize("stdin", [b"To be", b"To be\n", b"To be\r\n", b"\xef\xbb\xbfTo be\n"])
def test_the_prompt_comes_from_a_pipe(charwright: Terminal, trained: Path, option: list[str], stdin: bytes) -> None:
    words = ["generate", trained, "--length", "20", "--seed", "7"]
    assert process(*words, *option, stdin=stdin) == charwright(*words, "--prompt", "To be")


def test_windows_newlines_in_a_pipe(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--length", "20", "--seed", "7"]
    expected = charwright(*words, "--prompt", "ab\n\ncd")
    assert process(*words, stdin=b"ab\r\n\r\ncd\r\n") == process(*words, stdin=b"ab\r\rcd\r") == expected
    assert charwright(*words, "--prompt", "ab\r\n\rcd") == expected


def test_windows_newlines_are_kept_if_the_corpus_keeps_them(tmp_path: Path) -> None:
    vocabulary = Vocabulary("\n\rab")
    run = run_of(tmp_path / "run", vocabulary)
    opened = Run.open(run)
    reading = CorpusConfig(newlines="keep")
    opened.rewrite_config(RunConfig(**{**vars(opened.config), "corpus": reading}))
    result = process("generate", run, "--length", "20", "--seed", "7", stdin=b"a\r\nb\r\n")
    assert result.err == ""
    assert result.out.startswith("a\r\nb")


def test_an_empty_prompt_is_accepted(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--length", "20", "--seed", "7"]
    result = charwright(*words, "--prompt", "")
    assert (result.code, result.err) == (0, "the prompt is empty; starting at the beginning of a line\n")
    assert "\n" + result.out == charwright(*words, "--prompt", "\n").out
    assert process(*words, "--prompt", "-") == result
    assert process(*words) == Result(0, result.out, "")  # nobody spoke of a prompt


@posix
def test_a_prompt_can_be_typed(charwright: Terminal, letters: Path) -> None:
    import pty

    words = ["generate", str(letters), "--length", "20", "--seed", "7"]
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "charwright", *words, "--prompt", "-"],
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as typing:
        os.write(ours, b"ab\ncd\n\x04")
        out, err = typing.communicate(timeout=60)
    assert err.decode() == "type the prompt; end it with Ctrl-D on a new line\n"
    assert out.decode() == charwright(*words, "--prompt", "ab\ncd").out
    with subprocess.Popen(
        [sys.executable, "-m", "charwright", *words], stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting_for_nothing:
        out, err = waiting_for_nothing.communicate(timeout=60)
    os.close(ours)
    os.close(its)
    assert (len(out.decode()), err) == (20 + 1, b"")


def test_a_prompt_that_is_not_utf8(trained: Path) -> None:
    result = process("generate", trained, stdin=b"To \xff")
    assert result.code == 1
    assert "byte 3" in result.line


@posix
def test_an_argument_that_is_not_utf8(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "generate", str(trained), "--prompt"]
    done = subprocess.run([*(word.encode() for word in command), b"To \xff"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"charwright: the prompt is not UTF-8\n")


def test_unknown_characters_of_the_prompt_are_named_once(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", "To 中中文", "--length", "20", "--num", "2")
    assert result.code == 0
    assert result.err.splitlines()[0] == "the model has never seen '中' '文'; continuing anyway"
    assert result.err.count("never seen") == 1
    assert result.out.count("中中文") == 2
    assert "[UNK]" not in result.out


def test_a_prompt_of_nothing_but_unknown_characters(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", "中文", "--length", "20")
    assert result.code == 0
    assert result.err == "the model has never seen any of the prompt's characters; continuing anyway\n"
    assert len(result.out) == 2 + 20 + 1


def test_a_very_long_prompt(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", TEXT, "--length", "5", "--seed", "1")
    assert result.out.startswith(TEXT)
    assert len(result.out) == len(TEXT) + 6


def test_a_prompt_of_ten_megabytes_is_refused(trained: Path) -> None:
    result = process("generate", trained, stdin=b"To be " * 1_700_000)
    assert result.code == 2
    assert "pass only its end" in result.line


@posix
def test_a_prompt_without_end_is_refused(trained: Path) -> None:
    script = 'yes | "$0" -m charwright generate "$1"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, str(trained)], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"the prompt has more than 1,000,000 characters" in done.stderr


def test_a_terminal_without_the_characters(trained: Path) -> None:
    result = process("generate", trained, "--prompt", "中", "--length", "5", PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert result.out.startswith("?")


# Chinese, and bytes.


def test_chinese(charwright: Terminal, chinese: Path) -> None:
    words = ["generate", chinese, "--prompt", "天大", "--length", "60", "--seed", "3", "--temperature", "1.2"]
    result = charwright(*words)
    assert result.err == ""
    assert len(result.out) == 2 + 60 + 1
    assert process(*words) == result
    sentences = charwright(*words, "--until", "2 sentences", "--length", "5000").out
    assert sentences.removesuffix("\n").endswith("。")
    stopped = charwright(*words, "--stop", "有", "--ban", "🙂一", "--length", "5000").out
    assert not set("有🙂一") & set(stopped)
    assert set(charwright(*words, "--only", "人的").out[2:]) == set("人的\n")


def test_bytes_write_whole_characters(charwright: Terminal, bytewise: Path) -> None:
    words = ["generate", bytewise, "--prompt", "中🙂", "--length", "60", "--seed", "3", "--json", "--logprobs"]
    [line] = lines_of(charwright(*words))
    assert line["text"].startswith("中🙂")
    assert len(line["continuation"]) == len(line["logprobs"]) == 60
    assert charwright(*words, "--only", "ab", "--no-prompt").out.count("a") > 5
    refused = charwright(*words, "--ban", "中")
    assert refused.code == 2
    assert "--ban" in refused.line


# Batches and JSON.


def test_num_generates_that_many(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To ", "--length", "30", "--seed", "7", "--temperature", "1.5"]
    many = charwright(*words, "--num", "3")
    assert many.err.splitlines() == ["--- 1 of 3 ---", "--- 2 of 3 ---", "--- 3 of 3 ---"]
    assert many.out.startswith(charwright(*words).out)
    assert len(many.out) == 3 * (3 + 30 + 1)
    texts = [many.out[i * 34 : (i + 1) * 34] for i in range(3)]
    assert all(text.startswith("To ") and text.endswith("\n") for text in texts)
    assert len(set(texts)) == 3


def test_each_text_of_a_batch_ends_on_its_own(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--prompt", "a", "--seed", "7", "--until", "line", "--stop", "b", "--num", "8"]
    lines = lines_of(charwright(*words, "--json", "--length", "40"))
    assert {line["ended"] for line in lines} >= {"line", "stop"}
    assert charwright(*words, "--length", "40").out == "".join(line["text"] + "\n" for line in lines)
    for line in lines:
        assert ("stop" in line) == (line["ended"] == "stop")
        assert line.get("stop", "b") == "b"
        assert len(line["continuation"]) == 40 or line["ended"] != "length"
        assert "b" not in line["continuation"]


def test_json_has_all_fields(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--prompt", "a:", "--length", "30", "--json", "--num", "2"]
    first, second = lines_of(charwright(*words))
    assert list(first) == ["text", "continuation", "seed", "stream", "ended"]
    assert first["text"] == "a:" + first["continuation"]
    assert (first["stream"], second["stream"], first["ended"]) == (0, 1, "length")
    assert first["seed"] == second["seed"]
    assert lines_of(charwright(*words, "--seed", str(first["seed"]))) == [first, second]  # drawn, and to be had again
    without = charwright(*words, "--seed", str(first["seed"]), "--no-prompt")
    assert [line["text"] for line in lines_of(without)] == [first["continuation"], second["continuation"]]


@pytest.mark.parametrize("precision", ["q8", "f32"])
@pytest.mark.parametrize("more", [[], ["--stop", "b"], ["--temperature", "0"], ["--top-k", "2", "--ban", "a"]])
def test_logprobs_are_those_of_the_text(charwright: Terminal, letters: Path, precision: str, more: list[str]) -> None:
    words = ["--length", "60", "--num", "2", "--precision", precision, "--json", "--logprobs", *more]
    for line in lines_of(charwright("generate", letters, "--prompt", "a:", *words)):
        expected = writer_of(letters, precision).logprobs(line["text"])[1:]
        np.testing.assert_allclose(line["logprobs"], expected, atol=1e-6)


def test_json_in_a_terminal_without_the_characters(chinese: Path) -> None:
    words = ["generate", chinese, "--prompt", "天", "--length", "20", "--seed", "1", "--json"]
    assert lines_of(process(*words, PYTHONIOENCODING="ascii")) == lines_of(process(*words))


def test_beams_in_json(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--prompt", "a:", "--length", "30", "--beams", "4"]
    [line] = lines_of(charwright(*words, "--json", "--logprobs"))
    assert list(line) == ["text", "continuation", "ended", "logprobs"]
    assert charwright(*words).out == line["text"] + "\n"
    np.testing.assert_allclose(line["logprobs"], writer_of(letters).logprobs(line["text"])[1:], atol=1e-6)
    greedy = lines_of(charwright(*words[:-2], "--temperature", "0", "--json", "--logprobs"))[0]
    assert sum(line["logprobs"]) >= sum(greedy["logprobs"])


# Stop conditions.


def test_escapes_in_stop_ban_and_only(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--prompt", "a", "--length", "500", "--seed", "1", "--json"]
    [line] = lines_of(charwright(*words, "--stop", r"\n"))
    assert (line["ended"], line["stop"]) == ("stop", "\n")
    assert "\n" not in lines_of(charwright(*words, "--ban", r"\n"))[0]["continuation"]
    assert set(lines_of(charwright(*words, "--only", r"a\n"))[0]["continuation"]) == set("a\n")


def test_a_stop_string_that_cannot_occur_is_reported(charwright: Terminal, letters: Path) -> None:
    result = charwright("generate", letters, "--prompt", "a", "--length", "9", "--stop", "aЖ", "--stop", "中")
    assert result.code == 0
    assert result.err == "the model never generates 'Ж': no text will end at 'aЖ'\n"


# Novelty.


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run next to its corpus, a text of four letters with every passage of four and some of those of seven."""
    folder = tmp_path_factory.mktemp("copied")
    (folder / "letters.txt").write_text("".join(random.Random(3).choices("abcd", k=3000)), encoding="utf-8")
    model = ModelConfig(units=16, embedding_size=8)
    vocabulary = Vocabulary("abcd")
    corpus = read_corpus(folder / "letters.txt")
    Run.save(folder / "run", model, weights_of(model, len(vocabulary)), vocabulary, corpus=corpus)
    return folder


def longest_copy(folder: Path, text: str) -> str:
    corpus = read_corpus(folder / "letters.txt").text
    return measure_novelty(split_corpus(corpus, SplitConfig())[0], text).longest


WORDS = ("--prompt", "ab", "--length", "300", "--seed", "5", "--temperature", "2")


def test_max_copy_prevents_longer_passages(charwright: Terminal, copied: Path) -> None:
    free = charwright("generate", copied / "run", *WORDS).out.strip()
    assert len(longest_copy(copied, free)) > 7
    for more in ([], ["--num", "2"], ["--stop", "dddd"]):
        result = charwright("generate", copied / "run", *WORDS, "--max-copy", "7", "--json", *more)
        for line in lines_of(result):
            assert len(longest_copy(copied, line["text"])) <= 7
    assert charwright("generate", copied / "run", *WORDS, "--max-copy", "500").out.strip() == free


def test_novelty_is_reported(charwright: Terminal, copied: Path) -> None:
    result = charwright("generate", copied / "run", *WORDS, "--novelty")
    longest = longest_copy(copied, result.out.strip()[2:])
    assert result.out == charwright("generate", copied / "run", *WORDS).out
    assert result.err == (
        "0.0% of 300 characters are in passages of 20 or more copied verbatim from the training text;"
        f" the longest has {len(longest)}: {longest!r}\n"
    )
    [line] = lines_of(charwright("generate", copied / "run", *WORDS, "--novelty", "--json"))
    assert line["novelty"]["longest"] == longest
    assert charwright("generate", copied / "run", *WORDS, "--novelty", "--num", "3").err.count("300 characters") == 3


@pytest.mark.parametrize("option", [["--novelty"], ["--max-copy", "7"]])
def test_a_corpus_that_moved_or_changed(charwright: Terminal, copied: Path, option: list[str]) -> None:
    path, moved = copied / "letters.txt", copied / "moved.txt"
    expected = charwright("generate", copied / "run", *WORDS, *option)
    path.rename(moved)
    try:
        gone = charwright("generate", copied / "run", *WORDS, *option)
        assert gone.code == 1
        assert "--corpus" in gone.line
        assert charwright("generate", copied / "run", *WORDS, *option, "--corpus", moved) == expected
        path.write_text("abcd" * 50, encoding="utf-8")
        changed = charwright("generate", copied / "run", *WORDS, *option)
        assert changed.code == 1
        assert "has changed" in changed.line
        assert "--corpus" in changed.line
        other = charwright("generate", copied / "run", *WORDS, *option, "--corpus", path)
        assert other.code == 1
        assert "is not the text that" in other.line
    finally:
        moved.rename(path)


# Saved states.


@pytest.mark.parametrize("precision", ["q8", "f32"])
@pytest.mark.parametrize("kind", ["letters", "bytewise"])
@pytest.mark.parametrize("num", [1, 3])
def test_400_and_600_characters_are_1000(
    charwright: Terminal, request: pytest.FixtureRequest, tmp_path: Path, precision: str, kind: str, num: int
) -> None:
    """The bytes are those of an LSTM."""
    run, state = request.getfixturevalue(kind), tmp_path / "state"
    words = ["generate", run, "--json", "--repetition-penalty", "2", "--temperature", "1.2", "--no-prompt"]
    start = [*words, "--prompt", "a中", "--seed", "4", "--num", str(num), "--precision", precision]
    whole = lines_of(charwright(*start, "--length", "1000"))
    first = lines_of(charwright(*start, "--length", "400", "--state-out", state))
    on = [*words, "--prompt", "", "--state-in", state]
    second = lines_of(charwright(*on, "--length", "250", "--state-out", state))
    third = lines_of(charwright(*on, "--length", "350", "--precision", precision))
    parts = [first, second, third]
    assert ["".join(part[i]["text"] for part in parts) for i in range(num)] == [line["text"] for line in whole]
    assert [line["seed"] for line in third] == [4] * num
    assert [line["stream"] for line in third] == list(range(num))


def test_texts_continue_after_what_ended_them(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    words = ["generate", letters, "--length", "5000", "--temperature", "1.5"]
    whole = charwright(*words, "--prompt", "a", "--seed", "4").out
    state, text = tmp_path / "state", ""
    for end in (["--stop", "bc"], ["--until", "sentence"], ["--until", "line"], ["--stop", "e", "--stop", "!"]):
        start = ["--state-in", state, "--prompt", ""] if text else ["--prompt", "a", "--seed", "4"]
        [line] = lines_of(charwright(*words, *start, *end, "--state-out", state, "--json"))
        assert line["ended"] == end[0].removeprefix("--").replace("until", end[1])
        text += line["text"] + line.get("stop", "") + ("\n" if line["ended"] == "line" else "")
    assert whole.startswith(text)


def test_new_random_numbers_for_the_second_part(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    """Different for each text, and independent of what was sampled before."""
    state, words = tmp_path / "state", ["generate", letters, "--json"]
    charwright(*words, "--prompt", "ab", "--length", "20", "--num", "3", "--temperature", "0", "--state-out", state)
    on = [*words, "--prompt", "", "--length", "30", "--state-in", state, "--seed"]
    five, six = lines_of(charwright(*on, "5")), lines_of(charwright(*on, "6"))
    assert len({line["text"] for line in five + six}) == 6
    assert [(line["seed"], line["stream"]) for line in five] == [(5, 0), (5, 1), (5, 2)]
    begun = "ab" + writer_of(letters).generate("ab", length=20, temperature=0)[0].continuation
    fresh = lines_of(charwright(*words, "--prompt", begun, "--length", "30", "--num", "3", "--seed", "5"))
    assert [line["text"] for line in five] == [line["continuation"] for line in fresh]


def test_what_was_sampled_in_the_first_part_has_no_logprob(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    """The character that confirms the end of a sentence is shown in the second part."""
    state, words = tmp_path / "state", ["generate", letters, "--json", "--logprobs"]
    first = charwright(*words, "--prompt", "a", "--until", "sentence", "--seed", "1", "--state-out", state)
    assert lines_of(first)[0]["ended"] == "sentence"
    [line] = lines_of(charwright(*words, "--prompt", "", "--length", "9", "--state-in", state))
    assert line["text"][0].isspace()
    assert [logprob is None for logprob in line["logprobs"]] == [True] + [False] * 8


def test_a_prompt_of_the_second_part(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    """It is read after the first part, and shown before the continuation."""
    state, words = tmp_path / "state", ["generate", letters, "--temperature", "0"]
    first = charwright(*words, "--prompt", "ab", "--length", "20", "--state-out", state).out.removesuffix("\n")
    second = charwright(*words, "--prompt", "CD:", "--length", "20", "--state-in", state).out
    assert first + second == charwright(*words, "--prompt", first + "CD:", "--length", "20").out


def test_nothing_is_sampled_after_what_ended_the_first_part(
    charwright: Terminal, letters: Path, tmp_path: Path
) -> None:
    """So a prompt comes right after the stop string."""
    state, words = tmp_path / "state", ["generate", letters, "--temperature", "1.5"]
    start = [*words, "--prompt", "ab", "--seed", "4", "--no-prompt", "--state-out", state]
    on = [*words, "--prompt", "CD:", "--length", "20", "--state-in", state]
    first = charwright(*start, "--length", "200").out.removesuffix("\n")
    second = charwright(*on).out
    stopped = charwright(*start, "--length", "5000", "--stop", first[-8:].replace("\n", r"\n")).out
    assert stopped == first[:-8] + "\n"
    assert charwright(*on).out == second


HELD = ["--ban", "E", *(word for letter in "abcd.\n !" for word in ("--stop", f"{letter}E"))]
"""Nearly every character might begin a stop string, and none does."""


@linux
@pytest.mark.parametrize("more", [[], ["--num", "3", "--json"], HELD])
def test_a_text_continues_after_ctrl_c(letters: Path, tmp_path: Path, more: list[str], charwright: Terminal) -> None:
    state = tmp_path / "state"
    words = ["generate", letters, "--prompt", "a", "--seed", "4", "--temperature", "1.5", "--no-prompt"]
    begun = interrupted(
        [*words, "--length", "100000000", "--state-out", state, *more], read=0 if "--json" in more else 1
    )
    assert begun.code == 130
    on = ["generate", letters, "--prompt", "", "--length", "100", "--state-in", state, "--temperature", "1.5"]
    if "--json" not in more:
        second, first = charwright(*on, *more).out, begun.out.removesuffix("\n")
        assert first + second == charwright(*words, *more, "--length", str(len(first) + 100)).out
        return
    firsts = [json.loads(line) for line in begun.out.splitlines()]
    assert [line["ended"] for line in firsts] == ["interrupted"] * 3
    for number, line in enumerate(lines_of(charwright(*on, "--json"))):
        text = firsts[number]["text"] + line["text"]
        assert text == lines_of(charwright(*words, "--length", str(len(text)), *more))[number]["text"]


def test_a_state_belongs_to_its_run_and_precision(
    charwright: Terminal, letters: Path, chinese: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    charwright("generate", letters, "--prompt", "a", "--length", "9", "--state-out", state)
    for words, said in [
        ([chinese], "another model"),
        ([letters, "--precision", "f32"], "--precision q8"),
        ([letters, "--num", "2"], "--num"),
        ([letters, "--beams", "2"], "--state-in"),
    ]:
        result = charwright("generate", *words, "--prompt", "a", "--state-in", state)
        assert result.code == 2
        assert said in result.line
    state.write_bytes(state.read_bytes()[:-1])
    result = charwright("generate", letters, "--prompt", "a", "--state-in", state)
    assert result.code == 1
    assert f"{state} is damaged" in result.line


@pytest.mark.parametrize(
    ("place", "said"), [("", "the path is empty"), ("gone/state", "no folder"), (".", "is a directory")]
)
def test_the_path_of_the_state_is_checked_first(
    charwright: Terminal, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    """Not after generating a long text."""
    monkeypatch.chdir(tmp_path)
    result = charwright("generate", letters, "--prompt", "a", "--state-out", place)
    assert result.code == 2
    assert said in result.line


@posix
def test_a_device_is_refused_as_path_of_the_state(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    """A file would replace it; root would lose the device."""
    os.mkfifo(tmp_path / "pipe")
    result = charwright("generate", letters, "--prompt", "a", "--state-out", tmp_path / "pipe")
    assert result.code == 2
    assert "not a path for a file" in result.line


@posix
def test_a_full_disk_leaves_no_partial_state(letters: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))"
    result = process("generate", letters, "--prompt", "a", "--length", "9", "--state-out", state, prelude=limit)
    assert result.code == 1
    assert len(result.out) == 1 + 9 + 1
    assert result.err.startswith(f"charwright: cannot write {state}: ")
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Signals.


def caught(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def interrupted(
    words: Sequence[str | Path], number: int = signal.SIGINT, *, read: int = 0, stdin: bytes = b"", **environment: str
) -> Result:
    """Send a signal to a command after it has written some bytes."""
    command = [sys.executable, "-m", "charwright", *map(str, words)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # `communicate` knows nothing of what a buffer holds
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    ) as writing:
        assert writing.stdin is not None
        assert writing.stdout is not None
        writing.stdin.write(stdin)
        writing.stdin.close()
        writing.stdin = None
        out = writing.stdout.read(read) or b""
        deadline = time.monotonic() + 30
        while not caught(writing, signal.SIGTERM):
            assert time.monotonic() < deadline
            assert writing.poll() is None
            time.sleep(0.01)
        writing.send_signal(number)
        rest, err = writing.communicate(timeout=30)
    return Result(writing.returncode, (out + rest).decode("utf-8", "replace"), err.decode())


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("read", [0, 50])
def test_a_signal_ends_it_and_the_text_so_far_is_kept(letters: Path, number: int, code: int, read: int) -> None:
    result = interrupted(["generate", letters, "--prompt", "ab", "--length", "100000000"], number, read=read)
    assert (result.code, result.err) == (code, "")
    assert result.out.startswith("ab"[: len(result.out)])
    assert result.out.endswith("\n")


@linux
def test_ctrl_c_during_a_batch(letters: Path) -> None:
    result = interrupted(["generate", letters, "--prompt", "ab", "--length", "100000000", "--num", "5"], read=9)
    assert result.code == 130
    assert result.err == "".join(f"--- {number} of 5 ---\n" for number in range(1, 6))


@linux
def test_ctrl_c_before_anything_is_shown(letters: Path) -> None:
    words = ["generate", letters, "--prompt", "ab", "--length", "100000000", "--num", "2", "--json", "--logprobs"]
    result = interrupted([*words, *HELD])
    assert (result.code, result.err) == (130, "")
    for line in map(json.loads, result.out.splitlines()):
        assert line["ended"] == "interrupted"
        assert len(line["logprobs"]) == len(line["continuation"])


@linux
def test_ctrl_c_while_a_long_prompt_is_read(letters: Path) -> None:
    """Without the kernels, reading it takes longer than this test waits."""
    prompt = b"ab\ncde" * 160_000
    result = interrupted(["generate", letters, "--no-prompt"], stdin=prompt, CHARWRIGHT_KERNELS="none")
    assert result == Result(130, "\n", "")


@linux
def test_a_background_job_ignores_ctrl_c(letters: Path) -> None:
    """A shell starts it with SIGINT ignored."""
    words = [sys.executable, "-m", "charwright", "generate", str(letters), "--prompt", "a", "--length", "100000"]
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", ignore, *words], stdout=subprocess.PIPE, bufsize=0) as writing:
        assert writing.stdout is not None
        out = writing.stdout.read(10)
        writing.send_signal(signal.SIGINT)
        out += writing.communicate(timeout=60)[0]
    assert writing.returncode == 0
    assert len(out.decode()) == 1 + 100_000 + 1


@posix
@pytest.mark.parametrize("more", [[], ["--num", "3"], ["--num", "100", "--json", "--until", "line"]])
def test_a_pipe_that_closes_early_is_no_error(letters: Path, more: list[str]) -> None:
    script = '"$0" -m charwright generate "$@" | head -n 3; echo "${PIPESTATUS[0]}"'
    words = [str(letters), "--prompt", "a", "--length", "100000000", "--seed", "1", *more]
    done = subprocess.run(["bash", "-c", script, sys.executable, *words], capture_output=True, timeout=60, check=False)
    assert b"Error" not in done.stderr
    assert b"charwright:" not in done.stderr
    assert done.stdout.splitlines()[-1] == b"0"
    assert done.stdout.count(b"\n") == 4


@posix
def test_the_state_is_saved_when_the_pipe_closes(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    script = '"$0" -m charwright generate "$@" | head -c 20 > /dev/null; echo "${PIPESTATUS[0]}"'
    words = [str(letters), "--prompt", "a", "--length", "100000000", "--state-out", str(tmp_path / "state")]
    done = subprocess.run(["bash", "-c", script, sys.executable, *words], capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"0\n", b"")
    assert charwright("generate", letters, "--prompt", "", "--state-in", tmp_path / "state").code == 0


# Memory and imports.


@pytest.mark.parametrize("kernels", ["", "none"])
def test_torch_is_not_imported(letters: Path, kernels: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "charwright", "generate", str(letters), "--prompt", "a"]
    environment = os.environ | ({"CHARWRIGHT_KERNELS": kernels} if kernels else {})
    done = subprocess.run([*command, "--length", "20"], capture_output=True, check=False, env=environment)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert "charwright.generation.session" in imported
    assert not {name for name in imported if name.split(".")[0] in {"torch", "rich", "pooch", "matplotlib"}}


@linux
def test_a_hundred_thousand_characters_take_no_more_memory_than_a_thousand(letters: Path) -> None:
    peak = "import atexit, resource; atexit.register(lambda: sys.stderr.write(str(resource.getrusage(0).ru_maxrss)))"

    def peak_kib(length: int) -> int:
        result = process("generate", letters, "--prompt", "a", "--length", str(length), prelude=peak)
        assert result.code == 0
        assert len(result.out) == 1 + length + 1
        return int(result.err)

    assert peak_kib(100_000) < peak_kib(1000) + 3000


# Errors: one line, exit code 1 or 2.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", ""], "--only: must name at least one character"),
        (["--only", "Ж"], "--only: the model knows none of the characters in 'Ж'"),
        (["--ban", LETTERS.characters.replace("\n", r"\n")], "--ban: the model has no character left to generate"),
        (["--only", "ab", "--ban", "ab"], "--only and --ban: the model has no character left to generate"),
        (["--stop", ""], "--stop must not be empty"),
        (["--until", "rubbish"], "--until must be word, line, paragraph or sentence"),
        (["--until", "0 lines"], "--until must be"),
        (["--until", "9" * 5000 + " lines"], "--until must be"),
        (["--logprobs"], "--json"),
        (["--beams", "2", "--temperature", "1"], "remove --temperature"),
        (["--beams", "2", "--seed", "1"], "remove --seed"),
        (["--beams", "2", "--state-out", "x"], "--state-out"),
        (["--beams", "0"], "--beams"),
        (["--corpus", "x"], "--novelty"),
        (["--state-in", "gone"], "--state-in: there is no file gone"),
        (["--state-in", ""], "'--state-in': the path is empty"),
        (["--max-copy", "0"], "--max-copy must be at least 1"),
        (["--max-copy", "1001"], "--max-copy must be at most 1000"),
        (["--min-p", "-0.1"], "--min-p must be at least 0"),
        (["--repetition-penalty", "0.9"], "--repetition-penalty must be at least 1"),
        (["--temperature", "-0.1"], "--temperature must be at least 0"),
        (["--temperature", "nan"], "--temperature must be a finite number"),
        (["--temperature", "inf"], "--temperature must be a finite number"),
        (["--precision", "f16"], "'f16' is not one of"),
    ],
)
def test_wrong_options(
    charwright: Terminal, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = charwright("generate", letters, "--prompt", "a", *words)
    assert result.code == 2
    assert said in result.line
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_used(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    for content, said in [
        (b"{", "config.json"),
        (b'{"format": 2}', "reads up to 1: update it"),
        (b"[]", "config.json"),
    ]:
        run = run_of(tmp_path / f"run{len(content)}", LETTERS)
        (run / "config.json").write_bytes(content)
        result = charwright("generate", run, "--prompt", "a")
        assert result.code == 1
        assert said in result.line
    run = run_of(tmp_path / "run", LETTERS)
    (run / "model.safetensors").write_bytes(b"\0" * 99)
    assert str(run / "model.safetensors") in charwright("generate", run, "--prompt", "a").line
    (run / "model.safetensors").unlink()
    assert "no trained weights" in charwright("generate", run, "--prompt", "a").line
    assert "no run" in charwright("generate", tmp_path / "nowhere", "--prompt", "a").line


def test_a_recipe_is_all_that_a_run_needs(letters: Path) -> None:
    assert Run.open(letters).config.recipe == Recipe(model=ModelConfig(units=16, embedding_size=8))


def test_it_adapts_to_the_prompt(charwright: Terminal, trained: Path, corpus: Path) -> None:
    prompt = "nobler nobler to suffer " * 40
    options = ("generate", trained, "--prompt", prompt, "--length", "40", "--seed", "3", "--no-prompt")
    plain, adapted, again = charwright(*options), charwright(*options, "--adapt"), charwright(*options, "--adapt")
    assert (adapted.code, adapted.err) == (0, "")
    assert adapted.out == again.out != plain.out
    assert cw.load(trained, adapt_to=prompt).generate(prompt, length=40, seed=3)[0].continuation == adapted.out[:-1]
    assert "a saved state belongs" in charwright(*options, "--adapt", "--state-out", corpus.with_name("state")).line


def test_a_state_replaces_no_other_file(charwright: Terminal, letters: Path, tmp_path: Path) -> None:
    weights = letters / "model.safetensors"
    before = weights.read_bytes()
    said = charwright("generate", letters, "--prompt", "a", "--length", "3", "--state-out", weights).line
    assert said.rstrip().endswith(f"{weights} is there and holds no paused text; choose another file")
    assert weights.read_bytes() == before
    state = tmp_path / "a.state"
    state.touch()
    for words in ([], ["--state-in", state]):
        done = charwright("generate", letters, "--prompt", "", "--length", "3", "--state-out", state, *words)
        assert (done.code, state.stat().st_size > 0) == (0, True)


def test_a_pipe_that_nobody_writes_to_is_announced(
    letters: Path, charwright: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.3)
            return super().read(size)

    monkeypatch.setattr(prompt, "WAITING_S", 0.05)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Slow(b"ab")))
    done = charwright("generate", letters, "--length", "3")
    assert done.err.splitlines()[0] == "reading the prompt from standard input; --prompt= begins without one"
    assert done.out.startswith("ab")


def test_a_prompt_in_another_form_is_noted(charwright: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "café.txt"
    path.write_text("un cafe\u0301 noir\n" * 200, encoding="utf-8")
    assert charwright("train", path, "--out", tmp_path / "run", "--steps", "1", *SMALL).code == 0
    noted = charwright("generate", tmp_path / "run", "--prompt", "caf\u00e9", "--length", "5").err
    assert "(it knows their form NFD: train with --normalize nfc for texts that mix both)" in noted
    path.write_text("un caf\u00e9 noir\n" * 200, encoding="utf-8")
    assert charwright("train", path, "--out", tmp_path / "other", "--steps", "1", *SMALL).code == 0
    decomposed = charwright("generate", tmp_path / "other", "--prompt", "cafe\u0301", "--length", "5").err
    assert "(it knows their form NFC" in decomposed
    noted = charwright("generate", tmp_path / "run", "--prompt", r"un\nnoir", "--length", "5").err
    assert "(for a newline, a shell such as Bash has --prompt $'first line" in noted
    assert "(" not in charwright("generate", tmp_path / "run", "--prompt", "Z", "--length", "5").err


def test_texts_that_cannot_differ_are_noted(charwright: Terminal, letters: Path) -> None:
    words = ["generate", letters, "--prompt", "a", "--length", "5", "--temperature"]
    assert "at temperature 0 all texts are equal" in charwright(*words, "0", "--num", "2").err
    assert "equal" not in charwright(*words, "0").err + charwright(*words, "1", "--num", "2").err
