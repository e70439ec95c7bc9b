"""Rows on standard output, which may be full, or a pipe whose reader has read enough."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

STANDARD_OUTPUT = "-"


class CannotWriteError(click.ClickException):
    """The disk, the folder or the device does not take the rows."""

    exit_code = 2


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output, flushed at the block's end; quietly ends a command that is read no more.

    Raises CannotWriteError.
    """
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere: Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # such as `head`, which has read enough
            raise SystemExit(1) from None
        raise CannotWriteError(f"cannot write standard output: {error.strerror}") from error
