"""`plimsoll collections`: files into a collection of a server in a process of its own, and back."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import parquet

from plimsoll import Client
from plimsoll.cli import file_export, file_import
from plimsoll.client.asking import Answer, Ask, Pause
from plimsoll.links.files.paths import files_of
from plimsoll.links.files.reading import read_rows
from plimsoll.links.files.rows import Columns, FileRow
from tests.cli.conftest import Commands
from tests.migration.conftest import write_models
from tests.migration.models import NAMES, NEW, OLD, texts
from tests.running_server import DEADLINE_S, ROOT, RunningServer, environment

N, DIMENSIONS = 150, 12

Collections = Callable[..., Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = write_models(tmp_path_factory.mktemp("filled"))
    options = {
        "--model": str(folder / f"{NAMES[0]}.gguf"),
        "--extra-models": str(folder / f"{NAMES[1]}.gguf"),
        "--cache-dir": str(folder / "cache"),
        "--data-dir": str(folder / "data"),
    }
    given = [part for pair in options.items() for part in pair]
    with RunningServer(folder, *given, "--cache-on-tmpfs") as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
        yield client
        for name in ("ships", "copy"):
            client.delete(f"/collections/{name}")


@pytest.fixture
def collections(run: Commands, server: RunningServer, client: httpx.Client) -> Collections:
    """Run `plimsoll collections`; what it has made goes with the client."""

    def call(*arguments: str) -> Result:
        return run("collections", *arguments, "--url", server.url)

    return call


def vectors() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((N, DIMENSIONS)).astype(np.float32)


@pytest.fixture
def ships(tmp_path: Path) -> Path:
    """A Parquet file as others have it: columns of other names, vectors of an OpenAI model."""
    table = pa.table(
        {
            "key": range(N),
            "body": texts(N),
            "embedding": list(vectors()),
            "year": [1800 + number % 100 for number in range(N)],
        }
    )
    parquet.write_table(table, tmp_path / "ships.parquet", row_group_size=40)
    return tmp_path / "ships.parquet"


OPENAI = ("--id", "key", "--text", "body", "--vector", "embedding", "--space", "ada-002")


def read(path: Path, vector: str = "vector") -> dict[str, FileRow]:
    rows = list(read_rows(files_of(str(path)), Columns(vector=vector)))
    assert all(isinstance(row, FileRow) for row in rows)
    return {row.id: row for row in rows}


def fingerprint(client: httpx.Client, name: str) -> str:
    return str(client.get(f"/collections/{name}").json()["fingerprint"])


@pytest.mark.parametrize("target", ["out.jsonl", "out.jsonl.gz", "out.parquet", "out/"])
def test_what_goes_in_with_its_vectors_comes_out_as_it_was(
    collections: Collections, client: httpx.Client, ships: Path, target: str
):
    """To the last bit, in its order, and again where it is sent to another collection."""
    done = collections("import", str(ships), "--collection", "ships", *OPENAI)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"ships: {N} added, 0 updated, 0 unchanged, 0 left out\n"
    assert fingerprint(client, "ships") == "foreign:ada-002"
    found = client.post(
        "/collections/ships/search", json={"query": "keel", "filter": {"year": {"$gte": 1850}}}
    )
    assert found.json()["mode"] == "bm25"

    written = collections("export", "ships", target)
    assert written.exit_code == 0, written.output
    assert written.stdout == f"ships: {N} documents written to {target}\n"
    rows = read(Path(target))
    assert list(rows) == [str(number) for number in range(N)]
    assert [row.document.text for row in rows.values()] == texts(N)
    assert rows["7"].document.metadata == {"year": 1807}
    assert np.stack([row.vector for row in rows.values()]).tobytes() == vectors().tobytes()

    again = collections("import", target, "--collection", "copy", "--vector", "vector",
                        "--space", "foreign:ada-002")  # fmt: skip
    assert again.exit_code == 0, again.output
    collections("export", "copy", "copy.parquet")
    collections("export", "ships", "ships-again.parquet")
    assert Path("copy.parquet").read_bytes() == Path("ships-again.parquet").read_bytes()


def test_texts_alone_are_embedded_and_a_second_import_finds_them_there(
    collections: Collections, client: httpx.Client, ships: Path
):
    """Also rows that changed: a file that is kept up to date is sent again and again."""
    columns = ("--id", "key", "--text", "body", "--metadata", "year")
    first = collections("import", str(ships), "--collection", "ships", *columns, "--json")
    table = parquet.read_table(ships).to_pylist()
    table[3]["body"] = "another text"
    parquet.write_table(pa.Table.from_pylist([*table, {**table[0], "key": N}]), ships)
    second = collections("import", str(ships), "--collection", "ships", *columns, "--json")

    assert json.loads(first.stdout) == {
        "added": N, "updated": 0, "unchanged": 0, "left_out": 0,
    }  # fmt: skip
    assert json.loads(second.stdout) == {
        "added": 1, "updated": 1, "unchanged": N - 1, "left_out": 0,
    }  # fmt: skip
    collection = client.get("/collections/ships").json()
    assert (collection["model"], collection["documents"]) == (OLD, N + 1)
    assert collection["versions"][0]["vectors"] == N + 1


def test_vectors_of_a_served_model_come_back_under_their_fingerprint(
    collections: Collections, client: httpx.Client, ships: Path
):
    """A collection is taken to another server without embedding anything again."""
    columns = ("--id", "key", "--text", "body", "--metadata", "year")
    collections("import", str(ships), "--collection", "ships", "--model", NEW, *columns)
    collections("export", "ships", "out.parquet")
    space = fingerprint(client, "ships")
    into = ("import", "out.parquet", "--collection", "copy", "--vector", "vector")

    without_model = collections(*into, "--space", space)
    done = collections(*into, "--space", space, "--model", NEW)

    assert without_model.exit_code == 2
    assert "name the --model" in without_model.output
    assert done.exit_code == 0, done.output
    collections("export", "copy", "copy.parquet")
    assert Path("copy.parquet").read_bytes() == Path("out.parquet").read_bytes()


def test_rows_that_are_none_are_told_and_the_others_are_there(
    collections: Collections, client: httpx.Client
):
    """By file and row; whichever end it is that refuses them."""
    lines = [
        {"id": "a", "text": "a ship"},
        {"id": "b"},
        {"id": "a", "text": "once more"},
        {"id": "c", "text": " "},
        {"id": "ends/", "text": "a text"},
        {"id": "d", "text": "a sea"},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"id": "cut of')

    done = collections("import", "rows.jsonl", "--collection", "ships")

    assert done.exit_code == 2
    assert "plimsoll: left out: rows.jsonl row 2: text is missing" in done.stderr
    assert "left out: rows.jsonl row 3: the id 'a' has come before" in done.stderr
    assert "left out: rows.jsonl row 4: " in done.stderr
    assert "left out: rows.jsonl row 5: " in done.stderr
    assert "rows.jsonl ends in the midst of line 7" in done.stderr
    assert done.stdout == "ships: 2 added, 0 updated, 0 unchanged, 4 left out\n"
    assert client.get("/collections/ships/documents/a").json()["text"] == "a ship"

    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert collections("import", "rows.jsonl", "--collection", "ships").exit_code == 1


def test_a_vector_that_is_none_leaves_its_row_out(collections: Collections, client: httpx.Client):
    """To be embedded by a model of another space would be worse."""
    rows = [
        {"id": "a", "text": "t", "vector": [1, 2]},
        {"id": "b", "text": "t", "vector": [1, None]},
        {"id": "c", "text": "t", "vector": [1, 2, 3]},
        {"id": "d", "text": "t"},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    given = ("rows.jsonl", "--collection", "ships", "--vector", "vector", "--space", "ada")

    done = collections("import", *given)

    assert done.exit_code == 1
    assert done.stdout == "ships: 1 added, 0 updated, 0 unchanged, 3 left out\n"
    for number in (2, 3, 4):
        assert f"row {number}: " in done.stderr
    alone = collections("import", *given[:-2])
    assert alone.exit_code == 2
    assert "--vector goes with --space" in alone.output


def command(server: RunningServer, *arguments: str, **pipes: Any) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "plimsoll", "collections", *arguments, "--url", server.url]
    return subprocess.Popen(line, cwd=ROOT, env=environment(), text=True, **pipes)


def test_lines_of_a_pipe_go_in_and_out(server: RunningServer, client: httpx.Client):
    given = "".join(json.dumps({"id": f"p{n}", "text": t}) + "\n" for n, t in enumerate(texts(5)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with command(server, "import", "-", "--collection", "ships", **pipes) as process:
        out, told = process.communicate(given, timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, "ships: 5 added, 0 updated, 0 unchanged, 0 left out\n")
    assert "Traceback" not in told

    with command(server, "export", "ships", "-", "--no-vectors", **pipes) as process:
        out, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert told.endswith("ships: 5 documents written to -\n")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [
        (f"p{n}", text) for n, text in enumerate(texts(5))
    ]
    assert lines[0]["metadata"] == {}
    assert "vector" not in lines[0]


def test_an_export_to_a_full_device_or_to_a_reader_that_is_gone_ends_without_a_traceback(
    collections: Collections, server: RunningServer, ships: Path
):
    """As `plimsoll embed` does: a script sees the exit code, and `head` is no fault."""
    collections("import", str(ships), "--collection", "ships", *OPENAI)
    ours, theirs = os.pipe()
    os.close(ours)
    with Path("/dev/full").open("wb") as full, os.fdopen(theirs, "wb") as unread:
        for output, code, told in (
            (full, 2, "cannot write standard output: No space left on device"),
            (unread, 1, ""),
        ):
            pipes = {"stdout": output, "stderr": subprocess.PIPE}
            with command(server, "export", "ships", "-", **pipes) as process:
                _, said = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == code
            assert told in said
            assert "Traceback" not in said
            assert "Exception ignored" not in said


def test_a_part_that_was_stopped_in_its_midst_is_written_again(
    collections: Collections, ships: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder that was gone on with has the bytes of one that was not."""
    collections("import", str(ships), "--collection", "ships", *OPENAI)
    monkeypatch.setattr(file_export, "PART_ROWS", 40)
    monkeypatch.setattr(file_export, "PAGE_DOCUMENTS", 15)
    collections("export", "ships", "quiet/")
    request, n_pages = Client.request, 0

    def stopped(self, method: str, path: str, **options: Any) -> Any:
        nonlocal n_pages
        n_pages += path.endswith("/documents")
        if n_pages == 4:
            n_pages = 0
            raise KeyboardInterrupt
        return request(self, method, path, **options)

    monkeypatch.setattr(Client, "request", stopped)
    codes = [collections("export", "ships", "killed/").exit_code]
    half = sorted(path.name for path in Path("killed").iterdir())
    while codes[-1] == 130:
        codes.append(collections("export", "ships", "killed/").exit_code)

    assert codes == [130] * 3 + [0]
    assert half == ["part-00000.parquet", "set.json"]
    names = sorted(path.name for path in Path("quiet").iterdir())
    assert names == ["manifest.json", *(f"part-{n:05d}.parquet" for n in range(4)), "set.json"]
    for name in names:
        assert (Path("killed") / name).read_bytes() == (Path("quiet") / name).read_bytes()


