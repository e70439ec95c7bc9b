"""`plimsoll doctor`: what would keep a server from answering is found before it is started."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from plimsoll import files
from plimsoll.cli import checks, collection_checks, model_checks
from plimsoll.cli.findings import State
from plimsoll.corpora import versions
from plimsoll.corpora.database import FILE_NAME, Database
from plimsoll.corpora.records import Space
from plimsoll.encoder.backends import gpu
from plimsoll.errors import SettingsError
from plimsoll.machine.memory import MemoryMonitor
from tests.cli.conftest import Commands


def findings(run: Commands, *options: str, **variables: str) -> tuple[int, dict[str, dict]]:
    done = run("doctor", "--json", *options, **variables)
    return done.exit_code, {one["check"]: one for one in json.loads(done.stdout)}


def test_a_sound_machine_fails_nothing(run: Commands, stored: Path):
    """Code 0: a script may start the server."""
    code, found = findings(run, "--model", str(stored), "--port", "0")

    assert code == 0
    assert {one["state"] for one in found.values()} <= {"ok", "warn"}
    assert "onnxruntime" in found["versions"]["found"]
    assert found["model"]["state"] == "ok"
    assert found["disk speed"]["found"].startswith("reads ")
    assert found["packing"]["state"] == "ok"
    assert found["provider"]["found"] == "the CPU computes"
    assert "offline by HF_HUB_OFFLINE" in found["hub"]["found"]


def test_a_gpus_library_that_does_not_serve_is_told(
    run: Commands, stored: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was installed for something, and the CPU takes its place in silence."""
    monkeypatch.setattr(gpu.ort, "get_available_providers", lambda: [gpu.GPU_PROVIDER])
    monkeypatch.setattr(gpu, "device_bytes", lambda: None)
    gpu.gpu_status.cache_clear()

    _, found = findings(run, "--model", str(stored), "--port", "0")
    gpu.gpu_status.cache_clear()

    assert found["provider"]["state"] == "warn"
    assert "finds no device" in found["provider"]["found"]


def test_every_line_that_is_not_ok_says_what_to_do_next(run: Commands):
    """A finding without a way on is only bad news."""
    options = ("--model", "nomic-embed-text-v1.5", "--memory-budget", "100M", "--port", "0")
    code, found = findings(run, *options)

    assert code == 1
    assert found["memory"]["state"] == "fail"
    assert "188M" in found["memory"]["found"]
    assert found["model"]["state"] == "warn"
    assert found["hub"]["state"] == "fail"  # the model is not here, and cannot be fetched
    for one in found.values():
        assert one["remedy"] or one["state"] == "ok", one


def test_a_server_for_others_without_keys_is_found_before_it_refuses(run: Commands, stored: Path):
    """`serve` would end with the same sentence."""
    options = ("--model", str(stored), "--port", "0", "--host", "0.0.0.0")
    code, found = findings(run, *options)
    assert code == 1
    assert "PLIMSOLL_API_KEYS" in found["access"]["found"]

    _, found = findings(run, *options, PLIMSOLL_API_KEYS="embed:a-key-of-the-test-0123456789")
    assert found["access"]["state"] == "ok"
    assert found["access"]["found"].startswith("clients with a key")


def test_a_machine_that_packs_at_every_call_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    """The server runs there, slower, and only its log would say so."""
    monkeypatch.setattr(model_checks, "packing_status", lambda: "no blobs in the saved graph")

    finding = model_checks.packing()

    assert finding.state is State.WARN
    assert "no blobs in the saved graph" in finding.found


def test_a_port_in_use_is_named(run: Commands, stored: Path):
    """The server would end a second after its start."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, found = findings(run, "--model", str(stored), "--port", str(port))
    assert code == 1
    assert f"127.0.0.1:{port}" in found["port"]["found"]
    assert "PLIMSOLL_PORT" in found["port"]["remedy"]


def test_an_unknown_model_is_a_finding_and_no_end(run: Commands):
    """The rest of the report is wanted all the same."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, found = findings(run, "--model", "nomic-embed-txt", "--port", str(port))
    assert code == 1
    assert "Did you mean" in found["model"]["found"]
    assert {"versions", "memory", "disk space", "hub", "access"} < set(found)
    assert found["port"]["state"] == "fail"


