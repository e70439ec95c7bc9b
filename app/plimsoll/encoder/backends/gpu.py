"""A GPU, where onnxruntime-gpu, a driver and a device are there. Not tested on hardware.

Weights are copied into its memory once and bound there; states go to it and back in each operation.
ONNX Runtime bounds the memory of every session by itself, so the sessions of a model share what the
weights leave below the line. Several models that are open at once do not know of one another here.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import onnxruntime as ort

from plimsoll.encoder.backends.onnx_graphs import embed_norm_graph
from plimsoll.encoder.backends.onnx_probe import PROBE_ARCHITECTURE
from plimsoll.encoder.backends.onnx_runtime import GPU_PROVIDER, open_session

DRIVER = "libcuda.so.1"
MEMORY_RATIO = 0.8
N_SESSIONS = 4  # of a model: `LayerSessions` whose layers share theirs
PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class GpuStatus:
    """What was found. n_bytes: memory of the first device, 0 where none serves."""

    n_bytes: int
    found: str

    @property
    def is_missed(self) -> bool:
        """Whether ONNX Runtime was installed for a GPU that does not serve."""
        return not self.n_bytes and GPU_PROVIDER in ort.get_available_providers()

    def session_bytes(self, weights_bytes: int) -> int:
        """What each session of a model may take; 0 where there is no GPU or the weights are it."""
        return max(0, int(MEMORY_RATIO * self.n_bytes) - weights_bytes) // N_SESSIONS


@cache
def gpu_status() -> GpuStatus:
    """Look for a GPU, once a process."""
    if GPU_PROVIDER not in ort.get_available_providers():
        return GpuStatus(0, "the CPU computes")
    n_bytes = device_bytes()
    if n_bytes is None:
        return GpuStatus(0, f"the CPU computes: {DRIVER} finds no device")
    session = open_session(embed_norm_graph(PROBE_ARCHITECTURE), 1, gpu_bytes=PROBE_BYTES)
    if GPU_PROVIDER not in session.get_providers():  # ONNX Runtime goes on without it
        return GpuStatus(0, f"the CPU computes: {GPU_PROVIDER} does not load")
    return GpuStatus(n_bytes, f"{GPU_PROVIDER} with {n_bytes >> 20} MiB computes float32")


def device_bytes() -> int | None:
    """Memory of the device that CUDA counts first; None where there is no driver or device.

    Source: the CUDA driver API, whose calls give 0 for success.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device, n_bytes = ctypes.c_int(), ctypes.c_size_t()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(n_bytes), device)
    )
    return None if failed else n_bytes.value
