"""`charwright generate` with a run of records: each text is one, with its end; new ones; labels."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_generate import interrupted, linux, posix

import charwright as cw
from charwright import cli
from charwright.config import RecordsConfig
from charwright.data.records import Records
from charwright.run import Run
from charwright.workflow.loading import generator_of
from commands import SMALL, Result, Terminal

BRIEF = ["--steps", "2", "--output-bias", "zeros", *SMALL]


def a_list(count: int, letters: str = "abcde") -> list[str]:
    """Short words, of which some are equal."""
    choose = random.Random(5)
    return ["".join(choose.choices(letters, k=choose.randint(1, 6))) for _ in range(count)]


def trained_on(folder: Path, text: str, *options: str) -> Path:
    """A run of two steps: its records mean nothing, but some of them are in the text."""
    (folder / "list.txt").write_text(text, encoding="utf-8")
    assert cli.run(["train", str(folder / "list.txt"), "--out", str(folder / "run"), *options, *BRIEF]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input would be read as the prompt."""
    monkeypatch.setattr(sys, "stdin", None)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on(tmp_path_factory.mktemp("names"), "\n".join(a_list(400)) + "\n", "--records", "line")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [f"{word}\t{'vowels' if set(word) & set('ae') else 'others'}" for word in a_list(400)]
    folder = tmp_path_factory.mktemp("labelled")
    return trained_on(folder, "\n".join(lines) + "\n", "--records", "line", "--label", "last")


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poems")
    return trained_on(folder, "\n\n".join("\n".join(word) for word in a_list(300)), "--records", "blank")


@pytest.fixture(scope="module")
def barred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on(tmp_path_factory.mktemp("barred"), "|".join(a_list(300, "中文bc")), "--records", "|")


def lines_of(result: Result) -> list[dict]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def words_in(run: Path) -> set[str]:
    return set((run.parent / "list.txt").read_text(encoding="utf-8").split("\n"))


# Records.


@pytest.mark.parametrize(("run", "kind"), [("names", "line"), ("poems", "blank"), ("barred", "|")])
@pytest.mark.parametrize("num", [9, 70])
def test_the_output_is_a_list_again(
    charwright: Terminal, request: pytest.FixtureRequest, run: str, kind: str, num: int
) -> None:
    folder: Path = request.getfixturevalue(run)
    result = charwright("generate", folder, "--num", str(num), "--seed", "4", "--temperature", "0.5")
    assert (result.code, result.err) == (0, "")
    records = list(map(str, cw.load(folder).records(num, seed=4, temperature=0.5)))
    end = Run.open(folder).config.records.end  # type: ignore[union-attr]
    assert result.out == "".join(record + end for record in records) + ("" if end.endswith("\n") else "\n")
    again = list(Records.parse(result.out, RecordsConfig(records=kind)))
    assert again == [record.strip("\r\n" if kind == "blank" else "") for record in records if record.strip()]


def test_many_records_are_the_same(charwright: Terminal, names: Path) -> None:
    """They are printed one by one, and few of them as they grow."""
    few, many = (charwright("generate", names, "--num", num, "--seed", "1").out for num in ("64", "65"))
    assert many.startswith(few)
    assert len(many) > len(few)


def test_a_record_is_no_longer_than_its_length(charwright: Terminal, names: Path) -> None:
    found = lines_of(charwright("generate", names, "--num", "40", "--length", "3", "--seed", "1", "--json"))
    assert {each["ended"] for each in found} == {"record", "length"}
    assert all(set(each) == {"text", "continuation", "seed", "stream", "ended"} for each in found)


def test_a_prompt_begins_the_record(charwright: Terminal, names: Path) -> None:
    result = charwright("generate", names, "--num", "3", "--prompt", "ab", "--seed", "1")
    assert result.out.count("\nab") == 2
    without = charwright("generate", names, "--num", "3", "--prompt", "ab", "--seed", "1", "--no-prompt")
    assert result.out == "".join(f"ab{line}\n" for line in without.out.splitlines())
    empty = charwright("generate", names, "--prompt", "", "--seed", "1")
    assert empty.err == "the prompt is empty; starting at the beginning of a record\n"


