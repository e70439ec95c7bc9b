"""The shape of a model that a command computes with, and need not open."""

from typing import TYPE_CHECKING

import click

from plimsoll.cli.options import load

if TYPE_CHECKING:
    from plimsoll.encoder.architecture import Architecture


def shape_of(model: str) -> "tuple[Architecture, int]":
    """Architecture and token limit of a model that is known or whose file is here.

    Raises GGUFError and ModelErrors.
    """
    from plimsoll.composition.models import without_alias
    from plimsoll.encoder.architecture import read_architecture
    from plimsoll.encoder.catalog import SHAPES, describe, resolve
    from plimsoll.gguf.reader import read_header
    from plimsoll.gguf.sources import FileSource
    from plimsoll.models.hub import local_file

    settings = load({}).settings
    spec = resolve(without_alias(model, settings))
    known, architecture = spec.known, SHAPES.get(spec.name)
    if known is None or architecture is None:
        path = local_file(spec, settings.cache_dir)
        if path is None:
            raise click.UsageError(f"the shape of {model} is not known, and its file is not here")
        with FileSource(path) as source:
            header = read_header(source)
        known, architecture = describe(header.metadata), read_architecture(header)
    limit = known.token_limit or architecture.context_tokens
    scales = known.scales_rotation
    return architecture, limit if scales else min(limit, architecture.context_tokens)
