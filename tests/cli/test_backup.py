"""`plimsoll backup`: a copy of the collections that a server can go on from."""

from pathlib import Path

from plimsoll.corpora import versions
from plimsoll.corpora.database import FILE_NAME, Database, faults_of
from plimsoll.corpora.records import Space
from tests.cli.conftest import Commands


def test_a_copy_is_whole_while_the_file_is_in_use(run: Commands, tmp_path: Path):
    """And never takes the place of a file that is there."""
    database = Database(tmp_path / "data" / FILE_NAME)
    with database.writing() as connection:
        versions.create(connection, "ships", Space("v1:a", 2, "small"))
    target = tmp_path / "copy"
    options = ("backup", str(target), "--data-dir", str(tmp_path / "data"))

    done, again = run(*options), run(*options)

    database.close()
    copy = Database(target)
    with copy.reading() as connection:
        assert versions.find(connection, "ships").active.space.dimensions == 2
    copy.close()
    assert (done.exit_code, again.exit_code, faults_of(target)) == (0, 1, [])
    assert "already" in again.stderr


def test_where_there_are_no_collections_that_is_said(run: Commands, tmp_path: Path):
    """And no empty copy is left."""
    target = tmp_path / "copy"

    done = run("backup", str(target), "--data-dir", str(tmp_path / "data"))

    assert (done.exit_code, target.exists()) == (2, False)
    assert FILE_NAME in done.stderr
