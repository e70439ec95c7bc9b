"""The space that a model here embeds documents into, and what is not of the space asked for."""

from typing import Any

from plimsoll.corpora.records import Space
from plimsoll.errors import SpaceMismatchError
from plimsoll.models.pool import ModelPool
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Embeddings


async def served_space(
    models: ModelPool, model: str | None, dimensions: int | None, permit: RequestPermit
) -> Space:
    """The space of a served model, which is opened to know it; None: the default, all its values.

    Raises UnknownModelError, InvalidRequestError for dimensions that it does not have, ModelErrors
    and OverloadError.
    """
    name = models.find(model).name
    permit.enter(asks_breaker=True)  # before a model opens into memory that is short
    async with models.lease(name) as opened:
        size = opened.traits.check_dimensions(dimensions)
        return Space(opened.traits.fingerprint(size, "search_document"), size, name)


def check_space(name: str, space: Space, embedded: Embeddings) -> None:
    """Raise SpaceMismatchError where a model gives vectors of another space than a version has."""
    if embedded.fingerprint != space.fingerprint:
        raise SpaceMismatchError(
            f"the vectors of {name!r} are of {space.fingerprint}, and {space.model!r} now gives "
            f"{embedded.fingerprint}: its file has changed; they are not compared"
        )


def space_json(space: Space) -> dict[str, Any]:
    """A space as plain values."""
    return {
        "model": space.model,
        "fingerprint": space.fingerprint,
        "dimensions": space.dimensions,
    }
