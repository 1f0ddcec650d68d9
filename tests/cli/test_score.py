"""`charwright score`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

import charwright as cw
from charwright.cli.score import in_order
from charwright.cli.score_table import safe
from charwright.cli.score_totals import Totals
from charwright.generation.record_scores import Score
from commands import TEXT, Terminal, process

FIELDS = ["file", "line", "column", "chars", "unknown_chars", "bits", "bits_per_char", "cold", "text"]


def records(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_thousand_lines_cost_what_evaluate_gives(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text((TEXT * 18)[: -len(TEXT) // 2], encoding="utf-8")
    expected = json.loads(charwright("evaluate", trained, tmp_path / "many.txt", "--json").out)
    result = charwright("score", trained, tmp_path / "many.txt", "--json")
    found = records(result.out)
    assert len(found) > 1000
    assert sum(one["chars"] for one in found) == expected["chars"]
    total = sum(one["bits"] for one in found) / expected["chars"]
    assert total == pytest.approx(expected["bits_per_char"], abs=1e-6)
    assert f"{expected['chars']:,} characters predicted: {expected['nats_per_char']:.4f} nats per char" in result.err
    cold = sum(one["cold"] for one in found)
    assert f"in {cold} lines (marked *; `cold` in JSON and CSV) the model begins with a zero state" in result.err
    assert "avoid that with --warm-up 256" in result.err
    with gzip.open(tmp_path / "many.txt.gz", "wb") as file:
        file.write((tmp_path / "many.txt").read_bytes())
    compressed = charwright("score", trained, tmp_path / "many.txt.gz", "--json")
    assert compressed.out.replace("many.txt.gz", "many.txt") == result.out


def test_json_and_csv_have_the_same_values(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    """8-bit integers give the same figures on every machine."""
    (tmp_path / "x.txt").write_bytes('To be,\r\n"道"\r\n\r\nnot'.encode())
    result = charwright("score", trained, tmp_path / "x.txt", "--json", "--precision", "q8")
    found = records(result.out)
    assert [list(one) for one in found] == [FIELDS] * 4
    assert [(one["line"], one["chars"], one["unknown_chars"], one["text"]) for one in found] == [
        (1, 6, 0, "To be,"),
        (2, 4, 3, '"道"'),
        (3, 1, 0, ""),
        (4, 3, 0, "not"),
    ]
    assert "14 characters predicted, 3 of them not in the vocabulary" in result.err
    table = charwright("score", trained, tmp_path / "x.txt", "--csv", "--precision", "q8").out
    assert table.splitlines()[0] == ",".join(FIELDS)
    rows = list(csv.reader(io.StringIO(table)))[1:]
    assert rows == [[str(value) for value in one.values()] for one in found]
    bits = [one["bits"] for one in found]
    assert found[0]["bits_per_char"] == round(bits[0] / 6, 6)
    assert bits == [score.bits for score in _rounded(trained, tmp_path / "x.txt")]


def _rounded(run: Path, path: Path) -> list[cw.Score]:
    from dataclasses import replace

    return [replace(score, bits=round(score.bits, 6)) for score in cw.score(run, path, precision="q8")]


def test_worst_first(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(TEXT + "zzqqzzqq\n" + TEXT + "x\n", encoding="utf-8")
    everything = records(charwright("score", trained, tmp_path / "x.txt", "--json").out)
    in_order = sorted(everything, key=lambda one: -one["bits_per_char"])
    assert records(charwright("score", trained, tmp_path / "x.txt", "--json", "--worst", "3").out) == in_order[:3]
    assert records(charwright("score", trained, tmp_path / "x.txt", "--json", "--worst").out) == in_order
    longer = charwright("score", trained, tmp_path / "x.txt", "--worst", "1", "--min-chars", "5")
    assert [line.split()[-1] for line in longer.out.splitlines()] == ["text", "zzqqzzqq"]
    assert "122 lines" in longer.err


def test_best_first_above_a_figure_and_by_all_bits(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("to\nzzqq\nto be or not to be\nq\n", encoding="utf-8")

    def shown(*options: object) -> list[str]:
        result = charwright("score", trained, tmp_path / "x.txt", "--independent", "--json", *options)
        assert result.code == 0, result.err
        return [one["text"] for one in records(result.out)]

    by_char = {
        one["text"]: one
        for one in records(charwright("score", trained, tmp_path / "x.txt", "--independent", "--json").out)
    }
    rising = sorted(by_char, key=lambda text: by_char[text]["bits_per_char"])
    bits = sorted(by_char, key=lambda text: by_char[text]["bits"])
    assert rising != bits
    assert shown("--best") == rising
    assert shown("--best", 2) == rising[:2]
    assert shown("--best", "--rank", "bits") == bits
    assert shown("--worst", 2, "--rank", "bits") == bits[:1:-1]
    limit = by_char[rising[1]]["bits_per_char"]
    assert set(shown("--above", limit)) == set(rising[2:])
    assert set(shown("--above", by_char[bits[2]]["bits"], "--rank", "bits")) == set(bits[3:])


def test_a_record_without_a_predicted_character_is_not_the_best(
    charwright: Terminal, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_text("to be", encoding="utf-8")
    (tmp_path / "empty.txt").write_bytes(b"")
    files = (tmp_path / "empty.txt", tmp_path / "x.txt", "--by", "file", "--json")
    for options in ((), ("--worst",)):
        assert len(records(charwright("score", trained, *files, *options).out)) == 2
    for options in (
        ("--best",),
        ("--above", "-5"),
        ("--above", "-5", "--rank", "bits"),
        ("--min-chars", "3", "--best"),
    ):
        found = charwright("score", trained, *files, *options)
        assert [one["chars"] for one in records(found.out)] == [4]
    assert len(charwright("score", trained, *files[:-1], "--best", "1", "--csv").out.splitlines()) == 2


def test_orders_that_contradict_each_other(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8")
    for options, message in (
        (("--worst", "--best"), "--worst and --best are two orders"),
        (("--rank", "bits"), "--rank says what --worst, --best and --above compare"),
        (("--above", "nan"), "--above must be finite"),
        (("--best", "x.txt"), "--best takes a number"),
    ):
        result = charwright("score", trained, tmp_path / "x.txt", *options)
        assert result.code == 2
        assert message in result.err


def test_the_table(charwright: Terminal, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.txt").write_text("not\nto", encoding="utf-8")
    (tmp_path / "a.txt").write_text("be", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = charwright("score", trained, "a.txt", "b.txt").out.splitlines()
    assert lines[0] == "bits/char         bits    chars  file:line      text"
    assert [line.split()[-2:] for line in lines[1:]] == [["a.txt:1", "be"], ["b.txt:1", "not"], ["b.txt:2", "to"]]
    assert [line.split()[2] for line in lines[1:]] == ["2", "4", "2"]  # A newline follows the first file.


def test_controls_do_not_reach_the_terminal() -> None:
    assert safe("a\x1b[31mb\u202ec\td\n") == r"a\x1b[31mb\u202ec\td\n"
    assert safe("道　德 \u200dé") == "道　德 \u200dé"


@pytest.mark.parametrize(("content", "count"), [(b"a", 1), (b"\n\n", 2), ("道\n德".encode(), 2)])
def test_short_files(charwright: Terminal, trained: Path, tmp_path: Path, content: bytes, count: int) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    for options in ([], ["--independent"], ["--worst"], ["--warm-up", "9"]):
        result = charwright("score", trained, tmp_path / "x.txt", "--json", *options)
        assert (result.code, len(result.out.splitlines())) == (0, count)
    assert f"{count} line" in result.err


def test_names_of_files_do_not_push_the_text_away(
    charwright: Terminal, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b.txt", f"{'道' * 40}.txt", f"{'folder' * 9}/b.txt"]
    (tmp_path / names[2]).parent.mkdir()
    for name in names:
        (tmp_path / name).write_text("be", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = charwright("score", trained, *names).out.splitlines()[1:]
    places = [line.split()[-2] for line in lines]
    assert places == ["b.txt:1", f"…{'道' * 12}.txt:1", "…/b.txt:1"]
    assert len({cell_len(line) for line in lines}) == 1
    assert cell_len(lines[0]) < 90
    found = records(charwright("score", trained, *names, "--json").out)
    assert [one["file"] for one in found] == names


def test_an_empty_file(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    for name, text in (("empty.txt", ""), ("a.txt", "To be\n"), ("b.txt", "or not")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    empty, a, b = (tmp_path / name for name in ("empty.txt", "a.txt", "b.txt"))
    for options in ([], ["--independent"], ["--worst"], ["--json"], ["--csv"], ["--by", "file"]):
        result = charwright("score", trained, empty, *options)
        assert (result.code, f"{empty} is empty; " in result.line) == (1, True)
    result = charwright("score", trained, empty, a, empty, b, empty, "--by", "file", "--json")
    rows = [(Path(str(one["file"])).name, one["chars"], one["bits_per_char"] is None) for one in records(result.out)]
    nothing = ("empty.txt", 0, True)
    assert rows == [nothing, ("a.txt", 5, False), nothing, ("b.txt", 6, False), nothing]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_bytes(b"")
    (tmp_path / "folder" / "b.bin").write_bytes(b"a\0b")
    (tmp_path / "folder" / "c.txt").write_bytes(b"c")
    found = records(charwright("score", trained, tmp_path / "folder", "--by", "file", "--json").out)
    assert [Path(str(one["file"])).name for one in found] == ["a.txt", "c.txt"]


def test_worst_takes_a_number(charwright: Terminal, trained: Path, corpus: Path) -> None:
    for words in ([trained, corpus], ["20x", trained, corpus]):
        result = charwright("score", "--worst", *words)
        assert (result.code, "write it after the files, or --worst=20" in result.line) == (2, True)
    result = charwright("score", trained, corpus, "--worst", "0")
    assert (result.code, "x>=1" in result.line) == (2, True)


def test_a_single_character_is_not_several(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("be", encoding="utf-8")
    assert "1 line, 1 character predicted: " in charwright("score", trained, tmp_path / "x.txt").err
    assert list(Totals("paragraph", records=3, chars=9, cold=1).notes())[1].startswith("in 1 paragraph (marked *")


def test_mistakes_are_one_line(charwright: Terminal, trained: Path, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "byte 3 (0xe9) is invalid" in charwright("score", trained, tmp_path / "latin.txt").line
    assert "there is no run" in charwright("score", tmp_path / "none", corpus).line
    assert "there is no file" in charwright("score", trained, tmp_path / "none.txt").line
    for words in (["--json", "--csv"], ["--by", "line", "--separator", "x"], ["--separator", ""], ["--by", "word"]):
        assert charwright("score", trained, corpus, *words).code == 2
    assert "read only once" in charwright("score", trained, "-", "-").line


def test_standard_input_without_torch(trained: Path) -> None:
    prelude = "sys.modules['torch'] = None"
    result = process("score", trained, "-", "--json", stdin=TEXT.encode() + b"\xff", prelude=prelude)
    assert (result.code, result.out) == (1, "")
    assert "standard input is not utf-8: byte 2,550 (0xff)" in result.line
    result = process("score", trained, "-", "--json", stdin=TEXT.encode(), prelude=prelude)
    assert (result.code, len(result.out.splitlines())) == (0, 60)
    assert records(result.out)[0]["file"] == "-"


def test_every_command_says_what_could_not_be_decoded(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(TEXT.encode() + b"\xff\n")
    for words in (("score", trained), ("evaluate", trained), ("compare", trained), ("inspect",)):
        result = charwright(*words, tmp_path / "log.txt", "--errors", "replace")
        assert result.code == 0
        assert result.err.count("1 U+FFFD in the text") == 1


def test_a_closed_pipe_is_quiet(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 40, encoding="utf-8")
    command = [sys.executable, "-m", "charwright", "score", str(trained), str(tmp_path / "long.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith(b"bits/char")
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 0


def test_independent_lines_appear_as_they_arrive(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "score", str(trained), "-", "--independent", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        watchdog = threading.Timer(60, running.kill)
        watchdog.start()
        for text in ("To be", "or not"):
            running.stdin.write(f"{text}\n".encode())
            running.stdin.flush()
            assert json.loads(running.stdout.readline())["text"] == text
        running.stdin.close()
        assert running.stdout.read() == b""
        watchdog.cancel()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_interrupted_it_shows_the_sums(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "score", str(trained), "-", "--independent", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        watchdog = threading.Timer(60, running.kill)
        watchdog.start()
        running.stdin.write(b"To be\n")
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["text"] == "To be"  # Now it waits for more.
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
        watchdog.cancel()
    assert running.returncode == 130
    assert b"interrupted; this is what was read so far" in err
    assert b"1 line, 6 characters predicted" in err


def test_what_was_read_before_an_interruption_is_in_order() -> None:
    def interrupted() -> Iterator[Score]:
        for line, bits in enumerate((3.0, 9.0, 6.0), 1):
            yield Score("x", "-", line, 1, 1, 0, bits)
        raise KeyboardInterrupt

    totals = Totals("line")
    assert [score.bits for score in in_order(totals.counted(interrupted()), lambda score: score.bits, 2, None)] == [
        9,
        6,
    ]
    assert (totals.interrupted, totals.records, totals.bits) == (True, 3, 18.0)


def test_an_interruption_between_two_scores_ends_them() -> None:
    totals = Totals("line")
    scores = totals.counted(Score("x", "-", line, 1, 1, 0, 1.0) for line in range(1, 9))
    assert next(scores).line == 1
    totals.interrupt()
    assert list(scores) == []
    assert (totals.interrupted, totals.records) == (True, 1)
    with pytest.raises(KeyboardInterrupt):
        totals.interrupt()


def test_what_is_above_a_limit_is_counted(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("To be\nxqzjk\n\nor not\n", encoding="utf-8")
    words = ("score", trained, tmp_path / "x.txt", "--independent", "--min-chars", "2", "--json", "--above")
    limit = sorted(one["bits_per_char"] for one in records(charwright(*words[:-1]).out))[-2]
    result = charwright(*words, f"{limit}")
    assert [one["text"] for one in records(result.out)] == ["xqzjk"]
    assert f"1 line above {limit:g}" in result.err
    assert "0 lines above 99" in charwright(*words, "99").err


def test_from_python(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("To be\n\nor not\n", encoding="utf-8")
    found = list(cw.score(trained, [tmp_path / "x.txt"], by="blank"))
    assert [(score.text, score.file, score.line) for score in found] == [
        ("To be", str(tmp_path / "x.txt"), 1),
        ("or not", str(tmp_path / "x.txt"), 3),
    ]
