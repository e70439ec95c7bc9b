"""`plimsoll migrate` and the routes behind it, with a server in a process of its own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from click.testing import Result

from plimsoll import Client
from plimsoll.cli.migration_run import next_step
from plimsoll.cli.migration_words import agreement_told, duration
from plimsoll.client.asking import Answer, Ask, Pause
from tests.cli.conftest import Commands
from tests.cli.reports import report
from tests.fakes import DEADLINE_S
from tests.migration.conftest import write_models
from tests.migration.models import BAD, NAMES, NEW, OLD, texts
from tests.running_server import RunningServer

ADMIN, EMBED = "an-admin-key-of-this-test", "an-embed-key-of-this-test"
JSON = {"Content-Type": "application/json"}
N = 60
HOOKS = """
[hooks.window]
command = ["/bin/sh", "-c", "echo 'the window is closed' >&2; exit 1", "a-secret-argument"]
when = "before"
"""

Migrate = Callable[..., Result]


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of three small models, with keys."""
    folder = write_models(tmp_path_factory.mktemp("moving"))
    options = {
        "--model": str(folder / f"{NAMES[0]}.gguf"),
        "--extra-models": ",".join(str(folder / f"{name}.gguf") for name in NAMES[1:]),
        "--max-open-models": "3",
        "--cache-dir": str(folder / "cache"),
        "--data-dir": str(folder / "data"),
    }
    given = [part for pair in options.items() for part in pair]
    (folder / "hooks.toml").write_text(HOOKS, encoding="utf-8")
    given += ["--hooks", str(folder / "hooks.toml")]
    keys = f"admin:{ADMIN},embed:{EMBED}"
    with RunningServer(folder, *given, "--cache-on-tmpfs", PLIMSOLL_API_KEYS=keys) as server:
        yield server


@pytest.fixture
def client(moving: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=moving.url, headers={"X-API-Key": ADMIN, **JSON}) as client:
        yield client


@pytest.fixture
def migrate(run: Commands, moving: RunningServer) -> Migrate:
    """Run `plimsoll migrate` against the server."""

    def call(verb: str, *arguments: str, key: str = ADMIN) -> Result:
        header = f"Authorization: Bearer {key}"
        return run("migrate", verb, *arguments, "--url", moving.url, "--header", header)

    return call


@pytest.fixture
def ships(client: httpx.Client) -> Iterator[str]:
    """A collection of the old model; dropped at the end."""
    client.put("/collections/ships", json={"model": OLD}).raise_for_status()
    lines = [json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(texts(N))]
    sent = client.post("/collections/ships/documents", content="\n".join(lines))
    assert sent.json()["added"] == N
    yield "ships"
    client.delete("/collections/ships").raise_for_status()


def fingerprint(client: httpx.Client) -> str:
    """Of what a search reads now."""
    found = client.post("/collections/ships/search", json={"query": "ship"}, timeout=60)
    return str(found.json()["fingerprint"])


def failed_of(migration: dict[str, Any]) -> str:
    """Names of the checks that have failed."""
    checks = migration["verdict"]["checks"]
    return ", ".join(check["name"] for check in checks if check["outcome"] == "failed")


@pytest.mark.parametrize(
    ("decision", "state", "told"),
    [
        ("go", "ready", ["`plimsoll migrate cutover 7`"]),
        (
            "no_go",
            "ready",
            ["what is failed: judged_queries;", "migrate validate 7`", "migrate cancel 7`"],
        ),
        ("no_go", "rolled_back", ["migrate report 7 --html", "migrate purge 7`"]),
        (
            "inconclusive",
            "ready",
            ["what is undecided: neighbours;", "validate 7 --queries FILE`", "cutover 7 --force`"],
        ),
    ],
)
def test_a_verdict_says_what_to_do_next(decision: str, state: str, told: list[str]):
    """The last line of a run of hours is what its reader goes on from."""
    migration = report(state=state)["migration"]
    migration["verdict"]["decision"] = decision
    step = next_step(migration)
    assert [each for each in told if each not in step] == []


