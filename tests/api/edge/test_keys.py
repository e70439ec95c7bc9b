"""Keys: what counts as one, what is kept of it, and how a file of them is followed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.api.edge.access import Access
from plimsoll.api.edge.keys import LOOK_S, MOST_KEYS, Keys
from plimsoll.errors import SettingsError
from plimsoll.policy.client_limits import ClientLimits
from tests.fakes import FakeClock

ONE, TWO, THREE = "first-key-0123456789", "second:key-0123456789", "third-key-0123456789"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\nembed:{ONE}\n\n  admin:{TWO}  \n", encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def look(clock: FakeClock) -> Callable[[Keys, str], Access | None]:
    """What a key allows once the time has come to look at the file again."""

    def later(keys: Keys, key: str) -> Access | None:
        clock.now_s += LOOK_S
        return access_of(keys, key)

    return later


def access_of(keys: Keys, key: str) -> Access | None:
    found = keys.find(key.encode())
    return None if found is None else found.access


def test_keys_of_both_roles_are_read_from_a_list():
    """A variable is enough for a few; a key may hold a colon, as a base64 one may hold anything."""
    keys = Keys(f"embed:{ONE}, admin:{TWO}")

    assert access_of(keys, ONE) is Access.EMBED
    assert access_of(keys, TWO) is Access.ADMIN
    for wrong in (THREE, ONE[:-1], ONE + "0", f"embed:{ONE}", "", ONE.upper()):
        assert access_of(keys, wrong) is None


def test_a_file_has_a_key_a_line(file: Path):
    """Blank lines and comments help the people who keep it."""
    keys = Keys(str(file))

    assert access_of(keys, ONE) is Access.EMBED
    assert access_of(keys, TWO) is Access.ADMIN


def test_nothing_is_kept_but_digests():
    """What a dump of the memory or a printed object shows must open nothing."""
    keys = Keys(f"embed:{ONE},admin:{TWO}")

    assert not any(key in f"{keys!r} {vars(keys)!r}" for key in (ONE, TWO))


def test_a_key_may_have_limits_of_its_own_and_has_those_of_all_else(file: Path):
    """One client in ten needs more than the others, and its operator has one line to write."""
    limits = ClientLimits(concurrency=2, tokens_per_s=100)
    of_list = Keys(f"embed:{ONE} tokens_per_s=0.5  requests_per_s=3,admin:{TWO}", limits)
    file.write_text(f"embed:{ONE} concurrency=0\nadmin:{TWO}\ttokens_per_s=9\n", encoding="utf-8")
    of_file = Keys(str(file), limits)

    assert of_list.find(ONE.encode()).limits == ClientLimits(2, 3, 0.5)
    assert of_list.find(TWO.encode()).limits == limits
    assert of_file.find(ONE.encode()).limits == ClientLimits(0, 0, 100)
    assert of_file.find(TWO.encode()).limits == ClientLimits(2, 0, 9)


@pytest.mark.parametrize(
    "limit", ["speed=4", "concurrency=1.5", "concurrency", "tokens_per_s=-1", "tokens_per_s=nan",
              "tokens_per_s=", "requests_per_s=inf", "rest-of-a-key", "=4"],
)  # fmt: skip
def test_a_limit_that_is_none_is_named_by_its_place_and_not_shown(limit: str):
    """What stands there may be the rest of a key that was pasted with a space in it."""
    with pytest.raises(SettingsError, match="entry 2") as caught:
        Keys(f"embed:{ONE},embed:{TWO} {limit}")

    assert "concurrency=4, requests_per_s=4, tokens_per_s=4" in str(caught.value)
    assert not any(key in str(caught.value) for key in (TWO, "rest-of-a-key", "speed"))


SHORT, SPACED, FOREIGN = "fifteen-letters", "with a space 0123456", "schlüssel-0123456789"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (f"embed:{ONE},{TWO}", "entry 2"),
        (ONE, "entry 1"),
        (f"root:{ONE}", "entry 1"),
        (f"Embed:{ONE}", "entry 1"),
        (f"embed:{SHORT}", "entry 1"),
        (f"embed:{ONE},", "entry 2"),
        (f"embed:{SPACED}", "entry 1"),
        (f"admin:{FOREIGN}", "entry 1"),
        (f"embed:{ONE * 30}", "entry 1"),
        (f"embed:{ONE},admin:{ONE}", "entry 2"),
        (",".join(f"embed:{ONE}{n}" for n in range(MOST_KEYS + 1)), f"{MOST_KEYS + 1} keys"),
    ],
)
def test_a_bad_entry_is_named_by_its_place_and_never_shown(value: str, place: str):
    """The message goes to a terminal and a log; a key with a slip in it is still nearly a key."""
    with pytest.raises(SettingsError, match=place) as caught:
        Keys(value)

    assert "PLIMSOLL_API_KEYS" in str(caught.value)
    assert not any(key in str(caught.value) for key in (ONE, TWO, SHORT, SPACED, FOREIGN))
    assert caught.value.__cause__ is None


def test_a_bad_line_of_a_file_is_named_by_its_number(file: Path):
    """And not by what it says."""
    file.write_text(f"embed:{ONE}\n{TWO}\n", encoding="utf-8")

    with pytest.raises(SettingsError, match=r"keys line 2 is not of the form") as caught:
        Keys(str(file))
    assert TWO not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"# none yet\n", b"\xff\xfe\x00", b"#" * (2 << 20)])
def test_a_file_without_keys_is_a_mistake(file: Path, content: bytes):
    """A server that starts with none would refuse every client and look healthy."""
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="PLIMSOLL_API_KEYS"):
        Keys(str(file))


def test_a_file_that_is_not_there_or_is_none_is_a_mistake(tmp_path: Path):
    """A pipe would hold the server up for ever."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", "."):
        with pytest.raises(SettingsError, match="there is no file"):
            Keys(f"{tmp_path}/{name}")


