"""The operator's file of hooks: what it may say, and what is said of what it may not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.errors import SettingsError, UnknownHookError
from plimsoll.migration.hooks.builtin.memory import MemoryMonitor, MemoryWatch, ValidateMemory
from plimsoll.migration.hooks.builtin.notices import Notices, Notify
from plimsoll.migration.hooks.catalog import HookCatalog
from plimsoll.migration.hooks.configuration import read_catalog
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.hooks.written import BuiltinKind

KINDS = {
    "validate-memory": BuiltinKind(
        "looks", frozenset({Moment.BEFORE}), ValidateMemory, lambda options: options
    ),
    "memory-monitor": BuiltinKind(
        "watches",
        frozenset({Moment.DURING}),
        MemoryMonitor,
        MemoryWatch,
    ),
    "notify": BuiltinKind(
        "tells", frozenset({Moment.DURING, Moment.AFTER}), Notify, Notices, interval="interval"
    ),
}

Read = Callable[[str], HookCatalog]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def call(content: str) -> HookCatalog:
        path = tmp_path / "hooks.toml"
        path.write_text(content, encoding="utf-8")
        return read_catalog(path, KINDS)

    return call


def test_built_in_hooks_may_be_named_without_a_file():
    catalog = read_catalog(None, KINDS)
    assert [*catalog.hooks] == [*KINDS]
    assert catalog.find("validate-memory").make().threshold == 0.6


def test_a_hook_is_written_as_on_a_command_line(read: Read):
    catalog = read(
        """
        always = ["enough"]
        [hooks.enough]
        builtin = "validate-memory --threshold 0.5"
        timeout_s = 3
        [hooks.hourly]
        builtin = "notify --interval=3600 --webhook https://example.org/a-key"
        required = true
        [hooks.ticket]
        command = ["/bin/true", "--now"]
        when = ["after-cutover", "before"]
        """
    )
    enough, hourly = catalog.find("enough"), catalog.find("hourly")
    assert (enough.make().threshold, enough.timeout_s) == (0.5, 3)
    assert (hourly.interval_s, hourly.required) == (3600, True)
    assert "a-key" not in hourly.told
    assert catalog.find("ticket").moments == {Moment.BEFORE, Moment.AFTER_CUTOVER}
    named = ["ticket", "validate-memory", "ticket"]
    asked = [hook.name for hook in catalog.of(named, Moment.BEFORE)]
    assert asked == ["enough", "ticket", "validate-memory"]
    assert catalog.of(named, Moment.DURING) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("alway = []", "alway is no key; did you mean always?"),
        ('[hooks.a]\ncomand = ["x"]', "hooks.a.comand is no key; did you mean command?"),
        ('[hooks.a]\ncommand = ["x"]', "say when: before, during"),
        ("[hooks.a]\ncommand = []\nwhen = 'before'", "at least 1 item"),
        ("[hooks.a]\ncommand = 'rm -r /'\nwhen = 'before'", "valid list"),
        ("[hooks.a]\ncommand = ['bin/x']\nwhen = 'before'", "'bin/x' is no whole path"),
        ('[hooks.a]\ncommand = ["x", "a\\u0000b"]\nwhen = "before"', "no character 0"),
        ("[hooks.a]\ncommand = ['x']\nwhen = 'before'\nenvironment = {'A=B' = 'c'}", "'A=B' is no"),
        ("[hooks.a]\nwhen = 'before'", "one of builtin, command and plugin"),
        ("[hooks.a]\nbuiltin = 'notify'\nplugin = 'x'", "one of builtin, command and plugin"),
        ("[hooks.a]\nplugin = 'x; y'\nwhen = 'before'", "pattern"),
        ("[hooks.a]\ncommand = ['x']\nwhen = 'sometimes'", "'before', 'during'"),
        ("[hooks.a]\nbuiltin = 'validate-memry'", "did you mean validate-memory?"),
        ("[hooks.a]\nbuiltin = 'validate-memory --treshold 1'", "did you mean --threshold?"),
        ("[hooks.a]\nbuiltin = 'validate-memory --threshold 7'", "--threshold: Input should be"),
        ("[hooks.a]\nbuiltin = 'validate-memory --threshold'", "--threshold: Input should be"),
        ("[hooks.a]\nbuiltin = 'notify --webhook ftp://x'", "http:// or https://"),
        ("[hooks.a]\nbuiltin = 'notify'\nenvironment = {A = 'b'}", "commands and plug-ins"),
        ("[hooks.a]\nbuiltin = 'notify'\ntimeout_s = 0", "greater than 0"),
        ("always = ['notfy']", "'notfy' is no hook; did you mean notify?"),
        ("always = [", "is no TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(read: Read, content: str, why: str):
    """A server that starts without a hook that was meant to stop it is worse than none."""
    with pytest.raises(SettingsError) as refused:
        read(content)
    assert why in str(refused.value)
    assert "hooks.toml" in str(refused.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        read_catalog(tmp_path / "none.toml", KINDS)


@pytest.mark.parametrize(
    ("mode", "mended"), [(0o646, "chmod go-w"), (0o666, "chmod go-w"), (0o664, "chmod g-w")]
)
def test_a_file_that_others_may_write_is_refused(
    read: Read, tmp_path: Path, mode: int, mended: str
):
    """Who writes it runs commands as the server."""
    read("")
    (tmp_path / "hooks.toml").chmod(mode)
    with pytest.raises(SettingsError, match=f"what this server runs, and .*{mended}"):
        read_catalog(tmp_path / "hooks.toml", KINDS)


def test_a_hook_that_is_not_there_is_refused_with_the_nearest(read: Read):
    with pytest.raises(UnknownHookError, match="did you mean notify"):
        read("").find("notifi")


@pytest.mark.parametrize(
    "address",
    ["http://host:eighty/a-key", "http://host:99999/a-key", "http:///a-key", "file:///a-key"],
)
def test_a_webhook_that_is_no_address_keeps_the_server_from_starting(read: Read, address: str):
    """Rather than the first notice from being told; the address may hold a key."""
    with pytest.raises(SettingsError, match="address") as refused:
        read(f'[hooks.tell]\nbuiltin = "notify --webhook {address}"')
    assert "a-key" not in str(refused.value)
