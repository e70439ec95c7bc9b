"""Lists: cut to what a server takes, joined in order, and what is said of the rest."""

from base64 import b64encode
from typing import Any

import numpy as np
import orjson
import pytest

from plimsoll.client.asking import Answer, Ask
from plimsoll.client.embedding import LIST_BYTES, LIST_TEXTS, embed
from plimsoll.client.replies import Embeddings, SparseEmbeddings, TextError
from plimsoll.errors import InvalidRequestError, NoAnswerError, RefusedError
from tests.client.driven import Driven, answer, refusal

EMPTY = {"code": "empty_text", "message": "no tokens"}


def vector(text: str) -> np.ndarray:
    return np.float32([len(text), 1.5])


class Server:
    """Embeds as Plimsoll does: a vector tells its text's length, and "" has none."""

    def __init__(self, most_texts: int = 10_000, fingerprint: str = "v1:a") -> None:
        self.most_texts = most_texts
        self.fingerprint = fingerprint
        self.bodies: list[dict[str, Any]] = []
        self.refusals: dict[int, Answer] = {}  # by the number of the request, from 1
        self.words_from = 10_000  # the request from which on there is no memory

    def __call__(self, asked: Ask) -> Answer:
        body = orjson.loads(asked.content)
        self.bodies.append(body)
        number, texts = len(self.bodies), body["input"]
        if number in self.refusals:
            return self.refusals[number]
        if len(texts) > self.most_texts or "huge" in texts:
            return refusal(413, "too_large_for_budget")
        if body.get("encoder") == "bm25":
            return answer(words(texts, None))
        if number >= self.words_from:
            return answer(words(texts, {"reason": "memory_pressure", "retry_after_s": 3.0}))
        rows = [b64encode(vector(text)).decode() if text else None for text in texts]
        content = {
            "kind": "dense", "model": "m", "fingerprint": self.fingerprint, "compute": "float32",
            "dimensions": 2, "embeddings": rows, "usage": {"tokens": len(texts)},
            "truncated": [{"index": i, "tokens": 9, "kept": 8} for i, t in enumerate(texts)
                          if t == "cut"],
            "errors": [{"index": i, **EMPTY} for i, t in enumerate(texts) if not t],
            "warnings": ["no rule for input_type"], "degraded": None, "later": "field",
        }  # fmt: skip
        return answer(content)


def words(texts: list[str], degraded: object) -> dict[str, Any]:
    sparse = [{"indices": [len(text)], "values": [1.0]} for text in texts]
    return {"kind": "sparse", "fingerprint": "bm25:a", "sparse": sparse, "degraded": degraded}


def found(
    server: Server, texts: str | list[str], fallback: Any = "none", **options: Any
) -> Embeddings | SparseEmbeddings:
    driven = Driven(server)
    return driven.run(embed(texts, options, fallback, {}, driven.patience(60)))


def test_a_long_list_is_sent_in_several_and_joined_in_order():
    """The vectors are zipped with what was given; places count from the whole list's start."""
    texts = ["x" * (n % 50 + 1) for n in range(2 * LIST_TEXTS + 10)]
    texts[300], texts[301], texts[500] = "", "cut", ""
    server = Server()

    joined = found(server, texts)

    assert [len(body["input"]) for body in server.bodies] == [LIST_TEXTS, LIST_TEXTS, 10]
    assert isinstance(joined, Embeddings)
    assert joined.vectors.dtype == np.float32
    whole = [index for index, text in enumerate(texts) if text]
    np.testing.assert_array_equal(joined.vectors[whole], [vector(texts[i]) for i in whole])
    assert np.isnan(joined.vectors[[300, 500]]).all()
    assert joined.errors == tuple(TextError(index, **EMPTY) for index in (300, 500))
    assert [(cut.index, cut.tokens, cut.kept) for cut in joined.truncated] == [(301, 9, 8)]
    assert (joined.n_tokens, len(joined)) == (len(texts), len(texts))
    assert joined.warnings == ("no rule for input_type",)
    with pytest.raises(RefusedError, match="text 300: no tokens") as refused:
        joined.complete()
    assert refused.value.code == "empty_text"


