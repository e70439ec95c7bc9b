"""Texts of a command: its arguments and the lines of files and pipes, as they come.

A list is given as soon as there is something: the writer of a pipe may be slow, and what it has
written does not wait for what it will write. Errors are click's, since they name what was typed.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol, cast

import click

STANDARD_INPUT = "-"
READ_BYTES = 64 << 10
MOST_TEXTS = 64


class _Stream(Protocol):
    def read1(self, size: int, /) -> bytes:
        """What is there, at most `size` bytes; waits for the first; empty at the end."""


def reads_standard_input(texts: Sequence[str], files: Sequence[Path]) -> bool:
    """Whether lines of standard input are asked for, by "-" or by naming nothing."""
    return STANDARD_INPUT in texts or not (texts or files)


def check(texts: Sequence[str], files: Sequence[Path]) -> None:
    """Raise click.UsageError for what cannot be read, before anything is opened for it."""
    for number, text in enumerate(texts, 1):
        # Bytes of the command line that are no UTF-8 stand as lone surrogates.
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise click.UsageError(f"text {number} is not UTF-8")
    if reads_standard_input(texts, files) and sys.stdin is None:
        raise click.UsageError("standard input is closed: give texts as arguments, or --file")


def batches(texts: Sequence[str], files: Sequence[Path]) -> Iterator[list[str]]:
    """Lists of at most MOST_TEXTS texts: arguments, "-" for standard input, then files.

    Raises click.UsageError for a line that is not UTF-8, by its place.
    """
    for is_input, group in groupby(texts or ("-",) * (not files), STANDARD_INPUT.__eq__):
        if is_input:
            yield from _lines("standard input", cast(_Stream, sys.stdin.buffer))
        else:
            yield from _parts(list(group))
    for file in files:
        with file.open("rb") as stream:
            yield from _lines(str(file), stream)


def _lines(name: str, stream: _Stream) -> Iterator[list[str]]:
    n_lines = 0
    rest = bytearray()  # of a line whose end has not come
    while True:
        try:
            read = stream.read1(READ_BYTES)
        except OSError as error:
            raise click.ClickException(f"cannot read {name}: {error.strerror}") from error
        rest += read
        if read and b"\n" not in read:
            continue
        *lines, rest = rest.split(b"\n")
        if not read and rest:  # the last line needs no end
            lines.append(rest)
        yield from _parts([_decoded(name, n, line) for n, line in enumerate(lines, n_lines + 1)])
        n_lines += len(lines)
        if not read:
            return


def _decoded(name: str, number: int, line: bytearray) -> str:
    try:
        return line.rstrip(b"\r").decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"line {number} of {name} is not UTF-8: {error}") from error


def _parts(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), MOST_TEXTS):
        yield texts[start : start + MOST_TEXTS]
