"""Look at an alias that is to be linked, and change nothing."""

from collections.abc import Iterator
from contextlib import suppress

from qdrant_client import QdrantClient, models

from plimsoll.errors import OutsideMismatchError
from plimsoll.links.qdrant import catalog
from plimsoll.links.qdrant.catalog import Place, StoredCollection
from plimsoll.links.qdrant.points import asking_for, pages, text_of, vector_of
from plimsoll.links.records import Finding, Survey


def survey(
    client: QdrantClient, place: Place, n_changes: int, *, sends_key_in_the_clear: bool
) -> Survey:
    """Read every point, its vector and its text. n_changes: known and not taken in yet."""
    try:
        active = catalog.look(client, place)
        dimensions = active.vector(place).size
    except OutsideMismatchError as error:
        return Survey(place.words, 0, 0, 0, None, None, 0, [Finding(str(error), blocks=True)])
    n_rows = n_without_text = n_without_vector = 0
    asked = asking_for(place.vector, active.other_vectors(place.vector))
    for page in pages(client, active.name, payload=[place.text], vectors=asked):
        n_rows += len(page)
        n_without_text += sum(text_of(record, place.text) is None for record in page)
        n_without_vector += sum(
            vector_of(record, place.vector, dimensions) is None for record in page
        )
    return Survey(
        where=f"the collection {active.name}, to which {place.words} leads",
        n_rows=n_rows,
        n_without_text=n_without_text,
        n_without_vector=n_without_vector,
        dimensions=dimensions,
        active=active.fingerprint,
        n_changes=n_changes,
        findings=[*findings(client, place, active, sends_key_in_the_clear)],
    )


def check(client: QdrantClient, place: Place, active: StoredCollection) -> None:
    """Raise OutsideMismatchError where a collection cannot be linked."""
    blocking = [each.message for each in findings(client, place, active) if each.blocks]
    if blocking:
        raise OutsideMismatchError(f"{place.words}: {'; '.join(blocking)}")


def findings(
    client: QdrantClient,
    place: Place,
    active: StoredCollection,
    sends_key_in_the_clear: bool = False,
) -> Iterator[Finding]:
    """What to know of a collection before it is linked."""
    yield from map(_blocking, _of_collection(client, place, active))
    others = catalog.other_aliases(client, place, active.name)
    if others:
        yield Finding(
            f"the alias {', '.join(others)} leads to the collection {active.name} too, goes on to "
            "the old vectors after a cut-over, and keeps a purge from deleting them"
        )
    if sends_key_in_the_clear:
        yield Finding(
            f"the address in {place.variable} begins with http://, so that the key goes over the "
            "network as it is: write https://, or keep both on one machine"
        )


def _of_collection(client: QdrantClient, place: Place, active: StoredCollection) -> Iterator[str]:
    ours = active.vector(place)
    if ours.multivector_config is not None:
        yield "the vector has several rows a point, and models here give one"
    if ours.datatype is models.Datatype.UINT8:
        yield (
            "vectors are stored as uint8, which leaves nothing of values between -1 and 1: make "
            "the collection anew with float32 or float16"
        )
    if active.info.config.params.sharding_method is models.ShardingMethod.CUSTOM:
        yield "points are in shards by keys of your own, which are not carried into another one"
    if _is_too_old(client.info().version):
        yield catalog.too_old(place)


def _is_too_old(version: str) -> bool:
    """Whether a server keeps no metadata. One whose version cannot be read is tried."""
    with suppress(ValueError):
        least = [int(part) for part in catalog.LEAST_VERSION.split(".")]
        return [int(part) for part in version.split(".")[:2]] < least
    return False


def _blocking(message: str) -> Finding:
    return Finding(message, blocks=True)
