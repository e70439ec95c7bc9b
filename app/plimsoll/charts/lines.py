"""Lines over time."""

from collections.abc import Mapping, Sequence

from plimsoll.charts.svg import HEIGHT, Scale, frame, svg


def line_chart(
    series: Mapping[str, Sequence[float | None]],
    places: Sequence[float],
    end_s: float,
    unit: str,
    label: str,
) -> str:
    """A line for each series, broken where nothing was measured.

    series: by the name of their colour, a value for each place. places: from the left, in the
    drawing. label: for those who hear it.
    """
    measured = [value for values in series.values() for value in values if value is not None]
    scale = Scale.up_to(max(measured, default=0.0))
    marks = [*frame(scale, unit, end_s)]
    for name, values in series.items():
        path, pen_is_down = "", False
        for x, value in zip(places, values, strict=True):
            if value is not None:
                y = scale.y(value)
                # A lone point needs some length to be seen.
                path += f"L{x:.1f},{y:.1f}" if pen_is_down else f"M{x:.1f},{y:.1f}h0.1"
            pen_is_down = value is not None
        marks.append(
            f'<path d="{path}" fill="none" stroke="var(--{name})" stroke-width="1.8" '
            'stroke-linecap="round"/>'
        )
    return svg(HEIGHT, marks, label)
