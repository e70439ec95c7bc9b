"""What `plimsoll doctor` looks at of the files that only the operator writes: links and hooks."""

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from plimsoll.cli.findings import Finding, State, finding_of
from plimsoll.composition.homes import outside_of
from plimsoll.composition.migrations import check_hooks
from plimsoll.errors import OutsideUnavailableError, SettingsError
from plimsoll.links.configuration import AnyLink, FileLink, read_links
from plimsoll.links.files.paths import files_of
from plimsoll.links.outside import Outside
from plimsoll.links.server import ServerIdentity

LINKS, HOOKS = "links", "hooks"
TO_LINK = "correct the file of PLIMSOLL_LINKS; the server does not start with it"
TO_HOOK = "correct the file of PLIMSOLL_HOOKS; the server does not start with it"
TO_REACH = "start it, or correct the variable that has its address: until then the link waits"
TO_FIT = "see docs/migration.md for what it has to be; `plimsoll links doctor` tells more"


def links(file: Path | None, data_dir: Path) -> Iterator[Finding]:
    """Whether the file of links can be read, its extras are installed, and each link answers."""
    if file is None:
        yield Finding(LINKS, State.OK, "none: PLIMSOLL_LINKS names no file")
        return
    try:
        found = read_links(file)
    except SettingsError as error:
        yield Finding(LINKS, State.FAIL, str(error), TO_LINK)
        return
    yield Finding(LINKS, State.OK, f"{file}: {', '.join(sorted(found)) or 'none in it'}")
    server = ServerIdentity(data_dir)
    for name, link in sorted(found.items()):
        check = f"link {name}"
        try:
            outside = outside_of(name, link, server, os.environ)
        except SettingsError as error:
            yield Finding(check, State.FAIL, str(error), TO_LINK)
            continue
        yield finding_of(check, TO_FIT, partial(_link, check, link, outside))


def hooks(file: Path | None) -> Finding:
    """Whether the file of hooks can be read. Raises SettingsError where it cannot."""
    if file is None:
        return Finding(HOOKS, State.OK, "the built-in ones: PLIMSOLL_HOOKS names no file")
    catalog = check_hooks(file)
    own = sorted(name for name, hook in catalog.hooks.items() if name != hook.builtin)
    always = ", ".join(catalog.always) or "none"
    return Finding(HOOKS, State.OK, f"{file}: {', '.join(own) or 'none in it'}; always: {always}")


def _link(check: str, link: AnyLink, outside: Outside) -> Finding:
    """Whether what a link leads to answers. Raises OutsideMismatchError where it does not fit."""
    with closing(outside):
        try:
            if isinstance(link, FileLink):
                files_of(*link.files)
            space = outside.active()
        except OutsideUnavailableError as error:
            return Finding(check, State.WARN, f"{link.kind}: {error}", TO_REACH)
    noted = "not pulled yet" if space is None else f"its vectors are of {space}"
    return Finding(check, State.OK, f"{link.kind}: it answers; {noted}")
