"""Byte sources: files, and ranges over HTTP from a real local server."""

import errno
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from plimsoll.errors import GGUFError, GGUFFormatError, GGUFTruncatedError
from plimsoll.gguf import reader
from plimsoll.gguf.http_source import READ_AHEAD_BYTES, HTTPRangeSource
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from tests.gguf_files import F32, STRING, gguf_file, key_value, tensor_info

CONTENT = bytes(range(256)) * 4  # 1 KiB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content.bin"
    path.write_bytes(CONTENT)
    return path


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "n_bytes"), [(0, 0), (0, 1024), (3, 7), (1023, 1), (1024, 0)])
def test_a_file_gives_exactly_the_bytes_asked_for(path: Path, offset: int, n_bytes: int):
    """One byte off shifts every weight."""
    with FileSource(path) as source:
        assert source.read_at(offset, n_bytes) == CONTENT[offset : offset + n_bytes]
        assert (source.name, source.size) == (str(path), 1024)


@pytest.mark.parametrize(("offset", "n_bytes"), [(0, 1025), (1024, 1), (2**62, 1), (0, 2**62)])
def test_a_file_refuses_what_it_does_not_have(path: Path, offset: int, n_bytes: int):
    """A length from a damaged header must not become an allocation."""
    with FileSource(path) as source, pytest.raises(GGUFTruncatedError, match="ends at byte 1024"):
        source.read_at(offset, n_bytes)


def test_a_file_fills_a_buffer_of_the_caller(path: Path):
    """The loader reads into buffers that it counts and uses again."""
    buffer = bytearray(10)

    with FileSource(path) as source:
        source.readinto_at(5, memoryview(buffer)[2:8])

    assert bytes(buffer) == b"\0\0" + CONTENT[5:11] + b"\0\0"


def test_a_file_that_is_truncated_while_open_comes_up_short_and_nothing_worse(path: Path):
    """A mapping would have killed the process with SIGBUS here."""
    with FileSource(path) as source:
        os.truncate(path, 100)

        with pytest.raises(GGUFTruncatedError, match="ends at byte 100") as raised:
            source.readinto_at(50, memoryview(bytearray(200)))
        with pytest.raises(GGUFTruncatedError, match="ends at byte 100"):
            source.read_at(50, 200)

    assert raised.value.offset == 50


def test_a_file_source_can_be_made_of_a_descriptor_that_stays_open(path: Path):
    """The caller may have opened it under a lock, and goes on using it."""
    with path.open("rb") as file:
        file.seek(10)
        with FileSource(file.fileno()) as source:
            assert source.read_at(0, 4) == CONTENT[:4]
            assert "descriptor" in source.name
        assert file.read(2) == CONTENT[10:12]


def test_identity_tells_a_changed_or_replaced_file(path: Path, tmp_path: Path):
    """Weights expanded from one state of a file must not be taken for those of another."""
    with FileSource(path) as source:
        before = source.identity()
        assert source.identity() == before
        os.utime(path, ns=(1, 1))
        touched = source.identity()
        other = tmp_path / "other"
        other.write_bytes(CONTENT)
        with FileSource(other) as replacement:
            assert replacement.identity().inode != before.inode

    assert (touched.size, touched.inode, touched.device) == (1024, before.inode, before.device)
    assert touched.mtime_ns == 1 != before.mtime_ns


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path):
    """Opening a FIFO must not wait for a writer that never comes."""
    os.mkfifo(tmp_path / "fifo")

    for special in (tmp_path, tmp_path / "fifo", Path(os.devnull)):
        with pytest.raises(GGUFError, match="not a regular file"):
            FileSource(special)


def test_a_missing_file_raises_the_error_of_the_system(tmp_path: Path):
    """Which model is meant and what to do about it only the caller knows."""
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "missing.gguf")


