"""Files, folders, standard input, URLs and names are read into text, or fail with a one-line message."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import importlib
import io
import lzma
import os
import socket
import threading
import unicodedata
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright.config import CorpusConfig
from charwright.data import named
from charwright.data.corpus import Corpus, Source, read_corpus, reread_corpus, sha256_of, short_name
from charwright.data.decoding import decode, looks_binary
from charwright.data.named import PublishedText, find_published
from charwright.data.parts import STDIN_PATH, Places
from charwright.errors import CharwrightError, CorpusError, CorpusNotFoundError, DecodingError, DownloadError

GERMAN = "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch; die Vöglein schweigen im Walde.\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
CHINESE = "道可道，非常道。名可名，非常名。無名天地之始；有名萬物之母。\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """Connect to the local test server directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def write(tmp_path):
    """Write a file under the test's temporary folder and return its path."""

    def write_file(name: str, data: bytes | str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
        return str(path)

    return write_file


def complaint(kind: type[CharwrightError], *arguments, **more) -> str:
    """Return the message of the error that reading raises, which must be one line."""
    with pytest.raises(kind) as caught:
        read_corpus(*arguments, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestFiles:
    def test_a_file(self, write, places):
        path = write("novel.txt", "Call me Ishmael.\n")
        corpus = read_corpus(path, places=places)
        assert corpus.text == "Call me Ishmael.\n"
        assert corpus.name == "novel"
        assert corpus.sha256 == hashlib.sha256(b"Call me Ishmael.\n").hexdigest()
        assert corpus.sources == (Source("file", path, corpus.sha256, 17),)
        assert corpus.unrepeatable == ""

    def test_a_path_object_and_a_relative_path(self, write, places, tmp_path, monkeypatch):
        path = write("novel.txt", "Call me Ishmael.\n")
        monkeypatch.chdir(tmp_path)
        corpus = read_corpus(Path("novel.txt"), places=places)
        assert corpus.sources[0].location == path  # absolute, so that a resume finds it from any folder

    def test_each_part_starts_on_a_new_line(self, write, places):
        paths = [write("b.txt", "two"), write("empty.txt", ""), write("a.txt", "one\n"), write("c.txt", "three")]
        corpus = read_corpus(paths, places=places)
        assert corpus.text == "two\none\nthree"
        assert corpus.name == "b"
        assert [source.characters for source in corpus.sources] == [3, 0, 4, 5]

    @pytest.mark.parametrize(
        ("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
    )
    def test_compressed_files(self, write, places, ending, compress):
        path = write("novel.txt" + ending, compress(b"Call me Ishmael.\r\n"))
        corpus = read_corpus(path, places=places)
        assert corpus.text == "Call me Ishmael.\n"
        assert corpus.name == "novel"
        whole = compress(b"Call me Ishmael.\r\n" * 100)
        for data in (b"no such thing", whole[:-9], whole[:3]):
            assert "cannot decompress" in complaint(DecodingError, write("bad" + ending, data), places=places)

    def test_empty_texts_and_one_character(self, write, places):
        empty, one = write("empty.txt", ""), write("one.txt", "é")
        assert (
            complaint(CorpusError, empty, places=places) == f"{empty} is empty; give a text of at least two characters"
        )
        assert "is empty" in complaint(CorpusError, [empty, empty], places=places)
        assert complaint(CorpusError, one, places=places) == f"{one} has only one character; at least two are needed"
        assert read_corpus([one, one], places=places).text == "é\né"

    def test_no_corpus_at_all(self, places):
        assert "no corpus given" in complaint(CorpusError, [], places=places)

    def test_an_empty_argument_is_not_the_current_folder(self, places):
        # "$TEXT" with an unset variable must not read the current folder.
        assert "''" in complaint(CorpusNotFoundError, "", places=places)

    def test_similar_names_are_suggested(self, write, places, tmp_path):
        path = write("shakespeare-plays.txt", "To be")
        wrong = str(tmp_path / "shakespear-plays.txt")
        assert complaint(CorpusNotFoundError, wrong, places=places).endswith(f"did you mean {path}?")
        assert complaint(CorpusNotFoundError, "shakespear", places=places).endswith("did you mean shakespeare?")
        assert complaint(CorpusNotFoundError, "python-dosc", places=places).endswith("did you mean python-docs?")
        known = "the named corpora are shakespeare, python-docs, python-code"
        assert complaint(CorpusNotFoundError, "/no/such/folder/zzz", places=places).endswith(known)

    @pytest.mark.parametrize(
        "spec", ["~nobody-of-this-name/novel.txt", "a" * 5000, "no\0where", "ftp://host/novel.txt"]
    )
    def test_invalid_paths_get_a_short_message(self, places, spec):
        assert len(complaint(CorpusError, spec, places=places)) < 400

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    def test_a_named_pipe_is_rejected(self, places, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert "pass it through standard input with -" in complaint(CorpusError, str(tmp_path / "pipe"), places=places)

    @pytest.mark.parametrize(
        ("spec", "name"),
        [
            ("war.and.peace.txt", "war.and.peace"),
            ("plays.txt.gz", "plays"),
            ("folder-1.5/x.md", "x"),
            (".hidden", "hidden"),
            ("LICENSE", "LICENSE"),
        ],
    )
    def test_the_name_is_the_stem_of_the_file(self, write, places, spec, name):
        data = b"some text"
        assert (
            read_corpus(write(spec, gzip.compress(data) if spec.endswith("gz") else data), places=places).name == name
        )


class TestFolders:
    def test_every_text_file_in_order(self, write, places, tmp_path):
        write("book/2.md", "two\n")
        write("book/1.txt", "one\n")
        write("book/deep/er/3", "three\n")
        write("book/4.txt.gz", gzip.compress(b"four\n"))
        write("book/.git/config", "hidden\n")
        write("book/.hidden.txt", "hidden\n")
        write("book/empty.txt", "")
        corpus = read_corpus(tmp_path / "book", places=places)
        assert corpus.text == "one\ntwo\nfour\nthree\n"
        assert corpus.name == "book"
        assert corpus.notes == ()
        assert [Path(source.location).name for source in corpus.sources] == ["1.txt", "2.md", "4.txt.gz", "3"]

    def test_a_run_is_no_text(self, write, places, tmp_path):
        write("book/1.txt", "one\n")
        for run in ("book/runs/novel", "book/runs/novel-teachers/1"):
            for name in ("config.json", "vocabulary.json", "log.jsonl", "checkpoints/step-1/position.json"):
                write(f"{run}/{name}", "{}\n")
        write("book/runs/notes.txt", "two\n")
        assert read_corpus(tmp_path / "book", places=places).text == "one\ntwo\n"
        assert "is a run, not a text" in complaint(CorpusError, tmp_path / "book/runs/novel", places=places)

    def test_a_pattern_has_the_name_of_its_folder(self, write, places, tmp_path, monkeypatch):
        write("book/1.txt", "one\n")
        write("book/deep/2[a].txt", "two\n")
        for pattern, name in (("book/*.txt", "book"), ("book/*/*.txt", "book"), ("*/deep/2*.txt", tmp_path.name)):
            assert read_corpus(tmp_path / pattern, places=places).name == name
        assert read_corpus(tmp_path / "book/deep/2[a].txt", places=places).name == "2[a]"
        monkeypatch.chdir(tmp_path / "book")
        assert read_corpus("*.txt", places=places).name == "book"

    def test_glob_selects_by_name(self, write, places, tmp_path):
        write("book/1.txt", "one\n")
        write("book/deep/2.txt", "two\n")
        write("book/deep/3.md", "three\n")
        assert read_corpus(tmp_path / "book", CorpusConfig(glob="*.txt"), places).text == "one\ntwo\n"
        message = complaint(CorpusError, tmp_path / "book", CorpusConfig(glob="*.rst"), places)
        assert message == f"there is no text file under {tmp_path / 'book'} that matches `glob` '*.rst'"

    @pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1251"])
    def test_binary_files_are_skipped_with_a_note(self, write, places, tmp_path, encoding):
        write("book/1.txt", "one\n")
        write("book/cover.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
        write("book/late.bin", b"\xff" * 10_000 + b"\0")
        corpus = read_corpus(tmp_path / "book", CorpusConfig(encoding=encoding), places)
        assert corpus.text == "one\n"
        assert corpus.notes == (f"skipped 2 binary files under {tmp_path / 'book'}",)

    def test_a_folder_without_text(self, write, places, tmp_path):
        (tmp_path / "bare").mkdir()
        assert "no text file under" in complaint(CorpusError, tmp_path / "bare", places=places)
        write("bare/cover.png", b"\0\1")
        write("bare/empty.txt", b"")
        assert "no text file under" in complaint(CorpusError, tmp_path / "bare", places=places)

    def test_a_text_in_another_encoding_is_not_skipped(self, write, places, tmp_path):
        write("book/1.txt", "one\n")
        path = write("book/2.txt", GERMAN.encode("latin-1"))
        assert path in complaint(DecodingError, tmp_path / "book", places=places)

    def test_a_linked_file_is_read_once(self, write, places, tmp_path):
        path = write("book/1.txt", "one\n")
        (tmp_path / "book" / "2.txt").symlink_to(path)
        assert read_corpus(tmp_path / "book", places=places).text == "one\n"

    def test_the_current_folder_keeps_its_name(self, write, places, tmp_path, monkeypatch):
        write("python3.11/1.txt", "one\n")
        monkeypatch.chdir(tmp_path / "python3.11")
        assert read_corpus(".", places=places).name == "python3.11"
        assert read_corpus("../python3.11/", places=places).name == "python3.11"


class TestStandardInput:
    def test_its_text_is_kept_because_it_cannot_be_read_again(self, places):
        places = dataclasses.replace(places, stdin=io.BytesIO(b"\xef\xbb\xbfone\r\ntwo"))
        corpus = read_corpus("-", places=places)
        assert corpus.text == corpus.unrepeatable == "one\ntwo"
        assert corpus.sources == (Source("stdin", STDIN_PATH, sha256_of("one\ntwo"), 7),)
        assert corpus.name == "stdin"

    def test_it_combines_with_files(self, write, places):
        places = dataclasses.replace(places, stdin=io.BytesIO(b"from a pipe"))
        corpus = read_corpus([write("a.txt", "from a file"), "-"], places=places)
        assert corpus.text == "from a file\nfrom a pipe"
        assert corpus.unrepeatable == "from a pipe"

    def test_it_is_empty_absent_or_given_twice(self, places):
        assert complaint(CorpusError, "-", places=places) == "there is no standard input to read; give a file"
        empty = dataclasses.replace(places, stdin=io.BytesIO())
        assert complaint(CorpusError, "-", places=empty).startswith("standard input is empty")
        assert "only once" in complaint(CorpusError, ["-", "-"], places=empty)

    def test_decoding_errors_name_standard_input(self, places):
        places = dataclasses.replace(places, stdin=io.BytesIO(b"abc\xff"))
        assert complaint(DecodingError, "-", places=places).startswith("standard input is not utf-8: byte 3 (0xff)")


class TestDecoding:
    @pytest.mark.parametrize(
        ("text", "encoding"),
        [
            (GERMAN, "latin-1"),
            (GERMAN, "cp1252"),
            (RUSSIAN, "cp1251"),
            (RUSSIAN, "koi8-r"),
            (CHINESE, "gb18030"),
            (CHINESE, "big5"),
            (JAPANESE, "shift_jis"),
            (JAPANESE, "euc-jp"),
            (GERMAN, "utf-16"),
            (GERMAN, "utf-32"),
            (RUSSIAN, "utf-16-le"),
            (CHINESE, "utf-16-be"),
        ],
    )
    def test_the_right_encoding_is_suggested(self, write, places, text, encoding):
        data = text.encode(encoding)
        path = write("text.txt", data)
        message = complaint(DecodingError, path, places=places)
        assert message.startswith(f"{path} is not ")
        advised = message.partition("try ")[2].partition(", or read on")[0].replace("`encoding` ", "").split(" or ")
        assert encoding in advised
        assert len(advised) <= 4
        assert read_corpus(path, CorpusConfig(encoding=encoding), places).text == text

    def test_the_offset_is_the_first_invalid_byte(self, write, places):
        path = write("text.txt", b"x" * 12_345 + b"\xe9 caf\xe9")
        assert "is not utf-8: byte 12,345 (0xe9) is invalid" in complaint(DecodingError, path, places=places)

    def test_western_encodings_are_suggested_first_for_western_text(self, write, places):
        path = write("text.txt", GERMAN.encode("latin-1"))
        assert complaint(DecodingError, path, places=places).partition("; ")[2].startswith("try `encoding` cp1252")

    def test_no_other_encoding_is_suggested_for_damaged_utf8(self, write, places):
        data = RUSSIAN.encode()
        for broken in (data[:-3], data[:40] + b"\xff" + data[40:]):
            message = complaint(DecodingError, write("text.txt", broken), places=places)
            assert "damaged" in message
            assert "try" not in message

    def test_utf8_is_suggested_when_another_encoding_was_given(self, write, places):
        path = write("text.txt", CHINESE)
        message = complaint(DecodingError, path, CorpusConfig(encoding="ascii"), places)
        assert "is not ascii: byte 0" in message
        assert "try `encoding` utf-8" in message

    @pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "zlib", "undefined", "no\0ne", ""])
    def test_unknown_encodings_are_rejected(self, write, places, encoding):
        message = complaint(DecodingError, write("a.txt", "abc"), CorpusConfig(encoding=encoding), places)
        assert message == f"`encoding` {encoding!r} is not a text encoding known to Python"

    @pytest.mark.parametrize(("module", "name"), [("gzip", "gzip"), ("bz2", "bzip2"), ("lzma", "xz")])
    def test_compressed_data_without_its_ending_is_recognised(self, write, places, module, name):
        path = write("text.txt", importlib.import_module(module).compress(RUSSIAN.encode() * 9))
        message = complaint(DecodingError, path, places=places)
        assert message.startswith(f"{path} is {name} data: give its name the ending .")

    def test_binary_files(self, write, places):
        for data in (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"words\0words", b"\xff" * 9000 + b"\0"):
            path = write("cover.png", data)
            message = complaint(DecodingError, path, places=places)
            assert message.startswith(f"{path} is not a text file: byte {data.index(0):,} is NUL")

    def test_lone_surrogates_from_a_lenient_codec_are_rejected(self, write, places):
        path = write("a.txt", b"abc\\ud800")
        message = complaint(DecodingError, path, CorpusConfig(encoding="unicode_escape"), places)
        assert "half of a surrogate pair at character 3" in message

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_the_byte_order_mark_is_removed(self, encoding):
        data = ("\ufeff" + CHINESE).encode(encoding)
        assert decode(data, CorpusConfig(encoding=encoding), "here") == CHINESE

    def test_newlines(self):
        data = b"one\r\ntwo\rthree\nfour\r\r\n"
        assert decode(data, CorpusConfig(), "here") == "one\ntwo\nthree\nfour\n\n"
        assert decode(data, CorpusConfig(newlines="keep"), "here") == data.decode()

    @pytest.mark.parametrize("form", ["nfc", "nfd", "nfkc", "nfkd"])
    def test_normalization_on_request(self, form):
        text = "cafe\u0301 caf\u00e9 \ufb01"
        assert decode(text.encode(), CorpusConfig(), "here") == text
        expected = unicodedata.normalize(form.upper(), text)
        assert decode(text.encode(), CorpusConfig(normalize=form), "here") == expected
        assert expected != text

    @given(st.binary(max_size=200), st.sampled_from(["utf-8", "utf-16", "gb18030", "utf-7", "ascii", "unicode_escape"]))
    def test_any_bytes_become_text_where_errors_are_replaced(self, data, encoding):
        text = decode(data, CorpusConfig(encoding=encoding, errors="replace"), "here")
        assert decode(text.encode("utf-8"), CorpusConfig(newlines="keep"), "here") == text

    def test_old_versions_can_read_how_a_text_was_decoded(self):
        assert "errors" not in CorpusConfig().to_json()
        replaced = CorpusConfig(errors="replace")
        assert CorpusConfig.from_json(replaced.to_json(), "here") == replaced

    @given(st.binary(max_size=200), st.sampled_from(["utf-8", "utf-16", "gb18030", "utf-7", "latin-1", "idna"]))
    def test_any_bytes_become_text_or_a_one_line_error(self, data, encoding):
        try:
            text = decode(data, CorpusConfig(encoding=encoding), "here")
        except DecodingError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both outcomes are valid
        else:
            again = decode(text.encode("utf-8"), CorpusConfig(newlines="keep"), "here")
            assert again == text  # a run's copy of standard input reads back as the same text

    def test_looks_binary(self):
        assert looks_binary(b"a\0b", CorpusConfig())
        assert not looks_binary(b"ab", CorpusConfig())
        assert not looks_binary("ab".encode("utf-16-le"), CorpusConfig(encoding="UTF_16LE"))
        assert not looks_binary("ab".encode("utf-16"), CorpusConfig())
        assert not looks_binary("ab".encode("utf-32-be"), CorpusConfig(encoding="utf-32-be"))
        replaced = CorpusConfig(errors="replace")
        assert looks_binary(b"a\0b" * 9, replaced)
        assert not looks_binary(b"\0" + b"a line of a log\n" * 9, replaced)


class Server(ThreadingHTTPServer):
    """Serves a folder on localhost and records the requested paths."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.requested: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def closed() -> str:
    """A URL at which no server answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/text.txt"


class TestAddresses:
    def test_a_download_is_cached(self, server, write, places):
        write("served/novel.txt", "\ufeffCall me Ishmael.\r\n")
        address = server.address("novel.txt")
        first = read_corpus(address, places=places)
        second = read_corpus(address, places=places)
        assert first.text == second.text == "Call me Ishmael.\n"
        assert first.sources == (Source("url", address, sha256_of("Call me Ishmael.\n"), 17),)
        assert first.name == "novel"
        assert server.requested == ["/novel.txt"]
        assert first.notes == ()
        [note] = second.notes
        kept = Path(note.partition("remove ")[2])
        assert kept.is_file()
        assert kept.parent == places.cache_folder

    def test_a_compressed_file_with_a_query_string(self, server, write, places):
        write("served/novel.txt.gz", gzip.compress(b"Call me Ishmael.\n"))
        corpus = read_corpus(server.address("novel.txt.gz?raw=1"), places=places)
        assert corpus.text == "Call me Ishmael.\n"
        assert corpus.name == "novel"

    def test_a_url_without_a_file_name(self, server, write, places):
        write("served/index.html", "<p>Call me Ishmael.")
        assert read_corpus(server.address("").replace("http", "HTTP"), places=places).name == "127.0.0"

    def test_no_server_answers(self, closed, places):
        message = complaint(DownloadError, closed, places=places)
        assert message == f"could not reach {closed}; check the URL and the network"

    def test_the_file_is_not_there(self, server, places):
        address = server.address("gone.txt")
        assert complaint(DownloadError, address, places=places) == f"{address} returned 404; check the URL"

    @pytest.mark.parametrize("address", ["http://", "http://[half/x.txt", "https:///x.txt"])
    def test_an_invalid_url(self, address, places):
        message = complaint(DownloadError, address, places=places)
        assert address in message
        assert "SHA" not in message

    def test_a_cache_folder_that_cannot_be_created(self, server, write, places):
        write("served/novel.txt", "Call me Ishmael.\n")
        blocked = dataclasses.replace(places, cache_folder=Path(write("a-file", "")) / "cache")
        assert "cannot save" in complaint(DownloadError, server.address("novel.txt"), places=blocked)

    def test_a_download_that_does_not_decode(self, server, write, places):
        write("served/novel.txt", b"abc\xff")
        address = server.address("novel.txt")
        assert complaint(DecodingError, address, places=places).startswith(f"{address} is not utf-8: byte 3")


def published(text: str, *mirrors: str) -> PublishedText:
    data = text.encode()
    return PublishedText("known.txt", len(data), hashlib.sha256(data).hexdigest(), mirrors)


class TestNames:
    def test_the_data_folder_is_searched_by_hash(self, write, tmp_path, closed):
        wanted = published("the text", closed)
        folder = tmp_path / "data"
        write("data/known.txt", "not text")  # the right name and size, another text
        write("data/notes/known.txt", "the text")
        path = write("data/zzz.bin", "the text")
        assert find_published(wanted, folder, tmp_path / "cache", None) == Path(path)

    def test_the_data_folder_need_not_have_it(self, server, write, tmp_path):
        write("served/known.txt", "the text")
        wanted = published("the text", server.address("known.txt"))
        for folder in (None, tmp_path / "data", tmp_path / "served" / "known.txt"):
            path = find_published(wanted, folder, tmp_path / "cache", None)
            assert path == tmp_path / "cache" / "known.txt"
        assert server.requested == ["/known.txt"]

    def test_the_next_mirror_is_tried(self, server, write, tmp_path, closed):
        write("served/wrong.txt", "another text")
        write("served/right.txt", "the text")
        mirrors = [closed, *map(server.address, ("gone.txt", "wrong.txt", "right.txt"))]
        path = find_published(published("the text", *mirrors), None, tmp_path / "cache", None)
        assert path.read_text() == "the text"
        assert server.requested == ["/gone.txt", "/wrong.txt", "/right.txt"]

    def test_a_download_with_another_hash_is_rejected(self, server, write, tmp_path):
        write("served/wrong.txt", "another text")
        wanted = published("the text", server.address("wrong.txt"))
        with pytest.raises(DownloadError, match=f"does not have the expected SHA-256 {wanted.sha256}"):
            find_published(wanted, None, tmp_path / "cache", None)
        assert list((tmp_path / "cache").iterdir()) == []

    def test_a_damaged_cached_copy_is_downloaded_again(self, server, write, tmp_path):
        write("served/known.txt", "the text")
        write("cache/known.txt", "the te")
        wanted = published("the text", server.address("known.txt"))
        assert find_published(wanted, None, tmp_path / "cache", None).read_text() == "the text"

    def test_no_network(self, tmp_path, closed):
        with pytest.raises(DownloadError) as caught:
            find_published(published("the text", closed, closed), None, tmp_path / "cache", None)
        message = str(caught.value)
        assert message.startswith(f"could not reach {closed}; check the URL and the network (2 mirrors tried)")
        assert "CHARWRIGHT_DATA" in message
        assert "\n" not in message

    def test_shakespeare_from_the_data_folder(self, shared, places, tinyshakespeare):
        places = dataclasses.replace(places, data_folder=shared / "data")
        corpus = read_corpus("shakespeare", places=places)
        assert corpus.text == tinyshakespeare
        assert corpus.name == "shakespeare"
        assert corpus.sha256 == named.SHAKESPEARE.sha256
        assert corpus.sources == (Source("name", "shakespeare", corpus.sha256, 1_115_394),)
        assert not places.cache_folder.exists()

    def test_the_data_folder_comes_from_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CHARWRIGHT_DATA", str(tmp_path))
        assert Places.of_this_user().data_folder == tmp_path
        monkeypatch.setenv("CHARWRIGHT_DATA", "")
        assert Places.of_this_user().data_folder is None

    def test_python_docs_need_no_download(self, places):
        corpus = read_corpus("python-docs", places=places)
        assert len(corpus.text) > 400_000
        assert 'The "assert" statement' in corpus.text
        assert corpus.name == "python-docs"
        assert not places.cache_folder.exists()

    def test_python_code_is_the_standard_library_without_tests(self, places):
        text = read_corpus("python-code", places=places).text
        assert len(text) > 5_000_000
        assert Path(dataclasses.__file__).read_text(encoding="utf-8") in text

    def test_tests_and_installed_packages_are_left_out(self, write, tmp_path):
        for left_out in ("test/a.py", "json/tests/b.py", "site-packages/c.py", "__pycache__/d.py", "notes.txt"):
            write(f"library/{left_out}", "not this")
        write("library/latin.py", "# é".encode("latin-1"))
        write("library/json/decoder.py", "second\r\n")
        write("library/ast.py", "first\n")
        assert list(named.library_sources(tmp_path / "library")) == ["first\n", "second\n"]

    def test_named_corpora_are_utf8_whatever_the_encoding_option(self, write, places):
        path = write("a.txt", GERMAN.encode("utf-16"))
        corpus = read_corpus(["python-docs", path], CorpusConfig(encoding="utf-16"), places)
        assert corpus.text.endswith(GERMAN)

    def test_named_corpora_are_normalized_too(self, places):
        text = read_corpus("python-docs", CorpusConfig(normalize="nfkc"), places).text
        assert unicodedata.is_normalized("NFKC", text)

    def test_a_file_takes_precedence_over_a_named_corpus(self, write, places, tmp_path, monkeypatch):
        write("shakespeare", "my own")
        monkeypatch.chdir(tmp_path)
        assert read_corpus("shakespeare", places=places).text == "my own"


class TestReadingAgain:
    def test_the_same_sources_give_the_same_text(self, write, places, tmp_path):
        write("book/1.txt", "one\r\n")
        write("book/2.txt", "")
        specs = [tmp_path / "book", write("last.txt.gz", gzip.compress("zwei\u0308".encode())), "python-docs"]
        config = CorpusConfig(normalize="nfc")
        corpus = read_corpus(specs, config, places)
        again = reread_corpus(corpus.sources, config, places)
        assert again.text == corpus.text
        assert again.sources == corpus.sources

    def test_standard_input_is_read_from_its_copy(self, places, write):
        data = ("\ufeff" * 2 + GERMAN).encode("utf-16")
        config = CorpusConfig(encoding="utf-16", newlines="keep")
        corpus = read_corpus("-", config, dataclasses.replace(places, stdin=io.BytesIO(data)))
        kept = write("run/" + STDIN_PATH, corpus.unrepeatable)
        [source] = corpus.sources
        again = reread_corpus([dataclasses.replace(source, location=kept)], config, places)
        assert again.text == corpus.text

    def test_missing_or_changed_sources(self, write, places):
        path = write("novel.txt", "Call me Ishmael.\n")
        sources = read_corpus(path, places=places).sources
        write("novel.txt", "Call me Ahab.\n")
        with pytest.raises(CorpusError, match=f"{path} has changed since this run started; .*`corpus`"):
            reread_corpus(sources, CorpusConfig(), places)
        Path(path).unlink()
        with pytest.raises(CorpusError, match=f"{path} is gone; give its new location with `corpus`"):
            reread_corpus(sources, CorpusConfig(), places)
        with pytest.raises(CorpusError, match="passed in memory"):
            reread_corpus(Corpus.from_text("some text").sources, CorpusConfig(), places)
        with pytest.raises(CorpusError, match="`corpus`"):
            reread_corpus((), CorpusConfig(), places)

    def test_the_hash_does_not_depend_on_the_location(self, write, places):
        old = read_corpus(write("old/novel.txt", "Call me Ishmael.\r\n"), places=places)
        new = read_corpus(write("new/other.txt", "Call me Ishmael.\n"), places=places)
        assert old.sha256 == new.sha256 == Corpus.from_text("Call me Ishmael.\n").sha256


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("https://example.com/wiki/Portal:Contents", "Portal-Contents"),
        ("https://example.com/a%7Cb/x?y", "x"),
        ("https://example.com/aux.txt", "aux_"),
        ("https://example.com/...", "example"),
        ("novel.txt", "novel"),
        ("詩 集.txt", "詩 集"),
    ],
)
def test_names_of_runs_are_allowed_on_every_system(spec: str, name: str) -> None:
    assert short_name(spec) == name


@pytest.mark.parametrize(
    ("spec", "names", "hint"),
    [
        ("novle.txt", ["novel.txt", "other.txt"], "did you mean {}novel.txt?"),
        ("novel.text", ["novel.md", "novel.txt"], "did you mean {}novel.md or {}novel.txt?"),
        ("小說.txt", ["th.txt", "ko.txt"], "the named corpora are "),
        ("novel.txt", ["nov.md"], "did you mean {}nov.md?"),
    ],
)
def test_a_missing_file_is_like_others_by_its_name_and_not_by_its_ending(
    tmp_path: Path, spec: str, names: list[str], hint: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("x", encoding="utf-8")
    with pytest.raises(CorpusError) as found:
        read_corpus(tmp_path / spec)
    assert hint.format(f"{tmp_path}/", f"{tmp_path}/") in str(found.value)
