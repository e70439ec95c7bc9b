"""What Qdrant says of an alias and its collection, and of those that Plimsoll made beside it.

Which vectors a collection has stands in its own metadata, under `plimsoll`: it stays with the
collection whichever alias leads there, so that the state can be read off the server alone. Qdrant
keeps metadata of a collection from 1.16 on.
"""

import hashlib
from dataclasses import dataclass

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError

NOTE = "plimsoll"
LEAST_VERSION = "1.16"
UNNAMED = ""
MOST_ALIAS_CHARACTERS = 200
NOT_FOUND = 404


@dataclass(frozen=True)
class Place:
    """Names as the operator wrote them. vector: UNNAMED for the one without a name.

    text: key of the payload. variable: of the address.
    """

    alias: str
    text: str
    vector: str
    variable: str

    @property
    def words(self) -> str:
        """For people."""
        return f"the alias {self.alias} of {self.variable}"

    @property
    def prefix(self) -> str:
        """With which the names of the collections begin that are made here."""
        return f"{self.alias[:MOST_ALIAS_CHARACTERS]}-plimsoll-"

    def collection_of(self, space: Space) -> str:
        """The name of the collection that is made for a space."""
        return self.prefix + hashlib.blake2b(space.fingerprint.encode(), digest_size=4).hexdigest()


@dataclass(frozen=True)
class StoredCollection:
    """A collection as it is now. fingerprint, alias and beside: as its note says.

    fingerprint: of the space of its vectors. beside: the collection that it was made beside.
    """

    name: str
    info: models.CollectionInfo
    fingerprint: str | None
    alias: str | None
    beside: str | None

    @property
    def vectors(self) -> dict[str, models.VectorParams]:
        """Settings of its dense vectors, by name."""
        found = self.info.config.params.vectors
        if found is None:
            return {}
        return {UNNAMED: found} if isinstance(found, models.VectorParams) else dict(found)

    def other_vectors(self, vector: str) -> list[str]:
        """Names of all vectors but one, sparse ones too."""
        sparse = self.info.config.params.sparse_vectors or {}
        return [name for name in (*self.vectors, *sparse) if name != vector]

    def vector(self, place: Place) -> models.VectorParams:
        """Settings of the vector that the link names. Raises OutsideMismatchError."""
        found = self.vectors.get(place.vector)
        if found is None:
            named = ", ".join(sorted(filter(None, self.vectors))) or "none"
            wanted = "the one without a name" if place.vector == UNNAMED else repr(place.vector)
            raise OutsideMismatchError(
                f"the collection {self.name!r} has no vector {wanted}; with a name it has {named}: "
                f"write vector = … into the file of links"
            )
        return found


def look(client: QdrantClient, place: Place) -> StoredCollection:
    """The collection that the alias leads to. Raises OutsideMismatchError where there is none."""
    for each in client.get_aliases().aliases:
        if each.alias_name == place.alias:
            found = find(client, each.collection_name)
            if found is not None:
                return found
    if find(client, place.alias) is not None:
        raise OutsideMismatchError(
            f"{place.alias!r} of {place.variable} is a collection and no alias, and a collection "
            "cannot be exchanged while it is asked: make an alias that leads to it (POST "
            '/collections/aliases {"actions": [{"create_alias": {"collection_name": '
            f'"{place.alias}", "alias_name": "{place.alias}-live"}}}}]}}), let applications ask '
            f'for that, and write alias = "{place.alias}-live" into the file of links'
        )
    raise OutsideMismatchError(f"{place.variable} has no alias {place.alias!r}")


def find(client: QdrantClient, name: str) -> StoredCollection | None:
    """A collection, or the one that an alias of this name leads to; None where there is none."""
    try:
        info = client.get_collection(name)
    except UnexpectedResponse as error:
        if error.status_code == NOT_FOUND:
            return None
        raise
    note = (info.config.metadata or {}).get(NOTE)
    if not isinstance(note, dict):
        note = {}
    return StoredCollection(name, info, note.get("space"), note.get("alias"), note.get("beside"))


def beside(client: QdrantClient, place: Place, active: StoredCollection) -> list[StoredCollection]:
    """The other collections of this alias, as their notes say."""
    names = {each.name for each in client.get_collections().collections}
    asked = {name for name in names if name.startswith(place.prefix)}
    asked |= names & {active.beside}
    found = (find(client, name) for name in sorted(asked - {active.name}))
    return [each for each in found if each is not None and each.alias == place.alias]


def of_space(
    client: QdrantClient, place: Place, active: StoredCollection, fingerprint: str
) -> StoredCollection | None:
    """The collection of the alias that has vectors of a space."""
    if active.fingerprint == fingerprint:
        return active
    return next(
        (each for each in beside(client, place, active) if each.fingerprint == fingerprint), None
    )


def note(client: QdrantClient, place: Place, found: StoredCollection, fingerprint: str) -> None:
    """Note the space of a collection's vectors. Raises OutsideMismatchError where that is lost."""
    client.update_collection(found.name, metadata=note_of(place, fingerprint, found.beside))
    noted = find(client, found.name)
    if noted is None or noted.fingerprint != fingerprint:
        raise OutsideMismatchError(too_old(place))


def note_of(place: Place, fingerprint: str, beside: str | None) -> dict[str, dict[str, str]]:
    """The metadata that say whose vectors a collection has."""
    found = {"space": fingerprint, "alias": place.alias}
    return {NOTE: found if beside is None else {**found, "beside": beside}}


def too_old(place: Place) -> str:
    """That notes are not kept, and what to do."""
    return (
        f"the Qdrant server of {place.variable} keeps no metadata of a collection, in which "
        f"Plimsoll notes whose vectors it has: upgrade it to {LEAST_VERSION} or newer"
    )


def other_aliases(client: QdrantClient, place: Place, name: str) -> list[str]:
    """Other names that lead to a collection."""
    found = client.get_collection_aliases(name).aliases
    return sorted(each.alias_name for each in found if each.alias_name != place.alias)
