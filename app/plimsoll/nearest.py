"""The known name that a mistaken one was perhaps meant to be."""

import difflib
from collections.abc import Iterable


def nearest_to(given: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the given one; None where none is like it."""
    guesses = difflib.get_close_matches(given.lower(), [*known], n=1, cutoff=0.5)
    return guesses[0] if guesses else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Words that follow "X is no …": the nearest name, or all of them where none is near."""
    names = [*known]
    guess = nearest_to(given, names)
    return f"did you mean {guess}?" if guess else f"there are {', '.join(names)}"