def test_beams_find_a_record(charwright: Terminal, names: Path) -> None:
    [found] = lines_of(charwright("generate", names, "--beams", "4", "--length", "100", "--json"))
    assert "\n" not in found["text"]
    assert charwright("generate", names, "--beams", "4", "--length", "100").out == found["text"] + "\n"


def test_a_record_is_continued(charwright: Terminal, names: Path, tmp_path: Path) -> None:
    """To its end; and then with the next one."""
    writer = cw.load(names)
    seed = next(str(seed) for seed in range(100) if len(str(writer.records(1, seed=seed)[0])) > 3)
    whole = charwright("generate", names, "--seed", seed, "--length", "50").out
    state = tmp_path / "state"
    first = charwright("generate", names, "--seed", seed, "--length", "2", "--state-out", state).out
    rest = charwright("generate", names, "--state-in", state, "--length", "48", "--state-out", state).out
    assert first.removesuffix("\n") + rest == whole
    following = charwright("generate", names, "--state-in", state, "--length", "50", "--json")
    assert lines_of(following)[0]["ended"] == "record"


def test_what_no_record_can_have(charwright: Terminal, names: Path) -> None:
    result = charwright("generate", names, "--length", "5", "--ban", r"\n", "--seed", "1")
    assert result.err.splitlines() == [
        "--ban has '\\n': no text will end at '\\n'",
        "the record is cut off at 5 characters; raise --length",
    ]
    assert "the end of a record, '\\n'" in charwright("generate", names, "--prompt", "a\nb").line


def test_a_stop_string_ends_a_record_earlier(charwright: Terminal, names: Path) -> None:
    found = lines_of(charwright("generate", names, "--num", "30", "--stop", "a", "--seed", "1", "--json"))
    assert {each["ended"] for each in found} == {"record", "stop"}
    assert not any("a" in each["text"] for each in found)


# New records.


def test_new_records_are_not_in_the_text(charwright: Terminal, names: Path) -> None:
    result = charwright("generate", names, "--num", "60", "--new", "--seed", "2")
    found = result.out.splitlines()
    assert (result.code, len(found), len(set(found))) == (0, 60, 60)
    assert not set(found) & words_in(names)
    search = cw.load(names).records(60, new=True, seed=2)
    assert found == list(map(str, search))
    assert result.err == f"{search.note}\n"
    assert "in the text" in result.err
    as_json = charwright("generate", names, "--num", "60", "--new", "--seed", "2", "--json")
    assert [each["text"] for each in lines_of(as_json)] == found
    assert as_json.err == result.err


def test_those_of_the_validation_text_are_not_new(charwright: Terminal, tmp_path: Path) -> None:
    """Whether it is a part of the text or another one."""
    (tmp_path / "other.txt").write_text("\n".join(a_list(400)) + "\n", encoding="utf-8")
    text = "\n".join(a_list(200, "edcba")) + "\n"
    run = trained_on(tmp_path, text, "--records", "line", "--validation", str(tmp_path / "other.txt"))
    found = set(charwright("generate", run, "--num", "60", "--new", "--seed", "2").out.splitlines())
    assert len(found) == 60
    assert not found & (set(a_list(400)) | set(a_list(200, "edcba")))


def test_they_are_not_nearly_in_the_text(charwright: Terminal, names: Path) -> None:
    result = charwright("generate", names, "--num", "5", "--new", "--distance", "1", "--seed", "2", "--length", "40")
    assert result.code == 0
    assert "within 1 edit of another" in result.err


