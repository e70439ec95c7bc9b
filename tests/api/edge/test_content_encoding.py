"""Compressed bodies: decoded step by step, refused in words, never larger than the limits allow."""

import gzip
import json
import random
import zlib
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from plimsoll.api.edge.content_encoding import MOST_MEMBERS, STEP_BYTES, BodyDecoder
from plimsoll.errors import InvalidRequestError
from tests.api.edge.bodies import KIB, MIB, Bodies, Client, body_of, serving
from tests.fakes import FakeServer

BODY = json.dumps({"input": "a ship"}).encode()


def raw_deflate(data: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-15)
    return compress.compress(data) + compress.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP, identity": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    "": bytes,
}


def decoded(coding: str, data: bytes, piece_bytes: int) -> bytes:
    decoder, whole = BodyDecoder(coding), b""
    for start in range(0, len(data), piece_bytes):
        decoder.feed(data[start : start + piece_bytes])
        while piece := decoder.take():
            assert len(piece) <= STEP_BYTES
            whole += piece
    decoder.finish()
    return whole


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_body_is_answered_as_the_plain_one(
    fake: tuple[FakeServer, TestClient], coding: str
):
    """Clients compress long lists of texts; it is the same request."""
    _, client = fake
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = client.post("/embed", content=CODINGS[coding](BODY), headers=headers)

    assert answer.status_code == 200
    assert answer.json() == client.post("/embed", content=BODY, headers=headers | {
        "Content-Encoding": "identity"
    }).json()  # fmt: skip


def test_deflate_without_its_header_is_read_too(fake: tuple[FakeServer, TestClient]):
    """Some clients take the name at its word."""
    _, client = fake
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    answer = client.post("/embed", content=raw_deflate(BODY), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("piece_bytes", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("n_bytes", [0, 1, STEP_BYTES - 1, STEP_BYTES, 3 * STEP_BYTES + 5])
@pytest.mark.parametrize("of", ["gzip", "zlib", "raw", "zeros", "two files"])
def test_what_went_in_comes_out_however_it_is_cut(of: str, n_bytes: int, piece_bytes: int):
    """Packets end anywhere, and a step may end where the encoded bytes do."""
    data = bytes(n_bytes) if of == "zeros" else random.Random(n_bytes).randbytes(n_bytes)
    coding, encoded = {
        "gzip": ("gzip", gzip.compress(data)),
        "zlib": ("deflate", zlib.compress(data)),
        "raw": ("deflate", raw_deflate(data)),
        "zeros": ("deflate", raw_deflate(data)),
        "two files": ("gzip", gzip.compress(data[:100]) + gzip.compress(data[100:])),
    }[of]

    assert decoded(coding, encoded, piece_bytes) == data


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "nonsense"])
def test_another_encoding_is_refused_with_those_there_are(
    fake: tuple[FakeServer, TestClient], coding: str
):
    """It was told that its JSON is not valid, which says nothing of what to change."""
    _, client = fake
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = client.post("/embed", content=BODY, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert coding in answer.json()["error"]["message"]
    assert answer.headers["accept-encoding"] == "gzip, deflate, identity"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(BODY)[:-9], "ends in its middle"),
        (BODY, "not the gzip"),
        (gzip.compress(BODY)[:-5] + b"\x00" + gzip.compress(BODY)[-4:], "not the gzip"),
        (gzip.compress(BODY) + b"more", "not the gzip"),
    ],
    ids=["cut off", "not compressed", "damaged", "followed"],
)
def test_a_body_that_is_not_what_it_says_is_refused_in_words(
    fake: tuple[FakeServer, TestClient], content: bytes, told: str
):
    """The fault is in the encoding, and not in the JSON below it."""
    _, client = fake
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = client.post("/embed", content=content, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert told in answer.json()["error"]["message"]


def test_members_without_end_are_refused():
    """Empty files in a row cost time and bring nothing that a limit would count."""
    with pytest.raises(InvalidRequestError, match="follow the end"):
        decoded("gzip", gzip.compress(b"") * (MOST_MEMBERS + 1), 4096)


def test_a_small_body_that_grows_is_stopped_at_the_limit_and_holds_no_more():
    """A few kilobytes may become gigabytes: the limit counts what they become, as they do."""
    bodies = Bodies()
    bomb = gzip.compress(bytes(256 * MIB))
    assert len(bomb) < 300 * KIB
    with serving(bodies) as server:
        client = Client(bomb, headers={"content-encoding": "gzip"})
        client.call(server)

    assert client.status == 413
    assert client.error["code"] == "body_too_large"
    assert max(bodies.asked) <= 8 * MIB
    assert bodies.held_bytes == 0


def test_a_body_that_becomes_nothing_is_stopped_at_the_limit_too():
    """Empty blocks without end decode to no byte; what came in counts as well."""
    bodies = Bodies()
    endless = gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * (4 * MIB)
    with serving(bodies) as server:
        client = Client(endless, headers={"content-encoding": "gzip"}, declares=False)
        client.call(server)

    assert client.status == 413
    assert client.error["code"] == "body_too_large"
    assert bodies.held_bytes == 0


def test_a_body_reserves_what_it_becomes():
    """Its compressed length says nothing of the memory that it takes."""
    bodies = Bodies()
    with serving(bodies) as server:
        client = Client(gzip.compress(body_of(2 * MIB)), headers={"content-encoding": "gzip"})
        client.call(server)

    assert client.status == 200
    assert max(bodies.asked) >= 2 * MIB
    assert bodies.held_bytes == 0
