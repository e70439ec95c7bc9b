"""Points of ships in Qdrant with vectors from elsewhere, and a server that is linked to them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from tests.links.linked import DEADLINE_S, embedded, old_vector
from tests.migration.models import CHECK_S, NEW, Inside, inside, settings_of, texts

VARIABLE, KEY_VARIABLE = "SHIPS_QDRANT_URL", "SHIPS_QDRANT_KEY"
KEY = "a-key-of-this-test"
ALIAS, OLD_COLLECTION = "ships", "ships_v1"
OLD_SIZE = 8
TOML = f"""[links.ships]
kind = "qdrant"
url_env = "{VARIABLE}"
api_key_env = "{KEY_VARIABLE}"
alias = "{ALIAS}"
read_again_s = 1
"""
FOREIGN = f'space = "ada"\ndimensions = {OLD_SIZE}\n'


def make_ships(client: QdrantClient, n: int, size: int = OLD_SIZE) -> None:
    """A collection of ships with an alias; vectors are of length 1, as that of a cosine makes them.

    size: of the vectors; of another one than the usual there are none.
    """
    client.create_collection(
        OLD_COLLECTION,
        vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE),
        hnsw_config=models.HnswConfigDiff(m=24),
        on_disk_payload=True,
    )
    client.create_payload_index(
        OLD_COLLECTION, "year", field_schema=models.IntegerIndexParams(type="integer", lookup=False)
    )
    point_to(client, OLD_COLLECTION)
    for start in range(0, n, 100):
        numbers = range(start, min(n, start + 100))
        client.upsert(
            ALIAS,
            [
                point(number, text, old_vector(number) if size == OLD_SIZE else None)
                for number, text in zip(numbers, texts(n)[start : start + 100], strict=True)
            ],
        )


def point(number: int | str, text: str | None, vector: np.ndarray | None) -> models.PointStruct:
    """A ship; its payload has a year beside the text."""
    payload: dict[str, Any] = {"year": 1870}
    if text is not None:
        payload["text"] = text
    return models.PointStruct(
        id=number, payload=payload, vector={} if vector is None else vector.tolist()
    )


def point_to(client: QdrantClient, collection: str, alias: str = ALIAS) -> None:
    """Let an alias lead to a collection."""
    create = models.CreateAlias(collection_name=collection, alias_name=alias)
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])


def write_text(client: QdrantClient, number: int, text: str) -> None:
    """Change a text as an application does that leaves vectors to Plimsoll."""
    client.set_payload(ALIAS, payload={"text": text}, points=[number])


def led_to(client: QdrantClient) -> str:
    """The collection that the alias leads to."""
    found = {each.alias_name: each.collection_name for each in client.get_aliases().aliases}
    return found[ALIAS]


def beside(client: QdrantClient) -> list[str]:
    """The other collections."""
    names = {each.name for each in client.get_collections().collections}
    return sorted(names - {led_to(client)})


def content(client: QdrantClient, collection: str = ALIAS) -> dict[str, tuple[Any, Any]]:
    """Payloads and vectors of a collection, by id; None for a point without a vector."""
    found, _ = client.scroll(collection, limit=10_000, with_payload=True, with_vectors=True)
    return {str(each.id): (each.payload, each.vector or None) for each in found}


async def is_embedded(
    server: Inside, client: QdrantClient, collection: str = ALIAS, model: str = NEW
) -> None:
    """Each point with a text has the vector that a plain computation gives, to the last bits."""
    rows = [row for row in content(client, collection).values() if "text" in row[0]]
    expected = await embedded(server, [payload["text"] for payload, _ in rows], model)
    assert all(vector is not None for _, vector in rows)
    np.testing.assert_allclose([vector for _, vector in rows], expected, rtol=0, atol=1e-6)


async def until_embedded(server: Inside, client: QdrantClient) -> None:
    """Wait until what applications wrote has been read again, embedded and brought out."""
    deadline = monotonic() + DEADLINE_S
    while True:
        try:
            return await is_embedded(server, client)
        except AssertionError:
            assert monotonic() < deadline
            await asyncio.sleep(10 * CHECK_S)


def is_read(server: Inside, *texts: str) -> bool:
    """Whether the collection has documents of these texts."""
    with server.corpora.database.reading() as connection:
        there = {text for (text,) in connection.execute("SELECT text FROM documents_1")}
    return {*texts} <= there


def are_old(client: QdrantClient, numbers: Sequence[int], collection: str = ALIAS) -> None:
    """These points have the vectors that they came with."""
    rows = content(client, collection)
    for number in numbers:
        vector = old_vector(number)
        np.testing.assert_allclose(
            rows[str(number)][1], vector / np.linalg.norm(vector), rtol=0, atol=1e-6
        )


@asynccontextmanager
async def linked(folder: Path, space: str = FOREIGN) -> AsyncIterator[Inside]:
    """A server with the link."""
    file = folder / "links.toml"
    file.write_text(TOML + space)
    async with inside(settings_of(folder).model_copy(update={"links": file})) as server:
        yield server
