"""int8 from the settings on: made once, judged, refused, named, and the same in any company."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.composition.models import open_model, prepare_model
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.quantization import codes_file
from plimsoll.encoder.quantization.codes_file import CodesFile, CodesWriter
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.errors import QuantizationError
from plimsoll.machine.cpu import CPUMonitor
from plimsoll.machine.instructions import has_int8_products
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models import quantizing
from plimsoll.models.inspection import describe_machine, inspect_gguf
from plimsoll.sidecar.loader import unreported
from plimsoll.sidecar.packed import PackedFile, packed_folders
from tests.small_models import TINY, draw_few_samples, opened, small_settings
from tests.synthetic import CLS, MASK, SEP, Shape, write_synthetic

pytestmark = pytest.mark.skipif(
    not has_int8_products(), reason="this processor has no int8 products"
)

SHAPE = Shape(n_layers=2, hidden=128, ffn=256, heads=4, vocab=2048, context=512)
# Weights at random amplify rounding as trained ones do not.
LEAST = 0.9


@pytest.fixture(scope="module", params=["bert", "nomic-bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    write_synthetic(folder / "model.gguf", arch=request.param, shape=SHAPE)
    return folder


def int8_settings(folder: Path, **options: Any) -> Any:
    options = {"compute": "int8", "min_cosine": LEAST} | options
    return small_settings(folder, folder / "model.gguf", **options)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[EmbeddingModel]:
    with opened(int8_settings(folder, threads=2)) as model:
        yield model


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[EmbeddingModel]:
    with opened(int8_settings(folder, compute="float32")) as model:
        yield model


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what becomes of codes, and not of how good they are."""
    monkeypatch.setattr(quantizing, "draw_samples", draw_few_samples)


@pytest.fixture
def tiny(tmp_path: Path, few_samples: None) -> Path:
    """A folder with a model that is rounded in a moment."""
    write_synthetic(tmp_path / "model.gguf", arch="bert", shape=TINY)
    return tmp_path


def text(length: int) -> np.ndarray:
    inner = np.random.default_rng(length).integers(MASK + 1, SHAPE.vocab, length - 2)
    return np.array([CLS, *inner, SEP], np.int64)


def test_int8_is_near_float32_and_is_not_it(model: EmbeddingModel, plain: EmbeddingModel):
    texts = [text(length) for length in (20, 3, 70, 200)]

    found, expected = model.encode(texts), plain.encode(texts)

    cosines = np.sum(found * expected, axis=1)
    cosines /= np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert cosines.min() > LEAST
    assert not np.array_equal(found, expected)


def test_int8_has_a_space_of_its_own_and_says_how_near_it_is(
    model: EmbeddingModel, plain: EmbeddingModel
):
    """Vectors of both must not be compared unawares."""
    assert model.traits.compute == "int8"
    assert model.traits.fingerprint() != plain.traits.fingerprint()
    assert model.traits.codes is not None
    told = model.traits.codes.choice.figures()
    assert LEAST < told.worst_cosine <= told.mean_cosine <= 1
    assert told.verified_texts > 100
    assert plain.traits.codes is None


def test_weights_that_codes_stand_for_do_not_count(model: EmbeddingModel, plain: EmbeddingModel):
    """Memory is planned by what a pass reads: a quarter, beside the vocabulary's table."""
    assert model.sizes.layer_bytes < 0.7 * plain.sizes.layer_bytes


def test_inspect_knows_the_figures(folder: Path, model: EmbeddingModel):
    """Operators ask a file what it is, without a server."""
    assert model.traits.codes is not None
    machine = describe_machine(MemoryMonitor(None), CPUMonitor())
    file, cache_dir = str(folder / "model.gguf"), folder / "cache"

    report = inspect_gguf(file, n_threads=1, machine=machine, cache_dir=cache_dir)

    assert report.int8 == model.traits.codes.choice.figures()
    assert f"cosine {report.int8.worst_cosine} at the worst of" in report.as_text()
    assert inspect_gguf(file, n_threads=1, machine=machine, cache_dir=folder / "none").int8 is None


def test_inspect_says_of_damaged_codes_what_to_do(tiny: Path):
    """It is what operators ask when something is wrong: no traceback, and all else is told."""
    sidecar = prepare_model(int8_settings(tiny, compute="float32"), unreported)
    (sidecar / codes_file.INDEX_NAME).write_text("{}")
    machine = describe_machine(MemoryMonitor(None), CPUMonitor())

    report = inspect_gguf(
        str(tiny / "model.gguf"), n_threads=1, machine=machine, cache_dir=tiny / "cache"
    )

    assert report.int8 is None
    (warning,) = report.warnings
    assert "int8 codes cannot be read" in warning
    assert "`plimsoll pull --compute int8` makes them again" in warning


def refuse_to_make(*given: object) -> None:
    pytest.fail("made again")