def test_a_distance_needs_rapidfuzz(charwright: Terminal, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    result = charwright("generate", names, "--new", "--distance", "1")
    assert "pip install 'charwright[near]'" in result.line
    assert charwright("generate", names, "--new", "--seed", "1").code == 0


def test_if_there_are_no_more_it_says_so(charwright: Terminal, names: Path) -> None:
    result = charwright("generate", names, "--num", "9", "--new", "--temperature", "0", "--seed", "1")
    assert result.code == 1
    thrown, last = result.err.splitlines()
    assert thrown.startswith("threw away 500: ")
    count = result.out.count("\n")
    assert last.startswith(f"charwright: found {count} of 9 new records in {500 + count:,} tries; raise --")


def test_the_text_may_have_moved(charwright: Terminal, names: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    shutil.copy(names.parent / "list.txt", moved)
    run = Path(shutil.copytree(names, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["corpus"]["sources"][0]["location"] = str(tmp_path / "gone.txt")
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "gone.txt" in charwright("generate", run, "--new", "--seed", "1").line
    assert charwright("generate", run, "--new", "--seed", "1", "--corpus", moved).code == 0
    assert charwright("generate", run, "--seed", "1").code == 0  # only --new needs the text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--distance", "2"], "--distance requires --new"),
        (["--new", "--beams", "2"], "--beams finds one text only"),
        (["--new", "--stop", "a"], "--stop ends a record before its end"),
        (["--new", "--until", "line"], "--until ends a record before its end"),
        (["--new", "--novelty"], "--novelty counts records of the text"),
        (["--new", "--state-out", "x"], "--state-out keeps every text"),
        (["--new", "--state-in", "x"], "--state-in continues texts that have begun"),
        (["--label", "x", "--state-in", "x"], "remove --label"),
        (["--label", "x"], "no label 'x'; the model has no labels"),
        (["--corpus", "x"], "--corpus requires --novelty, --max-copy, --new or --adapt"),
    ],
)
def test_what_makes_no_sense(charwright: Terminal, names: Path, words: list[str], complaint: str) -> None:
    result = charwright("generate", names, *words)
    assert result.code == 2
    assert complaint in result.line


def test_other_runs_have_no_new_records(charwright: Terminal, trained: Path) -> None:
    assert "was not trained on records" in charwright("generate", trained, "--new").line


@posix
def test_a_pipe_that_closes_early_is_no_error(names: Path) -> None:
    script = '"$0" -m charwright generate "$@" < /dev/null | head -n 3; echo "${PIPESTATUS[0]}"'
    for more in (["--new"], [], ["--json"]):
        words = [str(names), "--num", "30000", "--seed", "1", "--temperature", "2", *more]
        done = subprocess.run(["bash", "-c", script, sys.executable, *words], capture_output=True, check=False)
        assert done.stdout.splitlines()[-1] == b"0"
        assert (done.stdout.count(b"\n"), done.stderr) == (4, b"")


@linux
@pytest.mark.parametrize("more", [["--new"], [], ["--new", "--json"]])
def test_ctrl_c_keeps_whole_records(names: Path, more: list[str]) -> None:
    words = ["generate", names, "--num", "65000", "--seed", "1", "--temperature", "3", *more]
    result = interrupted(words, read=9)
    assert result.code == 130
    assert result.out.endswith("\n")
    if "--new" in more:
        assert result.err.startswith("threw away ")
        assert result.err.count("\n") == 1


@linux
def test_ctrl_c_ends_the_record_that_grows(names: Path) -> None:
    """The beginnings of those after it are not shown: they would be taken for records."""
    result = interrupted(["generate", names, "--num", "5", "--ban", r"\n", "--length", "100000000"], read=9)
    assert result.code == 130
    assert result.out.count("\n") == 1


def test_torch_is_not_imported(names: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "charwright", "generate", str(names), "--new", "--num", "3"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, env=os.environ)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert not {name for name in imported if name.split(".")[0] in {"torch", "rich", "matplotlib", "rapidfuzz"}}


# Labels.


def test_a_run_with_labels_is_not_explained(charwright: Terminal, labelled: Path) -> None:
    assert f"{labelled} was trained with labels" in charwright("explain", labelled).line


def test_a_label_is_asked_for(charwright: Terminal, labelled: Path) -> None:
    result = charwright("generate", labelled, "--num", "9", "--label", "vowels", "--seed", "3", "--json")
    assert result.err == ""
    found = lines_of(result)
    assert {each["label"] for each in found} == {"vowels"}
    expected = generator_of(Run.open(labelled)).records(9, label="vowels", seed=3)
    assert [each["text"] for each in found] == list(map(str, expected))
    plain = charwright("generate", labelled, "--num", "9", "--label", "vowels", "--seed", "3").out
    assert plain == "".join(f"{each['text']}\n" for each in found)


def test_without_one_labels_are_drawn(charwright: Terminal, labelled: Path) -> None:
    result = charwright("generate", labelled, "--num", "60", "--seed", "3", "--json")
    assert result.err == "the labels are others, vowels; --label NAME chooses one\n"
    assert {each["label"] for each in lines_of(result)} == {"others", "vowels"}
    assert not any("[" in each["text"] for each in lines_of(result))


def test_an_unknown_label_is_refused(charwright: Terminal, labelled: Path) -> None:
    result = charwright("generate", labelled, "--label", "perl", "--new")
    assert (result.code, result.line) == (2, "charwright: there is no label 'perl'; the model has others, vowels\n")


def test_new_records_with_a_label(charwright: Terminal, labelled: Path) -> None:
    """They are not in the text with another label either."""
    found = lines_of(
        charwright("generate", labelled, "--num", "40", "--new", "--label", "others", "--seed", "3", "--json")
    )
    texts = [each["text"] for each in found]
    assert len(set(texts)) == 40
    assert not set(texts) & {line.split("\t")[0] for line in words_in(labelled)}
    assert {each["label"] for each in found} == {"others"}


def test_novelty_of_records_is_of_whole_records(charwright: Terminal, names: Path) -> None:
    """A passage of 20 characters is longer than most."""
    result = charwright("generate", names, "--num", "60", "--seed", "2", "--novelty")
    training = a_list(400)
    written = result.out.split("\n")[:-1]
    copied, repeated = sum(word in training for word in written), len(written) - len(set(written))
    assert len(written) == 60
    found = f"{copied} of 60 records are in the text, and {60 - repeated} of 60 records are different"
    assert result.err.splitlines()[-1].startswith(found)
    assert "copied verbatim" not in result.err
    short = charwright("generate", names, "--num", "20", "--length", "1", "--seed", "2", "--novelty").err.splitlines()[
        -1
    ]
    assert "did not end and do not count" in short


def test_records_that_are_cut_off_are_counted(charwright: Terminal, names: Path) -> None:
    result = charwright("generate", names, "--num", "20", "--length", "2", "--seed", "2")
    cut = sum(len(line) == 2 for line in result.out.splitlines())
    found = re.search(r"(\d+) of 20 records are cut off at 2 characters; raise --length", result.err)
    assert found is not None
    assert 1 < int(found[1]) <= cut
    assert "cut off" not in charwright("generate", names, "--num", "20", "--seed", "2", "--length", "5000").err


def test_records_of_further_lists_are_not_new(charwright: Terminal, names: Path, tmp_path: Path) -> None:
    """A run that continues from another one does not know the list of that one."""
    words = ("generate", names, "--num", "40", "--new", "--seed", "3")
    first = charwright(*words).out.splitlines()
    (tmp_path / "known.txt").write_text("\n".join(first[:20]) + "\n", encoding="utf-8")
    (tmp_path / "more.txt").write_text(first[20] + "\n", encoding="utf-8")
    others = charwright(*words, "--known", tmp_path / "known.txt", "--known", tmp_path / "more.txt").out.splitlines()
    assert len(others) == 40
    assert not {*first[:21]} & {*others}
    assert {*first[21:]} & {*others}
    refused = charwright("generate", names, "--known", tmp_path / "known.txt")
    assert (refused.code, "--known requires --new" in refused.line) == (2, True)
    assert "there is no file" in charwright(*words, "--known", tmp_path / "none.txt").line


def test_labels_of_further_lists_do_not_count(charwright: Terminal, labelled: Path, tmp_path: Path) -> None:
    words = ("generate", labelled, "--num", "20", "--new", "--label", "others", "--seed", "3")
    first = charwright(*words).out.splitlines()
    lines = [f"{first[0]}\tothers", first[1]]
    (tmp_path / "known.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert not {*first[:2]} & {*charwright(*words, "--known", tmp_path / "known.txt").out.splitlines()}
