"""A GPU that is made up of a list of providers: what is asked of it. None has been tried."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from plimsoll.encoder.backends import gpu
from plimsoll.encoder.backends.gpu import MEMORY_RATIO, N_SESSIONS, device_bytes, gpu_status
from plimsoll.encoder.backends.onnx_runtime import GPU_PROVIDER
from plimsoll.machine.instructions import has_int8_products
from plimsoll.models import quantizing
from plimsoll.settings import Settings
from plimsoll.sidecar.packed import packed_folders
from tests.small_models import TINY, draw_few_samples, opened, small_settings
from tests.synthetic import write_synthetic

GPU_BYTES = 8 << 30
CPU_PROVIDER = "CPUExecutionProvider"
TEXTS = [np.arange(104, 104 + n) for n in (9, 40, 5)]


class FakeGpu:
    """Notes sessions and values that are asked for on the GPU, and makes them on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_bytes: int | None = GPU_BYTES
        self.loads = True
        self.providers: list[list[Any]] = []
        self.devices: list[str] = []
        fake, value_of = self, ort.OrtValue.ortvalue_from_numpy

        class Session(ort.InferenceSession):
            def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
                fake.providers.append(providers)
                super().__init__(model, options, providers=[CPU_PROVIDER])

            def get_providers(self) -> list[str]:
                return [GPU_PROVIDER, CPU_PROVIDER] if fake.loads else [CPU_PROVIDER]

        def value(array: np.ndarray, device: str, index: int) -> ort.OrtValue:
            self.devices.append(device)
            return value_of(array, "cpu", index)

        monkeypatch.setattr(ort, "InferenceSession", Session)
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", staticmethod(value))
        monkeypatch.setattr(ort, "get_available_providers", lambda: [GPU_PROVIDER, CPU_PROVIDER])
        monkeypatch.setattr(gpu, "device_bytes", lambda: self.n_bytes)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path, write_synthetic(tmp_path / "m.gguf", shape=TINY), threads=2)


@pytest.fixture
def cpu_vectors(settings: Settings) -> np.ndarray:
    with opened(settings) as model:
        return model.encode(TEXTS)


@pytest.fixture
def fake(cpu_vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A GPU that appears after the CPU has computed."""
    gpu_status.cache_clear()
    yield FakeGpu(monkeypatch)
    gpu_status.cache_clear()


def test_sessions_and_weights_of_a_model_share_four_fifths_of_the_memory(
    settings: Settings, cpu_vectors: np.ndarray, fake: FakeGpu
):
    """ONNX Runtime bounds each session by itself; the rest of the device is for others."""
    assert gpu_status().n_bytes == GPU_BYTES
    fake.providers.clear()

    with opened(settings) as model:
        vectors = model.encode(TEXTS)
        weights_bytes = model.weights_bytes

    assert len(fake.providers) == N_SESSIONS
    limits = [int(options["gpu_mem_limit"]) for (_, options), _ in fake.providers]
    assert sum(limits) + weights_bytes <= MEMORY_RATIO * GPU_BYTES < sum(limits) * 1.01
    assert {(first[0], second) for first, second in fake.providers} == {
        (GPU_PROVIDER, CPU_PROVIDER)
    }
    assert set(fake.devices) == {"cuda"}
    np.testing.assert_allclose(vectors, cpu_vectors, rtol=0, atol=1e-5)


def test_weights_that_do_not_fit_stay_with_the_cpu(settings: Settings, fake: FakeGpu):
    """Packed, as without a GPU."""
    fake.n_bytes = 1 << 20
    (folder,) = (settings.cache_dir / "sidecars").iterdir()
    (packed,) = packed_folders(folder)

    with opened(settings) as model:
        model.encode(TEXTS)
        assert str(packed) in Path("/proc/self/maps").read_text()

    assert set(fake.devices) == {"cpu"}


@pytest.mark.skipif(not has_int8_products(), reason="this processor has no int8 products")
def test_int8_stays_with_the_cpu(
    settings: Settings, fake: FakeGpu, monkeypatch: pytest.MonkeyPatch
):
    """CUDA has no kernel for its products, which ONNX Runtime would carry to and fro."""
    monkeypatch.setattr(quantizing, "draw_samples", draw_few_samples)

    with opened(settings.model_copy(update={"compute": "int8", "min_cosine": 0})) as model:
        model.encode(TEXTS)

    assert set(fake.devices) == {"cpu"}


@pytest.mark.parametrize(
    ("n_bytes", "loads", "found", "is_missed"),
    [
        (GPU_BYTES, True, "CUDAExecutionProvider with 8192 MiB computes float32", False),
        (None, True, "finds no device", True),
        (GPU_BYTES, False, "does not load", True),
    ],
)
def test_what_serves_is_told(
    fake: FakeGpu, n_bytes: int | None, loads: bool, found: str, is_missed: bool
):
    """ONNX Runtime goes on with the CPU in silence where a library of CUDA is missing."""
    fake.n_bytes, fake.loads = n_bytes, loads

    status = gpu_status()

    assert found in status.found
    assert status.is_missed == is_missed
    assert bool(status.n_bytes) != is_missed


def test_a_machine_without_a_gpus_library_computes_as_ever(cpu_vectors: np.ndarray):
    """The plain onnxruntime has no such provider: nothing else is looked at."""
    gpu_status.cache_clear()

    assert gpu_status().found == "the CPU computes"
    assert not gpu_status().is_missed
    assert gpu_status().session_bytes(0) == 0


def fake_driver(failing: str) -> Any:
    """The three calls; each gives 0 for success."""

    def initialize(flags: int) -> int:
        return 100 if failing == "cuInit" else 0

    def get_device(device: Any, index: int) -> int:
        device._obj.value = 7
        return 101 if failing == "cuDeviceGet" else 0

    def get_memory(n_bytes: Any, device: ctypes.c_int) -> int:
        n_bytes._obj.value = GPU_BYTES if device.value == 7 else 0
        return 1 if failing == "cuDeviceTotalMem_v2" else 0

    return SimpleNamespace(
        cuInit=initialize, cuDeviceGet=get_device, cuDeviceTotalMem_v2=get_memory
    )


@pytest.mark.parametrize("failing", ["", "cuInit", "cuDeviceGet", "cuDeviceTotalMem_v2", "library"])
def test_the_driver_is_asked_for_the_first_devices_memory(
    failing: str, monkeypatch: pytest.MonkeyPatch
):
    """A driver without a device, or hidden by CUDA_VISIBLE_DEVICES, is no GPU."""

    def load(name: str) -> Any:
        if failing == "library":
            raise OSError("cannot open shared object file")
        return fake_driver(failing)

    monkeypatch.setattr(ctypes, "CDLL", load)

    assert device_bytes() == (None if failing else GPU_BYTES)
