"""Make constants of a graph's weights: files that ONNX Runtime maps, and blobs that it finds.

A weight that is a constant is packed once, when its session opens, and not at every call. ONNX
Runtime then looks for a blob with the same hash among those that the model file names, takes that,
mapped, and frees its own. It looks by hash alone, so the blobs of all weights may hang on one small
constant of any place, here `CARRIER`, and the plain weights stay where they are.
Source: GetExtDataFromTensorProto and PrepackedWeightsForGraph in microsoft/onnxruntime, from 1.22.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from plimsoll.sidecar.packed import Blob

# Smaller weights become part of the graph, and so do vectors, which have no packed form: norms,
# biases and scales.
INLINE_BYTES = 16 << 10
# All external files are named from here, since they lie in folders of their own.
ROOT = Path("/")
CARRIER = "packed"
BLOB_KEY = "prepacked_"


@dataclass(frozen=True)
class PlainWeights:
    """Weights as they are, in files that are mapped.

    place_of: the file that a view lies in, and its first byte there. verify: compares a layer's
    weights with their checksums. check_paths: sees that what is opened by the files' paths is what
    was verified. evict: takes a layer's out of the file cache.
    """

    place_of: Callable[[np.ndarray], tuple[Path, int]]
    verify: Callable[[int], None] = lambda layer: None
    check_paths: Callable[[], None] = lambda: None
    evict: Callable[[int], None] = lambda layer: None


def with_constants(
    model: bytes,
    weights: Mapping[str, np.ndarray],
    plain: PlainWeights,
    packed: Path | None = None,
    blobs: Sequence[Blob] = (),
) -> bytes:
    """Turn each input that is named like a weight into a constant.

    packed, blobs: the file that holds packed forms, and where.
    """
    found = onnx.load_from_string(model)
    graph = found.graph
    left = [entry for entry in graph.input if entry.name not in weights]
    named = [entry.name for entry in graph.input if entry.name in weights]
    graph.initializer.extend(_constant(name, weights[name], plain) for name in named)
    if packed is not None and blobs:
        carrier = _external(CARRIER, np.empty(1, np.float32), packed, 0)
        for index, value in enumerate(_blob_values(blobs)):
            carrier.external_data.add(key=f"{BLOB_KEY}{index}", value=value)
        graph.initializer.append(carrier)
        # What no node reads is dropped, with all that hangs on it.
        graph.node.append(helper.make_node("Identity", [CARRIER], [f"{CARRIER}.read"]))
    del graph.input[:]
    graph.input.extend(left)
    return bytes(found.SerializeToString())


def read_blobs(model: Path) -> Iterator[tuple[str, int, int]]:
    """Key, offset and size of the blobs that a saved model names in its external file."""
    graph = onnx.load(str(model), load_external_data=False).graph
    seen = set()
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            key, *places = entry.value.split("|")
            if entry.key.startswith(BLOB_KEY) and key not in seen:  # equal weights share one
                seen.add(key)
                for place in places:
                    offset, n_bytes, *_ = place.split(";")
                    yield key, int(offset), int(n_bytes)


def _blob_values(blobs: Sequence[Blob]) -> Iterator[str]:
    values: dict[str, str] = {}  # by key: equal weights of two graphs have one
    for (_, key), group in itertools.groupby(blobs, key=lambda blob: (blob.graph, blob.key)):
        places = "|".join(f"{blob.offset};{blob.n_bytes};0" for blob in group)
        values.setdefault(key, f"{key}|{places}")
    yield from values.values()


def _constant(name: str, array: np.ndarray, plain: PlainWeights) -> TensorProto:
    if array.ndim < 2 or array.nbytes < INLINE_BYTES:
        return onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
    return _external(name, array, *plain.place_of(array))


def _external(name: str, like: np.ndarray, path: Path, offset: int) -> TensorProto:
    """A constant of the shape and type of `like` that lies in a file."""
    kind = helper.np_dtype_to_tensor_dtype(like.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=like.shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": str(path.relative_to(ROOT)), "offset": offset, "length": like.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