def test_a_failing_disk_is_an_error_with_its_place(path: Path, monkeypatch: pytest.MonkeyPatch):
    """An unreadable sector is no truncation: fetching the rest would not help."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)

    with FileSource(path) as source, pytest.raises(GGUFError, match="Input/output") as raised:
        source.read_at(16, 8)

    assert raised.value.offset == 16
    assert not isinstance(raised.value, GGUFTruncatedError)


def test_reads_that_the_system_cuts_short_are_continued(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Linux gives at most 2 GiB a call, network file systems less."""
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: whole(fd, [parts[0][:100]], at))

    with FileSource(path) as source:
        assert source.read_at(1, 1000) == CONTENT[1:1001]


def test_a_closed_file_is_not_read_from(path: Path):
    """Its descriptor number may belong to another file by then."""
    source = FileSource(path)
    source.close()
    source.close()

    for use in (lambda: source.read_at(0, 1), source.identity):
        with pytest.raises(ValueError, match="is closed"):
            use()


@pytest.mark.parametrize(("offset", "n_bytes"), [(-1, 1), (0, -1)])
def test_no_source_takes_a_negative_range(path: Path, offset: int, n_bytes: int):
    """Python would count a negative offset from the end."""
    with FileSource(path) as file, HTTPRangeSource("http://127.0.0.1:1/") as web:
        for source in (file, web):
            with pytest.raises(ValueError, match="negative"):
                source.read_at(offset, n_bytes)


# --- ranges over HTTP -----------------------------------------------------------------------

Answer = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Records ranges, and answers as the test has it."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        self.server.answer(self, self.server.content)

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def asked(self) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None
        return int(match[1]), min(int(match[2]), len(self.server.content) - 1)


