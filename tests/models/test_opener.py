"""A file that does not run: refused alike everywhere, from its header, with nothing left of it."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plimsoll.cli.commands import main
from plimsoll.composition.models import make_opener, open_model, prepare_model
from plimsoll.encoder.catalog import resolve
from plimsoll.errors import ModelNotFoundError, ModelUnsupportedError
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.inspection import Machine, inspect_gguf
from plimsoll.models.opener import ModelOpener
from plimsoll.sidecar import loader
from plimsoll.sidecar.loader import unreported
from plimsoll.sidecar.sidecar import Sidecar
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

MACHINE = Machine(1 << 30, "a test", [], None, None, 1)

REFUSED: dict[str, dict[str, Any]] = {
    "general.architecture": {"general.architecture": "qwen3"},
    "split.count": {"split.count": 3},
    "nomic-bert.rope.scaling.type": {"nomic-bert.rope.scaling.type": "yarn"},
    "nomic-bert.expert_count": {"nomic-bert.expert_count": 8},
    "nomic-bert.pooling_type": {"nomic-bert.pooling_type": True},
    "tokenizer.ggml.model": {"tokenizer.ggml.model": "t5"},
    "tokenizer.ggml.normalizer.lowercase": {"tokenizer.ggml.normalizer.lowercase": "yes"},
}


@pytest.mark.parametrize("key", REFUSED)
def test_opening_pulling_and_inspecting_refuse_with_the_same_words(tmp_path: Path, key: str):
    """`pull` said "is ready" of a file that `serve` could not open."""
    file = write_synthetic(tmp_path / "refused.gguf", shape=TINY, metadata=REFUSED[key])
    settings = small_settings(tmp_path, file)

    with pytest.raises(ModelUnsupportedError) as opened:
        open_model(settings, unreported)
    with pytest.raises(ModelUnsupportedError) as pulled:
        prepare_model(settings, unreported)
    report = inspect_gguf(str(file), n_threads=1, machine=MACHINE)

    assert key in str(opened.value)
    assert str(pulled.value) == str(opened.value) == report.reason
    assert not report.supported


def test_nothing_is_left_of_a_refused_file_and_no_weight_of_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An expanded model of 8 billion parameters takes 32 GB of disk."""
    file = write_synthetic(
        tmp_path / "qwen3.gguf", shape=TINY, metadata={"general.architecture": "qwen3"}
    )
    monkeypatch.setattr(loader, "Pipeline", None)  # what reads weights: calling it would fail
    cache = tmp_path / "cache"

    options = ["--cache-dir", str(cache), "--cache-on-tmpfs"]
    done = CliRunner().invoke(main, ["pull", str(file), *options])

    assert done.exit_code == 2
    assert "qwen3" in done.stderr
    assert "is ready" not in done.stderr
    assert not cache.exists()


def test_a_sidecar_of_an_earlier_version_does_not_make_a_refused_file_ready(tmp_path: Path):
    """Expanded before the key was known, it would be served as before."""
    file = write_synthetic(
        tmp_path / "yarn.gguf", shape=TINY, metadata={"nomic-bert.rope.scaling.type": "yarn"}
    )
    settings = small_settings(tmp_path, file)
    made = loader.StreamingGGUFLoader(settings.cache_dir, allow_memory_backed=True).load(file)
    made.close()

    with pytest.raises(ModelUnsupportedError, match=r"rope\.scaling\.type is 'yarn'"):
        prepare_model(settings, unreported)


def test_a_guess_is_told_by_inspect_and_by_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Before it is served, when it is opened, and to every client."""
    file = write_synthetic(
        tmp_path / "unpooled.gguf", arch="bert", shape=TINY, metadata={"bert.pooling_type": None}
    )

    report = inspect_gguf(str(file), n_threads=1, machine=MACHINE)
    model = open_model(small_settings(tmp_path, file), unreported)
    told = model.traits.warnings(model.traits.dimensions, None)
    model.close()

    (warning,) = report.warnings
    assert "bert.pooling_type" in warning
    assert warning in report.as_text()
    assert told == [warning]
    assert warning in caplog.text


def opener_of(folder: Path, file: Path) -> ModelOpener:
    return make_opener(small_settings(folder, file), MemoryMonitor(), resolve(str(file)))


@pytest.mark.parametrize("key", REFUSED)
def test_a_look_refuses_with_the_words_that_opening_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
):
    """Before a weight is read, and with nothing written."""
    file = write_synthetic(tmp_path / "refused.gguf", shape=TINY, metadata=REFUSED[key])
    monkeypatch.setattr(loader, "Pipeline", None)

    with pytest.raises(ModelUnsupportedError, match=key.replace(".", r"\.")):
        opener_of(tmp_path, file).look()

    assert not (tmp_path / "cache").exists()


def test_a_file_is_new_when_it_is_another_and_rests(tmp_path: Path):
    """While it is copied in, each look would fail, and would be logged."""
    file = tmp_path / "m.gguf"
    opener = opener_of(tmp_path, file)
    with pytest.raises(ModelNotFoundError):
        opener.look()
    assert [opener.has_new_file() for _ in range(2)] == [False, False]

    file.write_bytes(b"half")
    assert opener.has_new_file() is False  # it may still grow
    write_synthetic(file, shape=TINY)
    assert [opener.has_new_file() for _ in range(3)] == [False, True, True]

    opener.look()
    assert [opener.has_new_file() for _ in range(2)] == [False, False]


def test_weights_that_are_ready_need_no_look_at_their_file(tmp_path: Path):
    """They open again also when the file has gone."""
    file = write_synthetic(tmp_path / "m.gguf", shape=TINY)
    opener = opener_of(tmp_path, file)
    opener.prepare(unreported).close()
    file.unlink()

    opener.look()


def test_a_model_that_has_closed_is_freed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its sidecar holds the vocabulary: left for the garbage collector, a hundred took 60 MiB."""
    made: list[weakref.ref[Sidecar]] = []
    begin = Sidecar.__init__

    def watched(sidecar: Sidecar, folder: Path) -> None:
        begin(sidecar, folder)
        made.append(weakref.ref(sidecar))

    settings = small_settings(tmp_path, write_synthetic(tmp_path / "tiny.gguf", shape=TINY))
    monkeypatch.setattr(Sidecar, "__init__", watched)
    gc.disable()
    try:
        with opened(settings) as model:
            assert model.traits.dimensions == TINY.hidden
        del model
        assert made
        assert [sidecar for sidecar in made if sidecar() is not None] == []
    finally:
        gc.enable()
