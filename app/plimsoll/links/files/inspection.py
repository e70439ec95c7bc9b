"""Look through files that are to be a collection's home, and change nothing."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from plimsoll.errors import OutsideError
from plimsoll.links.configuration import FileLink
from plimsoll.links.files.paths import SourceFile
from plimsoll.links.files.reading import read_rows
from plimsoll.links.files.rows import BadRow, Columns
from plimsoll.links.files.seen import SeenIds
from plimsoll.links.records import Finding, Survey

NAMED_ROWS = 3  # of each kind of fault


@dataclass
class _Counts:
    n_rows: int = 0
    n_without_text: int = 0
    n_without_vector: int = 0
    sizes: Counter[int] = field(default_factory=Counter)  # vectors by their dimensions
    bad: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    n_faults: int = 0


def survey_of(
    link: FileLink, files: Callable[[], list[SourceFile]], columns: Columns, active: str | None
) -> Survey:
    """Read every row. files: finds them. active: see Survey."""
    counts, findings = _Counts(), list[Finding]()
    try:
        _count(files(), columns, counts)
    except OSError as error:
        findings.append(Finding(f"{error.filename}: {error.strerror}", blocks=True))
    except OutsideError as error:
        findings.append(Finding(str(error), blocks=True))
    findings += _findings(link, counts)
    most_common = counts.sizes.most_common(1)
    return Survey(
        where=", ".join(link.files),
        n_rows=counts.n_rows,
        n_without_text=counts.n_without_text,
        n_without_vector=counts.n_without_vector,
        dimensions=most_common[0][0] if most_common else None,
        active=active,
        n_changes=0,
        findings=findings,
    )


def _count(files: list[SourceFile], columns: Columns, counts: _Counts) -> None:
    with closing(SeenIds()) as seen:
        for row in seen.once(read_rows(files, columns)):
            counts.n_rows += 1
            if isinstance(row, BadRow):
                counts.n_without_text += 1
                if len(counts.bad) < NAMED_ROWS:
                    counts.bad.append(f"{row.place.words}: {row.why}")
                continue
            if row.fault is not None:
                counts.n_faults += 1
                if len(counts.faults) < NAMED_ROWS:
                    counts.faults.append(f"{row.place.words}: {row.fault}")
            if row.vector is None:
                counts.n_without_vector += 1
            else:
                counts.sizes[len(row.vector)] += 1


def _findings(link: FileLink, counts: _Counts) -> Iterator[Finding]:
    if counts.bad:
        yield Finding(f"{counts.n_without_text} rows become no document: {'; '.join(counts.bad)}")
    if counts.faults:
        yield Finding(f"{counts.n_faults} vectors are left out: {'; '.join(counts.faults)}")
    if len(counts.sizes) > 1:
        told = ", ".join(f"{n} of {size}" for size, n in counts.sizes.most_common())
        yield Finding(f"vectors are of several sizes: {told} values")
    place = link.folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        yield Finding(f"the folder {link.folder} cannot be written to", blocks=True)
