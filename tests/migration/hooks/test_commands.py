"""Hooks that are processes: what they are told, how they answer, and how they are ended."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.errors import HookError
from plimsoll.migration.hooks.commands import CLEAN_ENVIRONMENT, CommandHook, answer_of
from plimsoll.migration.hooks.records import PLUGIN_FAILED, Answer
from tests.migration.hooks.occasions import occasion
from tests.running_server import DEADLINE_S

CHECK_S = 0.01

Script = Callable[[str], list[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A program of some lines of shell."""

    def write(lines: str) -> list[str]:
        path = tmp_path / "hook.sh"
        path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return [str(path)]

    return write


def ask(argv: list[str], **environment: str) -> Answer:
    return asyncio.run(CommandHook(argv, environment)(occasion(attempt=2)))


async def until_gone(pid: int) -> None:
    """Wait until there is no such process, or only what its parent has not yet collected."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state.split()[0] == "Z":
                return
            await asyncio.sleep(CHECK_S)


async def until_written(path: Path) -> int:
    """The number that a process writes into a file once it runs."""
    async with asyncio.timeout(DEADLINE_S):
        while not (path.exists() and path.read_text(encoding="utf-8").endswith("\n")):
            await asyncio.sleep(CHECK_S)
    return int(path.read_text(encoding="utf-8"))


def test_a_command_is_told_the_occasion_as_json(script: Script, tmp_path: Path):
    """One line, whole, and then the end of its input."""
    told = tmp_path / "told"
    assert ask(script(f"cat > {told}")) == Answer()
    (line,) = told.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == occasion(attempt=2).as_json()
    assert json.loads(line)["attempt"] == 2
    assert json.loads(line)["memory"]["used_ratio"] == 0.5


def test_a_command_inherits_nothing_of_the_server(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server's environment may hold keys."""
    monkeypatch.setenv("PLIMSOLL_API_KEYS", "admin:a-secret-of-this-test")
    told = tmp_path / "told"
    ask(script(f"env > {told}"), TICKET_QUEUE="search")
    given = dict(line.split("=", 1) for line in told.read_text("utf-8").splitlines())
    by_the_shell = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert {name: given[name] for name in given.keys() - by_the_shell} == {
        **CLEAN_ENVIRONMENT, "TICKET_QUEUE": "search"
    }  # fmt: skip
    assert given["PWD"] == "/"


def test_no_shell_reads_the_arguments(tmp_path: Path):
    """What looks like a command is a word."""
    told = tmp_path / "told"
    code = f"import sys; open({str(told)!r}, 'w').write(sys.argv[1])"
    ask([sys.executable, "-c", code, "$(id); rm -r / #"])
    assert told.read_text(encoding="utf-8") == "$(id); rm -r / #"


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ("exit 0", Answer()),
        ("echo busy >&2; echo 'no window is open' >&2; exit 7", Answer(True, "no window is open")),
        ("exit 7", Answer(True, "exit code 7")),
        ('echo \'{"ok": true, "figures": {"n": 3}}\'', Answer(figures={"n": 3})),
        ('echo \'{"ok": false, "reason": "closed"}\'', Answer(True, "closed")),
        ('echo \'{"ok": true, "reason": "all is well"}\'; exit 1', Answer(True, "all is well")),
        ("echo '{\"ok\": false}'", Answer(True, "it gave no reason")),
    ],
)
def test_a_command_answers_by_its_exit_code_or_a_line(script: Script, lines: str, answer: Answer):
    assert ask(script(lines)) == answer


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("echo all is well", "no line of JSON"),
        ("echo '[1]'", 'no object with "ok"'),
        ("echo '{\"ok\": 1}'", 'no object with "ok"'),
        ('echo \'{"ok": true, "reasons": []}\'', "'reasons'"),
        ('echo \'{"ok": true, "figures": 3}\'', "figures"),
        ("kill -KILL $$", "ended by SIGKILL"),
        ("kill -40 $$", "ended by signal 40"),
        ("head -c 9000 /dev/zero | tr '\\0' x", "longer than 8 KiB"),
    ],
)
def test_what_is_no_answer_is_said(script: Script, lines: str, why: str):
    with pytest.raises(HookError, match=why):
        ask(script(lines))


def test_a_command_that_is_not_there_is_said(tmp_path: Path, script: Script):
    missing = str(tmp_path / "none")
    with pytest.raises(HookError, match="is no program that this server may run"):
        ask([missing])
    (path,) = script("exit 0")
    Path(path).write_text("#!/no/such/shell\n", encoding="utf-8")
    with pytest.raises(HookError, match="does not start: No such file"):
        ask([path])


