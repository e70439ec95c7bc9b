"""Pack a model's weights with ONNX Runtime's own kernels, layer by layer, into a file.

Sessions are opened one after another with the order to save what they pack; their blobs go into
one file, and their own files are removed. So never more than one operation's weights are in
memory, packed once.
"""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from plimsoll import files
from plimsoll.encoder.architecture import Architecture, layer_tensor_shapes
from plimsoll.encoder.backends.onnx_constants import (
    INLINE_BYTES,
    PlainWeights,
    read_blobs,
    with_constants,
)
from plimsoll.encoder.backends.onnx_probe import PROBE_ARCHITECTURE
from plimsoll.encoder.backends.onnx_runtime import (
    LayerGraphs,
    build_graphs,
    is_allocation_failure,
    runtime_version,
    session_options,
)
from plimsoll.encoder.backends.packed_weights import PackedWeights, graph_names
from plimsoll.encoder.backends.protocol import Arrays, int8_linears
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.encoder.quantization.linears import float32_names
from plimsoll.encoder.refused_memory import refused_memory_named
from plimsoll.errors import CacheCorruptError, CacheError, EncodeMemoryError, PackingError
from plimsoll.machine.instructions import instruction_set
from plimsoll.sidecar import packed
from plimsoll.sidecar.packed import PackedFile, PackedWriter
from plimsoll.sidecar.sidecar import INDEX_NAME, Sidecar

log = logging.getLogger(__name__)

MODEL_NAME, EXTERNAL_NAME = "model.onnx", "model.bin"
# Large enough to be told from what else the process allocates at the time.
WIDE_ARCHITECTURE = replace(PROBE_ARCHITECTURE, hidden=1024, ffn=1024)


def made_by() -> str:
    """What packed forms depend on, in words: library, processor, and how we write them."""
    return f"ONNX Runtime {runtime_version()}, format {packed.FORMAT_VERSION}, {instruction_set()}"


def open_packed(
    sidecar: Sidecar,
    architecture: Architecture,
    layers: Sequence[Arrays],
    codes: CodesFile | None = None,
) -> PackedWeights:
    """The packed weights of a sidecar and codes for this machine, made first where there are none.

    layers: views of the weights and codes. Raises PackingError where they cannot be had, and
    CacheCorruptError for weights that are damaged themselves.
    """
    compute = "int8" if codes else sidecar.index.compute
    named = [made_by(), codes.index.sha256] if codes else [made_by()]
    key = hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]
    folder = packed.folder_of(sidecar.folder, compute, key)
    plain = _plain_weights(sidecar, architecture, codes)
    file = _find(folder)
    if file is None:
        pack(folder, architecture, layers, plain)
        file = _open(folder)
        packed.remove(sidecar.folder, compute, kept=folder)
    return PackedWeights(file, plain)


def _find(folder: Path) -> PackedFile | None:
    """What is packed in a folder; None where nothing is that can be opened."""
    if not (folder / INDEX_NAME).exists():
        return None
    try:
        return PackedFile(folder)
    except CacheError as error:  # what is damaged has been put aside, and is made again
        # As words: a log record would keep the error, its frames, and their views of weights.
        log.warning("packed weights are not taken: %s", str(error))
        return None


def _open(folder: Path) -> PackedFile:
    """What has just been packed."""
    try:
        return PackedFile(folder)
    except CacheError as error:
        raise PackingError(f"packed weights cannot be opened: {error}") from error


def _plain_weights(
    sidecar: Sidecar, architecture: Architecture, codes: CodesFile | None
) -> PlainWeights:
    coded = codes.index.choice.linears if codes else ()

    def place_of(array: np.ndarray) -> tuple[Path, int]:
        offset = codes.offset_of(array) if codes else None
        if codes is not None and offset is not None:
            return codes.path.resolve(), offset
        return sidecar.weights_path.resolve(), sidecar.offset_of(array)

    def verify(layer: int) -> None:
        for name in float32_names(architecture, layer, coded):
            sidecar.verify(name)
        if codes is not None:
            codes.verify(layer)

    def check_paths() -> None:
        sidecar.check_at_path()
        if codes is not None:
            codes.check_at_path()

    def evict(layer: int) -> None:
        sidecar.evict(float32_names(architecture, layer, coded))
        if codes is not None:
            codes.evict(layer)

    return PlainWeights(place_of, verify, check_paths, evict)


