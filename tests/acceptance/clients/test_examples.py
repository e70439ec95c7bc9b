"""Clients as their registries have them, against a server in a process of its own.

What is tried is the code of docs/clients.md, so that what a reader copies is what works.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.acceptance.clients.examples import Example, examples, run
from tests.running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.acceptance

TEXTS = [
    "hello world",
    "Wie tief darf ein Schiff beladen werden? Straße, naïve, Ελλάδα, 船",
    "a \"quoted\" line, with 'marks' & <tags> — and an emoji 🚢",
    "a load line " * 30,
]
# A route of each dialect that examples speak, by the path behind the server's address.
ROUTES = {"/v1": "/v1/embeddings", "/tei": "/tei/embed", "/tei/embed": "/tei/embed"}
OF_NO_PATH = {"ollama": "/api/embed", "cohere": "/v2/embed", "plimsoll": "/embed"}


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("clients")
    with RunningServer(folder, "--cache-dir", str(model_cache)) as server:
        yield server


@pytest.fixture(scope="module")
def native(server: RunningServer) -> np.ndarray:
    """The vectors of /embed, float32 (texts, dimensions)."""
    reply = httpx.post(f"{server.url}/embed", json={"input": TEXTS}, timeout=DEADLINE_S)
    return np.float32(reply.json()["embeddings"])


def routes_of(example: Example) -> set[str]:
    """The routes that an example is known to need."""
    of_no_path = {route for name, route in OF_NO_PATH.items() if name in example.code.lower()}
    paths = example.paths()
    return {ROUTES[path] for path in paths if path} | (of_no_path if "" in paths else set())


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_a_client_gets_the_vectors_of_embed(
    example: Example, server: RunningServer, native: np.ndarray
):
    """Unmodified, with default settings but for the address."""
    served = httpx.get(f"{server.url}/openapi.json", timeout=DEADLINE_S).json()["paths"]
    assert routes_of(example) <= served.keys()

    found = run(example.code, example.language, server.url, TEXTS)

    assert "error" not in found
    vectors = np.float32(found["vectors"])
    assert vectors.shape == native.shape
    if "texts[1:]" in example.code:  # documents first, then the query
        vectors = np.roll(vectors, 1, axis=0)
    np.testing.assert_allclose(vectors, native, rtol=0, atol=1e-6)


# It looks for its encoding on the web; litellm brings the same file, by the name that it looks for.
WITH_TOKEN_IDS = """
import os, pathlib, importlib.util
litellm = pathlib.Path(importlib.util.find_spec("litellm").origin).parent
os.environ["TIKTOKEN_CACHE_DIR"] = str(litellm / "litellm_core_utils" / "tokenizers")
from langchain_openai import OpenAIEmbeddings
embeddings = OpenAIEmbeddings(
    base_url="http://127.0.0.1:8080/v1", api_key="none", model="all-MiniLM-L6-v2"
)
vectors = embeddings.embed_documents(texts)
"""


def test_token_ids_that_langchain_sends_by_default_are_refused(server: RunningServer):
    """They are another tokenizer's: vectors of them would be noise that no one notices."""
    found = run(WITH_TOKEN_IDS, "python", server.url, TEXTS)

    assert found["error"].startswith("openai.BadRequestError")
    assert "check_embedding_ctx_length=False" in found["error"]
