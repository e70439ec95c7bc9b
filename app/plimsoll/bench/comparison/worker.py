"""One measured process: opens a peer, then answers requests, a JSON line each way.

`python -m plimsoll.bench.comparison.worker SPEC`, SPEC being a WorkerSpec as JSON. It says
{"ready": true} when the peer is open and ends with its standard input. Only what the peer needs
is imported, so that the process's memory is the peer's.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from plimsoll.bench.comparison.texts import token_ids

Kind = Literal[
    "engine", "engine in int8", "naive", "bare", "sgemm",
    "padded", "openvino", "sentence-transformers", "llama-cpp-python",
]  # fmt: skip
Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class WorkerSpec:
    """Which peer a process opens, over which model."""

    kind: Kind
    model: str = ""  # as in PLIMSOLL_MODEL
    cache_dir: str = ""
    sidecar_folder: str = ""
    naive_path: str = ""
    pooling: str = ""
    vocabulary: int = 0
    n_threads: int = 1
    run_texts: int = 1
    run_tokens: int = 1
    drop_pages: bool = False
    path: str = ""  # the file or folder that a library of others loads
    precision: Precision = "float32"
    token_limit: int = 0


class Peer(Protocol):
    """Something that turns token ids into vectors."""

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""

    def release(self) -> None:
        """Do what the peer's server does when it has become idle."""

    def predict(self, lengths: Sequence[int]) -> int:
        """Bytes that a run of texts of these lengths is said to take; 0 where nothing is said."""


@runtime_checkable
class TextPeer(Protocol):
    """Something that turns texts into vectors, as a user of a library calls it."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""


def open_peer(spec: WorkerSpec) -> Peer | TextPeer | None:
    """The peer of this process; None where the process only measures itself."""
    if spec.kind in ("engine", "engine in int8"):
        from plimsoll.bench.comparison.engine import EnginePeer

        return EnginePeer(
            spec.model,
            Path(spec.cache_dir),
            n_threads=spec.n_threads,
            run_texts=spec.run_texts,
            run_tokens=spec.run_tokens,
            drop_pages=spec.drop_pages,
            compute=spec.precision,
        )
    if spec.kind == "naive":
        from plimsoll.bench.comparison.naive import NaivePeer

        return NaivePeer(Path(spec.naive_path), spec.pooling)
    if spec.kind in ("padded", "openvino"):
        from plimsoll.bench.comparison.tokenized import open_tokenized

        return open_tokenized(spec)
    if spec.kind == "sentence-transformers":
        from plimsoll.bench.comparison.sentence_transformer import SentenceTransformerPeer

        return SentenceTransformerPeer(spec)
    if spec.kind == "llama-cpp-python":
        from plimsoll.bench.comparison.llama_cpp_python import LlamaCppPeer

        return LlamaCppPeer(spec)
    if spec.kind == "bare":
        import onnxruntime  # noqa: F401 - its memory is what this process is for
        import tokenizers  # noqa: F401
    return None


def answer(
    spec: WorkerSpec, peer: Peer | TextPeer | None, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Do what one line asks for.

    {"lengths": […], "repeats": n}: encode n times; seconds of all.
    {"lengths": […], "vectors": path}: encode, and save the vectors there.
    {"texts": […], "vectors": path}: embed these, and save the vectors there unless it is "".
    {"release": true}: become idle.
    {"predict": […]}: bytes that the engine's formula promises for a run of these lengths.
    {"sgemm": true}: the best rate of each library.
    {"read": true}: bytes that this process has had read from disks.
    """
    if "sgemm" in request:
        from plimsoll.bench.comparison.sgemm import best_rates

        return {"gflops": best_rates()}
    if "read" in request:
        lines = Path("/proc/self/io").read_text().splitlines()
        counters = dict(line.split(": ") for line in lines)
        return {"read_bytes": int(counters["read_bytes"])}
    if peer is None:
        raise ValueError(f"a {spec.kind} process encodes nothing")
    if isinstance(peer, TextPeer):
        vectors = peer.embed(request["texts"])
        if request["vectors"]:
            np.save(request["vectors"], vectors)
        return {"embedded": len(vectors)}
    if "release" in request:
        peer.release()
        return {"released": True}
    if "predict" in request:
        return {"bytes": peer.predict(request["predict"])}
    texts = token_ids(request["lengths"], spec.vocabulary)
    if "vectors" in request:
        np.save(request["vectors"], peer.encode(texts))
        return {"saved": True}
    start = perf_counter()
    for _ in range(request["repeats"]):
        peer.encode(texts)
    return {"seconds": perf_counter() - start}


def main() -> None:
    """Open the peer and answer until standard input ends."""
    # What a library prints goes to standard error: the pipe is for answers alone.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        spec = WorkerSpec(**json.loads(sys.argv[1]))
        peer = open_peer(spec)
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(spec, peer, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
