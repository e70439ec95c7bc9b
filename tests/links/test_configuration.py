"""The file of links: what it may say, and how a mistake in it is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.composition.homes import outside_of
from plimsoll.composition.links import build_links
from plimsoll.errors import SettingsError
from plimsoll.links.configuration import FileLink, PostgresLink, QdrantLink, read_links
from plimsoll.links.server import ServerIdentity
from tests.fakes import FakeOpener, FakeServer
from tests.running_server import DEADLINE_S, ROOT, environment

TABLE = '[links.ships]\nkind = "postgres"\nurl_env = "SHIPS_URL"\ntable = "ships"\n'
FOREIGN = 'space = "ada"\ndimensions = 3\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "links.toml"
    file.write_text(text)
    return file


def test_a_link_says_where_rows_are_and_what_their_vectors_are_of(tmp_path):
    """What is left out has the usual names."""
    links = read_links(written(tmp_path, TABLE + FOREIGN + 'text = "body"\n'))
    link = links["ships"]
    assert isinstance(link, PostgresLink)
    assert (link.db_schema, link.table, link.id, link.text) == ("public", "ships", "id", "body")
    assert (link.vector, link.space, link.dimensions, link.follow) == ("vector", "ada", 3, False)


def test_files_have_a_folder_for_other_vectors(tmp_path):
    """A source is only read."""
    link = read_links(
        written(
            tmp_path,
            '[links.log]\nkind = "jsonl"\nfiles = ["/data/*.jsonl"]\nfolder = "/out"\n'
            'model = "m"\n',
        )
    )["log"]
    assert isinstance(link, FileLink)
    assert (link.files, link.folder) == (("/data/*.jsonl",), Path("/out"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TABLE, "links.ships.postgres: write either model"),
        (TABLE + 'space = "ada"\n', "comes with its dimensions"),
        (TABLE + FOREIGN + 'model = "m"\n', "write either model"),
        (TABLE + 'space = "ada"\ndimensions = 4097\n', "dimensions: Input should be less than"),
        (TABLE + FOREIGN + 'url = "postgresql://u:hidden@h/d"\n', "postgres.url is no key"),
        (TABLE.replace("table =", "tabel =") + FOREIGN, "tabel is no key; did you mean table?"),
        (TABLE.replace("postgres", "mysql") + FOREIGN, "mysql"),
        (TABLE.replace("links.ships", 'links."a b"') + FOREIGN, "a b"),
        ("[link.ships]\n", "link is no key; did you mean links?"),
        (
            TABLE + FOREIGN + TABLE.replace("links.ships", "links.titles") + FOREIGN,
            "ships and titles both lead to the table public.ships of SHIPS_URL",
        ),
        ("links = [", "is no TOML file"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_without_its_value(tmp_path, text, told):
    """A server that starts with half of its links would leave tables behind unseen."""
    with pytest.raises(SettingsError) as refused:
        read_links(written(tmp_path, text))
    assert told in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    """The setting that names it stands in the message."""
    with pytest.raises(SettingsError, match=r"PLIMSOLL_LINKS: .*No such file"):
        read_links(tmp_path / "none.toml")


def test_a_file_that_others_may_write_is_refused(tmp_path):
    """Who writes it has the server send texts to a table, or a folder, of their own."""
    file = written(tmp_path, TABLE + FOREIGN)
    file.chmod(0o664)
    with pytest.raises(SettingsError, match=r"links\.toml .*chmod g-w"):
        read_links(file)


def test_a_variable_that_is_not_set_is_told_before_the_server_listens(tmp_path):
    """Not at the first pull, by an error of the database's library."""
    pytest.importorskip("psycopg")
    server = FakeServer(FakeOpener())
    try:
        with pytest.raises(SettingsError, match="the variable SHIPS_URL is not set"):
            build_links(
                written(tmp_path, TABLE + FOREIGN),
                server.corpora,
                server.core,
                server.telemetry,
                {},
            )
    finally:
        server.close()


QDRANT = (
    '[links.ships]\nkind = "qdrant"\nurl_env = "SHIPS_URL"\napi_key_env = "SHIPS_KEY"\n'
    'alias = "ships"\nmodel = "m"\n'
)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "links.ships.url_env: the variable SHIPS_URL is not set"),
        ({"SHIPS_URL": "hidden:6333"}, "no address that begins with http"),
        ({"SHIPS_URL": "http://hidden:6333"}, "api_key_env: the variable SHIPS_KEY is not set"),
    ],
)
def test_an_address_or_key_of_qdrant_that_is_wanting_is_told_and_not_shown(tmp_path, environ, told):
    """Before the server listens; what a variable holds may be a secret."""
    [(name, link)] = read_links(written(tmp_path, QDRANT)).items()
    with pytest.raises(SettingsError) as refused:
        outside_of(name, link, ServerIdentity(tmp_path), environ)
    assert told in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_points_are_read_again_each_minute_and_have_one_vector_unless_the_link_says_otherwise(
    tmp_path,
):
    """A vector without a name is what most collections have."""
    link = read_links(written(tmp_path, QDRANT))["ships"]
    assert isinstance(link, QdrantLink)
    assert (link.text, link.vector, link.read_again_s) == ("text", None, 60)
    with pytest.raises(SettingsError, match=r"qdrant\.read_again is no key; did you mean read_ag"):
        read_links(written(tmp_path, QDRANT + "read_again = 5\n"))
    twice = QDRANT + QDRANT.replace("links.ships", "links.boats")
    with pytest.raises(SettingsError, match="both lead to the alias ships of SHIPS_URL"):
        read_links(written(tmp_path, twice))


def test_two_links_do_not_share_a_folder(tmp_path):
    """One would remove the other's vectors, and point its readers to other rows."""
    link = '[links.{}]\nkind = "jsonl"\nfiles = ["/data/{}.jsonl"]\nfolder = "{}"\nmodel = "m"\n'
    a, b = link.format("a", "a", tmp_path / "out"), link.format("b", "b", tmp_path / "x/../out")
    with pytest.raises(SettingsError, match="a and b both lead to the folder"):
        read_links(written(tmp_path, a + b))


def test_a_server_without_links_imports_nothing_that_reads_files_or_tables():
    """Its start would take longer, and more memory, for what most servers never use."""
    names = (
        "plimsoll.links.configuration",
        "plimsoll.links.files",
        "pyarrow",
        "psycopg",
        "qdrant_client",
    )
    code = f"""
import sys
import plimsoll.server
from tests.fakes import FakeOpener, FakeServer
FakeServer(FakeOpener()).close()  # composed as a server is, without a file of links
print([name for name in {names} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
