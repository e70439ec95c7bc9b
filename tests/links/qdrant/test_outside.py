"""Points of Qdrant as the home of documents: read, copied, written, switched."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.outside import MOST_TEXT_BYTES, PAGE_ROWS
from plimsoll.links.qdrant import connection, switching
from plimsoll.links.qdrant.catalog import UNNAMED, Place
from plimsoll.links.qdrant.looks import Looks
from plimsoll.links.qdrant.outside import QdrantOutside
from plimsoll.links.records import OutsideRow
from tests.links.conftest import HOME, NEW, outgoing
from tests.links.qdrant.ships import ALIAS, KEY, OLD_COLLECTION, VARIABLE, content, led_to, point_to
from tests.qdrant_server import QdrantServer

N = 5


def everyone(ids):
    return frozenset(ids)


@pytest.fixture
def linked(qdrant: QdrantServer) -> Iterator[Callable[..., QdrantOutside]]:
    """Makes a link, to be closed with the test."""
    with ExitStack() as opened:

        def link(url: str = qdrant.url, key: str | None = KEY, **names: str) -> QdrantOutside:
            usual = {"alias": ALIAS, "text": "text", "vector": UNNAMED}
            place = Place(**(usual | names), variable=VARIABLE)
            return opened.enter_context(closing(QdrantOutside(place, url, key, 3600)))

        yield link


def make(application: QdrantClient, n: int = N, **options) -> None:
    """A collection of ships with vectors of HOME, which are stored as they are."""
    application.create_collection(
        OLD_COLLECTION,
        vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT),
        **options,
    )
    point_to(application, OLD_COLLECTION)
    points = [point(number) for number in range(n)]
    for start in range(0, n, 100):
        application.upsert(OLD_COLLECTION, points[start : start + 100])


def point(number: int | str, text: str | None = None, **payload) -> models.PointStruct:
    payload = {"text": text or f"ship {number}", "year": 1870} | payload
    return models.PointStruct(id=number, payload=payload, vector=[1, 2, hash(number) % 100])


@pytest.fixture
def ships(application: QdrantClient, linked: Callable[..., QdrantOutside]) -> QdrantOutside:
    """Five ships, followed, with a place for vectors of NEW."""
    make(application)
    outside = linked()
    outside.follow(HOME, is_first=True)
    outside.prepare(NEW)
    return outside


def other(application: QdrantClient) -> str:
    """The collection that the alias does not lead to."""
    names = {each.name for each in application.get_collections().collections}
    [name] = names - {led_to(application)}
    return name


def move(ships: QdrantOutside) -> None:
    """Push all, and switch."""
    pushed = [outgoing(str(number), f"ship {number}", number) for number in range(N)]
    assert ships.push(NEW, pushed).stored == {str(number) for number in range(N)}
    ships.finish(NEW, everyone)
    ships.switch(NEW)


def pulled(outside: QdrantOutside) -> list[OutsideRow]:
    rows, position = [], None
    while (page := outside.page(position)).position is not None:
        assert len(page.rows) <= PAGE_ROWS
        rows += page.rows
        position = page.position
    return rows


def test_every_point_is_read_once_whatever_its_id(application, linked):
    """Whole numbers up to 2^64 and uuids, in one collection; pages go on behind the last id."""
    make(application, 0)
    uuids = [str(uuid.UUID(int=number * 7919 << 64)) for number in range(150)]
    ids = [*range(200), 2**64 - 1, *uuids]
    for start in range(0, len(ids), 100):
        application.upsert(OLD_COLLECTION, [point(each) for each in ids[start : start + 100]])
    outside = linked()
    rows = pulled(outside)
    assert sorted(row.id for row in rows) == sorted(map(str, ids))
    assert all(row.text == f"ship {row.id}" for row in rows)
    found = outside.rows(["3", "77777", uuids[0]])
    assert [row.id for row in found.rows] == ["3", uuids[0]]
    assert found.left == []


def test_a_pass_ends_where_others_go_on_writing_behind_it(application, linked):
    """New points mostly have greater ids: a pass that takes each of them would never end."""
    make(application, 50)
    outside = linked()
    position, n_pages = None, 0
    while (page := outside.page(position)).position is not None:
        position, n_pages = page.position, n_pages + 1
        application.upsert(OLD_COLLECTION, [point(100 + n_pages)])
        assert n_pages < 5
    assert len(pulled(outside)) == 50 + n_pages


def test_a_point_without_text_or_vector_says_so_and_a_text_too_long_is_none(application, linked):
    """What cannot become a document must not stop the rest, or fill memory."""
    make(application, 2)
    vector = [1.0, 2.0, 3.0]
    application.upsert(
        OLD_COLLECTION,
        [
            models.PointStruct(id=10, payload={"year": 1}, vector=vector),
            models.PointStruct(id=11, payload={"text": 5}, vector=vector),
            models.PointStruct(id=12, payload={"text": "no vector"}, vector={}),
            models.PointStruct(id=13, payload={"text": "x" * (MOST_TEXT_BYTES + 1)}, vector=vector),
        ],
    )
    outside = linked()
    rows = {row.id: row for row in pulled(outside)}
    assert [rows[each].text for each in ("10", "11", "13")] == [None] * 3
    assert (rows["12"].text, rows["12"].vector) == ("no vector", None)
    assert rows["10"].vector.tolist() == vector
    survey = outside.survey()
    assert (survey.n_rows, survey.n_without_text, survey.n_without_vector) == (6, 3, 1)
    assert survey.where == f"the collection {OLD_COLLECTION}, to which the alias {ALIAS} of " + (
        f"{VARIABLE} leads"
    )
    assert survey.dimensions == 3


def test_long_texts_come_in_parts(application, linked):
    """A page is bounded in bytes: what was asked for and not read is named."""
    make(application, 0)
    application.upsert(OLD_COLLECTION, [point(each, "x" * 300_000) for each in range(4)])
    outside = linked()
    found = outside.rows(["0", "1", "9", "2", "3"])
    assert [row.id for row in found.rows] == ["0"]
    assert found.left == ["1", "9", "2", "3"]
    assert len(pulled(outside)) == 4


def test_a_collection_that_no_alias_leads_to_is_told_what_to_do(application, linked, qdrant):
    """It cannot be exchanged while it is asked; nothing is written to it."""
    make(application)
    qdrant.requests.clear()
    outside = linked(alias=OLD_COLLECTION)
    [found] = outside.survey().findings
    assert found.blocks
    assert f'"alias_name": "{OLD_COLLECTION}-live"}}}}]}}' in found.message
    with pytest.raises(OutsideMismatchError, match="make an alias that leads to it"):
        outside.follow(HOME)
    with pytest.raises(OutsideMismatchError, match="has no alias 'boats'"):
        linked(alias="boats").follow(HOME)
    assert {request.split()[0] for request in qdrant.requests} == {"GET"}


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        ({"title": {"size": 3, "distance": "Dot"}}, "with a name it has title: write vector ="),
        ({"size": 4, "distance": "Dot"}, "has vectors of 4 values, not vectors of 3"),
        ({"size": 3, "distance": "Dot", "datatype": "uint8"}, "float32 or float16"),
        (
            {"size": 3, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
            "several rows a point",
        ),
    ],
)  # fmt: skip
def test_a_collection_that_cannot_be_linked_is_refused_with_what_to_do(
    application, linked, vectors, told
):
    """Before anything is noted there."""
    kind = models.VectorParams
    config = (
        kind(**vectors) if "size" in vectors else {name: kind(**of) for name, of in vectors.items()}
    )
    application.create_collection(OLD_COLLECTION, vectors_config=config)
    point_to(application, OLD_COLLECTION)
    outside = linked()
    with pytest.raises(OutsideMismatchError, match=told):
        outside.follow(HOME)
    assert not application.get_collection(OLD_COLLECTION).config.metadata


def test_a_server_that_keeps_no_notes_is_refused(application, linked, qdrant):
    """Whose vectors a collection has would be lost with the server's memory of it."""
    make(application)
    qdrant.version = "1.15.4"
    outside = linked()
    with pytest.raises(OutsideMismatchError, match=r"upgrade it to 1\.16 or newer"):
        outside.follow(HOME)
    assert [each.blocks for each in outside.survey().findings if "1.16" in each.message] == [True]


