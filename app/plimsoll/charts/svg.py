"""The frame of a chart over time: axes, grid lines, and where a value stands."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 960, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 26
PLOT_WIDTH = WIDTH - LEFT - RIGHT
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM
N_STEPS = 4
# Of the time axis, in seconds; a unit is taken from so many of it on.
SECOND = (1, "s")
TIME_UNITS = ((3600, "h"), (60, "min"))
LEAST_UNITS = 10


@dataclass(frozen=True)
class Scale:
    """A vertical axis from zero in even steps."""

    step: float

    @classmethod
    def up_to(cls, highest: float) -> "Scale":
        """The smallest round steps that reach `highest`."""
        return cls(round_step(highest / N_STEPS))

    def y(self, value: float) -> float:
        """Where a value stands."""
        return TOP + PLOT_HEIGHT * (1 - value / (self.step * N_STEPS))


def round_step(at_least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below."""
    if at_least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= at_least)


def frame(scale: Scale, value_unit: str, end_s: float) -> Iterator[str]:
    """Grid lines with their values, and the time below."""
    for number in range(N_STEPS + 1):
        value = number * scale.step
        y = scale.y(value)
        label = f"{value:,.6g}" + (f" {value_unit}" if number == N_STEPS else "")
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="var(--grid)"/>'
        )
        if number < N_STEPS:
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        else:
            yield f'<text x="4" y="{y - 3:.1f}">{label}</text>'
    unit_s, unit = next((known for known in TIME_UNITS if end_s >= known[0] * LEAST_UNITS), SECOND)
    step = round_step(max(end_s, 1.0) / unit_s / 8)
    for number in range(math.floor(end_s / unit_s / step) + 1):
        x = LEFT + PLOT_WIDTH * number * step * unit_s / end_s if end_s else LEFT
        yield (
            f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{number * step:g} {unit}'
            "</text>"
        )


def svg(height: float, marks: Iterable[str], label: str) -> str:
    """One drawing. label: for those who hear it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(marks)}</svg>'
    )
