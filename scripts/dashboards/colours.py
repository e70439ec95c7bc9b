"""Which colour means what, the same in every panel."""

from collections.abc import Sequence
from dataclasses import dataclass

GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"
BLUE, PURPLE, GREY, CLEAR = "blue", "purple", "text", "transparent"

DASHED = ("custom.lineStyle", {"fill": "dash", "dash": [8, 8]})
NO_FILL = ("custom.fillOpacity", 0)


@dataclass(frozen=True)
class Override:
    """How the lines differ whose name matches `pattern`."""

    pattern: str
    properties: Sequence[tuple[str, object]]


def shades(pattern: str, colour: str, *properties: tuple[str, object]) -> Override:
    """Lines of one meaning: shades of its colour, to be told apart."""
    return Override(pattern, (("color", {"mode": "shades", "fixedColor": colour}), *properties))


def limit(pattern: str, colour: str) -> Override:
    """A line that others are held against."""
    return shades(pattern, colour, DASHED, NO_FILL)


# Of several that match a name, the last one holds.
STATUS = (
    shades("^2", GREEN),
    shades("^4", BLUE),
    shades("^429$", YELLOW),
    shades("^499$", PURPLE),
    shades("^5", RED),
)
KIND = (shades("^dense$", GREEN), shades("^sparse$", BLUE), shades("^none$", RED))
BREAKER = (shades("^closed$", GREEN), shades("^half_open$", YELLOW), shades("^open$", RED))
REFUSAL = (shades("^failed", RED), shades("^queue full", YELLOW), shades("^other", BLUE))
LATENCY = (
    shades("^p50$", GREEN),
    shades("^p90$", YELLOW),
    shades("^p99$", ORANGE),
    limit("^objective$", RED),
)
MEMORY = (
    shades("used$", BLUE),
    shades("predicted$", PURPLE),
    shades("resident$", GREY),
    limit("budget$", RED),
    limit(" closes$", GREEN),
    limit(" admission$", YELLOW),
    limit(" dropped$", ORANGE),
    limit(" opens$", RED),
)
