"""The file of a manuscript: reading, saving, and files of other programs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from charwright.compose.text_file import TextFile
from charwright.errors import CharwrightError, RunError, UsageError


def test_a_saved_text_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    file = TextFile(path)
    assert file.read() is None
    assert file.is_saved("")
    assert not file.is_saved("中文\n")
    file.save("中文\n", path)
    assert file.is_saved("中文\n")
    assert path.read_bytes() == "中文\n".encode()
    assert TextFile(path).read() == "中文\n"


def test_a_file_changed_by_another_program_is_detected(tmp_path: Path) -> None:
    path, other = tmp_path / "story.txt", tmp_path / "other.txt"
    file = TextFile(path)
    assert file.obstacle(path) is None
    file.save("mine", path)
    assert file.obstacle(path) is None
    path.write_text("theirs", encoding="utf-8")
    assert file.obstacle(path) == "was changed by another program"
    other.write_text("", encoding="utf-8")
    assert file.obstacle(other) == "exists"


def test_rescue_uses_a_numbered_name_if_the_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "story.txt"
    path.write_text("theirs", encoding="utf-8")
    assert TextFile(path).rescue("mine") == tmp_path / "story-2.txt"
    assert TextFile(path).rescue("mine") == tmp_path / "story-3.txt"
    assert path.read_text(encoding="utf-8") == "theirs"
    assert TextFile().rescue("mine") == Path("charwright-unsaved.txt")
    assert Path("charwright-unsaved.txt").read_text(encoding="utf-8") == "mine"
    assert TextFile(tmp_path / "nowhere" / "x").rescue("mine") == Path("charwright-unsaved-2.txt")
    assert TextFile().rescue("") is None
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        "charwright-unsaved-2.txt",
        "charwright-unsaved.txt",
        "story-2.txt",
        "story-3.txt",
        "story.txt",
    ]
    monkeypatch.setattr(tempfile, "gettempdir", None)
    assert TextFile(path).rescue("mine") == tmp_path / "story-4.txt", "other places are looked up if they are needed"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")
def test_saving_keeps_the_mode_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "diary.txt"
    path.write_bytes(b"\xef\xbb\xbfDear\r\ndiary")
    path.chmod(0o600)
    file = TextFile(path)
    assert file.read() == "Dear\ndiary"
    seen = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda new, old: (seen.append(new.stat().st_mode), replace(new, old))[1])
    file.save("Dear\ndiary,", path)
    assert [mode & 0o777 for mode in (*seen, path.stat().st_mode)] == [0o600, 0o600], "also before it is in its place"


def test_unusable_paths_and_encodings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        TextFile(tmp_path / "nowhere" / "story.txt").read()
    (tmp_path / "latin.txt").write_bytes(b"d\xe9j\xe0")
    with pytest.raises(CharwrightError, match="offset 1"):
        TextFile(tmp_path / "latin.txt").read()
    with pytest.raises(RunError, match="cannot write"):
        TextFile().save("x", tmp_path / "nowhere" / "story.txt")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows, and it has other devices")
def test_a_link_stays_one_and_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "story.txt"
    link.symlink_to(tmp_path / "elsewhere" / "story.txt")
    for text in ("one", "one two"):
        TextFile(link).save(text, link)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "story.txt").read_text(encoding="utf-8") == text
    with pytest.raises(RunError, match="/dev/null is not a regular file"):
        TextFile().save("x", Path("/dev/null"))


def test_invalid_utf_8_input_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    TextFile().save(b"caf\xe9".decode("utf-8", "surrogateescape"), tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize(
    "content", [b"one\r\ntwo\r\n", b"\xef\xbb\xbfone\ntwo\n", b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\rtwo\r"]
)
def test_newlines_and_the_byte_order_mark_stay(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(content)
    file = TextFile(path)
    assert file.read() == "one\ntwo\n"
    newline = content[content.index(b"one") + 3 : content.index(b"two")]
    file.save("one\ntwo\nthree\n", path)
    assert path.read_bytes() == content + b"three" + newline
    assert TextFile(path).read() == "one\ntwo\nthree\n"


def test_of_mixed_newlines_the_most_frequent_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(b"one\r\ntwo\nthree\r\n")
    file = TextFile(path)
    file.save(file.read() or "", path)
    assert path.read_bytes() == b"one\r\ntwo\r\nthree\r\n"
