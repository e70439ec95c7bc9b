"""Small GGUF files with weights in them, written by gguf-py; for tests of what expands them."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

from tests.gguf_files import F32, Q8_0, gguf_file, tensor_info

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


def write_in_q8(source: Path, path: Path) -> Path:
    """Write a float32 file once more with its matrices in Q8_0, as llama.cpp does it."""
    reader = gguf.GGUFReader(source)
    infos, data = [], bytearray()
    for tensor in reader.tensors:
        values = np.asarray(tensor.data)
        stays = values.ndim < 2 or tensor.name in ("position_embd.weight", "token_types.weight")
        kind = F32 if stays else Q8_0
        stored = values if stays else quantize(values, gguf.GGMLQuantizationType.Q8_0)
        data += bytes(-len(data) % 32)
        infos.append(tensor_info(tensor.name, values.shape[::-1], kind, len(data)))
        data += stored.tobytes()
    # The metadata as they stand in the original, between the counts and the first tensor's entry.
    metadata = source.read_bytes()[24 : reader.tensors[0].field.offset]
    n_keys = int.from_bytes(source.read_bytes()[16:24], "little")
    path.write_bytes(gguf_file([metadata], infos, bytes(data), n_keys=n_keys))
    return path


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
