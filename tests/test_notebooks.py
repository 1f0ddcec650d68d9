"""The notebooks: one source, the same code in both languages, and outputs that are true to the tutorial."""

from __future__ import annotations

import ast
import copy
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import charwright as cw
from charwright.generation.novelty import measure_novelty

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))
import assemble

CELLS = assemble.read_source((assemble.HERE / "source.md").read_text(encoding="utf-8"))
NOTEBOOKS = {
    language: json.loads((assemble.HERE / name).read_text(encoding="utf-8"))
    for language, name in assemble.LANGUAGES.items()
}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def text_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def code_cells(language: str) -> dict[str, dict[str, Any]]:
    """The cells of code by their names."""
    found = [cell for cell in NOTEBOOKS[language]["cells"] if cell["cell_type"] == "code"]
    return {cell["id"]: cell for cell in found}


def printed(cell: dict[str, Any]) -> str:
    return "".join(text_of(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def parsed(cell: dict[str, Any]) -> ast.Module:
    """The program of a cell, without the lines that are not Python."""
    return ast.parse(re.sub(r"^( *)[!%].*$", r"\1pass", text_of(cell["source"]), flags=re.MULTILINE))


@pytest.mark.parametrize("language", assemble.LANGUAGES)
def test_the_notebook_is_what_the_source_says(language: str) -> None:
    made = [cell["source"] for cell in assemble.assemble(language, CELLS)["cells"]]
    kept = [text_of(cell["source"]) for cell in NOTEBOOKS[language]["cells"]]
    assert kept == made, "run: python notebooks/assemble.py"


class _WithoutWords(ast.NodeTransformer):
    """Leaves out strings, and the function that chooses between two."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "label":
            return self.visit(node.args[1])
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.JoinedStr([part for part in node.values if isinstance(part, ast.FormattedValue)])


def test_both_languages_have_the_same_code() -> None:
    english, chinese = code_cells("en"), code_cells("zh-TW")
    assert list(english) == list(chinese)
    for name, cell in english.items():
        ours, theirs = (_WithoutWords().visit(parsed(each)).body for each in (cell, chinese[name]))
        added = theirs[len(ours) :]
        assert [ast.dump(node) for node in ours] == [ast.dump(node) for node in theirs[: len(ours)]], name
        assert not added or name == "setup"


def test_chinese_is_printed_or_has_a_fallback() -> None:
    """A picture shows Chinese through `label` alone, which falls back where no Chinese font is installed."""
    for name, cell in code_cells("zh-TW").items():
        tree = parsed(cell)
        allowed = set()
        for node in ast.walk(tree):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called in ("print", "label"):
                allowed |= set(map(id, ast.walk(node)))
        words = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and CHINESE.search(str(n.value))]
        if "plt." in text_of(cell["source"]):
            assert [n.value for n in words if id(n) not in allowed] == [], name


@pytest.mark.parametrize(("installed", "shown"), [(["DejaVu Sans", "Noto Sans TC"], "步數"), (["DejaVu Sans"], "step")])
def test_pictures_fall_back_to_english(monkeypatch: pytest.MonkeyPatch, installed: list[str], shown: str) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import font_manager, rc_context

    listed = [SimpleNamespace(name=name) for name in installed if "DejaVu" in name]
    fonts = SimpleNamespace(ttflist=listed, addfont=lambda path: listed.append(SimpleNamespace(name="Noto Sans TC")))
    monkeypatch.setattr(font_manager, "fontManager", fonts)
    paths = ["/fonts/NotoSansCJK.ttc"] if len(installed) > 1 else ["/fonts/DejaVu.ttf"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    names: dict[str, Any] = {}
    with rc_context():
        exec(text_of(code_cells("zh-TW")["setup"]["source"]), names)
        assert names["label"]("步數", "step") == shown
        assert ("Noto Sans TC" in names["plt"].rcParams["font.family"]) == (shown == "步數")


@pytest.mark.parametrize("language", assemble.LANGUAGES)
def test_the_cells_ran_in_order_and_without_complaints(language: str) -> None:
    cells = code_cells(language)
    assert [cell["execution_count"] for cell in cells.values()] == list(range(1, len(cells) + 1))
    for name, cell in cells.items():
        outputs = cell["outputs"]
        assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs), name
        assert ("plt.show()" in text_of(cell["source"])) == any("image/png" in o.get("data", {}) for o in outputs), name
        assert all("text/plain" in output["data"] for output in outputs if "data" in output), name


def test_the_table_ticks_every_stage_with_the_number_of_its_cell() -> None:
    rows = {}
    for language, notebook in NOTEBOOKS.items():
        table = text_of(notebook["cells"][0]["source"])
        rows[language] = re.findall(r"^\| ✓ \| (.+) \| (.+) \| (\d+) \|$", table, re.MULTILINE)
        assert len(rows[language]) == table.count("✓") == 20
    numbers = [int(number) for _, _, number in rows["en"]]
    assert [int(number) for _, _, number in rows["zh-TW"]] == numbers == sorted(set(numbers))
    names = {cell["execution_count"]: name for name, cell in code_cells("en").items()}
    evidence = ["text", "vocabulary", "encoding", "sequences", "batches", "model", "weights", "untrained", "noise"]
    evidence += ["training", "curve", "checkpoints", "one-step", "generation", "greedy", "batch", "export"]
    evidence += ["own-step", "own-loop", "curriculum"]
    assert [names[number] for number in numbers] == evidence


@pytest.mark.parametrize("language", assemble.LANGUAGES)
def test_the_figures_are_the_tutorials(language: str) -> None:
    cells = code_cells(language)
    for name, figures in {
        "text": ["1,115,394", "65"],
        "vocabulary": ["66 ['[UNK]', '\\n', ' ', '!', '$']"],
        "encoding": ["[40, 41, 42, 43, 44, 45, 46] abcdefg", "[63, 64, 65] xyz", "[19, 48, 57, 58, 59, 2, 16, 48"],
        "sequences": ["11,043"],
        "batches": ["(100, 64) (100, 64) 172"],
        "model": ["16,896", "4,022,850"],
        "weights": ["-0.050", "True"],
        "untrained": ["(100, 64, 66)", "65.9"],
        "export": ["True"],
        "own-step": ["True"],
    }.items():
        assert all(figure in printed(cells[name]) for figure in figures), name
        assert "False" not in printed(cells[name]).replace("epoch: False", "").replace("epoch： False", "")
    loop = re.findall(r"\b(\d+) (?:loss|批)", printed(cells["own-loop"]))
    assert {"0", "50", "100", "150"} <= set(loop)


@pytest.mark.parametrize("language", assemble.LANGUAGES)
def test_the_outputs_copy_no_more_than_a_line_of_the_text(language: str, tinyshakespeare: str) -> None:
    for name, cell in code_cells(language).items():
        plain = printed(cell) + "".join(
            text_of(output["data"]["text/plain"]) for output in cell["outputs"] if "data" in output
        )
        assert len(measure_novelty(tinyshakespeare, plain).longest) <= 61, name


def test_without_a_network_the_notebook_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = cw.read_corpus

    def offline(name: str) -> cw.Corpus:
        if name == "shakespeare":
            raise cw.CharwrightError("could not reach it")
        return read(name)

    monkeypatch.setattr(cw, "read_corpus", offline)
    names: dict[str, Any] = {"cw": cw}
    exec(text_of(code_cells("en")["text"]["source"]), names)
    assert names["corpus"].name == "python-docs"
    assert "using python-docs instead" in capsys.readouterr().out


# The comparison, and the reader of the source.


def with_text(cell_name: str, old: str, new: str) -> dict[str, Any]:
    """The English notebook with another output."""
    notebook = copy.deepcopy(NOTEBOOKS["en"])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            for part in [output, output.get("data", {})]:
                for kind in ("text", "text/plain", "text/html"):
                    if kind in part:
                        part[kind] = text_of(part[kind])
                        if cell["id"] == cell_name:
                            part[kind] = part[kind].replace(old, new)
    return notebook


def changes(cell_name: str, old: str, new: str) -> list[str]:
    return list(assemble.differences(CELLS, with_text("", "", ""), with_text(cell_name, old, new)))


def test_an_equal_notebook_has_no_differences() -> None:
    assert changes("text", "1,115,394", "1,115,394") == []


def test_a_fixed_figure_may_not_change() -> None:
    [difference] = changes("model", "4,022,850", "4,022,851")
    assert "model" in difference
    assert "4,022,851" in difference
    assert changes("vocabulary", "65 z", "65 y")  # in HTML


def test_a_figure_that_varies_may_change_but_not_its_words() -> None:
    assert changes("own-loop", "batch  50", "batch  51") == []
    assert changes("own-loop", "batch", "step")
    assert changes("generation", "by hand", "by foot") == []


def test_an_output_that_is_missing_or_complains_is_noticed() -> None:
    made = with_text("", "", "")
    cell = next(cell for cell in made["cells"] if cell["id"] == "curve")
    shown, cell["outputs"] = cell["outputs"], []
    assert list(assemble.differences(CELLS, with_text("", "", ""), made))
    cell["outputs"] = [*shown, {"output_type": "stream", "name": "stderr", "text": "a warning"}]
    assert "stderr" in next(assemble.differences(CELLS, with_text("", "", ""), made))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("<!-- en -->\nHello\n<!-- en -->\nagain\n<!-- zh-TW -->\n再來\n", "only one language"),
        (
            "<!-- en -->\nA\n<!-- zh-TW -->\n甲\n\n```python a fixed\n1\n```\nlost\n\n```python b fixed\n1\n```\n",
            "between",
        ),
        ("<!-- en -->\nHello\n<!-- zh-TW -->\n你好\n\n```python a often\n1\n```\n", "'often'"),
        (
            '<!-- en -->\nA\n<!-- zh-TW -->\n甲\n\n```python a fixed\n1\n```\n```zh-TW\nf"{x}" => f"{y}"\n```\n',
            "fields",
        ),
    ],
)
def test_a_source_that_is_wrong_is_refused(source: str, message: str) -> None:
    with pytest.raises(assemble.SourceError, match=message):
        assemble.read_source(source)


def test_a_translation_of_what_is_not_there_is_refused() -> None:
    source = '<!-- en -->\nA\n<!-- zh-TW -->\n甲\n\n```python a fixed\nprint(1)\n```\n```zh-TW\n"x" => "某"\n```\n'
    with pytest.raises(assemble.SourceError, match="has no"):
        assemble.assemble("zh-TW", assemble.read_source(source))


def test_a_line_break_within_a_chinese_sentence_is_left_out() -> None:
    source = "<!-- en -->\nA\n<!-- zh-TW -->\n# 標題\n\n第一行，\n第二行 x\n第三行\n\n| 甲 |\n| 乙 |\n"
    [cell] = assemble.assemble("zh-TW", assemble.read_source(source))["cells"]
    assert cell["source"] == "# 標題\n\n第一行，第二行 x\n第三行\n\n| 甲 |\n| 乙 |"