def test_a_request_stays_below_the_least_body_limit():
    """By the bytes of its JSON, in which a text may be six times as long."""
    texts = ["\x01" * (LIST_BYTES // 20)] * 12
    server = Server()

    found(server, texts)

    sizes = [len(orjson.dumps(body)) for body in server.bodies]
    assert max(sizes) < 1 << 20
    assert [len(body["input"]) for body in server.bodies] == [3, 3, 3, 3]


def test_a_list_that_is_too_large_is_halved_until_it_fits():
    """What a budget has room for is known to the server alone."""
    texts = [f"{n}" for n in range(100)]
    server = Server(most_texts=30)

    joined = found(server, texts)

    assert [len(body["input"]) for body in server.bodies] == [100, 50, 25, 25, 25, 25]
    np.testing.assert_array_equal(joined.vectors, [vector(text) for text in texts])


def test_a_text_that_is_too_large_alone_fails_no_other():
    """It is told as every text without a vector is."""
    joined = found(Server(), ["a", "huge", "bb"])

    [error] = joined.errors
    assert (error.index, error.code) == (1, "too_large_for_budget")
    np.testing.assert_array_equal(joined.vectors[[0, 2]], [vector("a"), vector("bb")])


def test_where_nothing_fits_the_refusal_is_raised():
    with pytest.raises(RefusedError, match="too_large_for_budget"):
        found(Server(), "huge")


@pytest.mark.parametrize("stop", ["refused", "lost"])
def test_what_was_answered_before_a_failure_is_kept(stop: str):
    """A caller goes on with the rest of the texts, and not with all of them."""
    texts = ["x"] * LIST_TEXTS + ["yy"] * 3
    server = Server()
    server.refusals[2] = refusal(503, "model_unavailable")

    def reply(asked: Ask) -> Answer:
        if stop == "lost" and server.bodies:
            raise NoAnswerError("gone")
        return server(asked)

    driven = Driven(reply)
    with pytest.raises((RefusedError, NoAnswerError)) as failed:
        driven.run(embed(texts, {}, "none", {}, driven.patience(1)))

    answered = failed.value.answered
    assert len(answered) == LIST_TEXTS
    np.testing.assert_array_equal(answered.complete(), [vector("x")] * LIST_TEXTS)


def test_a_failure_before_the_first_answer_has_nothing():
    server = Server()
    server.refusals[1] = refusal(404, "model_not_found")
    with pytest.raises(RefusedError) as refused:
        found(server, ["x"])
    assert refused.value.answered is None


def test_a_model_that_changes_between_two_requests_is_told():
    """Rows of two spaces in one array could not be told apart."""
    server = Server()

    def reply(asked: Ask) -> Answer:
        sent = server(asked)
        server.fingerprint = "v1:b"
        return sent

    driven = Driven(reply)
    with pytest.raises(RefusedError, match="from v1:a to v1:b") as refused:
        driven.run(embed(["x"] * 300, {}, "none", {}, driven.patience(60)))
    assert refused.value.code == "space_mismatch"
    assert len(refused.value.answered) == LIST_TEXTS


@pytest.mark.parametrize("n_texts", [2, LIST_TEXTS + 2])
def test_words_are_never_mixed_with_vectors(n_texts: int):
    """A reply has one kind: where memory runs short on the way, all are asked for by words."""
    server = Server()
    server.words_from = 2 if n_texts > LIST_TEXTS else 1
    texts = ["x" * (n + 1) for n in range(n_texts)]

    sparse = found(server, texts, "bm25", input_type="search_query")

    assert isinstance(sparse, SparseEmbeddings)
    assert [row.indices for row in sparse.vectors] == [(len(text),) for text in texts]
    assert (sparse.degraded.reason, sparse.degraded.retry_after_s) == ("memory_pressure", 3.0)
    assert all(body["input_type"] == "search_query" for body in server.bodies)


def test_words_are_asked_for_in_lists_that_the_server_takes():
    """Its limit is known from the vectors; a refusal of words says nothing of them."""
    server = Server(most_texts=100)
    server.words_from = 3

    sparse = found(server, ["x"] * 300, "bm25")

    assert isinstance(sparse, SparseEmbeddings)
    assert len(sparse.vectors) == 300
    assert [len(body["input"]) for body in server.bodies] == [256, 128, *[64] * 5, 44]


def test_options_that_are_not_given_are_not_sent():
    """The server has its defaults; a null for each would be one more thing that may change."""
    server = Server()
    found(server, "x", dimensions=64, model=None)
    assert server.bodies == [
        {"input": ["x"], "encoding_format": "base64", "fallback": "none", "dimensions": 64}
    ]


@pytest.mark.parametrize(("text", "told"), [("\ud800", "text 1"), (3, "text 1 is no string")])
def test_a_text_that_is_none_is_told_before_anything_is_sent(text: Any, told: str):
    server = Server()
    with pytest.raises(InvalidRequestError, match=told):
        found(server, ["x", text])
    assert server.bodies == []


@pytest.mark.parametrize("content", [{"data": []}, {"kind": "dense", "degraded": None}, [], None])
def test_an_answer_of_another_program_is_none(content: object):
    """With plain words, and no KeyError of ours."""
    driven = Driven(lambda asked: answer(content))
    with pytest.raises(NoAnswerError, match="no Plimsoll"):
        driven.run(embed("x", {}, "none", {}, driven.patience(60)))


def test_an_answer_with_too_few_vectors_is_none():
    """It would be asked for again without end."""
    server = Server()

    def reply(asked: Ask) -> Answer:
        content = orjson.loads(server(asked).content)
        return answer(content | {"embeddings": content["embeddings"][:-1]})

    driven = Driven(reply)
    with pytest.raises(NoAnswerError, match="no Plimsoll"):
        driven.run(embed(["x", "y"], {}, "none", {}, driven.patience(60)))
