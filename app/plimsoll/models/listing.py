"""Which models there are: the verified ones, and what else lies in the cache folder.

Reads headers of files that are here; what is not here is told from its shape. No network.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import prod
from pathlib import Path

from plimsoll.encoder.architecture import Architecture, layer_tensor_shapes, read_architecture
from plimsoll.encoder.catalog import SHAPES, describe, quants, resolve, written_of
from plimsoll.encoder.known_models import BUILTIN, MODELS, KnownModel
from plimsoll.errors import GGUFError, ModelUnsupportedError
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.gguf.types import BLOCK_SHAPE, GGMLType
from plimsoll.models.hub import local_file
from plimsoll.models.inspection import memory_bytes
from plimsoll.sidecar.cache import SourceState, list_models, list_sidecars


class Presence(StrEnum):
    """What of a model is on this machine."""

    READY = "ready"  # its float32 weights too: it opens at once
    FETCHED = "fetched"  # its file; the weights are expanded at the first start
    ABSENT = "absent"


@dataclass(frozen=True)
class ListedModel:
    """One model; sizes in bytes, those of an absent file told from its shape.

    name: what a user writes. quantizations: the one that the sizes are of, then the others.
    least_memory_bytes: of a server that drops pages; all_memory_bytes: one that keeps them all.
    """

    name: str
    verified: bool
    quantizations: tuple[str, ...]
    dimensions: int
    token_limit: int
    file_bytes: int
    weights_bytes: int
    least_memory_bytes: int
    all_memory_bytes: int
    presence: Presence
    path: Path | None

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self) | {"path": self.path and str(self.path)}


def list_known_and_present(cache_dir: Path, n_threads: int) -> list[ListedModel]:
    """The verified models, then others whose files lie in the cache folder."""
    expanded = {
        entry.source_path
        for entry in list_sidecars(cache_dir)
        if entry.fault is None and entry.source_state is SourceState.UNCHANGED
    }
    known = [_known(model, cache_dir, n_threads, expanded) for model in MODELS]
    taken = {model.path for model in known}
    others = [file.path for file in list_models(cache_dir) if file.path not in taken]
    return [*known, *_others(others, n_threads, expanded)]


def n_parameters(architecture: Architecture) -> int:
    """Weights of a model of this shape: its layers, and what embeds tokens."""
    shapes = (
        shape
        for layer in range(architecture.n_layers)
        for shape in layer_tensor_shapes(architecture, layer).values()
    )
    n_positions = 0 if architecture.rotary else architecture.context_tokens
    n_rows = architecture.vocabulary + n_positions + 2 + 2  # token types; norm's weight and bias
    return sum(map(prod, shapes)) + n_rows * architecture.hidden


def _known(
    model: KnownModel, cache_dir: Path, n_threads: int, expanded: set[Path | None]
) -> ListedModel:
    """A verified model: its quantization that is here, else the default one."""
    kinds = quants(model)
    paths = {kind: local_file(resolve(f"{model.name}:{kind}"), cache_dir) for kind in kinds}
    kind = next((kind for kind in kinds if paths[kind] is not None), kinds[0])
    path, shape = paths[kind], SHAPES[model.name]
    n_elements, n_block_bytes = BLOCK_SHAPE[GGMLType[kind.removesuffix("_M")]]
    file_bytes = path.stat().st_size if path else n_parameters(shape) * n_block_bytes // n_elements
    name = "builtin" if model is BUILTIN else model.name
    ordered = (kind, *(other for other in kinds if other != kind))
    return _listed(name, model, shape, ordered, file_bytes, path, n_threads, expanded)


def _others(paths: list[Path], n_threads: int, expanded: set[Path | None]) -> Iterator[ListedModel]:
    for path in paths:
        try:
            with FileSource(path) as source:
                header = read_header(source)
            model = describe(header.metadata)
            shape = read_architecture(header)
        except (GGUFError, ModelUnsupportedError, OSError):
            continue  # `plimsoll inspect` says what is wrong with it; `plimsoll cache list` has it
        name = written_of(path.name) or str(path)
        yield _listed(name, model, shape, (), header.n_bytes, path, n_threads, expanded)


def _listed(
    name: str,
    model: KnownModel,
    shape: Architecture,
    quantizations: tuple[str, ...],
    file_bytes: int,
    path: Path | None,
    n_threads: int,
    expanded: set[Path | None],
) -> ListedModel:
    n_weights = n_parameters(shape)
    kept_bytes, dropped_bytes = memory_bytes(shape, n_weights, n_threads)
    presence = Presence.ABSENT if path is None else Presence.FETCHED
    return ListedModel(
        name=name,
        verified=model in MODELS and bool(quantizations),
        quantizations=quantizations,
        dimensions=shape.hidden,
        token_limit=model.token_limit or shape.context_tokens,
        file_bytes=file_bytes,
        weights_bytes=4 * n_weights,
        least_memory_bytes=min(kept_bytes, dropped_bytes),
        all_memory_bytes=kept_bytes,
        presence=Presence.READY if path in expanded and path else presence,
        path=path,
    )
