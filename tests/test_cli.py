"""The command line: what people type, what they see, what programs read."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch

from charwright import cli
from charwright.cli import COMMANDS
from charwright.run import Run
from charwright.training.events import Epoch, Sample, Start, Step
from charwright.training.progress import BarProgress, PlainProgress, format_seconds, terminal_progress

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 30
SMALL = ["--units", "16", "--embedding", "8", "--batch", "4", "--seq-length", "16"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small, a second thread costs more than it gives; other tests get theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that an error is."""
        assert self.out == ""
        assert re.fullmatch(r"charwright: [^\n]+\n", self.err), self.err
        return self.err


class Terminal:
    """Runs commands in this process, which costs no import of PyTorch each time."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        self.capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *self.capsys.readouterr())


@pytest.fixture
def charwright(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, which no test may change."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["train", folder / "hamlet.txt", "--out", folder / "run", "--epochs", "2", *SMALL]
    assert cli.run(list(map(str, arguments))) == 0
    return folder / "run"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def process(*arguments: str | Path, stdin: bytes | None = b"", prelude: str = "", **environment: str) -> Result:
    """Run a command in a process of its own."""
    command = [sys.executable, "-c", f"import sys; {prelude}\nfrom charwright.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    return Result(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


# Help, and what it costs.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(charwright: Terminal, command: str) -> None:
    result = charwright(command, "--help")
    assert result.code == 0
    assert result.err == ""
    assert f"charwright {command}" in result.out
    assert charwright(command, "-h") == result


def test_help_lists_every_command_and_keeps_its_lines(charwright: Terminal) -> None:
    result = charwright("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", result.out, re.MULTILINE)
    assert "  charwright generate runs/novel       write like it\n" in result.out
    assert "\\b" not in result.out


def test_every_option_has_a_help_text() -> None:
    for name in COMMANDS:
        command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        for parameter in command.params:
            if parameter.param_type_name == "option" and name != "evaluate":
                assert parameter.help, f"{name} {parameter.name}"  # type: ignore[attr-defined]


def test_no_command_shows_the_help(charwright: Terminal) -> None:
    result = charwright()
    assert result.code == 2
    assert "Usage: charwright" in result.err


def test_version(charwright: Terminal) -> None:
    from charwright import __version__

    assert charwright("--version").out == f"charwright {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["generate", "RUN", "--length", "5"]])
def test_what_is_quick_never_imports_torch(trained: Path, arguments: list[str]) -> None:
    """An import of PyTorch would fail here."""
    words = [str(trained) if word == "RUN" else word for word in arguments]
    result = process(*words, prelude="sys.modules['torch'] = None")
    assert (result.code, result.err) == (0, "")
    assert result.out


# Mistakes: one line, the right code, no traceback.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gen"], "No such command 'gen'"),
        (["generate"], "'RUN'"),
        (["generate", "RUN", "--length", "0"], "--length must be at least 1, not 0"),
        (["generate", "RUN", "--length", "many"], "'many' is not a valid integer"),
        (["generate", "RUN", "--temperature", "nan"], "--temperature must be a finite number"),
        (["generate", "RUN", "--temperature", "-1"], "--temperature must be at least 0"),
        (["generate", "RUN", "--top-p", "1.5"], "--top-p must be at most 1"),
        (["generate", "RUN", "--top-k", "0"], "--top-k must be at least 1"),
        (["generate", "RUN", "--seed", "-1"], "--seed must be at least 0"),
        (["generate", "RUN", "--unheard-of"], "--unheard-of"),
        (["train"], "name a text"),
        (["train", "TEXT", "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "TEXT", "--epochs", "1", "--minutes", "1"], "one budget at a time"),
        (["train", "TEXT", "--cell", "transformer"], "'transformer'"),
        (["train", "TEXT", "--tied", "--units", "5"], "--tied needs"),
        (["train", "TEXT", "--recipe", "tutoral"], "did you mean tutorial?"),
        (["train", "TEXT", "--device", "tpu9"], "--device"),
        (["train", "TEXT", "--core", "fast"], "--core"),
        (["train", "TEXT", "--keep-checkpoints", "0"], "--keep-checkpoints must be at least 1"),
        (["train", "TEXT", "--corpus", "TEXT"], "--resume"),
        (["train", "TEXT", "--resume", "RUN"], "--corpus"),
        (["train", "--force", "--resume", "RUN"], "--force"),
        (["train", "--resume", "RUN", "--units", "3"], "--units belongs to the run"),
        (["train", "--resume", "RUN", "--recipe", "tutorial"], "--recipe belongs to the run"),
        (["evaluate", "RUN"], "CORPUS"),
        (["evaluate", "RUN", "TEXT", "--protocol", "windows-0"], "--protocol"),
        (["inspect", "TEXT", "--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_wrong_usage_is_2(charwright: Terminal, trained: Path, corpus: Path, words: list[str], said: str) -> None:
    places = {"RUN": str(trained), "TEXT": str(corpus)}
    result = charwright(*[places.get(word, word) for word in words])
    assert result.code == 2
    assert said in result.line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "FOLDER/hamlet.tx"], "did you mean FOLDER/hamlet.txt"),
        (["train", "FOLDER/empty.txt"], "empty"),
        (["train", "FOLDER/one.txt"], "one character"),
        (["train", "FOLDER/binary"], "NUL"),
        (["train", "FOLDER/latin.txt"], "--encoding"),
        (["train", "FOLDER/nothing"], "no text file"),
        (["train", "FOLDER/hamlet.txt", "--out", "RUN"], "--resume"),
        (["train", "FOLDER/hamlet.txt", "--out", "FOLDER"], "not a run"),
        (["train", "FOLDER/hamlet.txt", "--out", "FOLDER", "--force"], "not a run"),
        (["train", "FOLDER/hamlet.txt", "--out", "FOLDER/hamlet.txt/run"], "--out"),
        (["train", "--resume", "FOLDER"], "no config.json"),
        (["generate", "FOLDER/nowhere"], "no run"),
        (["generate", "FOLDER/hamlet.txt"], "is a file"),
        (["generate", "FOLDER"], "no config.json"),
        (["info", "FOLDER/nowhere"], "no run"),
        (["evaluate", "FOLDER/nowhere", "FOLDER/hamlet.txt"], "no run"),
        (["evaluate", "RUN", "FOLDER/empty.txt"], "empty"),
        (["evaluate", "RUN", "FOLDER/hamlet.txt", "--protocol", "windows-99999"], "too few"),
        (["inspect", "FOLDER/empty.txt"], "empty"),
        (["info", "RUN", "--plot", "FOLDER/nowhere/x.png"], "x.png"),
    ],
)
def test_what_cannot_be_done_is_1(
    charwright: Terminal, trained: Path, corpus: Path, words: list[str], said: str
) -> None:
    folder = corpus.parent
    (folder / "empty.txt").write_bytes(b"")
    (folder / "one.txt").write_bytes(b"x")
    (folder / "binary").write_bytes(b"\x7fELF\0\0\0\0" * 50)
    (folder / "latin.txt").write_bytes("déjà vu, déjà lu\n".encode("latin-1") * 50)
    (folder / "nothing").mkdir()
    places = [word.replace("FOLDER", str(folder)).replace("RUN", str(trained)) for word in words]
    result = charwright(*places)
    assert result.code == 1
    assert said.replace("FOLDER", str(folder)) in result.line


@pytest.mark.parametrize("command", ["generate", "info"])
def test_a_damaged_run(charwright: Terminal, copy: Path, command: str) -> None:
    (copy / "vocabulary.json").write_text("{", encoding="utf-8")
    result = charwright(command, copy)
    assert result.code == 1
    assert str(copy / "vocabulary.json") in result.line


def test_a_run_with_weights_cut_off(charwright: Terminal, copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = charwright("generate", copy)
    assert result.code == 1
    assert str(path) in result.line


@pytest.mark.parametrize("words", [["--debug", "generate", "nowhere"], ["generate", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(words: list[str]) -> None:
    result = process(*words)
    assert result.code == 1
    assert "Traceback" in result.err
    assert "RunNotFoundError" in result.err


def test_debug_ends_with_its_command(charwright: Terminal) -> None:
    from charwright.errors import RunNotFoundError

    with pytest.raises(RunNotFoundError):
        charwright("--debug", "generate", "nowhere")
    assert charwright("generate", "nowhere").code == 1


def test_a_training_that_diverges_is_3(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    wild = ["--learning-rate", "10000", "--schedule", "constant", "--clip-norm", "none", "--epochs", "9"]
    result = charwright("train", corpus, "--out", tmp_path / "wild", *SMALL, *wild)
    assert result.code == 3
    assert "--learning-rate" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "generate", str(trained), "--length", "9"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert b"No space left" in done.stderr


# Generating.


def test_stdout_holds_the_text_and_nothing_else(charwright: Terminal, trained: Path) -> None:
    from charwright import Generator

    result = charwright("generate", trained, "--prompt", "To be", "--length", "50", "--seed", "7")
    assert (result.code, result.err) == (0, "")
    run = Run.open(trained)
    expected = Generator(run.model, run.weights(), run.vocabulary).generate("To be", length=50, seed=7)
    assert result.out == f"{expected[0]}\n"


def test_the_same_seed_in_a_new_process(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "50", "--seed", "7"]
    assert process(*words) == charwright(*words)


def test_without_a_seed_each_text_is_new(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "80"]
    assert charwright(*words).out != charwright(*words).out


def test_num_writes_so_many(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To ", "--length", "30", "--seed", "7", "--temperature", "1.5"]
    many = charwright(*words, "--num", "3")
    assert many.err.splitlines() == ["--- 1 of 3 ---", "--- 2 of 3 ---", "--- 3 of 3 ---"]
    assert many.out.startswith(charwright(*words).out)
    assert len(many.out) == 3 * (3 + 30 + 1)
    texts = [many.out[i * 34 : (i + 1) * 34] for i in range(3)]
    assert all(text.startswith("To ") and text.endswith("\n") for text in texts)
    assert len(set(texts)) == 3


def test_no_prompt_leaves_the_prompt_out(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "20", "--seed", "7"]
    assert "To be" + charwright(*words, "--no-prompt").out == charwright(*words).out


@pytest.mark.parametrize("option", [[], ["--prompt", "-"]])
@pytest.mark.parametrize("stdin", [b"To be", b"To be\n", b"To be\r\n"])
def test_the_prompt_comes_from_a_pipe(charwright: Terminal, trained: Path, option: list[str], stdin: bytes) -> None:
    words = ["generate", trained, "--length", "20", "--seed", "7"]
    assert process(*words, *option, stdin=stdin) == charwright(*words, "--prompt", "To be")


def test_a_prompt_that_is_no_text(trained: Path) -> None:
    result = process("generate", trained, stdin=b"To \xff")
    assert result.code == 1
    assert "byte 3" in result.line


def test_unknown_characters_of_the_prompt_are_named_once(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", "中中文", "--length", "20", "--num", "2")
    assert result.code == 0
    assert result.err.count("never seen") == 1
    assert "'中' '文'" in result.err
    assert result.out.count("中中文") == 2
    assert "[UNK]" not in result.out


def test_a_very_long_prompt(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", TEXT, "--length", "5", "--seed", "1")
    assert result.out.startswith(TEXT)
    assert len(result.out) == len(TEXT) + 6


def test_a_terminal_that_lacks_the_characters(trained: Path) -> None:
    result = process("generate", trained, "--prompt", "中", "--length", "5", PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert result.out.startswith("?")


@pytest.mark.skipif(os.name == "nt", reason="this test needs a POSIX shell")
def test_a_pipe_that_closes_early_is_no_error(trained: Path) -> None:
    script = (
        '"$0" -m charwright generate "$1" --length 100000000 --prompt "To be" | head -c 20; echo " ${PIPESTATUS[0]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, str(trained)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == b""
    assert done.stdout.endswith(b" 0\n")
    assert done.stdout.startswith(b"To be")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signal")
def test_ctrl_c_while_generating_is_130(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "generate", str(trained), "--length", "100000000"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as generating:
        assert generating.stdout is not None
        assert len(generating.stdout.read(50)) == 50  # It is writing now.
        generating.send_signal(signal.SIGINT)
        _, err = generating.communicate(timeout=30)
    assert generating.returncode == 130
    assert err.strip() == b""


# Training.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_taken_name_gets_a_number(charwright: Terminal, corpus: Path, here: Path) -> None:
    for name in ("hamlet", "hamlet-2"):
        result = charwright("train", corpus, "--steps", "1", *SMALL)
        assert (result.code, result.out) == (0, "")
        assert f"saved {Path('runs') / name};" in result.err
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["hamlet", "hamlet-2"]


def test_force_replaces_a_run(charwright: Terminal, copy: Path, corpus: Path) -> None:
    result = charwright("train", corpus, "--out", copy, "--force", "--steps", "3", *SMALL)
    assert result.code == 0
    assert [event["step"] for event in Run.open(copy).epochs()] == [3]


def test_a_mistake_before_the_training_leaves_no_folder(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    assert charwright("train", corpus, "--out", tmp_path / "new", "--device", "tpu9", "--steps", "1").code == 2
    assert not (tmp_path / "new").exists()


def test_the_log_has_what_readers_count_on(trained: Path) -> None:
    lines = (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert all({"event", "time_s", "step"} <= event.keys() for event in events)
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert {event["event"] for event in events} == {"start", "step", "epoch", "sample", "checkpoint", "end"}
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    for event in epochs:
        assert {"epoch", "train_loss", "validation_loss", "chars_per_s", "elapsed_s"} <= event.keys()
        assert event["validation_loss"] > 0
    assert [event["time_s"] for event in events] == sorted(event["time_s"] for event in events)


def test_progress_goes_to_stderr_in_plain_lines(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    result = charwright("train", corpus, "--out", tmp_path / "run", "--epochs", "1", *SMALL)
    assert result.out == ""
    assert "\x1b" not in result.err
    assert "\r" not in result.err
    assert "epoch 1  loss " in result.err
    assert f"charwright generate {tmp_path / 'run'}" in result.err


def test_a_resume_with_more_epochs_goes_on(charwright: Terminal, copy: Path) -> None:
    result = charwright("train", "--resume", copy, "--epochs", "3")
    assert result.code == 0
    run = Run.open(copy)
    assert [event["epoch"] for event in run.epochs()] == [1, 2, 3]
    assert run.config.recipe.training.epochs == 3
    assert [event["event"] for event in run.log()].count("resume") == 1


def test_a_resume_of_what_is_finished_says_so(charwright: Terminal, copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    result = charwright("train", "--resume", copy)
    assert result.code == 0
    assert "raise it with --epochs" in result.err
    assert (copy / "model.safetensors").read_bytes() == before


def test_a_resume_whose_text_has_moved(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    assert charwright("train", corpus, "--out", tmp_path / "run", "--epochs", "1", *SMALL).code == 0
    moved = corpus.rename(tmp_path / "moved.txt")
    refused = charwright("train", "--resume", tmp_path / "run", "--epochs", "2")
    assert refused.code == 1
    assert "--corpus" in refused.line
    assert charwright("train", "--resume", tmp_path / "run", "--epochs", "2", "--corpus", moved).code == 0
    moved.write_text(TEXT + "!", encoding="utf-8")
    changed = charwright("train", "--resume", tmp_path / "run", "--epochs", "3", "--corpus", moved)
    assert changed.code == 1
    assert "SHA-256" in changed.line


def test_a_text_from_stdin_is_kept_for_a_resume(charwright: Terminal, tmp_path: Path) -> None:
    text = TEXT.replace("\n", "\r\n").encode()
    trained = process(
        "train", "-", "--out", tmp_path / "run", "--epochs", "1", "--newlines", "keep", *SMALL, stdin=text
    )
    assert trained.code == 0, trained.err
    assert (tmp_path / "run" / "corpus" / "stdin.txt").read_bytes() == text
    assert charwright("train", "--resume", tmp_path / "run", "--epochs", "2").code == 0
    assert len(Run.open(tmp_path / "run").epochs()) == 2


def test_a_validation_text_of_its_own(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("that is the mind to be nobler\n" * 20, encoding="utf-8")
    words = ["--out", tmp_path / "run", "--epochs", "1", *SMALL, "--validation", other]
    assert charwright("train", corpus, *words).code == 0
    [event] = Run.open(tmp_path / "run").epochs()
    measured = charwright("evaluate", tmp_path / "run", other, "--json")
    assert json.loads(measured.out)["nats_per_char"] == pytest.approx(event["validation_loss"], abs=0.02)
    assert charwright("train", "--resume", tmp_path / "run", "--epochs", "2").code == 0
    other.unlink()
    assert "other.txt" in charwright("train", "--resume", tmp_path / "run", "--epochs", "3").line


def test_without_validation_the_last_weights_are_kept(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    words = ["--out", tmp_path / "run", "--epochs", "1", "--val-fraction", "0", *SMALL]
    assert charwright("train", corpus, *words).code == 0
    run = Run.open(tmp_path / "run")
    assert run.epochs()[0]["validation_loss"] is None
    found = run.latest_checkpoint()
    assert found is not None
    assert all((run.weights()[name] == array).all() for name, array in found[0]["weights"].items())


LONGER = [*SMALL, "--steps", "300", "--threads", "1", "--checkpoint-minutes", "0.002"]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and the run that was trained on it without a stop."""
    folder = tmp_path_factory.mktemp("never_stopped")
    (folder / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    assert process("train", folder / "hamlet.txt", "--out", folder / "run", *LONGER).code == 0
    return folder


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_training_that_is_stopped_goes_on_as_if_it_never_was(
    never_stopped: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    """Whatever stops it, and in the middle of an epoch: the weights in the end are the same bits."""
    run = tmp_path / "stopped"
    words = ["train", never_stopped / "hamlet.txt", "--out", run, *LONGER]
    command = [sys.executable, "-m", "charwright", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as training:
        wait_for(lambda: any(run.glob("checkpoints/step-*[0-9]/manifest.json")))
        training.send_signal(sent)
        _, err = training.communicate(timeout=60)
    assert training.returncode == code, err.decode()
    if code > 0:
        assert f"charwright train --resume {run}" in err.decode().splitlines()[-1]
    found = Run.open(run).latest_checkpoint()
    assert found is not None
    assert 0 < found[1]["step"] < 300
    if sent != signal.SIGTERM:  # It does what SIGINT does; one costly comparison is enough.
        resumed = process("train", "--resume", run, "--threads", "1")
        assert resumed.code == 0, resumed.err
        assert sha256(run / "model.safetensors") == sha256(never_stopped / "run" / "model.safetensors")


def wait_for(condition: object, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_training_goes_on_when_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    words = ["train", tmp_path / "hamlet.txt", "--out", tmp_path / "run", "--epochs", "2", *SMALL]
    command, environment = [sys.executable, "-m", "charwright", *map(str, words)], os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as training:
        assert training.stderr is not None
        training.stderr.close()
        assert training.wait(60) == 0
    assert len(Run.open(tmp_path / "run").epochs()) == 2


def test_standard_input_may_be_closed(tmp_path: Path, corpus: Path) -> None:
    words = ["train", corpus, "--out", tmp_path / "run", "--steps", "1", *SMALL]
    assert process(*words, prelude="sys.stdin = None").code == 0
    assert "standard input" in process("train", "-", prelude="sys.stdin = None").line
    assert process("generate", tmp_path / "run", "--length", "5", prelude="sys.stdin = None").code == 0


def test_a_compressed_text(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "hamlet.txt.bz2").write_bytes(bz2.compress(TEXT.encode()))
    words = ["train", tmp_path / "hamlet.txt.bz2", "--out", tmp_path / "run", "--steps", "1", *SMALL]
    assert charwright(*words).code == 0
    assert Run.open(tmp_path / "run").config.characters == len(TEXT)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_text_whose_name_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        path.write_text(TEXT, encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes no such names")
    assert process("train", path, "--out", tmp_path / "run", "--steps", "1", *SMALL).code == 0
    assert Run.open(tmp_path / "run").config.sources[0].location == str(path)
    assert process("info", tmp_path / "run").code == 0


def test_tensorboard_files(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["train", corpus, "--out", tmp_path / "run", "--epochs", "1", "--tensorboard", *SMALL]
    result = process(*words)
    assert result.code == 0, result.err
    [file] = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"epoch/validation_loss" in file.read_bytes()


def test_tensorboard_that_is_not_installed(corpus: Path, tmp_path: Path) -> None:
    words = ["train", corpus, "--out", tmp_path / "run", "--epochs", "1", "--tensorboard", *SMALL]
    result = process(*words, prelude="sys.modules['tensorboard'] = None")
    assert result.code == 1
    assert "pip install 'charwright[tensorboard]'" in result.line
    assert not (tmp_path / "run").exists()


# Looking at things.


def test_evaluate(charwright: Terminal, trained: Path, corpus: Path) -> None:
    result = charwright("evaluate", trained, corpus)
    assert (result.code, result.err) == (0, "")
    assert re.match(r"\d\.\d{4} nats per character \(\d\.\d{4} bits\), carried\n[\d,]+ characters", result.out)


@pytest.mark.parametrize("protocol", ["carried", "windows-32"])
def test_evaluate_json(charwright: Terminal, trained: Path, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "new.txt").write_text("To be 中, or not. " * 20, encoding="utf-8")
    result = charwright("evaluate", trained, tmp_path / "new.txt", "--json", "--protocol", protocol)
    values = json.loads(result.out)
    assert values.keys() == {"nats_per_char", "bits_per_char", "chars", "unknown_chars", "protocol"}
    assert values["protocol"] == protocol
    assert values["unknown_chars"] in (19, 20)
    assert values["bits_per_char"] == pytest.approx(values["nats_per_char"] / 0.6931471805599453)


def test_info(charwright: Terminal, trained: Path) -> None:
    result = charwright("info", trained)
    assert (result.code, result.err) == (0, "")
    for shown in ("embedding", "recurrent.0 (gru)", "head", f"{len(TEXT):,} characters", "Recipe: default", "epoch "):
        assert shown in result.out


def test_info_json(charwright: Terminal, trained: Path) -> None:
    values = json.loads(charwright("info", trained, "--json").out)
    run = Run.open(trained)
    assert values["parameters"] == sum(array.size for array in run.weights().values())
    assert [layer["name"] for layer in values["layers"]] == ["embedding", "recurrent.0", "head"]
    assert sum(layer["parameters"] for layer in values["layers"]) == values["parameters"]
    assert values["history"] == run.epochs()
    assert values["corpus"]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()


def test_info_of_a_run_that_has_hardly_begun(charwright: Terminal, copy: Path) -> None:
    (copy / "log.jsonl").write_bytes(b'{"event": "start", "st\xff')
    shutil.rmtree(copy / "checkpoints")
    assert "No epoch is finished yet" in charwright("info", copy).out
    assert "no finished epoch" in charwright("info", copy, "--plot", copy / "x.png").line


def test_info_of_a_folder_whose_name_looks_like_markup(charwright: Terminal, copy: Path) -> None:
    odd = copy.rename(copy.parent / "[red]a$b$[bold]")
    result = charwright("info", odd)
    assert result.code == 0
    assert "[red]a$b$[bold]" in result.out.replace("\n", "")


def test_plot(charwright: Terminal, copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    odd = copy.rename(copy.parent / "a$b_$^")
    for name, drawn in (("x.png", "x.png"), ("y", "y.png")):
        result = charwright("info", odd, "--plot", tmp_path / name)
        assert result.code == 0
        assert f"drew {tmp_path / drawn}" in result.err
        assert (tmp_path / drawn).read_bytes().startswith(b"\x89PNG")
    assert charwright("info", odd, "--plot", tmp_path / "x.docx").code == 1


def test_plot_without_matplotlib(trained: Path, tmp_path: Path) -> None:
    result = process("info", trained, "--plot", tmp_path / "x.png", prelude="sys.modules['matplotlib'] = None")
    assert result.code == 1
    assert "pip install 'charwright[plot]'" in result.line


def test_inspect_a_chinese_text(charwright: Terminal, tmp_path: Path) -> None:
    text = "道可道，非常道。名可名，非常名。\n" * 40
    (tmp_path / "道德經.txt").write_text(text, encoding="utf-8")
    result = charwright("inspect", tmp_path / "道德經.txt", *SMALL, "--dropout", "0.1")
    assert (result.code, result.err) == (0, "")
    for shown in (
        "Text: 道德經",
        f"{len(text):,} characters, 40 lines",
        "Vocabulary: 9 tokens",
        "'\\n' 40",
        "道 120",
        "input   '道可道，",
        "target  '可道，非",
        "should expect",
        "(16, 4)",
        "(16, 4, 9)",
        "ln V = 2.1972",
        "it writes '",
    ):
        assert shown in result.out
    loss = float(re.search(r"loss ([\d.]+) nats", result.out).group(1))  # type: ignore[union-attr]
    assert loss == pytest.approx(2.1972, abs=0.02)


def test_inspect_bytes_and_a_text_shorter_than_a_batch(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("道可道", encoding="utf-8")
    result = charwright("inspect", tmp_path / "x.txt", "--unit", "byte", "--units", "8")
    assert result.code == 0
    assert "the 256 bytes of UTF-8" in result.out
    assert "instead of 64 x 100" in result.out


# Progress, where a person is looking and where nobody is.


class FakeTerminal(StringIO):
    def isatty(self) -> bool:
        return True


START = Start(0, 0.0, 1000, 5, 4, 16, "cpu", "f32", "fused", 1)
EPOCH = Epoch(5, 12.0, 1, 2.5, 2.25, 3.25, 1234.5, 12.0, True)


def step_at(time_s: float) -> Step:
    return Step(3, time_s, 1, 2.75, 1e-3, 1234.5, 0.5, 125.0)


def show_all(progress: BarProgress | PlainProgress) -> None:
    for event in (START, step_at(1.0), EPOCH, Sample(5, 12.0, "[bold]To be[/] or\nnot")):
        progress.write(event)
    progress.close()


def test_plain_lines_come_every_so_often() -> None:
    stream = StringIO()
    progress = PlainProgress(stream, every_s=10)
    for time_s in (1, 9, 10, 15, 19, 21):
        progress.write(step_at(time_s))
    assert stream.getvalue().count("\n") == 2
    assert "epoch 1  step 3  loss 2.7500  1,234 chars/s  2:05 left" in stream.getvalue()


def test_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(terminal_progress(StringIO()), PlainProgress)
    stream = FakeTerminal()
    progress = terminal_progress(stream)
    assert isinstance(progress, BarProgress)
    show_all(progress)
    assert "━" in stream.getvalue()
    assert "epoch 1  loss 2.5000  validation 2.2500 (3.250 bits/char)  best so far" in stream.getvalue()
    assert "[bold]To be[/] or" in stream.getvalue()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.delenv("COLORTERM", raising=False)
    stream = FakeTerminal()
    show_all(BarProgress(stream))
    colours = re.findall(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m", stream.getvalue())
    assert bool(colours) == (not no_color)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "?"), (0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03"), (90061, "25:01:01")],
)
def test_seconds_as_people_say_them(seconds: float | None, words: str) -> None:
    assert format_seconds(seconds) == words