def test_a_changed_file_is_read_again(file: Path, look, caplog: pytest.LogCaptureFixture):
    """New keys count and deleted ones stop to, without a restart that closes every connection."""
    keys = Keys(str(file), clock=(clock := FakeClock()))
    file.write_text(f"embed:{THREE}\n", encoding="utf-8")

    assert access_of(keys, ONE) is Access.EMBED, "not at every request"
    clock.now_s += LOOK_S
    assert access_of(keys, ONE) is None
    assert access_of(keys, THREE) is Access.EMBED
    assert not any(key in caplog.text for key in (ONE, TWO, THREE))


def test_a_file_that_is_put_in_anothers_place_is_read(file: Path, clock: FakeClock, look):
    """By rename or as a link that changes its target, as editors and Kubernetes do it."""
    link = file.with_name("link")
    link.symlink_to(file)
    keys = Keys(str(link), clock=clock)
    other = file.with_name("other")
    other.write_bytes(file.read_bytes().replace(ONE.encode(), THREE.encode()))
    new_link = file.with_name("new-link")
    new_link.symlink_to(other)
    new_link.replace(link)

    assert look(keys, THREE) is Access.EMBED
    assert look(keys, ONE) is None


@pytest.mark.parametrize("content", [None, b"", b"embed:short\n"])
def test_the_last_good_keys_count_while_the_file_is_bad(
    file: Path, clock: FakeClock, look, caplog: pytest.LogCaptureFixture, content: bytes | None
):
    """A slip of the editor must not lock every client out; it is said once, not every second."""
    keys = Keys(str(file), clock=clock)
    good = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    assert [look(keys, ONE) for _ in range(3)] == [Access.EMBED] * 3
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "still count" in errors[0].getMessage()
    file.write_bytes(good.replace(ONE.encode(), THREE.encode()))
    assert look(keys, ONE) is None
    assert look(keys, THREE) is Access.EMBED


def test_a_failure_that_passes_keeps_no_deleted_key(
    file: Path, clock: FakeClock, look, monkeypatch: pytest.MonkeyPatch
):
    """Out of descriptors for a second: the changed file stays as it is, and has to be read."""
    keys = Keys(str(file), clock=clock)
    file.write_text(f"embed:{THREE}\n", encoding="utf-8")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", refuse_to_open)
        assert look(keys, ONE) is Access.EMBED

    assert look(keys, ONE) is None
    assert look(keys, THREE) is Access.EMBED


def refuse_to_open(*_: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_file_that_everyone_can_read_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture):
    """Whose keys they are is then anyone's on that machine."""
    Keys(str(file))
    assert caplog.text == ""

    file.chmod(0o644)
    Keys(str(file))
    assert "chmod o-r" in caplog.text
