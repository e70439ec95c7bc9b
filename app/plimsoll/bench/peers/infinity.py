"""infinity-emb, in a virtual environment of its own: its pins clash with the other peers'."""

import sys
from functools import partial
from pathlib import Path

from plimsoll.bench.comparison.models import ModelCase, oracle_cache
from plimsoll.bench.comparison.processes import environment, run_group
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError, Start
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.bench.peers.transformers_folder import transformers_folder

VERSION = "0.0.78"
NAME = f"infinity-emb {VERSION}"
# It asks for numpy below 2 and sentence-transformers below 4, and so for transformers below 5.
REQUIREMENTS = (f"infinity-emb[server,torch]=={VERSION}", "torch==2.13.0", "transformers<5")


def kind() -> PeerKind:
    """Its PyTorch engine: its ONNX engine takes published exports only."""
    return PeerKind(NAME, "REST", _ready, prepare=prepare)


def prepare() -> None:
    """Make the environment, unless it is there. Raises CalledProcessError."""
    folder = _environment()
    if _program().is_file():
        return
    run_group(sys.executable, "-m", "venv", folder)
    run_group(folder / "bin" / "pip", "install", "--quiet", *REQUIREMENTS)


def _environment() -> Path:
    return oracle_cache() / "peers" / f"infinity-emb-{VERSION}"


def _program() -> Path:
    return _environment() / "bin" / "infinity_emb"


def _ready(case: ModelCase, n_threads: int) -> Start:
    if not _program().is_file():
        raise PeerUnavailableError("not installed; `plimsoll bench peers --prepare` does, with pip")
    if case.is_rotary:
        raise PeerUnavailableError("its transformers below 5 has no nomic-bert")
    folder = transformers_folder(case)
    options = {
        "--model-id": str(folder),
        "--served-model-name": NAME,
        "--engine": "torch",
        "--device": "cpu",
        "--dtype": "float32",
        "--url-prefix": "/v1",
        "--host": "127.0.0.1",
    }
    words = [word for option in options.items() for word in option]
    threads = {"OMP_NUM_THREADS": str(n_threads), "MKL_NUM_THREADS": str(n_threads)}
    command = [str(_program()), "v2", *words, "--no-model-warmup"]
    return partial(ServerPeer, command, environment(**threads), NAME)
