"""Small GGUF files with weights in them, written by gguf-py; for tests of what expands them."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

# More than one chunk, more than one piece, and a tail that fills neither.
SHAPES = {
    "token_embd.weight": (1100, 256),
    "token_embd_norm.weight": (256,),
    "blk.0.attn_qkv.weight": (768, 256),
    "blk.0.attn_output_norm.weight": (256,),
    "blk.1.attn_qkv.weight": (768, 256),
    "blk.1.attn_output_norm.weight": (256,),
}


def random_tensors(
    seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, np.ndarray]:
    """Normal float32 values."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, tensors: Mapping[str, np.ndarray], quant: str = "F32") -> Path:
    """Write a file in the order given; as in llama.cpp only matrices take the quantization."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("test")
    for name, values in tensors.items():
        kind = gguf.GGMLQuantizationType[quant if values.ndim > 1 else "F32"]
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expanded(path: Path) -> dict[str, np.ndarray]:
    """What gguf-py makes of a file: float32, in its tensors' shapes."""
    return {
        tensor.name: np.array(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(
            tuple(int(n) for n in reversed(tensor.shape))
        )  # not its map
        for tensor in gguf.GGUFReader(path).tensors
    }


def ends(work: Callable[[], object], timeout_s: float = 60.0) -> object:
    """Do `work` in a thread and return or raise what it does; fail where it hangs."""
    outcome: list[object] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]
    return outcome[0]
