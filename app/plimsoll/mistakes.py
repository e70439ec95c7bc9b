"""What pydantic found wrong in what people wrote, in words that people know.

Never with the value itself, which may be a secret.
"""

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_OF_A_KEY = "[key]"  # how pydantic marks a name in a table that is no name


def mistakes_of(found: ValidationError) -> list[ErrorDetails]:
    """All of them, without what was given."""
    return found.errors(include_url=False, include_input=False)


def first_mistake(found: ValidationError) -> ErrorDetails:
    """The first of them, which is enough to go on."""
    return mistakes_of(found)[0]


def place_of(mistake: ErrorDetails) -> str:
    """Where it is: hooks.ticket.timeout_s."""
    return ".".join(str(part) for part in mistake["loc"] if part != _OF_A_KEY)


def words_of(mistake: ErrorDetails) -> str:
    """What is wrong; our own words stand as they were raised."""
    return mistake["msg"].removeprefix("Value error, ")


def told(mistake: ErrorDetails, *, at: str = "") -> str:
    """Place and words; at: what to say where the whole is wrong."""
    return f"{place_of(mistake) or at}: {words_of(mistake)}"
