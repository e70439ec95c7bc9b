"""What a folder of parts says of itself, and the pointer to the one that readers should take.

A folder of parts is a *set*: `set.json` says from its beginning what is in it, `manifest.json` at
its end that it is whole, with its parts. A folder of sets has `current.json`, which names the set
that readers take; to change it is one rename. What else these files hold is for those who write
them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from plimsoll.errors import OutsideMismatchError
from plimsoll.files import publish, sync, temporary_of

DESCRIPTION = "set.json"
MANIFEST = "manifest.json"
POINTER = "current.json"
HOME = "home.json"


def whole_parts(folder: Path) -> list[Path] | None:
    """The parts in a folder that Plimsoll wrote, or in the set that it points to.

    None for any other folder. Raises OutsideMismatchError for a set that is not whole, and where
    one of these files names what does not lie in its folder: the folder may be another's work.
    """
    pointed = read(folder / POINTER)
    if pointed is not None:
        (below,) = _inside(folder, [pointed.get("set")], POINTER)
        return whole_parts(below)
    manifest = read(folder / MANIFEST)
    if manifest is not None:
        return _inside(folder, manifest.get("parts"), MANIFEST)
    if read(folder / DESCRIPTION) is not None:
        raise OutsideMismatchError(
            f"{folder} is not whole: what wrote it has not come to its end; let it go on first"
        )
    return None


def read(path: Path) -> dict[str, Any] | None:
    """What a file of these says; None where there is none.

    Raises OutsideMismatchError for a file of another kind.
    """
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise OutsideMismatchError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise OutsideMismatchError(f"{path} is none that Plimsoll wrote")
    return found


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Have a file say this, from one moment to the next, also over a power cut."""
    temporary = temporary_of(path)
    try:
        temporary.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        publish(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def current(folder: Path) -> str | None:
    """The name of the set that readers take; None where there is none yet."""
    pointer = read(folder / POINTER)
    return None if pointer is None else str(pointer["set"])


def point_to(folder: Path, name: str | None) -> None:
    """Have readers take this set, which is whole, or none.

    Raises OutsideMismatchError for a set that is not whole.
    """
    if name is None:
        (folder / POINTER).unlink(missing_ok=True)
        sync(folder)
        return
    manifest = read(folder / name / MANIFEST)
    if manifest is None:
        raise OutsideMismatchError(
            f"{folder / name} is not whole: all of it has to be written first"
        )
    write(folder / POINTER, {"set": name, **manifest, "parts": _below(name, manifest["parts"])})


def _below(name: str, parts: Sequence[str]) -> list[str]:
    return [f"{name}/{part}" for part in parts]


def _inside(folder: Path, names: object, told_in: str) -> list[Path]:
    """The places of names below a folder. Raises OutsideMismatchError for any other."""
    home, places = folder.resolve(), list[Path]()
    for name in names if isinstance(names, list) else [names]:
        place = folder / name if isinstance(name, str) else home
        if home not in place.resolve().parents:
            raise OutsideMismatchError(
                f"{folder / told_in} names {name!r}, which does not lie in its folder: Plimsoll "
                "did not write that"
            )
        places.append(place)
    return places
