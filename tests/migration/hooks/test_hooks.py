"""Hooks of whole migrations: order, stops, audit, cut-over, and a server that dies beneath one."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, cast

import pytest

from plimsoll.corpora.records import Document
from plimsoll.errors import (
    HookStoppedError,
    InvalidRequestError,
    MigrationStateError,
    StoreError,
    UnknownHookError,
)
from plimsoll.links.links import Links
from plimsoll.migration import stages
from plimsoll.migration.after_cutover import AGAIN_S, HooksAfterCutover
from plimsoll.migration.hooks import journal as hooks_journal
from plimsoll.migration.hooks.hooks import HookedRun, MigrationHooks
from plimsoll.migration.hooks.records import HookOutcome, Moment
from plimsoll.migration.states import MigrationState as State
from tests.migration.hooks.test_commands import until_gone, until_written
from tests.migration.models import CHECK_S, NEW, OLD, Inside, inside, settings_of, texts
from tests.running_server import DEADLINE_S, ROOT, environment

N = 60
Scene = Callable[[Inside], Awaitable[None]]


def write_hooks(
    folder: Path, hooks: Mapping[str, Mapping[str, Any]], always: Sequence[str] = ()
) -> None:
    """The operator's file; lists and strings are written alike in JSON and TOML."""
    lines = [f"always = {json.dumps([*always])}"]
    for name, table in hooks.items():
        lines.append(f"[hooks.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    (folder / "hooks.toml").write_text("\n".join(lines), encoding="utf-8")


def shell(lines: str, when: str | list[str], **options: Any) -> dict[str, Any]:
    """A hook of some lines of shell."""
    return {"command": ["/bin/sh", "-c", lines], "when": when, **options}


def run(folder: Path, scene: Scene) -> None:
    """Play a scene in a server that has a collection of ships."""

    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model=OLD)
            given = [Document(f"d{number}", text) for number, text in enumerate(texts(N))]
            await server.put("ships", given)
            await scene(server)
        assert server.core.governor.admission.held_bytes == 0

    asyncio.run(play())


async def outcomes(server: Inside, number: int) -> dict[tuple[str, str], HookOutcome]:
    """The last of each hook, by moment and name."""
    status = await server.migrations.status(number)
    return {(asked.moment.value, asked.hook): asked for asked in status.counts.hooks}


def test_hooks_are_asked_in_order_and_at_their_moments(folder: Path):
    """What is always asked comes first, then what the migration names, in its order."""
    told = folder / "told"
    note = f"echo $0 >> {told}"  # /bin/sh -c LINES NAME
    write_hooks(
        folder,
        {
            name: {"command": ["/bin/sh", "-c", note, f"{name}"], "when": when}
            for name, when in {
                "last": "before",
                "first": "before",
                "judged": "after",
                "asking": "before-cutover",
            }.items()
        },
        always=["first"],
    )

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["judged", "last", "asking"])
        status = await server.until_rest(number)
        assert status.state is State.READY, status.failure
        assert told.read_text("utf-8").split() == ["first", "last", "judged"]
        await server.migrations.cut_over(number, "test", "")
        assert told.read_text("utf-8").split() == ["first", "last", "judged", "asking"]
        asked = (await server.migrations.status(number)).counts.hooks
        assert [(one.hook, one.outcome, one.attempt) for one in asked] == [
            ("first", "passed", 1), ("last", "passed", 1), ("judged", "passed", 1),
            ("asking", "passed", 1),
        ]  # fmt: skip

    run(folder, scene)


def test_a_hook_before_a_run_stops_it_and_says_why(folder: Path):
    """Nothing is embedded, the reason is in status and audit, and the run goes on once it may."""
    gate = folder / "open"
    write_hooks(
        folder, {"gate": shell(f"test -e {gate} || {{ echo closed >&2; exit 1; }}", "before")}
    )

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["gate"])
        status = await server.until_rest(number)
        assert status.state is State.FAILED
        assert status.failure == "hook 'gate' stopped it: closed"
        assert status.counts.changes[-1].why == status.failure
        assert status.counts.migration.checkpoint.n_embedded == 0
        asked = await outcomes(server, number)
        assert asked["before", "gate"].outcome == "stopped"

        gate.touch()
        await server.migrations.resume(number, "test", "opened")
        assert (await server.until_rest(number)).state is State.READY

    run(folder, scene)


def test_a_hook_beside_a_run_stops_it(folder: Path):
    """It fails as with any error: what was stored stays, and a resumed run goes on."""
    full, asked = folder / "full", folder / "asked"
    full.touch()
    lines = f"echo >> {asked}; test ! -e {full} || {{ echo 'the quota is gone' >&2; exit 1; }}"
    write_hooks(folder, {"quota": shell(lines, "during", interval_s=1)})

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["quota"])
        status = await server.until_rest(number)
        assert status.failure == "hook 'quota' stopped it: the quota is gone"
        full.unlink()
        await server.migrations.resume(number, "test", "")
        assert (await server.until_rest(number)).state is State.READY
        # Once at its beginning and once at its end, however quick it was.
        assert len(asked.read_text("utf-8").splitlines()) >= 1 + 2

    run(folder, scene)