@pytest.mark.parametrize(("target", "file"), [("x.jsonl", "x.jsonl"), ("x", "x/part-00000.jsonl")])
def test_two_exports_at_once_do_not_mix(
    collections: Collections,
    ships: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    file: str,
):
    """The second begins and ends in the midst of the first."""
    collections("import", str(ships), "--collection", "ships", *OPENAI)
    monkeypatch.setattr(file_export, "PAGE_DOCUMENTS", 15)
    request, n_pages, codes = Client.request, 0, []
    command = ("export", "ships", target, "--format", "jsonl")

    def interrupted(self, method: str, path: str, **options: Any) -> Any:
        nonlocal n_pages
        n_pages += path.endswith("/documents")
        if n_pages == 4 and not codes:
            codes.append(None)
            codes.append(collections(*command).exit_code)
        return request(self, method, path, **options)

    monkeypatch.setattr(Client, "request", interrupted)
    codes.append(collections(*command).exit_code)

    assert codes == [None, 0, 0]
    assert len(read(Path(file))) == N
    assert not list(Path().rglob("*.tmp"))


def test_a_file_that_is_there_is_written_over_only_when_asked(
    collections: Collections, ships: Path
):
    """It may be what the collection was filled from."""
    collections("import", str(ships), "--collection", "ships", *OPENAI)
    mine = Path("mine.jsonl")
    mine.write_text("mine", encoding="utf-8")
    refused = collections("export", "ships", "mine.jsonl")
    assert refused.exit_code == 2
    assert "mine.jsonl is there already: --force writes over it" in refused.output
    assert mine.read_text(encoding="utf-8") == "mine"
    assert collections("export", "ships", "mine.jsonl", "--force").exit_code == 0
    assert mine.read_text(encoding="utf-8") != "mine"