def test_codes_are_made_once(folder: Path, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch):
    """Minutes for a large model; and a server that starts again must not change its space."""
    monkeypatch.setattr(quantizing.Quantizer, "_make", refuse_to_make)
    monkeypatch.setattr(quantizing, "Sidecar", refuse_to_make)  # it is open already

    with opened(int8_settings(folder)) as again:
        assert again.traits.fingerprint() == model.traits.fingerprint()
        np.testing.assert_array_equal(again.encode([text(40)]), model.encode([text(40)]))


def test_codes_are_portable(
    folder: Path, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Replicas serve one space: two files are copied, and what a machine packs is not in them."""
    settings = int8_settings(folder).model_copy(update={"cache_dir": tmp_path})
    there = prepare_model(settings.model_copy(update={"compute": "float32"}), unreported)
    (here,) = (folder / "cache" / "sidecars").iterdir()
    for name in (codes_file.CODES_NAME, codes_file.INDEX_NAME):
        shutil.copy(here / name, there)
    monkeypatch.setattr(quantizing.Quantizer, "_make", refuse_to_make)

    with opened(settings) as other:
        assert other.traits.fingerprint() == model.traits.fingerprint()
        np.testing.assert_array_equal(other.encode([text(40)]), model.encode([text(40)]))


@pytest.mark.parametrize("part", ["codes", "scales", "float32 weights"])
def test_the_fingerprint_is_of_codes_scales_and_what_stays_in_float32(
    model: EmbeddingModel, folder: Path, tmp_path: Path, part: str
):
    """Any of them that differs gives other vectors."""
    assert model.traits.codes is not None
    if part == "float32 weights":
        other = dataclasses.replace(model.traits, content_sha256="other").fingerprint()
    else:
        (source,) = (folder / "cache" / "sidecars").iterdir()
        index = model.traits.codes
        with closing(CodesWriter(tmp_path / codes_file.CODES_NAME)) as writer:
            for layer in range(SHAPE.n_layers):
                codes = codes_of(source, layer)
                if layer == 1:
                    changed = codes["ffn_up"]
                    (changed.codes[0] if part == "codes" else changed.scales)[0] += 1
                writer.add(codes)
            writer.finish(tmp_path / codes_file.INDEX_NAME, index.choice, index.content_sha256)
        index = codes_file.read_index(tmp_path / codes_file.INDEX_NAME)
        other = dataclasses.replace(model.traits, codes=index).fingerprint()

    assert other != model.traits.fingerprint()


def test_codes_of_other_weights_are_not_taken(tiny: Path, caplog: pytest.LogCaptureFixture):
    """A file that was copied to the wrong folder would give vectors that look like any others."""
    settings = int8_settings(tiny, min_cosine=0)
    with opened(settings) as model:
        name = model.traits.fingerprint()
    (path,) = tiny.rglob(codes_file.INDEX_NAME)
    index = codes_file.read_index(path)
    codes_file.write_index(path, dataclasses.replace(index, content_sha256="other"))

    with caplog.at_level(logging.WARNING), opened(settings) as model:
        assert model.traits.fingerprint() == name

    assert "is of other weights" in caplog.text


def test_codes_are_packed_ahead_and_another_choice_of_them_anew(tmp_path: Path, few_samples: None):
    """The packed file holds what its codes are, and goes with them."""
    write_synthetic(tmp_path / "model.gguf", arch="bert", shape=SHAPE)
    settings = int8_settings(tmp_path)
    folder = prepare_model(settings, unreported)
    (packed,) = (path for path in packed_folders(folder) if "int8" in path.name)
    with closing(PackedFile(packed)) as file:
        assert len(file.blobs("0.project")) >= 3  # one each of Q, K and V
    with opened(settings) as model:
        assert str(packed) in Path("/proc/self/maps").read_text()
        found = model.encode([text(40)])
    index = codes_file.read_index(folder / codes_file.INDEX_NAME)
    shorter = dataclasses.replace(index.choice, short_tokens=16)
    with closing(CodesWriter(tmp_path / "again.codes")) as writer:
        for layer in range(SHAPE.n_layers):
            writer.add(codes_of(folder, layer))
        (tmp_path / "again.codes").replace(folder / codes_file.CODES_NAME)
        writer.finish(folder / codes_file.INDEX_NAME, shorter, index.content_sha256)

    with opened(settings) as model, opened(int8_settings(tmp_path, compute="float32")) as plain:
        # Short texts read all of the float32 weights: memory is planned for both.
        assert model.weights_bytes > plain.weights_bytes
        np.testing.assert_array_equal(model.encode([text(40)]), found)
        np.testing.assert_array_equal(model.encode([text(9)]), plain.encode([text(9)]))
    now = packed_folders(folder)

    assert packed not in now
    assert sorted(path.name.split("-")[1] for path in now) == ["float32", "int8"]


def codes_of(folder: Path, layer: int) -> dict[str, Codes]:
    with closing(CodesFile(folder)) as codes:
        arrays = {name: array.copy() for name, array in codes.arrays(layer).items()}
    names = dict.fromkeys(name.partition(".")[0] for name in arrays)
    return {name: Codes(arrays[f"{name}.codes"].T, arrays[f"{name}.scales"]) for name in names}


def test_progress_goes_from_nothing_to_all(tiny: Path):
    """Minutes pass: commands and /health show how far it is."""
    told = []

    def progress(done_bytes: int, total_bytes: int, phase: str) -> None:
        if phase == "quantize":
            told.append(done_bytes / total_bytes)

    open_model(int8_settings(tiny, min_cosine=0), progress).close()

    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)
    assert len(set(told)) > TINY.n_layers


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_an_interrupted_making_leaves_nothing_half_made(tiny: Path, step: int):
    """Ctrl-C, or a server that is stopped: the next start begins anew and comes to the end."""
    settings = int8_settings(tiny, min_cosine=0)
    told = []

    def progress(done_bytes: int, total_bytes: int, phase: str) -> None:
        told.append(phase)
        if told.count("quantize") > step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_model(settings, progress)

    assert not list(tiny.rglob("*int8*"))
    with opened(settings) as model:
        assert model.traits.compute == "int8"


def test_damaged_codes_are_made_again_with_the_same_name(tiny: Path):
    """The fingerprint is of the codes, and the same weights give the same ones."""
    settings = int8_settings(tiny, min_cosine=0)
    with opened(settings) as model:
        name = model.traits.fingerprint()
    (path,) = tiny.rglob(codes_file.CODES_NAME)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)

    with opened(settings) as model:
        assert model.traits.fingerprint() == name


def test_a_bad_scale_is_refused_and_leaves_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """The gate is there for a rounding that goes wrong; float32 still serves."""
    rounded = quantizing.Calibration.round_layer

    def badly(self: Any, arrays: Any) -> dict[str, Codes]:
        found = rounded(self, arrays)
        return found | {"ffn_up": Codes(found["ffn_up"].codes, found["ffn_up"].scales * 4)}

    monkeypatch.setattr(quantizing.Calibration, "round_layer", badly)

    settings = int8_settings(tiny, min_cosine=0.99)

    with pytest.raises(QuantizationError, match="int8 is refused: the worst of") as caught:
        open_model(settings, unreported)
    assert str(caught.value).endswith("set PLIMSOLL_COMPUTE to float32 or auto")
    assert not list(tiny.rglob("int8.codes"))
    assert not list(tiny.rglob("int8.tmp"))
    with opened(int8_settings(tiny, min_cosine=0.99, compute="auto")) as model:
        assert model.traits.compute == "float32"
        assert model.traits.compute_reason is not None
        assert "int8 is refused: the worst of" in model.traits.compute_reason


def test_a_refusal_is_remembered_until_the_line_is_lower(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each try would take minutes, and come to the same figures."""
    strict = int8_settings(tiny, min_cosine=0.9999999)
    with pytest.raises(QuantizationError):
        open_model(strict, unreported)

    with monkeypatch.context() as patched:
        patched.setattr(quantizing.Quantizer, "_make", refuse_to_make)
        with pytest.raises(QuantizationError):
            open_model(strict, unreported)
    with opened(int8_settings(tiny, min_cosine=0)) as model:
        assert model.traits.compute == "int8"


def test_good_codes_that_come_later_win_over_a_refusal(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of another machine, which rounds a little differently, were copied here."""
    strict = int8_settings(tiny, min_cosine=0.9999999)
    with pytest.raises(QuantizationError):
        open_model(strict, unreported)
    open_model(int8_settings(tiny, min_cosine=0), unreported).close()
    (path,) = tiny.rglob(codes_file.INDEX_NAME)
    index = codes_file.read_index(path)
    verdict = dataclasses.replace(index.choice.verdict, worst_cosine=1.0)
    choice = dataclasses.replace(index.choice, verdict=verdict)
    codes_file.write_index(path, dataclasses.replace(index, choice=choice))
    monkeypatch.setattr(quantizing.Quantizer, "_make", refuse_to_make)

    with opened(strict) as model:
        assert model.traits.compute == "int8"


def test_codes_below_a_line_that_was_raised_are_not_taken(tiny: Path):
    """Those of a benchmark that asked for nothing must not serve clients."""
    with opened(int8_settings(tiny, min_cosine=0)) as model:
        assert model.traits.compute == "int8"

    with pytest.raises(QuantizationError):
        open_model(int8_settings(tiny, min_cosine=0.9999999), unreported)


def test_a_processor_without_int8_products_has_no_int8(
    folder: Path, plain: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
):
    """Its products of 8 bits saturate: vectors would be wrong. That there are codes is no help."""
    monkeypatch.setattr(quantizing, "has_int8_products", lambda: False)

    with pytest.raises(QuantizationError, match="needs a processor with VNNI, AMX or dot products"):
        open_model(int8_settings(folder), unreported)
    with opened(int8_settings(folder, compute="auto")) as model:
        assert model.traits.fingerprint() == plain.traits.fingerprint()
        assert "needs a processor" in str(model.traits.compute_reason)