def test_a_collection_goes_there_and_back_by_commands(
    migrate: Migrate, client: httpx.Client, ships: str
):
    """The walk of docs/migration.md."""
    before = fingerprint(client)
    assert "nothing stands in the way" in migrate("doctor", ships).output
    planned = migrate("plan", ships, "--model", NEW)
    assert f"{N}, {N} of them counted" in planned.output

    done = migrate("run", ships, "--model", NEW, "--why", "smaller")
    assert done.exit_code == 0, done.output
    assert "verdict: go" in done.output
    assert fingerprint(client) == before
    number = str(json.loads(migrate("status", "--json").output)[0]["id"])
    assert done.stderr.endswith(f"next: `plimsoll migrate cutover {number}`\n")

    assert migrate("cutover", number).exit_code == 0
    assert fingerprint(client) != before
    assert migrate("rollback", number).exit_code == 0
    assert fingerprint(client) == before
    assert migrate("cutover", number).exit_code == 0
    assert migrate("purge", number).exit_code == 0
    shown = migrate("status", number).output
    assert "purged" in shown
    assert "smaller" in shown
    refused = migrate("rollback", number)
    assert refused.exit_code == 2
    assert "(409)" in refused.output


def test_searches_before_cut_over_are_compared_or_read_both_versions(
    migrate: Migrate, client: httpx.Client, ships: str
):
    """By commands, and as `status` and the replies of searches tell it."""
    asked = {"query": "ship load line", "mode": "dense"}
    assert migrate("run", ships, "--model", NEW, "--progressive").exit_code == 0
    number = str(client.get("/migrations").json()["migrations"][0]["id"])
    assert "searches read both versions" in migrate("status", number).output
    answer = client.post(f"/collections/{ships}/search", json=asked).json()
    assert answer["fingerprint"] is None
    assert [(part["model"], part["documents"]) for part in answer["parts"]] == [(NEW, N), (OLD, 0)]

    refused = migrate("shadow", number, "--share", "1")
    assert refused.exit_code == 2
    assert "(409)" in refused.output
    assert migrate("progressive", number, "off", "--why", "seen").exit_code == 0
    assert migrate("shadow", number, "--share", "1").exit_code == 0
    client.post(f"/collections/{ships}/search", json=asked).raise_for_status()
    deadline_s = monotonic() + DEADLINE_S
    while not client.get(f"/migrations/{number}").json()["shadow"]["compared"]:
        assert monotonic() < deadline_s
    assert migrate("shadow", number, "--share", "0").exit_code == 0
    shown = migrate("status", number).output
    assert "rank agreement, mean" in shown
    assert "searches read one version; seen" in shown
    client.post(f"/migrations/{number}/cancel", json={}).raise_for_status()


def test_a_run_that_goes_on_takes_no_option_in_silence(
    migrate: Migrate, client: httpx.Client, ships: str, tmp_path: Path
):
    """A verdict by other queries than were given would be believed."""
    begun = client.post("/migrations", json={"collection": ships, "model": NEW, "start": False})
    number, size = begun.json()["id"], begun.json()["target"]["dimensions"]
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"query": "a ship", "relevant": ["d1"]}\n')

    judged = migrate("run", ships, "--model", NEW, "--queries", str(queries))
    sized = migrate("run", ships, "--model", NEW, "--dimensions", str(size - 1))

    assert (judged.exit_code, sized.exit_code) == (2, 2)
    assert f"plimsoll migrate validate {number} --queries" in judged.output.replace("\n", " ")
    assert f"{size} dimensions" in sized.output
    assert client.get(f"/migrations/{number}").json()["state"] == "planned"
    client.post(f"/migrations/{number}/cancel", json={}).raise_for_status()


