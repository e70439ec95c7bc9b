"""One measured process: opens a peer, then answers requests, a JSON line each way.

`python -m benchmarks.worker SPEC`, SPEC being a WorkerSpec as JSON. It says {"ready": true}
when the peer is open and ends with its standard input. Only what the peer needs is imported,
so that the process's memory is the peer's.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np

from .texts import token_ids

Kind = Literal["engine", "naive", "pytorch", "bare", "sgemm"]


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
    wave_texts: int = 1
    wave_tokens: int = 1
    drop_pages: bool = False


class Peer(Protocol):
    """Something that turns token ids into vectors."""

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""

    def release(self) -> None:
        """Do what the peer's server does when it has become idle."""

    def predict(self, lengths: Sequence[int]) -> int:
        """Bytes that a wave of texts of these lengths is said to take; 0 where nothing is said."""


def open_peer(spec: WorkerSpec) -> Peer | None:
    """The peer of this process; None where the process only measures itself."""
    if spec.kind == "engine":
        from .engine import EnginePeer

        return EnginePeer(
            spec.model,
            Path(spec.cache_dir),
            n_threads=spec.n_threads,
            wave_texts=spec.wave_texts,
            wave_tokens=spec.wave_tokens,
            drop_pages=spec.drop_pages,
        )
    if spec.kind == "naive":
        from .naive import NaivePeer

        return NaivePeer(Path(spec.naive_path), spec.pooling)
    if spec.kind == "pytorch":
        from .pytorch import PyTorchPeer

        return PyTorchPeer(Path(spec.sidecar_folder), n_threads=spec.n_threads)
    if spec.kind == "bare":
        import onnxruntime  # noqa: F401 - its memory is what this process is for
        import tokenizers  # noqa: F401
    return None


def answer(spec: WorkerSpec, peer: Peer | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what one line asks for.

    {"lengths": […], "repeats": n}: encode n times; seconds of all.
    {"lengths": […], "vectors": path}: encode, and save the vectors there.
    {"release": true}: become idle.
    {"predict": […]}: bytes that the engine's formula promises for a wave of these lengths.
    {"sgemm": true}: the best rate of each library.
    {"read": true}: bytes that this process has had read from disks.
    """
    if "sgemm" in request:
        from .sgemm import best_rates

        return {"gflops": best_rates()}
    if "read" in request:
        lines = Path("/proc/self/io").read_text().splitlines()
        counters = dict(line.split(": ") for line in lines)
        return {"read_bytes": int(counters["read_bytes"])}
    if peer is None:
        raise ValueError(f"a {spec.kind} process encodes nothing")
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
    spec = WorkerSpec(**json.loads(sys.argv[1]))
    peer = open_peer(spec)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(spec, peer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
