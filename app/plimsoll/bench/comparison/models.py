"""The models that are measured, made ready: file, sidecar, and the naive path's export."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plimsoll import files as storage
from plimsoll.bench.comparison.engine import make_opener
from plimsoll.bench.comparison.processes import environment
from plimsoll.bench.comparison.progress import Say
from plimsoll.bench.comparison.worker import Kind, WorkerSpec
from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.catalog import describe, resolve
from plimsoll.encoder.known_models import BUILTIN, BuiltinSource
from plimsoll.machine.cpu import available_cores
from plimsoll.policy.runs import GROWN_TOKENS, MOST_TEXTS
from plimsoll.settings_sources import load_settings
from plimsoll.sidecar.loader import unreported

SYNTHETIC = "synthetic"
SYNTHETIC_QUANT = "Q8_0"
# The floors were set for a model of this size; a smaller one is held to none but its own.
FULL_SIZE_PARAMETERS = 100_000_000

MakeSynthetic = Callable[..., Path]  # (folder, *, quant): the file, written there unless it is


class NoSyntheticModelError(Exception):
    """The synthetic model was asked for where it cannot be made."""

    def __init__(self) -> None:
        super().__init__(
            "the synthetic model is made by the project's tests: run scripts/benchmark.py of a "
            "checkout, or measure another with --model"
        )


@dataclass(frozen=True)
class ModelCase:
    """One model with everything that measuring it needs."""

    title: str
    model: str  # as in PLIMSOLL_MODEL
    cache_dir: Path
    sidecar_folder: Path
    naive_path: Path
    weights_bytes: int
    linear_parameters: int  # of all layers: what one token is multiplied with
    vocabulary: int
    token_limit: int
    pooling: str
    is_rotary: bool  # of Nomic's architecture; else of BERT's

    @property
    def full_size(self) -> bool:
        """Whether the floors hold for this model."""
        return self.weights_bytes >= 4 * FULL_SIZE_PARAMETERS

    def spec(self, kind: Kind, *, drop_pages: bool = False) -> WorkerSpec:
        """What a worker process needs to know to open a peer over this model."""
        return WorkerSpec(
            kind=kind,
            model=self.model,
            cache_dir=str(self.cache_dir),
            sidecar_folder=str(self.sidecar_folder),
            naive_path=str(self.naive_path),
            pooling=self.pooling,
            vocabulary=self.vocabulary,
            n_threads=available_cores(),
            run_texts=MOST_TEXTS,
            run_tokens=GROWN_TOKENS,
            drop_pages=drop_pages,
            precision="int8" if kind == "engine in int8" else "float32",
        )


def oracle_cache() -> Path:
    """Where large files for development are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "plimsoll-oracles"


def builtin_is_here() -> bool:
    """Whether the built-in model can be had without a download."""
    cache = load_settings().settings.cache_dir
    source = BUILTIN.source
    assert isinstance(source, BuiltinSource)
    return any(
        (cache / folder / name).is_file()
        for folder, name in (
            (storage.BUILT_FOLDER, source.file_name),
            (storage.MODELS_FOLDER, source.file_name),
            (storage.MODELS_FOLDER, source.wheel_name),
        )
    )


def make_ready(name: str, say: Say, make_synthetic: MakeSynthetic | None) -> ModelCase:
    """Make one model ready; slow only the first time.

    name: "synthetic", a model's name as PLIMSOLL_MODEL takes it, or the path of a GGUF file.
    Raises NoSyntheticModelError, and PlimsollError where the model cannot be had.
    """
    title, model, cache_dir = _place(name, say, make_synthetic)
    say(f"{title}: sidecar")
    sidecar = make_opener(model, cache_dir, n_threads=available_cores()).prepare(unreported)
    folder = sidecar.folder
    architecture = read_architecture(sidecar.header)
    exports = oracle_cache() / "naive" / resolve(model).file_name
    # By the sidecar's own key: a changed model file gets another sidecar and another export.
    naive_path = exports / f"{folder.name}.onnx"
    n_parameters = sidecar.index.weights_bytes / 4
    case = ModelCase(
        title=f"{title} ({n_parameters / 1e6:.0f}M parameters)",
        model=model,
        cache_dir=cache_dir,
        sidecar_folder=folder,
        naive_path=naive_path,
        weights_bytes=sidecar.index.weights_bytes,
        linear_parameters=architecture.n_layers * architecture.layer_parameters,
        vocabulary=architecture.vocabulary,
        token_limit=describe(sidecar.header.metadata).token_limit or architecture.context_tokens,
        pooling=architecture.pooling.name,
        is_rotary=architecture.rotary,
    )
    sidecar.close()
    if not naive_path.is_file():
        say(f"{title}: export for the naive path")
        shutil.rmtree(exports, ignore_errors=True)  # an older sidecar's
        module = "plimsoll.bench.comparison.naive_export"
        command = [sys.executable, "-m", module, str(folder), str(naive_path)]
        subprocess.run(command, env=environment(), check=True)
    return case


def _place(name: str, say: Say, make_synthetic: MakeSynthetic | None) -> tuple[str, str, Path]:
    """Title, PLIMSOLL_MODEL and cache folder of a model."""
    own_cache = oracle_cache() / "benchmark"
    if name == SYNTHETIC:
        if make_synthetic is None:
            raise NoSyntheticModelError
        say(f"synthetic model, {SYNTHETIC_QUANT}")
        path = make_synthetic(oracle_cache(), quant=SYNTHETIC_QUANT)
        return f"synthetic nomic-bert, {SYNTHETIC_QUANT}", str(path), own_cache
    spec = resolve(name)
    if spec.path is not None:
        return spec.name, str(spec.path.expanduser().resolve()), own_cache
    return spec.name, name, load_settings().settings.cache_dir
