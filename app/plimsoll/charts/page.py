"""A page around charts and tables: one HTML file that loads nothing, light or dark, printable."""

from collections.abc import Iterable, Sequence
from html import escape

# Ground and ink, which every page has; paper gets the light page, also from a dark screen.
STYLE = """
:root { --page: #fdfdfc; --ink: #1d2228; --faint: #5f666d; --grid: #e2e4e6; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #16191d; --ink: #e6e8ea;
  --faint: #9aa3ab; --grid: #30363c; } }
body { background: var(--page); color: var(--ink); margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--faint); font-size: 12px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .93em; }
td, th { padding: .2rem .45rem; text-align: right; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--grid); font-weight: normal; white-space: nowrap; }
th { color: var(--faint); } td:first-child, th:first-child { text-align: left; }
.key { margin: 0; color: var(--faint); } .key span { margin-right: 1.1rem; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
  h2 { break-after: avoid; } tr, svg, li { break-inside: avoid; } .scroll { overflow: visible; }
  td, th { white-space: normal; } svg, .key i { print-color-adjust: exact; } }
"""


def html_page(title: str, style: str, body: str) -> str:
    """The whole document. style: beside STYLE. title: plain text; body: HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        f'content="light dark"><style>{STYLE}{style}</style></head><body><main>{body}</main>'
        "</body></html>\n"
    )


def section(title: str, keys: Iterable[str], content: str) -> str:
    """A heading, the colours by their names, and what stands below."""
    key = "".join(
        f'<span><i style="background:var(--{name})"></i>{name.replace("_", " ")}</span>'
        for name in keys
    )
    key = f'<p class="key">{key}</p>' if key else ""
    return f"<h2>{escape(title)}</h2>{key}{content}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """A table that can be scrolled by keys too. label: for those who hear it. kind: its class."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    cells = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{kind}"><tr>{head}</tr>{"".join(cells)}</table></div>'
    )
