"""Fetching from a hub: the real huggingface_hub against a server on 127.0.0.1.

The server answers as the hub does for a large file: HEAD and GET on
`/<repository>/resolve/<revision>/<file>` with the commit, the SHA-256 as ETag, and ranges.
Most tests name it in the source; HF_ENDPOINT and offline mode, which huggingface_hub reads
when it is imported, are tested in a process of their own.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from plimsoll import files
from plimsoll.encoder.catalog import ModelSpec, resolve
from plimsoll.encoder.known_models import NOMIC_V1_5
from plimsoll.errors import (
    CacheSpaceError,
    CacheUnsafeError,
    ModelDownloadError,
    ModelNotFoundError,
)
from plimsoll.models.hub import fetch

CONTENT = b"GGUF" + bytes(range(256)) * 2048  # half a megabyte
CHUNK_BYTES = 64 * 1024
FILE = "nomic-embed-text-v1.5.Q8_0.gguf"
ADDRESS = f"/nomic-ai/nomic-embed-text-v1.5-GGUF/resolve/main/{FILE}"


@dataclass
class Hub:
    """What the server shall do, and what it was asked; one thread changes it at a time."""

    content: bytes = CONTENT
    sha256: str = hashlib.sha256(CONTENT).hexdigest()
    status: int = 200
    token: str | None = None
    hang_up_after: int | None = None  # bytes of the first GET
    silent: bool = False
    redirect_to: str | None = None  # where the content is, as the hub has it on other hosts
    paths: list[str] = field(default_factory=lambda: ["README.md", FILE])
    tokens: list[str | None] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # method, range
    url: str = ""

    @property
    def ranges(self):
        return [asked for method, asked in self.requests if method == "GET"]


def _handler(state):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer("HEAD")

        def do_GET(self):
            self._answer("GET")

        def _answer(self, method):
            state.requests.append((method, self.headers.get("Range")))
            state.tokens.append(self.headers.get("Authorization"))
            if state.silent:
                state.released.wait()
                return
            if self.path.startswith("/api/"):
                self._list()
                return
            authorised = state.token in (None, self.headers.get("Authorization"))
            if self.path != ADDRESS or not authorised or state.status != 200:
                self._refuse(state.status if authorised else 401)
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            size = len(state.content)
            self.send_response(302 if state.redirect_to else 206 if start else 200)
            if state.redirect_to:
                self.send_header("Location", state.redirect_to + ADDRESS)
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{state.sha256}"')
            self.send_header("X-Linked-Etag", f'"{state.sha256}"')
            self.send_header("X-Linked-Size", str(size))
            self.send_header("Content-Length", str(size - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            if method == "GET" and not state.redirect_to:
                end, state.hang_up_after = state.hang_up_after, None
                self.wfile.write(state.content[start:end])

        def _list(self):
            """What the repository holds, as the hub's API says it."""
            found = [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in state.paths]
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status):
            status = 404 if status == 200 else status
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def server():
    """A hub with one file, on a port of its own."""
    with running_hub() as state:
        yield state


@contextmanager
def running_hub():
    state = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.released.set()
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def plain_client(monkeypatch, tmp_path):
    """Neither the user's token and proxy nor telemetry, and chunks that a small file has."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def spec_at(url):
    """Nomic's Q8_0 file, from the hub at `url`."""
    source = replace(NOMIC_V1_5.source, endpoint=url)
    return replace(resolve("nomic-embed-text-v1.5"), known=replace(NOMIC_V1_5, source=source))


def repository_at(url):
    """Nomic's repository, without a word on the file."""
    spec = resolve("hf:nomic-ai/nomic-embed-text-v1.5-GGUF")
    return replace(spec, hub=replace(spec.hub, endpoint=url))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def leftovers(cache):
    """Every file with content in the cache, but the model's and the hub's own notes."""
    return [
        path
        for path in cache.rglob("*")
        if path.is_file()
        and path.name not in (FILE, "CACHEDIR.TAG", "main", ".gitignore")
        and not (path.suffix == ".lock" and path.is_relative_to(cache / "hub"))
    ]