def test_a_bridge_is_planned_and_asked_for_by_an_option(
    migrate: Migrate, client: httpx.Client, ships: str
):
    """Here it is refused: half of so few documents say nothing. The migration goes on."""
    planned = migrate("plan", ships, "--model", NEW, "--bridge")
    assert "bridge: would be refused: it would be fitted on 30 documents" in planned.output
    done = migrate("run", ships, "--model", NEW, "--bridge")
    assert done.exit_code == 0, done.output
    assert "bridge: refused: it would be fitted on 30 documents" in done.output
    assert "there was no bridge: it would be fitted" in done.output.replace("\n", " ")
    assert migrate("run", ships, "--model", NEW, "--bridge").exit_code == 0
    other = migrate("run", ships, "--model", NEW, "--force-bridge")
    assert (other.exit_code, "with the bridge 'gated'" in other.output) == (2, True)
    number = client.get("/migrations").json()["migrations"][0]["id"]
    client.post(f"/migrations/{number}/cancel", json={}).raise_for_status()


def test_a_bad_model_is_no_go_and_exit_code_1(
    migrate: Migrate, client: httpx.Client, ships: str, tmp_path: Path
):
    """The queries are judged by what the old model finds first."""
    queries, lines = tmp_path / "queries.jsonl", list[str]()
    for text in texts(12):
        asked = {"query": text[:9], "top_k": 1, "mode": "dense"}
        answer = client.post(f"/collections/{ships}/search", json=asked).json()
        relevant = [answer["results"][0]["id"]]
        lines.append(json.dumps({"query": text[:9], "relevant": relevant}))
    queries.write_text("\n".join(lines), encoding="utf-8")

    done = migrate("run", ships, "--model", BAD, "--queries", str(queries), "--json")
    assert done.exit_code == 1, done.output
    answer = json.loads(done.stdout)
    assert answer["verdict"]["decision"] == "no_go"
    assert f"next: look at what is failed: {failed_of(answer)}; " in done.stderr
    assert answer["judged_queries"] == 12
    number = str(answer["id"])
    refused = migrate("cutover", number)
    assert refused.exit_code == 2
    assert "force it" in refused.output
    assert migrate("validate", number).exit_code == 1
    assert migrate("cutover", number, "--force").exit_code == 0
    assert migrate("rollback", number).exit_code == 0
    assert migrate("purge", number).exit_code == 0


def test_a_run_goes_on_with_what_is_paused(migrate: Migrate, client: httpx.Client, ships: str):
    asked = {"collection": ships, "model": NEW, "start": False}
    number = str(client.post("/migrations", json=asked).json()["id"])
    done = migrate("run", ships, "--model", NEW)

    assert done.exit_code == 0, done.output
    assert migrate("cancel", number).exit_code == 0
    again = migrate("run", ships, "--model", NEW)
    assert again.exit_code == 0
    answer = json.loads(migrate("status", "--json").output)[0]
    assert answer["id"] > int(number)
    assert migrate("cancel", str(answer["id"])).exit_code == 0


def test_events_end_when_nothing_is_under_way(client: httpx.Client, ships: str):
    """Each is the migration as it then was; a watcher has to do nothing else."""
    number = client.post("/migrations", json={"collection": ships, "model": NEW}).json()["id"]
    with client.stream("GET", f"/migrations/{number}/events", timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]

    assert lines[::2] == ["event: migration"] * (len(lines) // 2)
    last = json.loads(lines[-1].removeprefix("data: "))
    assert (last["state"], last["vectors"], last["documents"]) == ("ready", N, N)
    client.post(f"/migrations/{number}/cancel", json={}).raise_for_status()


def test_only_operators_move_collections(migrate: Migrate, ships: str):
    """A key for embedding may look, and change nothing."""
    assert migrate("status", key=EMBED).exit_code == 0
    for verb, *arguments in (
        ("doctor", ships),
        ("plan", ships, "--model", NEW),
        ("run", ships, "--model", NEW),
        ("cutover", "1"),
        ("rollback", "1"),
        ("purge", "1"),
        ("pause", "1"),
        ("cancel", "1"),
        ("validate", "1"),
    ):
        refused = migrate(verb, *arguments, key=EMBED)
        assert (refused.exit_code, "(403)" in refused.output) == (2, True), verb


def test_a_server_that_is_not_there_is_said(run: Commands):
    refused = run("migrate", "status", "--url", "http://127.0.0.1:9")
    assert refused.exit_code == 2
    assert "the server at http://127.0.0.1:9 does not answer" in refused.output


def test_a_file_that_holds_no_queries_is_refused_with_its_line(
    migrate: Migrate, ships: str, tmp_path: Path
):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"query": "ship", "relevant": ["d1"]}\n{"query": "sea"}\n', "utf-8")
    refused = migrate("run", ships, "--model", NEW, "--queries", str(queries))
    assert refused.exit_code == 2
    assert 'line 2 is no judged query: it takes {"query"' in refused.output


