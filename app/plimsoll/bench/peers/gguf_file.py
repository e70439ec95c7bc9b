"""The same weights in a GGUF file of another type, for llama.cpp; by gguf-py alone."""

from pathlib import Path

import gguf

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.sidecar.sidecar import Sidecar

WRITTEN_ANYWAY = ("general.architecture", "general.file_type")
# As llama.cpp's converter has it: adding rows of a quantized table is not what it computes.
KEPT_FLOAT32 = ("position_embd", "token_types")
FILE_TYPES = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def gguf_file(case: ModelCase, file_type: str) -> Path:
    """The model's file with its matrices in this type; written unless it is of it, or is there.

    Matrices of Q8_0 become F16 without more loss than F16 has; vectors stay as they are.
    """
    sidecar = Sidecar(case.sidecar_folder)
    source = Path(sidecar.index.source.path)
    sidecar.close()
    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[file_type]
    of_matrices = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    if of_matrices - {gguf.GGMLQuantizationType.F32} == {wanted}:
        return source
    target = case.naive_path.with_suffix(f".{file_type}.gguf")
    if target.is_file():
        return target
    partial = target.with_suffix(".tmp")
    writer = gguf.GGUFWriter(partial, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in WRITTEN_ANYWAY:
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(FILE_TYPES[file_type])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        is_matrix = len(tensor.shape) > 1 and not tensor.name.startswith(KEPT_FLOAT32)
        kept = wanted if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(target)
