"""Plimsoll: an embedding server that holds its memory line."""

__version__ = "0.1.0"