@pytest.mark.parametrize("line", ["[1]", "3", "null", '"ship"', '{"relevant": ["d1"]}'])
def test_a_line_without_a_query_is_told_what_it_takes(
    migrate: Migrate, ships: str, tmp_path: Path, line: str
):
    queries = tmp_path / "queries.jsonl"
    queries.write_text(line, "utf-8")
    refused = migrate("run", ships, "--model", NEW, "--queries", str(queries))
    assert refused.exit_code == 2
    assert 'line 1 is no judged query: it takes {"query"' in refused.output


def test_an_empty_file_of_queries_begins_nothing(
    migrate: Migrate, client: httpx.Client, ships: str, tmp_path: Path
):
    """A migration keeps the queries that it began with: none would be a verdict without them."""
    queries = tmp_path / "queries.jsonl"
    queries.write_text("\n \n", "utf-8")
    before = client.get("/migrations").json()
    refused = migrate("run", ships, "--model", NEW, "--queries", str(queries))
    assert refused.exit_code == 2
    assert "queries.jsonl has no judged query" in refused.output
    assert client.get("/migrations").json() == before


def test_versions_that_agree_as_chance_does_agree_on_0_percent():
    watch = {"compared": 20, "agreement": -0.003, "least_agreement": 0.3}
    assert "20 agree with the old version on 0% of what" in agreement_told(watch)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, told: str):
    assert duration(seconds) == told


# --- hooks and job files --------------------------------------------------------------------


@pytest.fixture
def hooks(run: Commands, moving: RunningServer) -> Migrate:
    """Run `plimsoll hooks` against the server."""

    def call(verb: str, *arguments: str, key: str = ADMIN) -> Result:
        header = f"Authorization: Bearer {key}"
        return run("hooks", verb, *arguments, "--url", moving.url, "--header", header)

    return call


def test_hooks_are_listed_and_tried(hooks: Migrate):
    """What a command runs is the operator's matter, and is not shown."""
    listed = hooks("list")
    assert listed.exit_code == 0, listed.output
    assert "validate-memory" in listed.output
    assert "a-secret-argument" not in hooks("list", "--json").output
    assert hooks("run", "validate-memory").exit_code in (0, 1)  # by what the machine has
    said = hooks("run", "window")
    assert (said.exit_code, "the window is closed" in said.output) == (1, True)
    unknown = hooks("run", "windw")
    assert (unknown.exit_code, "did you mean window?" in unknown.output) == (2, True)
    needing = hooks("run", "benchmark-baseline")
    assert (needing.exit_code, "--migration NUMBER" in needing.output) == (2, True)
    assert hooks("list", key=EMBED).exit_code == 2


def test_a_server_without_links_says_where_they_come_from(run: Commands, moving: RunningServer):
    """A table without a line looks as if the file had been read."""
    given = ("--url", moving.url, "--header", f"Authorization: Bearer {ADMIN}")
    assert "PLIMSOLL_LINKS" in run("links", "list", *given).output
    assert "there are none" in run("links", "pull", "ships", *given).output


