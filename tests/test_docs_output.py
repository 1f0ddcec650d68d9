"""Every output that the documentation shows is generated, or comes out when a test runs the page."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import charwright as cw
from charwright.training import events
from test_docs import FENCE, NAMES, ROOT, TRANSLATED
from test_imports import FORBIDDEN, MAY_OPEN, RANKS, SIBLINGS, WITHOUT_TORCH

sys.path.insert(0, str(ROOT / "docs"))
import generate
import outputs

CHINESE = {chinese for _, chinese in TRANSLATED}
ARCHITECTURE = "docs/explanation/architecture.md"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


RUN = [name for name in NAMES if name not in CHINESE and outputs.read_page(text_of(name)).checked]


def importing(folder: Path, shared: Path) -> None:
    shutil.copy(shared / "fixtures" / "tutorial-small" / "ckpt_1.weights.h5", folder)


NEEDS: dict[str, tuple[str, ...]] = {
    "docs/how-to/import.md": ("h5py",),
    "docs/how-to/plot.md": ("matplotlib", "uniplot"),
    "docs/how-to/serve.md": ("uvicorn",),
    "docs/how-to/tune.md": ("optuna",),
}
"""The optional packages of a page."""
PREPARE: dict[str, Callable[[Path, Path], None]] = {"docs/how-to/import.md": importing}
"""What a page needs in its folder beyond the corpora that outputs.py writes."""


@pytest.mark.parametrize("name", NAMES)
def test_every_shown_output_is_run_or_generated(name: str) -> None:
    # The pages in Chinese show the same blocks as those in English, which a test compares.
    page = outputs.read_page(text_of(name))
    lines = ", ".join(map(str, page.uncovered))
    assert name in CHINESE or not page.uncovered, f"{name}, lines {lines}: nothing produces this output"


def test_generated_blocks_are_those_of_the_generator() -> None:
    written = {"untried", "trials", "early", "tree", "learner", "sample", "figures"}
    for name in NAMES:
        found = set(re.findall(r"^<!-- (\w+):begin -->$", text_of(name), re.MULTILINE))
        assert found <= written, name
    assert all(f'"{block}"' in Path(generate.__file__).read_text("utf-8") for block in written)


@pytest.mark.parametrize("name", RUN)
def test_shown_output_is_the_real_one(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    environment = {"OMP_NUM_THREADS": "1"}
    sources = "\n".join(step.source for step in outputs.read_page(text_of(name)).steps)
    if "curl " in sources and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    if name in PREPARE or "shakespeare" in sources:
        shared: Path = request.getfixturevalue("shared")
        environment["CHARWRIGHT_DATA"] = str(shared / "data")
        if name in PREPARE:
            PREPARE[name](tmp_path, shared)
    for output, real in outputs.check_page(ROOT / name, tmp_path, environment):
        pytest.fail(f"{name}:{output.line} shows an output that is not the real one, which is\n{real}")


def test_readme_is_short() -> None:
    # tests/test_public_interface.py runs its program.
    for name in generate.READMES:
        [program] = [body for language, body in FENCE.findall(text_of(name)) if language == "python"]
        assert len([line for line in program.splitlines() if line.strip()]) <= 16
        assert len(text_of(name).splitlines()) <= 120


def test_readme_speeds_are_those_of_the_benchmarks() -> None:
    for name in generate.READMES:
        rows = [line for line in text_of(name).splitlines() if "GRU 1024" in line and line.startswith("|")]
        assert len(rows) == 3
        figures = [cell.strip() for row in rows for cell in row.split("|")[2:5]]
        assert all(re.search(rf"\b{figure}\b", text_of("docs/benchmarks.md")) for figure in figures)


def test_architecture_has_the_import_table() -> None:
    text = text_of(ARCHITECTURE)
    rows = re.findall(r"^\| (\d) \| (.+?) \| (.*?) ?\|$", text, re.MULTILINE)
    found = {package: int(rank) for rank, packages, _ in rows for package in re.findall(r"`(\w+)`", packages)}
    assert found == {name: rank for name, rank in RANKS.items() if not name.startswith("__")}
    notes = " ".join(note for _, _, note in rows)
    assert set(re.findall(r"`(\w+)` imports `(\w+)`", notes)) == SIBLINGS - {("__main__", "cli")}
    forbidden = {(package, other) for package, other in FORBIDDEN if RANKS[other] < RANKS[package]}
    assert set(re.findall(r"`(\w+)` does not import `(\w+)`", notes)) == forbidden


def test_architecture_names_what_opens_files_and_what_needs_no_torch() -> None:
    text = text_of(ARCHITECTURE)
    opening = text.split("These modules open files:")[1].split("\n\n`errors`")[0]
    assert set(re.findall(r"`([\w/]+\.py)`", opening)) == MAY_OPEN
    [listed] = re.findall(r"^((?:`\w+`|,|and|\s)+)\s+do not import PyTorch", text, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == set(WITHOUT_TORCH)


def test_learners_path_is_counted_and_in_the_readmes() -> None:
    files = [ROOT / "examples" / "char_rnn.py", *(generate.PACKAGE / name for name in generate.LEARNERS_PATH)]
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert f"| | | | {total:,} |" in text_of(ARCHITECTURE)
    for name in generate.READMES:
        places = [text_of(name).find(f"`{path}`") for path in generate.LEARNERS_PATH]
        assert -1 not in places
        assert places == sorted(places)


def test_run_folder_page_names_every_file_and_key(tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "words.txt").write_text("a few words, and a few more\n" * 200, encoding="utf-8")
    first = cw.train(tmp_path / "words.txt", out=tmp_path / "first", steps=30, units=8, batch=4, patience=3)
    run = cw.train(tmp_path / "words.txt", parent=first.folder, out=tmp_path / "second", minutes=0.02)
    page = text_of("docs/reference/run-folder.md")
    layout = page.split("```text")[1].split("```")[0]
    shown = {line.split()[0].rpartition("/")[2] for line in layout.strip().splitlines()} - {""}
    files = {path.name for one in (first, run) for path in one.folder.rglob("*") if path.is_file()}
    assert files == shown - {"stdin.txt", "launch.json"}

    keys: set[str] = set()
    for one in (first, run):
        config = one.config.to_json()
        keys |= config.keys() | config["recipe"].keys() | config["corpus"].keys() | config["corpus"]["reading"].keys()
        keys |= config["corpus"]["sources"][0].keys() | config["versions"].keys()
        keys |= config.get("plan", {}).keys() | config.get("from", {}).keys()
        keys |= {key for event in one.log() for key in (event["event"], *event)}
        found = one.latest_checkpoint()
        assert found is not None
        keys |= found[1].keys()
    assert {"plan", "from", "tokens", "validation", "best_blocks"} <= keys
    assert keys <= set(re.findall(r"`(\w+)`", page))
    table = page.split("## log.jsonl")[1]
    for event in events.Event.__subclasses__() + events.Start.__subclasses__() + events.Validation.__subclasses__():
        assert f"| `{event.name}` |" in table


# The checker itself.

PAGE = """# A page

