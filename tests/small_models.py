"""Small synthetic models, opened as the server opens them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.composition import open_model
from app.encoder.model import EmbeddingModel
from app.settings import Settings
from tests.synthetic import Shape, write_synthetic

# Of the built-in's width, so that the same kernels run; two layers, so that a test is short.
NARROW = Shape(n_layers=2, hidden=384, ffn=1536, heads=12, vocab=2048, context=2048)
# Small enough that opening it costs nothing.
TINY = Shape(n_layers=2, hidden=64, ffn=128, heads=4, vocab=2048, context=512)


def small_settings(folder: Path, file: Path, **options: object) -> Settings:
    """Settings that serve `file` with a cache of its own below `folder`."""
    return Settings(model=str(file), cache_dir=folder / "cache", cache_on_tmpfs=True, **options)


@contextmanager
def opened(settings: Settings) -> Iterator[EmbeddingModel]:
    """An open model, closed at the end."""
    model = open_model(settings, lambda done_bytes, total_bytes: None)
    try:
        yield model
    finally:
        model.close()


def write_e5(path: Path) -> Path:
    """A tiny model that goes by a name of the E5 family, and so has its task prefixes."""
    write_synthetic(path, arch="bert", shape=TINY)
    # As long as the name it takes the place of: no length in the file changes.
    path.write_bytes(path.read_bytes().replace(b"synthetic-bert", b"my-e5-small-v2"))
    return path
