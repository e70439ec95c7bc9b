"""The command line as people run it: exit codes, what is printed and what is not.

A few commands run in processes of their own, where that is what matters. The others run inside
this one, which saves each of them a second of imports.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from plimsoll.cli.commands import main
from tests.fakes import metric
from tests.gguf_files import gguf_file
from tests.gguf_weights import write_in_q8
from tests.running_server import DEADLINE_S, RunningServer, environment
from tests.small_models import TINY, write_e5
from tests.synthetic import write_synthetic

FINGERPRINT = "v1:c2216a09456cb2aa6751196932dd7bee"


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


class PlimsollCommand:
    """Runs commands in an empty folder, with the cache that has the built-in model."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self._cache = cache

    def __call__(self, *arguments: str, given: bytes = b"", **variables: str) -> Done:
        """Run inside this process."""
        variables = {"PLIMSOLL_CACHE_DIR": str(self._cache)} | variables
        found = CliRunner().invoke(main, arguments, input=given, env=variables)
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Done(found.exit_code, found.stdout, found.stderr)

    def process(self, *arguments: str, given: bytes = b"", **variables: str) -> Done:
        """Run `python -m app` in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "plimsoll", *arguments],
            cwd=self.folder,
            env=environment(PLIMSOLL_CACHE_DIR=str(self._cache), **variables),
            input=given,
            capture_output=True,
            timeout=DEADLINE_S,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def plimsoll(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PlimsollCommand]:
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # each command sets up its own
    levels = {name: logging.getLogger(name).level for name in (None, "httpx")}
    yield PlimsollCommand(tmp_path, model_cache)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("tiny") / "tiny.gguf", arch="bert", shape=TINY)


def assert_refused(done: Done, *told: str) -> None:
    """Exit code 2, one plain message, no traceback."""
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for words in told:
        assert words in done.stderr


# --- embed ----------------------------------------------------------------------------------


def test_embed_prints_a_json_line_for_each_text(plimsoll: PlimsollCommand):
    """In order, with all the digits that float32 has, and nothing else on standard output."""
    done = plimsoll.process("embed", "hello world", "the ship ✓")

    assert done.code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    for line in lines:
        assert set(line) == {"index", "embedding"}
        assert np.linalg.norm(line["embedding"]) == pytest.approx(1, abs=1e-6)
    published = [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]
    np.testing.assert_allclose(lines[0]["embedding"][:5], published, atol=1e-3)


def test_embed_takes_arguments_and_files_together(plimsoll: PlimsollCommand):
    """Nothing that was asked for is left out; an empty line keeps its place."""
    first, second = plimsoll.folder / "first.txt", plimsoll.folder / "second.txt"
    first.write_bytes("die Höchststände\r\n\nzwei\n".encode())
    second.write_bytes(b"last")

    done = plimsoll("embed", "argument", "--file", str(first), "--file", str(second))

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [("embedding" in line) for line in lines] == [True, True, False, True, True]
    assert "no tokens" in lines[2]["error"]
    assert done.code == 1  # a script notices that a vector is missing
    assert "1 of 5 texts have no vector" in done.stderr


def test_embed_reads_standard_input_where_nothing_is_named(plimsoll: PlimsollCommand):
    """More lines than one step of the progress bar has."""
    done = plimsoll("embed", "--dimensions", "8", given=b"ship\n" * 70)

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(70))
    assert {len(line["embedding"]) for line in lines} == {8}
    assert done.stderr.count("not trained for 8 dimensions") == 1  # said once, not once a step
    assert done.code == 0


def test_embed_says_what_it_cut_or_refuses_to_cut(plimsoll: PlimsollCommand):
    """As the server does."""
    long = "ship " * 300

    cut = json.loads(plimsoll("embed", long).stdout)
    refused = plimsoll("embed", "--no-truncate", long)

    assert cut["truncated"] == {"tokens": 302, "kept": 256}
    assert refused.code == 1
    assert "302 tokens" in json.loads(refused.stdout)["error"]


def test_embed_puts_the_task_prefix_first(plimsoll: PlimsollCommand):
    """With a model that was trained with one."""
    file = str(write_e5(plimsoll.folder / "e5.gguf"))
    options = ("--model", file, *own_cache(plimsoll))

    by_type = plimsoll("embed", *options, "--input-type", "search_query", "the ship")
    by_hand = plimsoll("embed", *options, "query: the ship")

    assert by_type.code == 0, by_type.stderr
    assert by_type.stdout == by_hand.stdout
    assert "set input_type" in by_hand.stderr
    assert "set input_type" not in by_type.stderr


def own_cache(plimsoll: PlimsollCommand) -> tuple[str, ...]:
    """Options for a cache of the test's own."""
    return "--cache-dir", str(plimsoll.folder / "cache"), "--cache-on-tmpfs"


