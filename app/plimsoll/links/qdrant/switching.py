"""Collections beside the one that an alias leads to: made, indexed, switched to and dropped.

Each step looks first, and does what is left to do.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from pydantic import BaseModel
from qdrant_client import QdrantClient, models

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.qdrant import catalog
from plimsoll.links.qdrant.catalog import UNNAMED, Place, StoredCollection

T = TypeVar("T", bound=BaseModel)

MOST_INDEXING_S = 600.0
INDEXING_LOOK_S = 0.5
MOST_GREY_S = 5.0
INDEXING_RETRY_S = 10.0


def make(client: QdrantClient, place: Place, active: StoredCollection, space: Space) -> None:
    """Have a collection for a space, with the settings and payload indexes of the active one.

    Raises OutsideMismatchError where another collection has its name.
    """
    there = catalog.of_space(client, place, active, space.fingerprint)
    if there is None:
        name = place.collection_of(space)
        if catalog.find(client, name) is not None:
            raise OutsideMismatchError(
                f"{place.variable} has a collection {name!r} already, where Plimsoll puts vectors, "
                "and nothing notes whose it is: delete it if you need it no more"
            )
        _create(client, name, place, active, space)
        there = catalog.find(client, name)
        if there is None or there.fingerprint != space.fingerprint:
            client.delete_collection(name)
            raise OutsideMismatchError(catalog.too_old(place))
    for field, index in active.info.payload_schema.items():
        if field not in there.info.payload_schema:
            schema = index.params if index.params is not None else index.data_type
            client.create_payload_index(there.name, field, field_schema=schema, wait=True)


def point_to(client: QdrantClient, place: Place, name: str) -> None:
    """Let the alias lead to a collection, in one step of the server."""
    client.update_collection_aliases(
        [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=place.alias)),
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=name, alias_name=place.alias)
            ),
        ]
    )


def existing(
    client: QdrantClient, place: Place, active: StoredCollection, space: Space
) -> StoredCollection:
    """The collection of a space. Raises OutsideMismatchError where there is none."""
    found = catalog.of_space(client, place, active, space.fingerprint)
    if found is None:
        raise OutsideMismatchError(
            f"{place.words} has no collection with vectors of {space.fingerprint!r} beside it, as "
            "the notes of the collections say"
        )
    return found


def drop_all_but(
    client: QdrantClient, place: Place, active: StoredCollection, kept: Collection[str]
) -> Sequence[str]:
    """Delete collections of other spaces that the alias does not lead to.

    One that another alias leads to is asked by others, and stays.
    """
    done = []
    for each in catalog.beside(client, place, active):
        if each.fingerprint in kept or each.fingerprint == active.fingerprint:
            continue
        others = catalog.other_aliases(client, place, each.name)
        if others:
            done.append(f"{each.name} stays: the alias {', '.join(others)} leads to it")
        else:
            client.delete_collection(each.name)
            done.append(f"the collection {each.name} of {place.variable} is deleted")
    return done


def wait_until_indexed(
    client: QdrantClient, name: str, pause: Callable[[float], None], clock: Callable[[], float]
) -> None:
    """Return once the server has no more to do for a collection.

    Grey says that there is something to do which has not begun. A server that has just been written
    to begins with it within moments; one that was started again waits for the next write.
    Raises OutsideUnavailableError where that takes longer than MOST_INDEXING_S, and
    OutsideMismatchError where it cannot be done.
    """
    began_s = grey_since_s = clock()
    while True:
        info = client.get_collection(name)
        if info.status is models.CollectionStatus.RED:
            raise OutsideMismatchError(
                f"the collection {name!r} cannot be indexed: {info.optimizer_status}"
            )
        now_s = clock()
        if info.status is models.CollectionStatus.YELLOW:
            grey_since_s = now_s
        elif info.status is models.CollectionStatus.GREEN or now_s - grey_since_s > MOST_GREY_S:
            return
        if now_s - began_s > MOST_INDEXING_S:
            raise OutsideUnavailableError(
                f"the collection {name!r} is still being indexed, {info.indexed_vectors_count} of "
                f"{info.points_count} so far",
                retry_after_s=INDEXING_RETRY_S,
            )
        pause(INDEXING_LOOK_S)


def _create(
    client: QdrantClient, name: str, place: Place, active: StoredCollection, space: Space
) -> None:
    config, params = active.info.config, active.info.config.params
    vectors = dict(active.vectors)
    vectors[place.vector] = active.vector(place).model_copy(update={"size": space.dimensions})
    plain = vectors.keys() == {UNNAMED}
    client.create_collection(
        name,
        vectors_config=vectors[UNNAMED] if plain else vectors,
        sparse_vectors_config=params.sparse_vectors,
        shard_number=params.shard_number,
        replication_factor=params.replication_factor,
        write_consistency_factor=params.write_consistency_factor,
        on_disk_payload=params.on_disk_payload,
        hnsw_config=_as(models.HnswConfigDiff, config.hnsw_config),
        optimizers_config=_as(models.OptimizersConfigDiff, config.optimizer_config),
        wal_config=_as(models.WalConfigDiff, config.wal_config),
        quantization_config=config.quantization_config,
        strict_mode_config=_as(models.StrictModeConfig, config.strict_mode_config),
        metadata={
            **(config.metadata or {}),
            **catalog.note_of(place, space.fingerprint, active.name),
        },
    )


def _as(kind: type[T], given: BaseModel | None) -> T | None:
    """Settings as they are given to a new collection, from what the server says of another."""
    if given is None:
        return None
    known = {
        name: value
        for name, value in given.model_dump(exclude_none=True).items()
        if name in kind.model_fields
    }
    return kind.model_validate(known)
