"""The process of a plug-in: `python -m plimsoll.migration.hooks.plugin_process MODULE`.

Loads the module with pluggy, asks its `plimsoll_hook` by what stands on standard input, and prints
the answer as a command does. In a process of its own a plug-in that hangs or crashes takes nothing
with it. What it prints goes to standard error.
"""

import importlib
import json
import sys
from contextlib import redirect_stdout
from typing import Any

import pluggy

from plimsoll.migration.hooks.records import PLUGIN_FAILED

PROJECT = "plimsoll"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpec:
    """What a plug-in implements."""

    @hookspec(firstresult=True)
    def plimsoll_hook(self, occasion: dict[str, Any]) -> str | dict[str, Any] | None:
        """Answer for an occasion, which is what a command gets on its standard input.

        None: go on. A string: stop, and why. A dict: as a command's line of JSON.
        """


def ask(module: str, occasion: dict[str, Any]) -> dict[str, Any]:
    """Ask the plug-in that is a module. Raises LookupError where it implements nothing."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpec)
    manager.register(importlib.import_module(module))
    manager.check_pending()  # a misspelt implementation is refused
    if not manager.hook.plimsoll_hook.get_hookimpls():
        raise LookupError(f"{module} has no @hookimpl plimsoll_hook(occasion)")
    answer = manager.hook.plimsoll_hook(occasion=occasion)
    if isinstance(answer, str):
        return {"ok": False, "reason": answer}
    return {"ok": True} if answer is None else answer


def main() -> None:
    """Answer once; what goes wrong ends it with exit code 3 and a line that says so."""
    with redirect_stdout(sys.stderr):
        try:
            answer = json.dumps(ask(sys.argv[1], json.load(sys.stdin)), allow_nan=False)
        except (Exception, SystemExit) as error:  # an exit is no answer, and its code none
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.exit(PLUGIN_FAILED)
    print(answer)


if __name__ == "__main__":
    main()