def fetch_alone(cache, **environment):
    """Run `fetch` in a process that imports huggingface_hub under this environment."""
    code = (
        "import sys; from pathlib import Path; from plimsoll.models.hub import fetch;"
        "from plimsoll.encoder.catalog import resolve;"
        "print(fetch(resolve('nomic-embed-text-v1.5'), Path(sys.argv[1])))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(cache)],
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(cache.parent / "home")}
        | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestDownload:
    def test_the_file_arrives_whole_and_alone(self, server, cache):
        """What lies in models/ is what will be served: exactly that file, nothing half done."""
        path = fetch(spec_at(server.url), cache)
        assert path == cache / "models" / FILE
        assert path.read_bytes() == CONTENT
        assert not path.is_symlink()
        assert leftovers(cache) == []

    def test_neither_telemetry_nor_xet_is_used(self, server, cache, monkeypatch):
        """Xet writes outside the cache folder, and no user asked for a report of the download."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
        before = dict(os.environ)
        fetch(spec_at(server.url), cache)
        assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
        assert huggingface_hub.constants.HF_HUB_DISABLE_XET
        assert dict(os.environ) == before

    def test_progress_is_told_up_to_the_last_byte(self, server, cache):
        """A download takes minutes: the user must see that it moves, and how far it is."""
        seen = []
        fetch(spec_at(server.url), cache, progress=lambda *step: seen.append(step))
        assert len(seen) > 2
        assert seen == sorted(seen)
        assert seen[-1] == (len(CONTENT), len(CONTENT), "download")

    def test_a_broken_connection_is_resumed_where_it_broke(self, server, cache):
        """Half of 500 MB must not be paid for twice: the second request asks for the rest."""
        server.hang_up_after = 3 * CHUNK_BYTES + 100
        seen = []
        path = fetch(spec_at(server.url), cache, progress=lambda *step: seen.append(step))
        assert server.ranges == [None, f"bytes={3 * CHUNK_BYTES}-"]
        assert path.read_bytes() == CONTENT
        assert seen == sorted(seen)

    def test_a_file_that_is_there_costs_no_network(self, server, cache):
        """A restart must not depend on a hub, not even for a question."""
        spec = spec_at(server.url)
        path = fetch(spec, cache)
        server.requests.clear()
        assert fetch(spec, cache) == path
        assert server.requests == []

    def test_a_file_put_by_hand_is_used(self, cache):
        """The way without network: a file in models/, put there by any means."""
        (cache / "models").mkdir(parents=True)
        (cache / "models" / FILE).write_bytes(b"by hand")
        assert fetch(spec_at("http://127.0.0.1:1"), cache).read_bytes() == b"by hand"

    def test_two_at_once_download_once(self, server, cache):
        """Two processes with one cache must not fetch 500 MB each."""
        paths = []
        threads = [
            threading.Thread(target=lambda: paths.append(fetch(spec_at(server.url), cache)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert paths == [cache / "models" / FILE] * 2
        assert len(server.ranges) == 1

    def test_what_a_killed_download_left_is_removed(self, server, cache):
        """huggingface_hub never takes such a file up again: it would lie there for good."""
        blobs = cache / "hub" / "models--nomic-ai--nomic-embed-text-v1.5-GGUF" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{server.sha256}.0badcafe.incomplete").write_bytes(b"half")
        fetch(spec_at(server.url), cache)
        assert leftovers(cache) == []

    def test_a_token_in_the_environment_is_sent(self, server, cache, monkeypatch):
        """Private mirrors work by huggingface_hub's own setting, without one of ours."""
        server.token = "Bearer hf_secret"
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert fetch(spec_at(server.url), cache).is_file()

    def test_the_token_goes_to_the_hub_alone_and_into_no_log(
        self, server, cache, monkeypatch, caplog
    ):
        """The hub sends downloads to other hosts, which have no business with it."""
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with running_hub() as storage:
            server.redirect_to = storage.url.replace("127.0.0.1", "localhost")
            monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
            assert fetch(spec_at(server.url), cache).is_file()
            assert set(server.tokens) == {"Bearer hf_secret"}
            assert set(storage.tokens) == {None}
        assert "hf_secret" not in caplog.text

    def test_a_repository_without_a_file_is_asked_for_the_one_that_fits(self, server, cache):
        """`hf:owner/repo` is what a model page shows; the second run asks nothing."""
        spec = repository_at(server.url)
        stored = cache / "models" / f"nomic-ai--nomic-embed-text-v1.5-GGUF--{FILE}"
        assert fetch(spec, cache) == stored
        n_asked = len(server.requests)
        assert fetch(spec, cache) == stored
        assert len(server.requests) == n_asked

    def test_a_repository_whose_files_fit_alike_is_refused_with_their_names(self, server, cache):
        """A guess would be another model than the one that was meant."""
        server.paths = ["a.Q8_0.gguf", "b.Q8_0.gguf"]
        with pytest.raises(ModelNotFoundError, match=r"There are: a\.Q8_0\.gguf, b\.Q8_0\.gguf"):
            fetch(repository_at(server.url), cache)

    def test_the_endpoint_of_the_environment_is_asked(self, server, cache):
        """HF_ENDPOINT points at a mirror; a second run goes without it, offline."""
        assert fetch_alone(cache, HF_ENDPOINT=server.url).returncode == 0
        assert (cache / "models" / FILE).read_bytes() == CONTENT
        again = fetch_alone(cache, HF_ENDPOINT="http://127.0.0.1:1", HF_HUB_OFFLINE="1")
        assert again.stdout.strip() == str(cache / "models" / FILE)


