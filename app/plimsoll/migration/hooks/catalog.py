"""The hooks that may be named, and which of them a migration has."""

from collections.abc import Mapping, Sequence

from plimsoll.errors import UnknownHookError
from plimsoll.migration.hooks.occasion import Hook
from plimsoll.migration.hooks.records import Moment
from plimsoll.nearest import did_you_mean


class HookCatalog:
    """Every hook by its name. always: names of those that every migration has."""

    def __init__(self, hooks: Mapping[str, Hook], always: Sequence[str]) -> None:
        self.hooks = hooks
        self.always = always

    def find(self, name: str) -> Hook:
        """The hook of this name. Raises UnknownHookError."""
        if name not in self.hooks:
            raise UnknownHookError(
                f"there is no hook {name!r}; {did_you_mean(name, self.hooks)} "
                "(`plimsoll hooks list` shows all)",
                param="hooks",
            )
        return self.hooks[name]

    def of(self, names: Sequence[str], moment: Moment) -> list[Hook]:
        """Those that are asked at a moment, in order: what is always asked, then what is named.

        Raises UnknownHookError where one is not configured any more.
        """
        found = map(self.find, dict.fromkeys((*self.always, *names)))
        return [hook for hook in found if moment in hook.moments]