def test_a_hook_that_is_asked_while_a_run_ends_is_asked_once_more(folder: Path):
    """What it was told then had no verdict; the last look is the one that is written down."""
    noted = list[bool]()

    async def scene(server: Inside) -> None:
        ended = asyncio.Event()

        async def look(is_noted: bool) -> None:
            noted.append(is_noted)
            ended.set()

        async with asyncio.timeout(DEADLINE_S):
            await server.migrations.hooks._repeat(look, CHECK_S, ended)

    run(folder, scene)
    assert noted == [False, True]


def test_a_hook_that_goes_on_failing_is_told_once_and_again_when_it_changes(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A broken hook that looks each second would fill the log, and write the file, for hours."""
    answer = folder / "answer"
    write_hooks(folder, {"watch": shell(f"cat {answer}", "during", required=False)})
    noted, end = list[tuple[str, str]](), hooks_journal.end

    def note(connection: Any, migration: int, number: int, outcome: HookOutcome) -> None:
        noted.append((outcome.outcome, outcome.reason))
        end(connection, migration, number, outcome)

    monkeypatch.setattr(hooks_journal, "end", note)

    async def scene(server: Inside) -> None:
        answer.write_text("once", encoding="utf-8")
        number = await server.begin("ships", NEW, hooks=["watch"], starts=False)
        hooks = server.migrations.hooks
        look = await hooks._first_look(hooks.catalog.find("watch"), HookedRun(number))
        for told, n_looks in (("once", 3), ("other", 3), ('{"ok": true}', 2), ("other", 2)):
            answer.write_text(told, encoding="utf-8")
            for _ in range(n_looks):
                await look(False)
        assert hooks._metrics._hooks.labels("failed")._value.get() == 1 + 3 + 3 + 2

    with caplog.at_level(logging.INFO, logger="plimsoll.migration.hooks.hooks"):
        run(folder, scene)
    once, other = (f"its answer is no line of JSON: b'{told}'" for told in ("once", "other"))
    assert noted == [("failed", once), ("failed", other), ("passed", ""), ("failed", other)]
    told = [record.getMessage() for record in caplog.records if "answer" in record.msg]
    assert told == [
        f"hook 'watch' gives no answer: {once}",
        f"hook 'watch' gives no answer: {other}",
        "hook 'watch' answers again",
        f"hook 'watch' gives no answer: {other}",
    ]


def test_a_hook_after_a_run_keeps_it_from_being_ready(folder: Path):
    """The verdict is told to it, and is kept; a cut-over is not to be had."""
    told = folder / "told"
    write_hooks(folder, {"board": shell(f"cat > {told}; echo unheard >&2; exit 1", "after")})

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["board"])
        status = await server.until_rest(number)
        assert status.state is State.FAILED
        assert status.failure == "hook 'board' stopped it: unheard"
        verdict = json.loads(told.read_text("utf-8"))["migration"]["verdict"]
        assert verdict == status.counts.migration.verdict
        with pytest.raises(MigrationStateError):
            await server.migrations.cut_over(number, "test", "", force=True)

    run(folder, scene)


def test_a_hook_that_hangs_is_ended_with_its_group(folder: Path):
    """No answer is no yes: the run stops, unless the hook is not required."""
    pid = folder / "pid"
    hang = f"echo $$ > {pid}; sleep 1000"
    write_hooks(
        folder,
        {
            "hangs": shell(hang, "before", timeout_s=1),
            "hangs-too": shell(hang, "before", timeout_s=1, required=False),
            "missing": {"command": ["/no/such/program"], "when": "before"},
        },
    )

    async def scene(server: Inside) -> None:
        for hook, why in {
            "hangs": "no answer within 1 s",
            "missing": "'/no/such/program' is no program that this server may run",
        }.items():
            number = await server.begin("ships", NEW, hooks=[hook])
            status = await server.until_rest(number)
            assert status.failure == f"hook {hook!r} gave no answer: {why}"
            await server.migrations.cancel(number, "test", "")
        await until_gone(await until_written(pid))
        number = await server.begin("ships", NEW, hooks=["hangs-too"])
        assert (await server.until_rest(number)).state is State.READY
        asked = await outcomes(server, number)
        assert asked["before", "hangs-too"].outcome == "failed"

    run(folder, scene)


def test_a_pause_ends_the_hook_that_is_asked(folder: Path):
    pid = folder / "pid"
    write_hooks(folder, {"slow": shell(f"echo $$ > {pid}; sleep 1000", "before")})

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["slow"])
        process = await until_written(pid)
        assert (await server.migrations.pause(number, "test", "")).state is State.PAUSED
        await until_gone(process)

    run(folder, scene)


def test_a_hook_before_a_cut_over_refuses_it(folder: Path):
    """Searches read the old version, and the state is as it was."""
    write_hooks(folder, {"window": shell("echo 'not on a Friday' >&2; exit 1", "before-cutover")})

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["window"])
        await server.until_rest(number)
        for _ in range(2):
            with pytest.raises(HookStoppedError, match="not on a Friday"):
                await server.migrations.cut_over(number, "test", "", force=True)
        assert (await server.migrations.status(number)).state is State.READY
        asked = await outcomes(server, number)
        assert asked["before-cutover", "window"].attempt == 2

    run(folder, scene)


def test_a_hook_after_a_cut_over_takes_it_back(folder: Path):
    write_hooks(folder, {"smoke": shell("echo 'no answers' >&2; exit 1", "after-cutover")})

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["smoke"])
        await server.until_rest(number)
        await server.migrations.cut_over(number, "test", "")
        async with asyncio.timeout(DEADLINE_S):
            status = await server.migrations.status(number)
            while status.state is not State.ROLLED_BACK:
                await asyncio.sleep(CHECK_S)
                status = await server.migrations.status(number)
        assert status.counts.changes[-1].why == "hook 'smoke' stopped it: no answers"
        assert status.counts.changes[-1].who == "server"

    run(folder, scene)


def test_a_server_that_dies_right_after_a_cut_over_asks_its_hooks_when_it_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The pointer's change is written, and not one of the hooks that may take it back was asked."""
    told = folder / "told"
    note = {"command": ["/bin/sh", "-c", f"echo $0 >> {told}"], "when": "after-cutover"}
    hooks = {name: {**note, "command": [*note["command"], name]} for name in ("one", "two")}
    write_hooks(folder, {**hooks, "smoke": shell("echo 'no answers' >&2; exit 1", "after-cutover")})

    async def dies(server: Inside) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(HooksAfterCutover, "begin", lambda itself, number: None)
            number = await server.begin("ships", NEW, hooks=["one", "two", "smoke"])
            await server.until_rest(number)
            status = await server.migrations.cut_over(number, "test", "")
        assert status.counts.hooks == []  # what was not asked is not shown as if it were

    run(folder, dies)

    async def look() -> None:
        async with inside(settings_of(folder)) as server, asyncio.timeout(DEADLINE_S):
            while (await server.migrations.status(1)).state is not State.ROLLED_BACK:
                await asyncio.sleep(CHECK_S)
            assert told.read_text("utf-8").split() == ["one", "two"]

    asyncio.run(look())


def test_a_cut_over_that_was_done_outside_alone_asks_its_hooks_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A server that died in between starts with the pointer's change; they may take it back."""
    told = folder / "told"
    write_hooks(folder, {"smoke": shell(f"echo asked > {told}", "after-cutover")})
    targets = list[str]()

    async def dies(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["smoke"])
        status = await server.until_rest(number)
        targets.append(status.counts.migration.target.fingerprint)

    run(folder, dies)

    class Switched:
        async def active(self) -> str:
            return targets[0]

    @asynccontextmanager
    async def held(links: Links, collection: str) -> AsyncIterator[Switched]:
        yield Switched()

    monkeypatch.setattr(Links, "held", held)

    async def look() -> None:
        async with inside(settings_of(folder)) as server, asyncio.timeout(DEADLINE_S):
            while ("after-cutover", "smoke") not in (asked := await outcomes(server, 1)) or (
                asked["after-cutover", "smoke"].outcome == "under_way"
            ):
                await asyncio.sleep(CHECK_S)
            assert (await server.migrations.status(1)).state is State.CUT_OVER
            assert told.read_text("utf-8") == "asked\n"

    asyncio.run(look())


def test_a_cut_over_that_cannot_be_taken_back_at_once_is_tried_again():
    """The old model may have to open first, right after the new one took its place; and a disk
    that is full when the hook's answer is written down says nothing of the new version."""
    tried, waited = list[str](), list[float]()
    unwritten = [StoreError("the disk is full")]

    class Stopping:
        async def ask(self, run: HookedRun, moment: Moment) -> None:
            if unwritten:
                raise unwritten.pop()
            raise HookStoppedError(f"{moment.value} {run.number}")

    async def go_back(number: int, why: str) -> bool:
        tried.append(why)
        if len(tried) == 3:
            ended.set()
        return len(tried) == 3

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    async def play() -> None:
        after = HooksAfterCutover(cast(MigrationHooks, Stopping()), go_back, pause)
        after.begin(7)
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        await after.close()

    ended = asyncio.Event()
    asyncio.run(play())
    assert tried == ["after-cutover 7"] * 3
    assert waited == [AGAIN_S] * 3


def test_only_hooks_that_are_configured_may_be_named(folder: Path):
    """And one that is configured no more stops a run that named it."""
    write_hooks(folder, {"ticket": shell("exit 0", "before")})

    async def scene(server: Inside) -> None:
        with pytest.raises(UnknownHookError, match="did you mean ticket"):
            await server.begin("ships", NEW, hooks=["tickets"])
        assert await server.migrations.statuses() == []
        number = await server.begin("ships", NEW, hooks=["ticket"], starts=False)
        write_hooks(folder, {})

        async with inside(settings_of(folder)) as later:
            await later.migrations.resume(number, "test", "")
            status = await later.until_rest(number)
        assert status.failure is not None
        assert "there is no hook 'ticket'" in status.failure

    run(folder, scene)


def test_a_hook_is_tried_without_a_run(folder: Path):
    """An operator sees what it says before a migration depends on it."""
    write_hooks(folder, {"told": shell('echo \'{"ok": false, "reason": "no"}\'', "after")})

    async def scene(server: Inside) -> None:
        hooks = server.migrations.hooks
        tried = await hooks.try_once("told", None)
        assert (tried.outcome, tried.reason, tried.moment) == ("stopped", "no", Moment.AFTER)
        with pytest.raises(InvalidRequestError, match="say which"):
            await hooks.try_once("benchmark-baseline", None)
        number = await server.begin("ships", NEW, starts=False)
        baseline = await hooks.try_once("benchmark-baseline", number)
        assert baseline.outcome == "passed", baseline.reason
        assert (await server.migrations.status(number)).counts.hooks == []

    run(folder, scene)


def test_a_hook_stops_a_run_that_is_in_the_midst_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second look stops what the first one let begin; the reader waits for it."""
    asked = folder / "asked"
    lines = f"echo >> {asked}; test $(wc -l < {asked}) -lt 2 || exit 1"
    write_hooks(folder, {"quota": shell(lines, "during", interval_s=1)})
    look = stages._next_rows

    def look_late(*arguments: Any) -> Any:
        deadline_s = monotonic() + DEADLINE_S
        while len(asked.read_text("utf-8").splitlines()) < 2 and monotonic() < deadline_s:
            sleep(CHECK_S)
        return look(*arguments)

    monkeypatch.setattr(stages, "_next_rows", look_late)

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["quota"])
        status = await server.until_rest(number)
        assert status.failure == "hook 'quota' stopped it: exit code 1"

    run(folder, scene)


@pytest.mark.parametrize(
    ("moment", "asked"),
    [
        ("before", ["once", "deadly 1", "deadly 2"]),
        ("after", ["once", "deadly 1", "once", "deadly 2"]),  # the verdict is drawn anew
        ("during", ["deadly 1", "deadly 2"]),
    ],
)
def test_a_server_that_is_killed_beneath_a_hook_asks_it_again(
    folder: Path, moment: str, asked: list[str]
):
    """Those that had passed before the run are not asked again: a ticket is opened once."""
    told = folder / "told"
    kill = (
        "import json, os, signal, sys\nattempt = json.load(sys.stdin)['attempt']\n"
        f"open({str(told)!r}, 'a').write(f'deadly {{attempt}}\\n')\n"
        "attempt > 1 or os.kill(os.getppid(), signal.SIGKILL)"
    )
    hooks = {"deadly": {"command": [sys.executable, "-c", kill], "when": moment}}
    if moment != "during":
        hooks = {"once": shell(f"echo once >> {told}", moment), **hooks}
    write_hooks(folder, hooks)

    async def scene(server: Inside) -> None:
        await server.begin("ships", NEW, hooks=[*hooks], starts=False)

    run(folder, scene)
    worker = [sys.executable, "-m", "tests.migration.worker", str(folder)]

    def work(*arguments: str) -> int:
        return subprocess.run(
            [*worker, *arguments], cwd=ROOT, env=environment(), timeout=DEADLINE_S, check=False
        ).returncode

    assert work("resume", "1") == -signal.SIGKILL
    assert work() == 0

    found = told.read_text("utf-8").splitlines()
    if moment == "during":  # asked at the end of the run once more
        found = [*dict.fromkeys(found)]
    assert found == asked

    async def look() -> None:
        async with inside(settings_of(folder)) as server:
            status = await server.migrations.status(1)
            assert status.state is State.READY, status.failure
            outcome = (await outcomes(server, 1))[moment, "deadly"]
            assert (outcome.attempt, outcome.outcome) == (2, "passed")

    asyncio.run(look())
