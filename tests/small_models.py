"""Small synthetic models, opened as the server opens them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plimsoll.composition.models import open_model
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.quantization.samples import Samples, draw_samples
from plimsoll.settings import Settings
from tests.fakes import TEST_HOSTS
from tests.synthetic import Shape, write_synthetic

# A machine that runs other tests beside this one takes its time to open even these.
LOAD_WAIT_S = 120
# Of the built-in's width, so that the same kernels run; two layers, so that a test is short.
NARROW = Shape(n_layers=2, hidden=384, ffn=1536, heads=12, vocab=2048, context=2048)
# Small enough that opening it costs nothing.
TINY = Shape(n_layers=2, hidden=64, ffn=128, heads=4, vocab=2048, context=512)


def small_settings(folder: Path, file: Path, **options: object) -> Settings:
    """Settings that serve `file` with a cache of its own below `folder`."""
    own: dict[str, object] = {
        "cache_dir": folder / "cache",
        "cache_on_tmpfs": True,
        "data_dir": folder / "data",
        "allowed_hosts": TEST_HOSTS,
        "load_wait_s": LOAD_WAIT_S,
    }
    return Settings(model=str(file), **(own | options))


@contextmanager
def opened(settings: Settings) -> Iterator[EmbeddingModel]:
    """An open model, closed at the end."""
    model = open_model(settings, lambda done_bytes, total_bytes, phase: None)
    try:
        yield model
    finally:
        model.close()


def draw_few_samples(*given: Any) -> Samples:
    """Stand in for `draw_samples` where how good int8 codes are does not matter."""
    samples = draw_samples(*given)
    return Samples(samples.calibration[::16], samples.held_out[::16])


def write_e5(path: Path) -> Path:
    """A tiny model that goes by a name of the E5 family, and so has its task prefixes."""
    write_synthetic(path, arch="bert", shape=TINY)
    # As long as the name it takes the place of: no length in the file changes.
    path.write_bytes(path.read_bytes().replace(b"synthetic-bert", b"my-e5-small-v2"))
    return path
