"""What every kind of outside home can do: a table of PostgreSQL, files, points of Qdrant.

Everything here blocks; it is called from one thread at a time, but for `interrupt` and
`keep_claim`. Each method may be called again after a crash in its midst, or after it has been done:
it looks at what is there first. Texts and vectors come in parts, bounded in number and bytes. All
of them raise OutsideUnavailableError where trying again later may help, and OutsideMismatchError
where it will not, with what to do.

A home has vectors of one space or of two. What others read, such as the column that applications
search, is of the *active* space. The home keeps a note of which of its vectors are of which space.
"""

from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, TypeAlias

from plimsoll.corpora.records import Space
from plimsoll.links.records import Changes, OutgoingRow, OutsideRows, Pushed, Survey
from plimsoll.policy.costs import MOST_LINE_BYTES

PAGE_ROWS = 128
"""Rows of a page at most."""

PAGE_BYTES = 512 << 10
"""Of the texts of a page, in UTF-8, where it has more than one row."""

MOST_TEXT_BYTES = MOST_LINE_BYTES
"""Of one text, in UTF-8: a longer one is taken for none, as over HTTP."""

Having: TypeAlias = Callable[[Sequence[str]], AbstractSet[str]]
"""Which of these ids documents have now."""


class Outside(Protocol):
    """Documents and vectors that are at home elsewhere."""

    def survey(self) -> Survey:
        """Look, and change nothing; findings tell what is wrong, instead of errors where it can."""
        ...

    def follow(self, active: Space, *, is_first: bool = False) -> None:
        """Have changes noted from now on, where that is possible; see `changes`.

        active: what the vectors that others read are of, which is noted where nothing is. is_first:
        nothing was followed until now, so that vectors of other spaces are another's.
        Raises OutsideMismatchError where the note names another space, and for vectors of another's
        that would be lost.
        """
        ...

    def unfollow(self) -> None:
        """Have no changes noted any more; the note of the active space stays.

        Does nothing where another server follows, as `drop_all_but` does.
        """
        ...

    def claim(self, known: Collection[str], *, begins_anew: bool = False) -> bool:
        """Be the one server that follows, or go on being it; called before each look.

        known: fingerprints of the spaces that there are vectors of here. Returns False where
        another server followed since this one last did, and has died: what it took in is unknown
        here. The caller sees to it that everything is looked at anew, then claims with begins_anew.
        Raises OutsideUnavailableError, with who follows now, and OutsideMismatchError where what
        another has left would be lost, or was never followed.
        """
        ...

    def keep_claim(self) -> None:
        """Go on being it while something else takes long; in any thread, beside other calls."""
        ...

    def active(self) -> str | None:
        """Fingerprint of the space that others read; None before the first `follow`."""
        ...

    def page(self, position: str | None) -> OutsideRows:
        """Rows behind a position, in an order that stays; None begins at the first."""
        ...

    def changes(self, most: int) -> Changes:
        """Up to so many changes that are not forgotten; none where they cannot be noted."""
        ...

    def rows(self, ids: Sequence[str]) -> OutsideRows:
        """The rows of these ids, as many of the first as make a page; those that are gone are none.

        A home that notes no changes is never asked.
        """
        ...

    def forget(self, changes: Changes) -> None:
        """These changes have been taken in."""
        ...

    def has_place(self, space: Space) -> bool:
        """Whether vectors of a space have a place, which someone may have dropped since."""
        ...

    def prepare(self, space: Space) -> None:
        """Make a place for vectors of a further space, which others do not read yet."""
        ...

    def push(self, space: Space, rows: Sequence[OutgoingRow]) -> Pushed:
        """Store vectors, each in the place of what its row has of this space; up to PAGE_ROWS.

        What is confirmed survives a crash of this process and of the home.
        """
        ...

    def finish(self, space: Space, having: Having) -> None:
        """Everything of this space has been pushed: make it fit to be read, indexes and all.

        having: what was pushed and is no document any more is left out. May take long.
        """
        ...

    def switch(self, space: Space) -> str:
        """Let others read the vectors of this space, at one moment; both sets of them stay.

        Returns what was done, in words. Waits for others no longer than seconds.
        """
        ...

    def settle(self, having: Having) -> str | None:
        """All that came so far is here and has been pushed: let others read it.

        Of the active space, where that takes more than `push`; called whenever nothing else is to
        be done. having: see `finish`. Returns what was done, in words, if anything was.
        """
        ...

    def drop_all_but(self, kept: Collection[str]) -> Sequence[str]:
        """Give up vectors of spaces that others do not read, but those of these fingerprints.

        Returns what was done, in words, for each that there was.
        """
        ...

    def interrupt(self) -> None:
        """Let what is under way in another thread end soon, cut off or done; nothing may be."""
        ...

    def close(self) -> None:
        """Let go of connections and files; a later call opens them again."""
        ...