def test_the_other_collection_is_made_like_the_first(application, linked):
    """Applications find the same indexes and settings behind the alias, once it leads there."""
    quantization = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type="int8"))
    make(
        application,
        hnsw_config=models.HnswConfigDiff(m=24, ef_construct=77),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=500),
        quantization_config=quantization,
        on_disk_payload=True,
        shard_number=2,
        metadata={"owner": "search team"},
    )
    application.create_payload_index(OLD_COLLECTION, "year", field_schema="integer")
    text = models.TextIndexParams(type="text", tokenizer="word", lowercase=True)
    application.create_payload_index(OLD_COLLECTION, "text", field_schema=text)
    outside = linked()
    outside.follow(HOME)
    for _ in range(2):
        outside.prepare(NEW)
    made, first = (application.get_collection(n) for n in (other(application), OLD_COLLECTION))
    assert made.config.params.vectors.size == 4
    assert made.config.params.vectors.distance is models.Distance.DOT
    assert made.config.params.shard_number == 2
    assert made.config.params.on_disk_payload
    assert made.config.hnsw_config == first.config.hnsw_config
    assert made.config.optimizer_config == first.config.optimizer_config
    assert made.config.quantization_config == quantization
    assert made.payload_schema == first.payload_schema
    assert made.config.metadata["owner"] == "search team"
    assert made.config.metadata["plimsoll"]["space"] == NEW.fingerprint
    outside.prepare(HOME)  # is there
    assert len(application.get_collections().collections) == 2


