"""How `auto` chooses: measured once a machine, remembered, and told."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from plimsoll.composition.models import prepare_model
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.machine.instructions import has_int8_products
from plimsoll.models import int8_speed
from plimsoll.models.int8_speed import SPEED_NAME
from plimsoll.settings import Settings
from plimsoll.sidecar.loader import unreported
from plimsoll.sidecar.packed import packed_folders
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

pytestmark = pytest.mark.skipif(
    not has_int8_products(), reason="this processor has no int8 products"
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("speed")
    file = write_synthetic(folder / "model.gguf", arch="bert", shape=TINY)
    return small_settings(folder, file, compute="auto", min_cosine=0, threads=1)


@pytest.fixture
def folder(settings: Settings) -> Iterator[Path]:
    """The sidecar's, with codes and without what was measured."""
    folder = prepare_model(settings, unreported)
    yield folder
    (folder / SPEED_NAME).unlink(missing_ok=True)


@pytest.mark.parametrize(("ratio", "compute"), [(1.7, "int8"), (0.8, "float32")])
def test_auto_takes_what_is_faster_here(
    settings: Settings,
    folder: Path,
    ratio: float,
    compute: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Measured once, and not again by the next start; log and /health say what and why."""
    asked = []

    def measure(*given: object) -> float:
        asked.append(1)
        return ratio

    monkeypatch.setattr(int8_speed, "_measure", measure)
    (folder / SPEED_NAME).unlink()

    for _ in range(2):
        with caplog.at_level("INFO"), opened(settings) as model:
            assert model.traits.compute == compute
            assert model.traits.compute_reason == (
                f"int8 is {ratio:.2f} times as fast as float32 here"
            )
    assert len(asked) == 1
    assert f"is computed in {compute}: int8 is {ratio:.2f} times as fast" in caplog.text


@pytest.mark.parametrize(("ratio", "served"), [(1.5, "int8"), (0.5, "float32")])
def test_the_ratio_is_of_float32_to_int8_and_the_slower_one_leaves_nothing_packed(
    settings: Settings, folder: Path, ratio: float, served: str, monkeypatch: pytest.MonkeyPatch
):
    """Upside down, `auto` would take the slower one; and packed weights are half a gigabyte."""
    seconds = {"float32": 6.0 * ratio, "int8": 6.0}
    monkeypatch.setattr(int8_speed, "_seconds", lambda model, texts: seconds[model.traits.compute])
    (folder / SPEED_NAME).unlink()

    with opened(settings) as model:
        assert model.traits.compute == served

    assert json.loads((folder / SPEED_NAME).read_bytes())["ratio"] == ratio
    assert [path.name.split("-")[1] for path in packed_folders(folder)] == [served]


def test_another_machine_measures_anew(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The codes are portable; how fast they are is not."""
    monkeypatch.setattr(int8_speed, "instruction_set", lambda: "another")
    monkeypatch.setattr(int8_speed, "_measure", lambda *given: 3.25)

    with opened(settings) as model:
        assert model.traits.compute_reason == "int8 is 3.25 times as fast as float32 here"


def test_a_folder_that_is_only_read_is_measured_in_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """An image with the model in it."""

    def fail(*given: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(int8_speed, "_measure", lambda *given: 1.5)
    monkeypatch.setattr(int8_speed.files, "write_durably", fail)

    (folder / SPEED_NAME).unlink()
    with closing(CodesFile(folder)) as codes:
        assert int8_speed.speed_ratio(codes, lambda *given: None) == 1.5
    assert "measured at every opening" in caplog.text


def test_a_model_with_a_short_context_is_calibrated_and_timed_within_it(tmp_path: Path):
    """It has no positions for longer texts, and would not open at all."""
    file = write_synthetic(tmp_path / "model.gguf", arch="bert", shape=replace(TINY, context=64))

    with opened(small_settings(tmp_path, file, compute="auto", min_cosine=0)) as model:
        assert model.traits.compute_reason is not None
        assert "times as fast as float32" in model.traits.compute_reason
