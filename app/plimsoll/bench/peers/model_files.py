"""The same weights in the forms that the peers read, made once beside the naive path's export.

A folder as sentence-transformers and infinity take it, and GGUF files of other types for
llama.cpp, by gguf-py alone.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.pytorch import configuration, state_of
from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.sidecar.sidecar import Sidecar

TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
}
MODULES = [
    {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for place, (path, kind) in enumerate(
        (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    )
]
POOLING_FLAGS = {
    "MEAN": "pooling_mode_mean_tokens",
    "CLS": "pooling_mode_cls_token",
    "LAST": "pooling_mode_lasttoken",
}
WRITTEN_ANYWAY = ("general.architecture", "general.file_type")
# As llama.cpp's converter has it: adding rows of a quantized table is not what it computes.
KEPT_FLOAT32 = ("position_embd", "token_types")
FILE_TYPES = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def transformers_folder(case: ModelCase) -> Path:
    """The model as sentence-transformers saves one; written unless it is there."""
    folder = case.naive_path.with_suffix(".transformers")
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "1_Pooling").mkdir(parents=True)
    (partial / "2_Normalize").mkdir()
    sidecar = Sidecar(case.sidecar_folder)
    architecture = read_architecture(sidecar.header)
    is_bert = architecture.rope_base is None
    names = ("bert", "BertModel") if is_bert else ("nomic_bert", "NomicBertModel")
    kind = {"model_type": names[0], "architectures": [names[1]], "torch_dtype": "float32"}
    _write(partial / "config.json", kind | configuration(architecture, sidecar))
    state = {name: np.ascontiguousarray(values) for name, values in state_of(sidecar).items()}
    save_file(state, partial / "model.safetensors", {"format": "pt"})
    vocabulary = read_vocabulary(sidecar.header.metadata)
    BertWordPieceTokenizer(
        dict(vocabulary.ids),
        lowercase=vocabulary.normalizer.lowercase,
        strip_accents=vocabulary.normalizer.strip_accents,
    ).save(str(partial / "tokenizer.json"))
    _write(partial / "tokenizer_config.json", TOKENIZER | {"model_max_length": case.token_limit})
    _write(partial / "modules.json", MODULES)
    _write(partial / "sentence_bert_config.json", {"max_seq_length": case.token_limit})
    pooling = {"word_embedding_dimension": architecture.hidden}
    flags = {flag: case.pooling == name for name, flag in POOLING_FLAGS.items()}
    _write(partial / "1_Pooling" / "config.json", pooling | flags)
    del state
    sidecar.close()
    return partial.rename(folder)


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


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
