"""llama.cpp's own server, built once from the pinned source archive of llama-cpp-python.

Its best counts: one or four slots, flash attention on or off, weights in Q8_0 or F16.
"""

import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from plimsoll.bench.comparison.models import ModelCase, oracle_cache
from plimsoll.bench.comparison.processes import environment, run_group
from plimsoll.bench.peers.gguf_file import gguf_file
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError, Start
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.machine.cpu import available_cores

NAME = "llama-server"
VERSION = "0.3.36"  # of llama-cpp-python
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of its source archive
# The batch that is computed at once: room for the longest text, or for a text of every slot.
LEAST_BATCH_TOKENS = 2048
BUILD_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


def kinds() -> Iterator[PeerKind]:
    """Every type of weights, whose slots and attention are variants of one peer."""
    for file_type in ("Q8_0", "F16"):
        for n_slots in (1, 4):
            for flash in ("on", "off"):
                yield PeerKind(
                    f"{NAME} {file_type}",
                    "REST",
                    partial(_ready, file_type=file_type, n_slots=n_slots, flash=flash),
                    variant=f"-np {n_slots} -fa {flash}",
                    prepare=build,
                )


def _ready(case: ModelCase, n_threads: int, *, file_type: str, n_slots: int, flash: str) -> Start:
    program = _program()
    if not program.is_file():
        raise PeerUnavailableError("not built; `plimsoll bench peers --prepare` does, with cmake")
    path = gguf_file(case, file_type)
    batch = str(max(case.token_limit, LEAST_BATCH_TOKENS))
    context = str(max(case.token_limit, LEAST_BATCH_TOKENS) * n_slots)
    options = {
        "--model": str(path),
        "--host": "127.0.0.1",
        "--threads": str(n_threads),
        "--threads-batch": str(n_threads),
        "--ctx-size": context,
        "--batch-size": batch,
        "--ubatch-size": batch,
        "--parallel": str(n_slots),
        "--flash-attn": flash,
    }
    words = [word for option in options.items() for word in option]
    command = [str(program), "--embedding", *words]
    return partial(ServerPeer, command, environment(), NAME)


def _program() -> Path:
    return oracle_cache() / f"{NAME}-{VERSION}" / NAME


def build() -> None:
    """Build the program for this processor, with low priority; nothing where it is there.

    Raises PeerUnavailableError without cmake, CalledProcessError where a step fails.
    """
    program = _program()
    if program.is_file():
        return
    if shutil.which("cmake") is None:
        raise PeerUnavailableError("building it takes cmake")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(_archive()) as packed:
            packed.extractall(folder, filter="data")
        (source,) = Path(folder).glob("*/vendor/llama.cpp")
        built = Path(folder) / "build"
        low = ("nice", "-n", "19", "cmake")
        run_group(*low, "-S", source, "-B", built, *BUILD_OPTIONS)
        run_group(*low, "--build", built, "--target", NAME, "--parallel", str(available_cores()))
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built / "bin" / NAME, program)


def _archive() -> Path:
    """The source archive, from the index that pip uses unless it is in the cache."""
    folder = oracle_cache() / "sources"
    archive = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
            pinned.write(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n")
            pinned.flush()
            options = ("--no-deps", "--no-binary", ":all:", "--dest", folder)
            pip = (sys.executable, "-m", "pip", "download", "--quiet")
            run_group(*pip, *options, "--requirement", pinned.name)
    return archive