<!-- run: echo made > made.txt -->

```sh
cat made.txt; echo 12.5 s; echo a b c
```

```text
made
... s
a ... c
```

<!-- run instead: echo short -->
```sh
sleep 1000; echo short
```

```text
short
```

<!-- illustration: formula -->
```text
y = x
```

## Another

```python
print("loss", 3.25)
```

<!-- numbers vary -->
```text
loss 4.1
```

```text
nobody prints this
```
"""


def test_the_checker_runs_a_page(tmp_path: Path) -> None:
    page = outputs.read_page(PAGE)
    assert [step.language for step in page.steps] == ["sh", "sh", "sh", "python"]
    assert page.uncovered == [PAGE.splitlines().index("nobody prints this")]  # the line of its fence, counted from 1
    printed = outputs.run_page(page, tmp_path, {})
    assert all(step.output.matches(real) for step, real in zip(page.steps, printed, strict=True) if step.output)


@pytest.mark.parametrize(
    ("shown", "real", "numbers_vary", "same"),
    [
        ("a\nb\n", "a\nb\n", False, True),
        ("a\nb\n", "a\nc\n", False, False),
        ("a\n", "a\nb\n", False, False),
        ("a\n...\n", "a\nb\nc\n", False, True),
        ("a\n...\nd\n", "a\nb\nc\n", False, False),
        ("loss 3...\n", "loss 3.254\n", False, True),
        ("loss 3.2\n", "loss 3.254\n", False, False),
        ("x  1.0\n", "x 12,345.5\n", True, True),
        ("x  1.0  y\n", "x 12 z\n", True, False),
        ("a (b)* c\n", "a (b)* c\n", True, True),
        ("trailing \n", "trailing   \n", False, True),
    ],
)
def test_the_checker_compares(shown: str, real: str, numbers_vary: bool, same: bool) -> None:
    assert outputs.Output(shown, 1, 0, 0, numbers_vary).matches(real) is same


def test_an_output_without_a_producer_is_noticed() -> None:
    assert outputs.read_page("```text\nhello\n```\n").uncovered == [1]
    assert outputs.read_page("```sh\necho a\n```\n\n# New section\n\n```text\na\n```\n").uncovered == [7]
    assert outputs.read_page("<!-- tree:begin -->\n```text\na\n```\n<!-- tree:end -->\n").uncovered == []
    assert outputs.read_page("<!-- illustration: -->\n```text\na\n```\n").uncovered == [2]


def test_a_step_that_fails_is_noticed(tmp_path: Path) -> None:
    page = outputs.read_page("<!-- run -->\n```sh\nfalse\n```\n")
    with pytest.raises(RuntimeError, match="failed"):
        outputs.run_page(page, tmp_path, {})


def test_real_lines_replace_those_that_differ() -> None:
    output = outputs.Output("one\nloss 3...\nold\n", 1, 0, 0, False)
    assert output.merged_with("one\nloss 3.4\nnew\n") == "one\nloss 3...\nnew\n"