def test_a_command_that_is_not_waited_for_ends_with_all_that_it_started(
    script: Script, tmp_path: Path
):
    """A hook that hangs may have started others, and may not listen to a polite signal."""
    child, itself = tmp_path / "child", tmp_path / "itself"
    lines = (
        f"trap '' TERM\nsh -c 'trap \"\" TERM; echo $$ > {child}; while :; do sleep 100; done' &\n"
        f"echo $$ > {itself}\nwait\nwhile :; do sleep 100; done"
    )

    async def play() -> None:
        asked = asyncio.create_task(CommandHook(script(lines), {})(occasion()))
        pids = [await until_written(child), await until_written(itself)]
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        for pid in pids:
            await until_gone(pid)

    asyncio.run(play())


def test_what_a_command_leaves_behind_is_ended_and_not_waited_for(script: Script, tmp_path: Path):
    """It holds the output open; the answer has come."""
    child = tmp_path / "child"
    lines = f"sh -c 'echo $$ > {child}; exec sleep 1000' &\nwhile [ ! -s {child} ]; do :; done"

    async def play() -> None:
        assert await CommandHook(script(lines), {})(occasion()) == Answer()
        await until_gone(await until_written(child))

    asyncio.run(play())


def test_what_leaves_the_group_is_not_waited_for(script: Script, tmp_path: Path):
    """As a connection that ssh keeps open does: it holds the output, and the answer has come."""
    child = tmp_path / "child"
    lines = (
        f"setsid sh -c 'echo $$ > {child}; exec sleep 1000' &\n"
        f'while [ ! -s {child} ]; do :; done\necho \'{{"ok": false, "reason": "no"}}\''
    )

    async def play() -> None:
        async with asyncio.timeout(DEADLINE_S):
            assert await CommandHook(script(lines), {})(occasion()) == Answer(True, "no")
        os.kill(await until_written(child), signal.SIGKILL)

    asyncio.run(play())


def test_a_command_may_end_without_reading(script: Script):
    """A question that is longer than a pipe holds."""
    told = occasion(hook="x" * (1 << 20))
    answer = asyncio.run(CommandHook(script("exec 0<&-; exit 0"), {})(told))
    assert answer == Answer()


PLUGIN = """
import pluggy
hookimpl = pluggy.HookimplMarker("plimsoll")

@hookimpl
def plimsoll_hook(occasion):
    print("what is printed is no answer")
    return {answer}
"""


def ask_plugin(folder: Path, content: str) -> Answer:
    (folder / "acme_audit.py").write_text(content, encoding="utf-8")
    argv = [sys.executable, "-P", "-m", "plimsoll.migration.hooks.plugin_process", "acme_audit"]
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    hook = CommandHook(argv, environment, no_answer=PLUGIN_FAILED)
    return asyncio.run(hook(occasion()))


@pytest.mark.parametrize(
    ("returned", "answer"),
    [
        ("None", Answer()),
        ('"not on a Friday"', Answer(True, "not on a Friday")),
        (
            '{"ok": True, "figures": {"asked": occasion["hook"]}}',
            Answer(figures={"asked": "it"}),
        ),
    ],
)
def test_a_plug_in_answers_in_a_process_of_its_own(tmp_path: Path, returned: str, answer: Answer):
    assert ask_plugin(tmp_path, PLUGIN.replace("{answer}", returned)) == answer


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("x = 1", "has no @hookimpl"),
        ("raise ValueError('half-written')", "ValueError: half-written"),
        (PLUGIN.replace("{answer}", "1 / 0"), "ZeroDivisionError"),
        (PLUGIN.replace("plimsoll_hook", "plimsol_hook"), "plimsol_hook"),
        (PLUGIN.replace("{answer}", "__import__('sys').exit()"), "SystemExit"),
        (PLUGIN.replace("{answer}", '{"ok": True, "figures": {"set": {1}}}'), "TypeError"),
    ],
)
def test_a_plug_in_that_breaks_gives_no_answer(tmp_path: Path, content: str, why: str):
    """Broken is not a no."""
    with pytest.raises(HookError, match=why):
        ask_plugin(tmp_path, content)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (b"", b"\x1b[31mlate\x07"),
        (b'{"ok": false, "reason": "\\u001b[31mlate\\n"}', b""),
    ],
)
def test_a_reason_is_obeyed_by_no_terminal(told: bytes, complaint: bytes):
    """It is shown to people, and stands in a line of the log."""
    assert answer_of(1, told, complaint).reason == "\ufffd[31mlate\ufffd"


def test_a_reason_is_cut_for_the_audit():
    answer = answer_of(1, b"", b"x" * 5000)
    assert len(answer.reason) == 1000