def test_a_collection_of_the_name_that_is_not_ours_is_left_alone(application, linked):
    """Its points are another's."""
    make(application)
    outside = linked()
    outside.follow(HOME)
    outside.prepare(NEW)
    name = other(application)
    application.delete_collection(name)
    application.create_collection(
        name, vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT)
    )
    with pytest.raises(OutsideMismatchError, match="delete it if you need it no more"):
        outside.prepare(NEW)


def test_a_vector_goes_only_to_the_text_that_was_embedded_and_takes_the_payload_along(
    ships, application
):
    """Between reading and pushing a point may change or go."""
    application.set_payload(ALIAS, {"text": "other"}, [1])
    application.delete(ALIAS, models.PointIdsList(points=[2]))
    rows = [outgoing(str(number), f"ship {number}", number) for number in range(4)]
    for _ in range(2):  # a repeat after a crash changes nothing
        pushed = ships.push(NEW, rows)
        assert (pushed.stored, pushed.differing) == ({"0", "3"}, {"1", "2"})
        assert content(application, other(application)) == {
            "0": ({"text": "ship 0", "year": 1870}, [0, 1, 2, 3]),
            "3": ({"text": "ship 3", "year": 1870}, [3, 4, 5, 6]),
        }


def test_a_vector_that_the_home_lacks_is_put_there_alone(ships, application):
    """What an application has in the payload stays, whatever was read before."""
    application.upsert(ALIAS, [models.PointStruct(id=9, payload={"text": "t", "n": 1}, vector={})])
    row = outgoing("9", "t")
    home = type(row)("9", "t", row.text_sha256, np.array([7, 8, 9], np.float32))
    assert ships.push(HOME, [home]).stored == {"9"}
    assert content(application)["9"] == ({"text": "t", "n": 1}, [7, 8, 9])