def test_a_job_file_says_what_is_moved(
    migrate: Migrate, client: httpx.Client, ships: str, tmp_path: Path
):
    """Run twice, it goes on with what the first run has begun."""
    job = tmp_path / "ships.toml"
    (tmp_path / "queries.jsonl").write_text('{"query": "a ship", "relevant": ["d1"]}\n', "utf-8")
    job.write_text(
        f'collection = "{ships}"\nmodel = "{NEW}"\nqueries = "queries.jsonl"\n'
        'hooks = ["validate-embeddings", "session-export"]\nwhy = "by the file"\n',
        encoding="utf-8",
    )
    done = migrate("run", str(job), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["named_hooks"] == ["validate-embeddings", "session-export"]
    assert [asked["outcome"] for asked in found["hooks"]] == ["passed", "passed"]
    assert found["judged_queries"] == 1
    assert found["changes"][0]["why"] == "by the file"
    same = ("run", ships, "--model", NEW, "--queries", str(tmp_path / "queries.jsonl"))
    by_options = migrate(*same)
    assert by_options.exit_code == 0, by_options.output
    assert "goes on with the 1 queries" in by_options.stderr
    others = tmp_path / "others.jsonl"
    others.write_text('{"query": "a ship", "relevant": ["d2"]}\n', "utf-8")
    refused = migrate(*same[:-1], str(others))
    assert refused.exit_code == 2
    assert "others.jsonl has as many, but not the same" in refused.output.replace("\n", " ")
    again = migrate("run", "--job", str(job), "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["id"] == found["id"]
    assert migrate("run", str(job), "--hook", "notify").exit_code == 2
    client.post(f"/migrations/{found['id']}/cancel", json={}).raise_for_status()


def test_a_migration_is_told_as_a_page_and_as_tables(
    migrate: Migrate, client: httpx.Client, ships: str, tmp_path: Path
):
    """What the server answers has everything that the page asks for."""
    assert migrate("run", ships, "--model", NEW, "--hook", "memory-monitor").exit_code == 0
    number = client.get("/migrations").json()["migrations"][0]["id"]
    page = tmp_path / "migration.html"
    done = migrate("report", str(number), "--html", str(page))
    assert (done.exit_code, done.stdout) == (0, "")
    written = page.read_text(encoding="utf-8")
    for told in ("Verdict: go", "memory-monitor", "embedded_again", "planned", ships):
        assert told in written
    tables = migrate("report", str(number)).output
    assert "verdict: go" in tables
    found = json.loads(migrate("report", str(number), "--json").stdout)
    assert found["progress"][-1]["n_embedded"] == found["migration"]["embedded"] == N
    nowhere = migrate("report", str(number), "--html", str(tmp_path / "none" / "x.html"))
    assert nowhere.exit_code == 2
    client.post(f"/migrations/{number}/cancel", json={}).raise_for_status()


def test_a_hook_that_stops_a_run_is_what_the_command_ends_with(
    migrate: Migrate, client: httpx.Client, ships: str
):
    stopped = migrate("run", ships, "--model", NEW, "--hook", "window")
    assert stopped.exit_code == 2
    assert "hook 'window' stopped it: the window is closed" in stopped.output
    others = migrate("run", ships, "--model", NEW, "--hook", "notify")
    assert (others.exit_code, "with the hooks window" in others.output) == (2, True)
    (found, *_) = client.get("/migrations").json()["migrations"]
    client.post(f"/migrations/{found['id']}/cancel", json={}).raise_for_status()


def test_a_plan_waits_while_its_model_is_made_ready(
    migrate: Migrate, ships: str, monkeypatch: pytest.MonkeyPatch
):
    """A model may have to be converted first, for minutes."""
    do, n_refused = Client._do, 0

    def refused(self: Client, step: Ask | Pause) -> Answer | None:
        nonlocal n_refused
        if isinstance(step, Ask) and step.path.endswith("/plan") and n_refused < 2:
            n_refused += 1
            error = {"code": "model_loading", "message": "new is being made ready"}
            return Answer(503, {"retry-after": "0"}, json.dumps({"error": error}).encode())
        return do(self, step)

    monkeypatch.setattr(Client, "_do", refused)
    planned = migrate("plan", ships, "--model", NEW)
    assert (planned.exit_code, n_refused) == (0, 2)
    assert planned.stderr.count("waiting: the server refused (503): new is being made ready") == 1