def test_a_folder_of_another_export_is_not_written_to(collections: Collections, ships: Path):
    collections("import", str(ships), "--collection", "ships", *OPENAI)
    Path("other").mkdir()
    Path("other/precious").touch()
    collections("export", "ships", "whole/")

    for folder, told in (("other", "holds other files"), ("whole", "a whole export already")):
        refused = collections("export", "ships", folder)
        assert refused.exit_code == 2
        assert told in refused.output.replace("\n", " ")
    assert "write x.jsonl" in collections("export", "ships", "ships.csv").output
    assert "no version 99" in collections("export", "ships", "x.jsonl", "--version", "99").output


def test_an_import_waits_while_the_server_has_no_room(
    collections: Collections, ships: Path, monkeypatch: pytest.MonkeyPatch
):
    """It says so once, and what it sends again is not stored twice."""
    do, n_refusals = Client._do, 3
    told = b'{"error": {"message": "send all of them again", "code": "documents_unfinished"}}'

    def refused(self, step: Ask | Pause) -> Answer | None:
        nonlocal n_refusals
        done = do(self, step)
        if n_refusals and isinstance(step, Ask) and step.method == "POST":
            n_refusals -= 1
            return Answer(503, {"retry-after": "0"}, told)
        return done

    monkeypatch.setattr(Client, "_do", refused)
    done = collections("import", str(ships), "--collection", "ships", *OPENAI)

    assert done.exit_code == 0
    assert done.stderr.count("plimsoll: waiting: the server refused (503): send all of") == 1
    assert "0 left out" in done.stdout


def test_ctrl_c_says_what_is_stored_and_the_same_command_goes_on(
    collections: Collections, client: httpx.Client, ships: Path, monkeypatch: pytest.MonkeyPatch
):
    take, n_rows = file_import.FileImport._take, 0

    def stop(self, row):
        nonlocal n_rows
        n_rows += 1
        if n_rows == file_import.LIST_DOCUMENTS + 5:
            raise KeyboardInterrupt
        take(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(file_import.FileImport, "_take", stop)
        stopped = collections("import", str(ships), "--collection", "ships", *OPENAI)
    assert stopped.exit_code == 130
    assert f"{file_import.LIST_DOCUMENTS} added" in stopped.stdout

    done = collections("import", str(ships), "--collection", "ships", *OPENAI)
    assert f"{N - file_import.LIST_DOCUMENTS} added, 0 updated, {file_import.LIST_DOCUMENTS} unch" \
        in done.stdout  # fmt: skip
    assert client.get("/collections/ships").json()["documents"] == N