def forbid(monkeypatch: pytest.MonkeyPatch, top: Path, call: str) -> None:
    """Let the system refuse a call from a path on, as to a user who may not; root may all."""
    allowed = getattr(os, call)

    def refusing(path: object, *arguments: object, **named: object) -> object:
        if isinstance(path, str | Path) and Path(path).is_relative_to(top):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return allowed(path, *arguments, **named)

    monkeypatch.setattr(os, call, refusing)


def test_a_model_file_that_may_not_be_read_is_a_finding(
    run: Commands, stored: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file that another user has put there ends in no traceback, and the rest is looked at."""
    forbid(monkeypatch, stored, "open")
    code, found = findings(run, "--model", str(stored), "--port", "0")
    assert code == 1
    assert found["model"]["state"] == "fail"
    assert "Permission denied" in found["model"]["found"]
    assert "let this user read it" in found["model"]["remedy"]
    assert found["port"]["state"] == "ok"


def test_a_closed_folder_above_the_cache_is_a_finding(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So it is where a service runs as another user than the one who made the folder."""
    closed = tmp_path / "closed"
    closed.mkdir()
    forbid(monkeypatch, closed / "cache", "stat")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    code, found = findings(run, "--cache-dir", str(closed / "cache"), "--port", "0")
    assert code == 1
    assert found["cache folder"]["state"] == "fail"
    assert "PLIMSOLL_CACHE_DIR" in found["cache folder"]["remedy"]
    assert found["port"]["state"] == "ok"


def test_a_damaged_model_file_is_found_before_the_first_request(run: Commands, tmp_path: Path):
    """A page of HTML that was saved as a model is the usual case."""
    file = tmp_path / "page.gguf"
    file.write_text("<html>404</html>" * 100)
    code, found = findings(run, "--model", str(file), "--port", "0")
    assert code == 1
    assert found["model"]["state"] == "fail"
    assert "plimsoll inspect" in found["model"]["remedy"]


def test_nothing_that_tells_the_memory_is_a_finding(
    run: Commands, stored: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server would not start, and says which setting would help."""

    def unknown(*_: object) -> MemoryMonitor:
        raise SettingsError("nothing tells how much memory there is")

    monkeypatch.setattr(model_checks, "MemoryMonitor", unknown)
    code, found = findings(run, "--model", str(stored), "--port", "0")
    assert code == 1
    assert (found["memory"]["state"], found["port"]["state"]) == ("fail", "ok")
    assert "PLIMSOLL_MEMORY_BUDGET" in found["memory"]["remedy"]


def test_a_cache_folder_that_cannot_hold_the_model_is_found(
    run: Commands, stored: Path, monkeypatch: pytest.MonkeyPatch
):
    """A full disk would end the first load after minutes."""
    usage = model_checks.shutil.disk_usage(run.cache)._replace(free=1 << 20)
    monkeypatch.setattr(model_checks.shutil, "disk_usage", lambda path: usage)
    code, found = findings(run, "--port", "0", PLIMSOLL_CACHE_ON_TMPFS="false")
    assert code == 1
    assert found["disk space"]["state"] == "fail"
    assert "plimsoll rm" in found["disk space"]["remedy"]


def test_swap_is_warned_of(tmp_path: Path):
    """A limit that swaps is none, and each page that comes back costs a disk's time."""
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nSwapTotal:  2097152 kB\n")
    found = checks._swap(tmp_path)
    assert (found.state, found.found) == ("warn", "2G on this machine")
    (tmp_path / "meminfo").write_text("SwapTotal:  0 kB\n")
    assert checks._swap(tmp_path).state == "ok"


def test_the_table_has_a_line_for_each_check(run: Commands, stored: Path):
    """State first: a look down the left edge tells."""
    done = run("doctor", "--model", str(stored), "--port", "0")
    words = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert set(words) <= {"ok", "warn", "fail"}


# --- collections ----------------------------------------------------------------------------


def test_a_damaged_file_of_collections_is_found_before_the_first_search(tmp_path: Path):
    """And one that is sound, or not there yet, is no news."""
    folder = tmp_path / "data"
    none = collection_checks.collections(folder)
    database = Database(folder / FILE_NAME)
    with database.writing() as connection:
        versions.create(connection, "ships", Space("v1:a", 2, "small"))
    database.close()
    sound = collection_checks.collections(folder)
    with (folder / FILE_NAME).open("r+b") as file:
        file.seek((folder / FILE_NAME).stat().st_size // 2)
        file.write(b"\xff" * 40_000)

    damaged = collection_checks.collections(folder)

    assert {none.state, sound.state} <= {State.OK, State.WARN}  # where /tmp is memory
    assert "none yet" in none.found
    assert (damaged.state, FILE_NAME in damaged.found) == (State.FAIL, True)


@pytest.mark.parametrize("kind", ["nfs4", "tmpfs"])
def test_a_folder_that_does_not_keep_what_is_written_is_warned_of(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Locks over a network do not hold; memory ends with the machine."""
    monkeypatch.setattr(files, "file_system", lambda *_: kind)

    found = collection_checks.collections(tmp_path)

    assert (found.state, kind in found.found) == (State.WARN, True)
    assert "PLIMSOLL_DATA_DIR" in found.remedy


def test_a_folder_of_collections_that_cannot_be_written_to_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert collection_checks.collections(tmp_path / "data").state is State.FAIL


# --- links and hooks --------------------------------------------------------------------------


def linked(folder: Path, text: str) -> dict[str, str]:
    """The setting that names a file of links."""
    file = folder / "links.toml"
    file.write_text(text)
    return {"PLIMSOLL_LINKS": str(file)}


def test_links_that_answer_and_that_do_not_are_told_apart(run: Commands, tmp_path: Path):
    """One that waits keeps no server from starting; a variable that is not set does."""
    pytest.importorskip("qdrant_client")
    (tmp_path / "ships.jsonl").write_text('{"id": "a", "text": "t"}\n')
    variables = linked(
        tmp_path,
        f"""
[links.ships]
kind = "jsonl"
files = ["{tmp_path}/ships.jsonl"]
folder = "{tmp_path}/moved"
model = "m"
[links.gone]
kind = "jsonl"
files = ["{tmp_path}/gone.jsonl"]
folder = "{tmp_path}/moved-too"
model = "m"
[links.silent]
kind = "qdrant"
url_env = "SILENT_URL"
alias = "silent"
model = "m"
[links.unset]
kind = "qdrant"
url_env = "UNSET_URL"
alias = "unset"
model = "m"
""",
    )
    _, found = findings(run, SILENT_URL="http://127.0.0.1:9", **variables)

    told = {name: found[f"link {name}"] for name in ("ships", "gone", "silent", "unset")}
    assert found["links"]["state"] == "ok"
    assert {name: one["state"] for name, one in told.items()} == {
        "ships": "ok",
        "gone": "fail",
        "silent": "warn",
        "unset": "fail",
    }
    assert told["ships"]["found"] == "jsonl: it answers; not pulled yet"
    assert "gone.jsonl" in told["gone"]["found"]
    assert "SILENT_URL does not answer" in told["silent"]["found"]
    assert "UNSET_URL is not set" in told["unset"]["found"]
    assert "127.0.0.1" not in json.dumps(told)


def test_a_file_of_links_or_hooks_that_keeps_the_server_from_starting_fails(
    run: Commands, tmp_path: Path
):
    """With the reason that the server would give."""
    hooks = tmp_path / "hooks.toml"
    hooks.write_text('[hooks.ticket]\nwhen = "before"\ncommand = ["/bin/true"]\n')
    _, sound = findings(run, PLIMSOLL_HOOKS=str(hooks))
    hooks.write_text('[hooks.ticket]\nbuiltin = "validate-memori"\n')
    code, found = findings(run, PLIMSOLL_HOOKS=str(hooks), **linked(tmp_path, "[link.a]\n"))
    _, none = findings(run)

    assert sound["hooks"]["found"] == f"{hooks}: ticket; always: none"
    assert code == 1
    assert (found["links"]["state"], found["hooks"]["state"]) == ("fail", "fail")
    assert "did you mean links?" in found["links"]["found"]
    assert "validate-memory" in found["hooks"]["found"]
    assert (none["links"]["state"], none["hooks"]["state"]) == ("ok", "ok")
