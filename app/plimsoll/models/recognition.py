"""Which verified model a user's own file is, told before it is opened. No network."""

from pathlib import Path

from plimsoll.encoder.catalog import ModelSpec, describe
from plimsoll.encoder.known_models import MODELS, HubSource, KnownModel
from plimsoll.errors import CacheError, GGUFError, ModelError
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.models.hub import local_file


def recognised(spec: ModelSpec, cache_dir: Path) -> KnownModel | None:
    """The model by its file's header, or by its repository while it is to be fetched.

    None where it is none of the verified ones, and where its file cannot be read: opening tells.
    """
    if spec.known is not None:
        return spec.known
    try:
        path = local_file(spec, cache_dir)
        if path is None:
            return next((known for known in MODELS if _is_source(known, spec)), None)
        with FileSource(path) as source:
            found = describe(read_header(source).metadata)
    except (ModelError, GGUFError, CacheError, OSError):
        return None
    return found if found in MODELS else None


def _is_source(known: KnownModel, spec: ModelSpec) -> bool:
    source, hub = known.source, spec.hub
    return isinstance(source, HubSource) and hub is not None and hub.repository == source.repository
