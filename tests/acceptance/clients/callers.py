"""Many callers of one kind at once, in the environment of the clients and not of Plimsoll.

Standard input is JSON: `kind`, `url`, `texts` of each caller's list, `n_callers`. Standard output
gets how many lists were `answered`, what the others ended in, and the seconds that queries of one
token took meanwhile.
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx

MODEL = "all-MiniLM-L6-v2"
QUERY_PAUSE_S = 0.5


def langchain_openai(url: str) -> Callable[[list[str]], int]:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model=MODEL, check_embedding_ctx_length=False
    )
    return lambda texts: len(embeddings.embed_documents(texts))


def litellm(url: str) -> Callable[[list[str]], int]:
    import litellm

    def embed(texts: list[str]) -> int:
        answer = litellm.embedding(
            model=f"openai/{MODEL}", input=texts, api_base=f"{url}/v1", api_key="none"
        )
        return len(answer.data)

    return embed


def llama_index(url: str) -> Callable[[list[str]], int]:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embedding = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{url}/v1", api_key="none")
    return lambda texts: len(embedding.get_text_embedding_batch(texts))


def haystack(url: str) -> Callable[[list[str]], int]:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder
    from haystack.utils import Secret

    embedder = OpenAIDocumentEmbedder(
        api_key=Secret.from_token("none"), api_base_url=f"{url}/v1", model=MODEL,
        batch_size=64, progress_bar=False, raise_on_failure=True,
    )  # fmt: skip
    embedder.warm_up()

    def embed(texts: list[str]) -> int:
        documents = embedder.run([Document(content=text) for text in texts])["documents"]
        return sum(document.embedding is not None for document in documents)

    return embed


KINDS = {each.__name__: each for each in (langchain_openai, litellm, llama_index, haystack)}


def main() -> None:
    """Call, all at once."""
    given = json.load(sys.stdin)
    n_callers, texts, url = given["n_callers"], given["texts"], given["url"]
    embed = [KINDS[given["kind"]](url) for _ in range(n_callers)]
    ends: Counter[str] = Counter()
    barrier = threading.Barrier(n_callers + 1)

    def call(number: int) -> None:
        barrier.wait()
        try:
            own = [f"{number} {text}" for text in texts]  # or a cache would answer
            ends["answered" if embed[number](own) == len(texts) else "in part"] += 1
        except Exception as error:
            ends[f"{type(error).__name__}: {error}"[:200]] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(n_callers)]
    for thread in threads:
        thread.start()
    barrier.wait()
    queries_s = []
    with httpx.Client(timeout=60) as client:
        while any(thread.is_alive() for thread in threads):
            start = time.monotonic()
            reply = client.post(f"{url}/v1/embeddings", json={"input": f"q{len(queries_s)}"})
            reply.raise_for_status()
            queries_s.append(time.monotonic() - start)
            time.sleep(QUERY_PAUSE_S)
    print("\n" + json.dumps({"ends": ends, "queries_s": queries_s}))


if __name__ == "__main__":
    main()