def test_other_vectors_of_a_point_go_along(application, linked):
    """A title's vector and a sparse one are not Plimsoll's to make."""
    dense = models.VectorParams(size=3, distance=models.Distance.DOT)
    application.create_collection(
        OLD_COLLECTION,
        vectors_config={"body": dense, "title": dense},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    point_to(application, OLD_COLLECTION)
    words = models.SparseVector(indices=[1, 5], values=[0.5, 2.0])
    vectors = {"body": [1.0, 2.0, 3.0], "title": [4.0, 5.0, 6.0], "words": words}
    for number in range(3):
        application.upsert(
            ALIAS,
            [models.PointStruct(id=number, payload={"text": f"ship {number}"}, vector=vectors)],
        )
    outside = linked(vector="body")
    outside.follow(HOME)
    outside.prepare(NEW)
    assert {row.vector.tolist() == [1, 2, 3] for row in pulled(outside)} == {True}
    outside.push(NEW, [outgoing("0", "ship 0", 1)])
    application.update_vectors(ALIAS, [models.PointVectors(id=0, vector={"title": [9, 9, 9]})])
    outside.finish(NEW, everyone)
    outside.switch(NEW)
    found = content(application)
    assert found["0"][1] == {"body": [1, 2, 3, 4], "title": [9, 9, 9], "words": words}
    assert found["1"][1] == {"title": [4, 5, 6], "words": words}  # and none of the old model


def test_what_is_to_be_read_is_made_equal_before_the_switch(ships, application):
    """Points that came, changed or went while vectors were brought out, texts or not."""
    pushed = [outgoing(str(number), f"ship {number}", number) for number in range(N)]
    ships.push(NEW, pushed)
    application.upsert(ALIAS, [point(7, "came"), models.PointStruct(id=8, payload={}, vector={})])
    application.set_payload(ALIAS, {"year": 1999}, [0])
    application.set_payload(ALIAS, {"text": "changed"}, [1])
    application.delete(ALIAS, models.PointIdsList(points=[3]))
    ships.finish(NEW, everyone)
    found = content(application, other(application))
    assert {each: row[0] for each, row in found.items()} == {
        each: row[0] for each, row in content(application).items()
    }
    assert found["0"] == ({"text": "ship 0", "year": 1999}, [0, 1, 2, 3])
    assert found["7"][1] is None
    # What is to be embedded is told, and forgotten once it has been.
    told = ships.changes(100)
    assert {"1", "7"} <= {*told.ids} or told.is_everything


def test_the_alias_is_switched_in_one_request_and_back(ships, application, qdrant):
    """A search in between two of them would find no collection."""
    qdrant.requests.clear()
    move(ships)
    assert qdrant.requests.count("POST /collections/aliases") == 1
    assert ships.active() == NEW.fingerprint
    found = application.query_points(ALIAS, query=[4.0, 5.0, 6.0, 7.0], limit=1, with_payload=True)
    assert found.points[0].payload == {"text": "ship 4", "year": 1870}
    assert "already" in ships.switch(NEW)
    ships.finish(HOME, everyone)
    assert f"leads to {OLD_COLLECTION}, of foreign:ada" in ships.switch(HOME)
    assert content(application)["4"][1] == [1, 2, 4]


def test_what_is_written_in_the_midst_of_a_switch_is_brought_over_behind_it(
    ships, application, qdrant
):
    """Qdrant stops no writes: those into the collection that is left would be lost."""
    writing = qdrant.client()

    def write(request: str) -> None:
        if request != "POST /collections/aliases":
            return
        qdrant.before = None
        writing.upsert(ALIAS, [point(20, "late")])
        writing.set_payload(ALIAS, {"text": "late too"}, [1])
        writing.set_payload(ALIAS, {"year": 2000}, [2])
        writing.set_payload(ALIAS, {"year": 2001}, [3])
        writing.delete(ALIAS, models.PointIdsList(points=[0]))

    qdrant.before = write
    move(ships)
    writing.set_payload(ALIAS, {"year": 3000}, [3])  # newer than what is late
    writing.close()
    assert "4 points that others changed in" in (ships.settle(everyone) or "")
    found = content(application)
    assert found.keys() == {"1", "2", "3", "4", "20"}
    assert found["20"] == ({"text": "late", "year": 1870}, None)
    assert found["1"][0]["text"] == "late too"
    assert [found[each][0]["year"] for each in ("2", "3")] == [2000, 3000]
    assert found["2"][1] == [2, 3, 4, 5]
    ships.page(None)
    assert pulled(ships)
    assert {*ships.changes(100).ids} == {"0", "1", "2", "20"}
    assert ships.settle(everyone) is None


def test_a_purge_deletes_what_is_not_read_unless_another_alias_leads_there(ships, application):
    """That is asked by applications which were not told of the cut-over."""
    move(ships)
    point_to(application, OLD_COLLECTION, "reports")
    assert ships.drop_all_but({NEW.fingerprint, HOME.fingerprint}) == []
    [told] = ships.drop_all_but({NEW.fingerprint})
    assert told == f"{OLD_COLLECTION} stays: the alias reports leads to it"
    delete = models.DeleteAlias(alias_name="reports")
    application.update_collection_aliases([models.DeleteAliasOperation(delete_alias=delete)])
    assert ships.drop_all_but({NEW.fingerprint}) == [
        f"the collection {OLD_COLLECTION} of {VARIABLE} is deleted"
    ]
    assert [each.name for each in application.get_collections().collections] == [
        led_to(application)
    ]


def test_a_purge_right_behind_a_switch_brings_over_what_was_late_first(ships, application, qdrant):
    """The collection that it deletes has the only copy."""
    writing = qdrant.client()

    def write(request: str) -> None:
        if request == "POST /collections/aliases":
            qdrant.before = None
            writing.upsert(ALIAS, [point(20, "late")])

    qdrant.before = write
    move(ships)
    writing.close()
    ships.interrupt()  # of what was under way once; this is not
    assert len(ships.drop_all_but({NEW.fingerprint})) == 1
    assert content(application)["20"][0]["text"] == "late"
    assert ships.settle(everyone) is None


def test_a_collection_that_someone_deleted_behind_a_switch_is_waited_for_no_more(
    ships, application
):
    """Nothing is left of it that could be brought over."""
    move(ships)
    application.delete_collection(OLD_COLLECTION)
    assert ships.settle(everyone) is None


def test_another_alias_is_told_of_before_a_link_is_used(application, linked):
    """What asks for it goes on to the old vectors."""
    make(application)
    point_to(application, OLD_COLLECTION, "reports")
    found = linked().survey().findings
    assert not any(each.blocks for each in found)
    assert any("the alias reports leads to" in each.message for each in found)
    assert any("key goes over the network as it is" in each.message for each in found)


def test_a_first_pull_does_not_take_over_another_servers_collection(ships, linked):
    """Its vectors may have cost money, and somebody may still be to go back to them."""
    with pytest.raises(OutsideMismatchError, match="from another server"):
        linked().follow(HOME, is_first=True)
    linked().follow(HOME)
    with pytest.raises(OutsideMismatchError, match="are of 'foreign:ada'"):
        linked().follow(Space.foreign("other", 3))


def test_what_a_server_has_to_do_and_does_not_begin_is_not_waited_for(ships, qdrant, monkeypatch):
    """One that was started again begins with the next write, which may never come."""
    qdrant.status = models.CollectionStatus.GREY
    monkeypatch.setattr(switching, "MOST_GREY_S", 0.4)
    qdrant.requests.clear()
    ships.finish(NEW, everyone)
    assert qdrant.requests[-2:] == [qdrant.requests[-1]] * 2  # it was looked at again


def test_indexing_that_takes_too_long_is_told(ships, qdrant, monkeypatch):
    """A cut-over says so, instead of keeping its client waiting."""
    qdrant.status = models.CollectionStatus.YELLOW
    monkeypatch.setattr(switching, "MOST_INDEXING_S", 0.4)
    with pytest.raises(OutsideUnavailableError, match="still being indexed"):
        ships.finish(NEW, everyone)


def test_finishing_waits_until_it_is_indexed(ships, application, qdrant):
    """A search in a collection without its index reads every vector."""
    n_looks = 0

    def look(request: str) -> None:
        nonlocal n_looks
        n_looks += request == f"GET /collections/{name}"
        if n_looks == 5:
            qdrant.status = models.CollectionStatus.GREEN

    name = other(application)
    qdrant.status = models.CollectionStatus.YELLOW
    qdrant.before = look
    ships.finish(NEW, everyone)
    assert n_looks >= 5
    qdrant.before, qdrant.status = None, models.CollectionStatus.RED
    with pytest.raises(OutsideMismatchError, match="cannot be indexed"):
        ships.finish(NEW, everyone)


def test_a_server_that_is_gone_or_hangs_is_an_error_with_when_to_try_again(
    ships, qdrant, linked, monkeypatch
):
    """Nothing waits for it longer than a request's timeout; then there is another connection."""
    qdrant.stop()
    with pytest.raises(OutsideUnavailableError, match="SHIPS_QDRANT_URL does not answer") as gone:
        ships.active()
    assert gone.value.retry_after_s > 0
    qdrant.start()
    assert ships.active() == HOME.fingerprint
    monkeypatch.setattr(connection, "TIMEOUT_S", 1)
    qdrant.is_hanging.set()
    with pytest.raises(OutsideUnavailableError, match="does not answer within 1 s"):
        linked().active()


def test_a_switch_gives_a_server_that_hangs_up_sooner(ships, qdrant, linked, monkeypatch):
    """Writers of every collection wait for it."""
    monkeypatch.setattr(connection, "SHORT_TIMEOUT_S", 1)
    outside = linked()
    outside.finish(NEW, everyone)
    qdrant.is_hanging.set()
    with pytest.raises(OutsideUnavailableError, match="does not answer within 1 s"):
        outside.switch(NEW)
    assert "POST /collections/aliases" not in qdrant.requests[-1]


def test_an_answer_that_was_lost_is_looked_for(ships, application, qdrant, monkeypatch):
    """The alias may lead there all the same; else pointer and alias would part."""
    request = QdrantClient.update_collection_aliases

    def lost(self: QdrantClient, *args, **kwargs) -> None:
        request(self, *args, **kwargs)
        raise connection.ResponseHandlingException(connection.httpx.ReadTimeout("late"))

    monkeypatch.setattr(QdrantClient, "update_collection_aliases", lost)
    ships.finish(NEW, everyone)
    assert "leads to" in ships.switch(NEW)
    assert led_to(application) != OLD_COLLECTION


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [
        (None, "a-wrong-key", "refuses the key"),
        (None, None, "refuses the key"),
        ("http://user:pass-word@127.0.0.1:1", KEY, "no connection can be made"),
        ("http://[secret-host", KEY, "address cannot be read"),
    ],
)
def test_no_message_shows_address_or_key(qdrant, linked, url, key, told):
    """Errors go to clients and logs."""
    outside = linked(url or qdrant.url, key)
    with pytest.raises((OutsideUnavailableError, OutsideMismatchError), match=told) as refused:
        outside.survey()
    seen = f"{refused.value} {refused.value.__cause__}"
    secrets = ("wrong-key", KEY, "pass-word", "secret-host", "127.0.0.1")
    assert not any(secret in seen for secret in secrets)
    assert VARIABLE in seen


def test_points_are_read_again_after_a_while_and_sooner_where_their_number_is_another():
    """Reading them costs up to a tenth of the time, however many there are."""
    now = 0.0
    looks = Looks(60, lambda: now)
    assert looks.is_due(5)
    looks.end()  # of a pass that began in another process
    assert looks.is_due(5)
    looks.begin(5)
    now = 1.0
    looks.end()
    assert not looks.is_due(5)
    now = 4.0
    assert looks.is_due(6)
    assert not looks.is_due(5)
    now = 61.0
    assert looks.is_due(5)
    looks.begin(6)
    now = 161.0
    looks.end()
    now = 1100.0
    assert not looks.is_due(6)
    assert looks.is_due(7)
    now = 1161.0
    assert looks.is_due(6)
