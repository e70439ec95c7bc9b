"""Every peer that Plimsoll is measured beside, in one table."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.worker import Kind, Precision, WorkerSpec
from plimsoll.bench.peers import infinity, llama_server, plimsoll_server
from plimsoll.bench.peers.gguf_file import gguf_file
from plimsoll.bench.peers.library_peer import LibraryPeer
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError, Start
from plimsoll.bench.peers.transformers_folder import transformers_folder

PLIMSOLL = "Plimsoll"
PADDED = "padded ONNX Runtime"
ONE_CORE = "Plimsoll on one core"
IN_INT8 = "Plimsoll in int8"


def _library(
    case: ModelCase,
    n_threads: int,
    *,
    kind: Kind,
    needs: tuple[str, ...],
    path: Callable[[ModelCase], Path],
    precision: Precision = "float32",
) -> Start:
    absent = [module for module in needs if find_spec(module) is None]
    if absent:
        raise PeerUnavailableError(f"{', '.join(absent)}: not installed: pip install '.[bench]'")
    spec = WorkerSpec(
        kind,
        sidecar_folder=str(case.sidecar_folder),
        pooling=case.pooling,
        n_threads=n_threads,
        path=str(path(case)),
        precision=precision,
        token_limit=case.token_limit,
    )
    return partial(LibraryPeer, spec)


def _export(case: ModelCase) -> Path:
    return case.naive_path


_openvino = partial(_library, kind="openvino", path=_export)
_sentence_transformers = partial(
    _library,
    kind="sentence-transformers",
    needs=("torch", "sentence_transformers"),
    path=transformers_folder,
)
_llama_cpp_python = partial(_library, kind="llama-cpp-python", needs=("llama_cpp",))

PEERS: tuple[PeerKind, ...] = (
    PeerKind(PLIMSOLL, "REST", plimsoll_server.ready),
    PeerKind(ONE_CORE, "REST", plimsoll_server.ready_on_one_core),
    PeerKind(IN_INT8, "REST", plimsoll_server.ready_in_int8),
    PeerKind(PADDED, "in process", partial(_library, kind="padded", needs=(), path=_export)),
    PeerKind("sentence-transformers float32", "in process", _sentence_transformers),
    PeerKind(
        "sentence-transformers bfloat16",
        "in process",
        partial(_sentence_transformers, precision="bfloat16"),
    ),
    PeerKind("OpenVINO float32", "in process", partial(_openvino, needs=("openvino",))),
    PeerKind(
        "OpenVINO bfloat16",
        "in process",
        partial(_openvino, needs=("openvino",), precision="bfloat16"),
    ),
    PeerKind(
        "OpenVINO int8",
        "in process",
        partial(_openvino, needs=("openvino", "nncf"), precision="int8"),
    ),
    infinity.kind(),
    *llama_server.kinds(),
    PeerKind(
        "llama-cpp-python Q8_0",
        "in process",
        partial(_llama_cpp_python, path=partial(gguf_file, file_type="Q8_0")),
    ),
    PeerKind(
        "llama-cpp-python F16",
        "in process",
        partial(_llama_cpp_python, path=partial(gguf_file, file_type="F16")),
    ),
)
