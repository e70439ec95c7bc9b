"""llama.cpp's own server, built once from the source archive of llama-cpp-python.

Its best counts: one or four slots, flash attention on or off, weights in Q8_0 or F16.
"""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from plimsoll.bench.comparison.models import ModelCase, oracle_cache
from plimsoll.bench.comparison.processes import environment
from plimsoll.bench.peers.model_files import gguf_file
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError, RunningPeer
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.machine.cpu import available_cores

NAME = "llama-server"
SOURCES = "llama_cpp_python-*.tar.gz"
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
                    partial(_start, file_type=file_type, n_slots=n_slots, flash=flash),
                    variant=f"-np {n_slots} -fa {flash}",
                    prepare=build,
                )


def _start(
    case: ModelCase, n_threads: int, *, file_type: str, n_slots: int, flash: str
) -> RunningPeer:
    program = _program()
    if program is None or not program.is_file():
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
    return ServerPeer(
        lambda port: [str(program), "--embedding", *words, "--port", str(port)],
        environment(),
        NAME,
    )


def _archive() -> Path | None:
    """The newest source archive in the cache."""
    return max((oracle_cache() / "sources").glob(SOURCES), default=None)


def _program() -> Path | None:
    """Where the program of that archive's version is, or will be."""
    archive = _archive()
    if archive is None:
        return None
    version = archive.name.removesuffix(".tar.gz").rpartition("-")[2]
    return oracle_cache() / f"{NAME}-{version}" / NAME


def build() -> None:
    """Build the program for this processor, with low priority; nothing where it is there.

    Raises PeerUnavailableError without the sources or cmake, CalledProcessError where it fails.
    """
    archive, program = _archive(), _program()
    if archive is None or program is None:
        raise PeerUnavailableError(
            f"no {SOURCES} in {oracle_cache() / 'sources'}: "
            "pip download --no-deps --no-binary :all: llama-cpp-python"
        )
    if program.is_file():
        return
    if shutil.which("cmake") is None:
        raise PeerUnavailableError("building it takes cmake")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (source,) = Path(folder).glob("*/vendor/llama.cpp")
        built = Path(folder) / "build"
        low = ("nice", "-n", "19", "cmake")
        subprocess.run((*low, "-S", str(source), "-B", str(built), *BUILD_OPTIONS), check=True)
        chosen = ("--target", NAME, "--parallel", str(available_cores()))
        subprocess.run((*low, "--build", str(built), *chosen), check=True)
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built / "bin" / NAME, program)