def pack(
    folder: Path, architecture: Architecture, layers: Sequence[Arrays], plain: PlainWeights
) -> None:
    """Make a folder of packed weights.

    Raises PackingError where that cannot be done, and CacheCorruptError for damage.
    """
    graphs = build_graphs(architecture, int8_linears(layers[0]))
    # No closure: frames of an error that are cleared still hold their function, and so the views.
    write = partial(_write, graphs, layers, plain)
    try:
        files.check_space(
            folder.parent, sum(array.nbytes for arrays in layers for array in arrays.values())
        )
        packed.make(folder, made_by(), write)
    except (PackingError, CacheCorruptError):
        raise
    except CacheError as error:
        raise PackingError(f"packed weights cannot be written: {error}") from error


def _write(
    graphs: LayerGraphs,
    layers: Sequence[Arrays],
    plain: PlainWeights,
    writer: PackedWriter,
    scratch: Path,
) -> None:
    for layer, arrays in enumerate(layers):
        plain.verify(layer)
        models = (graphs.project, graphs.transform)
        for name, model in zip(graph_names(layer), models, strict=True):
            _pack_graph(writer, name, with_constants(model, arrays, plain), scratch)
    plain.check_paths()


@cache
def packing_status() -> str | None:
    """Why weights cannot be packed into a file on this machine; None where they can.

    Packs a layer of 24 MiB in a temporary folder and opens it; takes a tenth of a second, once a
    process.
    """
    with TemporaryDirectory(prefix="plimsoll-packing-") as name:
        try:
            with refused_memory_named(is_allocation_failure, "to pack weights"):
                _try_out(Path(name).resolve())
        except (PackingError, EncodeMemoryError, OSError) as error:
            return str(error)
    return None


def _try_out(folder: Path) -> None:
    sizes = layer_tensor_shapes(WIDE_ARCHITECTURE, 0)
    ends = list(accumulate(math.prod(shape) for shape in sizes.values()))
    flat = np.random.default_rng(0).standard_normal(ends[-1], np.float32)
    parts = np.split(flat, ends[:-1])
    arrays = {
        name.split(".", 2)[2]: part.reshape(shape)
        for (name, shape), part in zip(sizes.items(), parts, strict=True)
    }
    path = folder / "weights"
    flat.tofile(path)
    plain = PlainWeights(lambda array: (path, array.ctypes.data - flat.ctypes.data))
    target = packed.folder_of(folder, "probe", "0")
    pack(target, WIDE_ARCHITECTURE, [arrays], plain)
    with closing(PackedWeights(PackedFile(target), plain)) as weights:
        weights.open_layers(build_graphs(WIDE_ARCHITECTURE), [arrays])


def _pack_graph(writer: PackedWriter, name: str, model: bytes, scratch: Path) -> None:
    """Let ONNX Runtime save a graph with its packed weights, and take those."""
    options = session_options(1, bounded=True)
    options.optimized_model_filepath = str(scratch / MODEL_NAME)
    for entry, value in (
        ("session.optimized_model_external_initializers_file_name", EXTERNAL_NAME),
        (
            "session.optimized_model_external_initializers_file_min_size_in_bytes",
            str(INLINE_BYTES),
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(entry, value)
    try:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        blobs = list(read_blobs(scratch / MODEL_NAME))
    except Exception as error:  # ONNX Runtime's own classes, one for each status
        if is_allocation_failure(error):
            raise
        raise PackingError(f"ONNX Runtime {runtime_version()} packs no weights: {error}") from error
    external = scratch / EXTERNAL_NAME
    if external.exists():
        fd = os.open(external, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for key, offset, n_bytes in blobs:
                writer.add(name, key, fd, offset, n_bytes)
        finally:
            os.close(fd)
            external.unlink()
    (scratch / MODEL_NAME).unlink()
