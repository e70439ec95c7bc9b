"""What a step of a link reads and writes in the file of collections.

Functions over a connection that is in a transaction, which the caller holds, and the name of the
link's collection.
"""

from collections.abc import Sequence
from sqlite3 import Connection

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.records import Collection, Version
from plimsoll.errors import LinkStateError
from plimsoll.links import state
from plimsoll.links.mirror import Mirrored, mirror
from plimsoll.links.outside import PAGE_BYTES, PAGE_ROWS
from plimsoll.links.records import OutgoingRow, OutsideRows
from plimsoll.links.state import LinkState


def linked(connection: Connection, name: str) -> tuple[Collection, LinkState]:
    """The collection, and how far its link is. Raises LinkStateError where it has none."""
    collection = versions.find(connection, name)
    now = state.get(connection, collection.id)
    if now is None:
        raise LinkStateError(f"{name!r} is linked to nothing", param="name")
    return collection, now


def versions_of(connection: Connection, name: str) -> list[Version]:
    """All that the collection has but bridged vectors, which never go out."""
    found = versions.of_collection(connection, versions.find(connection, name).id)
    return [version for version in found if not version.space.is_bridge]


def n_waiting(connection: Connection, name: str, fingerprint: str) -> int:
    """Vectors of a space that are still to be brought out."""
    return sum(
        state.count_waiting(connection, version.id)
        for version in versions_of(connection, name)
        if version.space.fingerprint == fingerprint
    )


def n_waiting_by_use(connection: Connection, name: str) -> tuple[int, int]:
    """Vectors to be brought out: of the version that searches read, and of the other."""
    active = versions.find(connection, name).active.id
    counts = {
        version.id: state.count_waiting(connection, version.id)
        for version in versions_of(connection, name)
    }
    n_read = counts.pop(active, 0)
    return n_read, sum(counts.values())


def begin_pull(connection: Connection, name: str) -> None:
    """Read every row once more."""
    state.begin_pull(connection, versions.find(connection, name).id)


def begin_anew(connection: Connection, name: str, active: str | None) -> None:
    """Another server followed: read every row once more, and bring out what others do not read.

    active: fingerprint of what they read, which is at home outside.
    """
    begin_pull(connection, name)
    for version in versions_of(connection, name):
        if version.space.fingerprint != active:
            state.put_all(connection, version.id)


def note_position(connection: Connection, name: str, position: str, n_rows: int) -> None:
    """So far everything has been taken in."""
    state.note_position(connection, versions.find(connection, name).id, position, n_rows)


def delete_unseen(connection: Connection, name: str, most: int) -> int:
    """Delete some of the documents that a pass has not found; without any it is over."""
    collection = versions.find(connection, name)
    gone = state.unseen(connection, collection.id, most)
    documents.delete(connection, collection.id, gone)
    if len(gone) < most:
        state.end_pull(connection, collection.id)
    return len(gone)


def mirror_page(
    connection: Connection, name: str, page: OutsideRows, asked: Sequence[str]
) -> Mirrored:
    """Make documents like a page of rows; what else was asked for is gone."""
    collection, now = linked(connection, name)
    active = next(
        (each for each in versions_of(connection, name) if each.space.fingerprint == page.active),
        None,
    )
    done = mirror(connection, collection, active, page.rows, asked, page.rounding)
    if now.is_pulling:  # also what changes while a pass is under way is there
        state.note_seen(connection, collection.id, done.rows)
    return done


def watch(connection: Connection, name: str, version: int, *, with_all: bool) -> None:
    """Let a version's vectors go to the outbox, if they do not; with_all: those there are too."""
    if not state.is_watched(connection, version):
        state.watch(connection, version, with_all=with_all)


def put_again(connection: Connection, name: str, version: int) -> None:
    """The place of a version is to be made anew: bring out all that had been brought there."""
    if state.is_watched(connection, version):
        state.put_all(connection, version)


def unwatch(connection: Connection, name: str) -> None:
    """Let no vector go there any more."""
    for version in versions_of(connection, name):
        state.unwatch(connection, version.id)


def outgoing(
    connection: Connection, name: str, version: Version
) -> tuple[list[tuple[int, int]], dict[int, OutgoingRow]]:
    """Places of the outbox, and by row what goes out: of a row without a vector by now nothing."""
    collection = version.collection_id
    places = state.waiting(connection, collection, version.id, PAGE_ROWS, PAGE_BYTES)
    rows = [row for _, row in places]
    there = vectors.get(connection, version.id, rows)
    return places, {
        document.row: OutgoingRow(
            document.id, document.text, document.text_sha256, there[document.row]
        )
        for document in documents.of_rows(connection, collection, rows)
        if document.row in there
    }


def confirm(
    connection: Connection, name: str, version: int, done: Sequence[int], held: Sequence[int]
) -> None:
    """Take places out; rows that others hold go to the end, or nothing would pass them."""
    state.confirm(connection, done)
    state.put(connection, version, held)


def is_at_rest(connection: Connection, name: str) -> bool:
    """Whether a link is not followed, and nothing is left to do for it."""
    _, now = linked(connection, name)
    watched = (state.is_watched(connection, each.id) for each in versions_of(connection, name))
    return not now.follows and not any(watched)


def end_following(connection: Connection, name: str) -> None:
    """Follow no longer. Raises LinkStateError while there is a migration to be ended first."""
    collection, _ = linked(connection, name)
    if len(versions_of(connection, name)) > 1:
        raise LinkStateError(
            f"{name!r} has two versions: purge or cancel its migration first", param="name"
        )
    state.end_following(connection, collection.id)


def forget(connection: Connection, name: str) -> None:
    """Let the collection be one of its own."""
    unwatch(connection, name)
    state.forget(connection, versions.find(connection, name).id)


def put_all(connection: Connection, name: str) -> None:
    """Bring every vector out once more. Raises LinkStateError where the link is not followed."""
    _, now = linked(connection, name)
    if not now.follows:
        raise LinkStateError(
            f"{name!r} is not followed now: pull it first, with `plimsoll links pull {name}`",
            param="name",
        )
    for version in versions_of(connection, name):
        state.put_all(connection, version.id)


def having(connection: Connection, name: str, ids: Sequence[str]) -> set[str]:
    """Those of the ids that a document has."""
    return documents.having(connection, versions.find(connection, name).id, ids)
