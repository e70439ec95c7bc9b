"""Points of Qdrant as rows of a link, and back: ids, texts, vectors, payload, and pages of them.

A point has an id, a payload and vectors by name. The vector that the link names is *ours*; a
collection may have others, dense, sparse or of several rows, which are carried along as they are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
from pydantic import BaseModel
from qdrant_client import QdrantClient, models

from plimsoll.links.outside import MOST_TEXT_BYTES, PAGE_ROWS
from plimsoll.links.qdrant.catalog import UNNAMED

PointId: TypeAlias = int | str
Digest: TypeAlias = bytes

MOST_REQUEST_BYTES = 8 << 20
"""Of points that go out together; a server takes 32 MiB by default."""

VALUE_BYTES = 12  # of a vector, as JSON


def id_of(written: str) -> PointId:
    """A point's id from that of its document."""
    return int(written) if written.isdecimal() else written


def key_of(record: models.Record) -> PointId:
    """A point's id as a whole number, or as text."""
    return record.id if isinstance(record.id, int) else str(record.id)


def text_of(record: models.Record, key: str) -> str | None:
    """A point's text; None where there is none, or more than a document may have."""
    text = (record.payload or {}).get(key)
    if not isinstance(text, str) or len(text.encode()) > MOST_TEXT_BYTES:
        return None
    return text


def vector_of(record: models.Record, name: str, dimensions: int) -> np.ndarray | None:
    """Our vector, float32 (dimensions,); None where the point has none of this size."""
    found = record.vector.get(name) if isinstance(record.vector, dict) else record.vector
    if not isinstance(found, list) or len(found) != dimensions:
        return None
    return np.asarray(found, np.float32)


def asking_for(name: str, others: Sequence[str]) -> bool | list[str]:
    """What to ask for to get our vector. others: names of the collection's further vectors."""
    return True if name == UNNAMED and not others else [name]


def with_vector(record: models.Record, name: str, ours: np.ndarray | None) -> models.PointStruct:
    """A point with a record's payload and other vectors, and this for our vector, if any."""
    vectors = _others(record, name)
    if ours is not None:
        vectors[name] = ours.tolist()
    is_plain = vectors.keys() == {UNNAMED}
    return models.PointStruct(
        id=record.id,
        payload=record.payload or {},
        vector=vectors[UNNAMED] if is_plain else vectors,
    )


def digest_of(record: models.Record, name: str) -> Digest:
    """Tells whether payload and other vectors are the same."""
    content = [record.payload or {}, _others(record, name)]
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    written = orjson.dumps(content, default=_plain, option=options)
    return hashlib.blake2b(written, digest_size=16).digest()


def pages(
    client: QdrantClient, collection: str, *, payload: bool | list[str], vectors: bool | list[str]
) -> Iterator[list[models.Record]]:
    """All points of a collection, PAGE_ROWS at a time."""
    offset: Any = None
    while True:
        found, offset = client.scroll(
            collection, limit=PAGE_ROWS, offset=offset, with_payload=payload, with_vectors=vectors
        )
        if found:
            yield found
        if offset is None:
            return


def retrieve(
    client: QdrantClient,
    collection: str,
    ids: Iterable[PointId],
    *,
    payload: bool | list[str] = True,
    vectors: bool | list[str] = False,
) -> dict[PointId, models.Record]:
    """Points by their ids, of those that are there."""
    asked = list(ids)
    if not asked:
        return {}
    found = client.retrieve(collection, asked, with_payload=payload, with_vectors=vectors)
    return {key_of(record): record for record in found}


def upsert(client: QdrantClient, collection: str, points: Iterable[models.PointStruct]) -> None:
    """Store points in the place of what has their ids, in requests that a server takes."""
    for part in _parts(points):
        client.upsert(collection, part, wait=True)


def delete(client: QdrantClient, collection: str, ids: Sequence[PointId]) -> None:
    """Delete points."""
    if ids:
        selected = models.PointIdsList(points=list(ids))
        client.delete(collection, points_selector=selected, wait=True)


def _others(record: models.Record, name: str) -> dict[str, Any]:
    """All vectors of a point but ours."""
    found = record.vector if isinstance(record.vector, dict) else {}
    return {each: vector for each, vector in found.items() if each != name}


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    raise TypeError(type(value).__name__)


def _parts(points: Iterable[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
    part, n_bytes = list[models.PointStruct](), 0
    for point in points:
        size = len(orjson.dumps(point.payload, option=orjson.OPT_NON_STR_KEYS))
        size += VALUE_BYTES * _n_values(point.vector)
        if part and (n_bytes + size > MOST_REQUEST_BYTES or len(part) == PAGE_ROWS):
            yield part
            part, n_bytes = [], 0
        part.append(point)
        n_bytes += size
    if part:
        yield part


def _n_values(vector: Any) -> int:
    if isinstance(vector, dict):
        return sum(map(_n_values, vector.values()))
    if isinstance(vector, models.SparseVector):
        return 2 * len(vector.values)
    if isinstance(vector, list):
        return (
            sum(map(_n_values, vector)) if vector and isinstance(vector[0], list) else len(vector)
        )
    return 0
