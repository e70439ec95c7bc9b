"""The engine in process: the server's vectors, and what it says beside them."""

import base64
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll import Embedder
from plimsoll.composition.application import create_app
from plimsoll.embedder import STREAM_TEXTS
from plimsoll.errors import (
    EmptyTextError,
    ModelNotFoundError,
    SettingsError,
    TextTooLongError,
)
from plimsoll.settings import Settings
from tests.running_server import environment

TEXTS = ["A mark on a hull", "How deep may a ship be loaded?", "ship " * 40, "ship " * 90]


@pytest.fixture(scope="module")
def embedder(model_cache: Path) -> Iterator[Embedder]:
    with Embedder(settings=Settings(cache_dir=model_cache)) as embedder:
        yield embedder


def local_client(settings: Settings) -> TestClient:
    """A client of a server with these settings, which calls it by its usual name."""
    return TestClient(create_app(settings), base_url="http://localhost")


def served(client: TestClient, texts: str | list[str]) -> np.ndarray:
    """Vectors of the server, bit by bit: JSON would round them."""
    reply = client.post("/embed", json={"input": texts, "encoding_format": "base64"})
    assert reply.status_code == 200, reply.text
    rows = [base64.b64decode(row) for row in reply.json()["embeddings"]]
    return np.stack([np.frombuffer(row, "<f4") for row in rows])


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_servers_bits(embedder: Embedder, client: TestClient, text: str):
    """An index filled in process is searched through a server."""
    vectors = embedder.embed(text)
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == served(client, text).tobytes()


def test_a_list_has_the_servers_bits(embedder: Embedder, client: TestClient):
    """However the two put texts together to runs."""
    assert embedder.embed(TEXTS).tobytes() == served(client, TEXTS).tobytes()


def test_settings_and_single_ones_are_not_given_together(model_cache: Path):
    """One of them would be passed over in silence."""
    with pytest.raises(TypeError, match="not both"):
        Embedder("builtin", settings=Settings(cache_dir=model_cache))


def test_the_package_alone_is_light_to_import():
    """A program that only asks for the version must not wait for ONNX Runtime."""
    assert imported_with("import plimsoll", "numpy", "onnxruntime", "httpx") == []


def test_a_client_alone_is_light_to_import():
    """A program that asks a server elsewhere needs no engine."""
    heavy = ("onnxruntime", "fastapi", "pydantic", "tokenizers", "httpx")
    assert imported_with("from plimsoll import AsyncClient, Client", *heavy) == ["httpx"]


def imported_with(statement: str, *names: str) -> list[str]:
    """Which of these modules a process has after a statement."""
    code = f"import sys; {statement}; print(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    """A lazy import must not turn a spelling mistake into something else."""
    import plimsoll

    with pytest.raises(AttributeError, match="Embeder"):
        plimsoll.Embeder  # noqa: B018


def test_a_text_that_is_cut_is_said(embedder: Embedder):
    """The rest of it is not in the vector, and its writer should know."""
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 256 tokens.* text 1.* 302"):
        embedder.embed(["ship", "ship " * 300])
    with pytest.raises(TextTooLongError, match="text 1"):
        embedder.embed(["ship", "ship " * 300], truncate=False)


def test_an_unusual_size_is_warned_of(embedder: Embedder):
    """As the server does in its answer."""
    with pytest.warns(UserWarning, match="not trained for 8 dimensions"):
        assert embedder.embed("ship", dimensions=8).shape == (1, 8)


def test_a_text_without_tokens_is_an_error_of_embed(embedder: Embedder):
    """An array has no place for a vector that is missing."""
    with pytest.raises(EmptyTextError, match="text 1"):
        embedder.embed(["ship", " "])


def test_no_texts_give_no_rows(embedder: Embedder):
    """A program need not ask first."""
    assert embedder.embed([]).shape == (0, 384)


def test_a_stream_goes_on_after_a_bad_text_and_reads_little_ahead(embedder: Embedder):
    """A million texts must fit, and one of them may be empty."""
    n_read = 0

    def texts() -> Iterator[str]:
        nonlocal n_read
        for text in ["ship", "", "ship " * 300] + ["hull"] * 200:
            n_read += 1
            yield text

    rows = embedder.embed_stream(texts())
    first = next(rows)
    assert n_read == STREAM_TEXTS
    found = [first, *rows]

    assert [row.index for row in found] == list(range(203))
    assert [row.index for row in found if row.vector is None] == [1]
    assert "no tokens" in found[1].error
    assert (found[2].truncated.tokens, found[2].truncated.kept) == (302, 256)


def test_threads_may_share_one(embedder: Embedder):
    """The docstring says so."""
    alone = embedder.embed("ship")
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(embedder.embed("ship"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.allclose(vectors, alone, atol=1e-6) for vectors in found)


def test_a_model_that_is_not_there_is_told_at_once(tmp_path: Path, model_cache: Path):
    """And its thread is gone afterwards."""
    before = set(threading.enumerate())
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.gguf"):
        Embedder(settings=Settings(cache_dir=model_cache, model=str(tmp_path / "nowhere.gguf")))
    assert "embedder" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_closed_one_refuses(model_cache: Path):
    """With plain words, more than once, and without a warning of Python's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder = Embedder(settings=Settings(cache_dir=model_cache))
        embedder.close()
        embedder.close()
        with pytest.raises(RuntimeError, match="is closed"):
            embedder.embed("ship")


def test_arguments_come_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, model_cache: Path, tmp_path: Path
):
    """As options do at the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIMSOLL_CACHE_DIR", str(model_cache))
    monkeypatch.setenv("PLIMSOLL_MODEL", "/nowhere.gguf")
    with Embedder("builtin", threads=1) as embedder:
        assert embedder.traits.name == "all-MiniLM-L6-v2"


def test_a_setting_that_has_no_effect_any_more_is_told(
    monkeypatch: pytest.MonkeyPatch, model_cache: Path, tmp_path: Path
):
    """The next release refuses it, and a program that no one has changed would stop then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIMSOLL_CACHE_DIR", str(model_cache))
    monkeypatch.setenv("PLIMSOLL_EXACT", "true")
    with pytest.warns(FutureWarning, match="PLIMSOLL_EXACT has no effect any more"):
        Embedder("builtin").close()


def test_an_alias_of_the_settings_is_a_model(
    monkeypatch: pytest.MonkeyPatch, model_cache: Path, tmp_path: Path
):
    """A program with a fixed name in it runs in process as it runs against the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIMSOLL_CACHE_DIR", str(model_cache))
    monkeypatch.setenv("PLIMSOLL_MODEL_ALIASES", "text-embedding-3-small=builtin, other=nowhere")
    with Embedder("Text-Embedding-3-Small") as embedder:
        assert embedder.traits.name == "all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("given", "told"),
    [({"threads": -1}, r"threads \(argument\): -1"), ({"memory_budget": "lots"}, "argument")],
)
def test_a_wrong_argument_is_called_one(given: dict, told: str):
    """A program has no command line that its writer could mend."""
    with pytest.raises(SettingsError, match=told) as refused:
        Embedder("builtin", **given)
    assert "command line" not in str(refused.value)


def test_a_program_that_forgets_to_close_it_ends(model_cache: Path, tmp_path: Path):
    """A thread that waits must not keep the process alive."""
    code = "from plimsoll import Embedder; print(Embedder().embed('ship').shape)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PLIMSOLL_CACHE_DIR=str(model_cache)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "(1, 384)\n"), done.stderr
