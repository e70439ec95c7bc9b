"""What `plimsoll doctor` looks at of the model that would be served: its file, memory and disk."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plimsoll import files
from plimsoll.cli.findings import Finding, State, finding_of, mib, nearest, words_of
from plimsoll.composition.models import engine_threads, spec_of
from plimsoll.encoder.backends.gpu import gpu_status
from plimsoll.encoder.backends.packing import packing_status
from plimsoll.encoder.catalog import ModelSpec, resolve
from plimsoll.encoder.known_models import BuiltinSource
from plimsoll.errors import ModelNotFoundError, PlimsollError, SettingsError
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.hub import local_file
from plimsoll.models.inspection import judge
from plimsoll.models.listing import ListedModel, list_known_and_present
from plimsoll.settings import Settings

READ_BYTES = 64 << 20
SLOW_BYTES_PER_S = 100 << 20
TO_READ = "let this user read it, or set PLIMSOLL_MODEL or PLIMSOLL_CACHE_DIR"


@dataclass(frozen=True)
class SoughtModel:
    """What is known of the model to serve.

    path: its file, None where it is still to be fetched. listed: None for a file whose header says
    too little. fault: why it was not found, and then what is not known is None.
    """

    spec: ModelSpec | None = None
    path: Path | None = None
    listed: ListedModel | None = None
    fault: PlimsollError | OSError | None = None

    @property
    def needs_hub(self) -> bool:
        """Whether it is to be fetched from the hub."""
        if self.spec is None or self.path is not None or self.fault is not None:
            return False
        return not isinstance(self.spec.source, BuiltinSource)


def look_for_model(settings: Settings) -> SoughtModel:
    """Find the model of these settings, as far as it can be found."""
    spec = path = listed = None
    try:
        spec = spec_of(settings)
        path = local_file(spec, settings.cache_dir)
        listed = _listed(spec, path, settings)
    except (PlimsollError, OSError) as error:
        return SoughtModel(spec, path, fault=error)
    return SoughtModel(spec, path, listed)


def model(settings: Settings, sought: SoughtModel) -> Finding:
    """Whether its file is here and can be served."""
    fault, path = sought.fault, sought.path
    if isinstance(fault, ModelNotFoundError | SettingsError):
        remedy = "set PLIMSOLL_MODEL; see `plimsoll models`"
        return Finding("model", State.FAIL, str(fault), remedy)
    if fault is not None:
        return Finding("model", State.FAIL, words_of(fault), TO_READ)
    if path is not None:
        return finding_of("model", TO_READ, lambda: _model_file(settings.model, path))
    return Finding(
        "model",
        State.WARN,
        f"{settings.model} is not here yet",
        f"`plimsoll pull {settings.model}`, or it is fetched at the first request",
    )


def _model_file(written: str, path: Path) -> Finding:
    remedy = f"fetch it again or choose another; `plimsoll inspect {path}` says more"
    with FileSource(path) as source:
        try:
            _, reason = judge(read_header(source))
        except PlimsollError as error:
            reason = str(error)
    if reason is not None:
        return Finding("model", State.FAIL, f"{path}: {reason}", remedy)
    return Finding("model", State.OK, f"{written}: {path}")


def memory(settings: Settings, listed: ListedModel | None) -> Iterator[Finding]:
    """What cannot be measured, and whether the budget is enough for the model."""
    try:
        monitor = MemoryMonitor(settings.memory_budget)
    except SettingsError as error:
        yield Finding("memory", State.FAIL, str(error), "set PLIMSOLL_MEMORY_BUDGET")
        return
    yield from (Finding("memory", State.WARN, note) for note in monitor.notes)
    yield _budget(monitor, listed)


def _budget(monitor: MemoryMonitor, listed: ListedModel | None) -> Finding:
    budget, used_bytes = monitor.budget, monitor.sample().used_bytes
    found = f"{mib(budget.budget_bytes)} from {budget.source}, {mib(used_bytes)} in use"
    if listed is None:
        return Finding("memory", State.OK, found)
    least, most = listed.least_memory_bytes, listed.all_memory_bytes
    found += f"; {listed.name} needs {mib(least)}, {mib(most)} with all weights in memory"
    if budget.budget_bytes < least:
        return Finding("memory", State.FAIL, found, "raise the limit, or choose a smaller model")
    if budget.budget_bytes < most:
        return Finding(
            "memory", State.WARN, found, "weights are read again for each run; more is faster"
        )
    return Finding("memory", State.OK, found)


def free_space(settings: Settings, listed: ListedModel | None) -> Finding:
    """Whether what is still to be fetched and expanded has room in the cache folder."""
    free_bytes = shutil.disk_usage(nearest(settings.cache_dir)).free
    found = f"{mib(free_bytes)} free"
    if listed is None or listed.presence == "ready":
        return Finding("disk space", State.OK, found)
    needed_bytes = 2 * listed.weights_bytes + files.FREE_SPACE_MARGIN_BYTES  # expanded, and packed
    needed_bytes += listed.file_bytes if listed.path is None else 0
    found += f"; {listed.name} takes {mib(needed_bytes)}"
    if free_bytes >= needed_bytes:
        return Finding("disk space", State.OK, found)
    return Finding(
        "disk space", State.FAIL, found, "make room with `plimsoll rm` or set PLIMSOLL_CACHE_DIR"
    )


def packing() -> Finding:
    """Whether weights can be packed ahead, into a file."""
    reason = packing_status()
    if reason is None:
        return Finding("packing", State.OK, "weights are packed once, into the cache folder")
    remedy = "lone texts are slower; report it with the output of `plimsoll doctor`"
    return Finding("packing", State.WARN, f"weights are packed at every call: {reason}", remedy)


def provider() -> Finding:
    """Whether the CPU or a GPU multiplies."""
    status = gpu_status()
    if status.is_missed:
        remedy = "see the CUDA and cuDNN that this onnxruntime-gpu wants, or install onnxruntime"
        return Finding("provider", State.WARN, status.found, remedy)
    return Finding("provider", State.OK, status.found)


def disk_speed(path: Path) -> Finding:
    """Read the beginning of the model's file past the page cache."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, READ_BYTES, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(1 << 20)
        start_s, n_bytes = time.perf_counter(), 0
        while n_bytes < READ_BYTES and (n_read := file.readinto(buffer)):
            n_bytes += n_read
    per_s = n_bytes / max(time.perf_counter() - start_s, 1e-9)
    found = f"reads {mib(int(per_s))} a second"
    if per_s >= SLOW_BYTES_PER_S or n_bytes < len(buffer):
        return Finding("disk speed", State.OK, found)
    return Finding(
        "disk speed", State.WARN, found, "give the server memory for all weights, or a faster disk"
    )


def _listed(spec: ModelSpec, path: Path | None, settings: Settings) -> ListedModel | None:
    for listed in list_known_and_present(settings.cache_dir, engine_threads(settings)):
        names = {listed.name, resolve(listed.name).name}
        if spec.name in names or (path is not None and listed.path == path):
            return listed
    return None