class Server(ThreadingHTTPServer):
    """One file, one way of answering."""

    daemon_threads = True

    def __init__(self, content: bytes, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.answer = answer
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.gguf"


@contextmanager
def serving(content: bytes, answer: Answer) -> Iterator[Server]:
    with Server(content, answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ranged(handler: Handler, content: bytes) -> None:
    first, last = handler.asked()
    if first >= len(content):
        handler.send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        return
    headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": '"one"'}
    handler.send(206, headers, content[first : last + 1])


def a_model(n_words_bytes: int = 600_000) -> bytes:
    entries = [key_value(f"k{i}", STRING, "v" * (n_words_bytes // 10)) for i in range(10)]
    return gguf_file(entries, [tensor_info("t", [8], F32, 0)], bytes(32)) + bytes(2_000_000)


def test_a_header_is_read_with_one_request_per_block():
    """Looking at a model of gigabytes costs a few round trips, not the download."""
    model = a_model()
    with serving(model, ranged) as server, HTTPRangeSource(server.url) as source:
        assert source.size is None

        header = read_header(source)

        assert header.tensors[0].name == "t"
        assert source.size == len(model)
    step = READ_AHEAD_BYTES
    assert server.ranges == [f"bytes={i}-{i + step - 1}" for i in (0, step, 2 * step)]


def test_ranges_are_served_from_the_last_block_where_they_can_be():
    """A request is slow; what is here already must not be asked for again."""
    content = os.urandom(READ_AHEAD_BYTES * 3)
    with serving(content, ranged) as server, HTTPRangeSource(server.url) as source:
        for offset, n_bytes in [
            (10, 100),
            (60, 0),
            (100, READ_AHEAD_BYTES - 90),  # up to the end of the first block
            (READ_AHEAD_BYTES, 20),  # across it: the rest is the start of the second
            (READ_AHEAD_BYTES + 20, READ_AHEAD_BYTES - 10),
            (5, 3),  # back
        ]:
            assert source.read_at(offset, n_bytes) == content[offset : offset + n_bytes]

    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in server.ranges]
    assert starts == [10, READ_AHEAD_BYTES + 10, 5]


@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_file_smaller_than_what_is_asked_for_is_truncated(size: int):
    """An empty file is answered with 416, a short one with less than was asked for."""
    with serving(bytes(size), ranged) as server, HTTPRangeSource(server.url) as source:
        with pytest.raises(GGUFTruncatedError):
            source.read_at(0, 24)
        with pytest.raises(GGUFTruncatedError) as raised:
            source.read_at(100, 24)

    assert raised.value.offset == size


def refusing_ranges(handler: Handler, content: bytes) -> None:
    handler.send(200, {}, content)


def hanging_up(handler: Handler, content: bytes) -> None:
    first, last = handler.asked()
    headers = {
        "Content-Range": f"bytes {first}-{last}/{len(content)}",
        "Content-Length": str(last - first + 1),
    }
    handler.send(206, headers, content[first : (first + last) // 2])


def hanging_up_without_a_length(handler: Handler, content: bytes) -> None:
    first, last = handler.asked()
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
    handler.end_headers()
    handler.wfile.write(content[first : (first + last) // 2])


def from_elsewhere(handler: Handler, content: bytes) -> None:
    first, last = handler.asked()
    handler.send(206, {"Content-Range": f"bytes 0-{last - first}/{len(content)}"}, b"")


def shorter_than_asked(handler: Handler, content: bytes) -> None:
    first, _ = handler.asked()
    handler.send(206, {"Content-Range": f"bytes {first}-{first}/{len(content)}"}, b"x")


def endless(handler: Handler, content: bytes) -> None:
    first, last = handler.asked()
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(65_536))
    except OSError:
        handler.close_connection = True


def without_a_range(handler: Handler, content: bytes) -> None:
    handler.send(206, {"Content-Type": "multipart/byteranges; boundary=x"}, content)


def compressed(handler: Handler, content: bytes) -> None:
    first, last = handler.asked()
    headers = {
        "Content-Range": f"bytes {first}-{last}/{len(content)}",
        "Content-Encoding": "gzip",
    }
    handler.send(206, headers, content[first : last + 1])


def silent(handler: Handler, _: bytes) -> None:
    handler.close_connection = True


def missing(handler: Handler, _: bytes) -> None:
    handler.send(404, {}, b"no such model")


def unhelpful_416(handler: Handler, _: bytes) -> None:
    handler.send(416, {}, b"")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusing_ranges, "ignores Range requests; download the file"),
        (hanging_up, "cannot be read: peer closed connection"),
        (hanging_up_without_a_length, r"ended after 131071 of 262144 bytes"),
        (from_elsewhere, "was asked for bytes 64-262207 and gave"),
        (shorter_than_asked, "was asked for bytes 64-262207 and gave"),
        (endless, "more than the 262144 bytes it announced"),
        (without_a_range, "Content-Range ''"),
        (compressed, "Content-Encoding 'gzip'"),
        (silent, "cannot be read: Server disconnected"),
        (missing, "HTTP status 404 Not Found"),
        (unhelpful_416, "nothing is to be had from byte 64"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_server_that_does_not_do_ranges_well_is_an_error_in_words(answer: Answer, words: str):
    """Each of these has another remedy: another mirror, a download, another address."""
    with (
        serving(bytes(1_000_000), answer) as server,
        HTTPRangeSource(server.url) as source,
        pytest.raises(GGUFError, match=words) as raised,
    ):
        source.read_at(64, 24)

    assert server.url in str(raised.value)


def test_a_server_that_ignores_ranges_is_not_made_to_send_the_file():
    """The body would be the model, gigabytes of it."""
    n_sent = []

    def slow_whole(handler: Handler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) * 1000))
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(content)
                n_sent.append(len(content))
        except OSError:
            handler.close_connection = True

    with (
        serving(bytes(1_000_000), slow_whole) as server,
        HTTPRangeSource(server.url) as source,
        pytest.raises(GGUFError, match="ignores Range"),
    ):
        source.read_at(0, 24)

    assert sum(n_sent) < 100_000_000


def test_a_server_that_does_not_answer_is_given_up_on():
    """An operator who waits needs to know for what."""
    release = threading.Event()

    def waiting(handler: Handler, _: bytes) -> None:
        release.wait(timeout=30)
        handler.close_connection = True

    with serving(CONTENT, waiting) as server, httpx.Client(timeout=0.05) as client:
        with pytest.raises(GGUFError, match="did not answer in time"):
            HTTPRangeSource(server.url, client).read_at(0, 24)
        release.set()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/m.gguf", "no-scheme/m.gguf", "ftp://127.0.0.1/m", "http://[::bad"]
)
def test_an_address_that_leads_nowhere_is_an_error(url: str):
    """No other exception than ours may come out of a wrong address."""
    with HTTPRangeSource(url) as source, pytest.raises(GGUFError, match="cannot be read"):
        source.read_at(0, 24)


@pytest.mark.parametrize("field", ["size", "etag"])
def test_a_file_that_changes_between_reads_is_an_error(field: str):
    """Half of one model and half of another would pass every other check."""

    def changing(handler: Handler, content: bytes) -> None:
        later = len(handler.server.ranges) > 1
        first, last = handler.asked()
        total = len(content) + (field == "size" and later)
        etag = '"two"' if field == "etag" and later else '"one"'
        headers = {"Content-Range": f"bytes {first}-{last}/{total}", "ETag": etag}
        handler.send(206, headers, content[first : last + 1])

    with serving(bytes(1_000_000), changing) as server, HTTPRangeSource(server.url) as source:
        source.read_at(0, 24)
        with pytest.raises(GGUFError, match="changed while it was being read"):
            source.read_at(500_000, 24)


def test_a_total_size_that_the_server_keeps_to_itself_stays_unknown():
    """`bytes 0-9/*` is allowed; tensors are then not checked against an end."""

    def no_total(handler: Handler, content: bytes) -> None:
        first, last = handler.asked()
        body = content[first : last + 1]
        handler.send(206, {"Content-Range": f"bytes {first}-{last}/*"}, body)

    model = a_model()
    with serving(model, no_total) as server, HTTPRangeSource(server.url) as source:
        assert read_header(source).tensors[0].n_bytes == 32
        assert source.size is None


def test_redirects_are_followed():
    """Model hubs answer with the address of a content network."""

    def redirecting(handler: Handler, content: bytes) -> None:
        if handler.path == "/model.gguf":
            handler.send(302, {"Location": "/elsewhere"}, b"")
        else:
            ranged(handler, content)

    with serving(CONTENT, redirecting) as server, HTTPRangeSource(server.url) as source:
        assert source.read_at(3, 4) == CONTENT[3:7]


def test_a_client_that_was_given_brings_its_headers_and_is_left_open():
    """A token for a private model goes with the client, and the client is the caller's."""
    seen = []

    def noting(handler: Handler, content: bytes) -> None:
        seen.append(handler.headers["Authorization"])
        ranged(handler, content)

    with (
        serving(CONTENT, noting) as server,
        httpx.Client(headers={"Authorization": "Bearer t"}) as client,
    ):
        with HTTPRangeSource(server.url, client) as source:
            source.read_at(0, 4)
        assert not client.is_closed

    assert seen == ["Bearer t"]


def test_a_web_page_behind_the_address_is_named_as_such():
    """A link to the page of a model instead of its file is the commonest mistake."""
    page = b"<!DOCTYPE html><html>" + bytes(100)
    with (
        serving(page, ranged) as server,
        HTTPRangeSource(server.url) as source,
        pytest.raises(GGUFFormatError, match="web page: check the address"),
    ):
        read_header(source)


def test_reading_files_does_not_import_an_http_client():
    """Every start would take longer for something that serving never does."""
    code = (
        "import sys, plimsoll.gguf.reader; "
        "sys.exit('httpx' in sys.modules or 'gguf' in sys.modules)"
    )

    root = Path(reader.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