class TestFailure:
    def test_damaged_content_is_thrown_away(self, server, cache):
        """Wrong weights give plausible, wrong vectors: they must never be loaded, nor kept."""
        server.content = CONTENT[:-1] + b"!"
        with pytest.raises(ModelDownloadError, match="SHA-256"):
            fetch(spec_at(server.url), cache)
        assert not (cache / "models" / FILE).exists()
        assert leftovers(cache) == []
        server.content = CONTENT
        assert fetch(spec_at(server.url), cache).read_bytes() == CONTENT

    def test_a_hub_that_names_no_checksum_is_not_trusted(self, server, cache):
        """Without one there is nothing to compare with, and no way to notice damage."""
        server.sha256 = "d" * 40
        with pytest.raises(ModelDownloadError, match="no SHA-256"):
            fetch(spec_at(server.url), cache)
        assert server.ranges == []

    def test_a_missing_file_is_not_found(self, server, cache):
        """404 will not heal by itself: it is another error than a network that is down."""
        server.status = 404
        with pytest.raises(ModelNotFoundError, match="404"):
            fetch(spec_at(server.url), cache)

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refusal_asks_for_a_token(self, server, cache, status):
        """Gated and private repositories look alike; the remedy is the same."""
        server.status = status
        with pytest.raises(ModelDownloadError, match="HF_TOKEN"):
            fetch(spec_at(server.url), cache)

    def test_a_hub_that_is_ill_is_told_by_its_status(self, server, cache):
        """500 is the hub's matter: the status says that waiting may help."""
        server.status = 500
        with pytest.raises(ModelDownloadError, match="500"):
            fetch(spec_at(server.url), cache)

    def test_no_server_says_where_to_put_the_file(self, cache):
        """Without network the message is all that the user has: it must be enough."""
        with pytest.raises(ModelDownloadError) as caught:
            fetch(spec_at("http://127.0.0.1:1"), cache)
        assert str(cache / "models" / FILE) in str(caught.value)
        assert "PLIMSOLL_MODEL" in str(caught.value)

    def test_offline_mode_says_so_and_asks_nobody(self, server, cache):
        """An operator who set HF_HUB_OFFLINE must learn that this is what stops the download."""
        result = fetch_alone(cache, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")
        assert "ModelDownloadError" in result.stderr
        assert "HF_HUB_OFFLINE" in result.stderr
        assert str(cache / "models" / FILE) in result.stderr
        assert server.requests == []

    def test_a_silent_server_is_given_up(self, server, cache):
        """A connection that hangs must end in an error, within huggingface_hub's own timeout."""
        server.silent = True
        result = fetch_alone(cache, HF_ENDPOINT=server.url, HF_HUB_ETAG_TIMEOUT="1")
        assert "ModelDownloadError" in result.stderr
        assert "Timeout" in result.stderr

    def test_a_disk_too_small_is_told_before_the_download(self, server, cache, monkeypatch):
        """A disk that fills up midway takes down more than this program."""
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10, 0, 1024))
        with pytest.raises(CacheSpaceError, match="0 MiB are free"):
            fetch(spec_at(server.url), cache)
        assert server.ranges == []

    def test_a_path_that_leads_nowhere_is_not_found(self, cache, tmp_path):
        """A mistyped PLIMSOLL_MODEL must name the place that was looked at."""
        with pytest.raises(ModelNotFoundError, match=str(tmp_path / "none.gguf")):
            fetch(resolve(str(tmp_path / "none.gguf")), cache)

    def test_a_path_is_used_where_it_lies(self, cache, tmp_path):
        """A file of the user's is neither copied nor does it need a cache."""
        file = tmp_path / "mine.gguf"
        file.write_bytes(b"GGUF")
        assert fetch(resolve(str(file)), cache) == file
        assert not cache.exists()

    def test_a_path_without_its_ending_finds_the_file(self, cache, tmp_path):
        """As people write it after a look at a list of models."""
        (tmp_path / "mine.gguf").write_bytes(b"GGUF")
        assert fetch(resolve(str(tmp_path / "mine")), cache) == tmp_path / "mine.gguf"

    @pytest.mark.parametrize("path", ["/", "./", "../", "~no-such-user/model", "/dev/null/x"])
    def test_a_path_that_leads_nowhere_is_refused(self, cache, path):
        """A slip of the hand must not end in a traceback."""
        with pytest.raises(ModelNotFoundError, match="there is no"):
            fetch(resolve(path), cache)

    def test_a_file_in_the_hubs_own_cache_is_used_where_it_lies(self, cache, tmp_path, monkeypatch):
        """Another program has downloaded it already; no second copy, and no network."""
        hub = tmp_path / "home" / "hub"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
        repository = hub / "models--nomic-ai--nomic-embed-text-v1.5-GGUF"
        snapshot = repository / "snapshots" / ("c" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("c" * 40)
        (snapshot / FILE).write_bytes(CONTENT)
        assert fetch(spec_at("http://127.0.0.1:1"), cache) == snapshot / FILE

    def test_a_model_known_from_files_only_has_no_source(self, cache):
        """Recognising a family's files does not mean that they can be had from anywhere."""
        with pytest.raises(ModelNotFoundError):
            fetch(ModelSpec("e5-base-v2", replace(NOMIC_V1_5, source=None), None, None), cache)


class TestCacheFolder:
    def test_it_is_made_for_us_alone(self, server, cache):
        """A user who may write to it may change the vectors of this server."""
        fetch(spec_at(server.url), cache)
        for folder in (cache, cache / "models", cache / "hub"):
            assert folder.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("part", ["", "models", "hub"])
    def test_a_symbolic_link_in_its_place_is_refused(self, server, cache, tmp_path, part):
        """Another user could turn it and have our files written, or theirs read."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (cache / part).parent.mkdir(parents=True, exist_ok=True)
        (cache / part).symlink_to(elsewhere)
        with pytest.raises(CacheUnsafeError, match="symbolic link"):
            fetch(spec_at(server.url), cache)
        assert list(elsewhere.iterdir()) == []

    def test_a_folder_that_everybody_may_write_to_is_refused(self, server, cache):
        """A mode of 0777, as some volumes have, lets any user swap the weights."""
        cache.mkdir()
        cache.chmod(0o777)
        with pytest.raises(CacheUnsafeError, match="everybody"):
            fetch(spec_at(server.url), cache)

    def test_a_folder_in_memory_is_refused_unless_asked_for(self, cache, monkeypatch):
        """Files there count against the limit that the cache is there to keep."""
        spec = spec_at("http://127.0.0.1:1")
        (cache / "models").mkdir(parents=True)
        (cache / "models" / FILE).write_bytes(b"by hand")
        monkeypatch.setattr(files, "memory_file_system", lambda path: "tmpfs")
        with pytest.raises(CacheUnsafeError, match="PLIMSOLL_CACHE_ON_TMPFS"):
            fetch(spec, cache)
        assert fetch(spec, cache, allow_memory_backed=True).is_file()

    def test_a_folder_of_another_user_is_refused(self, server, cache, monkeypatch):
        """Its owner could change our files; the message names both users."""
        cache.mkdir()
        if os.geteuid() == 0:
            os.chown(cache, 12345, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(CacheUnsafeError, match="12345"):
            fetch(spec_at(server.url), cache)

    def test_a_file_in_its_place_is_refused(self, server, tmp_path):
        """The message names the setting, not a line of a traceback."""
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(CacheUnsafeError, match="PLIMSOLL_CACHE_DIR"):
            fetch(spec_at(server.url), Path(tmp_path / "cache"))
