"""What several files of acceptance tests share, made once a session."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from plimsoll.composition.models import prepare_model
from plimsoll.settings import Settings
from tests.acceptance.limited_load import ServedFile
from tests.synthetic import cached_synthetic


@dataclass(frozen=True)
class Lengths:
    """How long loads are: quick before a change lands, long with --soak; the tests are the same."""

    load_s: float  # of every client and kind of request
    side_load_s: float  # of what surrounds it: capacities, other budgets, exact vectors
    n_requests: int  # until memory has to lie flat
    budgets_mib: tuple[int, ...]  # larger ones than each model's own


QUICK = Lengths(load_s=20.0, side_load_s=12.0, n_requests=8_000, budgets_mib=(512,))
SOAK = Lengths(load_s=600.0, side_load_s=60.0, n_requests=20_000, budgets_mib=(512, 1024))


@pytest.fixture(scope="session")
def lengths(request: pytest.FixtureRequest) -> Lengths:
    """As the command line says."""
    return SOAK if request.config.getoption("--soak") else QUICK


@pytest.fixture(scope="session")
def builtin(model_cache: Path) -> ServedFile:
    """The built-in model, converted, in 256 MiB."""
    return ServedFile("builtin", 256, model_cache, _prepared(model_cache, "builtin"))


@pytest.fixture(scope="session")
def nomic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedFile:
    """A model of Nomic's size (137M), converted, in 400 MiB."""
    folder = request.config.cache.mkdir("synthetic")
    file = cached_synthetic(folder, quant="Q8_0", name="nomic-embed-text-v1.5")
    cache = tmp_path_factory.mktemp("nomic") / "cache"
    return ServedFile(str(file), 400, cache, _prepared(cache, str(file)), source=file)


def _prepared(cache: Path, model: str) -> Path:
    """The sidecar's folder, which holds the packed weights too."""
    return prepare_model(
        Settings(model=model, cache_dir=cache), lambda done_bytes, total_bytes, phase: None
    )