@pytest.mark.parametrize(
    ("arguments", "given", "told"),
    [
        (["embed"], b"", "no texts"),
        (["embed"], b"fine\nno \xff\xfe utf\n", "line 2 of standard input is not UTF-8"),
        (["embed", "--file", "nowhere.txt"], b"", "nowhere.txt"),
        (["embed", "--file", "."], b"", "is a directory"),
        (["embed", "x", "--input-type", "poem"], b"", "poem"),
        (["embed", "x", "--dimensions", "385"], b"", "385"),
        (["embed", "x", "--model", "no-such-model"], b"", "no model is called 'no-such-model'"),
        (["embed", "x", "--model", "nowhere.gguf"], b"", "nowhere.gguf"),
        (["embed", "x", "--threads", "many"], b"", "threads (command line): 'many'"),
        (["pull", "nomic-embed"], b"", "Did you mean 'nomic-embed-text'"),
        (["inspect", "nowhere.gguf"], b"", "nowhere.gguf"),
        (["inspect", "."], b"", "."),
        (["inspect", "http://127.0.0.1:9/model.gguf"], b"", "http://127.0.0.1:9/model.gguf"),
        (["serve", "--model", "no-such-model"], b"", "no model is called"),
        (["serve", "--model", "nowhere.gguf"], b"", "there is no model file"),
        (["serve", "--extra-models", "nowhere.gguf"], b"", "there is no model file"),
        (["serve", "--model", "https://127.0.0.1:9/m.gguf"], b"", "download it"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_message(
    plimsoll: PlimsollCommand, arguments: list[str], given: bytes, told: str
):
    """A traceback tells an operator nothing that he can do."""
    assert_refused(plimsoll(*arguments, given=given), told)


def test_an_argument_that_is_not_utf_8_is_refused_by_its_place(plimsoll: PlimsollCommand):
    """A shell passes any bytes."""
    done = plimsoll.process("embed", "fine", os.fsdecode(b"no \xff utf"))

    assert_refused(done, "text 2 is not UTF-8")


# --- inspect --------------------------------------------------------------------------------


def test_inspect_tells_what_a_file_is_and_costs(plimsoll: PlimsollCommand, builtin_file: Path):
    """Before anything is converted or opened."""
    done = plimsoll("inspect", str(builtin_file))

    assert done.code == 0, done.stderr
    assert "22.6 million" in done.stdout
    for words in ("all-MiniLM-L6-v2", "bert", "6 of 384", "mean", "256", "F32", "supported"):
        assert words in done.stdout


def test_inspect_prints_json_for_machines(plimsoll: PlimsollCommand, builtin_file: Path):
    """With the same numbers."""
    report = json.loads(plimsoll("inspect", "--json", str(builtin_file)).stdout)

    assert (report["architecture"], report["supported"], report["reason"]) == ("bert", True, None)
    assert report["known_as"] == "all-MiniLM-L6-v2"
    assert report["file_bytes"] == builtin_file.stat().st_size
    assert report["tensors"] == [
        {"type": "F32", "n_tensors": 101, "n_bytes": 4 * report["n_parameters"]}
    ]
    assert 0 < report["pages_dropped_bytes"] < report["pages_kept_bytes"]


def test_inspect_tells_what_the_machine_gives(plimsoll: PlimsollCommand, builtin_file: Path):
    """What a file needs is only half of whether it fits."""
    arguments = ("inspect", "--memory-budget", "100M", str(builtin_file))
    machine = json.loads(plimsoll(*arguments, "--json").stdout)["machine"]
    assert machine["budget_bytes"] == 100 << 20
    assert machine["budget_source"] == "PLIMSOLL_MEMORY_BUDGET"
    assert machine["host_bytes"] > 100 << 20
    assert 0 < machine["cores"] <= os.cpu_count()

    text = plimsoll(*arguments).stdout
    assert re.search(r"^budget here +100\.0 MiB from PLIMSOLL_MEMORY_BUDGET$", text, re.M)
    for label in ("limits here", "host memory", "CPU quota"):
        assert re.search(rf"^{label}  +\S", text, re.M)


class _Ranges(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    content = b""
    n_bytes_sent = 0

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert found is not None
        start, stop = int(found[1]), min(int(found[2]) + 1, len(self.content))
        body = self.content[start:stop]
        type(self).n_bytes_sent += len(body)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def file_address(builtin_file: Path) -> Iterator[str]:
    """The built-in model's file on an HTTP server that answers ranges."""
    _Ranges.content, _Ranges.n_bytes_sent = builtin_file.read_bytes(), 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/all-MiniLM-L6-v2.F32.gguf"
    server.shutdown()
    server.server_close()
    _Ranges.content = b""


def test_inspect_reads_a_header_over_http_and_little_else(
    plimsoll: PlimsollCommand, builtin_file: Path, file_address: str
):
    """Whether a model of gigabytes fits is known after a megabyte."""
    remote = json.loads(plimsoll("inspect", "--json", file_address).stdout)
    local = json.loads(plimsoll("inspect", "--json", str(builtin_file)).stdout)

    assert remote["file"] == file_address
    told_of_this_machine = {"file": "", "int8": None}  # codes that it may have made
    assert remote | told_of_this_machine == local | told_of_this_machine
    assert _Ranges.n_bytes_sent < 4 << 20


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "at byte 0"),
        (b"PK\x03\x04 something", "PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (gguf_file(n_tensors=5), "5 tensors"),
    ],
)
def test_inspect_refuses_what_is_no_model_file(
    plimsoll: PlimsollCommand, content: bytes, told: str
):
    """With what it looks like instead, and where it goes wrong."""
    file = plimsoll.folder / "bad.gguf"
    file.write_bytes(content)

    assert_refused(plimsoll("inspect", str(file)), told)


def test_inspect_tells_a_sound_file_that_does_not_run_here(
    plimsoll: PlimsollCommand, tiny_file: Path
):
    """Code 1: the file is read, and the answer is no."""
    file = plimsoll.folder / "llama.gguf"
    file.write_bytes(
        tiny_file.read_bytes().replace(b"\x04\0\0\0\0\0\0\0bert", b"\x04\0\0\0\0\0\0\0trab")
    )

    done = plimsoll("inspect", str(file))

    assert done.code == 1
    assert "no: architecture 'trab' is not supported" in done.stdout


# --- verify ---------------------------------------------------------------------------------


def test_verify_compares_with_published_vectors(plimsoll: PlimsollCommand):
    """Anyone can see on his own machine that the vectors are the model's."""
    done = plimsoll("verify", "--threshold", "0.99999")

    assert done.code == 0, done.stdout + done.stderr
    assert "text-embeddings-inference" in done.stdout
    assert "over 3 texts" in done.stdout
    assert worst_of(done.stdout) > 0.99999


def worst_of(output: str) -> float:
    return float(re.search(r"^worst ([\d.]+), mean [\d.]+ over", output, re.MULTILINE)[1])


@pytest.fixture(scope="session")
def q8_file(builtin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with its matrices in Q8_0."""
    return write_in_q8(builtin_file, tmp_path_factory.mktemp("q8") / "all-MiniLM-L6-v2.Q8_0.gguf")


def test_verify_measures_what_quantization_costs(plimsoll: PlimsollCommand, q8_file: Path):
    """The vectors of an 8-bit file are the model's to three nines; a stricter line fails it."""
    done = plimsoll("verify", "--against", str(q8_file), "--threshold", "0.99999")

    assert 0.9995 <= worst_of(done.stdout) < 0.99999
    assert done.code == 1
    assert "below the threshold" in done.stderr


def test_verify_asks_for_another_file_where_nothing_is_published(
    plimsoll: PlimsollCommand, tiny_file: Path
):
    """With the command that helps."""
    done = plimsoll("verify", "--model", str(tiny_file), *own_cache(plimsoll))

    assert done.code == 1
    assert "plimsoll verify --against" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_refuses_to_compare_different_models(plimsoll: PlimsollCommand, tiny_file: Path):
    """A cosine of vectors of different sizes does not exist."""
    done = plimsoll("verify", "--against", str(tiny_file))

    assert_refused(done, "384", "64", "not the same model")


# --- pull, config, help ---------------------------------------------------------------------


def test_pull_makes_a_model_ready_and_says_where(plimsoll: PlimsollCommand, tiny_file: Path):
    """Serving starts at once afterwards, without the file itself."""
    mine = plimsoll.folder / "mine.gguf"
    mine.write_bytes(tiny_file.read_bytes())

    done = plimsoll("pull", str(mine), *own_cache(plimsoll))

    assert done.code == 0, done.stderr
    (folder,) = [
        path for path in (plimsoll.folder / "cache" / "sidecars").iterdir() if path.is_dir()
    ]
    assert f"{mine} is ready in {folder}" in done.stderr
    assert done.stdout == ""


def test_config_prints_each_setting_with_its_place(plimsoll: PlimsollCommand):
    """What an operator asks first when something is not as he set it."""
    (plimsoll.folder / "plimsoll.toml").write_text("idle_unload_s = 60\nport = 7000\n")
    (plimsoll.folder / ".env").write_text("PLIMSOLL_PORT=7001\nOTHER=1\n")

    variables = {"PLIMSOLL_HOST": "0.0.0.0", "PLIMSOLL_API_KEYS": "admin:hunter2"}

    done = plimsoll("config", "--threads", "3", **variables)

    assert done.code == 0, done.stderr
    assert "hunter2" not in done.stdout
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in done.stdout.splitlines()}
    assert rows["threads"] == ["3", "command line"]
    assert rows["host"] == ["0.0.0.0", "environment"]
    assert rows["api_keys"] == ["(hidden)", "environment"]
    assert rows["port"] == ["7001", ".env"]
    assert rows["idle_unload_s"] == ["60", "plimsoll.toml"]
    assert rows["model"] == ["builtin", "default"]


def test_a_setting_that_has_no_effect_any_more_is_taken_with_a_warning(
    plimsoll: PlimsollCommand,
):
    """An upgrade must not stop a server over a line that nothing needs."""
    done = plimsoll.process("config", PLIMSOLL_EXACT="true")

    assert done.code == 0
    assert "PLIMSOLL_EXACT has no effect any more" in done.stderr
    assert "no effect" not in plimsoll.process("config").stderr


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(plimsoll: PlimsollCommand):
    """A spelling mistake must not run a server with a default instead."""
    done = plimsoll.process("config", PLIMSOLL_MEMROY_BUDGET="400")

    assert_refused(done, "PLIMSOLL_MEMROY_BUDGET", "PLIMSOLL_MEMORY_BUDGET")


def test_help_names_every_command(plimsoll: PlimsollCommand):
    """The first thing that people type."""
    done = plimsoll("--help")

    assert done.code == 0
    for command in ("serve", "pull", "embed", "inspect", "verify", "config"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


# --- serve ----------------------------------------------------------------------------------


def test_serve_refuses_to_be_more_than_one_process(plimsoll: PlimsollCommand):
    """Two processes cannot own one memory budget; platforms set this variable unasked."""
    done = plimsoll.process("serve", "--port", "0", WEB_CONCURRENCY="4")

    assert_refused(done, "WEB_CONCURRENCY is 4")


def test_serve_on_a_port_that_is_taken_fails(plimsoll: PlimsollCommand, server: RunningServer):
    """A supervisor must see that it did not start."""
    done = plimsoll.process("serve", "--port", server.url.rpartition(":")[2])

    assert done.code not in (0, 2)
    assert "address already in use" in done.stderr


def test_a_terminated_server_answers_what_it_has_accepted_and_ends_well(
    tmp_path: Path, model_cache: Path
):
    """A rolling update loses no request, and an orchestrator sees no failure."""
    texts = [f"ship number {i} of the fleet" for i in range(300)]
    answers: list[httpx.Response] = []

    with RunningServer(tmp_path, "--cache-dir", str(model_cache)) as server:
        request = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/embed", json={"input": texts}, timeout=DEADLINE_S)
            )
        )
        request.start()
        with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as watcher:
            while metric(watcher.get("/metrics").text, "plimsoll_queue_tokens") == 0:
                assert request.is_alive(), "the request was answered before it was seen"
        server.terminate()
        request.join()
        code = server.wait()

    (answer,) = answers
    assert answer.status_code == 200
    assert answer.json()["fingerprint"] == FINGERPRINT
    assert len([row for row in answer.json()["embeddings"] if row]) == 300
    assert code == 0
    assert "Traceback" not in server.log


def test_an_interrupted_server_ends_without_a_complaint(tmp_path: Path, model_cache: Path):
    """Ctrl+C is how people stop it."""
    with RunningServer(tmp_path, "--cache-dir", str(model_cache)) as server:
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        server.process.send_signal(signal.SIGINT)
        code = server.wait()

    assert code == 0
    assert "Traceback" not in server.log
    assert "Aborted" not in server.log
